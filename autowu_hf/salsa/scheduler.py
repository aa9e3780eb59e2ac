"""SALSA as a torch learning rate scheduler; ``get_salsa_schedule`` builds it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..rewind.snapshot import is_sharded
from ..runtime import collective
from ..runtime.checks import check_state, check_steps
from ..runtime.finite import DivergedError, has_finite_parameters
from ..runtime.param_groups import device_of, innermost, lr_ratios, set_lrs, weights_out_of_reach
from ..runtime.random_state import get_random_state
from .line_search import Closure, Line, armijo, mean_loss, no_trace
from .sasa import LeakyBucket, slope_p_value, stationarity
from .settings import SalsaSettings
from .update_tap import UpdateTap

logger = logging.getLogger(__name__)

_STATE_VERSION = 1


class SalsaScheduler(LRScheduler):
    """A line search on every mini-batch while the loss falls, then a drop of the LR whenever training is stationary.

    While ``phase`` is "line_search", ``search`` must be called between the backward and ``optimizer.step()``;
    ``SalsaTrainer`` does. Then ``step()`` is all that is needed.

    *Line search* (SSLS). Each step starts at eta = 2 alpha and halves it, twice at most, while
    f(x - eta g) > f(x) - 0.05 eta ||g||^2 on the same mini-batch; then alpha <- (1 - s) alpha + s eta. It ends when a
    one-sided t-test of the slope of the latest losses no longer shows that they fall.

    *Drops* (SASA+). When a test accepts that the latest Delta (see ``UpdateTap``) have mean 0, the LR is divided by 10
    and samples are collected anew. As in the authors' code this runs during the line search too, and where its test
    accepts first, the line search ends with a drop.

    alpha is the LR of the paper's momentum, where the update is a mean of gradients. torch's SGD sums them up, so it
    gets alpha (1 - momentum) / (1 - dampening).

    Args:
        optimizer: its groups get the LR, times the ratio of the group's own LR to the optimizer's default ``lr``.
        num_training_steps: T, the steps of the whole run.
        num_warmup_steps: the longest line search, in steps; 0 for no limit.
        settings: every other option.

    Attributes:
        lr: alpha.
        switch_step: optimizer steps done when the line search ended; None before.
        ended_by: "slope", "stationary" or "cap"; None before, and where there is no line search.
        drops: of every drop a dict with "step", the optimizer steps done, and "lr", alpha from then on.
        num_probes: the losses that the line search has had computed, a forward pass each.
        min_samples: N_min, in optimizer steps.
        test_every: the optimizer steps between two tests.

    Raises:
        ValueError: an argument is outside its limits, or the optimizer is one that this cannot work with.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_training_steps: int,
        num_warmup_steps: int = 0,
        *,
        settings: SalsaSettings | None = None,
    ) -> None:
        self.settings = SalsaSettings() if settings is None else settings
        check_steps(num_training_steps, num_warmup_steps, None)
        self._ratios = lr_ratios(optimizer)
        self._inner: Optimizer = innermost(optimizer)
        self.num_training_steps = num_training_steps
        self.num_warmup_steps = num_warmup_steps
        initial_lr = self.settings.initial_lr or float(self._inner.defaults["lr"])
        self.lr = initial_lr / self._per_alpha(self._inner.defaults)
        self.switch_step: int | None = None if self.settings.line_search else 0
        self.ended_by: str | None = None
        self.drops: list[dict[str, Any]] = []
        self.num_probes = 0
        self._steps = 0
        self._losses = LeakyBucket(self.settings.keep)
        self._deltas = LeakyBucket(self.settings.keep)
        self._searched = False
        self.prepared(1, [optimizer])
        self._tap = UpdateTap(self._inner, self._ratios)
        super().__init__(optimizer)

    def prepared(self, ticks_per_step: int, optimizers: Sequence[Any]) -> None:
        """Tells that accelerate wraps this scheduler.

        Args:
            ticks_per_step: how often in a row it will be stepped for one optimizer step.
            optimizers: the prepared ones.

        Raises:
            ValueError: this cannot work with one of them.
        """
        for optimizer in optimizers:
            _refuse(optimizer, self.settings.line_search)
        steps = self.num_training_steps // ticks_per_step
        self.min_samples = self.settings.resolve_min_samples(steps)
        self.test_every = self.settings.resolve_interval(steps)
        self._longest_search = self.num_warmup_steps // ticks_per_step

    @property
    def phase(self) -> str:
        """The state: "line_search" until the switch, then "sasa"."""
        return "line_search" if self.switch_step is None else "sasa"

    def random_state(self) -> Tensor:
        """(n,), uint8: the present state of torch's random numbers, for ``search``."""
        return get_random_state(device_of(self._inner))

    def search(
        self,
        model: nn.Module,
        closure: Closure,
        loss: Any = None,
        *,
        random_state: Tensor | None = None,
        gradient_scale: float = 1.0,
    ) -> None:
        """Sets the LR of the coming step by a line search on its mini-batch; does nothing once the line search is over.

        To be called after the backward, before the gradients are clipped and before ``optimizer.step()``; with several
        processes, on all. It leaves no trace: weights, buffers and random numbers are then what they were. It takes one
        or two forward passes, one more without ``loss``, and the memory of a copy of the weights (two with weight decay
        or a gradient scaler).

        Args:
            model: what the closure calls.
            closure: returns the loss of the mini-batch, the one that was back-propagated, at the present weights; of
                all micro-batches of the step, where there are several. It is called without gradients, and every time
                with the same random numbers.
            loss: that loss, f(x); None has the closure find it out. Where the model draws random numbers, as dropout
                does, leave it out, or pass ``random_state`` too.
            random_state: what ``random_state()`` returned before the forward pass; the closure will draw the same.
            gradient_scale: what a gradient scaler has multiplied the gradients by.

        Raises:
            ValueError: the weights are sharded, or a loss is not a scalar.
            DivergedError: the weights are infinite or NaN.
        """
        if self.phase != "line_search":
            return
        if is_sharded(self._inner, [model]):
            raise ValueError(
                "the weights are sharded over the processes, and SALSA's line search needs them whole; use DDP, or "
                "line_search=False and an LR of your own"
            )
        random_state = self.random_state() if random_state is None else random_state
        line = Line(self._inner, self._ratios, closure, random_state, gradient_scale)
        with no_trace(model, device_of(self._inner)):
            try:
                self._search(line, loss)
            finally:
                line.go_back()
        self._searched = True

    def _search(self, line: Line, loss: Any) -> None:
        def loss_at(eta: float) -> float:
            self.num_probes += 1
            return line.loss_at(eta)

        if loss is None:
            self.num_probes += 1
            start = line.loss()
        else:
            start = mean_loss(loss) + line.penalty()
        if not math.isfinite(start) and not has_finite_parameters(self._inner):
            raise DivergedError(
                f"training has diverged: parameters are infinite or NaN after step {self._steps}, at learning rate "
                f"{self.lr:.1e}. Where the loss is flat, SALSA's line search goes on to higher ones; clip the "
                "gradients, or end the search earlier with num_warmup_steps"
            )
        slope = line.slope()
        self._losses.add(start)
        if 0.0 < slope < math.inf:  # else the gradients have vanished or overflowed
            s = self.settings.smoothing
            self.lr = (1.0 - s) * self.lr + s * armijo(self.lr, start, slope, loss_at)
            self._set_lrs()

    def _set_lrs(self) -> None:
        lrs = self.get_lr()
        self._last_lr = [*lrs]
        set_lrs(self.optimizer, lrs)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The LR of every parameter group for the next step."""
        self._tap.lr = self.lr
        groups = self._inner.param_groups
        return [self.lr * r * self._per_alpha(group) for r, group in zip(self._ratios, groups, strict=True)]

    def _per_alpha(self, group: dict[str, Any]) -> float:
        """torch's LR for an alpha of 1."""
        if not isinstance(self._inner, SGD) or not group["momentum"]:
            return 1.0
        return float((1.0 - group["momentum"]) / (1.0 - group["dampening"]))

    def step(self, loss: Any = None) -> None:
        """Moves on by one step: tests when it is time, and sets the LRs.

        Args:
            loss: not needed; ``search`` has it.

        Raises:
            RuntimeError: the line search is on, and ``search`` was not called for this optimizer step.
        """
        if self._tap.has_stepped():  # not where accelerate steps a scheduler once more for the same optimizer step
            self._advance()
        super().step()

    def _advance(self) -> None:
        """After a step of the optimizer."""
        if self.phase == "line_search" and not self._searched:
            raise RuntimeError(
                "SALSA's line search needs the loss of a mini-batch at several weights, but search() was not called "
                "for this step; use autowu_hf.SalsaTrainer in the place of Trainer, call scheduler.search(model, "
                "closure) between the backward and optimizer.step(), or pass line_search=False"
            )
        self._searched = False
        self._steps += 1
        if self._steps % self.test_every == 0:
            self._test()
        if self.phase == "line_search" and 0 < self._longest_search <= self._steps:
            self._end_search("cap")

    def _test(self) -> None:
        """Both tests; with several processes, one collective."""
        for delta in collective.gather_mean(self._tap.pending()).tolist():
            self._deltas.add(delta)
        self._tap.forget()
        level, enough = self.settings.significance, self.min_samples
        is_searching = self.phase == "line_search" and len(self._losses) >= enough
        if is_searching and slope_p_value(self._losses.values()) >= level:
            self._end_search("slope")
        is_first = not self.drops
        if len(self._deltas) >= enough and stationarity(self._deltas.values(), level, is_first).holds:
            self._drop()

    def _end_search(self, reason: str) -> None:
        self.switch_step, self.ended_by = self._steps, reason
        self._losses.empty()
        if collective.is_main_process():
            logger.info("SALSA: learning rate %.2e after a line search of %d steps", self.lr, self._steps)

    def _drop(self) -> None:
        self.lr /= self.settings.drop_factor
        self.drops.append({"step": self._steps, "lr": self.lr})
        self._deltas.empty()
        if collective.is_main_process():
            logger.info("SALSA: training is stationary after %d steps, learning rate %.2e", self._steps, self.lr)
        if self.phase == "line_search":
            self._end_search("stationary")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit; loads with ``torch.load(weights_only=True)``.

        No collective: all processes have the same weights, hence the same Delta. (Not under FSDP, where the main
        process's Delta since the last test stand in for the others' after a resume.)
        """
        return {
            "version": _STATE_VERSION,
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "steps": self._steps,
            "lr": self.lr,
            "switch_step": self.switch_step,
            "ended_by": self.ended_by,
            "drops": [dict(drop) for drop in self.drops],
            "num_probes": self.num_probes,
            "losses": self._losses.state_dict(),
            "deltas": self._deltas.state_dict(),
            "new_deltas": self._tap.pending().clone(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state.

        Args:
            state_dict: what ``state_dict`` returned.

        Raises:
            ValueError: it is the state of another scheduler, or of a newer version.
        """
        check_state(state_dict, "SalsaScheduler", _STATE_VERSION, "new_deltas")
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["step_count"]
        self._steps = state_dict["steps"]
        self.lr = state_dict["lr"]
        self.switch_step = state_dict["switch_step"]
        self.ended_by = state_dict["ended_by"]
        self.drops = [dict(drop) for drop in state_dict["drops"]]
        self.num_probes = state_dict["num_probes"]
        self._losses.load_state_dict(state_dict["losses"])
        self._deltas.load_state_dict(state_dict["deltas"])
        self._tap.set_pending(state_dict["new_deltas"])
        self._searched = False
        self._set_lrs()


def _refuse(optimizer: Any, line_search: bool) -> None:
    """Raises where the search, or the look at the weights, cannot work.

    Raises:
        ValueError: DeepSpeed's optimizers, LOMO's and such; with a line search, all but SGD.
    """
    obstacle = weights_out_of_reach(optimizer)
    if obstacle is not None:
        raise ValueError(f"SALSA cannot look at the weights, and move them, here: {obstacle.reason}; {obstacle.remedy}")
    inner = innermost(optimizer)
    if line_search and not isinstance(inner, SGD):
        raise ValueError(
            f"SALSA's line search finds an LR for steps along the gradient, which those of {type(inner).__name__} are "
            "not; use torch.optim.SGD, or line_search=False and an LR of your own"
        )
    if any(group.get("maximize") for group in inner.param_groups):
        raise ValueError("SALSA minimises, but the optimizer has maximize=True; negate the loss instead")
