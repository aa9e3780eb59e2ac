"""What a user sees on the console without doing anything for it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from autowu_hf.console import ConsoleHandler, enable, install

RUN = """
import torch, autowu_hf
{before}
optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=0.01)
schedule = autowu_hf.get_autowu_schedule(optimizer, 40, scale=False)
for step in range(40):
    optimizer.step()
    schedule.step(1.0)
"""


def console_of(before: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(before=before)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.once
def test_a_plain_run_says_what_it_will_do_and_what_it_has_decided():
    """Also where the script sets its logging up after the import, which disables the loggers that there are."""
    before = "import logging.config; logging.config.dictConfig({'version': 1})"
    first, second = [line for line in console_of(before).splitlines() if line.startswith("AutoWU")]
    assert "looks for the learning rate from 1e-05 to 1 within 10 of 40 steps. The loss may rise" in first
    assert "told nothing up to LR 4.1e-1, at step 10; peak LR 1.0e-2, which the optimizer was given" in second


@pytest.fixture
def logger():
    """The package's, at the level that it has by default."""
    own = logging.getLogger("autowu_hf")
    level = own.level
    own.setLevel(logging.INFO)
    yield own
    own.setLevel(level)


def test_it_can_be_told_to_warn_only(logger, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    said = logging.getLogger("autowu_hf.autowu.scheduler")
    said.info("one")
    logger.setLevel(logging.WARNING)
    said.info("two")
    said.warning("three")
    assert capsys.readouterr().err.split() == ["one", "three"]


def test_the_handlers_of_the_application_get_it_once(logger, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stdout)])
    logger.info("one")
    captured = capsys.readouterr()
    assert (captured.out.split(), captured.err) == (["one"], "")


def test_what_was_set_before_stays(logger):
    assert sum(isinstance(handler, ConsoleHandler) for handler in logger.handlers) == 1
    logger.setLevel(logging.ERROR)
    install()
    assert logger.level == logging.ERROR
    assert sum(isinstance(handler, ConsoleHandler) for handler in logger.handlers) == 1


def test_only_the_loggers_of_the_package_are_enabled_again():
    own, other = logging.getLogger("autowu_hf.new"), logging.getLogger("autowu_hf_of_another")
    own.disabled = other.disabled = True
    enable()
    assert (own.disabled, other.disabled) == (False, True)
