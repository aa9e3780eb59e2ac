"""The losses since the switch, and what they were at the start, for a schedule that can do without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ...runtime import collective
from ...runtime.losses.history import Array, LossHistory
from .attempt import window


class Heard:
    """Takes losses in without a warning or an error, and gathers them where it is time.

    Args:
        optimizer: of the run.
        models: called for those of the run, which after a resume are known by the losses only.

    Attributes:
        history: the last ones.
        starts: the levels of the run's first losses, each with the number of losses that it is of.
        since: the optimizer steps done when it began to listen, or last began anew.
    """

    def __init__(self, optimizer: Optimizer, models: Callable[[], Sequence[nn.Module]]) -> None:
        self.history = LossHistory(optimizer, is_quiet=True)
        self.starts: list[tuple[float, int]] = []
        self.since = self._gathered_at = self._num_before = 0
        self._models = models

    def models(self) -> Sequence[nn.Module]:
        """Those of the run."""
        return self._models() or self.history.models()

    @property
    def losses(self) -> Array:
        """(n,): those that were gathered, one per optimizer step."""
        return self.history.gathered

    @property
    def first(self) -> float:
        """The level of the run's very first losses; infinite where it is not known."""
        return self.starts[0][0] if self.starts else math.inf

    def begin(self, step: int, starts: Sequence[tuple[float, int]] = ()) -> None:
        """Listens from ``step`` on."""
        self.starts = [*starts]
        self.history.open()
        self.begin_anew(step)

    def begin_anew(self, step: int) -> None:
        """Forgets the losses up to ``step``."""
        self.history.reset()
        self.since, self._gathered_at, self._num_before = step, step, 0

    def end(self) -> None:
        """Listens no more."""
        self.history.close()
        self.history.reset()

    def observe(self, loss: Any) -> None:
        """Takes in the loss of one more optimizer step, as handed to the schedule."""
        try:
            self.history.observe(loss)
        except ValueError:  # what is no loss has done no harm since the switch, and does none now
            self.history.reset()

    def gather(self, step: int, num_steps: int) -> bool:
        """Gathers the new losses; all processes must join.

        Args:
            step: the optimizer steps done.
            num_steps: those of the whole run.

        Returns:
            Whether there are any on all processes: a loop may hand them over only until the switch.
        """
        is_everywhere = self.flush()
        if not is_everywhere or 2 * (len(self.losses) - self._num_before) < step - self._gathered_at:
            return False
        self.history.gathered = self.losses[-2 * window(num_steps) :]
        self._gathered_at, self._num_before = step, len(self.losses)
        return True

    def flush(self) -> bool:
        """Gathers the new losses, if all processes have as many; whether they have. All must join."""
        num = len(self.history.pending())
        fewest, most = collective.gather_max([-num, num])
        if most == -fewest:
            self.history.flush()
        return most == -fewest

    def state_dict(self) -> dict[str, Any]:
        """Numbers, and the losses."""
        before = [self.since, self._gathered_at, self._num_before]
        return {"before": before, "starts": [[*start] for start in self.starts], "losses": self.history.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned, and listens."""
        self.begin(0, [(first, num) for first, num in state.get("starts", [])])
        self.since, self._gathered_at, self._num_before = state["before"]
        self.history.load_state_dict(state["losses"])
