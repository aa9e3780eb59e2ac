"""The snapshots after the switch: earlier weights, and while these are tried, the later ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torch import nn

from ..runtime import collective
from ..runtime.param_groups import Obstacle
from .rewind import Rewind

logger = logging.getLogger(__name__)


class Kept(Rewind):
    """Snapshots to go back to by their steps; where there is no room for them, none are taken, and that is all."""

    @classmethod
    def after(cls, warm_up: Rewind, models: Callable[[], Sequence[nn.Module]]) -> Kept:
        """For the optimizer, with the options, and with what those of the warm-up know about what changes.

        Args:
            warm_up: earlier snapshots of the run.
            models: called for the models whose buffers are in these.
        """
        w = warm_up
        kept = cls(w._optimizer, models, w._mode, w._folder.parent, w._memory_share, w._looks_on, w._in_checkpoint)
        kept._untrained = w._untrained
        return kept

    @property
    def step(self) -> int | None:
        """The steps done at the oldest of them; None where there is none."""
        return self.snapshots[0].step if self.snapshots else None

    def turn_off(self, obstacle: Obstacle) -> None:
        """Goes on without them; the main process says why."""
        self.is_on = False
        self.drop()
        if collective.is_main_process():
            logger.info("AutoWU does not watch the losses after the switch: %s", obstacle.reason)

    def renew(self, step: int) -> None:
        """Takes one after ``step`` steps, in the place of the oldest."""
        self._spare = self.snapshots.pop(0).discard()
        self._take(step)

    def keep_only(self, step: int) -> None:
        """Drops those of other steps."""
        for stored in self.snapshots:
            if stored.step != step:
                self._spare = stored.discard() or self._spare
        self.snapshots = [stored for stored in self.snapshots if stored.step == step]

    def go_to(self, step: int) -> bool:
        """Restores the one that was taken after ``step`` steps; False where it is gone, or not finite, in the place of
        which another one is restored, if that is finite; all processes must join.
        """
        is_there = self._everywhere(any(stored.step == step for stored in self.snapshots))
        return is_there and self.restore(lambda other: float(other != step), 0.0) == step
