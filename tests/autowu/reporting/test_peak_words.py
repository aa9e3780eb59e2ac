"""Whose the peak LR is, in words."""

from __future__ import annotations

import pytest
from scale_runs import made, run, surely

from autowu_hf import ForeignLRWarning
from autowu_hf.autowu.reporting.peak_words import contested, given
from autowu_hf.autowu.reporting.report import describe, headline, lr_in_words


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"peak_is_given": False, "ended_by": "nothing"}, ""),
        ({"ended_by": "cliff"}, ""),
        ({"ended_by": "nothing"}, ", which the optimizer was given"),
        ({"peak_is_given": True, "ended_by": "cap"}, ", which the optimizer was given"),
        ({"peak_is_given": True, "ended_by": "cap", "settings": {"max_lr": 0.1}}, ", which is max_lr"),
    ],
)
def test_where_the_losses_found_none_it_is_said_whose_it_is(report, words):
    assert given({"peak_lr": 0.1, "settings": {}, **report}) == words


def test_an_lr_that_something_else_sets_too_is_not_claimed():
    model, optimizer, schedule = made(60)
    losses = surely(60)
    run(model, optimizer, schedule, losses[:30])
    with pytest.warns(ForeignLRWarning):
        for loss in losses[30:]:
            for group in optimizer.param_groups:
                group["lr"] = 1e-5
            run(model, optimizer, schedule, [loss])
    report = schedule.report()
    words = ", but something else in the script sets the LR, too"
    assert contested(report) == words
    assert f"{words}, " in describe(report)
    assert words in headline(report)
    assert lr_in_words(report).endswith(words)


def test_an_lr_that_nothing_else_sets_is():
    model, optimizer, schedule = made(60)
    run(model, optimizer, schedule, surely(60))
    assert contested(schedule.report()) == contested({}) == ""
