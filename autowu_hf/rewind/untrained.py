"""The tensors of the models that the optimizer does not train: which of them belong to a snapshot.

These are the buffers (statistics of batch norm, queues, masks, weights of a quantised base) and the parameters without
gradients (a momentum teacher, or a frozen base). What changes must go back with the weights. What does not change need
not be copied at all, and may be far larger than what is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from ..runtime import collective
from ..runtime.finite import parts
from ..runtime.param_groups import trained_ids
from .tensors import Mark, copied, marks, num_bytes

logger = logging.getLogger(__name__)

_LITTLE = 16 * 2**20
_WRAPS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")


def find_untrained(optimizer: Optimizer, models: Sequence[nn.Module], also: Collection[str] = ()) -> dict[str, Tensor]:
    """Buffers and parameters without gradients by name, each once; the wraps of launchers and compilers leave no trace
    in the names. Parameters that need gradients and are not this optimizer's are another one's. Those that
    ``also`` names count too, for they were not trained once.
    """
    own = trained_ids(optimizer)
    named: dict[str, Tensor] = {}
    for i, model in enumerate(models):
        for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
            for wrap in _WRAPS:
                name = name.replace(wrap, "")
            name = f"{i}.{name}"
            is_trained = isinstance(tensor, nn.Parameter) and (tensor.requires_grad or id(tensor) in own)
            if not is_trained or name in also:
                named[name] = tensor
    return named


class Untrained:
    """Knows which of these tensors have changed since it saw them first, and copies what snapshots need of them.

    Those that have changed are in every snapshot. Of the rest the smallest are, as long as they are no larger together
    than all else in a snapshot, or than 16 MiB: should they change later, earlier snapshots have them already. Of the
    larger ones, a mark only is kept, and they are copied from the snapshot on at which they have changed.

    Args:
        shares: whether snapshots share the copy of a tensor that does not change; it stays in memory.
        changed: the names of those that are known to have changed before.

    Attributes:
        changed: the names of those that have changed.
    """

    def __init__(self, shares: bool = True, changed: Iterable[str] = ()) -> None:
        self.changed = set(changed)
        self._shares = shares
        self._marks: dict[str, Mark] = {}
        self._copies: dict[str, Tensor] = {}
        self._left_out: set[str] = set()

    def look(self, named: Mapping[str, Tensor]) -> None:
        """Takes notice of what has changed: one pass over those that had not, and one wait for their device.

        Args:
            named: from ``find_untrained``.
        """
        for name, mark in marks({n: t for n, t in named.items() if n not in self.changed}).items():
            if mark is None or self._marks.setdefault(name, mark) != mark:
                self.changed.add(name)
                self._copies.pop(name, None)

    def _wanted(self, named: Mapping[str, Tensor], trained_bytes: int) -> list[str]:
        """The names of those that belong to a snapshot; warns once of those that cannot be copied."""
        within_reach = {name: tensor for name, tensor in named.items() if parts(tensor) is not None}
        left_out = sorted(named.keys() - within_reach.keys() - self._left_out)
        self._left_out.update(left_out)
        if left_out and collective.is_main_process():
            logger.warning("these buffers cannot be copied, and stay as they are when the run goes back: %s", left_out)
        wanted, room = [], max(trained_bytes, _LITTLE)
        for size, name in sorted((num_bytes(tensor), name) for name, tensor in within_reach.items()):
            if name not in self.changed:
                room -= size
            if name in self.changed or room >= 0:
                wanted.append(name)
        return wanted

    def size(self, named: Mapping[str, Tensor], trained_bytes: int) -> int:
        """The host memory, in bytes, that they take in a snapshot; arguments as in ``copies``."""
        return sum(num_bytes(named[name], is_pinned=True) for name in self._wanted(named, trained_bytes))

    def copies(self, named: Mapping[str, Tensor], trained_bytes: int) -> dict[str, Tensor]:
        """What a snapshot keeps of them, by name.

        Args:
            named: from ``find_untrained``.
            trained_bytes: the size of all else in the snapshot.
        """
        self.look(named)
        wanted = self._wanted(named, trained_bytes)
        if not self._shares:
            return {name: copied(named[name]) for name in wanted}
        still = [name for name in wanted if name not in self.changed]
        self._copies = {name: self._copies[name] if name in self._copies else copied(named[name]) for name in still}
        return {name: self._copies[name] if name in self._copies else copied(named[name]) for name in wanted}

    def share(self, copies: Mapping[str, Tensor]) -> None:
        """Lets the snapshots to come share the copies of one from a checkpoint, as long as the values are the same.

        Args:
            copies: of a snapshot, by name.
        """
        if self._shares:
            self._copies = {name: copy for name, copy in copies.items() if name not in self.changed}
            self._marks |= {name: mark for name, mark in marks(self._copies).items() if mark is not None}

    def drop_copies(self) -> None:
        """Lets go of the copies that snapshots share, when there are no snapshots any more."""
        self._copies = {}
