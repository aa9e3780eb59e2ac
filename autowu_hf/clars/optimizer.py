"""CLARS, layer-wise learning rates without a warm-up."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from ..runtime.checks import check_number, plain
from . import per_sample
from .hooks import Hook
from .rates import is_distributed, layer_rates


class CLARS(Optimizer):
    """Momentum SGD with a rate per layer, CLARS of Huo, Gu and Huang (2020, arXiv 2002.01576), for large batches.

    Layer k is stepped by lr * gamma_k (grad_k + weight_decay w_k), with momentum, and

        gamma_k = eta ||w_k|| / (mean_i ||grad_k f_i(w)|| + weight_decay ||w_k|| + eps)

    LARS (You et al. 2017, arXiv 1708.03888) has the norm of the batch's gradient, ||mean_i grad_k f_i(w)||, where this
    has the mean of the samples' norms, which does not shrink where the samples' gradients cancel out. The rest is
    LARS's: weight decay, momentum, and that a layer is a parameter tensor. **The formula was written from memory
    and has not been checked against the paper.** The mean comes from one of two sources:

    * The backwards of an optimizer step, on each process, each as if it were one sample. It costs next to nothing. One
      backward on one process is LARS; the more there are (gradient accumulation, processes), the nearer to CLARS.
    * ``per_sample_model``, exactly: ``step`` goes over the samples of the step once more.

    What scales all gradients after the backward, a gradient scaler or clipping to a norm, is found and applied to the
    mean too. So, as with LARS, clipping does nothing to adapted layers, but for the share of the weight decay.
    Clipping by value must be off. Processes need whole parameters (DDP), not shards (FSDP, DeepSpeed ZeRO), and step
    together: ``step`` has one collective.

    Args:
        params: parameters or groups; a group may have its own value of every argument from ``lr`` to ``adapt``.
        lr: for a scheduler to change. It acts as it is on what is not adapted, so that LRs for SGD, with a larger
            ``eta``, suit models with many norms; convolutional ones are often given 1 to 10.
        momentum: from 0 to less than 1; of the steps without the LR, as in torch's SGD.
        weight_decay: added to the gradient, times the weights.
        eta: trust coefficient, 0.001 in LARS.
        eps: added to the denominator, in units of the gradient.
        adapt: whether layers get a gamma. None: those with two dimensions or more, so biases and norms do not. All
            others, and layers of zeros, have gamma = 1.
        per_sample_model: the model that is trained. (Trainer takes a "model" for itself.) The arguments of its calls
            in train mode are kept until the step; they must have all that the loss needs, labels too, and each call
            must lead to one backward. Dropout is drawn anew for the norms.
        compute_loss: called as ``compute_loss(model, *args, **kwargs)`` with the arguments of a call, cut down to one
            sample; returns its loss, (). None: the loss that the model returns.
        chunk_size: how many samples' gradients are in memory at once. None: all. 1: without vmap, one by one, which
            runs every model; most of those with an attention mask need it.

    Raises:
        ValueError: an argument is outside its limits.

    Example:
        >>> optimizer = CLARS(model.parameters(), lr=0.05, eta=2.0)
        >>> Trainer(model, args, train_dataset=data, optimizer_cls_and_kwargs=(CLARS, {"lr": 0.05, "eta": 2.0}))
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        eps: float = 1e-8,
        adapt: bool | None = None,
        per_sample_model: nn.Module | None = None,
        compute_loss: Callable[..., Tensor] | None = None,
        chunk_size: int | None = None,
    ) -> None:
        if isinstance(params, nn.Module):
            raise ValueError("params is a model; pass its parameters, and the model as per_sample_model, not as model")
        if per_sample_model is None and (compute_loss is not None or chunk_size is not None):
            raise ValueError("compute_loss and chunk_size are for exact norms alone; pass per_sample_model with them")
        chunk_size = per_sample.checked_chunk_size(chunk_size)
        if isinstance(per_sample_model, DistributedDataParallel):
            per_sample_model = per_sample_model.module
        self._model, self._compute_loss, self._chunk_size = per_sample_model, compute_loss, chunk_size
        self._start()
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "eta": eta, "eps": eps, "adapt": adapt})

    def _start(self) -> None:
        self._records: dict[Tensor, Tensor] = {}  # of the backwards since the last step, see _record; summed
        self._batches: list[tuple[Any, Any]] = []  # the arguments of the model's calls since the last step
        self._num_used = 0  # of them, those that a backward has followed
        self._measuring = False
        if self._model is not None:
            self._model.register_forward_pre_hook(Hook(self, "_hear_forward"), with_kwargs=True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the group's backwards are heard from now on."""
        param_group = {**self.defaults, **param_group}
        for name in ("lr", "momentum", "weight_decay", "eta", "eps"):
            value = plain(param_group[name])
            if not isinstance(value, float):
                check_number(name, value)
            if name != "lr" or not isinstance(param_group[name], Tensor):  # a schedule fills an LR that is a tensor
                param_group[name] = value
            if not value >= 0 or (name == "momentum" and value >= 1) or (name == "eta" and value == 0):
                limits = {"momentum": "from 0 to less than 1", "eta": "above 0"}.get(name, "0 at least")
                raise ValueError(f"{name} is {value}, but must be {limits}; pass such a number")
        super().add_param_group(param_group)
        self._listen(self.param_groups[-1])

    def _listen(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.requires_grad:
                p.register_hook(Hook(self, "_hear_backward", weakref.ref(p)))

    def _hear_backward(self, parameter: weakref.ref[Tensor], gradient: Tensor) -> None:
        p = parameter()
        self._num_used = len(self._batches)
        if p is not None and self._model is None:
            _refuse_sparse(gradient)
            record = per_sample.record(gradient.detach())
            # Without a gradient it is a step's first backward, even where a scaler skipped the step before.
            self._records[p] = record if p.grad is None or p not in self._records else self._records[p] + record

    def _hear_forward(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if model.training and torch.is_grad_enabled() and not self._measuring:
            if all(p.grad is None for group in self.param_groups for p in group["params"]):
                self._forget(len(self._batches))  # likewise
            self._batches.append(tree_map_only(Tensor, Tensor.detach, (args, kwargs)))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; what was heard of the gradients goes with them."""
        super().zero_grad(set_to_none)
        self._forget(self._num_used)  # some loops call the model before they zero the gradients

    def _forget(self, num_batches: int) -> None:
        self._records.clear()
        del self._batches[:num_batches]
        self._num_used = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, with one collective where there are several processes.

        Raises:
            RuntimeError: nothing is known of the samples, vmap cannot run the model, or gradients are sparse.
            ValueError: the samples have no gradients of their own, see ``per_sample_gradient_norms``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rates = self._rates()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                step = p.grad.add(p, alpha=group["weight_decay"])
                if p in rates:
                    step.mul_(rates[p].to(step))
                if group["momentum"] > 0:
                    if "momentum_buffer" in self.state[p]:
                        step.add_(self.state[p]["momentum_buffer"], alpha=group["momentum"])
                    self.state[p]["momentum_buffer"] = step
                p.add_(step, alpha=-group["lr"])
        self._forget(len(self._batches))
        return loss

    def _rates(self) -> dict[Tensor, Tensor]:
        """gamma of each adapted layer that has a gradient, ()."""
        layers: dict[Tensor, dict[str, Any]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    _refuse_sparse(p.grad)
                    if p.ndim > 1 if group["adapt"] is None else group["adapt"]:
                        layers[p] = group
        if not layers:
            return {}
        records = self._heard(list(layers)) if self._model is None else self._measured(self._model, list(layers))
        return layer_rates(layers, records)

    def _heard(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """The sum of this process's backwards' records, (1 + probes,) per layer.

        It is their mean, in the unit of the step's gradient: loops divide each loss by the number of backwards.
        """
        unheard = [p for p in layers if p not in self._records]
        if len(unheard) == len(layers) or (unheard and not is_distributed()):
            raise RuntimeError(
                f"CLARS heard no backward of {len(unheard)} of {len(layers)} layers with gradients, the first of shape "
                f"{tuple(unheard[0].shape)}; unfreeze layers before you make the optimizer, leave gradients to "
                "backward(), and shard no parameters"
            )
        # A layer that only other processes used has a gradient of zeros here.
        return [self._records[p] if p in self._records else torch.zeros_like(per_sample.record(p)) for p in layers]

    def _measured(self, model: nn.Module, layers: Sequence[Tensor]) -> list[Tensor]:
        """The mean of this process's samples' records, (1 + probes,) per layer."""
        if not self._batches:
            raise RuntimeError(
                "CLARS saw no call of per_sample_model since the last step; pass the model that the loop calls, in "
                "train mode and with gradients enabled"
            )
        names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        if strangers := [tuple(p.shape) for p in layers if p not in names]:
            raise ValueError(
                f"per_sample_model has no parameters for layers of shapes {strangers}; pass the whole model"
            )
        own, loss = {names[p] for p in layers}, self._compute_loss
        self._measuring = True
        try:
            parts = [
                per_sample.per_sample_records(model, loss, args, kwargs, self._chunk_size, own)
                for args, kwargs in self._batches
            ]
        finally:
            self._measuring = False
        return [torch.cat([part[names[p]] for part in parts]).mean(dim=0) for p in layers]

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("_model", "_compute_loss", "_chunk_size")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_records" not in self.__dict__:  # a copy; load_state_dict comes here too
            self._start()
            for group in self.param_groups:
                self._listen(group)


def _refuse_sparse(gradient: Tensor) -> None:
    if gradient.is_sparse:
        raise RuntimeError(
            f"CLARS needs dense gradients, got one of {gradient.layout}; pass sparse=False to embeddings"
        )
