"""The weights that an optimizer steps, and in how many calls of it: under DeepSpeed's ZeRO, a process has pieces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .groups import innermost
from .zero import Zero, zero_of


class Stepped:
    """What a step of an optimizer changes, as its groups are at present.

    Args:
        optimizer: with accelerate's wraps or without.
        ratios: of every parameter group, its LR per unit of the common LR; a list is held, and may change with the
            groups.

    Attributes:
        optimizer: the innermost one, whose calls are heard.
        outermost: the one given, of whose groups a schedule sets the LRs.
        ratios: as above.
    """

    def __init__(self, optimizer: Any, ratios: Iterable[float]) -> None:
        self.outermost, self.ratios = optimizer, ratios if isinstance(ratios, list) else [*ratios]
        self.optimizer: Optimizer = innermost(optimizer)

    @property
    def zero(self) -> Zero | None:
        """What this process has under ZeRO; None without."""
        return zero_of(self.outermost)

    def parameters(self) -> list[Tensor]:
        """All parameters; under ZeRO, this process's piece of each."""
        zero = self.zero
        return [p for group in self.optimizer.param_groups for p in group["params"]] if zero is None else zero.pieces

    def with_gradients(self) -> list[Tensor]:
        """Those that the call under way steps; under ZeRO they get their gradients here."""
        zero = self.zero
        return self.parameters() if zero is None else zero.show_gradients(self.optimizer)

    def hide_gradients(self) -> None:
        """Lets go of the gradients that were given out so."""
        zero = self.zero
        if zero is not None:
            zero.hide_gradients()

    def in_order(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Of copies in the order of ``param_groups.parameters_of``, or none, those of ``parameters``."""
        zero = self.zero
        return weights if zero is None or not weights else zero.cut(weights)

    def lr(self) -> float:
        """The common LR, that of a group of ratio 1."""
        pairs = zip(self._groups(), self.ratios, strict=False)
        return next((float(group["lr"]) / ratio for group, ratio in pairs if ratio > 0.0), 0.0)

    def rates(self) -> dict[int, tuple[float, float]]:
        """LR and weight decay by the id of each parameter."""
        zero, groups = self.zero, self._groups()
        members = [group["params"] for group in groups] if zero is None else zero.groups
        rates = [(float(group["lr"]), decay_of(group)) for group in groups]
        return {id(p): own for own, parameters in zip(rates, members, strict=True) for p in parameters}

    def begins(self) -> bool:
        """Whether the call under way is the first of those that make up a step."""
        zero = self.zero
        return zero is None or zero.begins(self.optimizer)

    def ends(self) -> bool:
        """Whether it is the last of them."""
        zero = self.zero
        return zero is None or zero.ends(self.optimizer)

    def _groups(self) -> list[dict[str, Any]]:
        zero = self.zero
        groups: list[dict[str, Any]] = self.outermost.param_groups if zero is None else zero.param_groups
        return groups


def decay_of(group: Mapping[str, Any]) -> float:
    """The weight decay of a parameter group; 0 where it has none, or one that is no number."""
    decay = group.get("weight_decay")
    return float(decay) if isinstance(decay, (int, float)) else 0.0
