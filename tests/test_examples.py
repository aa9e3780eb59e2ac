from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_default_run_finds_its_lr_in_both_stages(vit, tmp_path, capsys):
    metrics = vit.main(options(tmp_path))
    assert [m["eval_accuracy"] >= 0.97 for m in metrics] == [True, True]
    printed = capsys.readouterr().out
    for stage in ("digits_0_to_4", "digits_5_to_9"):
        picture = tmp_path / stage / "autowu.png"
        assert f"picture:             {picture}" in printed
        assert picture.stat().st_size > 10_000
        report = json.loads((tmp_path / stage / "autowu.json").read_text())
        assert report["switch_step"] < report["warmup_cap"]
        assert f"learning rate found: {report['peak_lr']:.2e} (step {report['minimum_step']})" in printed


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
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for label, level in (("dark", 60), ("light", 200)):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(level + 20 * rng.standard_normal((8, 8)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
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
    assert metrics["eval_accuracy"] > 0.9


def test_speed_benchmark_prints_its_ratios(capsys, monkeypatch):
    sys.path.insert(0, str(EXAMPLES / "benchmarks"))
    speed = load("benchmarks/speed.py")
    monkeypatch.setattr(speed, "SIZES", (50,))
    monkeypatch.setattr(speed, "ROUNDS", 1)
    speed.main()
    printed = capsys.readouterr().out
    assert "1/" in printed
    assert "warm-up, tap included" in printed
