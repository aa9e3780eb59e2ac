"""AutoWU for transformers and accelerate: a schedule that finds its peak learning rate and its warm-up by itself.

``import autowu_hf`` makes ``TrainingArguments(lr_scheduler_type="autowu")`` work; see ``get_autowu_schedule`` for
accelerate and plain PyTorch loops.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from . import console
from ._version import __version__
from .autolrs import AutoLRSScheduler, get_autolrs_schedule
from .autowu import AutoWUScheduler, get_autowu_schedule, plot_autowu
from .clars import CLARS, per_sample_gradient_norms
from .registration import register, unregister
from .rex import get_rex_schedule_with_warmup
from .runtime.finite import DivergedError
from .runtime.loop_watch import LoopWarning
from .runtime.losses.doubts import DividedGradientsWarning, LossOfStepWarning
from .runtime.losses.history import AccumulatedLossWarning, MissingLossWarning
from .runtime.param_groups import ForeignLRWarning
from .salsa import SalsaScheduler, get_salsa_schedule
from .suggest import SuggestedLR, suggest_lr

if TYPE_CHECKING:
    from .autolrs.validation import AutoLRSValidationCallback
    from .integrations.trainer_callback import AutoWUCallback
    from .salsa.trainer import SalsaTrainer


__all__ = [
    "CLARS",
    "AccumulatedLossWarning",
    "AutoLRSScheduler",
    "AutoLRSValidationCallback",
    "AutoWUCallback",
    "AutoWUScheduler",
    "DivergedError",
    "DividedGradientsWarning",
    "ForeignLRWarning",
    "LoopWarning",
    "LossOfStepWarning",
    "MissingLossWarning",
    "SalsaScheduler",
    "SalsaTrainer",
    "SuggestedLR",
    "__version__",
    "get_autolrs_schedule",
    "get_autowu_schedule",
    "get_rex_schedule_with_warmup",
    "get_salsa_schedule",
    "per_sample_gradient_norms",
    "plot_autowu",
    "register",
    "suggest_lr",
    "unregister",
]


# Imported when they are first asked for: transformers' Trainer takes seconds to import.
_LAZY = {
    "AutoLRSValidationCallback": ".autolrs.validation",
    "AutoWUCallback": ".integrations.trainer_callback",
    "SalsaTrainer": ".salsa.trainer",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        if importlib.util.find_spec("transformers") is None:
            raise ImportError(
                f"autowu_hf.{name} is a part of transformers' Trainer, which is not installed; install it with: "
                "pip install 'transformers>=4.57,<6'"
            )
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


console.install()
register()
