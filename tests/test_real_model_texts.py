"""The data and losses of the language models in the comparison on pretrained models."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from margins import assert_above


@pytest.mark.once
def test_pairs_of_names_and_docstrings(load):
    data = load("data")
    assert data.words("HTTPConnection") == "http connection"
    assert data.words("_read_utf8") == "read utf 8"
    assert data.words("getattr") == "getattr"
    known = data.named_docstrings()
    assert len(known) > 1500
    assert len({name for name, _ in known}) == len({text for _, text in known}) == len(known)
    assert all(" " in name and 20 < len(text) <= 400 for name, text in known)
    assert set(data.docstrings()[0]) <= {text for _, _, text in data.documented()}
    paragraphs = data.prose()
    assert len(paragraphs) > 25
    assert all(text[0].isupper() and len(text) > 100 and "\n" not in text for text in paragraphs)


def test_the_contrastive_loss_is_the_cross_entropy_of_the_pairs(load):
    left, right = torch.randn(4, 3), torch.randn(4, 3)
    expected = 0.0
    for i in range(4):
        cosines = [float(left[i] @ right[j] / left[i].norm() / right[j].norm()) for j in range(4)]
        expected -= math.log(math.exp(20 * cosines[i]) / sum(math.exp(20 * cosine) for cosine in cosines)) / 4
    loss = load("real_model_texts").contrastive_loss(torch.nn.Identity(), (left, right))
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # used by peft
@pytest.mark.parametrize("is_lora", [False, True])
def test_a_language_model_on_docstrings(load, monkeypatch, is_lora):
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = load("real_model_texts")
    if is_lora:
        pytest.importorskip("peft")

    def tokenizer(texts):
        return SimpleNamespace(input_ids=[[ord(letter) % 50 for letter in text] for text in texts])

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape))
    documented = [("", "", f"{i:03d} " + "so it goes and goes " * (i % 2 + 2)) for i in range(200)]
    monkeypatch.setattr(texts, "smollm", lambda: model)
    monkeypatch.setattr(texts, "smollm_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(texts, "documented", lambda: documented)
    texts.text_parts.cache_clear()
    try:
        parts = texts.text_parts()
        # 64 letters; those with 44 are too short.
        assert {part: len(rows) for part, rows in parts.items()} == {"tune": 16, "test": 40, "train": 44, "prose": 16}
        rows = [tuple(row.tolist()) for part in ("tune", "test", "train") for row in parts[part]]
        assert len(set(rows)) == len(rows)
        run = texts.language(0, is_lora, 30)
    finally:
        texts.text_parts.cache_clear()
    assert run.batches(0).shape == (4, 48)
    names = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
    assert all("lora" in name for name in names) if is_lora else len(names) == len([*model.parameters()])
    before, loss, kept = run.evaluate(run.model, "test")
    assert (before, kept) == (-loss, pytest.approx(-math.log(50), rel=0.1))
    assert math.isnan(run.evaluate(run.model, "tune")[2])
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.03)
    run.train(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 1))
    after, _, _ = run.evaluate(run.model, "test")
    assert_above(after - before, 0.1, after - before)
