"""The training methods, chosen by `kind`. To add one: its file beside this one, its line in the union."""

from typing import Annotated, get_args

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

for _method in get_args(get_args(Method)[0]):  # before pydantic meets them, whose words name no file
    _file = f"{_method.__module__.replace('.', '/')}.py"
    if _method.__abstractmethods__:
        raise TypeError(f"{_file}: {_method.__name__} lacks {', '.join(sorted(_method.__abstractmethods__))}")
    if get_args(_method.model_fields["kind"].annotation) != (_method.__module__.rpartition(".")[2],):
        raise TypeError(f"{_file}: the kind of {_method.__name__} must be a Literal of the file's own name")
