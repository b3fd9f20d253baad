"""How a student of method omnivorous is trained: with several modalities, and judged by its RGB branch alone."""

from dataclasses import dataclass

from models.distill.omnivorous import Omnivorous, alone
from models.fusion import LateFusion
from models.network import Network
from tasks.learner import Learner
from tasks.params import MODALITY
from tasks.senses import Senses, SharedShards
from tasks.shards import Shards


@dataclass(frozen=True)
class Omnivore(Learner):
    """Trains the fused network.

    Attributes:
        student: what is deployed.
    """

    student: Learner

    def validate(self, network: Network) -> dict[str, float]:
        """Loss and action top-1 on the validation clips by RGB alone."""
        return self.student.validate(alone(network, MODALITY).eval())


def omnivore(student: Learner) -> Omnivore:
    """The learner of the fused network whose RGB branch is to be `student`."""
    method, params = student.method, student.params
    assert isinstance(method, Omnivorous)
    own = student.spec.backbone
    assert not isinstance(own, LateFusion)
    teachers = [params.teachers[name] for name in method.teachers]
    names = [MODALITY, *(teacher.modality for teacher in teachers)]
    backbones = [own, *(teacher.backbone for teacher in teachers)]
    spec = student.spec.model_copy(
        update={
            "modality": "+".join(names),
            "modality_params": Senses(kind="senses", of={name: params.modalities[name] for name in names}),
            "backbone": LateFusion(
                kind="fused",
                branches=dict(zip(names, backbones, strict=True)),
                head="joint",
                dropout=own.dropout,
                modality_dropout=method.modality_dropout,
            ),
        }
    )
    shards = SharedShards({name: Shards(student.workspace.modality(name)) for name in names})
    return Omnivore(**{**vars(student), "spec": spec, "shards": shards}, student=student)
