"""Published weights: what a backbone says of them, and how it takes their tensors over.

Nothing is fetched here; whoever may use the network calls `Published.fetch`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor


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
