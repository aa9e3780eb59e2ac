from __future__ import annotations

import inspect
import re

import pytest

from autowu_hf.autowu.reporting.report import describe, headline, in_optimizer_steps, is_doubtful, lr_in_words


def switched(**changes):
    report = {
        "switch_step": 146,
        "minimum_step": 114,
        "cliff_step": 121,
        "peak_lr": 9.5e-3,
        "ended_by": "cliff",
        "rewound_to": 91,
        "num_training_steps": 800,
        "warmup_cap": 200,
        "step": 146,
        "settings": {"decay_type": "rex"},
    }
    return {**report, **changes}


def test_a_person_reads_optimizer_steps():
    """In an accelerate loop of two processes the schedule makes two steps for each of them."""
    test = {"step": 240, "minimum_step": 228.0, "cliff_step": 236.4, "p_min": [0.5]}
    report = {
        **switched(ticks_per_step=2, curve={"num_training_steps": 1600, "growth_steps": 400, "decay_type": "rex"}),
        **{
            "switch_step": 292,
            "minimum_step": 228,
            "cliff_step": 242,
            "rewound_to": 182,
            "num_training_steps": 1600,
            "tests": [test],
        },
    }
    assert describe(report) == describe(switched())
    assert headline(report) == headline(switched())
    seen = in_optimizer_steps(report)
    assert (seen["curve"]["growth_steps"], seen["tests"][0]["cliff_step"], seen["ticks_per_step"]) == (200, 118, 1)
    assert report["switch_step"] == 292
    assert in_optimizer_steps(switched()) == switched()


def test_the_docstring_of_describe_shows_what_it_returns():
    (example,) = re.findall(r'For example "(.*?)"\.', inspect.cleandoc(describe.__doc__), flags=re.DOTALL)
    assert describe(switched()) == re.sub(r"\s+", " ", example)


@pytest.mark.parametrize(
    ("changes", "line", "title"),
    [
        (
            {"ended_by": "minimum", "rewound_to": None},
            "minimum at step 114 of 146; peak LR 9.5e-3, REX decay over 654 steps",
            "AutoWU: minimum at 114, seen at step 146; peak LR 9.5e-3; REX decay",
        ),
        (
            {"ended_by": "cap", "peak_lr": 0.03, "settings": {"decay_type": "constant_then_cosine"}},
            "warm-up ended by its cap, at step 146, minimum at step 114; peak LR 3.0e-2, weights and optimizer state "
            "of step 91, constant then cosine decay over 654 steps",
            "AutoWU: warm-up ended by its cap, at step 146; back to step 91; peak LR 3.0e-2; constant then cosine "
            "decay",
        ),
        (
            {
                "ended_by": "nothing",
                "minimum_step": None,
                "peak_lr": 5e-5,
                "curve": {"max_lr": 1.0, "decay_type": "rex"},
                "approach": None,
            },
            "the losses told nothing up to LR 1.0e+0, at step 146; peak LR 5.0e-5, which the optimizer was given, "
            "weights and optimizer state of step 91, REX decay over 654 steps",
            "AutoWU: the losses told nothing up to LR 1.0e+0; back to step 91; peak LR 5.0e-5, which the optimizer was "
            "given; REX decay",
        ),
        (
            {"ended_by": "divergence", "minimum_step": None, "peak_lr": 3e-5, "peak_is_given": True},
            "losses diverged at step 146, nothing gained before; peak LR 3.0e-5, which the optimizer was given, "
            "weights and optimizer state of step 91, REX decay over 654 steps",
            "AutoWU: losses diverged at step 146; back to step 91; peak LR 3.0e-5, which the optimizer was given; REX "
            "decay",
        ),
        (
            {"ended_by": "max_lr", "minimum_step": None, "peak_lr": 0.1, "rewound_to": None},
            "the losses fell all the way up to max_lr, which is the peak, at step 146; peak LR 1.0e-1, REX decay over "
            "654 steps",
            "AutoWU: the losses fell all the way up to max_lr, which is the peak; peak LR 1.0e-1; REX decay",
        ),
        (
            {"ended_by": "divergence"},
            "losses diverged at step 146, minimum at step 114; peak LR 9.5e-3, weights and optimizer state of step 91, "
            "REX decay over 654 steps",
            "AutoWU: losses diverged at step 146; back to step 91; peak LR 9.5e-3; REX decay",
        ),
    ],
)
def test_the_line_in_the_log_and_the_title_of_the_picture_agree(changes, line, title):
    assert describe(switched(**changes)) == line
    assert headline(switched(**changes)) == title


@pytest.mark.parametrize(
    ("last", "words"), [(0.5, "no cliff up to 1.9e-2"), (1.5, "the losses rose, without a certain cliff, up to 1.9e-2")]
)
def test_losses_that_rose_in_a_growth_around_the_scale_are_not_called_no_cliff(last, words):
    approach = {"scale": {"lr": 2e-3}, "raised": 1.0, "factor": 1.0, "breaks": [], "sweep": {"num_steps": 20}}
    losses = [9.0, 9.0, *[0.6] * 15, *[last] * 5]
    report = switched(ended_by="cap", approach=approach, highest_lr=0.019, losses=losses, losses_before=2)
    assert f"; {words}, at step 146" in describe(report)
    assert f"; {words}; back" in headline(report)


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("cliff", "cliff at step 121, seen at step 146, no minimum seen; "),
        ("cap", "warm-up ended by its cap, at step 146, no minimum seen; "),
        ("divergence", "losses diverged at step 146, nothing gained before; "),
    ],
)
def test_a_minimum_that_was_not_seen_has_no_step(reason, line):
    assert describe(switched(ended_by=reason, minimum_step=None)).startswith(line)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "0.0095, found by AutoWU"),
        ({"ended_by": "scale", "minimum_step": None}, "0.0095, found by AutoWU"),
        ({"ended_by": "divergence"}, "0.0095, found by AutoWU"),
        ({"ended_by": "divergence", "minimum_step": None, "peak_is_given": False}, "0.0095, chosen by AutoWU"),
        ({"ended_by": "cap", "minimum_step": None}, "0.0095, chosen by AutoWU"),
        ({"ended_by": "nothing"}, "0.0095, which the optimizer was given; AutoWU found none"),
        ({"ended_by": "nothing", "settings": {"max_lr": 9.5e-3}}, "0.0095, which is max_lr; AutoWU found none"),
    ],
)
def test_a_model_card_does_not_call_a_peak_found_that_was_given(changes, words):
    assert lr_in_words({"approach": None, **switched(**changes)}) == words


def test_a_minimum_that_the_noise_hides_until_after_the_cliff_is_none():
    assert describe(switched(minimum_step=125)).startswith(
        "cliff at step 121, seen at step 146, no minimum that stands out of the noise; peak LR 9.5e-3"
    )


def test_around_the_scale_the_losses_have_fallen_before_they_diverge():
    approach = {"scale": {"lr": 0.1}, "factor": 1.0, "breaks": []}
    said = describe(switched(ended_by="divergence", minimum_step=None, approach=approach))
    assert "losses diverged at step 146, no minimum seen; " in said


def test_the_title_before_the_switch_says_how_far_it_is():
    assert headline(switched(switch_step=None, step=40)) == "AutoWU: warming up, step 40 of at most 200"


def test_the_title_says_where_the_cliff_was_as_the_picture_does():
    seen = headline(switched(cliff_step=130))
    assert seen == "AutoWU: cliff at 130, seen at step 146; back to step 91; peak LR 9.5e-3; REX decay"
    two = switched(ticks_per_step=2, cliff_step=260, curve={"decay_type": "rex"}, tests=[])
    two |= {"switch_step": 292, "rewound_to": 182}
    assert headline(two) == seen


def test_losses_that_fell_all_the_way_have_told_something_but_no_lr():
    curve = {"decay_type": "rex", "max_lr": 0.02, "num_training_steps": 800, "growth_steps": 200}
    nothing = switched(ended_by="nothing", minimum_step=None, curve=curve, approach=None, highest_lr=0.019)
    falling = [9.0] * 5 + [1.4 - 0.005 * i for i in range(146)]
    assert describe({**nothing, "losses": [1.0, 1.1] * 73}).startswith(
        "the losses told nothing up to LR 1.9e-2, at step"
    )
    for report in ({**nothing, "losses": falling[5:]}, {**nothing, "losses": falling, "losses_before": 5}):
        assert describe(report).startswith(
            "the losses fell, but told no LR up to 1.9e-2 (a higher max_lr may), at step "
        )
        assert headline(report).startswith("AutoWU: the losses fell, but told no LR up to 1.9e-2")


def test_a_run_that_was_resumed_as_a_shorter_one_has_no_steps_left():
    assert describe(switched(num_training_steps=100)).endswith("state of step 91, no step is left to decay in")


@pytest.mark.parametrize(
    ("changes", "doubtful"),
    [
        ({}, False),
        ({"ended_by": "nothing", "minimum_step": None}, True),
        ({"ended_by": "max_lr", "minimum_step": None}, False),
        ({"ended_by": "cap"}, False),
        ({"ended_by": "cap", "minimum_step": None}, True),
        ({"ended_by": "divergence", "minimum_step": None}, True),
        ({"ended_by": "cap", "minimum_step": None, "approach": {"sweep": {}, "breaks_too_often": False}}, False),
    ],
)
def test_a_peak_that_the_losses_do_not_speak_for_is_warned_of(changes, doubtful):
    assert is_doubtful({"approach": None, **switched(**changes)}) == doubtful
