"""The parameter groups of an optimizer: their learning rates, and the optimizers behind its wraps."""

from .added import added_ones, drop_empty, have_weights, match_ratios, restore_added
from .flat import cut, num_tensors
from .foreign import ForeignLR, ForeignLRWarning
from .groups import (
    Obstacle,
    common_lr,
    device_of,
    innermost,
    keep_own_lrs,
    layers,
    lr_ratios,
    own_lr,
    partitioned_by,
    refuse_layer_wise,
    refuse_to_maximize,
    set_lrs,
    states_of,
    weights_out_of_reach,
)
from .stepped import Stepped
from .zero import parameters_of, shares_out_of_reach, trained_ids, zero_of

__all__ = [
    "ForeignLR",
    "ForeignLRWarning",
    "Obstacle",
    "Stepped",
    "added_ones",
    "common_lr",
    "cut",
    "device_of",
    "drop_empty",
    "have_weights",
    "innermost",
    "keep_own_lrs",
    "layers",
    "lr_ratios",
    "match_ratios",
    "num_tensors",
    "own_lr",
    "parameters_of",
    "partitioned_by",
    "refuse_layer_wise",
    "refuse_to_maximize",
    "restore_added",
    "set_lrs",
    "shares_out_of_reach",
    "states_of",
    "trained_ids",
    "weights_out_of_reach",
    "zero_of",
]
