"""The options of SALSA: their defaults and their checks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..runtime.checks import check_count, check_number, make_plain

_FEWEST_SAMPLES = 16
_MOST_SAMPLES, _LONGEST_INTERVAL = 1000, 100
_RUN_PER_SAMPLES = 56  # a run's first test comes after 8 / 56 of it, as in the authors' 150 epochs of CIFAR-10


@dataclass(frozen=True)
class SalsaSettings:
    """The options of ``get_salsa_schedule``, checked; they are explained there.

    Raises:
        ValueError: an option is outside its limits.
    """

    initial_lr: float | None = None
    smoothing: float = 0.1
    line_search: bool = True
    drop_factor: float = 10.0
    significance: float = 0.05
    keep: float = 0.125
    min_samples: int | None = None
    test_every: int | None = None

    def __post_init__(self) -> None:
        make_plain(self, counts=("min_samples", "test_every"))
        for name in ("initial_lr", "smoothing", "drop_factor", "significance", "keep"):
            if getattr(self, name) is not None or name != "initial_lr":
                check_number(name, getattr(self, name))
        for name in ("min_samples", "test_every"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), minimum=1)
        if not isinstance(self.line_search, bool):
            raise ValueError(f"line_search must be True or False, got {self.line_search!r}")
        if self.initial_lr is not None and not 0.0 < self.initial_lr < math.inf:
            raise ValueError(f"initial_lr is {self.initial_lr}, but must be positive; None takes the optimizer's own")
        if not 0.0 < self.smoothing <= 1.0:
            raise ValueError(f"smoothing is {self.smoothing}, but must be in (0, 1]; the default is 0.1")
        if not 1.0 < self.drop_factor < math.inf:
            raise ValueError(f"drop_factor is {self.drop_factor}, but must be more than 1; the default is 10")
        if not 0.0 < self.significance < 1.0:
            raise ValueError(f"significance is {self.significance}, but must be in (0, 1); the default is 0.05")
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"keep is {self.keep}, but must be in (0, 1]; the default is 1/8")
        if self.min_samples is not None and self.min_samples < _FEWEST_SAMPLES:
            raise ValueError(
                f"min_samples is {self.min_samples}, but must be {_FEWEST_SAMPLES} at least, for a variance from the "
                "means of batches; None fits it to the run"
            )

    def resolve_min_samples(self, steps: int) -> int:
        """The samples that a test needs in a run of so many optimizer steps."""
        return self.min_samples or min(max(steps // _RUN_PER_SAMPLES, _FEWEST_SAMPLES), _MOST_SAMPLES)

    def resolve_interval(self, steps: int) -> int:
        """The optimizer steps between two tests in a run of so many."""
        return self.test_every or min(max(self.resolve_min_samples(steps) // 10, 1), _LONGEST_INTERVAL)
