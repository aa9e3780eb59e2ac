from __future__ import annotations

import torch

from autowu_hf.runtime.random_state import get_random_state, set_random_state

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
