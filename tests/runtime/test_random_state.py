from __future__ import annotations

import contextlib
import random

import numpy as np
import torch

from autowu_hf.runtime.random_state import get_random_state, same_random_numbers, set_random_state

CPU = torch.device("cpu")


def test_the_same_numbers_come_again():
    torch.rand(3)
    state = get_random_state(CPU)
    assert (state.dtype, state.dim()) == (torch.uint8, 1)
    first = torch.rand(5)
    set_random_state(state, CPU)
    assert torch.equal(torch.rand(5), first)


def test_what_a_device_has_more_is_left_alone_without_one():
    state = get_random_state(CPU)
    first = torch.rand(5)
    set_random_state(torch.cat([state, torch.zeros(16, dtype=torch.uint8)]), CPU)
    assert torch.equal(torch.rand(5), first)


def test_draws_within_a_block_do_not_show_after_it():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with contextlib.suppress(RuntimeError), same_random_numbers(CPU):
        drawn = random.random(), np.random.rand(3), torch.rand(5)
        raise RuntimeError(f"the user's, after {drawn}")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
