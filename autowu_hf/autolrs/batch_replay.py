"""A search's way back to the batches after the step at which it began, on every process and in a resumed run."""

from __future__ import annotations

import json
import logging
from typing import Any

import torch
from torch import Tensor

from ..runtime import collective
from . import batch_stream
from .batch_stream import BatchStream

logger = logging.getLogger(__name__)


class BatchReplay:
    """A schedule's way back to the batches after the step at which its search began.

    It finds the data loader that training reads from by itself: the one that delivered a batch since the last step.
    """

    def __init__(self) -> None:
        self._stream: BatchStream | None = None
        self._saved: dict[str, Any] | None = None
        self._carried: list[Tensor] = []  # of every process
        self._epoch: int | None = None  # that they are of
        batch_stream.listen(self)

    def mark(self) -> None:
        """From now on it can go back to here."""
        streams = batch_stream.recent()
        self._stream = streams[0] if len(streams) == 1 and not streams[0].positions.is_marked else None
        if self._stream is None:
            logger.info(
                "the batches of this search are not read again for each candidate: %s",
                "training reads from several data loaders, or another search is under way"
                if streams
                else "they are not from a data loader that accelerate prepared, or it has no sampler",
            )
            return
        self._stream.positions.mark()
        self._epoch = self._stream.positions.epoch

    def go_back(self) -> None:
        """The next batch is again the one after the mark."""
        if self._stream is not None:
            self._stream.go_back()

    def unmark(self) -> None:
        """Goes back no more."""
        if self._stream is not None:
            self._stream.positions.unmark()

    def end_step(self) -> None:
        """To be called after each of the schedule's steps; where an epoch ends inside a search, one collective."""
        batch_stream.forget_recent()
        self._saved = None  # training went on with other batches
        if self._stream is None:
            return
        positions = self._stream.positions
        epoch = positions.epoch + positions.is_at_end
        if epoch != self._epoch:
            self._epoch = epoch
            carried = positions.carried()
            self._carried = _gather(carried) if carried else []

    def resume(self, stream: BatchStream) -> None:
        """Goes on where the loaded state was, if that is of this stream and of this place in an epoch, which begins."""
        state = self._saved
        if state is None or state["identity"] != stream.identity or state["done"] != stream.positions.done:
            return
        self._saved = None
        needed = max(-state["first"], 0)
        carried = [row.cpu() for row in state["carried"]]
        if needed and len(carried) != collective.num_processes():
            return
        own = json.loads(carried[collective.process_index()].numpy().tobytes()) if needed else []
        stream.positions.load_state_dict(state, own)
        self._stream, self._carried, self._epoch = stream, carried, stream.positions.epoch

    def state_dict(self) -> dict[str, Any] | None:
        """Of every process at once, the same on each; None where there is nothing to go back to."""
        if self._stream is None:
            return self._saved
        state = self._stream.state_dict()
        return {**state, "carried": [*self._carried] if state["first"] < 0 else []}

    def load_state_dict(self, state: dict[str, Any] | None, is_searching: bool) -> None:
        """Goes on from a state as soon as the data loader is iterated over.

        Args:
            state: what ``state_dict`` returned.
            is_searching: False: it will not go back.
        """
        self._stream = None
        self._saved = None if state is None else {**state, "is_marked": state["is_marked"] and is_searching}


def _gather(items: list[Any]) -> list[Tensor]:
    """The items of every process as bytes of JSON, padded with blanks."""
    try:
        text = json.dumps(items, default=int).encode()
    except (TypeError, ValueError):  # indices of a kind of their own
        return []
    (longest,) = collective.gather_max([len(text)])
    return collective.gather_bytes(torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8))
