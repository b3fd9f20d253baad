"""Method `omnivorous`: train one network on several modalities and labels, deploy its RGB branch alone.

The simplest use of other senses in training: no teachers, one network of late fusion from which modalities are hidden
at random (modality dropout), so that it learns to do with what it gets. At inference RGB is all it gets; the joint
classifier then reads the RGB features, its own bias and the flags, which are constant, so that a network of RGB alone
says exactly the same at the cost of a student.

Source: Girdhar et al., Omnivore, CVPR 2022, arXiv 2201.08377 (one model of many modalities), as a baseline beside
distillation; modality dropout as in Neverova et al., ModDrop, TPAMI 2016, arXiv 1501.00102.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from models.distill.method import Labels, Lesson, Losses, Method, ground_truth
from models.fusion import FusedNetwork
from models.heads import Heads
from models.network import Network, Output


class Omnivorous(Method):
    """Learn from the labels by cross-entropy, from whatever modalities are shown.

    Attributes:
        teachers: whose modalities and backbones are those of the other branches; their weights are not used.
        modality_dropout: probability, in training, that a clip's modality is hidden; where all would be, none is.
        head_weights: weight of each head's loss; None weighs all heads 1.
    """

    hears = "senses"

    kind: Literal["omnivorous"]
    teachers: list[str] = Field(min_length=1)
    modality_dropout: Annotated[float, Field(gt=0, lt=1)]
    head_weights: dict[str, NonNegativeFloat] | None

    def loss(
        self, student: Output, lesson: Lesson | None, labels: Labels, companion: nn.Module, progress: float
    ) -> Losses:
        """Return the mean over heads of weighted cross-entropy; a lesson is not listened to."""
        total = ground_truth(student.logits, labels, self.head_weights)
        return Losses(total, {"ground_truth": total.detach()})


def alone(network: Network, modality: str) -> Network:
    """Return the network of one modality that says what a fused one says of clips that have that modality alone.

    Args:
        network: of late fusion with a joint classifier; what is returned shares its branch.
        modality: one of its branches.
    """
    fused, heads = network.backbone, network.heads
    assert isinstance(fused, FusedNetwork)
    assert isinstance(heads, Heads)
    names = list(fused.widths)
    begin = sum(fused.widths[name] for name in names[: names.index(modality)])
    flag = sum(fused.widths.values()) + names.index(modality)

    def of_branch(weight: Tensor) -> Tensor:
        return weight[:, begin : begin + fused.widths[modality]]

    own = heads.reading(of_branch, lambda weight: weight[:, flag])
    return Network(fused.branch(modality), own)
