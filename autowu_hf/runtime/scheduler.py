"""What AutoWU, AutoLRS and SALSA share as torch schedulers; the integrations know no other class of scheduler."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..console import enable
from . import early_end, param_groups
from .checks import check_state, check_steps, closed, opened, refuse_others, whole
from .compiling import untraced
from .losses.history import LossHistory


class AdaptiveScheduler(early_end.KnowsItsEnd):
    """A schedule that looks at the run; the base class of AutoWU's, AutoLRS's and SALSA's.

    A *scheduler step* is one call of ``step()``. That is one optimizer step, except under accelerate with N processes,
    which steps a prepared scheduler N times in a row per optimizer step (``ticks_per_step``).

    A subclass sets ``name``, ``state_version`` and ``state_key``, sets its attributes in its constructor, after this
    one's, and then calls ``_start``. It implements ``phase``, ``_advance``, ``_schedule``, ``_plan``, ``_plan_rest``,
    ``_state`` and ``_load_state``, and overrides what else it needs. Where it needs losses, ``_history`` is its
    ``LossHistory``, which it opens and closes, and to which ``_advance`` hands the loss.

    Args:
        optimizer: its parameter groups get the schedule's LR, times the ratio of the group's own LR to the optimizer's
            default ``lr``.
        num_training_steps: T, the scheduler steps of the whole run, at least 1.
        num_warmup_steps: in scheduler steps, less than T; what it limits is the subclass's business.

    Attributes:
        ticks_per_step: scheduler steps per optimizer step.

    Raises:
        ValueError: an argument is outside its limits, or the optimizer cannot be scheduled.
    """

    name: ClassVar[str]
    """In messages."""

    state_version: ClassVar[int]
    """Of its states; another version is refused."""

    state_key: ClassVar[str]
    """A key of its states that no other scheduler's states have."""

    can_wait: ClassVar[bool] = False
    """Whether its processes may be at different steps for a while, inside ``accelerator.join_uneven_inputs``."""

    has_report: ClassVar[bool] = False
    """Whether ``write_report`` writes files."""

    def __init__(self, optimizer: Optimizer, num_training_steps: int, num_warmup_steps: int = 0) -> None:
        enable()
        self.num_training_steps, self.num_warmup_steps = whole(num_training_steps), whole(num_warmup_steps)
        check_steps(self.num_training_steps, self.num_warmup_steps, None)
        self._ratios, self._own_lr = param_groups.lr_ratios(optimizer), param_groups.own_lr(optimizer)
        param_groups.refuse_to_maximize(optimizer, self.name)
        self._foreign_lr = param_groups.ForeignLR(self.name)
        self._had_weights = param_groups.have_weights(optimizer)  # the groups; those beyond were added
        param_groups.keep_own_lrs(optimizer)
        self.ticks_per_step, self.last_epoch = 1, 0  # the latter until torch's constructor sets it
        self._history: LossHistory | None = None  # of a subclass that takes losses in

    def _start(self, optimizer: Optimizer) -> None:
        """torch's constructor, which sets the first LRs; to be called when all attributes are set."""
        super().__init__(optimizer)
        early_end.watch(self)

    @property
    @abstractmethod
    def phase(self) -> str:
        """The state that the schedule is in."""

    @property
    def num_steps_lost(self) -> int:
        """The scheduler steps so far whose weights were given up by going back."""
        return 0

    @property
    def num_steps_looked(self) -> int:
        """Those of them that were made in search of an LR: each time, the last ones."""
        return self.num_steps_lost

    @abstractmethod
    def _advance(self, step: int, loss: Any) -> None:
        """Takes in what the optimizer step just done has shown, and decides.

        Args:
            step: the scheduler steps done, this one included; ``last_epoch`` does not count it yet.
            loss: as given to ``step``.
        """

    @abstractmethod
    def _schedule(self, step: int) -> float:
        """The LR after ``step`` scheduler steps, in optimizer units, for a parameter group of ratio 1."""

    @abstractmethod
    def _plan(self) -> None:
        """Fits the schedule to ``num_training_steps`` and ``ticks_per_step``."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What ``state_dict`` holds beside its head."""

    @abstractmethod
    def _load_state(self, state: dict[str, Any]) -> None:
        """Restores what ``_state`` returned; the head is restored already, the LRs are set afterwards."""

    @untraced
    def step(self, loss: Any = None, **others: Any) -> None:  # type: ignore[override]
        """Moves on by one scheduler step: takes in the loss of the optimizer step just done, decides, sets the LRs.

        Args:
            loss: the scalar loss of the optimizer step (a tensor or a number), for loops that call ``loss.backward()``
                themselves. None takes the one that ``accelerator.backward`` saw.

        Raises:
            ValueError: the loss is not a scalar, or has another name (others); there is none, and another schedule
                hears the same accelerator; the schedule lacks the length of an epoch; or a parameter group is gone.
            DivergedError: the parameters are infinite or NaN, and there is nothing to go back to.
        """
        if others:
            refuse_others(others)
        if len(self._ratios) != len(self.optimizer.param_groups):
            param_groups.match_ratios(self._ratios, self.optimizer, self._own_lr, self._had_weights)
        step = self.last_epoch + 1
        if self._step_count > 0:  # torch's constructor makes a first step, before which nothing has been done
            if step == 0:
                return self._begin()
            self._foreign_lr.look(self.optimizer, self._last_lr, step)
            self._advance(step, loss)
            if self._step_count > 1:
                self._step_count, self.last_epoch = self._step_count + 1, step
                return self._set_known_lrs()
            self.say_inherited()
        super().step()  # torch's own, which warns of a step before the optimizer's first

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The LR of every parameter group for the next step."""
        lr = self._schedule(self.last_epoch)
        return [lr * ratio for ratio in self._ratios]

    def _begin(self) -> None:
        """Begins now: SequentialLR takes torch's first step back, and steps to 0 when this schedule's turn comes."""
        self.last_epoch = 0
        if self._history is not None:
            self._history.forget_earlier()
        self._set_lrs()

    def _set_lrs(self) -> None:
        param_groups.match_ratios(self._ratios, self.optimizer, self._own_lr, self._had_weights)
        self._set_known_lrs()

    def _set_known_lrs(self) -> None:
        self._last_lr = lrs = self.get_lr()  # type: ignore[assignment]
        param_groups.set_lrs(self.optimizer, lrs)

    def prepared(self, ticks_per_step: int, optimizers: Sequence[Any]) -> None:
        """Tells how accelerate wraps this scheduler and its optimizer; called by ``accelerator.prepare``. A ValueError
        where the schedule cannot work with such an optimizer.

        Args:
            ticks_per_step: how often in a row the scheduler is stepped for one optimizer step, at least 1.
            optimizers: the optimizer, with its wraps.
        """
        param_groups.match_ratios(self._ratios, self.optimizer, self._own_lr, self._had_weights)
        for optimizer in optimizers:
            self.meet(optimizer)
        self.ticks_per_step = ticks_per_step
        self._fit_warmup()
        self._plan()

    def meet(self, optimizer: Any) -> None:
        """Tells of the wraps of its optimizer; a ValueError where the schedule cannot work with these."""

    @property
    def takes_losses(self) -> bool:
        """Whether the losses of the steps to come are needed."""
        return False

    def flush(self) -> None:
        """Gathers what only this process has seen; with several processes, one collective that all must join."""
        if self._history is not None:
            self._history.flush()

    def pending_losses(self) -> Tensor:
        """(k,), float64: the losses of this process that were not gathered yet."""
        return torch.empty(0, dtype=torch.float64) if self._history is None else self._history.pending()

    def set_pending_losses(self, losses: Tensor) -> None:
        """Replaces the losses of this process that were not gathered yet by (k,), k the same on every process."""
        if self._history is not None:
            self._history.set_pending(losses)

    def hold_tests(self, held: bool) -> None:
        """Holds back what needs all processes, because some may be ahead, or lets it go on; see ``catch_up``."""

    def catch_up(self) -> None:
        """Takes this process to the step of the one that is furthest; all processes must join."""

    def set_steps_per_epoch(self, steps: int | None) -> None:
        """Tells an epoch's scheduler steps, where it was made without, or None; a ValueError where it needs others."""

    def restart(self, num_training_steps: int) -> str:
        """Starts anew, before its first step: for a run resumed without this schedule's state.

        Args:
            num_training_steps: the scheduler steps that are left, at least 1; fewer are a ValueError.

        Returns:
            What it does instead of going on, as the end of a sentence.
        """
        self.num_training_steps = whole(num_training_steps)
        check_steps(self.num_training_steps, 0, None)
        self._fit_warmup()
        done = self._plan_rest()
        self._set_lrs()
        return done

    @abstractmethod
    def _plan_rest(self) -> str:
        """As ``_plan``, without an error where few steps are left; what it does, as the end of a sentence."""

    def log_values(self) -> dict[str, float]:
        """What the training logs get beside the loss."""
        return {}

    def lr_in_words(self) -> str:
        """What a model card says in the place of the learning rate that the optimizer was given."""
        return f"chosen by {self.name}"

    def write_report(
        self, folder: str, logged_losses: Sequence[Sequence[float]] = (), file: bool = True, picture: bool = True
    ) -> None:
        """Writes decision and evidence into a folder, as a file and a picture; logged are pairs of step and loss."""

    def claim_report(self, folder: str) -> None:
        """Settles the name under which ``write_report`` will write into a folder; other schedules take others."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit; loads with ``torch.load(weights_only=True)``. No collective."""
        head = {"version": self.state_version, "last_epoch": self.last_epoch, "step_count": self._step_count}
        return {**head, **closed({**self._state(), "added": param_groups.added_ones(self._ratios, self._had_weights)})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what ``state_dict`` returned; a ValueError where it is another scheduler's, or version's."""
        check_state(state_dict, type(self).__name__, self.state_version, self.state_key)
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["step_count"]
        state = opened(state_dict)
        param_groups.restore_added(self._ratios, self.optimizer, self._own_lr, state.get("added"), self._had_weights)
        self._load_state(state)
        self._set_lrs()
        early_end.watch(self)
