"""What one optimizer step does to the weights, and what its gradient says about it; looked at from outside."""

from .backward_calls import tell_clipping
from .distance import Distance
from .meter import START_IS_GONE, UpdateMeter
from .obstacles import seem_clipped
from .trials import taken_back
from .update import Update

__all__ = ["START_IS_GONE", "Distance", "Update", "UpdateMeter", "seem_clipped", "taken_back", "tell_clipping"]
