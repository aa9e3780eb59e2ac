from __future__ import annotations

import functools
import gc
import weakref

import pytest

from autowu_hf.runtime import wrapping
from autowu_hf.runtime.wrapping import unwrap, wrap


@pytest.fixture
def greeter():
    class Greeter:
        def greet(self, name: str) -> str:
            """Says hello."""
            return f"hello {name}"

    return Greeter


def loudly(this):
    def greet(self, name):
        said = this.original(self, name)
        return said.upper() if this.is_active else said

    return greet


def politely(original):
    @functools.wraps(original)  # copies every mark of the function that it wraps
    def greet(self, name):
        return f"{original(self, name)}, please"

    return greet


def test_it_wraps_once_and_keeps_name_and_docstring(greeter):
    original = vars(greeter)["greet"]
    wrap(greeter, "greet", loudly)
    wrapper = vars(greeter)["greet"]
    wrap(greeter, "greet", loudly)
    assert vars(greeter)["greet"] is wrapper
    assert greeter().greet("you") == "HELLO YOU"
    assert (wrapper.__name__, wrapper.__doc__) == ("greet", "Says hello.")
    unwrap(greeter, "greet")
    assert vars(greeter)["greet"] is original
    unwrap(greeter, "greet")
    assert vars(greeter)["greet"] is original


def test_a_later_wrapper_of_somebody_else_stays_when_ours_goes(greeter):
    wrap(greeter, "greet", loudly)
    greeter.greet = theirs = politely(greeter.greet)
    assert greeter().greet("you") == "HELLO YOU, please"
    unwrap(greeter, "greet")
    assert greeter.greet is theirs
    assert greeter().greet("you") == "hello you, please"
    wrap(greeter, "greet", loudly)
    assert greeter.greet is theirs
    assert greeter().greet("you") == "HELLO YOU, please"


def test_where_somebody_put_the_original_back_it_wraps_anew(greeter):
    original = greeter.greet
    wrap(greeter, "greet", loudly)
    greeter.greet = original
    wrap(greeter, "greet", loudly)
    assert greeter().greet("you") == "HELLO YOU"
    unwrap(greeter, "greet")
    assert greeter.greet is original


def test_a_wrapper_that_hides_ours_does_not_make_it_act_twice(greeter):
    calls, original = [], greeter.greet

    def counting(this):
        def greet(self, name):
            if this.is_active:
                calls.append(name)
            return this.original(self, name)

        return greet

    wrap(greeter, "greet", counting)
    ours = greeter.greet
    greeter.greet = lambda self, name: ours(self, name)
    wrap(greeter, "greet", counting)
    assert greeter().greet("you") == "hello you"
    assert calls == ["you"]
    greeter.greet = ours  # theirs was for a while, as a mock is
    assert greeter().greet("again") == "hello again"
    assert calls == ["you", "again"]
    unwrap(greeter, "greet")
    assert greeter.greet is original


def test_a_class_that_is_gone_leaves_nothing_to_a_later_one_at_its_address():
    class Gone:
        def greet(self, name):
            return f"hello {name}"

    gc.collect()
    known = len(wrapping._wraps)
    wrap(Gone, "greet", loudly)
    assert len(wrapping._wraps) == known + 1
    gone = weakref.ref(Gone)
    del Gone
    gc.collect()
    assert gone() is None
    assert len(wrapping._wraps) == known
