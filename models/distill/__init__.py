"""The training methods, chosen by `kind`. To add one: its file beside this one, its line in the union."""

from typing import Annotated, get_args

from pydantic import Field

from models.distill.dkd import DKD
from models.distill.hints import Hints
from models.distill.kd import KD
from models.distill.method import Method as Base
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


def refuse_misfit(method: type[Base]) -> None:
    """Raise TypeError where a class can be no method; pydantic, who meets it next, names no file.

    Args:
        method: a member of the union.
    """
    file = f"{method.__module__.replace('.', '/')}.py"
    if lacking := ", ".join(sorted(method.__abstractmethods__)):
        raise TypeError(f"{file}: {method.__name__} lacks {lacking}")
    name = method.__module__.rpartition(".")[2]
    if get_args(method.model_fields["kind"].annotation) != (name,):
        raise TypeError(
            f'{file}: {method.__name__} must have `kind: Literal["{name}"]`, as its file is named'
        )


for _method in get_args(get_args(Method)[0]):
    refuse_misfit(_method)
