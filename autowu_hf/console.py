"""What the schedules decide is said on the console by default, above the progress bar of a Trainer.

The package's logger, "autowu_hf", lets messages of level INFO pass, and has a handler of its own, as transformers' has.
Where the application has given the root logger handlers, these get the messages instead. To hear warnings only:
``logging.getLogger("autowu_hf").setLevel(logging.WARNING)``.
"""

from __future__ import annotations

import logging
import sys

NAME = "autowu_hf"


class ConsoleHandler(logging.Handler):
    """Writes to stderr, without breaking a progress bar; nothing while the root logger has handlers."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return
        try:
            text = self.format(record)
            tqdm = sys.modules.get("tqdm")
            if tqdm is None:
                print(text, file=sys.stderr, flush=True)
            else:
                tqdm.tqdm.write(text, file=sys.stderr)
        except Exception:
            self.handleError(record)


def enable() -> None:
    """Enables the package's loggers again: an application that sets its logging up after the imports disables them all,
    unless it passes ``disable_existing_loggers=False``.
    """
    for name, logger in [*logging.Logger.manager.loggerDict.items()]:
        if isinstance(logger, logging.Logger) and (name == NAME or name.startswith(f"{NAME}.")):
            logger.disabled = False


def install() -> None:
    """Gives the package's logger its handler and its level, where it has none of its own yet."""
    logger = logging.getLogger(NAME)
    if not logger.handlers:
        logger.addHandler(ConsoleHandler())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
