"""Linear classifiers over a backbone's features, one for each label head."""

from collections.abc import Callable, Mapping

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
        self.classes = dict(classes)
        if not classes or min(classes.values()) < 1:
            raise ValueError(f"every network needs heads with at least one class each, not {dict(classes)}")
        self.names = tuple(classes)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.ModuleDict({_key(name): nn.Linear(width, count) for name, count in classes.items()})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return the logits (batch, classes) of each head for features (batch, width)."""
        features = self.dropout(features)
        return {name: self.linear[_key(name)](features) for name in self.names}

    def reading(self, columns: Callable[[Tensor], Tensor], constant: Callable[[Tensor], Tensor]) -> "Heads":
        """Return the heads that read a part of the features, where one of the others is always 1 and the rest 0.

        Args:
            columns: from a weight (classes, width) to that of the part, (classes, part).
            constant: to that of the feature which is always 1, (classes,).
        """
        linears = {name: self.linear[_key(name)] for name in self.names}
        weights = {name: linear.get_parameter("weight").detach() for name, linear in linears.items()}
        own = Heads(columns(weights[self.names[0]]).shape[1], self.classes, self.dropout.p)
        for name, weight in weights.items():
            bias = linears[name].get_parameter("bias").detach() + constant(weight)
            own.linear[_key(name)].load_state_dict({"weight": columns(weight), "bias": bias})
        return own.to(weights[self.names[0]].device)


def _key(name: str) -> str:
    # ModuleDict refuses names that are its own attributes ("type", "keys"), which are fair names for a head.
    return f"{name}_head"
