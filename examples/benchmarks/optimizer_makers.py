"""The optimizers of ``optimizers.py``, each with the LRs that its cosine is first tuned on.

All are as they come, without weight decay. They are torch's where torch has them and pytorch_optimizer's otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_optimizer import AdamP, Lamb, Lion, Muon
from torch import Tensor, nn
from torch.optim import Optimizer
from tuning import half_decades


@dataclass(frozen=True)
class Kind:
    """A kind of optimizer.

    Args:
        make: of a model and an LR.
        grid: the LRs that the cosine is first tuned on.
    """

    make: Callable[[nn.Module, float], Optimizer]
    grid: tuple[float, ...]


def of_all(kind: Callable[..., Optimizer], **options: Any) -> Callable[[nn.Module, float], Optimizer]:
    """What makes an optimizer of all parameters of a model, in one group."""
    return lambda model, lr: kind(model.parameters(), lr=lr, **options)


def hidden_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon is made for: matrices, and filters of convolutions as matrices, of the hidden layers.

    Embeddings are left out, of patches and of places too, and so is the output layer: the last linear one.
    """
    *_, output = (module for module in model.modules() if isinstance(module, nn.Linear))
    embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    others = {id(weight) for weight in (output.weight, *embeddings)}
    return [
        weight
        for name, weight in model.named_parameters()
        if weight.ndim >= 2 and "embed" not in name and id(weight) not in others
    ]


class Float32Muon(Muon):
    """pytorch_optimizer's Muon with the iteration in single precision: most CPUs only emulate its bfloat16, slowly."""

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        return [orthogonalized(update.flatten(1), group["ns_steps"]) for update in updates]


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """(m, n) -> (m, n): the same singular vectors, singular values near 1, by Muon's Newton-Schulz iteration."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    result: Tensor = x.T if is_tall else x
    return result


def muon_with_adamw(model: nn.Module, lr: float) -> Optimizer:
    """Muon for the hidden weights and AdamW for the rest, with one LR.

    ``use_adjusted_lr`` makes an update of Muon as large as one of AdamW (arXiv 2502.16982).
    """
    hidden = hidden_weights(model)
    known = {id(weight) for weight in hidden}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [{"params": hidden, "use_muon": True}, {"params": rest, "use_muon": False}]
    optimizer = Float32Muon(groups, lr=lr, adamw_lr=lr, use_adjusted_lr=True)
    optimizer.defaults["lr"] = lr  # AutoWU keeps the ratios of the groups' LRs to it; this Muon has none of its own
    return optimizer


KINDS: dict[str, Kind] = {
    "SGD": Kind(of_all(torch.optim.SGD, momentum=0.9), half_decades(1e-3, 3.16228)),
    "RMSprop": Kind(of_all(torch.optim.RMSprop), half_decades(1e-5, 3.16228e-2)),
    "Adagrad": Kind(of_all(torch.optim.Adagrad), half_decades(1e-4, 3.16228e-1)),
    "Adafactor": Kind(of_all(torch.optim.Adafactor), half_decades(1e-3, 1.0)),
    "Lion": Kind(of_all(Lion), half_decades(1e-5, 3.16228e-2)),
    "LAMB": Kind(of_all(Lamb), half_decades(1e-4, 3.16228e-1)),
    "RAdam": Kind(of_all(torch.optim.RAdam), half_decades(3.16228e-4, 3.16228e-1)),
    "AdamP": Kind(of_all(AdamP), half_decades(3.16228e-5, 1e-1)),
    "Muon": Kind(muon_with_adamw, half_decades(3.16228e-5, 1e-1)),
}
"""Name -> the kind; Muon has AdamW for what is no hidden weight."""
