"""What one optimizer step does to the weights, and what its gradient says about it; looked at from outside."""

from .meter import UpdateMeter, tell_clipping
from .update import Update

__all__ = ["Update", "UpdateMeter", "tell_clipping"]
