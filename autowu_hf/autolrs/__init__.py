"""AutoLRS (Jin et al. 2021, arXiv 2105.10762): stages of search and training."""

from ..runtime.methods import register_method
from .factory import get_autolrs_schedule
from .scheduler import AutoLRSScheduler

register_method("autolrs", get_autolrs_schedule, is_adaptive=True)

__all__ = ["AutoLRSScheduler", "get_autolrs_schedule"]
