"""Train a Vision Transformer in an accelerate loop, without Trainer and without choosing a learning rate.

Without arguments it needs no network: a small ViT learns scikit-learn's handwritten digits from scratch.

    python examples/vit_no_trainer.py
    torchrun --nproc_per_node 2 examples/vit_no_trainer.py --cpu
    accelerate launch examples/vit_no_trainer.py

With a model and a dataset from the Hub it fine-tunes any image classifier on any image dataset:

    accelerate launch examples/vit_no_trainer.py --model_name_or_path google/vit-base-patch16-224-in21k \\
        --dataset_name uoft-cs/cifar10 --image_column img --label_column label --num_train_epochs 3

The lines that an ordinary cosine loop does not have are marked with "AutoWU".
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    default_data_collator,
)

from autowu_hf import get_autowu_schedule  # AutoWU


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an image classifier with accelerate and AutoWU.")
    parser.add_argument("--model_name_or_path", help="a checkpoint to fine-tune, local or Hub; a small ViT without it")
    parser.add_argument("--dataset_name", help="an image dataset on the Hub or on disk; the digits without it")
    parser.add_argument("--image_column", default="image", help="the dataset's column of images")
    parser.add_argument("--label_column", default="label", help="the dataset's column of class labels")
    parser.add_argument("--output_dir", default=os.path.join("output", "vit_no_trainer"))
    parser.add_argument("--num_train_epochs", type=int, default=30)
    parser.add_argument("--per_device_train_batch_size", type=int, default=32)
    parser.add_argument("--per_device_eval_batch_size", type=int, default=256)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--checkpointing_steps", type=int, help="save the state each so many optimizer steps")
    parser.add_argument("--resume_from_checkpoint", help="a folder step_N that --checkpointing_steps left")
    parser.add_argument("--log_with", help='a tracker that accelerate knows and that is installed, "tensorboard" say')
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true", help="train on the CPU even where there is an accelerator")
    return parser.parse_args(argv)


def digits() -> DatasetDict:
    """Scikit-learn's 8 x 8 handwritten digits as a dataset with a train and a test split."""
    data = load_digits()
    columns = {"image": [np.uint8(image * 255 / 16) for image in data.images], "label": data.target.tolist()}
    features = Features({"image": Image(), "label": ClassLabel(names=[str(c) for c in range(10)])})
    return Dataset.from_dict(columns, features=features).train_test_split(0.2, seed=0, stratify_by_column="label")


def small_vit(names: list[str]) -> tuple[ViTForImageClassification, ViTImageProcessor]:
    """A ViT for 8 x 8 grey images, with an image processor to match."""
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=len(names),
    )
    processor = ViTImageProcessor(
        do_resize=False, do_convert_rgb=False, image_mean=[0.5], image_std=[0.5], size={"height": 8, "width": 8}
    )
    return ViTForImageClassification(config), processor


def from_checkpoint(path: str, names: list[str]) -> tuple[Any, Any]:
    """The model of a checkpoint, with a new head where the number of classes differs, and its image processor."""
    model = AutoModelForImageClassification.from_pretrained(
        path,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    return model, AutoImageProcessor.from_pretrained(path)


def evaluate(accelerator: Accelerator, model: Any, loader: DataLoader) -> float:
    """The share of images whose class is predicted rightly."""
    model.eval()
    right = total = 0
    for batch in loader:
        with torch.no_grad():
            predictions = model(**batch).logits.argmax(dim=-1)
        predictions, labels = accelerator.gather_for_metrics((predictions, batch["labels"]))
        right += int((predictions == labels).sum())
        total += len(labels)
    return right / total


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the example; returns the metrics."""
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("autowu_hf").setLevel(logging.INFO)
    accelerator = Accelerator(
        cpu=args.cpu,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        log_with=args.log_with,
        project_dir=args.output_dir,
    )
    if args.log_with is not None:
        accelerator.init_trackers("vit_no_trainer")
    set_seed(args.seed)

    with accelerator.main_process_first():
        data = digits() if args.dataset_name is None else load_dataset(args.dataset_name)
    evaluation = next((name for name in ("validation", "test") if name in data), None)
    if evaluation is None:
        data, evaluation = data["train"].train_test_split(0.1, seed=0), "test"
    names = data["train"].features[args.label_column].names
    checkpoint = args.model_name_or_path
    if checkpoint is None and args.dataset_name is not None:
        checkpoint = "google/vit-base-patch16-224-in21k"
    model, processor = small_vit(names) if checkpoint is None else from_checkpoint(checkpoint, names)

    def preprocess(rows: dict[str, list[Any]]) -> dict[str, Any]:
        images = [
            np.atleast_3d(image) for image in rows[args.image_column]
        ]  # a grey image needs its channel spelled out
        return {**processor(images, return_tensors="pt"), "labels": rows[args.label_column]}

    train_loader = DataLoader(
        data["train"].with_transform(preprocess),
        batch_size=args.per_device_train_batch_size,
        shuffle=True,
        collate_fn=default_data_collator,
    )
    eval_loader = DataLoader(
        data[evaluation].with_transform(preprocess),
        batch_size=args.per_device_eval_batch_size,
        collate_fn=default_data_collator,
    )
    batches_per_epoch = math.ceil(len(train_loader) / accelerator.num_processes)
    steps_per_epoch = math.ceil(batches_per_epoch / args.gradient_accumulation_steps)
    num_training_steps = args.num_train_epochs * steps_per_epoch

    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=args.weight_decay)
    # At every optimizer step accelerate steps a prepared scheduler as often as there are processes.
    scheduler = get_autowu_schedule(  # AutoWU, in place of get_cosine_schedule_with_warmup
        optimizer,
        num_training_steps=num_training_steps * accelerator.num_processes,
        steps_per_epoch=steps_per_epoch * accelerator.num_processes,
        report_dir=args.output_dir,  # AutoWU: for autowu.json and autowu.png
    )
    model, optimizer, train_loader, eval_loader, scheduler = accelerator.prepare(
        model, optimizer, train_loader, eval_loader, scheduler
    )

    step = 0
    if args.resume_from_checkpoint is not None:
        accelerator.load_state(args.resume_from_checkpoint)
        step = int(os.path.basename(os.path.normpath(args.resume_from_checkpoint)).removeprefix("step_"))
    first_epoch, steps_done = divmod(step, steps_per_epoch)
    for epoch in range(first_epoch, args.num_train_epochs):
        loader = train_loader
        if epoch == first_epoch and steps_done:
            loader = accelerator.skip_first_batches(train_loader, steps_done * args.gradient_accumulation_steps)
        loader.set_epoch(epoch)
        model.train()
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                step += 1
                if args.checkpointing_steps and step % args.checkpointing_steps == 0:
                    accelerator.save_state(os.path.join(args.output_dir, f"step_{step}"))
        lr = scheduler.get_last_lr()[0]
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.4f}, learning rate {lr:.1e}")
        found = scheduler.scheduler.log_values()  # AutoWU: phase, scale and peak; accelerate's wrap has ours inside
        accelerator.log({"loss": loss.item(), "learning_rate": lr, **found}, step=step)

    accuracy = evaluate(accelerator, model, eval_loader)
    accelerator.unwrap_model(model).save_pretrained(
        args.output_dir,
        is_main_process=accelerator.is_main_process,
        save_function=accelerator.save,
        state_dict=accelerator.get_state_dict(model),
    )
    autowu = scheduler.scheduler  # AutoWU
    switch_step = autowu.switch_step // autowu.ticks_per_step  # AutoWU: in optimizer steps
    if accelerator.is_main_process:
        processor.save_pretrained(args.output_dir)
        print(f"validation accuracy: {accuracy:.4f}")
        print(f"learning rate found: {autowu.peak_lr:.2e} (at step {switch_step} of {num_training_steps})")
        picture = os.path.join(args.output_dir, "autowu.png")
        if os.path.isfile(picture):  # where matplotlib is installed
            print(f"picture:             {picture}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return {"accuracy": accuracy, "peak_lr": autowu.peak_lr, "switch_step": switch_step}


if __name__ == "__main__":
    main()
