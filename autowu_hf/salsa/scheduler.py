"""SALSA as a torch learning rate scheduler; ``get_salsa_schedule`` builds it."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..runtime import collective
from ..runtime.param_groups import device_of, innermost, match_ratios, own_lr
from ..runtime.random_state import get_random_state
from ..runtime.scheduler import AdaptiveScheduler
from .line_search import Closure, Line, require_search
from .optimizers import lr_per_alpha, refuse, refuse_shards
from .sasa import LeakyBucket, slope_p_value, stationarity
from .settings import SalsaSettings
from .update_tap import UpdateTap

logger = logging.getLogger(__name__)


class SalsaScheduler(AdaptiveScheduler):
    """A line search on every mini-batch while the loss falls, then a drop of the LR whenever training is stationary.

    While ``phase`` is "line_search", ``search`` must be called between the backward and ``optimizer.step()``;
    ``SalsaTrainer`` does. Afterwards ``phase`` is "sasa", and ``step()`` is all that is needed.

    *Line search* (SSLS). Each step starts at eta = 2 alpha and halves it, twice at most, while
    f(x - eta g) > f(x) - 0.05 eta ||g||^2 on the same mini-batch; then alpha <- (1 - s) alpha + s eta. The line search
    ends when a one-sided t-test of the slope of the latest losses no longer shows that they fall.

    *Drops* (SASA+). When a test accepts that the latest Delta (see ``UpdateTap``) have mean 0, the LR is divided by the
    drop factor and samples are collected anew. As in the authors' code this test runs during the line search too; where
    it accepts first, the line search ends with a drop.

    The optimizer gets ``lr_per_alpha`` times alpha. The loss that ``step`` takes is not needed, for ``search`` has it.

    Args:
        settings: the options; the other arguments are explained at ``get_salsa_schedule``.

    Attributes:
        lr: alpha.
        switch_step: optimizer steps done when the line search ended; None before, 0 where there is no line search.
        ended_by: "slope", "stationary" or "cap"; None before, and where there is no line search.
        drops: of every drop a dict with "step", the optimizer steps done, and "lr", alpha from then on.
        num_probes: the losses that the line search has had computed, a forward pass each.
        min_samples: N_min, in optimizer steps.
        test_every: the optimizer steps between two tests.

    Raises:
        ValueError: an argument is outside its limits, or the optimizer is one that this cannot work with.
    """

    name = "SALSA"
    state_version = 1
    state_key = "new_deltas"

    def __init__(
        self,
        optimizer: Optimizer,
        num_training_steps: int,
        num_warmup_steps: int = 0,
        *,
        settings: SalsaSettings | None = None,
    ) -> None:
        super().__init__(optimizer, num_training_steps, num_warmup_steps)
        self.settings = s = SalsaSettings() if settings is None else settings
        self._inner: Optimizer = innermost(optimizer)
        self._initial_lr = s.initial_lr or own_lr(self._inner)
        self.lr = self._initial_lr / lr_per_alpha(self._inner, self._inner.defaults)
        self.switch_step: int | None = None if s.line_search else 0
        self.ended_by: str | None = None
        self.drops: list[dict[str, Any]] = []
        self.num_probes = 0
        self._steps = 0
        self._losses = LeakyBucket(s.keep)
        self._deltas = LeakyBucket(s.keep)
        self._searched = False
        self.meet(optimizer)
        self._plan()
        self._tap = UpdateTap(self._inner, self._ratios)
        self._start(optimizer)

    def meet(self, optimizer: Any) -> None:
        refuse(optimizer, self.settings.line_search)

    def _plan(self) -> None:
        steps = self.num_training_steps // self.ticks_per_step
        self.min_samples = self.settings.resolve_min_samples(steps)
        self.test_every = self.settings.resolve_interval(steps)
        self._longest_search = self.num_warmup_steps // self.ticks_per_step

    def _plan_rest(self) -> str:
        self._plan()
        if self.settings.line_search:
            return "starts a new line search"
        whose = "the optimizer's own LR" if self.settings.initial_lr is None else "initial_lr"
        return f"goes on with SASA+ alone at {whose}, {self._initial_lr:.1e},"

    @property
    def phase(self) -> str:
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
        refuse_shards(self._inner, model)
        match_ratios(self._ratios, self._inner, self._own_lr)
        random_state = self.random_state() if random_state is None else random_state
        line = Line(self._inner, self._ratios, closure, random_state, gradient_scale)
        try:
            found = line.search(model, self.lr, loss, self._steps)
        finally:
            self.num_probes += line.num_probes
        self._losses.add(found.loss)
        if found.eta is not None:
            s = self.settings.smoothing
            self.lr = (1.0 - s) * self.lr + s * found.eta
            self._set_lrs()
        self._searched = True

    def _schedule(self, step: int) -> float:
        return self.lr

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The LR of every parameter group for the next step."""
        self._tap.lr = self.lr
        groups = zip(self._ratios, self._inner.param_groups, strict=True)
        return [self.lr * ratio * lr_per_alpha(self._inner, group) for ratio, group in groups]

    def _advance(self, step: int, loss: Any) -> None:
        """Counts a step of the optimizer and tests when it is time.

        Raises:
            RuntimeError: the line search is on, and ``search`` was not called for this optimizer step.
        """
        if not self._tap.has_stepped():
            return  # accelerate steps a scheduler several times for one optimizer step
        if self.phase == "line_search":
            require_search(self._searched)
        self._searched = False
        self._steps += 1
        if self._steps % self.test_every == 0:
            self._test()
        if self.phase == "line_search" and 0 < self._longest_search <= self._steps:
            self._end_search("cap")

    def _test(self) -> None:
        """Both tests; with several processes, one collective."""
        self.flush()
        level, enough = self.settings.significance, self.min_samples
        is_searching = self.phase == "line_search"
        if is_searching and len(self._losses) >= enough and slope_p_value(self._losses.values()) >= level:
            self._end_search("slope")
        if len(self._deltas) >= enough and stationarity(self._deltas.values(), level, not self.drops).holds:
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

    @property
    def takes_losses(self) -> bool:
        """True: the Delta of the steps to come, which are numbers of one process like its losses, are always needed."""
        return True

    def flush(self) -> None:
        """Gathers the Delta that only this process has seen; with several processes, one collective."""
        pending = self._tap.pending()
        if len(pending):  # as many on every process
            for delta in collective.gather_mean(pending).tolist():
                self._deltas.add(delta)
            self._tap.forget()

    def pending_losses(self) -> Tensor:
        """(k,), float64: the Delta of this process that were not gathered yet. Under FSDP each process has its own."""
        return self._tap.pending().clone()

    def set_pending_losses(self, losses: Tensor) -> None:
        """Replaces the Delta of this process that were not gathered yet; ``losses`` is (k,)."""
        self._tap.set_pending(losses)

    def _state(self) -> dict[str, Any]:
        return {
            "steps": self._steps,
            **{name: getattr(self, name) for name in _DECISIONS},
            "drops": [dict(drop) for drop in self.drops],
            "losses": self._losses.state_dict(),
            "deltas": self._deltas.state_dict(),
            "new_deltas": self.pending_losses(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
        for name in _DECISIONS:
            setattr(self, name, state[name])
        self.drops = [dict(drop) for drop in state["drops"]]
        self._losses.load_state_dict(state["losses"])
        self._deltas.load_state_dict(state["deltas"])
        self.set_pending_losses(state["new_deltas"])
        self._searched = False


_DECISIONS = ("lr", "switch_step", "ended_by", "num_probes")
"""The attributes that a state holds under their own names."""
