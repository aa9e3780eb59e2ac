"""Fine-tune a Vision Transformer with Trainer, without choosing a learning rate.

Without arguments it needs no network: a small ViT is trained on scikit-learn's digits 0 to 4, kept as a checkpoint, and
fine-tuned from that checkpoint on the digits 5 to 9, both by AutoWU.

    python examples/vit_image_classification.py

With a model and a dataset from the Hub it fine-tunes any image classifier on any image dataset:

    python examples/vit_image_classification.py --model_name_or_path google/vit-base-patch16-224-in21k \\
        --dataset_name uoft-cs/cifar10 --image_column img --label_column label --num_train_epochs 3

Every option of ``TrainingArguments`` works too; ``--lr_scheduler_type`` is autowu unless given.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import random
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from PIL.Image import Image as PILImage
from PIL.Image import Resampling as PILResampling
from PIL.Image import Transform as PILTransform
from sklearn.datasets import load_digits
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    set_seed,
)

import autowu_hf  # registers lr_scheduler_type="autowu"


@dataclass
class ExampleArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint to fine-tune, local or Hub."})
    dataset_name: str | None = field(default=None, metadata={"help": "An image dataset on the Hub or on disk."})
    image_column: str = field(default="image", metadata={"help": "The dataset's column of images."})
    label_column: str = field(default="label", metadata={"help": "The dataset's column of class labels."})
    optimizer: str = field(
        default="adamw",
        metadata={"help": "adamw, or adamp or lamb from pytorch_optimizer.", "choices": ["adamw", "adamp", "lamb"]},
    )


DEFAULTS: dict[str, Any] = {
    "output_dir": "output",
    "lr_scheduler_type": "autowu",
    "num_train_epochs": 80,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
    "weight_decay": 0.05,
    "logging_steps": 50,
    "save_strategy": "no",
    "eval_strategy": "no",
    "remove_unused_columns": False,
    "dataloader_pin_memory": torch.cuda.is_available(),
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 0,
}
"""What ``TrainingArguments`` get where the command line says nothing. There is no learning rate among them."""


def digits(classes: range) -> DatasetDict:
    """Scikit-learn's 8 x 8 handwritten digits of some classes as a dataset with a train and a validation split."""
    data = load_digits()
    names = [str(c) for c in classes]
    chosen = np.isin(data.target, list(classes))
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    columns = {
        "image": [np.uint8(image * 255 / 16) for image in data.images[chosen]],
        "label": [int(label) - classes.start for label in data.target[chosen]],
    }
    return Dataset.from_dict(columns, features=features).train_test_split(0.2, seed=0, stratify_by_column="label")


def random_affine(image: PILImage) -> PILImage:
    """A slightly turned, scaled and shifted copy of an image: at most 5 degrees, 5 % and an eighth of its sides."""
    angle, scale = math.radians(random.uniform(-5, 5)), random.uniform(0.95, 1.05)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    width, height = image.size
    x, y = width * (0.5 + random.uniform(-0.125, 0.125)), height * (0.5 + random.uniform(-0.125, 0.125))
    matrix = (cos, sin, x - cos * width / 2 - sin * height / 2, -sin, cos, y + sin * width / 2 - cos * height / 2)
    return image.transform(image.size, PILTransform.AFFINE, matrix, resample=PILResampling.BILINEAR)


def small_vit(num_labels: int) -> tuple[ViTForImageClassification, ViTImageProcessor]:
    """A ViT for 8 x 8 grey images with an image processor to match."""
    processor = ViTImageProcessor(
        do_resize=False, do_convert_rgb=False, image_mean=[0.5], image_std=[0.5], size={"height": 8, "width": 8}
    )
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=num_labels,
    )
    return ViTForImageClassification(config), processor


def optimizer_class(name: str, args: TrainingArguments) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """What Trainer's ``optimizer_cls_and_kwargs`` wants for AdamP or LAMB; None leaves Trainer's own AdamW."""
    if name == "adamw":
        return None
    from pytorch_optimizer import AdamP, Lamb

    # The learning rate only sets the unit in which AutoWU keeps the ratios of parameter groups.
    kwargs = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "betas": (0.9, 0.999)}
    return (AdamP, kwargs) if name == "adamp" else (Lamb, kwargs)


def fine_tune(
    model: Any, processor: Any, data: DatasetDict, example: ExampleArguments, args: TrainingArguments
) -> dict[str, float]:
    """Trains on ``data["train"]``, prints what came of it, and returns the metrics on the other split."""
    label = example.label_column

    def preprocess(rows: dict[str, list[Any]], augment: bool = False) -> dict[str, Any]:
        images = rows[example.image_column]
        if augment:
            images = [random_affine(image) for image in images]
        arrays = [np.atleast_3d(image) for image in images]  # a grey image needs its channel spelled out
        return {**processor(arrays, return_tensors="pt"), "labels": rows[label]}

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    def accuracy(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    evaluation = next((name for name in ("validation", "test") if name in data), None)
    if evaluation is None:
        data, evaluation = data["train"].train_test_split(0.1, seed=0), "test"
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data["train"].with_transform(functools.partial(preprocess, augment=True)),
        eval_dataset=data[evaluation].with_transform(preprocess),
        data_collator=collate,
        compute_metrics=accuracy,
        processing_class=processor,
        optimizer_cls_and_kwargs=optimizer_class(example.optimizer, args),
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"validation accuracy: {metrics['eval_accuracy']:.4f}")
        scheduler = trainer.lr_scheduler
        if isinstance(scheduler, autowu_hf.AutoWUScheduler):
            print(f"learning rate found: {scheduler.peak_lr:.2e} (at step {scheduler.switch_step})")
            print(f"picture:             {os.path.join(args.output_dir, 'autowu.png')}")
    return metrics


def from_checkpoint(path: str, data: DatasetDict, example: ExampleArguments) -> tuple[Any, Any]:
    """The model of a checkpoint with a new head for the dataset's classes, and its image processor."""
    names = data["train"].features[example.label_column].names
    same_classes = list(AutoConfig.from_pretrained(path).id2label.values()) == names
    model = AutoModelForImageClassification.from_pretrained(
        path,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    if not same_classes and isinstance(model.classifier, torch.nn.Linear):
        model.classifier.reset_parameters()  # a head of the same size, but for other classes
    return model, AutoImageProcessor.from_pretrained(path)


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """Runs the example; returns the metrics of every stage."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("autowu_hf").setLevel(logging.INFO)
    parser = HfArgumentParser((ExampleArguments, TrainingArguments))
    parser.set_defaults(**DEFAULTS)
    example, args = parser.parse_args_into_dataclasses(args=argv)
    set_seed(args.seed)

    if example.dataset_name is not None:
        data = load_dataset(example.dataset_name)
        model, processor = from_checkpoint(
            example.model_name_or_path or "google/vit-base-patch16-224-in21k", data, example
        )
        return [fine_tune(model, processor, data, example, args)]

    folder, metrics = args.output_dir, []
    print("stage 1: train a small ViT on the digits 0 to 4")
    args.output_dir = os.path.join(folder, "digits_0_to_4")
    data = digits(range(0, 5))
    model, processor = (
        small_vit(num_labels=5)
        if example.model_name_or_path is None
        else from_checkpoint(example.model_name_or_path, data, example)
    )
    metrics.append(fine_tune(model, processor, data, example, args))

    print("\nstage 2: fine-tune that checkpoint on the digits 5 to 9")
    checkpoint, args.output_dir = args.output_dir, os.path.join(folder, "digits_5_to_9")
    data = digits(range(5, 10))
    model, processor = from_checkpoint(checkpoint, data, example)
    metrics.append(fine_tune(model, processor, data, example, args))
    return metrics


if __name__ == "__main__":
    main()
