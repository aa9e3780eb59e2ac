"""Puts one schedule of this package in the place of all that a script asks transformers or diffusers for."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..runtime.methods import METHODS
from ..runtime.wrapping import Function, Wrap, unwrap, wrap
from .late_import import forget, on_import

logger = logging.getLogger(__name__)

FACTORIES = re.compile(r"get_scheduler|get_(?!adafactor)\w*schedule(_with\w+)?")
"""The functions that return a schedule. Adafactor's has no say in the LR: it reports what the optimizer does."""


class EverySchedule:
    """Makes the functions of transformers and diffusers that return a schedule return this package's.

    The length of the warm-up and the options that the script gives belong to its own schedule and are left out, but
    for the warm-up of a closed form. The log says once what was replaced, and of a schedule of torch's own, which is
    none of these functions', that it stays.

    Args:
        name: of ``METHODS``.

    Attributes:
        name: as given.
        is_used: whether the script has asked for a schedule, and was given this one.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_used = False
        self._said: set[str] = set()
        self._is_installed = False
        self._is_building = False
        self._wrapped: list[tuple[Any, str]] = []
        self._replaced: list[tuple[ModuleType, str, Function, Function]] = []

    def install(self) -> None:
        """Takes the place of the functions, in every module that has them, and where they are imported later."""
        self._is_installed = True
        on_import("transformers.optimization", self._replace_functions)
        on_import("diffusers.optimization", self._replace_functions)
        on_import("transformers.training_args", self._replace_the_default)
        for owner in (LRScheduler, ReduceLROnPlateau):
            self._wrap(owner, "__init__", self._watch)

    def remove(self) -> None:
        """Puts the functions back, in every module that has this one's by now."""
        self._is_installed = False
        forget("transformers.optimization", self._replace_functions)
        forget("diffusers.optimization", self._replace_functions)
        forget("transformers.training_args", self._replace_the_default)
        for owner, name in self._wrapped:
            unwrap(owner, name)
        for optimization, name, function, factory in self._replaced:
            _swap(optimization, name, factory, function)

    def _wrap(self, owner: Any, name: str, make: Any) -> None:
        wrap(owner, name, make)
        self._wrapped.append((owner, name))

    def _replace_functions(self, optimization: ModuleType) -> None:
        """In the module that defines them, in those that have imported them, and in the table of names."""
        for name, function in [*vars(optimization).items()]:
            if FACTORIES.fullmatch(name) and function.__module__ == optimization.__name__:
                factory = self._factory(function)
                self._replaced.append((optimization, name, function, factory))
                _swap(optimization, name, function, factory)

    def _factory(self, function: Function) -> Function:
        """What takes the place of ``get_scheduler``, or of the function of one schedule."""
        signature = inspect.signature(function)

        @functools.wraps(function)
        def factory(*args: Any, **kwargs: Any) -> Any:
            if not self._is_installed:  # somebody holds it still
                return function(*args, **kwargs)
            asked = signature.bind(*args, **kwargs).arguments
            name = getattr(asked.get("name"), "value", asked.get("name"))
            self.is_used = True
            with self._building():
                if name == self.name:  # with the options that the script has for it
                    return function(*args, **kwargs)
                what = f"{function.__name__}()" if name is None else f'{function.__name__}("{name}")'
                return self._build(what, asked)

        return factory

    def _build(self, what: str, asked: dict[str, Any]) -> Any:
        """This schedule, for the arguments of another one's function."""
        method, steps = METHODS[self.name], asked.get("num_training_steps")
        if steps is None:
            raise ValueError(
                f"--schedule {self.name} cannot take the place of {what}, which was not told num_training_steps; pass "
                "it to get_scheduler, or make the schedule in the script with autowu_hf"
            )
        warmup = asked.get("num_warmup_steps") or 0
        dropped = f"; its num_warmup_steps of {warmup} are left out" if warmup and method.is_adaptive else ""
        self._say(logging.INFO, f"--schedule: {self.name} takes the place of {what}{dropped}")
        return method.schedule(
            asked["optimizer"],
            num_warmup_steps=0 if method.is_adaptive else warmup,
            num_training_steps=steps,
            last_epoch=asked.get("last_epoch", -1),
        )

    def _replace_the_default(self, training_args: Any) -> None:
        """Makes every ``TrainingArguments`` name this schedule: a Trainer looks there for more than the schedule."""
        cls = training_args.TrainingArguments
        names = ("lr_scheduler_kwargs", *(("warmup_steps", "warmup_ratio") if METHODS[self.name].is_adaptive else ()))
        defaults = {field.name: field.default for field in fields(cls) if field.name in names}

        def make(this: Wrap) -> Function:
            def post_init(args: Any, *rest: Any, **kwargs: Any) -> None:
                asked = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
                if this.is_active and asked != self.name:
                    own = {name: getattr(args, name) for name in defaults}
                    left_out = [f"{name} of {value}" for name, value in own.items() if value]
                    dropped = f"; its {' and '.join(left_out)} are left out" if left_out else ""
                    what = f'lr_scheduler_type="{asked}" of {type(args).__name__}'
                    self._say(logging.INFO, f"--schedule: {self.name} takes the place of {what}{dropped}")
                    for name, default in {**defaults, "lr_scheduler_type": self.name}.items():
                        setattr(args, name, default)
                this.original(args, *rest, **kwargs)

            return post_init

        self._wrap(cls, "__post_init__", make)

    def _watch(self, this: Wrap) -> Function:
        """The constructor of torch's schedules."""

        def init(scheduler: Any, *args: Any, **kwargs: Any) -> None:
            cls = type(scheduler)
            if this.is_active and not self._is_building and cls.__module__.startswith("torch."):
                self._say(
                    logging.WARNING,
                    f"--schedule {self.name} leaves torch's {cls.__name__} as it is, which the script makes itself; "
                    "replace it in the script with a schedule of autowu_hf",
                )
            this.original(scheduler, *args, **kwargs)

        return init

    @contextlib.contextmanager
    def _building(self) -> Iterator[None]:
        """While a schedule is made that is meant to be: rex is a LambdaLR of torch's."""
        before, self._is_building = self._is_building, True
        try:
            yield
        finally:
            self._is_building = before

    def _say(self, level: int, text: str) -> None:
        """Once, in the first process of those that a launcher has started."""
        if text not in self._said and os.environ.get("RANK", "0") == "0":
            self._said.add(text)
            logger.log(level, text)

    def say_where_unused(self) -> None:
        """Warns where the script has asked for no schedule that could be replaced."""
        if not self.is_used:
            self._say(
                logging.WARNING,
                f"--schedule {self.name} has replaced nothing: the script asked neither transformers nor diffusers for "
                "a schedule in this process. Schedules that it makes of torch's classes or its own stay as they are; "
                "make it in the script, with autowu_hf.get_autowu_schedule(optimizer, num_training_steps)",
            )


def _swap(optimization: ModuleType, name: str, old: Function, new: Function) -> None:
    """Puts one function in the place of another in all modules that have it by its name, and in the table of names."""
    for owner in [*sys.modules.values()]:
        if getattr(owner, "__dict__", {}).get(name) is old:
            setattr(owner, name, new)
    table = getattr(optimization, "TYPE_TO_SCHEDULER_FUNCTION", {})
    table.update({key: new for key, value in table.items() if value is old})
