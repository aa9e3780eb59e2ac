"""A script that has never heard of AutoWU: TrainingArguments from the command line, and a Trainer."""

import torch
from transformers import HfArgumentParser, PretrainedConfig, Trainer, TrainingArguments


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.config = PretrainedConfig()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, labels=None):
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


if __name__ == "__main__":
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    data = [{"x": torch.tensor([i % 2 - 0.5, 0.3]), "labels": i % 2} for i in range(32)]
    Trainer(Model(), args, train_dataset=data).train()
