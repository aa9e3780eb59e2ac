"""AutoWU (Kim et al. 2021, arXiv 2107.05855): the schedule that finds its peak LR and its warm-up by itself."""

from ..runtime.methods import register_method
from .factory import get_autowu_schedule
from .reporting.plotting import plot_autowu
from .scheduler import AutoWUScheduler

register_method("autowu", get_autowu_schedule, is_adaptive=True)

__all__ = ["AutoWUScheduler", "get_autowu_schedule", "plot_autowu"]
