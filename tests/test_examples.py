from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import accelerate
import numpy as np
import pytest
from margins import assert_above, assert_below
from PIL import Image
from run_programs import on_two_processes

HANDS_EPOCH_ON = tuple(int(part) for part in accelerate.__version__.split(".")[:2]) >= (1, 10)
EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def vit():
    return load("vit_image_classification.py")


def options(folder: Path, *more: str) -> list[str]:
    return ["--output_dir", str(folder), "--use_cpu", "True", "--dataloader_pin_memory", "False", *more]


@pytest.mark.once
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_eighth_of_the_default_run_finds_its_lr_in_both_stages(vit, tmp_path, capsys):
    metrics = vit.main(options(tmp_path, "--num_train_epochs", "10"))
    assert_above(min(m["eval_accuracy"] for m in metrics), 0.5, 0.8)  # of five classes
    printed = capsys.readouterr().out
    for stage in ("digits_0_to_4", "digits_5_to_9"):
        picture = tmp_path / stage / "autowu.png"
        assert f"picture:             {picture}" in printed
        assert picture.stat().st_size > 10_000
        report = json.loads((tmp_path / stage / "autowu.json").read_text())
        assert report["switch_step"] <= report["warmup_cap"]  # where nothing grows on, the last look is there
        assert f"learning rate found: {report['peak_lr']:.2e} (at step {report['switch_step']})" in printed


@pytest.mark.once
@pytest.mark.parametrize("optimizer", ["adamp", "lamb"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adamp_and_lamb(vit, tmp_path, optimizer):
    pytest.importorskip("pytorch_optimizer")
    vit.main(options(tmp_path, "--optimizer", optimizer, "--num_train_epochs", "1"))
    report = json.loads((tmp_path / "digits_5_to_9" / "autowu.json").read_text())
    assert report["phase"] == "decay"
    assert report["step"] == report["num_training_steps"] == 23


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_is_fine_tuned_on_a_dataset_of_images(vit, tmp_path):
    """The path that Hub names take, on a local checkpoint and an image folder."""
    image_folder(tmp_path / "images")
    model, processor = vit.small_vit(num_labels=5)
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    (metrics,) = vit.main(
        options(
            tmp_path / "output",
            *("--model_name_or_path", str(tmp_path / "checkpoint"), "--dataset_name", str(tmp_path / "images")),
            *("--num_train_epochs", "10", "--per_device_train_batch_size", "8"),
        )
    )
    assert_above(metrics["eval_accuracy"], 0.7, 0.5)  # of two classes


def test_speed_benchmark_prints_its_ratios(capsys, monkeypatch):
    sys.path.insert(0, str(EXAMPLES / "benchmarks"))
    speed = load("benchmarks/speed.py")
    monkeypatch.setattr(speed, "SIZES", (50,))
    monkeypatch.setattr(speed, "ROUNDS", 1)
    monkeypatch.setattr(speed, "WIDTH", 16)
    monkeypatch.setattr(speed, "REPEATS", {40: 2})
    speed.main()
    printed = capsys.readouterr().out
    assert "1/" in printed
    assert "growth, tap included" in printed
    between, looks, watched = (line for line in printed.splitlines() if "40 steps, " in line)
    switch = between.split(" to ")[1].split(",")[0]  # around the scale, in training: the peak was found
    assert 2 < int(switch) <= 20  # later where nothing was learned, since gradients are asked then
    assert 0 < int(looks.split(" looks")[0].split()[-1]) < int(switch) - 2
    # One round on a busy machine may well measure a difference of 0 or less.
    assert all(math.isfinite(float(line.split("x ")[0].split()[-1])) for line in (between, looks, watched))
    assert "at most 12 at a time" in printed
    for name in ("snapshot", "measured step", "sketch"):
        own = next(line for line in printed.splitlines() if line.strip().startswith(f"{name}  "))
        assert float(own.split()[-1].removesuffix("x")) > 0.0


@pytest.fixture(scope="module")
def no_trainer():
    return load("vit_no_trainer.py")


@pytest.mark.once
def test_the_loop_without_trainer_learns_the_digits(no_trainer, tmp_path, capsys):
    metrics = no_trainer.main(["--cpu", "--num_train_epochs", "6", "--output_dir", str(tmp_path)])
    assert_above(metrics["accuracy"], 0.4, 0.9)  # of ten classes
    printed = capsys.readouterr().out
    assert f"learning rate found: {metrics['peak_lr']:.2e}" in printed
    assert f"picture:             {tmp_path / 'autowu.png'}" in printed
    assert (tmp_path / "autowu.png").stat().st_size > 10_000


@pytest.mark.skipif(not HANDS_EPOCH_ON, reason="this accelerate's skip_first_batches forgets the epoch's shuffle")
def test_the_loop_without_trainer_resumes_exactly(no_trainer, tmp_path):
    """45 steps an epoch; the checkpoint lies in the warm-up and inside an epoch."""
    options = ["--cpu", "--num_train_epochs", "2", "--checkpointing_steps", "20"]
    whole = no_trainer.main([*options, "--output_dir", str(tmp_path / "whole")])
    checkpoint = str(tmp_path / "whole" / "step_20")
    resumed = no_trainer.main([*options, "--output_dir", str(tmp_path), "--resume_from_checkpoint", checkpoint])
    assert resumed == whole
    assert_above(whole["switch_step"], 20, whole["switch_step"])


@pytest.mark.once
def test_the_loop_without_trainer_on_two_processes(tmp_path):
    options = ["--cpu", "--num_train_epochs", "1", "--output_dir", str(tmp_path)]
    printed = on_two_processes(str(EXAMPLES / "vit_no_trainer.py"), *options, folder=tmp_path)
    assert printed.count("learning rate found") == 1
    assert (tmp_path / "autowu.png").is_file()


def image_folder(folder: Path) -> Path:
    """Dark and light images, with a training and a test split."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for label, level in (("dark", 60), ("light", 200)):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(level + 20 * rng.standard_normal((8, 8)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / label / f"{i}.png")
    return folder


def test_the_loop_without_trainer_fine_tunes_a_checkpoint_on_a_dataset_of_images(no_trainer, tmp_path):
    model, processor = no_trainer.small_vit(["a", "b", "c"])
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    metrics = no_trainer.main(
        [
            *("--cpu", "--output_dir", str(tmp_path / "output"), "--num_train_epochs", "20"),
            *("--model_name_or_path", str(tmp_path / "checkpoint"), "--per_device_train_batch_size", "8"),
            *("--dataset_name", str(image_folder(tmp_path / "images")), "--gradient_accumulation_steps", "2"),
        ]
    )
    assert_above(metrics["accuracy"], 0.7, 0.5)  # of two classes


@pytest.fixture(scope="module")
def language():
    return load("causal_lm.py")


@pytest.mark.once
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_small_gpt_learns_the_standard_librarys_text(language, tmp_path, capsys):
    metrics = language.main(options(tmp_path, "--max_bytes", "80000", "--block_size", "64"))
    assert_below(metrics["bits_per_byte"], metrics["unigram_bits_per_byte"] - 0.5, 1.0)
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["eval_loss"]))
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "autowu.json").read_text())
    assert f"learning rate found: {report['peak_lr']:.2e}" in printed
    assert (tmp_path / "autowu.png").stat().st_size > 10_000


def folder_of_texts(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "train.txt").write_text(f"{text}\n" * 200)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # used by peft
def test_a_language_model_is_fine_tuned_on_a_dataset_of_texts_and_by_lora_on_another(language, tmp_path):
    """The path that Hub names take, on a local checkpoint, tokenizer and text files."""
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "<eos>", "a", "b", "c"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    fast.model_max_length = 16
    fast.save_pretrained(tmp_path / "checkpoint")
    config = GPT2Config(vocab_size=5, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "checkpoint")

    def tuned(checkpoint, output, text, *more):
        texts = str(folder_of_texts(tmp_path / f"texts of {output}", text))
        named = ("--model_name_or_path", str(tmp_path / checkpoint), "--dataset_name", texts)
        return language.main(options(tmp_path / output, *named, *more))

    metrics = tuned("checkpoint", "whole", "a b c a b c a b c a b c a b c a b c", "--num_train_epochs", "4")
    assert_below(metrics["perplexity"], 2.5, 2.0)  # three letters at random: 3
    backwards = "c b a c b a c b a c b a c b a c b a"
    at_0 = ("--max_steps", "1", "--lr_scheduler_type", "constant", "--learning_rate", "0")
    start = tuned("whole", "untrained", backwards, "--lora_rank", "4", *at_0)
    metrics = tuned("whole", "adapter", backwards, "--lora_rank", "4", "--num_train_epochs", "4")
    assert_below(metrics["eval_loss"], start["eval_loss"], 1.0)
    assert all("lora_" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").r == 4
    assert json.loads((tmp_path / "adapter" / "autowu.json").read_text())["approach"]["scale"]["others_follow"]


@pytest.mark.parametrize(
    ("rank", "message"), [("-1", "must not be negative, got -1"), ("8", "give a --model_name_or_path, too")]
)
def test_lora_needs_a_rank_and_a_trained_model(language, tmp_path, capsys, rank, message):
    with pytest.raises(SystemExit):
        language.main(options(tmp_path, "--lora_rank", rank))
    assert message in capsys.readouterr().err
