"""Adapters of PEFT on a small Llama: the tasks of ``real_models.py --adapters``. What a run costs is a few seconds."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from data import stdlib_bytes
from fine_tuning_tasks import Measured, PreparedRun
from pretrained import with_adapter
from real_model_tasks import PRACTICE, SIX, Task
from real_model_texts import token_loss
from torch import Tensor, nn
from training import beside, train
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

LENGTH, BATCH, EVALUATED = 96, 4, 128
"""Bytes in a row, rows in a batch, and rows that are evaluated."""

PRETRAINING, PRETRAINING_BATCH, PRETRAINING_LR = 600, 16, 2e-3
"""Its steps, the rows in a batch, and the peak LR of its cosine."""

MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EVERYWHERE = {"target_modules": MATRICES}

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA, alpha 8": ("LoraConfig", {"r": 8, "lora_alpha": 8, **EVERYWHERE}),
    "LoRA, alpha 16": ("LoraConfig", {"r": 8, "lora_alpha": 16, **EVERYWHERE}),
    "LoRA, r 16, alpha 32": ("LoraConfig", {"r": 16, "lora_alpha": 32, **EVERYWHERE}),
    "LoRA, q and v": ("LoraConfig", {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}),
    "rsLoRA": ("LoraConfig", {"r": 32, "lora_alpha": 16, "use_rslora": True, **EVERYWHERE}),
    "DoRA": ("LoraConfig", {"r": 8, "lora_alpha": 16, "use_dora": True, **EVERYWHERE}),
    "PiSSA": ("LoraConfig", {"r": 8, "lora_alpha": 8, "init_lora_weights": "pissa", **EVERYWHERE}),
    "OFT": ("OFTConfig", {"r": 0, "oft_block_size": 32, **EVERYWHERE}),
    "LoKr": ("LoKrConfig", {"r": 8, "alpha": 16, **EVERYWHERE}),
    "LoHa": ("LoHaConfig", {"r": 8, "alpha": 16, **EVERYWHERE}),
    "VeRA": ("VeraConfig", {"r": 64, "target_modules": ["q_proj", "v_proj"]}),
    "IA3": ("IA3Config", {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 8}),
    "layer norms": ("LNTuningConfig", {"target_modules": ["input_layernorm", "post_attention_layernorm"]}),
}
"""Adapter -> PEFT's class for it, and that one's options."""

LONGER = ("LoRA, alpha 8", "LoRA, alpha 16", "LoRA, r 16, alpha 32", "LoRA, q and v")
"""The adapters that have runs of 150 steps, too."""


@functools.lru_cache(maxsize=1)
def texts() -> dict[str, Tensor]:
    """Bytes of each: Python's language reference, and code to train, to tune and to report on."""
    from pydoc_data.topics import topics

    reference = torch.tensor(list("\n".join(topics[name] for name in sorted(topics)).encode()))
    code = stdlib_bytes()
    num = len(code) // 10
    return {"prose": reference, "train": code[: -2 * num], "tune": code[-2 * num : -num], "test": code[-num:]}


def rows_of(text: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """(num, LENGTH), from anywhere in a text."""
    starts = torch.randint(len(text) - LENGTH, (num,), generator=generator)
    return torch.stack([text[start : start + LENGTH] for start in starts.tolist()])


@functools.lru_cache(maxsize=1)
def pretrained_llama() -> LlamaForCausalLM:
    """A Llama of four layers and width 128 that knows the language reference byte by byte, trained once in a process;
    that takes two minutes on a CPU.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=128, **sizes))
    generator = torch.Generator().manual_seed(0)
    batches = (rows_of(texts()["prose"], PRETRAINING_BATCH, generator) for _ in range(PRETRAINING))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINING_LR)
    train(
        model,
        optimizer,
        get_cosine_schedule_with_warmup(optimizer, PRETRAINING // 20, PRETRAINING),
        batches,
        token_loss,
    )
    return model.cpu()


def adapted(seed: int, adapter: str, steps: int) -> PreparedRun:
    """The Llama learns code by an adapter. The metric is minus the loss on other code, in nats per byte; kept is minus
    the loss on the reference.
    """
    kind, options = ADAPTERS[adapter]
    model = with_adapter(copy.deepcopy(pretrained_llama()), kind, **options)

    def batch(step: int) -> Tensor:
        return rows_of(texts()["train"], BATCH, torch.Generator().manual_seed(1000 * seed + step))

    @torch.no_grad()
    def loss_on(model: nn.Module, part: str) -> float:
        model.eval()
        rows = rows_of(texts()[part], EVALUATED, torch.Generator().manual_seed(0))
        return sum(float(token_loss(model, beside(model, own))) for own in rows.split(32)) / (EVALUATED // 32)

    def evaluate(model: nn.Module, part: str) -> Measured:
        loss = loss_on(model, part)
        return -loss, loss, -loss_on(model, "prose")

    return PreparedRun(model, batch, steps, len(texts()["train"]) // (BATCH * LENGTH), token_loss, evaluate)


def adapter_task(adapter: str, steps: int) -> Task:
    prepare: Callable[[int], PreparedRun] = functools.partial(adapted, adapter=adapter, steps=steps)
    practice = PRACTICE["SmolLM2, LoRA"]
    return Task(prepare, 3.16228e-3, 1, (0, 1), ("loss, nats", -1.0), practice, ("peft",), seeds=SIX)


ADAPTER_TASKS = {
    f"{adapter}, {steps} steps": adapter_task(adapter, steps)
    for steps, adapters in ((60, tuple(ADAPTERS)), (150, LONGER))
    for adapter in adapters
}
"""Task -> what it is."""
