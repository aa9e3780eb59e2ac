"""Random numbers: the state of the generators that a training step draws from, and its way back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def get_random_state(device: torch.device) -> Tensor:
    """(n,), uint8, on the CPU: the state of the generator of the CPU, followed by that of a device.

    Args:
        device: where the model computes.
    """
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device).cpu())
    return torch.cat(states)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Restores what ``get_random_state`` returned.

    Args:
        state: (n,), uint8.
        device: where the model computes; a state of another kind of device restores the CPU's alone.
    """
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size].clone())
    if device.type != "cpu" and len(state) > size:
        torch.get_device_module(device).set_rng_state(state[size:].clone(), device)


@contextlib.contextmanager
def same_random_numbers(device: torch.device, generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Draws from the generators of Python, numpy and torch within the block do not show after it.

    Args:
        device: where the model computes.
        generators: others that are put back, too.
    """
    states = random.getstate(), np.random.get_state(), get_random_state(device)
    of_others = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, of_others, strict=True):
            generator.set_state(state)
        random.setstate(states[0])
        np.random.set_state(states[1])
        set_random_state(states[2], device)


def generators_of(batches: object) -> list[torch.Generator]:
    """Those that decide the order of a DataLoader's data: its own, and those of its samplers; none of anything else."""
    batch_sampler = getattr(batches, "batch_sampler", None)
    places = (batches, getattr(batches, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(place, "generator", None) for place in places]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
