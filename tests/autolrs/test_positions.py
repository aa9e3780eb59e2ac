"""The arithmetic of a stream's positions, with a loader of a few lines in the place of torch's."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from autowu_hf.autolrs.positions import Positions

LENGTH, EPOCHS = 6, 4


def orders(epochs: int = EPOCHS) -> list[list[int]]:
    """What the sampler gives in each epoch; every item is another one."""
    return [[100 * epoch + i for i in range(LENGTH)] for epoch in range(epochs)]


class Loader:
    """Reads ahead by so many items, as a data loader with workers does, and ends when nothing is handed out."""

    def __init__(self, positions: Positions, source: Iterator[Any], ahead: int) -> None:
        self.positions, self.ahead = positions, ahead
        self._items = positions.hand_out(source)
        self._queue: deque[Any] = deque()

    def next(self) -> Any:
        """The next item; None at the end."""
        while len(self._queue) <= self.ahead:
            item = next(self._items, None)
            if item is None:
                break
            self._queue.append(item)
        return self._queue.popleft() if self._queue else None


def epoch_of(positions: Positions, order: list[int], ahead: int) -> Iterator[tuple[int, Loader]]:
    """The items that an epoch delivers, each with the loader that delivers it."""
    source = iter(order)
    for _ in range(positions.items_before()):
        next(source)
    while True:
        loader = Loader(positions, source, ahead)
        item = loader.next()
        while item is not None:
            positions.deliver()
            yield item, loader
            item = loader.next()
        if positions.is_exhausted:
            return


def go_back(positions: Positions, loader: Loader) -> None:
    for _ in range(positions.go_back()):
        loader.next()


def train(script: dict[int, str], ahead: int, resume: tuple[int, Any, Any] | None = None) -> Any:
    """The items of a loop that goes back as the script has it, and (state, carried) after each of its steps."""
    positions = Positions(LENGTH)
    step = 0 if resume is None else resume[0]
    seen, states, carried = [], {}, [] if resume is None else resume[2]
    for epoch in range(step // LENGTH, EPOCHS):
        positions.begin_epoch(step % LENGTH)
        if resume is not None:
            positions.load_state_dict(resume[1], carried)
            resume = None
        for item, loader in epoch_of(positions, orders()[epoch], ahead):
            seen.append(item)
            step += 1
            for action in script.get(step, "").split():
                if action == "go_back":
                    go_back(positions, loader)
                else:
                    getattr(positions, action)()
            if positions.is_at_end:
                carried = positions.carried()
            states[step] = positions.state_dict(), carried if positions.state_dict()["first"] < 0 else []
        assert step == (epoch + 1) * LENGTH
    return seen, states


def expected(script: dict[int, str]) -> list[int]:
    """The same from its definition: what was seen since the mark comes again, then what was left, then new items."""
    seen: list[int] = []
    again: list[int] = []
    since: list[int] = []
    for own in orders():
        rest = iter(own)
        for _ in own:
            seen.append(again.pop(0) if again else next(rest))
            since.append(seen[-1])
            for action in script.get(len(seen), "").split():
                if action == "go_back":
                    again = since + again
                since = []
    return seen


def drawn(seed: int) -> dict[int, str]:
    """Searches of any length at any place."""
    rng = random.Random(seed)
    script: dict[int, str] = {}
    step = rng.randint(1, 6)
    while step < EPOCHS * LENGTH:
        script[step] = f"{script.get(step, '')} mark"
        length = rng.randint(1, 8)
        for last in (False, False, True):
            step += length
            script[step] = "go_back unmark" if last else "go_back"
        step += rng.randint(0, 3)
    return script


SCRIPTS = [
    {},
    {2: "mark", 4: "go_back unmark"},
    {1: "mark", 4: "go_back", 7: "go_back", 10: "go_back unmark"},  # over the end of an epoch
    {4: "mark", 6: "go_back unmark"},  # at the end of an epoch
    {6: "mark", 12: "go_back", 18: "go_back unmark"},  # whole epochs
    {3: "mark", 13: "go_back", 23: "go_back unmark"},  # longer than an epoch
    {2: "mark", 5: "go_back unmark", 6: "mark", 8: "go_back", 10: "go_back unmark"},  # what is left over goes back too
    *map(drawn, range(40)),
]


@pytest.mark.parametrize("ahead", [0, 1, 2, 7])
def test_it_goes_back_to_the_mark_however_far_the_loader_reads_ahead(ahead):
    for script in SCRIPTS:
        assert train(script, ahead)[0] == expected(script)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_it_goes_on_exactly_from_the_state_of_any_step(ahead):
    for script in SCRIPTS[:20]:
        whole, states = train(script, ahead)
        for step, (state, carried) in states.items():
            assert train(script, ahead, resume=(step, state, carried))[0] == whole[step:]


def test_a_state_that_was_loaded_is_given_back():
    for script in SCRIPTS[:20]:
        for state, carried in train(script, 1)[1].values():
            positions = Positions(LENGTH)
            positions.begin_epoch(state["done"])
            positions.load_state_dict(state, ["needless", *carried])
            assert positions.state_dict() == state
            assert positions.carried() == (carried[state["first"] :] if state["first"] < 0 else [])


def test_only_what_may_be_wanted_again_is_kept():
    positions = Positions(LENGTH)
    positions.begin_epoch(0)
    kept = []
    for i, (_, loader) in enumerate(epoch_of(positions, orders()[0], ahead=1)):
        kept.append([*positions.kept])
        if i == 1:
            positions.mark()
        if i == 3:
            go_back(positions, loader)
            positions.unmark()
    assert kept == [[1], [2], [2, 3], [2, 3, 4], [3, 4], [4]]
    assert positions.carried() == []  # 4 was read ahead only; the next epoch has an order of its own


def test_positions_count_from_the_first_item_of_the_epoch_under_way():
    positions = Positions(LENGTH)
    positions.begin_epoch(0)
    for i, (_, loader) in enumerate(epoch_of(positions, orders()[0], ahead=0)):
        if i == 2:
            positions.mark()
        if i == 5:
            go_back(positions, loader)
    assert (positions.first, positions.delivered, positions.furthest, positions.left) == (3, 3, 6, 0)
    positions.begin_epoch(0)
    assert (positions.first, positions.delivered, positions.furthest, positions.left) == (-3, -3, 0, LENGTH)
    assert (positions.epoch, positions.kept, positions.items_before()) == (2, [3, 4, 5], 0)
    items = [item for item, _ in epoch_of(positions, orders()[1], ahead=0)]
    assert items == [3, 4, 5, 100, 101, 102]


def test_an_epoch_that_is_broken_off_leaves_nothing_that_was_only_read():
    positions = Positions(LENGTH)
    positions.begin_epoch(0)
    for i, _ in enumerate(epoch_of(positions, orders()[0], ahead=3)):
        if i == 1:
            break
    assert (positions.in_flight, positions.kept) == (3, [2, 3, 4])
    positions.begin_epoch(0)
    assert (positions.in_flight, positions.kept) == (0, [])
    assert [item for item, _ in epoch_of(positions, orders()[1], ahead=3)] == orders()[1]


def test_items_that_a_resumed_run_skips_are_passed_over():
    positions = Positions(LENGTH)
    positions.begin_epoch(4)
    assert (positions.done, positions.left, positions.items_before()) == (4, 2, 4)
    assert [item for item, _ in epoch_of(positions, orders()[0], ahead=1)] == [4, 5]
    assert positions.is_at_end


def test_going_back_tells_how_many_batches_are_to_be_thrown_away():
    positions = Positions(LENGTH)
    positions.begin_epoch(0)
    positions.mark()
    loader = Loader(positions, iter(orders()[0]), ahead=2)
    assert [loader.next(), loader.next()] == [0, 1]
    positions.deliver()
    positions.deliver()
    assert positions.went_back is False
    assert positions.go_back() == 2
    assert positions.went_back is True
    assert [loader.next(), loader.next(), loader.next()] == [2, 3, 0]
    positions.deliver()
    assert positions.went_back is False


def test_a_sampler_that_ends_early_ends_the_epoch():
    positions = Positions(LENGTH)
    positions.begin_epoch(0)
    assert [item for item, _ in epoch_of(positions, [0, 1, 2], ahead=1)] == [0, 1, 2]
    assert not positions.is_at_end
    assert positions.is_exhausted
