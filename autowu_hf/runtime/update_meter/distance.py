"""How far the weights get in how many steps of the optimizer."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from .. import collective
from ..compiling import untraced
from .meter import UpdateMeter


class Distance:
    """Measures, between ``start`` and ``stop``, how far the weights are from where they began. It counts the
    optimizer's own steps: a loop may step its schedule more often, once a micro-batch, or where a step was skipped.

    Args:
        meter: of the optimizer; it takes the sketches.
    """

    def __init__(self, meter: UpdateMeter) -> None:
        self._meter = meter
        self._sketch: list[float] = []
        self._kind = ""
        self._num_steps: int | None = None
        self._hook: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the hook, which belongs to this process and its optimizer."""
        return {**self.__dict__, "_hook": None, "was_counting": self._hook is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        was_counting = state.pop("was_counting")
        self.__dict__.update(state)
        if was_counting:
            self._count()

    def start(self) -> None:
        """Begins at the weights as they are now."""
        self._kind, self._sketch = self._meter.kind_of_sketch, self._meter.sketch().tolist()
        self._num_steps = 0
        self._count()

    def stop(self) -> None:
        """Forgets where it began."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._num_steps, self._sketch, self._kind = None, None, [], ""

    def measured(self, num_steps: int) -> tuple[float, int] | None:
        """The main process's distance, and the optimizer steps that were taken to it; None where other tensors or other
        processes began, or no step was taken. One collective.

        Args:
            num_steps: as many as the schedule counts, for a state that does not say it.
        """
        taken = num_steps if self._num_steps is None else self._num_steps
        if not self._sketch or taken < 1 or self._kind != self._meter.kind_of_sketch:
            return None
        then = torch.tensor(self._sketch, dtype=torch.float64, device="cpu")
        distance = (self._meter.sketch() - then).norm().reshape(1)
        return float(collective.gather_rows(distance)[0]), taken

    def _count(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        this = weakref.ref(self)  # the optimizer must not keep it alive

        @untraced
        def count(*args: Any) -> None:
            distance = this()
            if distance is None or distance._num_steps is None or distance._meter.rests:
                return
            distance._num_steps += distance._meter.ends_step()

        self._hook = self._meter.optimizer.register_step_post_hook(count)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, names and lists only."""
        return {"sketch": [*self._sketch], "kind": self._kind, "num_taken": self._num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned; a state of an older release has no ``num_taken``."""
        self.stop()
        self._sketch, self._kind, self._num_steps = [*state["sketch"]], state["kind"], state.get("num_taken")
        if self._num_steps is not None:
            self._count()
