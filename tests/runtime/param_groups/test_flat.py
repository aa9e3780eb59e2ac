"""FSDP1's flat parameters, made by torch's own code without processes; ``test_scale_launchers`` has real ones."""

from __future__ import annotations

import pytest
import torch
from stand_ins.flat import flat_parameter
from torch import nn

from autowu_hf.runtime.param_groups import cut, num_tensors


def test_what_is_not_flat_is_one_tensor():
    parameter = nn.Parameter(torch.ones(2, 3))
    assert num_tensors(parameter) == 1
    (whole,) = cut(parameter, parameter)
    assert whole is parameter


@pytest.mark.parametrize("num_shares", [1, 2, 3, 5])
def test_the_pieces_of_all_processes_are_the_tensors_without_what_pads_them(num_shares):
    tensors = [torch.arange(1.0, 7.0).reshape(2, 3), torch.tensor([7.0]), torch.arange(8.0, 12.0)]
    shares = [flat_parameter(tensors, rank, num_shares) for rank in range(num_shares)]
    assert [num_tensors(share) for share in shares] == [3] * num_shares
    pieces = zip(*(cut(share, share) for share in shares), strict=True)
    for tensor, held in zip(tensors, pieces, strict=True):
        assert torch.cat([piece.reshape(-1) for piece in held]).tolist() == tensor.reshape(-1).tolist()
        assert all(piece.shape == tensor.shape for piece in held if piece.numel() == tensor.numel())
        assert all(piece.dim() == 1 for piece in held if piece.numel() < tensor.numel())


def test_gradients_and_copies_are_cut_as_views():
    share = flat_parameter([torch.zeros(2, 2), torch.zeros(3)], 0, 1)
    gradient = torch.arange(7.0)
    weight, bias = cut(share, gradient)
    assert weight.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    gradient += 1.0
    assert bias.tolist() == [5.0, 6.0, 7.0]


def test_a_tensor_with_an_order_of_its_own_in_memory_has_its_rows():
    image = torch.randn(3, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    share = flat_parameter([image], 0, 1)
    assert torch.equal(cut(share, share)[0], image)


def test_one_that_is_put_together_for_a_while_counts_as_a_whole():
    share = flat_parameter([torch.zeros(2, 2), torch.zeros(4)], 0, 2)
    share.data = torch.zeros(8)  # as within summon_full_params
    assert num_tensors(share) == 1
    assert cut(share, share)[0] is share
