"""Train a small GPT with Trainer, without choosing a learning rate.

Without arguments it needs no network: a GPT that reads bytes learns the source code of Python's standard library.

    python examples/causal_lm.py

With a model and a dataset from the Hub it fine-tunes any causal language model on any text:

    python examples/causal_lm.py --model_name_or_path openai-community/gpt2 --dataset_name Salesforce/wikitext \\
        --dataset_config_name wikitext-2-raw-v1 --text_column text --num_train_epochs 3

With ``--lora_rank 8`` an adapter of PEFT's on all linear layers is trained instead of the model's weights.

Every option of ``TrainingArguments`` works too; ``--lr_scheduler_type`` is autowu unless given.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

import autowu_hf  # registers lr_scheduler_type="autowu"


@dataclass
class ExampleArguments:
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A checkpoint to fine-tune, local or Hub; a small GPT on bytes without it."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A text dataset on the Hub or on disk; Python's standard library without it."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The dataset's configuration."})
    text_column: str = field(default="text", metadata={"help": "The dataset's column of texts."})
    block_size: int = field(default=128, metadata={"help": "The tokens, or bytes, of a training sequence."})
    max_bytes: int = field(default=1_000_000, metadata={"help": "How much of the standard library to read."})
    lora_rank: int = field(
        default=0, metadata={"help": "Trains LoRA of this rank on all linear layers; 0 trains the model's own weights."}
    )


DEFAULTS: dict[str, Any] = {
    "output_dir": os.path.join("output", "causal_lm"),
    "lr_scheduler_type": "autowu",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 32,
    "weight_decay": 0.1,
    "logging_steps": 50,
    "save_strategy": "no",
    "eval_strategy": "no",
    "dataloader_pin_memory": torch.cuda.is_available(),
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 0,
}
"""What ``TrainingArguments`` get where the command line says nothing. There is no learning rate among them."""


def standard_library(max_bytes: int) -> DatasetDict:
    """The shortest source files of Python's standard library, every tenth of them for validation."""
    texts: list[str] = []
    for path in sorted(Path(os.__file__).parent.glob("*.py"), key=lambda path: path.stat().st_size):
        max_bytes -= path.stat().st_size
        if max_bytes < 0:
            break
        texts.append(path.read_text(encoding="utf-8"))
    splits = {"train": [text for i, text in enumerate(texts) if i % 10], "validation": texts[::10]}
    return DatasetDict({name: Dataset.from_dict({"text": texts}) for name, texts in splits.items()})


def small_gpt(block_size: int) -> GPT2LMHeadModel:
    """A GPT on bytes."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=256,
            n_positions=block_size,
            n_embd=128,
            n_layer=2,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def with_lora(model: Any, rank: int) -> Any:
    """The model with LoRA on all linear layers but the last, which alone is trained."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))


def blocks(data: DatasetDict, column: str, tokenizer: Any, block_size: int) -> DatasetDict:
    """The texts one after the other, cut into blocks of one length; bytes where there is no tokenizer."""

    def cut(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = [text for text in rows[column] if text]
        encoded = [list(text.encode()) for text in texts] if tokenizer is None else tokenizer(texts)["input_ids"]
        tokens = list(itertools.chain.from_iterable(encoded))
        ids = [tokens[i : i + block_size] for i in range(0, len(tokens) - block_size + 1, block_size)]
        return {"input_ids": ids, "labels": ids}

    return data.map(cut, batched=True, remove_columns=data["train"].column_names)


def unigram_bits(train: Dataset, validation: Dataset) -> float:
    """The bits per byte of a model that knows nothing but how frequent each byte is."""
    counts, seen = (np.bincount(np.ravel(split["input_ids"]), minlength=256) for split in (train, validation))
    frequency = (counts + 1) / (counts + 1).sum()
    return float(-(seen * np.log2(frequency)).sum() / seen.sum())


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Runs the example; returns the metrics on the validation split."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("autowu_hf").setLevel(logging.INFO)
    parser = HfArgumentParser((ExampleArguments, TrainingArguments))
    parser.set_defaults(**DEFAULTS)
    example, args = parser.parse_args_into_dataclasses(args=argv)
    if example.lora_rank < 0:
        parser.error(f"--lora_rank must not be negative, got {example.lora_rank}; 0 trains all weights")
    if example.lora_rank and example.model_name_or_path is None:
        parser.error("--lora_rank adapts a trained model: give a --model_name_or_path, too")
    if example.lora_rank and importlib.util.find_spec("peft") is None:
        parser.error("--lora_rank needs the package peft: pip install peft")
    set_seed(args.seed)

    if example.dataset_name is None:
        data, column = standard_library(example.max_bytes), "text"
    else:
        data, column = load_dataset(example.dataset_name, example.dataset_config_name), example.text_column
    if example.model_name_or_path is None:
        model, tokenizer, block_size = small_gpt(example.block_size), None, example.block_size
    else:
        model = AutoModelForCausalLM.from_pretrained(example.model_name_or_path)
        if example.lora_rank:
            model = with_lora(model, example.lora_rank)
        tokenizer = AutoTokenizer.from_pretrained(example.model_name_or_path)
        block_size = min(example.block_size, tokenizer.model_max_length)
    with args.main_process_first(desc="tokenizing"):
        data = blocks(data, column, tokenizer, block_size)
    evaluation = next((name for name in ("validation", "test") if name in data), None)
    if evaluation is None:
        data, evaluation = data["train"].train_test_split(0.1, seed=0), "test"

    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data[evaluation],
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    trainer.train()
    metrics = trainer.evaluate()
    loss = metrics["eval_loss"]
    metrics["perplexity"] = math.exp(loss)
    if tokenizer is None:
        metrics["bits_per_byte"] = loss / math.log(2)
        metrics["unigram_bits_per_byte"] = unigram_bits(data["train"], data[evaluation])
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"validation loss:     {loss:.4f} (perplexity {metrics['perplexity']:.2f})")
        if tokenizer is None:
            print(f"bits per byte:       {metrics['bits_per_byte']:.2f}")
            print(f"byte frequencies:    {metrics['unigram_bits_per_byte']:.2f}")
        scheduler = trainer.lr_scheduler
        if isinstance(scheduler, autowu_hf.AutoWUScheduler):
            print(f"learning rate found: {scheduler.peak_lr:.2e} (at step {scheduler.switch_step})")
            if importlib.util.find_spec("matplotlib") is not None:
                print(f"picture:             {os.path.join(args.output_dir, 'autowu.png')}")
    return metrics


if __name__ == "__main__":
    main()
