"""Language models that learn from docstrings of the standard library: MiniLM by a contrastive loss, and SmolLM2."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import torch
from data import documented, named_docstrings, prose, shuffled
from fine_tuning_tasks import Measured, PreparedRun, measured
from models import SentenceEncoder, minilm_folder, pretrained_minilm
from pretrained import smollm, smollm_tokenizer, with_lora
from torch import Tensor, nn
from training import beside
from transformers import AutoTokenizer

# MiniLM, by a contrastive loss ----------------------------------------------------------------------------------------

SCALE = 20.0
"""One over the temperature, as in sentence-transformers' MultipleNegativesRankingLoss."""
MOST_TOKENS = 24
"""Of a text; what is longer is cut off."""

TUNE, TEST = 200, 400
"""Pairs that are held out to tune on and to report on."""


@functools.lru_cache(maxsize=1)
def minilm_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(minilm_folder())


def tokens(texts: list[str]) -> dict[str, Tensor]:
    """(n, longest) each: ids of the tokens and where there are any."""
    encoded = minilm_tokenizer()(texts, truncation=True, max_length=MOST_TOKENS, padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def similarities(left: Tensor, right: Tensor) -> Tensor:
    """(n, m): ``SCALE`` times the cosine of every row of (n, width) with every row of (m, width)."""
    normal = nn.functional.normalize
    return SCALE * normal(left, dim=1) @ normal(right, dim=1).T


def contrastive_loss(model: nn.Module, batch: tuple[Any, Any]) -> Tensor:
    """Each text of the left belongs to the one in its place on the right, and to no other of the batch."""
    logits = similarities(model(batch[0]), model(batch[1]))
    return nn.functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def pairs(seed: int, steps: int) -> PreparedRun:
    """MiniLM brings names of functions close to their docstrings. The metric is the share of names whose docstring is
    the closest among the held-out ones; kept is the similarity of its embeddings of other texts to the ones before.
    """
    known = named_docstrings()
    held_out = {"tune": known[:TUNE], "test": known[TUNE : TUNE + TEST]}
    train = known[TUNE + TEST :]
    draw = shuffled(len(train), 16, seed)
    model = SentenceEncoder(pretrained_minilm())

    def both(chosen: list[tuple[str, str]]) -> tuple[Any, Any]:
        return tokens([name for name, _ in chosen]), tokens([text for _, text in chosen])

    @torch.no_grad()
    def embed_prose(model: nn.Module) -> Tensor:
        model.eval()
        embedded: Tensor = model(beside(model, tokens(prose())))
        return embedded.cpu()

    before = embed_prose(model)

    @torch.no_grad()
    def evaluate(model: nn.Module, part: str) -> Measured:
        kept = math.nan
        if part == "test":
            kept = float(nn.functional.cosine_similarity(before, embed_prose(model)).mean())
        model.eval()
        names, texts = beside(model, both(held_out[part]))
        logits = similarities(model(names), model(texts)).cpu()
        return measured(logits, torch.arange(len(logits)), kept)

    def batch(step: int) -> tuple[Any, Any]:
        return both([train[i] for i in draw(step).tolist()])

    return PreparedRun(model, batch, steps, len(train) // 16, contrastive_loss, evaluate)


# SmolLM2 --------------------------------------------------------------------------------------------------------------

LENGTH = 48
"""Of a row, in tokens; a batch has four."""


def rows_of(texts: list[str]) -> Tensor:
    """(n, LENGTH): the first tokens of every text that has so many."""
    ids = smollm_tokenizer()(texts).input_ids
    return torch.tensor([own[:LENGTH] for own in ids if len(own) >= LENGTH])


@functools.lru_cache(maxsize=1)
def text_parts() -> dict[str, Tensor]:
    """(n, LENGTH) each: docstrings to tune on (16), to report on (40) and to train on (the others), and prose (16)."""
    texts = sorted({text for _, _, text in documented()})
    rows = rows_of(random.Random(0).sample(texts, len(texts)))
    return {"tune": rows[:16], "test": rows[16:56], "train": rows[56:], "prose": rows_of(prose())[:16]}


def token_loss(model: Any, ids: Tensor) -> Tensor:
    """The mean over all tokens but the first ones, in nats."""
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def language(seed: int, is_lora: bool, steps: int) -> PreparedRun:
    """SmolLM2 learns docstrings. The metric is minus the loss on others, in nats per token; kept is minus the loss on
    prose.
    """
    by_part = text_parts()
    train = by_part["train"]
    draw = shuffled(len(train), 4, seed)

    @torch.no_grad()
    def loss_on(model: nn.Module, part: str) -> float:
        model.eval()
        losses = [float(token_loss(model, beside(model, ids))) for ids in by_part[part].split(8)]
        return sum(losses) / len(losses)

    def evaluate(model: nn.Module, part: str) -> Measured:
        loss = loss_on(model, part)
        return -loss, loss, -loss_on(model, "prose") if part == "test" else math.nan

    model = with_lora(smollm()) if is_lora else smollm()
    return PreparedRun(model, lambda step: train[draw(step)], steps, len(train) // 4, token_loss, evaluate)
