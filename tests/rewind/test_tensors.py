from __future__ import annotations

import pytest
import torch
from rewind_runs import small, train_step
from tiny import get_schedule
from torch import nn

from autowu_hf.rewind import tensors
from autowu_hf.runtime.finite import OutOfReachError, is_finite, parts
from autowu_hf.runtime.update_meter import UpdateMeter


class Quantised(torch.Tensor):
    """Behaves like the state of an 8-bit optimizer: it wraps codes and a scale, and does next to nothing."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(f"{func} of {types}")

    def values(self):
        return self.codes * self.scale

    def set(self, values):
        self.scale.copy_(values.abs().max() / 127)
        self.codes.copy_((values / self.scale).round())


class Closed(Quantised):
    """One that does not say what it wraps."""

    __tensor_flatten__ = property()


class EightBitSGD(torch.optim.Optimizer):
    """SGD whose momentum is ``Quantised``."""

    kind = Quantised

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = self.kind(torch.zeros_like(p, dtype=torch.int8), torch.ones(()))
                state["momentum"].set(0.9 * state["momentum"].values() + p.grad)
                p.sub_(group["lr"] * state["momentum"].values())


def inference():
    with torch.inference_mode():
        return torch.ones(3)


KINDS = {
    "dense": lambda: torch.ones(2, 3),
    "transposed": lambda: torch.ones(3, 2).t(),
    "expanded": lambda: torch.ones(1, 4).expand(3, 4),
    "expanded element": lambda: torch.ones(1).expand(5, 5),
    "expanded scalar": lambda: torch.tensor(1.0).expand(3),
    "one of every eight": lambda: torch.arange(8.0)[3::8],
    "scalar": lambda: torch.tensor(1.0),
    "coo": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "csc": lambda: torch.eye(3).to_sparse_csc(),
    "bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "float8_e5m2": lambda: torch.ones(3).to(torch.float8_e5m2),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "bool": lambda: torch.ones(3, dtype=torch.bool),
    "empty": lambda: torch.ones(0),
    "inference": inference,
    "subclass": lambda: Quantised(torch.ones(3, dtype=torch.int8), torch.ones(())),
}

OUT_OF_REACH = {
    "meta": lambda: torch.ones(3, device="meta"),
    "mkldnn": lambda: torch.ones(3, 3).to_mkldnn(),
    "lazy": lambda: nn.LazyLinear(3).weight,
    "subclass": lambda: Closed(torch.ones(3, dtype=torch.int8), torch.ones(())),
}


def change(tensor):
    part = parts(tensor)[-1]
    with torch.inference_mode(part.is_inference()):
        part.copy_(torch.zeros_like(part))


def bits(tensor):
    return [part.resolve_conj().clone() for part in parts(tensor)]


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_any_kind_are_copied_put_back_and_known_again(kind):
    tensor = KINDS[kind]()
    before, mark = bits(tensor), tensors.marks({"it": tensor})
    taken = tensors.copied(tensor)
    assert tensors.num_bytes(taken) == tensors.num_bytes(tensor) == sum(b.numel() * b.element_size() for b in before)
    assert is_finite(tensor)
    change(tensor)
    assert (tensors.marks({"it": tensor}) == mark) is (kind == "empty")
    assert tensors.fill(tensor, taken)
    assert all(torch.equal(a, b) for a, b in zip(bits(tensor), before, strict=True))
    assert tensors.marks({"it": tensor}) == mark
    again = tensors.put_back(None, taken, None)
    assert type(again) is type(tensor)
    assert again.shape == tensor.shape
    assert not tensors.fill(tensor, torch.ones(7))


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_such_a_buffer_trains_to_the_switch_and_goes_back(kind):
    model, optimizer = small()
    model[1] = nn.Tanh()  # no other buffers
    model.register_buffer("it", KINDS[kind]())
    before = bits(model.it)
    schedule = get_schedule(optimizer, 40, model=model, test_every=3)
    for step in range(1, 21):
        train_step(model, optimizer, schedule, abs(step - 10.0))
        if step == 10:
            change(model.it)
    assert schedule.rewound_to < 10 < schedule.switch_step == 20
    assert all(torch.equal(a, b) for a, b in zip(bits(model.it), before, strict=True))


@pytest.mark.parametrize("kind", OUT_OF_REACH)
def test_what_cannot_be_copied_is_told(kind):
    tensor = OUT_OF_REACH[kind]()
    assert parts(tensor) is None
    assert tensors.num_bytes(tensor) == 0
    assert tensors.marks({"it": tensor}) == {}
    assert is_finite(tensor)
    assert not tensors.fill(tensor, torch.ones(3))
    with pytest.raises(OutOfReachError, match="whose values cannot be copied"):
        tensors.copied(tensor)


@pytest.mark.parametrize("kind", ["coo", "csr", "float8", "float8_e5m2", "complex", "dense"])
def test_what_is_not_finite_is_noticed_in_tensors_of_any_kind(kind):
    tensor = KINDS[kind]()
    parts(tensor)[-1].view(-1)[0] = float("nan")
    assert not is_finite(tensor)


@pytest.mark.parametrize("size", [1, 7, 1000, 300_001])
def test_a_mark_shows_a_change_of_one_bit_and_numbers_that_change_places(size):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(size))
    marks = [tensors.marks({"p": p})]
    p.data[size // 2] = torch.nextafter(p.data[size // 2], torch.tensor(9.0))
    marks.append(tensors.marks({"p": p}))
    if size > 1:
        p.data = p.data.roll(1)
        marks.append(tensors.marks({"p": p}))
        p.data = p.data.roll(4096)
        marks.append(tensors.marks({"p": p}))
        p.data = p.data.roll(-4097)
        assert tensors.marks({"p": p}) == marks[1]
    assert len(marks) == len({repr(mark) for mark in marks[: 3 if size < 4096 and 4096 % size == 0 else 4]})
    assert p._version == 0  # which is why torch's counter would not do


@pytest.mark.parametrize("kind", ["float8", "coo", "complex"])
def test_the_meter_does_without_tensors_that_it_cannot_reckon_with(kind):
    weight = nn.Parameter(KINDS[kind](), requires_grad=kind == "complex")
    optimizer = torch.optim.SGD([weight], lr=0.1)
    meter = UpdateMeter(optimizer, [1.0])
    assert (meter.weight_size() > 0.0) is (kind == "complex")
    meter.arm()
    if kind == "complex":
        weight.abs().square().sum().backward()
    optimizer.step()
    (update,) = meter.updates
    meter.disarm()
    if kind == "complex":
        assert update.alignment == pytest.approx(1.0)
    else:
        assert update == "the optimizer has no gradients at its step"
