"""Runs a script unchanged, with AutoWU registered.

    python -m autowu_hf.run script.py --lr_scheduler_type autowu ...
    python -m autowu_hf.run -m package.module --lr_scheduler_type autowu ...
    accelerate launch -m autowu_hf.run script.py --lr_scheduler_type autowu ...
    torchrun --nproc_per_node 2 -m autowu_hf.run script.py --lr_scheduler_type autowu ...
    autowu-run trl sft --lr_scheduler_type autowu ...
    autowu-run --schedule autowu script.py ...
    autowu-run --suggest-lr script.py ...

The script runs as ``__main__`` with its own arguments. A parser that lists the names of schedules as fixed choices
takes "autowu" too. A command that starts other processes through ``accelerate launch``, as TRL's do, starts those the
same way.

With --schedule, a script that has no argument for it gets the schedule of that name, in the place of every schedule
that it asks transformers or diffusers for, whatever it names itself.

With --suggest-lr, the script runs up to its first ``Trainer.train()``. In the place of training, what ``suggest_lr``
finds is printed, and the script ends. A script that steps an optimizer without a Trainer ends there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any

import autowu_hf  # registers

from .integrations.every_schedule import EverySchedule
from .runtime.methods import METHODS
from .runtime.wrapping import Function, Wrap, unwrap, wrap

_options: list[str] = []
"""Those before the script, which the processes that it starts through ``accelerate launch`` are given too."""

_launched: list[str] = []
"""The scripts that were started so."""


_NO_TRAINER = (
    "autowu_hf.run: --suggest-lr looks at the first Trainer.train(), and the script {}; in a loop of your own, call "
    "autowu_hf.suggest_lr(model, optimizer, loss_of, batches)"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the arguments name.

    Args:
        argv: --schedule and a name, or --suggest-lr, or neither; a script's path, "-m" and a module, or the name of an
            installed command; then its arguments. None takes this process's.

    Raises:
        SystemExit: the script's own, or with a message: there is nothing to run.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0 if arguments else 2)
    option, _, value = arguments[0].partition("=")
    own = {"--suggest-lr": 1, "--schedule": 1 if value else 2}.get(option, 0)
    if own and len(arguments) <= own:
        raise SystemExit(f"autowu_hf.run: {' '.join(arguments)} needs a script, a module or a command to run")
    _options[:], arguments = arguments[:own], arguments[own:]
    if arguments[0].startswith("-") and arguments[0] != "-m" and not os.path.exists(arguments[0]):
        raise SystemExit(
            f"autowu_hf.run: {arguments[0]!r} is no option here; give one of --suggest-lr and --schedule NAME, or "
            "none, and then a script's path, -m and a module, or a command such as trl"
        )
    _launched.clear()
    _extend_choices()
    _extend_accelerate_launch()
    if option == "--suggest-lr":
        _suggest(arguments)
    elif option == "--schedule":
        _run_with(value or _options[1], arguments)
    else:
        _run(arguments)


def _run_with(schedule: str, arguments: list[str]) -> None:
    """Runs what the arguments name, with this schedule in the place of its own."""
    if schedule not in METHODS:
        raise SystemExit(f"autowu_hf.run: --schedule is {schedule!r}, but must be one of {', '.join(METHODS)}")
    if not any(importlib.util.find_spec(name) for name in ("transformers", "diffusers")):
        raise SystemExit(
            "autowu_hf.run: --schedule takes the place of the schedules of transformers and diffusers, and neither is "
            "installed; in a loop of your own, call autowu_hf.get_autowu_schedule(optimizer, num_training_steps)"
        )
    every = EverySchedule(schedule)
    every.install()
    try:
        _run_to_its_end(arguments)
    finally:
        every.remove()
    if not _launched:
        every.say_where_unused()


def _run_to_its_end(arguments: list[str]) -> None:
    """``_run``, where an exit without an error is an end like another."""
    try:
        _run(arguments)
    except SystemExit as end:
        if end.code:
            raise


def _run(arguments: list[str]) -> None:
    """Runs what the arguments name, with the rest of them."""
    target = arguments[0]
    if target == "-m":
        if len(arguments) < 2:
            raise SystemExit("autowu_hf.run: -m needs the name of a module")
        sys.argv = arguments[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif os.path.exists(target):
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.realpath(target))
        runpy.run_path(target, run_name="__main__")
    else:
        sys.argv = arguments
        raise SystemExit(_command(target)())


def _suggest(arguments: list[str]) -> None:
    """Runs what the arguments name up to its first ``Trainer.train()``, which prints a learning rate and ends it."""
    if importlib.util.find_spec("transformers") is None:
        raise SystemExit(
            "autowu_hf.run: --suggest-lr looks at transformers' Trainer, and transformers is not installed; in a loop "
            "of your own, call autowu_hf.suggest_lr(model, optimizer, loss_of, batches)"
        )
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    from transformers import Trainer

    found: list[autowu_hf.SuggestedLR] = []

    def suggest(this: Wrap) -> Function:
        def train(self: Any, *args: Any, **kwargs: Any) -> Any:
            before_a_step.remove()
            found.append(autowu_hf.suggest_lr(self))
            print(f"suggested learning rate {found[0]}")
            raise SystemExit(0)

        return train

    def refuse(*args: Any) -> None:
        raise SystemExit(_NO_TRAINER.format("steps an optimizer without one; nothing was trained"))

    before_a_step = register_optimizer_step_pre_hook(refuse)
    wrap(Trainer, "train", suggest)
    try:
        _run_to_its_end(arguments)
    finally:
        unwrap(Trainer, "train")
        before_a_step.remove()
    if not found and not _launched:
        raise SystemExit(_NO_TRAINER.format("ended without one"))


def _command(name: str) -> Any:
    """The function behind an installed command."""
    for entry in importlib.metadata.entry_points(group="console_scripts", name=name):
        return entry.load()
    raise SystemExit(
        f"autowu_hf.run: {name!r} is neither a file nor an installed Python command; "
        "give a script's path, -m and a module, or a command such as trl"
    )


def _extend_choices() -> None:
    """Adds our names to the choices of every argument whose choices are schedules' names."""

    def extend(this: Wrap) -> Function:
        def add_argument(self: Any, *args: Any, **kwargs: Any) -> Any:
            action = this.original(self, *args, **kwargs)
            if isinstance(action.choices, (list, tuple, set)):
                names = [getattr(choice, "value", choice) for choice in action.choices]
                if "linear" in names and "cosine" in names:
                    action.choices = [*action.choices, *(name for name in METHODS if name not in names)]
            return action

        return add_argument

    wrap(argparse._ActionsContainer, "add_argument", extend)


def _extend_accelerate_launch() -> None:
    """Makes what ``accelerate launch`` starts from this process run through this module too."""
    from accelerate.commands import launch

    def extend(this: Wrap) -> Function:
        def launch_command(args: Any) -> Any:
            if not args.no_python and args.training_script != __spec__.name:
                script = ["-m", args.training_script] if args.module else [args.training_script]
                args.training_script_args = [*_options, *script, *args.training_script_args]
                args.training_script, args.module = __spec__.name, True
                _launched.append(script[-1])
            return this.original(args)

        return launch_command

    wrap(launch, "launch_command", extend)


if __name__ == "__main__":
    main()
