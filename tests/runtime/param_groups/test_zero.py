"""Stand-ins for DeepSpeed's optimizers, one process among two; ``test_launchers`` runs the real ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from autowu_hf.runtime.param_groups import parameters_of, shares_out_of_reach, trained_ids, zero_of
from autowu_hf.runtime.param_groups import zero as zero_module


@pytest.fixture(autouse=True)
def two_processes(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None: 1)


class Stand:
    """What every one of DeepSpeed's has."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.clip_grad, self._global_grad_norm = 0.0, None

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def state(self):
        return self.optimizer.state


class DeepSpeedZeroOptimizer(Stand):
    """Of 3 x 4 and 2 weights the second process has the last 7: 5 of the first tensor, and the second."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        weight, bias = optimizer.param_groups[0]["params"]
        self.bit16_groups = [[weight, bias]]
        self.bit16_groups_flat = [torch.cat([weight.detach().reshape(-1), bias.detach()])]
        self.single_partition_of_fp32_groups = [torch.arange(7.0)]
        self.real_dp_process_group = [None]
        for parameter, start, numel in ((weight, 0, 5), (bias, 5, 2)):
            address = SimpleNamespace(start=start, numel=numel)
            parameter._hp_mapping = SimpleNamespace(get_hp_fragment_address=lambda address=address: address)
        optimizer.param_groups[0]["params"] = self.single_partition_of_fp32_groups


class DeepSpeedZeroOptimizer_Stage3(Stand):  # noqa: N801, DeepSpeed's name
    """Of 7 and 3 weights each process has 4 and 2, so that the second one's are padded by one each."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        parameters = optimizer.param_groups[0]["params"]
        for parameter, share in zip(parameters, (4, 2), strict=True):
            parameter.partition_numel = lambda share=share: share
            parameter.ds_numel, parameter.ds_shape = parameter.numel(), parameter.shape
        self.fp16_groups = [parameters]
        self.fp16_partitioned_groups_flat = [torch.zeros(6)]
        self.fp32_partitioned_groups_flat = [torch.arange(6.0)]
        self.sub_group_to_group_id, self.partition_count, self.dp_process_group = {0: 0}, 2, None
        self.persistent_parameters = parameters[1:]
        optimizer.param_groups[0]["params"] = []


def made(*shapes, kind=DeepSpeedZeroOptimizer):
    parameters = [nn.Parameter(torch.ones(*shape)) for shape in shapes]
    return kind(torch.optim.SGD(parameters, lr=0.1)), parameters


def test_the_pieces_of_flat_groups_are_views_in_the_order_of_the_parameters():
    optimizer, parameters = made((3, 4), (2,))
    zero = zero_of(optimizer)
    assert [piece.tolist() for piece in zero.pieces] == [[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0]]
    assert zero.groups == [zero.pieces]
    assert zero.num_shares == 2
    zero.flats[0] += 1.0
    assert zero.pieces[1].tolist() == [6.0, 7.0]
    assert trained_ids(optimizer) >= {*map(id, parameters)}
    assert [t.numel() for t in parameters_of(optimizer)] == [7, 14]


def test_the_pieces_of_zero_3_leave_out_what_pads_them():
    optimizer, parameters = made((7,), (3,), kind=DeepSpeedZeroOptimizer_Stage3)
    zero = zero_of(optimizer)
    assert [piece.tolist() for piece in zero.pieces] == [[0.0, 1.0, 2.0], [4.0]]
    assert [t.numel() for t in parameters_of(optimizer)] == [6, 6, 3]
    assert parameters_of(optimizer)[2].data_ptr() == parameters[1].data_ptr()


def test_a_piece_that_is_the_whole_parameter_has_its_shape(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None: 0)
    optimizer, _ = made((2, 2), (2,), kind=DeepSpeedZeroOptimizer_Stage3)
    assert [piece.shape for piece in zero_of(optimizer).pieces] == [(2, 2), (2,)]


def test_a_schedule_that_was_made_for_the_optimizer_inside_knows_it_too():
    optimizer, _ = made((3, 4), (2,))
    assert zero_of(optimizer.optimizer) is None
    known = zero_of(optimizer)
    assert zero_of(optimizer.optimizer) is known
    assert zero_of(optimizer) is known


def test_gradients_are_shown_of_what_is_stepped_alone():
    optimizer, _ = made((3, 4), (2,))
    zero = zero_of(optimizer)
    assert zero.show_gradients(optimizer.optimizer) == []
    zero.flats[0].grad = torch.arange(7.0) * 10.0
    shown = zero.show_gradients(optimizer.optimizer)
    assert [piece.grad.tolist() for piece in shown] == [[0.0, 10.0, 20.0, 30.0, 40.0], [50.0, 60.0]]
    zero.hide_gradients()
    assert all(piece.grad is None for piece in zero.pieces)
    optimizer.optimizer.param_groups = []  # another group is being stepped
    assert zero.show_gradients(optimizer.optimizer) == []
    assert not zero.begins(optimizer.optimizer)
    assert not zero.ends(optimizer.optimizer)


def test_the_groups_are_those_of_a_state_that_was_loaded_since():
    optimizer, _ = made((3, 4), (2,))
    zero = zero_of(optimizer)
    inner = optimizer.optimizer
    inner.load_state_dict(inner.state_dict())
    inner.param_groups[0]["lr"] = 0.7
    assert zero.begins(inner)
    assert [group["lr"] for group in zero.param_groups] == [0.7]


@pytest.mark.parametrize(
    ("limit", "norm", "divisor"), [(0.0, None, 1.0), (1.0, None, None), (1.0, 0.5, 1.0), (1.0, 3.0, 3.0 + 1e-6)]
)
def test_what_the_gradients_were_divided_by(limit, norm, divisor):
    optimizer, _ = made((3, 4), (2,))
    optimizer.clip_grad, optimizer._global_grad_norm = limit, norm
    assert zero_of(optimizer).clipping() == divisor


def experts(optimizer):
    optimizer.real_dp_process_group = [0, 1]


def on_a_disk(optimizer):
    optimizer.single_partition_of_fp32_groups = [torch.zeros(0)]


def tensor_parallel(optimizer):
    optimizer.model_parallel_world_size = 2


def another_release(optimizer):
    del optimizer.bit16_groups


@pytest.mark.parametrize("change", [experts, on_a_disk, tensor_parallel, another_release])
def test_what_is_kept_in_another_way_is_out_of_reach(monkeypatch, change):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2 + (group or 0))
    optimizer, _ = made((3, 4), (2,))
    change(optimizer)
    assert zero_of(optimizer) is None
    assert "out of reach" in shares_out_of_reach(optimizer).reason


@pytest.mark.parametrize(
    "kept",
    [{"fp16_partitioned_groups_flat": [None]}, {"offload_optimizer": True, "partial_offload": 0.5}],
    ids=["on a disk", "by a second optimizer"],
)
def test_what_zero_3_keeps_elsewhere_is_out_of_reach(kept):
    optimizer, _ = made((7,), (3,), kind=DeepSpeedZeroOptimizer_Stage3)
    vars(optimizer).update(kept)
    assert shares_out_of_reach(optimizer).reason == zero_module._ELSEWHERE


def test_an_optimizer_in_the_place_of_the_one_that_a_schedule_was_made_for_is_no_good():
    optimizer, _ = made((3, 4), (2,))
    assert shares_out_of_reach(optimizer) is None
    assert shares_out_of_reach(optimizer, made_for=optimizer.optimizer) is None
    other = torch.optim.Adagrad([nn.Parameter(torch.ones(1))])
    assert "in the place of" in shares_out_of_reach(optimizer, made_for=other).reason


def test_the_wrap_of_accelerate_alone_divides_nothing():
    class DeepSpeedOptimizerWrapper(Stand):
        pass

    class FP16_Optimizer(Stand):  # noqa: N801, DeepSpeed's name
        pass

    FP16_Optimizer.__module__ = "deepspeed.runtime.fp16.fused_optimizer"
    inner = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    assert shares_out_of_reach(DeepSpeedOptimizerWrapper(inner)) is None
    obstacle = shares_out_of_reach(DeepSpeedOptimizerWrapper(FP16_Optimizer(inner)))
    assert "an optimizer of its own, FP16_Optimizer," in obstacle.reason

    class FusedAdam(torch.optim.SGD):
        pass

    FusedAdam.__module__ = "deepspeed.ops.adam.fused_adam"
    fused = FusedAdam([nn.Parameter(torch.ones(1))], lr=0.1)
    for optimizer in (fused, DeepSpeedOptimizerWrapper(fused)):
        assert "an optimizer of its own, FusedAdam," in shares_out_of_reach(optimizer).reason
