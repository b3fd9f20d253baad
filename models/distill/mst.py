"""Method `mst` and what leads up to it: a mixture of specialised teachers, a specialist or two for every clip.

1. `Joint`: a fused teacher, auxiliary teachers of one modality each and a student learn the labels and each other.
2. `Masks`: all of them frozen, each specialist is a teacher seen through a mask that brings it near the student.
3. `MST`: a student learns the labels and those few specialists that a gate picks for each clip.

Source: Li et al., MST-Distill: Mixture of Specialized Teachers for Cross-Modal Knowledge Distillation, ACM MM 2025,
arXiv 2507.07015. Where this leaves the released code: each specialist has one mask and that mask is its own; the
gate's input carries no gradient, so balancing it cannot pull at the student; the gate has a non-linearity; and it
learns. There it gets no gradient from the distillation, which uses its ranks alone. Weighing each divergence by the
gate's probability, as mixtures of experts do, would teach it to pick whoever agrees with the student already. Here it
is taught who is right: its target is a softmax over how well each specialist does on the clip, known from predictions
that are out-of-fold. The masks embed moments as tokens, or channels with a vector each, in place of d·h·d weights.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from models.distill.divergences import divergence
from models.distill.method import (
    HintShape,
    Labels,
    Lesson,
    Losses,
    Method,
    ground_truth,
    refuse_other_heads,
    widen,
)
from models.fusion import FusedNetwork, Looked, MomentsChange, Partial, Sights, branch_key, spread
from models.network import Logits, Network, Output, Word

Layer = Literal["moments", "features"]
LAYERS: tuple[Layer, ...] = ("moments", "features")
"""Where a mask may sit: on the embeddings of moments before they become a clip's, or on the clip's."""

Seen = tuple[Tensor, Tensor] | Looked
"""Features of clips and of their moments; of a fused network those of each branch."""

_OPEN = 2.0  # a mask begins at σ(2) = 0.88: near its teacher, and not where the sigmoid is flat


class Together(Network, Partial):
    """A student with its teachers beside it, all on the same views.

    Args:
        student: sees the modality `sees`.
        teachers: name → network of one modality or of several.
        modalities: teacher → what it sees; None for a fused one.
        sees: the student's modality, which every clip has.
    """

    def __init__(
        self,
        student: Network,
        teachers: Mapping[str, Network],
        modalities: Mapping[str, str | None],
        sees: str,
    ) -> None:
        super().__init__(student.backbone, student.heads)
        self.teachers = nn.ModuleDict({branch_key(name): network for name, network in teachers.items()})
        self.modalities = dict(modalities)
        self.sees = sees

    def teacher(self, name: str) -> Network:
        """The network of a teacher."""
        network = self.teachers[branch_key(name)]
        assert isinstance(network, Network)
        return network

    def forward(self, x: Tensor | Sights) -> Output:
        """Embed and classify clips by the student; `beside` holds what the teachers say."""
        assert isinstance(x, Sights)
        output = super().forward(x.inputs[self.sees])
        said: dict[str, Word] = {}
        for name in self.modalities:
            said |= self.words(name, x, output.logits, {name: (None, None)})
        return output._replace(beside=said)

    def words(
        self,
        name: str,
        x: Sights,
        like: Logits,
        through: Mapping[str, tuple[Layer | None, nn.Module | None]],
    ) -> dict[str, Word]:
        """What a teacher, which looks once, says of the clips that it sees, by itself or through several masks.

        Args:
            like: logits of all clips, whose shapes count.
            through: key → the layer and the mask there; None and None: as it is.

        Returns:
            key → its word.
        """
        network, modality = self.teacher(name), self.modalities[name]
        if modality is None:
            present = torch.stack([x.present[own] for own in self.fused_widths(name)]).any(dim=0)
            looked = look(network, x)
            return {key: Word(masked(network, looked, *at).logits, present) for key, at in through.items()}
        present = x.present[modality]
        rows = present.nonzero()[:, 0]
        if not self.runs(network, rows):
            nothing = {head: torch.zeros_like(logits) for head, logits in like.items()}
            return {key: Word(nothing, present) for key in through}
        looked = look(network, x.inputs[modality][rows])
        said = {key: masked(network, looked, *at).logits for key, at in through.items()}
        return {
            key: Word({head: spread(values, rows, len(present)) for head, values in logits.items()}, present)
            for key, logits in said.items()
        }

    def fused_widths(self, name: str) -> dict[str, int]:
        """Modality → width of the branches of a fused teacher."""
        backbone = self.teacher(name).backbone
        assert isinstance(backbone, FusedNetwork)
        return backbone.widths


class Specialists(Together):
    """A frozen student and frozen teachers, and the masks that make specialists of them.

    Each mask is a module of its own. Beside those in training stand the best so far (`kept`), which a checkpoint holds
    like any other weights.
    """

    def __init__(self, together: Together, width: int, attention_heads: int) -> None:
        student = Network(together.backbone, together.heads)
        teachers = {name: together.teacher(name) for name in together.modalities}
        super().__init__(student, teachers, together.modalities, together.sees)
        self.requires_grad_(False)
        self.names = {f"{name}-{layer}": (name, layer) for name in self.modalities for layer in LAYERS}
        fresh, kept = (
            nn.ModuleDict(
                {
                    branch_key(specialist): new_mask(self.teacher(name), layer, width, attention_heads)
                    for specialist, (name, layer) in self.names.items()
                }
            )
            for _ in range(2)
        )
        kept.load_state_dict(fresh.state_dict())
        self.masks, self.kept = fresh, kept.requires_grad_(False)
        self.register_buffer("least", torch.full((len(self.names),), math.inf))

    least: Tensor

    def train(self, mode: bool = True) -> "Specialists":
        """Switch the masks between training and evaluation; what is frozen stays in evaluation."""
        super().train(False)
        self.masks.train(mode)
        return self

    def forward(self, x: Tensor | Sights) -> Output:
        """Classify clips by the student; `beside` holds what the specialists say, each through its mask in training."""
        assert isinstance(x, Sights)
        with torch.no_grad():
            output = Network.forward(self, x.inputs[self.sees])
        said: dict[str, Word] = {}
        for name in self.modalities:
            own = {
                key: (layer, self.masks[branch_key(key)])
                for key, (of, layer) in self.names.items()
                if of == name
            }
            said |= self.words(name, x, output.logits, own)
        return output._replace(beside=said)

    def keep(self, losses: Mapping[str, float]) -> None:
        """Keep the masks as they are of those specialists whose validation loss has never been as low."""
        for number, specialist in enumerate(self.names):
            if losses[specialist] < self.least[number]:
                self.least[number] = losses[specialist]
                key = branch_key(specialist)
                self.kept[key].load_state_dict(self.masks[key].state_dict())

    def settle(self) -> "Specialists":
        """Itself, with the best masks in place of those in training."""
        self.masks.load_state_dict(self.kept.state_dict())
        return self

    def specialist(self, specialist: str) -> "Specialist":
        """One teacher with its best mask, as a network of its own."""
        name, layer = self.names[specialist]
        return Specialist(self.teacher(name), layer, self.kept[branch_key(specialist)])


class Specialist(Network):
    """A teacher seen through a mask."""

    def __init__(self, teacher: Network, layer: Layer, mask: nn.Module) -> None:
        super().__init__(teacher.backbone, teacher.heads)
        self.layer: Layer = layer
        self.mask = mask

    def forward(self, x: Tensor | Sights) -> Output:
        """Embed and classify clips through the mask."""
        return masked(self, look(self, x), self.layer, self.mask)


def look(network: Network, x: Tensor | Sights) -> Seen:
    """What the backbone of a network makes of clips, which `masked` concludes from, through one mask or another."""
    backbone = network.backbone
    if isinstance(backbone, FusedNetwork):
        assert isinstance(x, Sights)
        return backbone.look(x)
    seen: tuple[Tensor, Tensor] = backbone(x)
    return seen


def masked(network: Network, seen: Seen, layer: Layer | None, mask: nn.Module | None) -> Output:
    """Return what a network makes of clips that it looked at, with `mask` at one of its layers; None: as it is."""
    backbone = network.backbone
    if isinstance(backbone, FusedNetwork):
        assert isinstance(seen, Looked)
        change: MomentsChange | None = None
        if layer == "moments":
            masks = mask
            assert isinstance(masks, nn.ModuleDict)

            def change(modality: str, moments: Tensor) -> Tensor:
                return masks[branch_key(modality)](moments)

        features, moments = backbone.conclude(seen, change)
        if layer == "features":
            assert mask is not None
            flags = len(backbone.widths)
            features = torch.cat([mask(features[:, :-flags]), features[:, -flags:]], dim=1)
        return Output(features, moments, network.heads(features))
    assert not isinstance(seen, Looked)
    features, moments = seen
    if layer == "moments":
        assert mask is not None
        moments = mask(moments)
        features = backbone.gather(moments)  # type: ignore[operator]
    elif layer == "features":
        assert mask is not None
        features = mask(features)
    return Output(features, moments, network.heads(features))


def new_mask(network: Network, layer: Layer, width: int, attention_heads: int) -> nn.Module:
    """Build the mask for one layer of a network; on the moments of a fused one, a mask for each branch.

    Args:
        width: channels of the mask's tokens, which `attention_heads` divides.
    """
    backbone = network.backbone
    if isinstance(backbone, FusedNetwork):
        if layer == "moments":
            return nn.ModuleDict(
                {
                    branch_key(modality): MomentMask(own, width, attention_heads)
                    for modality, own in backbone.widths.items()
                }
            )
        return ChannelMask(sum(backbone.widths.values()), width, attention_heads)
    own = int(backbone.width)  # type: ignore[arg-type]
    kind = MomentMask if layer == "moments" else ChannelMask
    return kind(own, width, attention_heads)


class MomentMask(nn.Module):
    """z* = σ(Linear(SelfAttention(embed(z)))) ⊙ z over (batch, moments, channels), moments being the tokens."""

    def __init__(self, channels: int, width: int, attention_heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.attention = nn.MultiheadAttention(width, attention_heads, batch_first=True)
        self.gate = nn.Linear(width, channels)
        nn.init.constant_(self.gate.bias, _OPEN)

    def forward(self, z: Tensor) -> Tensor:
        """Mask (batch, moments, channels)."""
        tokens = self.embed(z)
        read, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.gate(read).sigmoid() * z


class ChannelMask(nn.Module):
    """The same over (batch, channels), channels being the tokens: channel c is embedded as z_c u_c + v_c."""

    def __init__(self, channels: int, width: int, attention_heads: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(channels, width) / width**0.5)
        self.place = nn.Parameter(torch.randn(channels, width) / width**0.5)
        self.attention = nn.MultiheadAttention(width, attention_heads, batch_first=True)
        self.gate = nn.Linear(width, 1)
        nn.init.constant_(self.gate.bias, _OPEN)

    def forward(self, z: Tensor) -> Tensor:
        """Mask (batch, channels)."""
        tokens = z[..., None] * self.scale + self.place
        read, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.gate(read)[..., 0].sigmoid() * z


def mean_divergence(teacher: Logits, student: Logits, temperature: float) -> Tensor:
    """Return mean_a τ² KL(softmax(z_teacher^a / τ) ‖ softmax(z_student^a / τ)) of every clip, (batch,)."""
    refuse_other_heads(student, teacher, "the other")
    found = [
        divergence(
            "forward_kl",
            (widen(teacher[head]) / temperature).log_softmax(dim=-1),
            (widen(values) / temperature).log_softmax(dim=-1),
        )
        for head, values in student.items()
    ]
    return temperature**2 * torch.stack(found).mean(dim=0)


def _mean_of_present(values: Tensor, present: Tensor) -> Tensor:
    """Mean over the batch; clips that are not there count as zero, so that a clip weighs the same in every batch."""
    return torch.where(present, values, 0).mean()


def _cross_entropy(logits: Logits, labels: Labels) -> Tensor:
    """Mean over heads of the cross-entropy of every clip, (batch,)."""
    refuse_other_heads(logits, labels, "labels")
    losses = [
        functional.cross_entropy(widen(values), labels[head], reduction="none")
        for head, values in logits.items()
    ]
    return torch.stack(losses).mean(dim=0)


class Joint(Method):
    """Stage 1: L = Σ_m CE(z_m, y) + Σ_{m ≠ n} τ² KL(z_m ‖ z_n), over student and teachers; nobody is detached.

    Between two of them only clips count that both see.
    """

    kind: Literal["mst_joint"]
    temperature: PositiveFloat

    def loss(
        self, student: Output, lesson: Lesson | None, labels: Labels, companion: nn.Module, progress: float
    ) -> Losses:
        """Return the loss of a batch; the teachers speak in `student.beside`.

        Raises:
            ValueError: heads or shapes disagree.
        """
        everywhere = torch.ones(len(student.features), dtype=torch.bool, device=student.features.device)
        members = [Word(student.logits, everywhere), *(student.beside or {}).values()]
        truth = torch.stack(
            [_mean_of_present(_cross_entropy(logits, labels), present) for logits, present in members]
        ).sum()
        pairs = [
            _mean_of_present(
                mean_divergence(one.logits, other.logits, self.temperature), one.present & other.present
            )
            for one in members
            for other in members
            if one is not other
        ]
        mutual = torch.stack(pairs).sum()
        return Losses(truth + mutual, {"ground_truth": truth.detach(), "mutual": mutual.detach()})


class Masks(Method):
    """Stage 2: L = Σ_k τ² KL(student ‖ specialist k), each term training its own mask alone; the student is frozen."""

    kind: Literal["mst_masks"]
    temperature: PositiveFloat

    def loss(
        self, student: Output, lesson: Lesson | None, labels: Labels, companion: nn.Module, progress: float
    ) -> Losses:
        """Return the loss of a batch; the specialists speak in `student.beside`."""
        losses = {name: value.mean() for name, value in self.losses(student).items()}
        total = torch.stack(list(losses.values())).sum()
        return Losses(total, {name: value.detach() for name, value in losses.items()})

    def losses(self, student: Output) -> dict[str, Tensor]:
        """Specialist → how far it is from the student on every clip, (batch,), zero where it does not see the clip."""
        target = {head: values.detach() for head, values in student.logits.items()}
        return {
            name: torch.where(word.present, mean_divergence(target, word.logits, self.temperature), 0)
            for name, word in (student.beside or {}).items()
        }


class MST(Method):
    """Stage 3: learn the labels and the specialists that a gate picks.

    L = mean_a ω_a CE(z_S^a, y^a) + μ1 mean_i Σ_{k in top-K of C_i} Ĉ_ik τ² KL(z_k ‖ z_S)
        + μ2 KL(mean_i E_i ‖ mean_i C_i) / n + μ3 mean_i KL(softmax_k(−CE(z_k, y_i) / γ) ‖ C_i)

    with C_i = softmax(gate(z_S,i)) over the n specialists that see clip i, E_i even over them, and Ĉ_i as C_i among the
    K picked, adding up to 1. No gradient passes from the gate to the student, nor from the second term to the gate.

    Attributes:
        temperature: τ.
        top_k: K.
        distillation_weight: μ1.
        balance_weight: μ2.
        gate_weight: μ3.
        gate_temperature: γ; small: the gate is to pick the best specialist of a clip; large: any.
        gate_width: channels of the gate's hidden layer.
        head_weights: ω of each head, on the labels' loss only; None weighs all heads 1.
    """

    hears = "specialists"

    kind: Literal["mst"]
    temperature: PositiveFloat
    top_k: PositiveInt
    distillation_weight: NonNegativeFloat
    balance_weight: NonNegativeFloat
    gate_weight: NonNegativeFloat
    gate_temperature: PositiveFloat
    gate_width: PositiveInt
    head_weights: dict[str, NonNegativeFloat] | None

    def routed(self, specialists: Sequence[str], classes: Mapping[str, int]) -> "Routed":
        """The method for these specialists and so many classes of each head.

        Raises:
            ValueError: fewer specialists than `top_k`.
        """
        if len(specialists) < self.top_k:
            raise ValueError(f"top_k is {self.top_k}, but there are {len(specialists)} specialists")
        return Routed(**self.model_dump(), specialists=tuple(specialists), classes=dict(classes))

    def companion(self, width: int, hints: Mapping[str, HintShape]) -> nn.Module:
        """Refuse: the gate's size follows from the specialists.

        Raises:
            ValueError: always; see `routed`.
        """
        raise ValueError("method mst learns from specialists: learns_from: artifacts/specialists/<name>")

    def loss(
        self, student: Output, lesson: Lesson | None, labels: Labels, companion: nn.Module, progress: float
    ) -> Losses:
        """Return the loss of a batch; `companion` is the gate.

        Raises:
            ValueError: no specialists in the lesson, heads or shapes disagree.
        """
        if lesson is None or not lesson.teachers:
            raise ValueError("a lesson of specialists is needed: name those whose teachings are to be used")
        truth = ground_truth(student.logits, labels, self.head_weights)
        words = list(lesson.teachers.values())
        present = torch.stack([word.present for word in words], dim=1)
        said = [
            {head: _filled(values, word.present) for head, values in word.logits.items()} for word in words
        ]
        log_gate = gate_log_probs(companion, student.logits, present)
        gate = log_gate.exp()
        picked = top_k(gate.detach(), self.top_k, present)
        shares = picked * gate.detach()
        shares = shares / shares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
        apart = torch.stack(
            [mean_divergence(logits, student.logits, self.temperature) for logits in said], dim=1
        )
        errors = torch.stack([_cross_entropy(logits, labels) for logits in said], dim=1)
        heard = present.any(dim=1)
        parts = {
            "ground_truth": truth,
            "distillation": self.distillation_weight * (shares * apart).sum(dim=1).mean(),
            "balance": self.balance_weight * balance(gate[heard], present[heard]),
            "gate": self.gate_weight * taught_gate(log_gate, errors, present, self.gate_temperature),
        }
        figures = {}
        for number, name in enumerate(lesson.teachers):
            figures[f"gate/{name}"] = gate.detach()[:, number].mean()
            figures[f"route/{name}"] = picked[:, number].mean() / self.top_k
        total = torch.stack(list(parts.values())).sum()
        return Losses(total, {name: part.detach() for name, part in parts.items()}, figures)


class Routed(MST):
    """`MST` for specialists that are known by name.

    Attributes:
        specialists: in the order of the lesson.
        classes: head → number of its classes.
    """

    specialists: tuple[str, ...]
    classes: dict[str, int]

    def companion(self, width: int, hints: Mapping[str, HintShape]) -> nn.Module:
        """Return the gate: from the student's logits of all heads to a logit for each specialist."""
        return nn.Sequential(
            nn.Linear(sum(self.classes.values()), self.gate_width),
            nn.GELU(),
            nn.Linear(self.gate_width, len(self.specialists)),
        )


def _filled(values: Tensor, present: Tensor) -> Tensor:
    """Rows that are not there may hold anything, even NaN, which would survive a multiplication by zero."""
    return torch.where(present[:, None], widen(values.detach()), 0)


def gate_log_probs(gate: nn.Module, student: Logits, present: Tensor) -> Tensor:
    """Return log C (batch, specialists) by the student's logits, which get no gradient; −1e4 where one is absent."""
    seen = torch.cat([values.detach() for values in student.values()], dim=1)
    scores = widen(gate(seen.to(next(gate.parameters()).dtype)))
    return scores.masked_fill(~present, -1e4).log_softmax(dim=-1)


def top_k(gate: Tensor, k: int, present: Tensor) -> Tensor:
    """Return 1 for the k likeliest specialists of a clip, among those present, and 0 for others."""
    picked = torch.zeros_like(gate).scatter(1, gate.topk(k, dim=1).indices, 1.0)
    return picked * present


def balance(gate: Tensor, present: Tensor) -> Tensor:
    """Return KL(even ‖ mean over the batch of C) / n for gates (batch, n); 0 of no clip.

    Even is each clip spread over the specialists that see it; the uniform distribution, as released, where all see all.
    Held to the uniform one, a specialist that sees half of the clips would be given those twice over.

    Args:
        gate: C, 0 where a specialist does not see the clip.
        present: bool (batch, n), at least one a clip.
    """
    if not len(gate):
        return gate.sum()
    tiny = torch.finfo(gate.dtype).tiny
    even = (present / present.sum(dim=1, keepdim=True)).mean(dim=0)
    mean = gate.mean(dim=0).clamp(min=tiny)
    # Not of the quotient, whose gradient is infinite where a gate is all but shut.
    return (even * (even.clamp(min=tiny).log() - mean.log())).sum() / gate.shape[1]


def taught_gate(log_gate: Tensor, errors: Tensor, present: Tensor, temperature: float) -> Tensor:
    """Return mean_i KL(softmax_k(−errors / temperature) ‖ C_i), clips without any specialist counting as zero.

    Args:
        log_gate: log C, (batch, specialists).
        errors: cross-entropy of each specialist on each clip, from predictions on clips it was not trained on.
        present: bool (batch, specialists).
        temperature: γ.
    """
    nothing = torch.finfo(errors.dtype).min  # not −∞, of which alone there is no softmax
    target = (-errors / temperature).masked_fill(~present, nothing).log_softmax(dim=1)
    apart = torch.where(present, target.exp() * (target - log_gate), 0).sum(dim=1)
    return torch.where(present.any(dim=1), apart, 0).mean()
