"""The batches of a prepared data loader as a stream that can go back to a mark.

Not the data is kept but its indices, in the order in which the sampler gave them. ``accelerate_hooks`` passes every
iteration over a data loader through ``iterate``, which does nothing while no one listens.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from accelerate.data_loader import SkipBatchSampler
from torch.utils.data import DataLoader, IterableDataset

_END = object()


class BatchStream:
    """The batches of one sampler, epoch after epoch, as far as they are not over and done with.

    A batch is known by its position: 0 is the first that the sampler gives in the epoch under way, those that are left
    of earlier epochs have negative ones. The data loader is handed batches before it delivers them, by as many as it
    reads ahead. However often the stream goes back, an epoch delivers as many batches as the sampler has.

    Args:
        sampler: gives the indices of a batch, or of an example where there are no batches, and has a length.
        dataset_length: the number of examples.

    Attributes:
        identity: the lengths of the sampler and of the dataset, and what orders the examples, "RandomSampler" say.
        is_marked: whether it can go back.
        epoch: counts the iterations that were begun.
        done: the batches that were delivered, or skipped, in this epoch.

    Raises:
        TypeError: the sampler has no length.
    """

    def __init__(self, sampler: Any, dataset_length: int) -> None:
        self.sampler = sampler
        inner = sampler
        while hasattr(inner, "batch_sampler"):
            inner = inner.batch_sampler
        self.identity = [len(sampler), dataset_length, type(getattr(inner, "sampler", inner)).__name__]
        self._length = len(sampler)
        self.is_marked = False
        self.epoch = 0
        self.done = 0
        self._loader: Iterator[Any] | None = None  # accelerate's iteration under way
        self._source: Iterator[Any] | None = None  # the sampler's
        self._offset = 0  # of position 0 in the sampler's epoch
        self._has_limit = False
        self._kept: list[Any] = []
        self._first = 0  # the position of the first that is kept
        self._handed = 0  # the position of the next to be handed to the loader
        self._delivered = 0  # the position of the next to be delivered
        self._furthest = 0  # the highest position that was delivered, plus one
        self._seeds: torch.Tensor | None = None  # the generator's state where the next iteration begins
        self._went_back = False  # since the last delivery

    @property
    def is_open(self) -> bool:
        """Whether an iteration is under way."""
        return self._loader is not None

    @property
    def is_at_end(self) -> bool:
        """Whether this epoch has no batches left."""
        return self.done >= self._length

    @property
    def _left(self) -> int:
        return self._length - self.done

    @property
    def _end(self) -> int:
        return self._first + len(self._kept)

    def batches(self, loader: Any, original: Callable[[Any], Iterator[Any]], skip: int) -> Iterator[Any]:
        """The batches of an epoch.

        Args:
            loader: accelerate's data loader.
            original: its own iteration.
            skip: how many of the sampler's batches are skipped.
        """
        if self.is_open:  # two iterations at once
            yield from original(loader)
            return
        self._begin(skip)
        for listener in [ref() for ref in _listeners]:
            if listener is not None:
                listener.resume(self)
        try:
            while True:
                with self._in_place_of_the_sampler(loader.base_dataloader), self._apart_from_training():
                    self._loader = iter(original(loader))
                    batch = next(self._loader, _END)
                if batch is not _END and self._handed == self._delivered:  # workers that persist have their own sampler
                    loader_alone, self._loader = self._loader, None
                    yield batch
                    yield from loader_alone
                    return
                while batch is not _END:
                    self._deliver()
                    yield batch
                    batch = next(self._loader, _END)
                if self._left <= 0 or self._handed >= self._end:
                    return
                loader.iteration -= 1  # it went back when the loader had been handed the epoch's last: the same epoch
        finally:
            self._loader = None

    def _begin(self, skip: int) -> None:
        """An epoch: what was handed out but never delivered is forgotten."""
        del self._kept[max(self._furthest - self._first, 0) :]
        shift = self._end
        self._first -= shift
        self._furthest -= shift
        self._delivered -= shift
        self._handed = self._delivered
        self._forget()
        self.epoch += 1
        self._source, self._offset, self.done = None, skip, skip
        self._has_limit = self._delivered < 0 or self.is_marked

    def _forget(self) -> None:
        """What no one will go back to."""
        if not self.is_marked:
            del self._kept[: self._delivered - self._first]
            self._first = self._delivered

    @contextlib.contextmanager
    def _in_place_of_the_sampler(self, base: Any) -> Iterator[None]:
        """While torch's data loader begins to iterate, and asks for its sampler."""
        name = "sampler" if base.batch_sampler is None else "batch_sampler"
        own = getattr(base, name)
        object.__setattr__(base, name, _Sampler(self, own))  # torch's own refuses it
        try:
            yield
        finally:
            object.__setattr__(base, name, own)

    @contextlib.contextmanager
    def _apart_from_training(self) -> Iterator[None]:
        """While a stream can go back, and once after it did, what begins an iteration (the seeds of samplers and
        workers) is drawn from random numbers of its own: epochs and evaluations come at another place each time, and
        training's random numbers are to stay the same.
        """
        is_apart = self._went_back or any(stream.is_marked for stream in _streams.values())
        self._went_back = False
        if not is_apart:
            self._seeds = None
            yield
            return
        of_training = torch.get_rng_state()
        if self._seeds is not None:
            torch.set_rng_state(self._seeds)
        try:
            yield
        finally:
            self._seeds = torch.get_rng_state()
            torch.set_rng_state(of_training)

    def hand_out(self) -> Iterator[Any]:
        """What the sampler would give, from where this stream is."""
        if self._source is None:
            self._source = iter(self.sampler)
            for _ in range(self._offset + self._end):
                next(self._source, None)
        while not (self._has_limit and self._handed - self._delivered >= self._left):
            while self._end <= max(self._handed, self._furthest - 1):  # in a resumed run several
                item = next(self._source, _END)
                if item is _END:
                    return
                self._kept.append(item)
            self._handed += 1
            yield self._kept[self._handed - 1 - self._first]

    def _deliver(self) -> None:
        self._delivered += 1
        self.done += 1
        self._went_back = False
        self._furthest = max(self._furthest, self._delivered)
        self._forget()
        for ref in _recent:
            if ref() is self:
                return
        _recent.append(weakref.ref(self))

    def mark(self) -> None:
        """From now on it can go back to here."""
        self.is_marked = True

    def go_back(self) -> None:
        """The next batch is the one after the mark; what the loader has read ahead is thrown away."""
        in_flight = self._handed - self._delivered
        self._delivered = self._handed = self._first
        self._has_limit = self._went_back = True
        for _ in range(in_flight):
            if self._loader is not None:
                next(self._loader, None)

    def unmark(self) -> None:
        """It goes back no more; batches that were delivered before are delivered again until they are through."""
        self.is_marked = False
        self._forget()

    def carried(self) -> list[Any]:
        """The batches of earlier epochs that will be needed; at the end of an epoch its own are among them."""
        n = self._furthest - self._first if self.is_at_end else -self._first
        return self._kept[: max(n, 0)]

    def state_dict(self) -> dict[str, Any]:
        """Where it is; what is carried is not in it."""
        shift = self._furthest if self.is_at_end else 0  # as in the epoch that follows
        return {
            "identity": [*self.identity],
            "done": 0 if self.is_at_end else self.done,
            "offset": 0 if self.is_at_end else self._offset,
            "first": self._first - shift,
            "delivered": self._delivered - shift,
            "furthest": self._furthest - shift,
            "is_marked": self.is_marked,
            "went_back": self._went_back,
        }

    def load_state_dict(self, state: dict[str, Any], carried: list[Any]) -> None:
        """Goes on from a state, at the beginning of an iteration.

        Args:
            state: what ``state_dict`` returned.
            carried: as returned when the state was; of those it needs the last ones.
        """
        self._offset, self._first, self._delivered = state["offset"], state["first"], state["delivered"]
        self._handed, self._furthest = self._delivered, state["furthest"]
        self._kept = carried[len(carried) + min(self._first, 0) :]
        self.is_marked = state["is_marked"]
        self._went_back = state.get("went_back", False)
        self._has_limit = True


class _Sampler:
    """Stands in for a sampler where torch's data loader asks for its batches."""

    def __init__(self, stream: BatchStream, own: Any) -> None:
        self._stream, self._own = stream, own

    def __iter__(self) -> Iterator[Any]:
        return self._stream.hand_out()

    def __len__(self) -> int:
        return len(self._own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


_streams: weakref.WeakValueDictionary[int, BatchStream] = weakref.WeakValueDictionary()  # by the id of the sampler
_listeners: list[weakref.ref[Listener]] = []
_recent: list[weakref.ref[BatchStream]] = []
"""Those that delivered since ``forget_recent``."""


class Listener(Protocol):
    """Who wants to go back."""

    def resume(self, stream: BatchStream) -> None:
        """Is told of every epoch that begins, and may set the stream to where it was in an earlier run."""


def listen(listener: Listener) -> None:
    """From now on, as long as the listener is alive, iterations over prepared data loaders are streams."""
    _listeners.append(weakref.ref(listener, _listeners.remove))


def recent() -> list[BatchStream]:
    """Those under way that have delivered a batch since ``forget_recent`` was called last."""
    return [stream for ref in _recent if (stream := ref()) is not None and stream.is_open]


def forget_recent() -> None:
    """See ``recent``."""
    _recent.clear()


def iterate(loader: Any, original: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
    """An iteration over a data loader that accelerate prepared.

    Args:
        loader: the data loader.
        original: its own iteration.
    """
    base = getattr(loader, "base_dataloader", None)
    if not _listeners or type(base) is not DataLoader or isinstance(base.dataset, IterableDataset):
        return original(loader)
    sampler = base.sampler if base.batch_sampler is None else base.batch_sampler
    skip = 0
    while isinstance(sampler, SkipBatchSampler):  # of a run that is resumed
        skip += sampler.skip_batches
        sampler = sampler.batch_sampler
    if not getattr(base, "in_order", True):
        return original(loader)
    stream = _streams.get(id(sampler))
    if stream is None:
        try:
            stream = BatchStream(sampler, len(base.dataset))  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):  # without a length
            return original(loader)
        _streams[id(sampler)] = stream
    return stream.batches(loader, original, skip)
