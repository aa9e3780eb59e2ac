"""The data sets of the benchmarks, all of them on every machine: scikit-learn's digits, Python's standard library, and
two procedural ones.
"""

from __future__ import annotations

import ast
import functools
import os
import random
import re
import sysconfig
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import sklearn
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
"""Inputs (n, ...) and targets (n, ...)."""
Parts = tuple[Pair, Pair, Pair]
"""What to train on, what to tune on, what to report on."""


def parts(x: Tensor, y: Tensor, train: int, tune: int) -> Parts:
    """Cuts after ``train`` examples and after ``tune`` more; the third part is the rest."""
    cuts = ((0, train), (train, train + tune), (train + tune, len(x)))
    first, second, third = ((x[a:b], y[a:b]) for a, b in cuts)
    return first, second, third


def shuffled(n: int, batch: int, seed: int) -> Callable[[int], Tensor]:
    """Step -> the indices (batch,) of its examples, 0 to n - 1; every epoch is in another order."""
    per_epoch = n // batch

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> Tensor:
        return torch.randperm(n, generator=torch.Generator().manual_seed(1000 * seed + epoch))

    return lambda step: order(step // per_epoch)[batch * (step % per_epoch) :][:batch]


@functools.lru_cache(maxsize=4)
def digits(noise: float) -> Pair:
    """(1797, 64) and (1797,): scikit-learn's digits in [-1, 1], with Gaussian noise, in a fixed random order."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 8 - 1, dtype=torch.float32)
    x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    return x[order], torch.tensor(labels)[order]


def lower_digits() -> Pair:
    """0 to 4, with little noise: what the ViT has learned before it is fine-tuned."""
    x, y = digits(0.7)
    return x[y < 5], y[y < 5]


def upper_digits() -> Pair:
    """5 to 9 as the classes 0 to 4, with little noise: what the ViT is fine-tuned on."""
    x, y = digits(0.7)
    return x[y >= 5], y[y >= 5] - 5


def stdlib() -> Path:
    """The folder of Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


@functools.lru_cache(maxsize=1)
def stdlib_bytes() -> Tensor:
    """(n,), n at most a million: the source of the standard library's first 60 modules, one byte an element."""
    source = b"".join(path.read_bytes() for path in sorted(stdlib().glob("*.py"))[:60])[:1_000_000]
    return torch.tensor(list(source))


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements in the order of ``ast.walk``, which takes longer as it looks into their expressions, too."""
    queue: deque[ast.AST] = deque([tree])
    while queue:
        yield (node := queue.popleft())
        for part in ("body", "handlers", "orelse", "finalbody", "cases"):
            queue.extend(getattr(node, part, ()))


@functools.lru_cache(maxsize=1)
def documented() -> list[tuple[str, str, str]]:
    """Module, name and docstring of the functions and classes of the standard library that have one of over 20
    characters.
    """
    root = stdlib()
    paths, found = [], []
    for folder, folders, files in os.walk(root):
        left_out = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
        folders[:] = [name for name in folders if name not in left_out]
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    for path in sorted(paths):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        for node in statements(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                text = ast.get_docstring(node)
                if text and len(text) > 20:
                    found.append((path.relative_to(root).parts[0].removesuffix(".py"), node.name, text[:400]))
    return found


@functools.lru_cache(maxsize=1)
def docstrings() -> tuple[list[str], list[int]]:
    """Docstrings of the standard library and the number of their module: the 20 modules with the most, 75 of each."""
    found: dict[str, list[str]] = {}
    for name, _, text in documented():
        found.setdefault(name, []).append(text)
    rng = random.Random(0)
    texts, labels = [], []
    modules = sorted(found, key=lambda name: (-len(set(found[name])), name))[:20]
    for label, name in enumerate(modules):
        own = sorted(set(found[name]))
        rng.shuffle(own)
        texts += own[:75]
        labels += [label] * len(own[:75])
    return texts, labels


def words(name: str) -> str:
    """A name in lower-case words: "http connection" for HTTPConnection, "read utf 8" for read_utf8."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()


@functools.lru_cache(maxsize=1)
def named_docstrings() -> list[tuple[str, str]]:
    """Names of the standard library's functions and classes, in words, two at least, and their docstrings, in a fixed
    random order; no name and no docstring is there twice.
    """
    by_name: dict[str, str] = {}
    for _, name, text in documented():
        if " " in words(name):
            by_name.setdefault(words(name), text)
    by_text = {text: name for name, text in sorted(by_name.items(), reverse=True)}
    return random.Random(0).sample(sorted((name, text) for text, name in by_text.items()), len(by_text))


@functools.lru_cache(maxsize=1)
def prose() -> list[str]:
    """English prose: the paragraphs of over 100 characters in scikit-learn's descriptions of its data sets, without
    lists, tables and code.
    """
    found = []
    for path in sorted((Path(sklearn.__file__).parent / "datasets" / "descr").glob("*.rst")):
        paragraphs = path.read_text(encoding="utf-8").split("\n\n")
        joined = [" ".join(paragraph.split()) for paragraph in paragraphs if paragraph[:1].isupper()]
        found += [text for text in joined if len(text) > 100 and "::" not in text]
    return found


@functools.lru_cache(maxsize=1)
def signals() -> Pair:
    """(4000, 40) and (4000,): one of ten smooth shapes, at a random place and scale, on a slope, in correlated and
    white noise.
    """
    generator = torch.Generator().manual_seed(7)
    n, length, support = 4000, 40, 16

    def smooth(x: Tensor, width: int) -> Tensor:
        kernel = torch.hann_window(width + 2, periodic=False)[1:-1]
        return nn.functional.conv1d(x[:, None], (kernel / kernel.sum())[None, None], padding="same")[:, 0]

    shapes = smooth(torch.randn(10, support + 8, generator=generator), 5)[:, 4:-4]
    shapes = (shapes - shapes.mean(1, keepdim=True)) / shapes.std(1, keepdim=True) * torch.hann_window(support)
    y = torch.randint(0, 10, (n,), generator=generator)
    place = torch.randint(0, length - support + 1, (n, 1), generator=generator) + torch.arange(support)
    scale = torch.exp(0.3 * torch.randn(n, 1, generator=generator))
    x = torch.zeros(n, length).scatter_add_(1, place, scale * shapes[y])
    x += 0.5 * torch.randn(n, 1, generator=generator) * torch.linspace(-1, 1, length)
    x += 0.3 * smooth(torch.randn(n, length, generator=generator), 7) / 0.4
    x += 0.15 * torch.randn(n, length, generator=generator)
    return x, y


@functools.lru_cache(maxsize=1)
def waves() -> Pair:
    """(4096, 8) and (4096, 1): sums of sines along random directions, at a scale that makes losses of 1e-4."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(4096, 8, generator=generator) * 2 - 1
    directions = torch.randn(8, 6, generator=generator)
    y = torch.sin(1.5 * x @ directions + torch.rand(6, generator=generator) * 6).sum(1, keepdim=True)
    y = 0.02 * (y / y.std() + 0.2 * torch.randn(y.shape, generator=generator))
    return x, y
