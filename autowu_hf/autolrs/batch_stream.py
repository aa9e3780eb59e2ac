"""The batches of a prepared data loader as a stream that can go back to a mark.

A stream keeps the indices that the sampler gave, in their order, and not the data. ``accelerate_hooks`` passes every
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

from .positions import Positions

_END = object()


class BatchStream:
    """The batches of one sampler, epoch after epoch, as far as they may be wanted again.

    Args:
        sampler: gives the indices of a batch, or of an example where there are no batches, and has a length.
        dataset_length: the number of examples.

    Attributes:
        identity: the lengths of the sampler and of the dataset, and what orders the examples, "RandomSampler" say.
        positions: where the stream is, and the indices that it keeps.

    Raises:
        TypeError: the sampler has no length.
    """

    def __init__(self, sampler: Any, dataset_length: int) -> None:
        self.sampler = sampler
        inner = sampler
        while hasattr(inner, "batch_sampler"):
            inner = inner.batch_sampler
        self.identity = [len(sampler), dataset_length, type(getattr(inner, "sampler", inner)).__name__]
        self.positions = Positions(len(sampler))
        self._loader: Iterator[Any] | None = None  # accelerate's iteration under way
        self._source: Iterator[Any] | None = None  # the sampler's
        self._seeds: torch.Tensor | None = None  # the generator's state where the next iteration begins

    @property
    def is_open(self) -> bool:
        """Whether an iteration is under way."""
        return self._loader is not None

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
        self._source = None
        self.positions.begin_epoch(skip)
        for listener in [ref() for ref in _listeners]:
            if listener is not None:
                listener.resume(self)
        try:
            while True:
                with self._in_place_of_the_sampler(loader.base_dataloader), self._apart_from_training():
                    self._loader = iter(original(loader))
                    batch = next(self._loader, _END)
                if batch is not _END and not self.positions.in_flight:  # workers that persist have their own sampler
                    loader_alone, self._loader = self._loader, None
                    yield batch
                    yield from loader_alone
                    return
                while batch is not _END:
                    self._deliver()
                    yield batch
                    batch = next(self._loader, _END)
                if self.positions.is_exhausted:
                    return
                loader.iteration -= 1  # it went back when the loader had been handed the epoch's last: the same epoch
        finally:
            self._loader = None

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
        """Keeps training's random numbers as they are while an iteration begins, which draws seeds for samplers and
        workers.

        While any stream can go back, and once after this one did, the seeds come from random numbers of the stream's
        own: each time that training goes back, epochs and evaluations begin after another number of its steps.
        """
        is_apart = self.positions.went_back or any(stream.positions.is_marked for stream in _streams.values())
        self.positions.went_back = False
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
            for _ in range(self.positions.items_before()):
                next(self._source, None)
        yield from self.positions.hand_out(self._source)

    def _deliver(self) -> None:
        self.positions.deliver()
        if all(ref() is not self for ref in _recent):
            _recent.append(weakref.ref(self))

    def go_back(self) -> None:
        """The next batch is the one after the mark; what the loader has read ahead is thrown away."""
        for _ in range(self.positions.go_back()):
            if self._loader is not None:
                next(self._loader, None)

    def state_dict(self) -> dict[str, Any]:
        """Where it is; what is carried is not in it."""
        return {"identity": [*self.identity], **self.positions.state_dict()}


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
    """Whoever wants to go back; ``BatchReplay`` does."""

    def resume(self, stream: BatchStream) -> None:
        """Called at the beginning of every epoch; may set the stream to where it was in an earlier run."""


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
