"""Every option of the schedule: its default and its checks; ``get_autowu_schedule`` explains them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..runtime.checks import check_count, check_name, check_number, make_plain, plain
from ..shapes import DECAY_FRACTION, DECAY_TYPES, GROWTHS, LRCurve

GP_ENGINES = ("fast", "gpytorch")
PEAK_RULES = ("minimum", "cliff")
_ENOUGH = 10

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "scale": False,
        "max_warmup_fraction": 0.5,
        "growth": "exponential",
        "decay_type": "cosine",
        "test_every": "epoch",
        "gp_engine": "gpytorch",
        "standardize": False,
        "peak_rule": "minimum",
        "rewind": False,
        "guard": False,
    },
}
"""Where a preset departs from the defaults of ``AutoWUSettings``. "paper" is the authors' recipe."""

RANGE_OPTIONS = ("min_lr", "max_lr", "growth", "max_warmup_fraction")
"""Options that describe a growth over a range; where one of them is given, the LRs are not laid around the scale."""


@dataclass(frozen=True)
class AutoWUSettings:
    """The options of ``get_autowu_schedule``, checked; they are explained there.

    Raises:
        ValueError: an option is outside its limits, or a name is unknown.
    """

    min_lr: float = 1e-5
    max_lr: float = 1.0
    max_warmup_fraction: float = 0.25
    growth: str = "quick_start"
    decay_type: str | None = None
    decay_fraction: float | None = None
    test_every: str | int = "auto"
    confidence: float = 0.95
    patience: int = 3
    num_tests: int = 5
    gp_engine: str = "fast"
    standardize: bool = True
    peak_rule: str | None = None
    rewind: bool | str | None = None
    rewind_dir: str | None = None
    rewind_memory: float = 0.5
    rewind_in_checkpoint: bool = True
    guard: bool = True
    scale: bool | None = None
    seed: int = 0
    report_dir: str | None = None

    def __post_init__(self) -> None:
        make_plain(self, counts=("patience", "num_tests", "seed", "test_every"))
        for name in ("min_lr", "max_lr"):
            check_number(name, getattr(self, name))
        if not 0.0 < self.min_lr < self.max_lr or not math.isfinite(self.max_lr):
            raise ValueError(
                f"min_lr must be positive and less than max_lr, got min_lr={self.min_lr} and max_lr={self.max_lr}; "
                "the warm-up grows the learning rate from min_lr towards max_lr"
            )
        shares = ["max_warmup_fraction", "confidence", "rewind_memory"]
        for name in shares if self.decay_fraction is None else [*shares, "decay_fraction"]:
            check_number(name, getattr(self, name))
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, both excluded, got {getattr(self, name)}")
        for name in ("patience", "num_tests"):
            check_count(name, getattr(self, name), minimum=1)
        check_count("seed", self.seed, minimum=0)
        check_name("growth", self.growth, tuple(GROWTHS))
        if self.decay_type is not None:
            check_name("decay_type", self.decay_type, DECAY_TYPES)
            if self.decay_fraction is not None and self.decay_type != "constant_then_cosine":
                raise ValueError(
                    f'decay_fraction is the share of decay_type="constant_then_cosine", got {self.decay_fraction} and '
                    f'decay_type="{self.decay_type}"; leave decay_fraction out, or ask for that type of decay, too '
                    '(preset="paper" has "cosine")'
                )
        check_name("gp_engine", self.gp_engine, GP_ENGINES)
        for name in ("standardize", "rewind_in_checkpoint", "guard", "scale"):
            if not isinstance(getattr(self, name), bool) and (name != "scale" or self.scale is not None):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.scale and not self.has_usual_range:
            raise _range_beside_scale({"min_lr": self.min_lr, "max_lr": self.max_lr})
        self._check_rewind()
        if self.report_dir is not None and (not isinstance(self.report_dir, str) or not self.report_dir):
            raise ValueError(f"report_dir must be the name of a folder, got {self.report_dir!r}")
        if isinstance(self.test_every, str):
            if self.test_every not in ("auto", "epoch"):
                raise ValueError(f'test_every must be "auto", "epoch" or a number of steps, got {self.test_every!r}')
        else:
            check_count("test_every", self.test_every, minimum=1)

    def _given_range(self) -> list[str]:
        return [name for name in RANGE_OPTIONS if getattr(self, name) != getattr(type(self), name)]

    @property
    def has_usual_range(self) -> bool:
        """Whether ``min_lr`` and ``max_lr`` are those that stand for no given range."""
        return {"min_lr", "max_lr"}.isdisjoint(self._given_range())

    @property
    def highest_lr(self) -> float:
        """``max_lr`` where it was given; else there is no limit."""
        return self.max_lr if self.max_lr != type(self).max_lr else math.inf

    @property
    def uses_scale(self) -> bool:
        """Whether the LRs are laid around the scale: ``scale``, or what stands for None."""
        return not self._given_range() if self.scale is None else self.scale

    def _check_rewind(self) -> None:
        if self.rewind not in (None, True, False, "disk") or type(self.rewind) in (int, float):
            raise ValueError(f'rewind must be True, False, "disk" or None, got {self.rewind!r}')
        if self.rewind_dir is not None and (not isinstance(self.rewind_dir, str) or self.rewind != "disk"):
            raise ValueError(
                f'rewind_dir must be the name of a folder, beside rewind="disk", got {self.rewind_dir!r} and '
                f"rewind={self.rewind!r}"
            )
        if self.peak_rule is not None:
            check_name("peak_rule", self.peak_rule, PEAK_RULES)
        if self.peak_rule == "cliff" and self.rewind is False:
            raise ValueError(
                'peak_rule="cliff" lets the loss rise before it goes back, so it needs rewind; leave rewind on, or use '
                'peak_rule="minimum"'
            )

    @property
    def rule(self) -> str:
        """The peak rule: ``peak_rule``, or what stands for None."""
        return self.peak_rule or ("minimum" if self.rewind is False else "cliff")

    @property
    def looks_on(self) -> bool:
        """Whether the warm-up goes on beyond the minimum, to the cliff."""
        return self.rule == "cliff"

    @classmethod
    def from_options(cls, preset: str | None, options: dict[str, Any]) -> AutoWUSettings:
        """The settings of a preset with some options replaced.

        Args:
            preset: a name of ``PRESETS``; None means "default".
            options: option -> value; None leaves the preset's value.

        Returns:
            The settings.

        Raises:
            ValueError: the preset or an option is unknown or outside its limits.
        """
        preset = "default" if preset is None else preset
        check_name("preset", preset, tuple(PRESETS))
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            check_name("option of lr_scheduler_type='autowu'", name, (*known, "preset", "steps_per_epoch"))
        given = {name: plain(value) for name, value in options.items() if value is not None}
        if given.get("scale") and not given.keys().isdisjoint(("min_lr", "max_lr")):
            raise _range_beside_scale(given)
        if "scale" not in given and not given.keys().isdisjoint(RANGE_OPTIONS):
            given["scale"] = False  # also where they are what they would be without
        return cls(**{**PRESETS[preset], **given})

    def longest_warmup(self, steps: float) -> int:
        """The longest warm-up of a run of so many optimizer steps, in optimizer steps.

        It is ``max_warmup_fraction`` of them; in short runs the ten that a test needs, or half of them.
        """
        return max(int(self.max_warmup_fraction * steps), min(_ENOUGH, int(steps / 2)), 1)

    def curve(self, num_training_steps: int, growth_steps: int) -> LRCurve:
        """The LRs of a run; the lengths are in scheduler steps, see ``LRCurve``."""
        return LRCurve(
            num_training_steps,
            growth_steps,
            min_lr=self.min_lr,
            max_lr=self.max_lr,
            growth=self.growth,
            decay_type=self.decay_type or ("rex" if self.decay_fraction is None else "constant_then_cosine"),
            decay_fraction=DECAY_FRACTION if self.decay_fraction is None else self.decay_fraction,
        )

    def curve_by_scale(
        self, num_training_steps: int, growth_steps: int, min_lr: float, max_lr: float, usual: tuple[str, float]
    ) -> LRCurve:
        """The same around the scale: over another range, with exponential growth, and ``usual``, a type and a share of
        the decay, where none was given.
        """
        curve = self.curve(num_training_steps, growth_steps)
        if self.decay_fraction is None:
            decay_type = self.decay_type or usual[0]
            curve = dataclasses.replace(curve, decay_type=decay_type, decay_fraction=usual[1])
        return dataclasses.replace(curve, min_lr=min_lr, max_lr=max_lr, growth="exponential")

    def resolve_interval(self, cap: int, steps_per_epoch: int | None) -> int | None:
        """The steps between two minimum tests.

        Args:
            cap: floor(rho_w T), the longest warm-up in steps.
            steps_per_epoch: steps in an epoch, None when unknown.

        Returns:
            The interval in steps, at least 1; None where "epoch" is asked for and the epoch's length is unknown.
        """
        if isinstance(self.test_every, int):
            return self.test_every
        if self.test_every == "epoch":
            return steps_per_epoch
        if steps_per_epoch is not None and cap >= 30 * steps_per_epoch:
            return steps_per_epoch
        return max(cap // 60, 1)


def _range_beside_scale(given: Mapping[str, Any]) -> ValueError:
    names = [name for name in ("min_lr", "max_lr") if name in given]
    return ValueError(
        "scale=True finds the range of the learning rates by itself, got "
        f"{' and '.join(f'{name}={given[name]}' for name in names)} beside it; leave that out, or scale=False"
    )
