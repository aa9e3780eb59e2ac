"""AutoWU as a torch learning rate scheduler: a state machine, warm-up then decay (paper 2.1 and 2.2)."""

from __future__ import annotations

import bisect
import dataclasses
import logging
import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from . import collective
from .divergence import require_finite_parameters
from .minimum_test import CLIFF_SPAN
from .param_groups import lr_ratios, set_lrs
from .peak_rules import CAP_SHARE, CLIFF_SHARE, MINIMUM_SHARE, peak_lr
from .report import describe
from .rewind import LR_FACTOR, Rewind
from .settings import AutoWUSettings, check_state, check_steps
from .shapes import LRCurve
from .verdict import MinimumTestRecord
from .warm_up import Ending, WarmUp

logger = logging.getLogger(__name__)

_STATE_VERSION = 2
_CHECK_AFTER = 5
_ENOUGH = 10


class AutoWUScheduler(LRScheduler):
    """Grows the LR from a tiny value until the loss has passed its minimum, then decays from the LR at the minimum.

    Use ``get_autowu_schedule`` to build one from options. A *step* here is one call of ``step()``, which is one
    optimizer step, except under accelerate with N processes, which steps a prepared scheduler N times per optimizer
    step. With several processes all run the same schedule: at a minimum test their losses are gathered, the main
    process tests, and its record is broadcast.

    Args:
        optimizer: its parameter groups get the schedule's LR, times the ratio of the group's own LR to the optimizer's
            default ``lr``. That LR itself does not matter.
        num_training_steps: T, the steps of the whole run.
        num_warmup_steps: the longest warm-up, in steps; 0 means ``settings.max_warmup_fraction`` of all steps, or the
            ten that a test needs, or half of them, if there are fewer than twenty.
        steps_per_epoch: steps in an epoch; None when unknown (``AutoWUCallback`` tells it under Trainer).
        settings: every other option.
        model: whose buffers (of batch norm) are rewound with the parameters; a model that an accelerator prepared is
            known without it.

    Attributes:
        phase: "warmup" or "decay".
        switch_step: steps done when the warm-up ended; None before.
        minimum_step: t*, the step of the minimum, eq. (5), or under the cliff rule the last one that is as good, the
            noise considered; None before the switch.
        peak_lr: the LR that the decay starts from, eta_{t*} or what the peak rule makes of the cliff; None before the
            switch.
        ended_by: "minimum", "cliff", "cap" or "divergence"; None before the switch.
        rewound_to: the step whose weights the switch went back to; None before it, and where none were.
        tests: the ``MinimumTestRecord`` of every test so far.

    Raises:
        ValueError: an argument is outside its limits, or the optimizer cannot be scheduled.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_training_steps: int,
        num_warmup_steps: int = 0,
        *,
        steps_per_epoch: int | None = None,
        settings: AutoWUSettings | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.settings = AutoWUSettings() if settings is None else settings
        check_steps(num_training_steps, num_warmup_steps, steps_per_epoch)
        self._ratios = lr_ratios(optimizer)
        self.num_training_steps = num_training_steps
        self._num_warmup_steps = num_warmup_steps
        self.switch_step: int | None = None
        self.minimum_step: int | None = None
        self.peak_lr: float | None = None
        self.ended_by: str | None = None
        self.rewound_to: int | None = None
        self._check_at: int | None = None
        self._go_back_later = False
        self._said_short = False
        self._model = model
        self._warm_up = WarmUp(self.settings, optimizer, steps_per_epoch)
        self._cadence = self._warm_up.cadence
        this = weakref.ref(self)  # no cycle: a schedule that nobody holds must be gone at once

        def models() -> Sequence[nn.Module]:
            scheduler = this()
            return [] if scheduler is None else scheduler._models()

        self.rewind = Rewind(self.settings, optimizer, models, looks_on=self.settings.rule == "cliff")
        self._set_lengths()
        super().__init__(optimizer)

    def _models(self) -> Sequence[nn.Module]:
        return [self._model] if self._model is not None else self._warm_up.models()

    def _set_lengths(self, growth_steps: int | None = None) -> None:
        """Sets cap and LR curve, and plans the next test; ``growth_steps`` where the growth is that of another cap."""
        s, ticks = self.settings, self._cadence.ticks_per_step
        # A whole number of optimizer steps, so that the schedule does not depend on the number of processes.
        steps = self.num_training_steps / ticks
        longest = max(int(s.max_warmup_fraction * steps), min(_ENOUGH, int(steps / 2)), 1) * ticks
        cap = min(self._num_warmup_steps or longest, self.num_training_steps - 1)
        growth_steps = cap if growth_steps is None else growth_steps
        self.warmup_cap = min(cap, growth_steps)
        self.curve = LRCurve(
            num_training_steps=self.num_training_steps,
            growth_steps=growth_steps,
            min_lr=s.min_lr,
            max_lr=s.max_lr,
            growth=s.growth,
            decay_type=s.decay_type,
            decay_fraction=s.decay_fraction,
        )
        self._cadence.plan(max(getattr(self, "last_epoch", 0), 0), self.warmup_cap)
        self._keep_at = 0  # looked up at the next step

    @property
    def phase(self) -> str:
        """The state: "warmup" until the switch, then "decay"."""
        return "warmup" if self.switch_step is None else "decay"

    @property
    def takes_losses(self) -> bool:
        """Whether the losses of the steps to come are needed."""
        return self.switch_step is None

    @property
    def peak_rule(self) -> str:
        """The rule that ends the warm-up: "minimum" or "cliff", which needs rewind to be on."""
        return self.settings.rule if self.rewind.is_on else "minimum"

    @property
    def losses(self) -> list[float]:
        """The losses of the warm-up, one per optimizer step: those gathered so far, the mean over processes, in the
        loss's own unit; with one process, all.
        """
        if collective.num_processes() == 1:
            self.flush()
        return [float(loss) for loss in self._warm_up.history.gathered]

    @property
    def tests(self) -> list[MinimumTestRecord]:
        return self._warm_up.minimum_test.records

    def step(self, loss: Any = None) -> None:
        """Moves on by one step: takes in the loss of the optimizer step just done, tests when it is time, sets the LRs.

        Args:
            loss: the scalar loss of the optimizer step (a tensor or a number), for loops that call ``loss.backward()``
                themselves. None takes the one that ``accelerator.backward`` saw.

        Raises:
            ValueError: the loss is not a scalar; or ``test_every="epoch"`` and the epoch's length is unknown; or
                without a loss, while another schedule in its warm-up hears the same accelerator.
        """
        if self._step_count > 0 and self.switch_step is None:
            step = self.last_epoch + 1
            if step == 1:
                self._say_if_short()
            ending = self._warm_up.advance(step, self.warmup_cap, loss)
            if ending is not None:
                self._switch(step, ending)
            elif step >= self._keep_at:
                self._keep_state(step)
        elif self._check_at == self.last_epoch + 1:
            self._require_finite_parameters(self._check_at)
        if self._step_count < 2:
            super().step()  # torch's own, which warns of a step before the optimizer's first
            return
        self._step_count += 1
        self.last_epoch += 1
        self._set_lrs()

    def _keep_state(self, step: int) -> None:
        """Keeps the weights after a step, where that is due and all processes have done it."""
        if self._cadence.held or not self._cadence.is_between_steps:
            return
        if not self.rewind.is_planned and self.rewind.is_on:
            self.rewind.plan(band=self.curve.warmup(self.warmup_cap) / self._lowest_lr(self.warmup_cap))
        if self.rewind.is_due(self.curve.warmup(step)):
            self.rewind.follow(step, self.curve.warmup, self._lowest_lr(step), self._wanted_lrs(step))
        self._warm_up.minimum_test.rule = self.peak_rule  # rewind may have found that it cannot work
        later = range(step + 1, self.warmup_cap + 1)
        self._keep_at = (
            step + 1 + bisect.bisect_left(later, True, key=lambda t: self.rewind.is_due(self.curve.warmup(t)))
        )

    def _lowest_lr(self, step: int) -> float:
        """The lowest LR that the switch would go back to for a cliff, or a minimum, that is still to be seen."""
        if self.settings.rule != "cliff":
            return self.curve.warmup(step)
        interval = self._cadence.interval(self.warmup_cap) or self._cadence.ticks_per_step
        # What a test finds lies before the tests in a row that it takes.
        tests = max((self.settings.patience + 1) * interval, CLIFF_SPAN * self.warmup_cap + interval)
        return CLIFF_SHARE * self.curve.warmup(max(step - tests - self._lag(), 0))

    def _lag(self) -> int:
        """Scheduler steps from the last LR that a loss may have suffered from to the LR of its own step, which it has
        not seen yet. The paper's eq. (5) takes the LR of its own.
        """
        return self._cadence.ticks_per_step if self.peak_rule == "cliff" else 0

    def _wanted_lrs(self, step: int) -> list[float]:
        """The LRs that the switch would go back to for the minimum that is known now, or at the cap."""
        interval = self._cadence.interval(self.warmup_cap) or self._cadence.ticks_per_step
        places, share, lag = self._warm_up.minimum_test.minimum_steps or [step], MINIMUM_SHARE, self._lag()
        if self.settings.rule != "cliff":
            share, lag = 1.0, interval
        places = [place - lag for place in places]
        lrs = [share * self.curve.warmup(max(place, 0)) for place in places]
        return [*lrs, CAP_SHARE * self.curve.warmup(self.warmup_cap)]

    def _set_lrs(self) -> None:
        self._last_lr = [*self.get_lr()]
        set_lrs(self.optimizer, self._last_lr)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The LR of every parameter group after ``last_epoch`` steps, in closed form."""
        lr = self._schedule(self.last_epoch)
        return [lr * ratio for ratio in self._ratios]

    def _schedule(self, step: int) -> float:
        if self.switch_step is None or self.peak_lr is None:
            return self.curve.warmup(step)
        return self.curve.decay(step, self.switch_step, self.peak_lr)

    @property
    def steps_per_epoch(self) -> int | None:
        """Scheduler steps in an epoch; None when unknown."""
        return self._cadence.steps_per_epoch

    def set_steps_per_epoch(self, steps: int | None) -> None:
        """Tells the length of an epoch, where the schedule was made without it.

        Args:
            steps: in scheduler steps; None when there is no such length.

        Raises:
            ValueError: it is not a whole number of at least 1, or ``test_every="epoch"`` still lacks a length.
        """
        check_steps(self.num_training_steps, 0, steps)
        if not self._cadence.epoch_is_given:
            self._cadence.steps_per_epoch = steps
        self._cadence.require_interval(self.warmup_cap)
        self._cadence.plan(self.last_epoch, self.warmup_cap)
        self._say_if_short()

    def _say_if_short(self) -> None:
        """Says once, before training, that the warm-up may be too short for its tests."""
        shortage = self._cadence.shortage(self.warmup_cap, self._warm_up.minimum_test.fewest_losses)
        if shortage is not None and not self._said_short and self.last_epoch == 0:
            self._said_short = True
            if collective.is_main_process():
                logger.warning("%s", shortage)

    def set_ticks_per_step(self, ticks: int) -> None:
        """Tells how often in a row the scheduler is stepped for one optimizer step.

        accelerate's wrap of the scheduler does that as often as there are processes, unless its batches are split. Told
        when ``accelerator.prepare`` makes that wrap; minimum tests and the cap then fall on whole optimizer steps.

        Args:
            ticks: at least 1.
        """
        self._cadence.ticks_per_step = ticks
        self._set_lengths(None if self.last_epoch == 0 else self.curve.growth_steps)

    def restart(self, num_training_steps: int) -> None:
        """Starts anew with another length: for a run resumed without this schedule's state.

        Args:
            num_training_steps: the steps that are left.

        Raises:
            ValueError: fewer than 2.
        """
        check_steps(num_training_steps, 0, self.steps_per_epoch)
        self.num_training_steps = num_training_steps
        self._set_lengths()
        self._set_lrs()

    def flush(self) -> None:
        """Gathers the losses since the last test; with several processes, one collective that all must join."""
        self._warm_up.history.flush()

    def pending_losses(self) -> Tensor:
        """(k,), float64: the losses of this process that were not gathered yet."""
        return self._warm_up.history.pending()

    def set_pending_losses(self, losses: Tensor) -> None:
        """Replaces the losses of this process that were not gathered yet.

        Args:
            losses: (k,), k the same on every process.
        """
        self._warm_up.history.set_pending(losses)

    def hold_tests(self, held: bool) -> None:
        """Holds minimum tests back, because other processes may be ahead or behind; see ``catch_up``.

        Args:
            held: False lets them run again.
        """
        self._cadence.held = held

    def catch_up(self) -> None:
        """Takes this process to the step of the one that is furthest, and runs a test that has become due.

        Three collectives at most; all processes must join.
        """
        step, switch_step = self._warm_up.catch_up(self.last_epoch, self.switch_step)
        self._step_count += step - self.last_epoch
        self.last_epoch = step
        if self.switch_step is None:
            if switch_step is not None:  # at the cap, where no test decides
                self._switch(switch_step, Ending("cap", switch_step, switch_step))
            else:
                ending = self._warm_up.test_if_due(step, self.warmup_cap)
                if ending is not None:
                    self._switch(step, ending)
                else:
                    self._keep_state(step)
        elif self._go_back_later:
            self._go_back()
        self._set_lrs()

    def _switch(self, step: int, ending: Ending) -> None:
        """Ends the warm-up: the next step runs at the peak LR, from the weights that never saw a higher one."""
        self._warm_up.history.close()
        self.switch_step = step
        self.ended_by = ending.reason
        self.minimum_step = ending.minimum_step
        lag = self._lag()
        self.peak_lr = peak_lr(
            self.peak_rule,
            at_cap=ending.reason == "cap" and self.settings.guard,
            minimum_lr=self.curve.warmup(max(ending.minimum_step - lag, 0)),
            cliff_lr=self.curve.warmup(max(ending.cliff_step - lag, 0)),
            last_lr=self.curve.warmup(step),
            lowest_lr=self.curve.warmup(0),
        )
        if self._cadence.held:  # other processes train on; they all go back when they meet
            self._go_back_later = True
        else:
            self._go_back()
        if ending.reason == "divergence":
            if self.rewound_to is None:
                self._require_finite_parameters(step)
            # What broke the run may break it again, whatever the LR.
            self._check_at = step + _CHECK_AFTER * self._cadence.ticks_per_step
        if collective.is_main_process():
            logger.info(describe(self.report()))

    def _go_back(self) -> None:
        """Restores the weights that never saw an LR above the peak, and no later ones than those of the minimum."""
        assert self.peak_lr is not None
        assert self.minimum_step is not None
        highest = min(self.peak_lr, self.curve.warmup(self.minimum_step))
        has_any = bool(self.rewind.kept)  # not after a warm-up of one step
        self.rewound_to = self.rewind.restore(self.curve.warmup, highest)
        if has_any and collective.is_main_process():
            if self.rewound_to is None:
                logger.warning("AutoWU has no state with finite weights to go back to")
            elif self.curve.warmup(self.rewound_to) > LR_FACTOR * highest:
                logger.warning(
                    "AutoWU goes back to the earliest state that it has, of step %d at learning rate %.1e, which is "
                    "above the %.1e that it is to go on from",
                    self.rewound_to,
                    self.curve.warmup(self.rewound_to),
                    highest,
                )
        self._go_back_later = False
        self.rewind.drop()

    def _require_finite_parameters(self, step: int) -> None:
        last_lr = self.curve.warmup(self.switch_step or step)
        require_finite_parameters(
            self.optimizer, step, last_lr, self.settings.max_lr, self.rewound_to, self.rewind.is_on
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit; loads with ``torch.load(weights_only=True)``. No collective."""
        return {
            "version": _STATE_VERSION,
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "growth_steps": self.curve.growth_steps,
            "steps_per_epoch": self.steps_per_epoch,
            "num_processes": collective.num_processes(),
            **self._warm_up.state_dict(),
            "switch_step": self.switch_step,
            "minimum_step": self.minimum_step,
            "peak_lr": self.peak_lr,
            "ended_by": self.ended_by,
            "rewound_to": self.rewound_to,
            "check_at": self._check_at,
            "rewind": self.rewind.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state. A run resumed with another ``num_training_steps`` keeps the growth of its warm-up and
        its switch, and ends at the new total.

        Args:
            state_dict: what ``state_dict`` returned.

        Raises:
            ValueError: it is the state of another scheduler, or of a newer version.
        """
        check_state(state_dict, "AutoWUScheduler", _STATE_VERSION, "minimum_test")
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["step_count"]
        if not self._cadence.epoch_is_given:
            self._cadence.steps_per_epoch = state_dict["steps_per_epoch"]
        self.switch_step = state_dict["switch_step"]
        self.minimum_step = state_dict["minimum_step"]
        self.peak_lr = state_dict["peak_lr"]
        self.ended_by = state_dict["ended_by"]
        self.rewound_to = state_dict["rewound_to"]
        self._check_at = state_dict["check_at"]
        self._warm_up.load_state_dict(state_dict, is_over=self.switch_step is not None)
        self.rewind.load_state_dict(state_dict["rewind"], warming_up=self.switch_step is None)
        self._set_lengths(growth_steps=state_dict["growth_steps"])
        self._set_lrs()
        if state_dict["num_processes"] != collective.num_processes() and collective.is_main_process():
            logger.warning(
                "AutoWU goes on with %d process(es) from a state of %d: the losses of its warm-up are means over "
                "another number of processes, and perhaps over another global batch",
                collective.num_processes(),
                state_dict["num_processes"],
            )

    def report(self) -> dict[str, Any]:
        """The decision and its evidence, as in ``autowu.json``: numbers, names, lists and None only."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "num_training_steps": self.num_training_steps,
            "growth_steps": self.curve.growth_steps,
            "warmup_cap": self.warmup_cap,
            "step": self.last_epoch,
            "phase": self.phase,
            "switch_step": self.switch_step,
            "minimum_step": self.minimum_step,
            "peak_lr": self.peak_lr,
            "peak_rule": self.peak_rule,
            "ended_by": self.ended_by,
            "rewound_to": self.rewound_to,
            "losses": self.losses,
            "tests": [dict(record) for record in self.tests],
        }
