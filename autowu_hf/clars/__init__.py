"""CLARS (Huo et al. 2020, arXiv 2002.01576): an optimizer with a rate per layer."""

from .hooks import Hook as _Hook  # models that were pickled with this package's 0.1.0 name _Hook here
from .optimizer import CLARS
from .per_sample import per_sample_gradient_norms

__all__ = ["CLARS", "_Hook", "per_sample_gradient_norms"]
