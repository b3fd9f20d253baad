"""Backbone family `frames`: an image network of timm over every frame, then a temporal head.

One family for all modalities that come as pictures: rgb (3 channels), flow (2), audio (1, log-mel windows).
Source: Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from models import pictures, temporal
from models.pictures import Normalise
from models.temporal import Temporal
from models.weights import Published, refuse_mismatch

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Frames(BaseModel):
    """An image network on every frame, its features put together over time.

    Attributes:
        name: a timm model, as "mobilenetv4_conv_small_035".
        pretrained: False for weights drawn at random, True for those of timm's hub, or the path of a file of
            weights; the caller gets the tensors and gives them to `FrameNetwork.load_pretrained`.
        temporal: how frames become a clip: "mean" of the frames' features, blind to their order; "stack", the
            mean with each frame seen together with its two neighbours; "difference", the mean with each frame
            seen beside its change to the next; "conv", a convolution over the frames' features.
        normalise: what is done to the input, see `models.pictures.Normalise`.
        dropout: probability of dropping a feature before the heads.
        drop_path: stochastic depth of the image network; 0 for networks that have none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["frames"]
    name: str
    pretrained: bool | str
    temporal: Temporal
    normalise: Normalise
    dropout: Fraction
    drop_path: Fraction

    def build(self, channels: int) -> "FrameNetwork":
        """Build the module for frames of `channels` channels.

        Raises:
            ValueError: timm has no such model, or it has no stochastic depth.
        """
        seen = temporal.channels_seen(self.temporal, channels)
        pictures.refuse_channels(self.normalise, channels)
        return FrameNetwork(self._image_network(seen), self.temporal, self.normalise)

    @property
    def published(self) -> Published | None:
        """The weights of timm's hub, where `pretrained` asks for them.

        Raises:
            ValueError: timm has no such model, or no weights for it.
        """
        if self.pretrained is not True:
            return None
        import timm

        config = timm.models.get_pretrained_cfg(self.name)
        if config is None or not config.has_weights:
            raise ValueError(f"timm has no weights for {self.name!r}")
        return Published(
            f"timm's weights of {self.name}",
            f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors"
            if config.hf_hub_id
            else str(config.url),
            lambda: timm.create_model(self.name, pretrained=True, num_classes=0).state_dict(),
        )

    def _image_network(self, channels: int) -> nn.Module:
        import timm  # takes seconds, and whoever reads params.yaml imports this module

        if not timm.is_model(self.name):
            close = ", ".join(get_close_matches(self.name, timm.list_models()))
            raise ValueError(f"timm has no model {self.name!r}" + (f"; near it: {close}" if close else ""))
        depth: dict[str, Any] = {"drop_path_rate": self.drop_path} if self.drop_path else {}
        try:
            return timm.create_model(self.name, num_classes=0, in_chans=channels, **depth)
        except TypeError as error:
            raise ValueError(f"timm model {self.name!r} cannot be built with {depth}: {error}") from error


class FrameNetwork(nn.Module):
    """The module of `Frames`.

    Args:
        image: a timm model without classifier, for as many channels as the kind shows it at once.
        kind: the temporal head.
        normalisation: see `Frames`.

    Attributes:
        width: channels of the clip features.
    """

    def __init__(self, image: nn.Module, kind: Temporal, normalisation: Normalise) -> None:
        super().__init__()
        self.width: int = image.head_hidden_size  # type: ignore[assignment]
        # Pixel by pixel in memory: forward and backward of a small network take 0.7 times as long on a CPU.
        self.image = image.to(memory_format=torch.channels_last)
        for layer in image.modules():
            if type(layer) is nn.Conv2d and layer.groups == layer.in_channels > 1:
                layer.__class__ = _Depthwise
        self.kind: Temporal = kind
        self.temporal = temporal.build(kind, self.width)
        self.normalisation = normalisation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips (batch, frames, channels, height, width).

        Returns:
            features of the clips (batch, self.width) and of their moments (batch, frames, self.width).
        """
        batch, frames = x.shape[:2]
        config: Mapping[str, Any] = self.image.pretrained_cfg  # type: ignore[assignment]
        x = pictures.normalise(x, self.normalisation, config["mean"], config["std"])
        seen = temporal.see(self.kind, x).flatten(0, 1)
        moments = self.image(seen).unflatten(0, (batch, frames))
        return self.gather(moments), moments

    def gather(self, moments: Tensor) -> Tensor:
        """Put the features of moments (batch, frames, self.width) together to the clips' (batch, self.width)."""
        return self.temporal(moments)

    def load_pretrained(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a timm checkpoint, its first convolution fitted to the input's channels.

        Args:
            state: tensors by name, as timm publishes them for this model. The classifier is left out.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape: the file is for another model.
        """
        from timm.models import adapt_input_conv

        config: Mapping[str, Any] = self.image.pretrained_cfg  # type: ignore[assignment]
        own = self.image.state_dict()
        weights = {name: value for name, value in state.items() if not _within(name, config["classifier"])}
        for layer in _names(config["first_conv"]):
            name = f"{layer}.weight"
            if name in weights and name in own:
                weights[name] = adapt_input_conv(own[name].shape[1], weights[name])
        refuse_mismatch(own, weights, config["architecture"])
        self.image.load_state_dict(weights)


class _Depthwise(nn.Conv2d):
    """A depthwise convolution that trains quicker on a CPU where the picture is smaller than the kernel.

    The last layers of a mobile network see 2 x 2 or 4 x 4 of small frames. There oneDNN computes the gradient of 3 x 3
    and 5 x 5 weights by a slow path, half the step of EfficientNet-Lite0, unless the zeros around the picture are part
    of it (`python -m benchmarks.depthwise`). The values are the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        height, width = self.kernel_size
        small = input.shape[-2] < height or input.shape[-1] < width
        if not (self.training and small and input.device.type == "cpu" and isinstance(self.padding, tuple)):
            return super().forward(input)
        down, right = self.padding
        padded = functional.pad(input, [right, right, down, down])
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _names(field: str | Iterable[str] | None) -> tuple[str, ...]:
    if field is None:
        return ()
    return (field,) if isinstance(field, str) else tuple(field)


def _within(name: str, layers: str | Iterable[str] | None) -> bool:
    return any(name.startswith(f"{layer}.") for layer in _names(layers))
