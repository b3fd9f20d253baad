"""Linear classifiers over a backbone's features, one for each label head."""

from collections.abc import Mapping

from torch import Tensor, nn


class Heads(nn.Module):
    """Dropout, then one linear classifier for each label head.

    Args:
        width: channels of the features.
        classes: number of classes of each head, as {"verb": 97, "noun": 300}.
        dropout: probability of dropping a feature in training, 0 to 1.

    Raises:
        ValueError: no head, or a head without classes.
    """

    def __init__(self, width: int, classes: Mapping[str, int], dropout: float) -> None:
        super().__init__()
        if not classes or min(classes.values()) < 1:
            raise ValueError(f"every network needs heads with at least one class each, not {dict(classes)}")
        self.names = tuple(classes)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.ModuleDict({_key(name): nn.Linear(width, count) for name, count in classes.items()})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return the logits (batch, classes) of each head for features (batch, width)."""
        features = self.dropout(features)
        return {name: self.linear[_key(name)](features) for name in self.names}


def _key(name: str) -> str:
    # ModuleDict refuses names that are its own attributes ("type", "keys"), which are fair names for a head.
    return f"{name}_head"
