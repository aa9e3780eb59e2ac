from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader, Dataset, IterableDataset

from autowu_hf.autolrs.batch_replay import BatchReplay

EXAMPLES, BATCH = 23, 4
PER_EPOCH = 6
EPOCHS = 4


class Numbers(Dataset):
    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.tensor(i)


def prepared(**options: Any) -> Any:
    """A data loader whose order depends on the epoch alone, with its accelerator."""
    set_seed(5)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    return accelerator.prepare(DataLoader(Numbers(), batch_size=BATCH, shuffle=True, **options))


def orders() -> list[list[list[int]]]:
    """The batches of every epoch when nothing goes back."""
    loader = prepared()
    result = []
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        result.append([batch.tolist() for batch in loader])
    return result


def train(script: dict[int, str], loader: Any = None, replay: Any = None, start: int = 0, states: Any = None) -> list:
    """The batches of a loop that goes back as the script has it; step -> what happens after it."""
    loader = prepared() if loader is None else loader
    replay = BatchReplay() if replay is None else replay
    seen, step = [], start
    open_before = [*loader.gradient_state.dataloader_references]  # a loop that breaks off leaves its own
    for epoch in range(start // PER_EPOCH, EPOCHS):
        loader.set_epoch(epoch)
        skip = start % PER_EPOCH if epoch == start // PER_EPOCH else 0
        for batch in skip_first_batches(loader, skip) if skip else loader:
            seen.append(batch.tolist())
            step += 1
            assert loader.gradient_state.end_of_dataloader == (step % PER_EPOCH == 0)
            for action in script.get(step, "").split():
                getattr(replay, action)()
            replay.end_step()
            if states is not None:
                states[step] = replay.state_dict()
        assert step == (epoch + 1) * PER_EPOCH
    assert loader.gradient_state.dataloader_references == open_before
    return seen


def expected(script: dict[int, str]) -> list[list[int]]:
    """The same from its definition."""
    seen: list[list[int]] = []
    again: list[list[int]] = []
    since: list[list[int]] = []
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


SCRIPTS = [
    {},
    {2: "mark", 4: "go_back unmark"},
    {1: "mark", 4: "go_back", 7: "go_back", 10: "go_back unmark"},  # over the end of an epoch
    {4: "mark", 6: "go_back unmark"},  # at the end, when all has been read ahead
    {5: "mark", 6: "go_back", 7: "go_back", 8: "go_back unmark"},
    {6: "mark", 12: "go_back", 18: "go_back unmark"},  # whole epochs
    {3: "mark", 13: "go_back", 23: "go_back unmark"},  # longer than an epoch
    {2: "mark", 5: "go_back unmark", 6: "mark", 8: "go_back", 10: "go_back unmark"},  # what is left over goes back too
]


def drawn(seed: int) -> dict[int, str]:
    """Searches of any length at any place."""
    rng = random.Random(seed)
    script: dict[int, str] = {}
    step = rng.randint(1, 6)
    while step < EPOCHS * PER_EPOCH:
        script[step] = f"{script.get(step, '')} mark"
        length = rng.randint(1, 8)
        for last in (False, False, True):
            step += length
            script[step] = "go_back unmark" if last else "go_back"
        step += rng.randint(0, 3)
    return script


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_it_goes_back_to_the_mark(script):
    assert train(script) == expected(script)


def test_it_goes_back_from_anywhere():
    for seed in range(60):
        assert train(drawn(seed)) == expected(drawn(seed))


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}], ids=str)
def test_batches_that_workers_have_read_ahead_are_thrown_away(options):
    for script in SCRIPTS[2:5]:
        assert train(script, prepared(num_workers=2, prefetch_factor=3, **options)) == expected(script)


def test_workers_that_have_begun_before_go_on(caplog):
    caplog.set_level("INFO", logger="autowu_hf")
    loader = prepared(num_workers=1, persistent_workers=True)
    loader.set_epoch(3)
    assert [batch.tolist() for batch in loader] == orders()[3]
    assert train({2: "mark", 4: "go_back unmark"}, loader) == [batch for epoch in orders() for batch in epoch]
    assert "are not read again" in caplog.text


@pytest.mark.parametrize("script", [*SCRIPTS[1:], drawn(0), drawn(1)], ids=str)
def test_a_run_goes_on_exactly_from_any_step(script):
    states: dict[int, Any] = {}
    whole = train(script, states=states)
    for step, state in states.items():
        if step == len(whole):
            break
        replay = BatchReplay()
        is_marked = state is not None and state["is_marked"]
        replay.load_state_dict(state, is_searching=is_marked)
        assert replay.state_dict() == state  # before it was used
        assert train(script, replay=replay, start=step) == whole[step:]


def test_a_search_that_was_given_up_goes_on_with_the_batches_after_it():
    states: dict[int, Any] = {}
    whole = train({2: "mark", 4: "go_back"}, states=states)
    replay = BatchReplay()
    replay.load_state_dict(states[3], is_searching=False)
    own = orders()[0]
    assert train({}, replay=replay, start=3)[:3] == own[3:]
    assert whole[:6] == [*own[:4], *own[2:4]]


def test_a_loop_that_breaks_off_its_epochs_goes_back_too():
    loader, replay = prepared(), BatchReplay()
    seen = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        for i, batch in enumerate(loader):
            seen.append(batch.tolist())
            if len(seen) == 3:
                replay.mark()
            if len(seen) in (6, 9):
                replay.go_back()
            replay.end_step()
            if i == 3:
                break
    first, second, _ = orders()[:3]
    assert seen == [*first[:4], *second[:2], first[3], *second[:2], first[3], *second[:2]]


def test_evaluation_is_left_alone():
    loader, replay = prepared(), BatchReplay()
    other = prepared()
    seen, evaluated = [], []
    for batch in loader:
        seen.append(batch.tolist())
        if len(seen) == 1:
            replay.mark()
        if len(seen) in (3, 5):
            replay.go_back()
        replay.end_step()
        other.set_epoch(0)
        evaluated.append([batch.tolist() for batch in other])
    own = orders()[0]
    assert evaluated == [own] * PER_EPOCH
    assert seen == [own[0], own[1], own[2], own[1], own[2], own[1]]


def test_an_evaluation_on_the_same_data_does_not_take_the_place_of_training():
    states: dict[int, Any] = {}
    whole = train({2: "mark", 4: "go_back", 6: "go_back"}, states=states)
    replay = BatchReplay()
    replay.load_state_dict(states[6], is_searching=True)
    evaluated = Accelerator(cpu=True).prepare(DataLoader(Numbers(), batch_size=BATCH))
    assert torch.cat([*evaluated]).tolist() == list(range(EXAMPLES))
    assert train({}, replay=replay, start=6) == whole[6:]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(12))


@pytest.mark.parametrize("kind", ["iterable", "bare", "two"])
def test_other_data_goes_on_and_that_is_said(kind, caplog):
    caplog.set_level("INFO", logger="autowu_hf")
    replay = BatchReplay()
    accelerator = Accelerator(cpu=True)
    loader: Any = DataLoader(Stream() if kind == "iterable" else range(12), batch_size=2)
    loader = loader if kind == "bare" else accelerator.prepare(loader)
    seen = []
    for batch, _ in zip(loader, accelerator.prepare(DataLoader(range(6))) if kind == "two" else range(6), strict=True):
        seen += batch.tolist()
        if len(seen) == 2:
            replay.mark()
        if len(seen) == 8:
            replay.go_back()
            replay.unmark()
        replay.end_step()
    assert seen == list(range(12))
    assert ("several data loaders" if kind == "two" else "no sampler") in caplog.text
