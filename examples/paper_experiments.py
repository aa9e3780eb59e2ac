"""The paper's experiments with accelerate: its data sets, networks, recipes and baseline, and AutoWU's two schedules.

    pip install 'autowu_hf[examples]'
    python examples/paper_experiments.py --task digits --arch resnet18        # no network: a minute or two on a CPU
    accelerate launch examples/paper_experiments.py --task cifar100 --arch wrn28_10 --batch_size 8192 \\
        --optimizer adamp --schedule autowu-constant-cosine
    accelerate launch --mixed_precision bf16 examples/paper_experiments.py --task imagenet --arch resnet50 \\
        --batch_size 16384 --gradient_accumulation_steps 8 --data_dir /data/imagenet --num_workers 8

The results, epochs, weight decay, label smoothing and baseline are those of Kim et al. 2021 (arXiv 2107.05855: section
3, tables 1 to 3, appendices A and B). What it names without numbers comes from the works it cites: AutoAugment's rules
for CIFAR-10 (1805.09501) and its 16 x 16 Cutout; for ViT-S/16 the augmentation of DeiT (2012.12877, table 9), repeated
augmentation included, stochastic depth not. Colour jitter and lighting on ImageNet, EfficientNet's synchronised batch
norm, no dropout, weight decay for all parameters and a smaller last batch per epoch are those of the authors' script.

AdamP and LAMB are pytorch_optimizer's. This LAMB is not timm's: it corrects no bias of the second moment, decays the
weights apart from the trust ratio, and counts a weight's norm as 10 at most. The paper does not say which it used.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import ClassLabel, Dataset, DatasetDict, Features, load_dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageEnhance, ImageOps
from PIL.Image import Resampling, Transform
from pytorch_optimizer import AdamP, Lamb
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import (
    EfficientNetConfig,
    EfficientNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    get_cosine_schedule_with_warmup,
)
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from autowu_hf import get_autowu_schedule, plot_autowu


@dataclass(frozen=True)
class Task:
    """A data set: its name and columns, number of classes, the images' side, mean and deviation, and the epochs."""

    dataset: str
    image: str
    label: str
    classes: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epochs: int


CIFAR_10 = Task("uoft-cs/cifar10", "img", "label", 10, 32, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), 200)
CIFAR_100 = Task("uoft-cs/cifar100", "img", "fine_label", 100, 32, (0.507, 0.4865, 0.441), (0.267, 0.256, 0.276), 200)
IMAGENET = Task("ILSVRC/imagenet-1k", "image", "label", 1000, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 120)
DIGITS = Task("digits", "image", "label", 10, 8, (0.305, 0.305, 0.305), (0.376, 0.376, 0.376), 30)
TASKS = {"cifar10": CIFAR_10, "cifar100": CIFAR_100, "imagenet": IMAGENET, "digits": DIGITS}
ARCHS = ("resnet18", "wrn28_10", "resnet50", "efficientnet_b0", "vit_s16")
SCHEDULES = {"baseline": None, "autowu-cosine": "cosine", "autowu-constant-cosine": "constant_then_cosine"}
WARM_UP_EPOCHS = 5

RESULTS = """
1 cifar10  resnet18        adamp baseline               96.58 (0.07), 96.48 (0.02), 96.05 (0.15), 94.63 (0.06)
1 cifar10  resnet18        adamp autowu-constant-cosine 96.26 (0.12), 96.20 (0.03), 95.92 (0.22), 94.80 (0.17)
1 cifar10  resnet18        adamp autowu-cosine          96.43 (0.02), 96.42 (0.05), 95.77 (0.01), 94.03 (0.26)
1 cifar100 wrn28_10        adamp baseline               83.36 (0.38), 83.13 (0.14), 81.08 (0.33), 77.62 (0.36)
1 cifar100 wrn28_10        adamp autowu-constant-cosine 83.36 (0.21), 83.21 (0.19), 82.32 (0.42), 81.42 (0.35)
1 cifar100 wrn28_10        adamp autowu-cosine          83.59 (0.46), 83.39 (0.20), 82.26 (0.60), 80.25 (0.36)
1 imagenet resnet50        adamp baseline               76.28, 76.10, 75.02, 74.11
1 imagenet resnet50        adamp autowu-constant-cosine 76.31, 76.33, 75.62, 74.84
1 imagenet resnet50        adamp autowu-cosine          76.19, 75.70, 75.22, 74.40
2 cifar10  resnet18        lamb  baseline               96.37 (0.16), 96.39 (0.14), 95.92 (0.09), 95.36 (0.08)
2 cifar10  resnet18        lamb  autowu-constant-cosine 96.26 (0.09), 96.17 (0.07), 95.53 (0.13), 94.47 (0.23)
2 cifar10  resnet18        lamb  autowu-cosine          96.23 (0.14), 96.14 (0.09), 95.37 (0.10), 94.19 (0.22)
2 cifar100 wrn28_10        lamb  baseline               83.38 (0.15), 83.61 (0.01), 82.16 (0.19), 79.99 (0.30)
2 cifar100 wrn28_10        lamb  autowu-constant-cosine 82.86 (0.16), 83.11 (0.32), 82.44 (0.11), 79.36 (0.47)
2 cifar100 wrn28_10        lamb  autowu-cosine          82.92 (0.33), 82.88 (0.38), 81.31 (0.06), 77.57 (0.50)
3 imagenet efficientnet_b0 adamp baseline               75.03, 76.00, 74.23, 75.17
3 imagenet efficientnet_b0 adamp autowu-constant-cosine 74.58, 75.43, 75.01, 73.99
3 imagenet efficientnet_b0 adamp autowu-cosine          74.90, 75.81, 75.44, 74.34
3 imagenet vit_s16         adamp baseline               79.37, 79.34, 77.39, 73.92
3 imagenet vit_s16         adamp autowu-constant-cosine 77.65, 78.14, 75.67, 72.73
3 imagenet vit_s16         adamp autowu-cosine          79.01, 79.15, 76.95, 72.38
"""
"""The paper's table, task, architecture, optimizer, schedule, and top-1 accuracy in percent at each of ``BATCHES``."""
BATCHES = {"cifar10": (256, 1024, 8192, 16384), "cifar100": (256, 1024, 8192, 16384)}
BATCHES["imagenet"] = (1024, 4096, 16384, 32768)

POLICY = """
Invert 0.1 7 Contrast 0.2 6, Rotate 0.7 2 TranslateX 0.3 9, Sharpness 0.8 1 Sharpness 0.9 3,
ShearY 0.5 8 TranslateY 0.7 9, AutoContrast 0.5 8 Equalize 0.9 2, ShearY 0.2 7 Posterize 0.3 7,
Color 0.4 3 Brightness 0.6 7, Sharpness 0.3 9 Brightness 0.7 9, Equalize 0.6 5 Equalize 0.5 1,
Contrast 0.6 7 Sharpness 0.6 5, Color 0.7 7 TranslateX 0.5 8, Equalize 0.3 7 AutoContrast 0.4 8,
TranslateY 0.4 3 Sharpness 0.2 6, Brightness 0.9 6 Color 0.2 8, Solarize 0.5 2 Invert 0.0 3,
Equalize 0.2 0 AutoContrast 0.6 0, Equalize 0.2 8 Equalize 0.6 4, Color 0.9 9 Equalize 0.6 6,
AutoContrast 0.8 4 Solarize 0.2 8, Brightness 0.1 3 Color 0.7 0, Solarize 0.4 5 AutoContrast 0.9 3,
TranslateY 0.9 9 TranslateY 0.7 9, AutoContrast 0.9 2 Solarize 0.8 3, Equalize 0.8 8 Invert 0.1 3,
TranslateY 0.7 9 AutoContrast 0.9 1
"""
"""AutoAugment's 25 rules for CIFAR-10: two operations each, with a probability and a level."""
RULES = [rule.split() for rule in POLICY.split(",")]
COLOURS = ("Brightness", "Color", "Contrast", "Sharpness")
SHAPES = ("ShearX", "ShearY", "TranslateX", "TranslateY")
WHOLE = {"AutoContrast": ImageOps.autocontrast, "Equalize": ImageOps.equalize, "Invert": ImageOps.invert}
RAND_AUGMENT = (*COLOURS, *SHAPES, *WHOLE, "Rotate", "Posterize", "Solarize", "SolarizeAdd")


def distort(image: Image.Image, name: str, level: float, fill: tuple[int, ...], deit: bool = False) -> Image.Image:
    """One operation at a level from 0 to 10, on AutoAugment's scales or DeiT's."""
    x, sign, resample = level / 10, random.choice((-1, 1)), Resampling.BICUBIC if deit else Resampling.NEAREST
    if name in COLOURS:
        return getattr(ImageEnhance, name)(image).enhance(1 + sign * 0.9 * x if deit else 0.1 + 1.8 * x)
    if name in SHAPES:
        amount = sign * x * (0.3 if name.startswith("Shear") else image.width * (0.45 if deit else 0.3125))
        matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        matrix[{"ShearX": 1, "ShearY": 3, "TranslateX": 2, "TranslateY": 5}[name]] = amount
        return image.transform(image.size, Transform.AFFINE, matrix, resample, fillcolor=fill)
    if name == "Rotate":
        return image.rotate(sign * 30 * x, resample, fillcolor=fill)
    if name == "Posterize":
        return ImageOps.posterize(image, max(4 - int(4 * x), 1))
    if name == "Solarize":
        return ImageOps.solarize(image, 256 - int(256 * x))
    if name == "SolarizeAdd":
        return image.point([min(v + int(110 * x), 255) if v < 128 else v for v in range(256)] * 3)
    return WHOLE[name](image)


def auto_augment(image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    """One of the policy's rules."""
    first, p, level, second, q, other_level = random.choice(RULES)
    for name, probability, amount in ((first, p, level), (second, q, other_level)):
        if random.random() < float(probability):
            image = distort(image, name, float(amount), fill)
    return image


def rand_augment(image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    """Two operations, each left out half of the time, at levels around 9 with a deviation of 0.5."""
    for name in random.choices(RAND_AUGMENT, k=2):
        if random.random() < 0.5:
            image = distort(image, name, min(max(random.gauss(9, 0.5), 0), 10), fill, deit=True)
    return image


def random_crop(image: Image.Image, padding: int, fill: tuple[int, ...]) -> Image.Image:
    """A crop of the image's own size out of the image with a border."""
    left, top = random.randint(0, 2 * padding), random.randint(0, 2 * padding)
    return ImageOps.expand(image, padding, fill).crop((left, top, left + image.width, top + image.height))


def random_resized_crop(image: Image.Image, size: int) -> Image.Image:
    """A part of 8 to 100 % of the area and of sides 3:4 to 4:3, resized; the middle where ten tries do not fit."""
    for _ in range(10):
        area = image.width * image.height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
            box = (left, top, left + width, top + height)
            return image.resize((size, size), Resampling.BICUBIC, box=box)
    return ImageOps.fit(image, (size, size), Resampling.BICUBIC)


def random_flip(image: Image.Image) -> Image.Image:
    return ImageOps.mirror(image) if random.random() < 0.5 else image


def colour_jitter(image: Image.Image) -> Image.Image:
    """Brightness, contrast and saturation changed by up to 40 %, in a random order."""
    for name in random.sample(("Brightness", "Contrast", "Color"), 3):
        image = getattr(ImageEnhance, name)(image).enhance(random.uniform(0.6, 1.4))
    return image


def lighting() -> Tensor:
    """(3, 1, 1): AlexNet's noise along the principal components of ImageNet's colours, with a deviation of 0.1."""
    values = torch.tensor([0.2175, 0.0188, 0.0045])
    vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    return (vectors @ (0.1 * torch.randn(3) * values)).view(3, 1, 1)


def to_tensor(image: Image.Image) -> Tensor:
    """(3, size, size), from 0 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def normalise(pixels: Tensor, task: Task) -> Tensor:
    return (pixels - torch.tensor(task.mean).view(3, 1, 1)) / torch.tensor(task.std).view(3, 1, 1)


def cutout(pixels: Tensor, side: int) -> Tensor:
    """A square around a random pixel, cut off at the borders, gets the data set's mean colour."""
    y, x = random.randrange(pixels.shape[1]), random.randrange(pixels.shape[2])
    pixels[:, max(y - side // 2, 0) : y + side // 2, max(x - side // 2, 0) : x + side // 2] = 0
    return pixels


def random_erasing(pixels: Tensor) -> Tensor:
    """With probability 0.25, noise in a rectangle of 2 to 33 % of the area and of sides 3:10 to 10:3."""
    _, height, width = pixels.shape
    for _ in range(10 if random.random() < 0.25 else 0):
        area = height * width * random.uniform(0.02, 1 / 3)
        ratio = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            top, left = random.randint(0, height - h), random.randint(0, width - w)
            pixels[:, top : top + h, left : left + w] = torch.randn(3, h, w)
            break
    return pixels


def train_transform(image: Image.Image, task: Task, arch: str) -> Tensor:
    """The paper's augmentation; the digits get CIFAR's, in proportion and without the flip, which changes digits."""
    fill = tuple(round(255 * mean) for mean in task.mean)
    if task is IMAGENET:
        image = random_flip(random_resized_crop(image, task.size))
        if arch == "vit_s16":
            return random_erasing(normalise(to_tensor(rand_augment(image, fill)), task))
        return normalise(to_tensor(colour_jitter(image)) + lighting(), task)
    image = random_crop(auto_augment(resized(image, task), fill), task.size // 8, fill)
    image = image if task is DIGITS else random_flip(image)
    return cutout(normalise(to_tensor(image), task), task.size // 2)


def resized(image: Image.Image, task: Task) -> Image.Image:
    """The middle of the image at the task's size; of ImageNet's, seven eighths of the shorter side."""
    if image.size == (task.size, task.size):
        return image
    return ImageOps.fit(image, (task.size, task.size), Resampling.BICUBIC, bleed=1 / 16 if task is IMAGENET else 0)


def mix(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mixup (0.8) or CutMix (1.0), half of the time each, of a batch with its reverse; labels: (n, classes) shares."""
    size, other = images.shape[-1], images.flip(0)
    if random.random() < 0.5:
        share = random.betavariate(0.8, 0.8)
        images = share * images + (1 - share) * other
    else:
        half, y, x = size * math.sqrt(1 - random.random()) / 2, random.randrange(size), random.randrange(size)
        rows, columns = (slice(round(max(c - half, 0)), round(min(c + half, size))) for c in (y, x))
        images = images.clone()
        images[:, :, rows, columns] = other[:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / size**2
    targets = nn.functional.one_hot(labels, classes).float()
    return images, share * targets + (1 - share) * targets.flip(0)


class Order(Sampler[int]):
    """The same new order of the images on every process in each epoch; with ``repeats`` a part of them, repeated."""

    def __init__(self, num_images: int, batch_size: int, repeats: int, seed: int) -> None:
        # A last batch of one image would be too few for batch norm.
        self.length = num_images - (num_images % batch_size == 1)
        self.num_images, self.repeats, self.seed, self.epoch = num_images, repeats, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.num_images, generator=generator)
        return iter(order.repeat_interleave(self.repeats)[: self.length].tolist())


class WideBlock(nn.Module):
    """Two 3 x 3 convolutions, each after batch norm and ReLU, beside a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width_in), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False) if width_in != width else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.norm1(x).relu()
        skip = x if self.shortcut is None else self.shortcut(activated)
        return skip + self.conv2(self.norm2(self.conv1(activated)).relu())


class WideResNet28(nn.Module):
    """Wide ResNet of 28 layers (1605.07146), without dropout; it answers as transformers' classifiers do."""

    def __init__(self, widening: int, classes: int) -> None:
        super().__init__()
        widths = [16, 16 * widening, 32 * widening, 64 * widening]
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
        for group, width in enumerate(widths[1:]):
            layers.append(WideBlock(widths[group], width, stride=1 if group == 0 else 2))
            layers += [WideBlock(width, width, stride=1) for _ in range(3)]
        pool = nn.AdaptiveAvgPool2d(1)
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(widths[3]), nn.ReLU(), pool, nn.Flatten())
        self.classifier = nn.Linear(widths[3], classes)

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutputWithNoAttention:
        return ImageClassifierOutputWithNoAttention(logits=self.classifier(self.layers(pixel_values)))


def build_model(arch: str, classes: int, size: int) -> nn.Module:
    """A network for images of 224, 32 or 8 pixels: below 224 the first layer keeps their size; at 8 it is narrow."""
    part = 4 if size == DIGITS.size else 1
    model: Any
    if arch == "vit_s16":
        patch = {224: 16, 32: 4, 8: 2}[size]
        sizes = {"image_size": size, "patch_size": patch, "hidden_size": 384 // part, "intermediate_size": 1536 // part}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = ViTConfig(**sizes, **dropout, num_attention_heads=6, layer_norm_eps=1e-6, num_labels=classes)
        return ViTForImageClassification(config)
    if arch == "wrn28_10":
        model = WideResNet28(10 // part, classes)
    elif arch == "efficientnet_b0":
        config = EfficientNetConfig(
            **{"width_coefficient": 1 / part, "depth_coefficient": 1.0, "hidden_dim": 1280 // part},
            **{"image_size": size, "strides": [1, 2, 2, 2, 1, 1 if size < 32 else 2, 1]},
            **{"dropout_rate": 0.0, "drop_connect_rate": 0.0, "num_labels": classes},
            # The default momentum, 0.99, is TensorFlow's: for torch it means one minus that.
            **{"batch_norm_eps": 1e-5, "batch_norm_momentum": 0.1},
        )
        model = EfficientNetForImageClassification(config)
        if size < 224:
            model.efficientnet.embeddings.padding = nn.ZeroPad2d(1)
            model.efficientnet.embeddings.convolution.stride = (1, 1)
    else:
        basic = arch == "resnet18"
        kind, depths, growth = ("basic", [2, 2, 2, 2], 1) if basic else ("bottleneck", [3, 4, 6, 3], 4)
        widths = [width // part for width in (64, 128, 256, 512)]
        sizes = {"embedding_size": widths[0], "hidden_sizes": [growth * width for width in widths]}
        model = ResNetForImageClassification(ResNetConfig(layer_type=kind, depths=depths, **sizes, num_labels=classes))
        if size < 224:
            stem = model.resnet.embedder
            stem.embedder.convolution = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
            stem.pooler = nn.Identity()
    for module in model.modules():  # transformers' EfficientNet would start with batch norms close to zero
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return model


def baseline_lr(arch: str, optimizer: str, batch_size: int) -> float:
    """The baseline's peak LR: eta_base sqrt(B / 256)."""
    base = 0.01 if optimizer == "lamb" else 0.0005 if arch == "vit_s16" else 0.001
    return base * math.sqrt(batch_size / 256)


def papers_result(task: str, arch: str, optimizer: str, schedule: str, batch_size: int) -> tuple[str, str] | None:
    """The paper's accuracy (deviation of three seeds, on CIFAR) and the table that has it; None where there is none."""
    for line in RESULTS.strip().splitlines():
        table, *names, accuracies = line.split(maxsplit=5)
        if names == [task, arch, optimizer, schedule] and batch_size in BATCHES[task]:
            return accuracies.split(", ")[BATCHES[task].index(batch_size)], f"table {table}"
    return None


def digits() -> DatasetDict:
    """Scikit-learn's 8 x 8 handwritten digits with a train and a test split."""
    data = load_digits()
    columns = {"image": [np.uint8(image * 255 / 16) for image in data.images], "label": data.target.tolist()}
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(c) for c in range(10)])})
    return Dataset.from_dict(columns, features=features).train_test_split(0.2, seed=0, stratify_by_column="label")


def load(args: argparse.Namespace) -> tuple[Dataset, Dataset, str, str]:
    """The training and the test split, and the names of the columns of images and labels."""
    task = TASKS[args.task]
    if args.data_dir is not None:
        if not os.path.isdir(args.data_dir):
            raise SystemExit(f"--data_dir must be a folder, got {args.data_dir!r}")
        data = load_dataset("imagefolder", data_dir=args.data_dir)
        image, label = "image", "label"
    elif task is DIGITS:
        data, image, label = digits(), task.image, task.label
    else:
        try:
            data, image, label = load_dataset(task.dataset), task.image, task.label
        except OSError as error:
            raise SystemExit(
                f"{task.dataset} could not be had from the Hub ({error}). Without it, use --task digits, or --data_dir "
                "with a folder that has train/CLASS/*.png and test/CLASS/*.png (ImageNet needs a login that has "
                "accepted its terms)."
            ) from error
    test = next((split for split in ("validation", "test") if split in data), None)
    if "train" not in data or test is None or label not in data["train"].features:
        raise SystemExit(
            "--data_dir must hold train/CLASS and validation/CLASS (or test/CLASS) folders of images, got the splits "
            f"{sorted(data)} with the columns {data[next(iter(data))].column_names}"
        )
    return data["train"], data[test], image, label


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run one of the AutoWU paper's experiments and print its result beside the paper's.",
        epilog="Every architecture runs on every task. Where images are smaller than 224 x 224, the first layer keeps "
        "their size, and no pooling follows. On the 8 x 8 digits every network is a quarter as wide (wrn28_10 is "
        "WRN-28-2) and vit_s16 takes patches of 2 x 2 pixels; on CIFAR, of 4 x 4.",
    )
    parser.add_argument("--task", choices=TASKS, default="digits", help="the digits need no network (digits)")
    parser.add_argument("--arch", choices=ARCHS, default="resnet18", help="(resnet18)")
    parser.add_argument("--schedule", choices=SCHEDULES, default="autowu-cosine", help="(autowu-cosine)")
    parser.add_argument("--optimizer", choices=("adamp", "lamb"), default="adamp", help="(adamp)")
    parser.add_argument("--batch_size", type=int, default=256, help="of all processes together, accumulated (256)")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1, help="parts of a batch, one by one (1)")
    parser.add_argument(
        "--epochs", type=int, help="the paper's: CIFAR 200, ImageNet 120, ViT-S/16 on it 300; digits 30"
    )
    parser.add_argument("--max_steps", type=int, help="optimizer steps, in place of --epochs")
    parser.add_argument("--data_dir", help="a folder train/CLASS/*.png, test/CLASS/*.png in place of the task's images")
    parser.add_argument("--output_dir", default=os.path.join("output", "paper_experiments"))
    parser.add_argument("--checkpointing_epochs", type=int, help="save the state each so many epochs")
    parser.add_argument("--resume_from_checkpoint", help="a folder epoch_N that --checkpointing_epochs left")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that load images, per GPU (0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true", help="train on the CPU even where there is an accelerator")
    args = parser.parse_args(argv)
    for name in ("batch_size", "gradient_accumulation_steps", "epochs", "max_steps", "checkpointing_epochs"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.max_steps == 1 and args.schedule != "baseline":
        parser.error("--max_steps must be at least 2 for AutoWU, got 1: a warm-up and a decay take a step each")
    if args.resume_from_checkpoint is not None:
        name = os.path.basename(os.path.normpath(args.resume_from_checkpoint))
        if not os.path.isdir(args.resume_from_checkpoint) or not name.removeprefix("epoch_").isdecimal():
            parser.error(
                "--resume_from_checkpoint must be a folder epoch_N that --checkpointing_epochs left, "
                f"got {args.resume_from_checkpoint}"
            )
    return args


def evaluate(accelerator: Accelerator, model: Any, loader: DataLoader) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    right = total = 0
    for batch in loader:
        with torch.no_grad():
            predictions = model(pixel_values=batch["pixel_values"]).logits.argmax(dim=-1)
        predictions, labels = accelerator.gather_for_metrics((predictions, batch["labels"]))
        right += int((predictions == labels).sum())
        total += len(labels)
    return 100 * right / total


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the experiment; returns its results."""
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("autowu_hf").setLevel(logging.INFO)
    accelerator = Accelerator(cpu=args.cpu, gradient_accumulation_steps=args.gradient_accumulation_steps)
    set_seed(args.seed)
    task, processes = TASKS[args.task], accelerator.num_processes
    is_deit = task is IMAGENET and args.arch == "vit_s16"
    smoothing = 0.0 if task is IMAGENET and args.arch not in ("efficientnet_b0", "vit_s16") else 0.1
    epochs = args.epochs or (300 if is_deit else task.epochs)

    with accelerator.main_process_first():
        train, test, image, label = load(args)
    classes = train.features[label].num_classes
    parts = processes * args.gradient_accumulation_steps
    if args.batch_size > len(train):
        raise SystemExit(f"--batch_size must be at most the {len(train)} training images, got {args.batch_size}")
    if args.batch_size % parts:
        raise SystemExit(
            f"--batch_size must be a multiple of the {processes} processes times --gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps}, got {args.batch_size}"
        )

    def augmented(rows: dict[str, list[Any]]) -> dict[str, Any]:
        images = [train_transform(picture.convert("RGB"), task, args.arch) for picture in rows[image]]
        return {"pixel_values": images, "labels": rows[label]}

    def plain(rows: dict[str, list[Any]]) -> dict[str, Any]:
        images = [normalise(to_tensor(resized(picture.convert("RGB"), task)), task) for picture in rows[image]]
        return {"pixel_values": images, "labels": rows[label]}

    local_batch = args.batch_size // parts
    order = Order(len(train), local_batch, repeats=3 if is_deit else 1, seed=args.seed)
    workers = {"num_workers": args.num_workers, "pin_memory": accelerator.device.type == "cuda"}
    train_loader = DataLoader(train.with_transform(augmented), local_batch, sampler=order, **workers)
    test_loader = DataLoader(test.with_transform(plain), min(local_batch, 256), **workers)
    batches_per_epoch = math.ceil(len(train_loader) / processes)
    steps_per_epoch = math.ceil(batches_per_epoch / args.gradient_accumulation_steps)
    steps = args.max_steps or epochs * steps_per_epoch

    model = build_model(args.arch, classes, task.size)
    if args.arch == "efficientnet_b0" and processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    lr = baseline_lr(args.arch, args.optimizer, args.batch_size)
    optimizer: torch.optim.Optimizer
    if args.optimizer == "adamp":
        optimizer = AdamP(model.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8, delta=0.1)
    else:
        optimizer = Lamb(model.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-6)
    # At every optimizer step accelerate steps a prepared scheduler as often as there are processes.
    schedule: Any
    if args.schedule == "baseline":
        warm_up = min(WARM_UP_EPOCHS * steps_per_epoch, steps // 2)  # the half is for runs of less than ten epochs
        schedule = get_cosine_schedule_with_warmup(optimizer, warm_up * processes, steps * processes)
    else:
        schedule = get_autowu_schedule(
            optimizer,
            num_training_steps=steps * processes,
            steps_per_epoch=steps_per_epoch * processes,
            preset="paper",
            decay_type=SCHEDULES[args.schedule],
        )
    model, optimizer, train_loader, test_loader, scheduler = accelerator.prepare(
        model, optimizer, train_loader, test_loader, schedule
    )

    set_seed(args.seed, device_specific=True)  # every process augments in its own way
    step = first_epoch = 0
    if args.resume_from_checkpoint is not None:
        accelerator.load_state(args.resume_from_checkpoint)
        first_epoch = int(os.path.basename(os.path.normpath(args.resume_from_checkpoint)).removeprefix("epoch_"))
        step = first_epoch * steps_per_epoch
    for epoch in range(first_epoch, math.ceil(steps / steps_per_epoch)):
        order.epoch = epoch
        model.train()
        for batch in train_loader:
            images, targets = batch["pixel_values"], batch["labels"]
            if is_deit:
                images, targets = mix(images, targets, classes)
            with accelerator.accumulate(model):
                logits = model(pixel_values=images).logits
                loss = nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            step += accelerator.sync_gradients
            if step == steps:
                break
        lr_now = scheduler.get_last_lr()[0]
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.4f}, learning rate {lr_now:.1e}")
        if args.checkpointing_epochs and (epoch + 1) % args.checkpointing_epochs == 0 and step < steps:
            accelerator.save_state(os.path.join(args.output_dir, f"epoch_{epoch + 1}"))

    results = {"accuracy": evaluate(accelerator, model, test_loader), "peak_lr": lr, "steps": steps}
    found = f"peak learning rate:  {lr:.2e} (the square-root rule)"
    if args.schedule != "baseline":
        schedule.flush()  # gathers the losses since its last test, so all processes call it
        switch = schedule.switch_step // processes
        results.update(peak_lr=schedule.peak_lr, switch_step=switch, ended_by=schedule.ended_by)
        found = f"learning rate found: {schedule.peak_lr:.2e} (at step {switch} of {steps}, by {schedule.ended_by})"
    paper = papers_result(args.task, args.arch, args.optimizer, args.schedule, args.batch_size)
    results["paper"] = None if paper is None or classes != task.classes else f"{paper[0]} % ({paper[1]})"
    accelerator.save_model(model, args.output_dir)
    if accelerator.is_main_process:
        print(f"top-1 accuracy:      {results['accuracy']:.2f} %")
        print(found)
        print(f"the paper's result:  {results['paper'] or 'none for this combination'}")
        with open(os.path.join(args.output_dir, "results.json"), "w", encoding="utf-8") as file:
            json.dump({**vars(args), **results}, file, indent=2)
        if args.schedule != "baseline" and importlib.util.find_spec("matplotlib") is not None:
            plot_autowu(schedule, os.path.join(args.output_dir, "autowu.png"))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return results


if __name__ == "__main__":
    main()
