"""Published weights: what a backbone says of them, and how it takes their tensors over.

Nothing is fetched here; whoever may use the network calls `Published.fetch`.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator
from torch import Tensor, nn


def _refuse_true(value: Any) -> Any:
    if value is True:
        raise ValueError("say which: KINETICS400_V1, or the path of a file of weights")
    return value


Pretrained = Annotated[Literal[False] | str, BeforeValidator(_refuse_true)]
"""Weights that a network of torchvision begins with: False for random ones, the name of published ones, or the path
of a file of weights, which the caller reads for `load_pretrained`."""


class Published(NamedTuple):
    """Weights that others publish.

    Attributes:
        name: which they are, for people.
        address: the file they come from.
        fetch: loads them, from the network unless its library has them in its cache, without unpickling; tensors
            by name, as `load_pretrained` of the family's module takes them.
    """

    name: str
    address: str
    fetch: Callable[[], Mapping[str, Tensor]]


def published_by_torchvision(network: str, pretrained: bool | str) -> Published | None:
    """Return the weights called `pretrained` that torchvision publishes for `network`; None if there are none."""
    from torchvision.models import get_model_weights, list_models  # takes seconds

    named = (
        {weights.name: weights for weights in get_model_weights(network)} if network in list_models() else {}
    )
    weights = named.get(pretrained)
    if weights is None:
        return None
    return Published(
        f"torchvision's {pretrained} of {network}",
        weights.url,
        lambda: weights.get_state_dict(check_hash=True, weights_only=True),
    )


def take_over(network: nn.Module, state: Mapping[str, Tensor], classifier: str, name: str) -> None:
    """Load published weights but those of the classifier, which `network` has none of.

    Args:
        network: without classifier.
        state: tensors by name.
        classifier: the layer's name in the published network.
        name: the network's, for the message.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape: the weights are for another network.
    """
    weights = {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}
    refuse_mismatch(network.state_dict(), weights, name)
    network.load_state_dict(weights)


def refuse_mismatch(own: Mapping[str, Tensor], given: Mapping[str, Tensor], network: str) -> None:
    """Refuse tensors that are not those of a network.

    Args:
        own: the network's tensors by name.
        given: those that are to take their place.
        network: its name, for the message.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    wrong = [f"{name} is missing" for name in own.keys() - given.keys()]
    wrong += [f"{name} is unknown" for name in given.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & given.keys()
        if given[name].shape != own[name].shape
    ]
    if wrong:
        shown = "; ".join(sorted(wrong)[:3])
        raise ValueError(f"these weights are not for {network}: {len(wrong)} tensors differ ({shown})")
