"""SALSA (Zhang et al. 2020, arXiv 2002.10597): a line search, then drops by a test of stationarity."""

from ..runtime.methods import register_method
from .factory import get_salsa_schedule
from .scheduler import SalsaScheduler

register_method("salsa", get_salsa_schedule, is_adaptive=True)

__all__ = ["SalsaScheduler", "get_salsa_schedule"]
