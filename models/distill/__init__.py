"""The training methods, chosen by `kind`. To add one: its file beside this one, its line in the union."""

from typing import Annotated

from pydantic import Field

from models.distill.dkd import DKD
from models.distill.hints import Hints
from models.distill.kd import KD
from models.distill.mst import MST
from models.distill.omnivorous import Omnivorous
from models.distill.rkd import RKD
from models.distill.supervised import Supervised

Method = Annotated[
    Supervised  # labels alone
    | KD  # the teachers' mixed prediction, and labels
    | DKD  # the same, the label's class apart from the others
    | RKD  # how clips lie to each other in the teachers' features, their mixed prediction, and labels
    | Omnivorous  # labels, other modalities shown in training
    | MST  # specialised teachers, a few picked for each clip, and labels
    | Hints,  # the teachers' features of every moment, their mixed prediction, and labels
    Field(discriminator="kind"),
]
