"""Runs a script unchanged, with AutoWU registered.

    python -m autowu_hf.run script.py --lr_scheduler_type autowu ...
    python -m autowu_hf.run -m package.module --lr_scheduler_type autowu ...
    accelerate launch -m autowu_hf.run script.py --lr_scheduler_type autowu ...
    torchrun --nproc_per_node 2 -m autowu_hf.run script.py --lr_scheduler_type autowu ...
    autowu-run trl sft --lr_scheduler_type autowu ...
    autowu-run --suggest-lr script.py ...

The script runs as ``__main__`` with its own arguments. A parser that lists the names of schedules as fixed choices
takes "autowu" too. A command that starts other processes through ``accelerate launch``, as TRL's do, starts those the
same way.

With --suggest-lr, the script runs up to its first ``Trainer.train()``. In the place of training, what ``suggest_lr``
finds is printed, and the script ends.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import autowu_hf  # registers

from .runtime.methods import METHODS
from .runtime.wrapping import Function, Wrap, unwrap, wrap


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the arguments name.

    Args:
        argv: a script's path, "-m" and a module, or the name of an installed command; then its arguments. None takes
            this process's.

    Raises:
        SystemExit: the script's own, or with a message: there is nothing to run.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0 if arguments else 2)
    _extend_choices()
    _extend_accelerate_launch()
    if arguments[0] != "--suggest-lr":
        _run(arguments)
        return
    if len(arguments) < 2:
        raise SystemExit("autowu_hf.run: --suggest-lr needs a script, a module or a command whose Trainer it looks at")
    with _suggesting():
        _run(arguments[1:])
    raise SystemExit(
        "autowu_hf.run: --suggest-lr looks at the first Trainer.train(), and the script ended without one; in a loop "
        "of your own, call autowu_hf.suggest_lr(model, optimizer, loss_of, batches)"
    )


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


@contextlib.contextmanager
def _suggesting() -> Iterator[None]:
    """Makes the first ``Trainer.train()`` print a learning rate and end the script."""
    if importlib.util.find_spec("transformers") is None:
        raise SystemExit(
            "autowu_hf.run: --suggest-lr looks at transformers' Trainer, and transformers is not installed"
        )
    from transformers import Trainer

    def suggest(this: Wrap) -> Function:
        def train(self: Any, *args: Any, **kwargs: Any) -> Any:
            print(f"suggested learning rate {autowu_hf.suggest_lr(self)}")
            raise SystemExit(0)

        return train

    wrap(Trainer, "train", suggest)
    try:
        yield
    finally:
        unwrap(Trainer, "train")


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
                args.training_script_args = [*script, *args.training_script_args]
                args.training_script, args.module = __spec__.name, True
            return this.original(args)

        return launch_command

    wrap(launch, "launch_command", extend)


if __name__ == "__main__":
    main()
