"""The numbers of one optimizer step, and the sums over the weights that they are made of."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
"""The types of weights in half precision."""

NUM_SUMS = 15
"""The length of ``sums_of``."""

MOST_WAITING = 16
"""The measured steps that nobody has taken in, at most: the schedule may not be stepped yet."""

_PIECE = 1 << 17
_WITHOUT_FLOAT64 = ("mps",)


@dataclass(frozen=True)
class Update:
    """One optimizer step, per unit of learning rate: u is the change of the weights divided by the LR.

    Args:
        slope: -<g, u>, by how much the loss of the step's batch would fall; g is the gradient before clipping.
        update_norm: ||u||, over the weights that are not all zero (see ``weight_norm``).
        weight_norm: ||w||, over the same; tensors that are zero throughout say nothing about the size of weights, such
            as LoRA's B or a fresh bias, and are left out of both norms.
        alignment: -<g, u> / (||g|| ||u||) over all weights, u being per unit of its group's own LR, and g with the
            group's weight decay added: 1 where the update is the gradient itself, as in SGD's first step.
        resolution: ||lr u|| / ||w|| over all weights; far below the precision of the weights, rounding decides.
        clipping: by what the norm of the gradient was divided before the step, at least 1.
        gradient_norm: ||g|| at the step.
        lr: of the step.
        fallen: -<g, w - w_0>, by how much the loss of the step's batch has fallen since the weights were w_0, for the
            steps before it; g is the gradient before clipping. 0 where there is no w_0.
        whole_norm: ||u|| over all weights.
        num_weights: that have a gradient, those that are zero included.
        layer_trust: the LR at which the update of a single tensor is as large as the tensor, in the middle of them all
            (``layers.layer_trust``); NaN where none tells.
        scale_invariant: the share of ||u||^2, or of the slope, in tensors whose rows' sizes change nothing
            (``layers.scale_invariant_share``).
        spread: how evenly its slope is spread over the tensors that it moves (``layers.spread_of``).
        divisor: that of ``clipping``, where all gradients were divided alike and nobody has told of it; else 1.
        evenness: -<g, u> / (||g|| ||u||) without the decay: of an update that is as large in every weight, as Adam's
            first one, how evenly the gradient lies over the weights. NaN in a state of an older release.
        new_norms: how many vectors are 1 throughout, as the weights of norms are at first (``layers.kinds_of_norms``).
        trained_norms: how many have one sign, as those have, and are not constant.
    """

    slope: float
    update_norm: float
    weight_norm: float
    alignment: float
    resolution: float
    clipping: float
    gradient_norm: float = math.nan
    lr: float = math.nan
    fallen: float = 0.0
    whole_norm: float = math.nan
    num_weights: float = math.nan
    layer_trust: float = math.nan
    scale_invariant: float = 0.0
    spread: float = math.nan
    divisor: float = 1.0
    evenness: float = math.nan
    new_norms: float = 0.0
    trained_norms: float = 0.0

    def is_of_weights_of(self, other: Update) -> bool:
        """Whether none were frozen, or joined, since another update; True where an old state does not tell."""
        return not abs(self.num_weights - other.num_weights) > 1e-6 * other.num_weights

    def enlarged(self, times: float) -> Update:
        """The same update, so many times as large."""
        sizes = {name: times * getattr(self, name) for name in ("slope", "update_norm", "whole_norm", "resolution")}
        return dataclasses.replace(self, **sizes, layer_trust=self.layer_trust / times)

    def of_divided_loss(self) -> Update:
        """The same update, where the gradients were not clipped, but are those of a loss that was divided as they."""
        own = {name: getattr(self, name) / self.divisor for name in ("slope", "fallen", "clipping")}
        return dataclasses.replace(self, **own, divisor=1.0)

    @classmethod
    def from_sums(cls, sums: Tensor, lr: float, clipping: float, **of_layers: float) -> Update:
        """The update of a step.

        Args:
            sums: (NUM_SUMS,), finite, the sum of ``sums_of`` over all tensors with a gradient.
            lr: the common LR of the step, positive.
            clipping: as above.
            **of_layers: ``divisor``, and what single tensors tell, see ``layers.told_by``.
        """
        down, w2, g2, d2, seen_d2, own_g2, own_down, own_d2, down_of_g, fallen, number, *_ = sums.tolist()
        return cls(
            slope=clipping * down / lr,
            update_norm=math.sqrt(seen_d2) / lr,
            weight_norm=math.sqrt(w2),
            alignment=_cosine(own_down, own_g2, own_d2),
            resolution=math.sqrt(d2 / w2) if w2 > 0.0 else math.inf if d2 > 0.0 else 0.0,
            clipping=clipping,
            gradient_norm=math.sqrt(g2),
            lr=lr,
            fallen=clipping * fallen,
            whole_norm=math.sqrt(d2) / lr,
            num_weights=number,
            evenness=_cosine(down_of_g, g2, own_d2),
            **of_layers,
        )


def sums_of(
    before: Tensor, now: Tensor, gradient: Tensor, own_lr: float, decay: float = 0.0, start: Tensor | None = None
) -> Tensor:
    """What one tensor, or one share of it, adds to the numbers of a step, d being the change of its weights.

    Args:
        before: its weights before the step.
        now: after it, on the same device.
        gradient: at the step.
        own_lr: of its group.
        decay: of the weights, of its group.
        start: its weights at w_0, on the same device; None where there are none.

    Returns:
        (NUM_SUMS,), on their device: -<g, d>, ||w||^2, ||g||^2, ||d||^2, the last again where w is not all zero;
        ||g||^2, -<g, d> and ||d||^2 with the decay in g, and -<g, d> without it, per unit of the group's own LR, 0
        where that is 0; -<g, w - w_0>, or 0; how many weights they are; the two of ``_of_rows``; the sum of the
        weights, 0 of matrices; and 1.
    """
    given = [before, now, gradient] + ([] if start is None else [start])
    parts = starmap(_products, zip(*map(_pieces, given), strict=True))
    w2, g2, d2, down, gw, wd, fallen = functools.reduce(torch.add, parts)
    own_g2 = g2 + 2.0 * decay * gw + decay**2 * w2  # of g + decay w
    powers = ((own_g2, 0), (down - decay * wd, 1), (d2, 2), (down, 1))
    own = [x / own_lr**power if own_lr > 0.0 else 0.0 * x for x, power in powers]
    number, rows = torch.full_like(w2, now.numel()), _of_rows(before, gradient)
    of_vector = before.sum(dtype=w2.dtype) if before.dim() < 2 else torch.zeros_like(w2)
    last = (fallen, number, *rows, of_vector, torch.ones_like(w2))
    return torch.stack([down, w2, g2, d2, d2 * (w2 > 0.0), *own, *last])


def _cosine(ab: float, a2: float, b2: float) -> float:
    """The cosine of two vectors by their product and the squares of their norms; 0 where one is 0."""
    return ab / math.sqrt(a2 * b2) if a2 * b2 > 0.0 else 0.0


def _of_rows(weights: Tensor, gradient: Tensor) -> Sequence[Tensor]:
    """The sums over rows, which are filters or outputs, of <g, w>^2 times their length and of ||g||^2 ||w||^2: about
    the same for random ones. Zeros where there are no rows.
    """
    if weights.dim() < 2 or not weights.numel():
        return weights.new_zeros(2, dtype=summed_in(weights.device)).unbind()
    parts = starmap(_row_products, zip(*map(_rows_in_pieces, (weights, gradient)), strict=True))
    gw2, of_random = functools.reduce(torch.add, parts)
    return gw2 * weights[0].numel(), of_random


def _row_products(weights: Tensor, gradient: Tensor) -> Tensor:
    """(2,), of (rows, n) each: the sums of <g, w>^2 and of ||g||^2 ||w||^2."""
    w, g = wide(weights), wide(gradient)
    gw, g2, w2 = ((a * b).sum(1).to(summed_in(w.device)) for a, b in ((g, w), (g, g), (w, w)))
    return torch.stack([gw.square().sum(), (g2 * w2).sum()])


def _rows_in_pieces(tensor: Tensor) -> Sequence[Tensor]:
    """The same as ``_pieces``, of whole rows."""
    rows = tensor.flatten(1)
    return torch.split(rows, max(1, _PIECE // rows.shape[1])) if tensor.device.type == "cpu" else [rows]


def _products(before: Tensor, now: Tensor, gradient: Tensor, start: Tensor | None = None) -> Tensor:
    """(7,): ||w||^2, ||g||^2, ||d||^2, -<g, d>, <g, w>, <w, d> and -<g, w - w_0>, or 0."""
    change = wide(now) - wide(before)
    pairs = [(before, before), (gradient, gradient), (change, change), (gradient, -change), (gradient, before)]
    found = [product(*pair) for pair in (*pairs, (before, change))]
    fallen = torch.zeros_like(found[0]) if start is None else product(gradient, wide(start) - wide(before))
    return torch.stack([*found, fallen])


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """A tensor on the CPU in pieces that its caches hold, whose products take a third of the time; any other as one,
    for each piece costs some launches.
    """
    flat = tensor.reshape(-1)
    return torch.split(flat, _PIECE) if tensor.device.type == "cpu" else [flat]


def seen_share(sums: Tensor) -> float:
    """||d|| / ||w|| over the weights that are not all zero, of the same sum as in ``from_sums``; NaN without such."""
    w2, seen_d2 = float(sums[1]), float(sums[4])
    return math.sqrt(seen_d2 / w2) if w2 > 0.0 else math.nan


def product(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> as a float64 on their device, or as a float32 where the device has no other; of half precision, in single
    precision first. torch adds up in a tree, which in single precision is exact to rounding, and several times as fast.
    """
    return (wide(a) * wide(b)).sum().to(summed_in(a.device))


def square_of(tensor: Tensor) -> Tensor:
    """||tensor||^2, see ``product``."""
    return functools.reduce(torch.add, (product(piece, piece) for piece in _pieces(tensor)))


@torch.no_grad()
def summed(keys: Iterable[int], values: Iterable[float]) -> dict[int, float]:
    """The sum of the values of each key."""
    found: dict[int, float] = {}
    for key, value in zip(keys, values, strict=True):
        found[key] = found.get(key, 0.0) + value
    return found


def root_mean_square(tensors: Iterable[Tensor | None]) -> float:
    """That of all numbers of some tensors, without those that are zero throughout; 0 where it cannot be had."""
    squares, count = 0.0, 0
    for tensor in tensors:
        square = 0.0 if tensor is None else float(square_of(tensor))
        if tensor is not None and square > 0.0:
            squares, count = squares + square, count + tensor.numel()
    return math.sqrt(squares / count) if count and math.isfinite(squares) else 0.0


def rows_of(parts: Sequence[Tensor], size: int = NUM_SUMS) -> Tensor:
    """Tensors (size,) on any devices -> (n, size), float64, on the CPU; all of a device come over together."""
    rows = torch.zeros(len(parts), size, dtype=torch.float64, device="cpu")
    for device in {part.device for part in parts}:
        places = [i for i, part in enumerate(parts) if part.device == device]
        rows[places] = torch.stack([parts[i] for i in places]).cpu().to(torch.float64)
    return rows


def on_host(tensor: Tensor, divisor: Any = None) -> Tensor:
    """A copy in host memory, divided by a number."""
    copy = tensor.detach().to("cpu", copy=True)
    return copy if divisor is None else copy.div_(float(divisor))


def summed_in(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has no other."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def wide(tensor: Tensor) -> Tensor:
    """In single precision, where it is in half precision."""
    return tensor.float() if tensor.dtype in HALF else tensor
