"""The gradient of each sample of a batch, by ``torch.func``: its norm, for CLARS and for whoever wants to look."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..runtime.checks import whole

PROBES = 64
"""The entries of a layer's gradient that are kept beside its norm, to see by what the gradients are scaled later."""


@torch.no_grad()
def per_sample_gradient_norms(
    model: nn.Module,
    compute_loss: Callable[..., Tensor] | None,
    batch: Mapping[str, Any] | Sequence[Any],
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """The Euclidean norm of each sample's gradient of each trainable parameter, by ``torch.func``.

    Args:
        model: in the mode in which it is trained; dropout is drawn for each sample.
        compute_loss: called as ``compute_loss(model, **batch)``, or ``(model, *batch)`` for a sequence, for a batch
            of one sample; returns the loss, (). None: the loss that the model returns.
        batch: tensors of shape (B, ...). Tensors of shape () and what is no tensor go to every sample.
        chunk_size: the samples whose gradients are in memory at once. None: all. 1: without vmap.

    Returns:
        By the parameter's name: (B,), in the unit of the gradient, float32 or wider.

    Raises:
        ValueError: the batch has no common first dimension, the model returns no loss, or the samples have no
            gradients of their own, for batch norm mixes them.
        RuntimeError: vmap cannot run the model.
    """
    chunk_size = checked_chunk_size(chunk_size)
    args, kwargs = ((), batch) if isinstance(batch, Mapping) else (tuple(batch), {})
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    records = per_sample_records(model, compute_loss, args, kwargs, chunk_size, names)
    return {name: record[:, 0] for name, record in records.items()}


class _LossOf(nn.Module):
    """A model and its loss as one module, whose parameters ``functional_call`` can replace."""

    def __init__(self, model: nn.Module, compute_loss: Callable[..., Tensor] | None) -> None:
        super().__init__()
        self.model, self.compute_loss = model, compute_loss

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.compute_loss is not None:
            return self.compute_loss(self.model, *args, **kwargs)
        outputs = self.model(*args, **kwargs)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if loss is None:
            raise ValueError(
                f"the model returned no loss but {type(outputs).__name__}; call it with labels, or pass compute_loss"
            )
        return loss


def per_sample_records(
    model: nn.Module,
    compute_loss: Callable[..., Tensor] | None,
    args: Any,
    kwargs: Any,
    chunk_size: int | None,
    names: Collection[str],
) -> dict[str, Tensor]:
    """What ``record`` says of each sample's gradient, (B, 1 + probes), for the parameters with these names."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"{name or 'the model'} is batch norm in train mode, with which no sample has a gradient of its own; "
                "use group or layer norm, put it into eval mode, or use CLARS without per_sample_model"
            )
    leaves, structure = tree_flatten((args, kwargs))
    batched = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    if len({len(leaves[i]) for i in batched}) != 1:
        shapes = ", ".join(str(tuple(leaves[i].shape)) for i in batched) or "none"
        raise ValueError(f"the batch's tensors must share their first dimension, the samples; their shapes: {shapes}")
    whole = _LossOf(model, compute_loss)
    parameters = {f"model.{name}": p.detach() for name, p in model.named_parameters() if name in names}

    def loss_of(parameters: dict[str, Tensor], sample: Sequence[Tensor]) -> Any:
        own = list(leaves)
        for i, tensor in zip(batched, sample, strict=True):
            own[i] = tensor.unsqueeze(0)
        return torch.func.functional_call(whole, parameters, *tree_unflatten(own, structure))

    def records_of(sample: Sequence[Tensor]) -> dict[str, Tensor]:
        gradients = torch.func.grad(loss_of)(parameters, sample)
        return {name.removeprefix("model."): record(gradient) for name, gradient in gradients.items()}

    samples = [leaves[i] for i in batched]
    if chunk_size == 1:
        each = [records_of(sample) for sample in zip(*samples, strict=True)]
        return {name: torch.stack([records[name] for records in each]) for name in each[0]}
    try:
        return torch.func.vmap(records_of, randomness="different", chunk_size=chunk_size)(samples)
    except RuntimeError as error:
        raise RuntimeError(
            f"{error}\nThe gradients of {len(samples[0])} samples could not be had with vmap; pass a smaller "
            "chunk_size where memory is short, and 1, which goes without vmap, where it cannot run the model"
        ) from error


def record(gradient: Tensor) -> Tensor:
    """A gradient's norm and probes, (1 + probes,), float32 or wider."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return torch.cat([torch.linalg.vector_norm(gradient, dtype=wide).reshape(1), probes(gradient).to(wide)])


def probes(gradient: Tensor) -> Tensor:
    """Some entries of a gradient, at the same places every time: a sum's probes are the sum of the probes."""
    return gradient.reshape(-1)[:: max(gradient.numel() // PROBES, 1)][:PROBES]


def checked_chunk_size(chunk_size: Any) -> int | None:
    size = whole(chunk_size)
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"chunk_size is {chunk_size}, but must be 1 at least; pass None for all samples at once")
    return size
