"""Trained networks on disk: safetensors and the spec that says how to use them. Nothing here is pickled."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from models.backbones import Backbone
from models.calibration import apply
from models.fusion import FusedNetwork, LateFusion, Sights
from models.network import Logits, Network, Output, build
from models.weights import Published
from tasks.atomic import write_text
from tasks.errors import UserError
from tasks.modalities import AnyModality
from tasks.section import Section
from tasks.senses import Senses
from tasks.stores import weights
from tasks.views import Views


class Spec(Section):
    """All that is needed to use a trained network, stored beside its weights as spec.json."""

    modality: str
    modality_params: Annotated[AnyModality | Senses, Field(discriminator="kind")]
    views: Views
    heads: dict[str, list[str]]
    backbone: Annotated[Backbone | LateFusion, Field(discriminator="kind")]

    @property
    def code(self) -> list[ModuleType]:
        """The modules of its modalities and backbones, whose change would change a training."""
        own = [self.backbone, self.modality_params, *self._backbones().values()]
        if isinstance(self.modality_params, Senses):
            own += self.modality_params.of.values()
        return [sys.modules[name] for name in dict.fromkeys(type(part).__module__ for part in own)]

    @property
    def pretrained(self) -> list[str]:
        """The files of weights that its backbones begin with."""
        found = [getattr(backbone, "pretrained", False) for backbone in self._backbones().values()]
        return [file for file in found if isinstance(file, str)]

    def _backbones(self) -> dict[str, Any]:
        """Modality → backbone; of a network of one modality, that one."""
        if isinstance(self.backbone, LateFusion):
            return dict(self.backbone.branches)
        return {self.modality: self.backbone}

    def new_network(self) -> Network:
        """A network with fresh weights drawn from torch's generator, or the backbone's pretrained ones.

        Raises:
            UserError: the pretrained weights cannot be had, or are made for another network.
        """
        network = self.empty_network()
        for name, backbone in self._backbones().items():
            source: bool | str = getattr(backbone, "pretrained", False)
            if not source:
                continue
            whole = network.backbone
            module = whole.branch(name) if isinstance(whole, FusedNetwork) else whole
            try:
                published: Published | None = backbone.published
                state = weights.fetch(published) if published else weights.read(Path(str(source)))
                module.load_pretrained(state)  # type: ignore[operator]
            except ValueError as error:
                raise UserError(f"pretrained: {source}: {error}") from None
        return network

    def empty_network(self) -> Network:
        """A network whose weights are still to be loaded or drawn.

        Raises:
            UserError: the backbone cannot be built, or not for this modality.
        """
        counts = {head: len(classes) for head, classes in self.heads.items()}
        try:
            return build(self.backbone, self.modality_params.channels, counts)
        except ValueError as error:
            raise UserError(f"backbone {self.backbone.kind} for {self.modality}: {error}") from None

    def example(self) -> Tensor | Sights:
        """An input of one clip, zeros, in the shape that the modality renders, or several do."""
        if isinstance(self.modality_params, Senses):
            return self.modality_params.example(self.views.frames, self.views.size)
        return torch.zeros(1, *self.modality_params.shape(self.views.frames, self.views.size))


class Committee:
    """One or more networks of one spec whose logits are averaged. A student has one member.

    Args:
        spec: shared by all members.
        members: the networks, on one device.
        temperature: per head, fitted on validation; it ships with the networks.
    """

    def __init__(self, spec: Spec, members: list[Network], temperature: Mapping[str, float]):
        self.spec = spec
        self.members = [member.eval() for member in members]
        self.temperature = dict(temperature)

    def logits(self, inputs: Tensor | Sights) -> Logits:
        """The members' mean logits of a batch (batch, frames, …), not calibrated."""
        return self.output(inputs).logits

    @torch.inference_mode()
    def output(self, inputs: Tensor | Sights) -> Output:
        """The members' mean logits of a batch (batch, frames, …), not calibrated, and those of whoever speaks beside.

        Features are the first member's.
        """
        outputs = [member(inputs) for member in self.members]

        def mean(said: Sequence[Logits]) -> Logits:
            return {head: torch.stack([logits[head] for logits in said]).mean(0) for head in self.spec.heads}

        beside = {
            name: word._replace(logits=mean([output.beside[name].logits for output in outputs]))
            for name, word in (outputs[0].beside or {}).items()
        }
        return outputs[0]._replace(logits=mean([output.logits for output in outputs]), beside=beside or None)

    def alone(self, member: int) -> "Committee":
        """One of its networks, as a committee of its own."""
        return Committee(self.spec, [self.members[member]], self.temperature)

    def calibrated(self, logits: Logits) -> Logits:
        """Logits divided by the shipped temperature of their head; average views before."""
        return {head: apply(values, self.temperature[head]) for head, values in logits.items()}

    def to(self, device: str | torch.device) -> "Committee":
        """Itself, its members moved to `device`."""
        for member in self.members:
            member.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write spec.json and weights-<k>.safetensors into `folder`, which exists."""
        spec = self.spec.model_dump(mode="json")
        for backbone in (spec["backbone"], *spec["backbone"].get("branches", {}).values()):
            if "pretrained" in backbone:
                backbone["pretrained"] = False  # the weights are in the file; nothing to fetch or find
        for number, member in enumerate(self.members):
            state = {name: value.detach().cpu().contiguous() for name, value in member.state_dict().items()}
            (folder / f"weights-{number}.safetensors").write_bytes(save(state))
        content = {"spec": spec, "members": len(self.members), "temperature": self.temperature}
        write_text(folder / "spec.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Committee":
        """Read what `save` wrote.

        Raises:
            UserError: the folder does not hold a whole committee.
        """
        try:
            content = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
            spec = Spec.model_validate(content["spec"])
            members = []
            for number in range(content["members"]):
                network = spec.empty_network()
                network.load_state_dict(load_file(folder / f"weights-{number}.safetensors"))
                members.append(network)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"no usable network: {error}", file=folder, remedy="run `dvc repro` or `dvc pull`"
            ) from None
        return cls(spec, members, content["temperature"])
