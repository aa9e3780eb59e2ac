"""Where a stream of batches is, and what it keeps to go back: arithmetic on positions, without any data loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_END = object()


class Positions:
    """The positions of a stream's batches, epoch after epoch, and the items that it may need again.

    An *item* is what the sampler gives for a batch: its indices. A batch is known by its *position*: 0 is the first
    batch that the sampler gives in the epoch under way, and the batches that are left of earlier epochs have negative
    positions. A data loader reads ahead: it is *handed* an item some time before it *delivers* that item's batch.
    However often the stream goes back, an epoch delivers as many batches as the sampler has.

    Args:
        length: the items that the sampler gives in an epoch.

    Attributes:
        length: as given.
        epoch: counts the epochs that were begun.
        done: the batches that were delivered, or skipped, in this epoch.
        offset: the place of position 0 in the sampler's epoch: the items that were skipped.
        first: the position of the first item that is kept.
        kept: the items from ``first`` on.
        handed: the position of the next item to be handed to the loader.
        delivered: the position of the next batch to be delivered.
        furthest: the highest position that was delivered, plus one.
        is_marked: whether it can go back; the mark is at ``first``.
        has_limit: whether the epoch's end is counted, because it comes at another item than the sampler's last.
        went_back: whether nothing was delivered since it went back.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = 0
        self.done = 0
        self.offset = 0
        self.first = 0
        self.kept: list[Any] = []
        self.handed = 0
        self.delivered = 0
        self.furthest = 0
        self.is_marked = False
        self.has_limit = False
        self.went_back = False

    @property
    def left(self) -> int:
        """The batches that this epoch still has to deliver."""
        return self.length - self.done

    @property
    def is_at_end(self) -> bool:
        """Whether this epoch has no batches left."""
        return self.left <= 0

    @property
    def end(self) -> int:
        """The position after the last item that is kept."""
        return self.first + len(self.kept)

    @property
    def in_flight(self) -> int:
        """The batches that the loader was handed and has not delivered."""
        return self.handed - self.delivered

    @property
    def is_exhausted(self) -> bool:
        """Whether a loader that ended has delivered all that the epoch has; False: the stream went back meanwhile."""
        return self.is_at_end or self.handed >= self.end

    def begin_epoch(self, skip: int) -> None:
        """An epoch begins, where the last one ended or was broken off; what was never delivered is forgotten.

        Args:
            skip: the sampler's items that are left out.
        """
        del self.kept[max(self.furthest - self.first, 0) :]
        shift = self.end
        self.first -= shift
        self.furthest -= shift
        self.delivered -= shift
        self.handed = self.delivered
        self._forget()
        self.epoch += 1
        self.offset = self.done = skip
        self.has_limit = self.delivered < 0 or self.is_marked

    def items_before(self) -> int:
        """The sampler's items to pass over before the first that ``hand_out`` asks for."""
        return self.offset + self.end

    def hand_out(self, source: Iterator[Any]) -> Iterator[Any]:
        """What a data loader is handed from here on, item by item; it may change its place between two of them.

        Args:
            source: the sampler's items, from the first that is not kept.
        """
        while not (self.has_limit and self.in_flight >= self.left):
            while self.end <= max(self.handed, self.furthest - 1):  # in a resumed run several
                item = next(source, _END)
                if item is _END:
                    return
                self.kept.append(item)
            self.handed += 1
            yield self.kept[self.handed - 1 - self.first]

    def deliver(self) -> None:
        """The loader delivers its next batch."""
        self.delivered += 1
        self.done += 1
        self.went_back = False
        self.furthest = max(self.furthest, self.delivered)
        self._forget()

    def mark(self) -> None:
        """From now on it can go back to here."""
        self.is_marked = True

    def go_back(self) -> int:
        """The next batch is the one after the mark.

        Returns:
            How many batches the loader has read ahead; whoever reads from it throws them away.
        """
        in_flight = self.in_flight
        self.delivered = self.handed = self.first
        self.has_limit = self.went_back = True
        return in_flight

    def unmark(self) -> None:
        """It goes back no more; batches that were delivered before are delivered again until they are through."""
        self.is_marked = False
        self._forget()

    def _forget(self) -> None:
        """Drops the items before the next delivery, unless they are wanted for going back."""
        if not self.is_marked:
            del self.kept[: self.delivered - self.first]
            self.first = self.delivered

    def carried(self) -> list[Any]:
        """The items of earlier epochs that will be needed; at the end of an epoch its own are among them."""
        n = self.furthest - self.first if self.is_at_end else -self.first
        return self.kept[: max(n, 0)]

    def state_dict(self) -> dict[str, Any]:
        """Where it is, at the end of an epoch as seen from the next; the items are not in it (see ``carried``)."""
        shift = self.furthest if self.is_at_end else 0
        return {
            "done": 0 if self.is_at_end else self.done,
            "offset": 0 if self.is_at_end else self.offset,
            "first": self.first - shift,
            "delivered": self.delivered - shift,
            "furthest": self.furthest - shift,
            "is_marked": self.is_marked,
            "went_back": self.went_back,
        }

    def load_state_dict(self, state: dict[str, Any], carried: list[Any]) -> None:
        """Goes on from a state, in an epoch that begins.

        Args:
            state: what ``state_dict`` returned.
            carried: what ``carried`` returned then; the last ones are enough.
        """
        self.offset, self.first, self.delivered = state["offset"], state["first"], state["delivered"]
        self.handed, self.furthest = self.delivered, state["furthest"]
        self.kept = carried[len(carried) + min(self.first, 0) :]
        self.is_marked = state["is_marked"]
        self.went_back = state.get("went_back", False)
        self.has_limit = True
