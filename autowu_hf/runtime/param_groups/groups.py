"""The learning rates of an optimizer's parameter groups: their ratios, and setting them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import collective
from ..checks import require_finite

logger = logging.getLogger(__name__)


def lr_ratios(optimizer: Optimizer) -> list[float]:
    """The ratio of every group's LR to the optimizer's own, which the schedule keeps.

    Where all groups have the same LR, the ratio is the group's ``lr_scale``, if there is one: timm's layer-wise decay
    leaves it to the schedule to multiply by that. The log says so.

    Args:
        optimizer: any torch optimizer, or accelerate's wrap of one.

    Returns:
        One ratio per parameter group.

    Raises:
        ValueError: the LRs of all groups are 0, or one is not finite, or there is no common step to schedule.
    """
    own, lrs = own_lr(optimizer), _group_lrs(optimizer)
    scales = [float(group.get("lr_scale", 1.0)) for group in optimizer.param_groups]
    if len({*lrs}) > 1 or len({*scales}) == 1:  # the LRs carry them, or there is nothing to carry
        return [lr / own for lr in lrs]
    require_finite(scales)
    if collective.is_main_process():
        logger.info("the parameter groups keep their lr_scale, from %.3g to %.3g", min(scales), max(scales))
    return scales


def own_lr(optimizer: Optimizer) -> float:
    """The optimizer's own LR: its default ``lr`` where a group has it, else the largest of the groups'. Some optimizers
    have no default, and in others no group goes by it.

    Args:
        optimizer: any torch optimizer, or accelerate's wrap of one.

    Raises:
        ValueError: as in ``lr_ratios``.
    """
    if type(optimizer).__name__ == "DummyOptim":
        raise ValueError(
            "DeepSpeed makes the optimizer of its config later than this; pass accelerate.utils.DummyScheduler("
            "optimizer, lr_scheduler_callable=lambda optimizer: get_autowu_schedule(optimizer, num_training_steps))"
            ", or the factory of another schedule in its place"
        )
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps optimizers
    if hasattr(inner, "optimizer_dict"):
        refuse_layer_wise(inner)
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if not all("lr" in group for group in optimizer.param_groups):
        raise ValueError(
            f"{type(optimizer).__name__} has no lr in its parameter groups and finds its own, which a schedule cannot "
            "set; use an optimizer with an lr, or train without this schedule"
        )
    if any(group["lr"] is None for group in optimizer.param_groups):
        raise ValueError(
            f"{type(optimizer).__name__} has lr=None and finds its own, which a schedule would only replace; pass "
            "relative_step=False, warmup_init=False and any positive lr (Adafactor), or train without this schedule"
        )
    lrs = _group_lrs(optimizer)
    require_finite(lrs)
    if not max(lrs, default=0.0) > 0.0:
        raise ValueError(
            f"a parameter group must have a positive lr, got {', '.join(f'{lr:g}' for lr in lrs)}; pass any positive "
            "lr: the schedule keeps the ratios of the groups' learning rates, and zeros have none (the state of a "
            "finished run has them)"
        )
    return common_lr(optimizer, lrs)


def common_lr(optimizer: Optimizer, lrs: Sequence[float]) -> float:
    """The optimizer's own LR among those that its groups were given; see ``own_lr``."""
    default = innermost(optimizer).defaults.get("lr")  # DeepSpeed's ZeRO optimizers have no defaults of their own
    return float(default) if default is not None and float(default) in lrs and float(default) > 0.0 else max(lrs)


def _group_lrs(optimizer: Optimizer) -> list[float]:
    """Of every group, before any schedule."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def refuse_to_maximize(optimizer: Any, name: str) -> None:
    """Raises a ValueError where all groups of an optimizer maximise, for a schedule of that name goes by losses."""
    if optimizer.param_groups and all(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError(f"{name} minimises, but the optimizer has maximize=True; negate the loss instead")


def keep_own_lrs(optimizer: Optimizer) -> None:
    """Keeps the LRs that the user gave where one is a tensor: ``set_lrs`` fills that, and the optimizer's defaults and
    ``initial_lr`` may hold the very same.

    Args:
        optimizer: its defaults and its groups get tensors of their own.
    """
    defaults = innermost(optimizer).defaults
    for group in optimizer.param_groups:
        lr = group["lr"]
        if isinstance(lr, Tensor):
            if group.setdefault("initial_lr", lr) is lr:
                group["initial_lr"] = lr.detach().clone()
            if defaults.get("lr") is lr:
                defaults["lr"] = lr.detach().clone()


def innermost(optimizer: Any) -> Any:
    """The optimizer inside the wraps of it; see ``layers``."""
    return layers(optimizer)[-1]


def layers(optimizer: Any) -> list[Any]:
    """An optimizer and those inside it, outermost first.

    accelerate and DeepSpeed wrap optimizers, and so do SAM, Lookahead or Opacus. Whatever an optimizer calls the one
    that it wraps, that is an optimizer of the same parameters; one of some of them is only a part of it.

    Args:
        optimizer: of any kind.
    """
    found = [optimizer]
    while True:
        inside = _inside(found[-1])
        if inside is None or any(inside is outer for outer in found):
            return found
        found.append(inside)


def _inside(optimizer: Any) -> Any:
    inside = getattr(optimizer, "optimizer", None)
    if inside is not None:
        return inside
    others = [value for value in getattr(optimizer, "__dict__", {}).values() if isinstance(value, Optimizer)]
    return next((other for other in others if _parameter_ids(other) == _parameter_ids(optimizer)), None)


def _parts(optimizer: Any) -> list[Optimizer]:
    """The optimizers in its attributes, and in lists and dicts there, that have some of its parameters."""
    found: list[Optimizer] = []
    for value in getattr(optimizer, "__dict__", {}).values():
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        found += [other for other in inside if isinstance(other, Optimizer)]
    own = _parameter_ids(optimizer) if found else set()
    return [other for other in found if _parameter_ids(other) < own]


def _parameter_ids(optimizer: Any) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def states_of(optimizer: Any) -> list[Any]:
    """The states that an optimizer and those inside it keep for their parameters, each once: innermost first, and last
    those of its parts, where it hands some parameters to one optimizer and some to another.
    """
    found: list[Any] = []
    inside = [*reversed(layers(optimizer))]
    for layer in [*inside, *(part for outer in inside for part in _parts(outer))]:
        state = getattr(layer, "state", None)
        if isinstance(state, MutableMapping) and not any(state is other for other in found):
            found.append(state)
    return found


def device_of(optimizer: Optimizer) -> torch.device:
    """Where the model computes: the device of an optimizer's first parameter; the CPU where it has none.

    Args:
        optimizer: whose groups may be empty: Trainer makes an empty one where no weight decays, under LoRA say.
    """
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    device: torch.device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    return device


def partitioned_by(optimizer: Any) -> str | None:
    """The name of DeepSpeed's wrap around an optimizer; None without one."""
    for kind in map(type, layers(optimizer)):
        if kind.__module__.startswith("deepspeed.") or kind.__name__.startswith("DeepSpeed"):
            return kind.__name__
    return None


@dataclass(frozen=True)
class Obstacle:
    """Why something cannot work here, and what to do instead; both are parts of a sentence.

    Args:
        reason: "LOMO changes the weights inside the backward", say.
        remedy: "use another optimizer", say.
    """

    reason: str
    remedy: str


def weights_out_of_reach(optimizer: Any) -> Obstacle | None:
    """Why the weights of an optimizer, or its state, can neither be looked at whole nor be put back; None: they can.

    Args:
        optimizer: of any kind, with accelerate's and DeepSpeed's wraps or without.
    """
    wrap = partitioned_by(optimizer)
    if wrap is not None:
        return Obstacle(f"DeepSpeed's {wrap} may keep weights and state to itself", "use DDP or FSDP")
    names = {type(layer).__name__ for layer in layers(optimizer)}
    if names & {"Lomo", "AdaLomo"}:
        return Obstacle("LOMO changes the weights inside the backward", "use another optimizer")
    if "ZeroRedundancyOptimizer" in names:
        return Obstacle("ZeroRedundancyOptimizer keeps its state to itself", "use DDP without it or FSDP")
    return None


def refuse_layer_wise(dummy: object) -> NoReturn:
    """Raises the error for transformers' layer-wise optimizers (GaLore's, APOLLO's).

    Args:
        dummy: the stand-in for all of them, an optimizer or a scheduler.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"{type(dummy).__name__} steps every layer by itself inside the backward, so there is no common step to "
        "schedule; use an optimizer without layer-wise updates"
    )


def set_lrs(optimizer: Optimizer, lrs: Iterable[float | Tensor]) -> None:
    """Sets the LR of every parameter group; one that is a tensor (``capturable``) is filled in place.

    Args:
        optimizer: its ``param_groups`` are changed.
        lrs: one LR per group, in optimizer units.
    """
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        present = group["lr"]
        if type(present) is not float and isinstance(present, Tensor):  # the first is quick, and true in most runs
            present.fill_(lr)
        else:
            group["lr"] = lr
