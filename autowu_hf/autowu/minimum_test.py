"""Has the loss passed its minimum? P_min, the vote, patience and t* of the paper's 2.1.2, eqs. (3) to (5)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..loss_curve import divergence
from ..loss_curve.empty_start import without_empty_start
from ..loss_curve.gp import GRID, Array, FastGP, GPParameters, Posterior
from ..loss_curve.minimum_and_cliff import cliff_place, cliff_probability, minimum_place, minimum_probability
from ..loss_curve.spikes import usable
from . import verdict
from .peak_rule import PeakRule
from .settings import AutoWUSettings
from .verdict import MinimumTestRecord

_MAX_SUBSET = 500


class LossCurveEngine(Protocol):
    """What the test needs of a GP engine: ``FastGP`` or ``GPyTorchGP``."""

    def fit(self, x: Array, y: Array) -> GPParameters: ...

    def posteriors(self, params: GPParameters, subsets: Sequence[tuple[Array, Array]]) -> list[Posterior]: ...


class MinimumTest:
    """The minimum test of the warm-up: everything it remembers from test to test.

    Args:
        settings: the options; of these ``confidence``, ``patience``, ``num_tests``, ``gp_engine``, ``standardize`` and
            ``seed`` are used here.
        rule: says whether the tests look for the minimum or for the cliff; None: the rule of the settings.
    """

    def __init__(self, settings: AutoWUSettings, rule: PeakRule | None = None) -> None:
        self.settings = settings
        self.rule = PeakRule(settings.rule) if rule is None else rule
        self.records: list[MinimumTestRecord] = []
        self._engine: LossCurveEngine
        if settings.gp_engine == "gpytorch":
            from ..loss_curve.gpytorch_gp import GPyTorchGP

            # The paper's sizes (2.1.2): C_0 has at most 100 losses, the other subsets 500: all of a short curve.
            self._engine = GPyTorchGP()
            self._fit_size, self._subset_share, self._fewest = 100, 1.0, 2
        else:
            # A converged fit can use more losses; subsets of 80 % differ, so that the vote is not one test repeated.
            self._engine = FastGP()
            self._fit_size, self._subset_share, self._fewest = 500, 0.8, 10

    @property
    def fewest_losses(self) -> int:
        """The losses that a test needs to say anything."""
        return self._fewest

    def has_passed(self, cap: int) -> bool:
        """Whether the warm-up is over; see ``verdict.has_passed``.

        Args:
            cap: the longest warm-up, in scheduler steps.
        """
        return verdict.has_passed(self.records, self.settings, self.rule.span(cap))

    @property
    def minimum_step(self) -> float | None:
        """The estimate of the minimum's step, in scheduler steps (``MinimumTestRecord``); None before there is one.

        It is the last test's. The cliff rule, which looks on when the minimum has passed, takes that of the test by
        which it had: what the losses do later may blur it. Where the minimum has not passed, it is yet to come.
        """
        if not self.records:
            return None
        last = self.records[-1]
        if not self.rule.is_cliff:
            return last.minimum_step
        record = self._sure
        return float(last.step) if record is None else record.minimum_step

    @property
    def has_found(self) -> bool:
        """Whether a test has been sure of a minimum that lies further below the start than the losses' noise, and none
        has taken it back.
        """
        return self._sure is not None and self._sure.gain > math.sqrt(self._sure.noise)

    @property
    def _sure(self) -> MinimumTestRecord | None:
        """The test by which the minimum had passed, else the last one if it is sure of it."""
        record = verdict.minimum_passed(self.records, self.settings)
        if record is None and self.records and verdict.is_positive(self.records[-1].p_min, self.settings):
            return self.records[-1]
        return record

    @property
    def cliff_step(self) -> float | None:
        """The estimate of the cliff's step, in scheduler steps; None before there is one. Where no test is sure of a
        cliff, it is yet to come.
        """
        if not self.records:
            return None
        last = self.records[-1]
        return last.cliff_step if last.positive or last.diverged else float(last.step)

    @property
    def minimum_steps(self) -> list[float]:
        """What t* may turn out to be, as far as is known: the estimate and that of the last test."""
        return [] if self.minimum_step is None else [self.minimum_step, self.records[-1].minimum_step]

    @property
    def inconclusive(self) -> bool:
        """Whether the last test was negative only for lack of its newest loss, a spike, perhaps.

        Such a test does not count; the scheduler tests again one step later.
        """
        return bool(self.records) and verdict.is_inconclusive(self.records[-1])

    def run(self, losses: Array, num_new: int, step: int, is_last: bool = False) -> MinimumTestRecord:
        """Tests whether the loss has passed its minimum; the record is appended to ``records``.

        Args:
            losses: (n,), one per optimizer step since the start, in the loss's own unit. Non-finite losses, and
                those of 0 at the start, keep their place on the axis and leave the fit.
            num_new: how many of them are new since the last test. When all of these are non-finite the run has
                diverged, which counts as the minimum being in the past.
            step: t, the scheduler steps done.
            is_last: makes do with three losses; for the cap, where something has to be decided.

        Returns:
            The record.
        """
        n = len(losses)
        diverged = divergence.is_diverged(losses, num_new)
        losses = without_empty_start(losses)
        top = divergence.ceiling(losses) if self.settings.guard else math.inf
        used = usable(losses, self.settings.standardize)
        if int(used.sum()) >= (min(3, self._fewest) if is_last else self._fewest):
            record = self._test(losses, used, step, diverged, top)
        else:
            # Too few to say anything. A run that diverged at once goes back to where it started.
            p = [float(diverged)] * self.settings.num_tests
            place = 0.0 if diverged else 1.0
            record = self._record(n, step, p, place, p, place, math.nan, _NO_PARAMETERS)
        spike_at_end = bool(np.isfinite(losses[-1:]).any() and not used[-1:].any())
        above = is_over = False
        if self.settings.guard:
            above = divergence.is_above(losses, num_new, top)
            is_over = diverged or (above and bool(self.records) and self.records[-1].above)
        record = dataclasses.replace(record, spike_at_end=spike_at_end, above=above, diverged=is_over)
        self.records.append(record)
        return record

    def _test(
        self, losses: Array, used: npt.NDArray[np.bool_], step: int, diverged: bool, top: float
    ) -> MinimumTestRecord:
        n = len(losses)
        x, y = np.arange(n) / n, losses
        centre, scale = 0.0, 1.0
        if self.settings.standardize:
            centre, scale = float(losses[used].mean()), float(losses[used].std()) or 1.0
            y = (losses - centre) / scale
        # How far above the ceiling is no matter: it would only hide the shape of the rest.
        y = np.minimum(y, (top - centre) / scale)
        rng = np.random.default_rng([self.settings.seed, n])

        def subset(size: int) -> tuple[Array, Array]:
            # Drawn from all places on the axis, so that a loss more or less in use changes no other.
            chosen = np.arange(n) if size >= n else np.sort(rng.choice(n, size, replace=False))
            chosen = chosen[used[chosen]]
            return x[chosen], y[chosen]

        params = self._engine.fit(*subset(self._fit_size))
        size = min(math.ceil(self._subset_share * n), _MAX_SUBSET)
        num_tests = self.settings.num_tests
        posteriors = self._engine.posteriors(params, [subset(size) for _ in range(num_tests if size < n else 1)])
        if size >= n:  # equal subsets give equal answers
            posteriors *= num_tests
        # Where the newest losses are not finite, the curve is known up to the last one that is.
        known = (x[used][-1] + 1.0 / n if diverged else 1.0) >= GRID
        p_min = [1.0 if diverged else minimum_probability(posterior) for posterior in posteriors]
        # The GP may take a break in a short curve for noise, and steps from loss to loss a steep curve.
        noise = min(math.sqrt(params.noise), divergence.noise(y[used]))
        p_cliff = [1.0 if diverged else cliff_probability(posterior, noise) for posterior in posteriors]
        blur = noise if self.rule.is_cliff else 0.0
        minima = [minimum_place(posterior.mean[known], blur) for posterior in posteriors]
        cliffs = [min(cliff_place(posterior.mean, noise), float(GRID[known][-1])) for posterior in posteriors]
        gain = scale * sum(float(posterior.mean[0] - posterior.mean.min()) for posterior in posteriors) / num_tests
        unit = GPParameters(params.outputscale * scale**2, params.noise * scale**2, params.mean * scale + centre)
        return self._record(n, step, p_min, sum(minima) / num_tests, p_cliff, sum(cliffs) / num_tests, gain, unit)

    def _record(
        self,
        num_losses: int,
        step: int,
        p_min: list[float],
        minimum: float,
        p_cliff: list[float],
        cliff: float,
        gain: float,
        params: GPParameters,
    ) -> MinimumTestRecord:
        return MinimumTestRecord(
            step=step,
            num_losses=num_losses,
            p_min=p_min,
            minimum_step=step * minimum,
            p_cliff=p_cliff,
            cliff_step=step * cliff,
            gain=gain,
            positive=verdict.is_positive(p_cliff if self.rule.is_cliff else p_min, self.settings),
            diverged=False,
            above=False,
            spike_at_end=False,
            outputscale=params.outputscale,
            noise=params.noise,
            mean=params.mean,
        )

    def state_dict(self) -> dict[str, Any]:
        """Records and, for the "gpytorch" engine, what its next fit goes on from."""
        engine = self._engine.state_dict() if hasattr(self._engine, "state_dict") else None
        return {"records": [dataclasses.asdict(record) for record in self.records], "engine": engine}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self.records = [MinimumTestRecord(**record) for record in state["records"]]
        if state["engine"] is not None and hasattr(self._engine, "load_state_dict"):
            self._engine.load_state_dict(state["engine"])


_NO_PARAMETERS = GPParameters(outputscale=math.nan, noise=math.nan, mean=math.nan)
