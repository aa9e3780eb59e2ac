"""The options of AutoLRS and the stages of a run (Jin et al. 2021, arXiv 2105.10762, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..runtime.checks import check_count, check_number, make_plain

_FEWEST_LOSSES = 5
_NUM_VALIDATIONS = 16
_USUAL_FIRST_STAGE = 1000
_USUAL_SHARE = 30  # of a run in which the stages double three times, the first one's training takes 1 / 30


@dataclass(frozen=True)
class AutoLRSSettings:
    """The options of ``get_autolrs_schedule``, checked; they are explained there.

    Raises:
        ValueError: an option is outside its limits.
    """

    min_lr: float = 1e-5
    max_lr: float = 0.1
    first_stage: int | None = None
    longest_stage: int = 8000
    num_candidates: int = 10
    kappa: float = 1e6

    def __post_init__(self) -> None:
        make_plain(self, counts=("first_stage", "longest_stage", "num_candidates"))
        for name in ("min_lr", "max_lr", "kappa"):
            check_number(name, getattr(self, name))
        if not 0.0 < self.min_lr < self.max_lr < math.inf:
            raise ValueError(
                f"min_lr is {self.min_lr} and max_lr {self.max_lr}, but 0 < min_lr < max_lr must hold; the defaults "
                "are 1e-5 and 0.1"
            )
        check_count("num_candidates", self.num_candidates, minimum=2)
        for name in ("first_stage", "longest_stage"):
            value = getattr(self, name)
            if value is None and name == "first_stage":
                continue
            check_count(name, value, minimum=1)
            if value < _FEWEST_LOSSES * self.num_candidates:
                raise ValueError(
                    f"{name} is {value}, but must be {_FEWEST_LOSSES * self.num_candidates} at least: each of the "
                    f"{self.num_candidates} candidates is tried for 1/{self.num_candidates} of it, and needs "
                    f"{_FEWEST_LOSSES} losses; pass more, or fewer num_candidates"
                )
        if not 0.0 <= self.kappa < math.inf:
            raise ValueError(f"kappa is {self.kappa}, but must be finite and not negative; the default is 1e6")


@dataclass(frozen=True)
class Stage:
    """A search and the training that follows it, in optimizer steps.

    Args:
        start: those done when its search begins.
        candidate_steps: tau', the steps that each candidate is tried for.
        search_steps: those of all candidates.
        train_steps: tau.
        is_full: whether a stage as long as the longest came before, so that a validation loss is to be used.
    """

    start: int
    candidate_steps: int
    search_steps: int
    train_steps: int
    is_full: bool

    @property
    def end(self) -> int:
        """The optimizer steps done when its training ends."""
        return self.start + self.search_steps + self.train_steps

    @property
    def validation_places(self) -> list[int]:
        """The steps of a candidate after which its validation loss is taken: 16 of them, evenly spread."""
        n = min(_NUM_VALIDATIONS, self.candidate_steps)
        return [self.candidate_steps * (i + 1) // n for i in range(n)]


def shortest_stage(settings: AutoLRSSettings) -> int:
    """The fewest optimizer steps of a stage, search and training together."""
    return 2 * _FEWEST_LOSSES * settings.num_candidates


def plan_stages(steps: int, settings: AutoLRSSettings, start: int = 0, after: Stage | None = None) -> list[Stage]:
    """The stages of a run: tau doubles until it is ``longest_stage``, and the last one ends with the run.

    Args:
        steps: of the whole run, search included.
        settings: the options.
        start: the steps before the first stage.
        after: the stage that these follow; None where there is none.

    Returns:
        The stages, in order; together they take ``steps - start`` steps.

    Raises:
        ValueError: there are too few for a single stage.
    """
    n = settings.num_candidates
    shortest = shortest_stage(settings)
    room = steps - start
    if room < shortest:
        raise ValueError(
            f"AutoLRS has {room} steps for its stages, but needs {shortest} at least: {n} candidates of "
            f"{_FEWEST_LOSSES} steps, and as many steps of training; pass more steps, or fewer num_candidates"
        )
    tau = settings.first_stage
    if after is not None:
        tau = min(2 * after.train_steps, settings.longest_stage)
    elif tau is None:
        tau = min(max(room // _USUAL_SHARE, shortest), _USUAL_FIRST_STAGE, settings.longest_stage)
    stages: list[Stage] = []
    while room:
        tau = min(tau, room // 2)
        candidate_steps = tau // n
        left = room - n * candidate_steps - tau
        if left < shortest:  # too few for another stage
            tau, left = tau + left, 0
        is_full = after is not None and after.train_steps >= settings.longest_stage
        after = Stage(steps - room, candidate_steps, n * candidate_steps, tau, is_full)
        stages.append(after)
        room, tau = left, min(2 * tau, settings.longest_stage)
    return stages


def follow_up(stage: Stage, steps: int, settings: AutoLRSSettings) -> list[Stage]:
    """A stage, and those that follow it; the stage alone where there is no room for another.

    Args:
        stage: stays as it is.
        steps: of the whole run, search included.
        settings: the options.
    """
    if steps - stage.end < shortest_stage(settings):
        return [stage]
    return [stage, *plan_stages(steps, settings, stage.end, after=stage)]
