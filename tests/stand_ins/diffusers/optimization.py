from enum import Enum

from torch.optim.lr_scheduler import LambdaLR


class SchedulerType(Enum):
    LINEAR = "linear"
    CONSTANT = "constant"


def get_linear_schedule_with_warmup(optimizer, num_warmup_steps, num_training_steps, last_epoch=-1):
    return LambdaLR(optimizer, lambda step: 1 - step / num_training_steps, last_epoch=last_epoch)


def get_constant_schedule(optimizer, last_epoch=-1):
    return LambdaLR(optimizer, lambda step: 1, last_epoch=last_epoch)


TYPE_TO_SCHEDULER_FUNCTION = {
    SchedulerType.LINEAR: get_linear_schedule_with_warmup,
    SchedulerType.CONSTANT: get_constant_schedule,
}


def get_scheduler(
    name,
    optimizer,
    step_rules=None,
    num_warmup_steps=None,
    num_training_steps=None,
    num_cycles=1,
    power=1.0,
    last_epoch=-1,
):
    name = SchedulerType(name)
    function = TYPE_TO_SCHEDULER_FUNCTION[name]
    if name == SchedulerType.CONSTANT:
        return function(optimizer, last_epoch=last_epoch)
    if num_warmup_steps is None or num_training_steps is None:
        raise ValueError(f"{name} requires `num_warmup_steps` and `num_training_steps`")
    return function(
        optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_training_steps, last_epoch=last_epoch
    )
