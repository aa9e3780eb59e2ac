"""The scale: an LR from the loss, the gradients and the weights of the first optimizer steps. (Ours.)

With u the change of the weights by one optimizer step per unit of LR, and g the gradient before clipping:

    P = L / -<g, u>     the LR at which a linear model of the loss would bring this batch's loss to 0: Polyak's step
                        (1987) along the optimizer's own direction
    R = ||w|| / ||u||   the LR at which one update is as large as the weights: the trust ratio of LARS (You et al. 2017)
                        over all weights
    M                   the median of that ratio over single tensors, each counting by its part of ||u||^2

All follow the loss's and the weights' units, so the scale does, too: a loss multiplied by 1000 changes nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ....runtime.update_meter import Update
from ...optimizer_kinds import rectification
from .first_steps import BOTH, CONVEX_BORNE, CONVEX_POWER, CONVEX_SHARE, check_losses, others_follow, trust_of
from .scale_invariant import BORNE, INVARIANT_FROM, least_lr

POLYAK_SHARE, LAYER_SHARE, TRUST_SHARE = 0.3, 0.3, 0.2
"""The highest peak LR as a share of P, of M, and of R."""

HORIZON, HORIZON_POWER = 100, 0.25
"""From so many optimizer steps on the peak LR falls with this power of them."""

ALIGNED = 0.99
"""The alignment from which an update counts as the gradient itself."""

FAR = 30.0
"""How far below R's LR that of P lies where its gradients may be noise. It is 1000 times for EfficientNet, whose
gradients are, and about twice for a ViT from scratch, which is on a plateau. And how far above R's and M's it lies
where the weights may have begun near zero: 14 times at most for networks with a usual start, and else 40 and more.
"""


@dataclass(frozen=True)
class Scale:
    """What the first optimizer steps say about the LR; all of it in optimizer units, for a parameter group of ratio 1.

    Args:
        polyak: P.
        trust: R; infinite where all weights were zero before the first step, or those that are not do not move.
        alignment: of the first update with the gradient (``Update.alignment``). At 1, as for SGD, the update carries no
            scale of its own, and P and R are less sure.
        loss: the mean of the measured steps' losses, in the loss's unit.
        num_steps: the optimizer steps that were measured.
        momentum: of SGD, in [0, 1): its updates grow to 1 / (1 - momentum) of the first.
        beta2: of an optimizer that rectifies its updates (RAdam), 0 of others. P, R and M are those of its last ones.
        layer_trust: M; NaN where no tensor tells, and in a state of an older release.
        scale_invariant: the least share of an update, or of its slope, in weights whose size changes nothing.
        others_follow: whether the first updates moved weights alone that were zero, as LoRA's B, so that others move
            once these have grown (``first_steps.py``), where these are not too small for R to tell; False in a state of
            an older release.
        density: what is left of the LR where most tensors hardly have a gradient, should nothing be learned at all of
            it; 1 elsewhere, also where P leaves as little, and in a state of an older release. So is the next one.
        narrowing: what is left of 0.3 P where the gradient lies in few weights; 1 elsewhere (``first_steps.py``).
        is_convex: whether one linear layer is trained alone, so that R and M say nothing (``bounds.py``).
        scaling: what is left of 0.2 R and 0.3 M where factors of channels are trained alone; 1 elsewhere.
        norms: NEW or TRAINED, as the weights of the norms say of the model; "" where they say nothing.
    """

    polyak: float
    trust: float
    alignment: float
    loss: float
    num_steps: int
    momentum: float = 0.0
    beta2: float = 0.0
    layer_trust: float = math.nan
    scale_invariant: float = 0.0
    others_follow: bool = False
    density: float = 1.0
    narrowing: float = 1.0
    is_convex: bool = False
    scaling: float = 1.0
    norms: str = ""

    @classmethod
    def from_updates(
        cls,
        losses: Sequence[float],
        updates: Sequence[Update],
        alignment: float,
        momentum: float,
        first: Update | None = None,
    ) -> Scale:
        """The scale of some measured steps.

        Args:
            losses: (n,), n at least 1, of the same steps.
            updates: (n,).
            alignment: of the run's very first update, before there is any momentum.
            momentum: as the optimizer's groups have it; it counts where the first update was the gradient.
            first: the run's very first update, where that is not one of them. If all weights were zero before it, as
                those of a fresh head that is trained alone, or of biases, what they are by the next step tells the LR
                of that one only.

        Raises:
            ValueError: the mean slope is not positive, so that P means nothing, or see ``check_losses``.
        """
        loss = sum(losses) / len(losses)
        slope = sum(update.slope for update in updates) / len(updates)
        if not (slope > 0.0 and math.isfinite(slope)):
            raise ValueError("the first updates do not go down the gradient")
        first = first or updates[0]
        trust = math.inf if first.weight_norm == 0.0 else trust_of(updates)
        check_losses(losses, slope * trust)
        of_layers = [update.layer_trust for update in updates if not math.isnan(update.layer_trust)]
        scale = cls(
            polyak=loss / slope,
            trust=trust,
            alignment=alignment,
            loss=loss,
            num_steps=len(updates),
            momentum=momentum if alignment > ALIGNED else 0.0,
            layer_trust=statistics.geometric_mean(of_layers) if of_layers and trust < math.inf else math.nan,
            scale_invariant=min(update.scale_invariant for update in updates),
        )
        are_gradients = max(first.alignment, alignment) > ALIGNED  # whose sizes differ from step to step
        if are_gradients or first.weight_norm == 0.0 or not others_follow(first, updates):
            return scale
        of_both = replace(scale, trust=trust_of(updates, follow=True), others_follow=True)
        return scale if of_both.has_small_weights else of_both

    @property
    def lr(self) -> float:
        """The scale as one number: P, M or 2/3 R, whichever is lowest, or what is needed for ``least_lr``."""
        return min(max(self.polyak, self.least_lr / POLYAK_SHARE), self.trusted_lr / POLYAK_SHARE)

    @property
    def trusted_lr(self) -> float:
        """The LR at which one update turns the weights as far as it may: 0.3 M, or 0.2 R where that is less. The update
        of plain gradients lies in the few tensors that have large ones, so that M says nothing there.
        """
        return self.scaling * min(self._of_layers, TRUST_SHARE * self.trust)

    @property
    def _of_layers(self) -> float:
        """0.3 M; infinite where it says nothing."""
        return math.inf if math.isnan(self.layer_trust) or self.is_aligned else LAYER_SHARE * self.layer_trust

    @property
    def peak_lr(self) -> float:
        """min(0.3 P, 0.3 M, 0.2 R), or ``least_lr``, over ``factors``, times 1 - ``momentum``, for a short run."""
        return self.peak_lr_for(1)

    def peak_lr_for(self, num_steps: int) -> float:
        """The LR for a run of so many optimizer steps.

        The best LR falls slowly with their number (Bjorck et al. 2024, arXiv 2409.19913, with a power of 0.32), and so
        does 0.3 P; of a convex loss with the root (Nesterov 2004, section 3.2.3). M and R bound how far the weights
        turn in one step, whatever the number; only where the updates are the gradients does 0.2 R fall, too.
        """
        by_polyak, by_trust = self._bounds(num_steps)
        lowest = min(max(by_polyak, self.least_lr), by_trust)
        return lowest * (1.0 - self.momentum) / (self.factors * self.rectified(num_steps))

    def _bounds(self, num_steps: int) -> tuple[float, float]:
        """The LR that P allows in a run of so many optimizer steps, and that which M and R do."""
        share, power = (CONVEX_SHARE, CONVEX_POWER) if self.is_convex else (POLYAK_SHARE, HORIZON_POWER)
        horizon = math.exp(power * math.log(max(1.0, num_steps / HORIZON)))
        by_polyak = self.narrowing * share * self.polyak / horizon
        return by_polyak, self.trusted_lr / (horizon if self.is_aligned else 1.0)

    def changed(self, before: int, num_steps: int) -> float:
        """By what the LR has to be multiplied where a run of ``before`` steps becomes one of ``num_steps``."""
        return self.peak_lr_for(num_steps) / self.peak_lr_for(before)

    def rectified(self, num_steps: int) -> float:
        """The share of its last updates' size that an optimizer reaches by the middle of a run; 1 for most of them."""
        is_one = self.beta2 > 0.0 and num_steps > 1
        return (rectification(self.beta2, max(num_steps / 2.0, 8.0)) if is_one else 0.0) or 1.0

    @property
    def factors(self) -> float:
        """By what the LR is divided for a second factor, which P, R and M do not know of; 1 for most weights."""
        return BOTH if self.others_follow else 1.0

    @property
    def is_aligned(self) -> bool:
        """Whether the first update was the gradient itself, as SGD's."""
        return self.alignment > ALIGNED

    @property
    def held_by(self) -> str:
        """What holds the LR of a short run, see ``held_by_for``."""
        return self.held_by_for(1)

    def held_by_for(self, num_steps: int) -> str:
        """Which of the three bounds is the lowest one in a run of so many steps: "polyak" for P, "trust" for R or
        "layers" for M; or "invariance" where P is below ``least_lr``.
        """
        by_polyak, by_trust = self._bounds(num_steps)
        if by_polyak <= by_trust:
            return "polyak" if by_polyak >= min(self.least_lr, by_trust) else "invariance"
        return "trust" if TRUST_SHARE * self.trust <= self._of_layers else "layers"

    @property
    def is_scale_invariant(self) -> bool:
        """Whether most of the weights are, and R and M say by themselves what LR they need (``scale_invariant.py``)."""
        return self.scale_invariant >= INVARIANT_FROM

    @property
    def borne(self) -> float:
        """How many times as far the losses may rise as elsewhere before the LR counts as too high."""
        return CONVEX_BORNE if self.is_convex else BORNE if self.is_scale_invariant else 1.0

    @property
    def least_lr(self) -> float:
        """The LR that such weights need, whatever P is; 0 elsewhere."""
        return least_lr(self.trusted_lr, self.is_aligned) if self.is_scale_invariant else 0.0

    @property
    def may_be_noise(self) -> bool:
        """Whether P may be far too low, for its gradients are nearly all noise: R would allow ``FAR`` times as much."""
        is_far = FAR * POLYAK_SHARE * self.polyak < TRUST_SHARE * self.trust
        return is_far and not (self.is_aligned or self.is_scale_invariant) and self.beta2 == 0.0

    @property
    def has_small_weights(self) -> bool:
        """Whether R and M may be far too low, for the weights began near zero (``later/small_weights.py``): P would
        allow ``FAR`` times as much.
        """
        return FAR * self.trusted_lr < POLYAK_SHARE * self.polyak

    def size_of(self, whole: float, seen: float) -> float:
        """The size of the first updates that its LR depends on: P is told by all of an update, R and M without the
        tensors that were zero, which the first steps of some optimizers move by much.

        Args:
            whole: the norm of an update.
            seen: the same without these tensors.

        Returns:
            ``whole`` where P holds the LR, ``seen`` where R or M does, and between them where the norms differ in that.
        """
        by_polyak, by_trust = POLYAK_SHARE * self.polyak, self.trusted_lr
        if math.isinf(by_trust) or whole == 0.0:
            return whole
        if by_polyak < self.least_lr:
            return seen
        return whole * min(by_polyak, by_trust * seen / whole) / min(by_polyak, by_trust)

    def report(self, num_steps: int = 1) -> dict[str, Any]:
        """All of it in numbers and names, for a run of so many steps."""
        found = {
            "lr": self.lr,
            "peak_lr": self.peak_lr,
            "held_by": self.held_by_for(num_steps),
            "small_weights": self.has_small_weights,
            "rectified": self.rectified(num_steps),
        }
        return asdict(self) | found
