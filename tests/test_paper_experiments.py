from __future__ import annotations

import dataclasses
import importlib.util
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import run_ranks

SCRIPT = Path(__file__).parents[1] / "examples" / "paper_experiments.py"


@pytest.fixture(scope="module")
def paper():
    pytest.importorskip("pytorch_optimizer")
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _clean(tmp_path, monkeypatch):
    random.seed(0)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Dark and light images, 48 to train on and 8 to test with, none of them square."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 4)):
        for label, level in (("dark", 60), ("light", 200)):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(level + 20 * rng.standard_normal((36, 40, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / label / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.array(image).astype(int)


# The paper's numbers


def test_the_results_of_the_tables(paper):
    assert paper.papers_result("cifar10", "resnet18", "adamp", "baseline", 256) == ("96.58 (0.07)", "table 1")
    assert paper.papers_result("cifar100", "wrn28_10", "lamb", "autowu-cosine", 16384) == ("77.57 (0.50)", "table 2")
    assert paper.papers_result("imagenet", "vit_s16", "adamp", "autowu-constant-cosine", 4096) == ("78.14", "table 3")
    assert paper.papers_result("cifar10", "resnet18", "adamp", "baseline", 512) is None
    assert paper.papers_result("imagenet", "vit_s16", "lamb", "baseline", 4096) is None
    assert paper.papers_result("digits", "resnet18", "adamp", "baseline", 256) is None
    lines = [line.split(maxsplit=5) for line in paper.RESULTS.strip().splitlines()]
    assert len(lines) == len({tuple(line[:5]) for line in lines}) == 7 * 3
    for _, task, arch, optimizer, schedule, accuracies in lines:
        assert task in paper.TASKS
        assert arch in paper.ARCHS
        assert optimizer in ("adamp", "lamb")
        assert schedule in paper.SCHEDULES
        assert all(70 < float(accuracy.split()[0]) < 97 for accuracy in accuracies.split(", "))
        assert len(accuracies.split(", ")) == len(paper.BATCHES[task]) == 4


@pytest.mark.parametrize(
    ("arch", "optimizer", "batch_size", "lr"),
    [
        *(("resnet18", "adamp", b, lr) for b, lr in ((256, 1e-3), (1024, 2e-3), (8192, 5.657e-3), (16384, 8e-3))),
        *(("resnet50", "adamp", b, lr) for b, lr in ((1024, 2e-3), (4096, 4e-3), (16384, 8e-3), (32768, 1.1314e-2))),
        *(("wrn28_10", "lamb", b, lr) for b, lr in ((256, 1e-2), (1024, 2e-2), (8192, 5.657e-2), (16384, 8e-2))),
        *(("vit_s16", "adamp", b, lr) for b, lr in ((1024, 1e-3), (4096, 2e-3), (16384, 4e-3))),
    ],
)
def test_the_square_root_rule_of_the_baseline(paper, arch, optimizer, batch_size, lr):
    assert paper.baseline_lr(arch, optimizer, batch_size) == pytest.approx(lr, rel=1e-4)


# Networks


@pytest.mark.parametrize(
    ("arch", "task", "millions"),
    [
        ("resnet18", "cifar10", 11.173962),
        ("resnet18", "imagenet", 11.689512),
        ("wrn28_10", "cifar10", 36.479194),
        ("wrn28_10", "cifar100", 36.536884),
        ("resnet50", "imagenet", 25.557032),
        ("efficientnet_b0", "imagenet", 5.288548),
        ("vit_s16", "imagenet", 22.050664),
    ],
)
def test_the_sizes_of_the_papers_networks(paper, arch, task, millions):
    with torch.device("meta"):
        model = paper.build_model(arch, paper.TASKS[task].classes, paper.TASKS[task].size)
    assert sum(p.numel() for p in model.parameters()) == round(1e6 * millions)


@pytest.mark.parametrize("task", ["cifar10", "cifar100", "imagenet"])
@pytest.mark.parametrize("arch", ["resnet18", "wrn28_10", "resnet50", "efficientnet_b0", "vit_s16"])
def test_every_network_fits_every_task(paper, arch, task):
    """Without memory and without arithmetic: only the shapes."""
    task = paper.TASKS[task]
    with torch.device("meta"):
        logits = paper.build_model(arch, task.classes, task.size)(
            pixel_values=torch.ones(2, 3, task.size, task.size)
        ).logits
    assert logits.shape == (2, task.classes)


@pytest.mark.parametrize("arch", ["resnet18", "wrn28_10", "resnet50", "efficientnet_b0", "vit_s16"])
def test_every_network_trains_on_the_digits_size(paper, arch):
    model = paper.build_model(arch, 10, 8)
    logits = model(pixel_values=torch.randn(4, 3, 8, 8)).logits
    assert logits.shape == (4, 10)
    assert logits.isfinite().all()
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() and norm.momentum == 0.1 for norm in norms)


def test_the_first_layers_keep_the_resolution_of_small_images(paper):
    for arch, stem in (("resnet18", "resnet.embedder"), ("efficientnet_b0", "efficientnet.embeddings")):
        for size, side in ((32, 32), (224, 56 if arch == "resnet18" else 112)):
            with torch.device("meta"):
                layers = paper.build_model(arch, 10, size).get_submodule(stem)
                assert layers(torch.ones(1, 3, size, size)).shape[2:] == (side, side)


# Augmentation


def test_the_policy_of_auto_augment(paper):
    assert len(paper.RULES) == 25
    for first, p, level, second, q, other_level in paper.RULES:
        assert {first, second} <= {*paper.RAND_AUGMENT} - {"SolarizeAdd"}
        assert all(0 <= float(probability) <= 1 for probability in (p, q))
        assert all(0 <= int(amount) < 10 for amount in (level, other_level))


@pytest.mark.parametrize("deit", [False, True])
def test_every_operation_gives_an_image(paper, picture, deit):
    for name in paper.RAND_AUGMENT:
        for level in (0, 5, 10):
            image = paper.distort(picture, name, level, (1, 2, 3), deit)
            assert (image.size, image.mode) == ((32, 32), "RGB")


def test_operations_at_known_levels(paper, picture):
    before = pixels(picture)

    def after(name: str, level: float, deit: bool = False) -> np.ndarray:
        return pixels(paper.distort(picture, name, level, (1, 2, 3), deit))

    assert (after("Invert", 3) == 255 - before).all()
    assert (after("Solarize", 5) == np.where(before < 128, before, 255 - before)).all()
    assert (after("SolarizeAdd", 5) == np.where(before < 128, before + 55, before)).all()
    assert (after("Posterize", 5) == before // 64 * 64).all()
    assert (after("Posterize", 10) == before // 128 * 128).all()
    assert (after("Brightness", 0) == before // 10).mean() > 0.9  # a tenth of it, rounded
    for name in paper.COLOURS:
        assert (after(name, 5) == before).all()  # half-way in AutoAugment
        assert (after(name, 0, deit=True) == before).all()
        assert (after(name, 9, deit=True) != before).any()
    for name in (*paper.SHAPES, "Rotate"):
        assert (after(name, 0) == before).all()
        assert (after(name, 9) == (1, 2, 3)).all(axis=-1).any()  # the border shows
    moved = after("TranslateX", 3)
    assert (moved[:, :29] == before[:, 3:]).all() or (moved[:, 3:] == before[:, :29]).all()
    shifted = after("TranslateY", 3)
    assert (shifted[:29] == before[3:]).all() or (shifted[3:] == before[:29]).all()


def test_transforms_of_images_keep_their_size(paper, picture):
    fill = (1, 2, 3)
    for _ in range(50):
        for image in (
            *(paper.auto_augment(picture, fill), paper.rand_augment(picture, fill)),
            *(paper.random_crop(picture, 4, fill), paper.random_flip(picture), paper.colour_jitter(picture)),
        ):
            assert (image.size, image.mode) == ((32, 32), "RGB")
    assert len({paper.auto_augment(picture, fill).tobytes() for _ in range(50)}) > 10
    assert len({paper.rand_augment(picture, fill).tobytes() for _ in range(50)}) > 10


def test_crops_and_flips(paper, picture):
    before = pixels(picture)
    bordered = np.full((40, 40, 3), (1, 2, 3))
    bordered[4:36, 4:36] = before
    crops = {tuple(pixels(paper.random_crop(picture, 4, (1, 2, 3))).ravel()) for _ in range(20)}
    windows = {tuple(bordered[y : y + 32, x : x + 32].ravel()) for y in range(9) for x in range(9)}
    assert crops <= windows
    assert len(crops) > 5
    flips = {paper.random_flip(picture).tobytes() for _ in range(20)}
    assert flips == {picture.tobytes(), before[:, ::-1].astype(np.uint8).tobytes()}


@pytest.mark.parametrize("size", [(64, 48), (30, 500), (1, 1)])
def test_random_resized_crop(paper, size):
    ramp = np.linspace(0, 255, size[0]).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp[None, :, None], (size[1], size[0], 3)).copy())
    for _ in range(10):
        crop = paper.random_resized_crop(image, 24)
        assert crop.size == (24, 24)
        assert (np.diff(pixels(crop)[0, :, 0]) >= 0).all()


def test_test_images_are_the_middle_of_the_picture(paper, picture):
    assert paper.resized(picture, paper.CIFAR_10) is picture
    wide = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (128, 1, 3)))
    for task, low, high in ((paper.CIFAR_10, 64, 191), (paper.IMAGENET, 72, 183)):
        row = pixels(paper.resized(wide, task))[0, :, 0]
        assert len(row) == task.size
        assert row[0] == pytest.approx(low, abs=3)
        assert row[-1] == pytest.approx(high, abs=3)


def test_normalised_pixels(paper, picture):
    values = paper.to_tensor(picture)
    assert (values.shape, values.dtype) == ((3, 32, 32), torch.float32)
    assert (values.min(), values.max()) == (0, 1)
    assert (values * 255).round().int().permute(1, 2, 0).tolist() == pixels(picture).tolist()
    for task in paper.TASKS.values():
        mean = torch.tensor(task.mean).view(3, 1, 1).expand(3, 2, 2)
        assert paper.normalise(mean, task).abs().max() < 1e-6
        assert paper.normalise(mean + 1, task).mean((1, 2)).tolist() == pytest.approx(
            [1 / s for s in task.std], rel=1e-4
        )


def test_the_digits_colours(paper):
    data = paper.digits()
    values = np.stack([np.array(image) for image in data["train"]["image"]]) / 255
    assert values.mean() == pytest.approx(paper.DIGITS.mean[0], abs=5e-3)
    assert values.std() == pytest.approx(paper.DIGITS.std[0], abs=5e-3)


def test_cutout_erasing_and_lighting(paper):
    for _ in range(50):
        cut = paper.cutout(torch.ones(3, 32, 32), 16) == 0
        assert (cut == cut[0]).all()
        assert cut[0].any(0).sum() * cut[0].any(1).sum() == cut[0].sum()  # one rectangle
        assert 64 <= cut[0].sum() <= 256
    shares = [float((paper.random_erasing(torch.zeros(3, 64, 64)) != 0).float().mean()) for _ in range(400)]
    assert 0.15 < np.mean(np.array(shares) > 0) < 0.35
    assert min(share for share in shares if share) > 0.015
    assert max(shares) < 0.35
    light = torch.stack([paper.lighting() for _ in range(200)])
    assert light.shape == (200, 3, 1, 1)
    assert 0.005 < light.std() < 0.02


@pytest.mark.parametrize(
    ("task", "arch"),
    [("cifar10", "resnet18"), ("imagenet", "resnet50"), ("imagenet", "vit_s16"), ("digits", "vit_s16")],
)
def test_what_the_network_sees(paper, picture, task, arch):
    task = paper.TASKS[task]
    for _ in range(5):
        seen = paper.train_transform(picture, task, arch)
        assert (seen.shape, seen.dtype) == ((3, task.size, task.size), torch.float32)
        assert seen.isfinite().all()
        assert -6 < seen.min() < seen.max() < 6


def test_mixed_batches(paper):
    labels = torch.tensor([0, 1, 2, 2])
    images = labels.view(4, 1, 1, 1).expand(4, 3, 16, 16).float()
    cut = 0
    for _ in range(40):
        mixed, targets = paper.mix(images, labels, classes=3)
        assert mixed.shape == images.shape
        assert targets.shape == (4, 3)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.tensor([0.0, 1.0, 2.0]))
        cut += len(mixed[0].unique()) == 2
    assert images.unique().tolist() == [0, 1, 2]
    assert 10 < cut < 35


def test_the_order_of_the_images(paper):
    order = paper.Order(50, 16, repeats=1, seed=0)
    first, again = list(order), list(paper.Order(50, 16, repeats=1, seed=0))
    order.epoch = 1
    assert sorted(first) == sorted(order) == list(range(50))
    assert first == again != list(order)
    repeated = list(paper.Order(50, 16, repeats=3, seed=0))
    assert repeated == [i for i in first for _ in range(3)][:50]
    assert len(paper.Order(49, 16, repeats=1, seed=0)) == len(list(paper.Order(49, 16, repeats=1, seed=0))) == 48


# Runs


def run(paper, folder: Path, *options: str) -> dict:
    return paper.main(["--cpu", "--output_dir", str(folder), *options])


@pytest.mark.parametrize(
    ("schedule", "optimizer", "said"),
    [
        ("autowu-cosine", "adamp", "learning rate found: 1.00e+00 (at step 3 of 6, by cap)"),
        ("baseline", "lamb", "peak learning rate:  1.00e-02 (the square-root rule)"),
    ],
)
def test_the_digits_for_an_epoch(paper, tmp_path, capsys, schedule, optimizer, said):
    options = ("--task", "digits", "--epochs", "1", "--schedule", schedule, "--optimizer", optimizer)
    results = run(paper, tmp_path, *options)
    assert results["steps"] == 6
    assert 0 <= results["accuracy"] <= 100
    printed = capsys.readouterr().out
    assert "epoch 1: loss " in printed
    assert f"top-1 accuracy:      {results['accuracy']:.2f} %" in printed
    assert said in printed
    assert "the paper's result:  none for this combination" in printed
    assert json.loads((tmp_path / "results.json").read_text())["accuracy"] == results["accuracy"]
    assert (tmp_path / "model.safetensors").stat().st_size > 1e6
    assert (tmp_path / "autowu.png").is_file() == (schedule != "baseline")


def test_an_image_folder_and_the_papers_result(paper, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(paper.TASKS, "cifar10", dataclasses.replace(paper.CIFAR_10, classes=2))
    monkeypatch.setitem(paper.BATCHES, "cifar10", (4, 8, 16, 32))
    options = ("--task", "cifar10", "--data_dir", str(images), "--batch_size", "4", "--max_steps", "3")
    results = run(paper, tmp_path, *options, "--schedule", "autowu-constant-cosine")
    assert results["steps"] == 3
    assert results["paper"] == "96.26 (0.12) % (table 1)"
    assert "the paper's result:  96.26 (0.12) % (table 1)" in capsys.readouterr().out


def test_the_papers_result_is_not_that_of_other_classes(paper, images, tmp_path, monkeypatch):
    monkeypatch.setitem(paper.TASKS, "cifar10", dataclasses.replace(paper.CIFAR_10, size=8))
    monkeypatch.setitem(paper.BATCHES, "cifar10", (4, 8, 16, 32))
    options = ("--task", "cifar10", "--data_dir", str(images), "--batch_size", "4", "--max_steps", "2")
    assert run(paper, tmp_path, *options)["paper"] is None


def test_a_vision_transformer_with_deits_augmentation(paper, images, tmp_path, monkeypatch):
    small = dataclasses.replace(paper.IMAGENET, size=8)
    monkeypatch.setattr(paper, "IMAGENET", small)
    monkeypatch.setitem(paper.TASKS, "imagenet", small)
    mixed = []
    monkeypatch.setattr(paper, "mix", lambda *batch, mix=paper.mix: mixed.append(batch) or mix(*batch))
    options = ("--task", "imagenet", "--arch", "vit_s16", "--data_dir", str(images), "--batch_size", "16")
    assert run(paper, tmp_path, *options, "--epochs", "2")["steps"] == len(mixed) == 6


SMALL = ("--task", "digits", "--arch", "resnet18", "--batch_size", "16")


def test_a_resumed_run_is_the_whole_run(paper, images, tmp_path):
    options = (*SMALL, "--data_dir", str(images), "--epochs", "4", "--checkpointing_epochs", "2")
    whole = run(paper, tmp_path / "whole", *options)
    assert not (tmp_path / "whole" / "epoch_4").exists()
    checkpoint = str(tmp_path / "whole" / "epoch_2")
    assert run(paper, tmp_path / "resumed", *options, "--resume_from_checkpoint", checkpoint) == whole
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert weights[0] == weights[1]


def test_a_batch_in_parts_is_one_step(paper, images, tmp_path):
    options = (*SMALL, "--data_dir", str(images), "--epochs", "2", "--schedule", "baseline")
    assert run(paper, tmp_path, *options)["steps"] == 6
    assert run(paper, tmp_path, *options, "--gradient_accumulation_steps", "4")["steps"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--task", "digits", "--batch_size", "1438"),
            "--batch_size must be at most the 1437 training images, got 1438",
        ),
        (
            (*SMALL, "--gradient_accumulation_steps", "3"),
            "--batch_size must be a multiple of the 1 processes times --gradient_accumulation_steps 3, got 16",
        ),
        (("--task", "cifar10"), "uoft-cs/cifar10 could not be had from the Hub .* use --task digits, or --data_dir"),
        (("--data_dir", "/no/such/folder"), "--data_dir must be a folder, got '/no/such/folder'"),
    ],
)
def test_what_cannot_run_says_why(paper, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        run(paper, tmp_path, *options)


def test_a_folder_without_a_test_split(paper, images, tmp_path):
    with pytest.raises(SystemExit, match=r"--data_dir must hold train/CLASS and validation/CLASS .* \['train'\]"):
        run(paper, tmp_path, *SMALL, "--data_dir", str(images / "train"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "mnist"), "argument --task: invalid choice: 'mnist'"),
        (("--arch", "vgg"), "argument --arch: invalid choice: 'vgg'"),
        (("--schedule", "linear"), "argument --schedule: invalid choice: 'linear'"),
        (("--optimizer", "sgd"), "argument --optimizer: invalid choice: 'sgd'"),
        (("--batch_size", "0"), "--batch_size must be at least 1, got 0"),
        (("--max_steps", "1"), "--max_steps must be at least 2 for AutoWU, got 1"),
        (
            ("--resume_from_checkpoint", "no/epoch_3"),
            "must be a folder epoch_N that --checkpointing_epochs left, got no/",
        ),
        (("--resume_from_checkpoint", "."), "must be a folder epoch_N that --checkpointing_epochs left, got ."),
    ],
)
def test_unknown_options(paper, capsys, options, message):
    with pytest.raises(SystemExit):
        paper.parse_args([*options])
    assert message in capsys.readouterr().err


def train_on_a_rank(images: str, folder: str) -> dict:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    sys.modules[SCRIPT.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["datasets.config"].HF_DATASETS_CACHE = Path(folder) / "datasets"
    return module.main([*SMALL, "--cpu", "--output_dir", folder, "--data_dir", images, "--epochs", "2"])


@pytest.mark.once
def test_two_processes(images, tmp_path):
    """The batch is that of both together, so the steps are those of one process."""
    first, second = run_ranks(train_on_a_rank, str(images), str(tmp_path))
    assert first == second
    assert first["steps"] == 6
    assert first["switch_step"] == 3
    assert json.loads((tmp_path / "results.json").read_text())["peak_lr"] == first["peak_lr"]
