"""What AutoWU costs: a minimum test with either engine, a step beside the cosine schedule, the steps until the peak is
known in a real run, and what is done with all weights beside a training step.

    python examples/benchmarks/speed.py
    ACCELERATE_USE_CPU=false python examples/benchmarks/speed.py  # steps and snapshots on a GPU

Both sides of a ratio are timed alternately in one run on one thread; the ratio is of the medians.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from training import ON_CPU
from transformers import GPT2Config, GPT2LMHeadModel, get_cosine_schedule_with_warmup

import autowu_hf
from autowu_hf.autowu.minimum_test import MinimumTest
from autowu_hf.autowu.settings import AutoWUSettings
from autowu_hf.integrations import accelerate_hooks
from autowu_hf.rewind import snapshot
from autowu_hf.rewind.rewind import LR_FACTOR
from autowu_hf.runtime.update_meter import UpdateMeter

torch.set_num_threads(1)


DEVICE = torch.device("cpu" if ON_CPU else "cuda")
SIZES = (200, 2_000, 20_000)
REPEATS = {100: 30, 1_000: 3, 10_000: 1}
"""The steps of a run -> how often it is made."""
ROUNDS = 40
WIDTH = 256


def medians(
    first: Callable[[], object],
    second: Callable[[], object],
    rounds: int,
    calls: int,
    between: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """The median seconds of either function, timed in turn: ``rounds`` times ``calls`` calls of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        between()
        for function, seconds in zip((first, second), times, strict=True):
            wait_for_the_device()
            start = time.perf_counter()
            for _ in range(calls):
                function()
            wait_for_the_device()
            seconds.append((time.perf_counter() - start) / calls)
    return statistics.median(times[0]), statistics.median(times[1])


def wait_for_the_device() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def minimum_tests() -> None:
    """A whole test of each engine: the fit and five inferences, from the losses to the record."""
    print("a minimum test: fit and five inferences")
    print(f"{'losses':>8} {'fast':>10} {'gpytorch':>11} {'ratio':>8}")
    for n in SIZES:
        s = np.arange(n) / n
        losses = 2.0 - 1.5 * np.exp(-(((s - 0.7) / 0.3) ** 2)) + 0.1 * np.random.default_rng(0).standard_normal(n)

        def test(engine: str, losses: np.ndarray = losses, n: int = n) -> Callable[[], object]:
            settings = AutoWUSettings(gp_engine=engine)
            return lambda: MinimumTest(settings).run(losses, 10, n)

        fast, slow = test("fast"), test("gpytorch")
        fast()
        fast_seconds, slow_seconds = medians(fast, slow, rounds=max(ROUNDS // 5, 1), calls=1)
        ratio = f"1/{slow_seconds / fast_seconds:.0f}"
        print(f"{n:>8} {fast_seconds * 1e3:>7.2f} ms {slow_seconds * 1e3:>8.1f} ms {ratio:>8}")


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1, device=DEVICE))], lr=1e-3)


def steps() -> None:
    """A scheduler's step between tests, over a range. Backward and optimizer step do nothing, so that what the tap adds
    shows; a scale could not be measured so, see ``approaches``.
    """
    total = 10**7
    cosine = get_cosine_schedule_with_warmup(optimizer(), 0, total)
    warming = autowu_hf.get_autowu_schedule(optimizer(), total, test_every=total, scale=False)
    decaying = autowu_hf.get_autowu_schedule(optimizer(), total, num_warmup_steps=1, scale=False)
    for schedule in (cosine, warming, decaying):
        schedule.optimizer.step()
    for _ in range(2):
        decaying.step(1.0)
    accelerator = Accelerator(cpu=ON_CPU)
    loss = torch.ones((), requires_grad=True, device=DEVICE) * 1.0

    accelerate_hooks.remove()
    originals = Accelerator.backward, AcceleratedOptimizer.step
    Accelerator.backward = lambda self, loss: None
    AcceleratedOptimizer.step = lambda self: None
    accelerate_hooks.install()
    prepared = accelerator.prepare(warming.optimizer)

    def with_tap() -> None:
        accelerator.backward(loss)
        prepared.step()
        warming.step()

    try:
        forbid_waiting(with_tap, warming.flush)
        rows = [
            ("growth, tap included", *medians(with_tap, cosine.step, ROUNDS, 500, between=warming.flush)),
            ("decay", *medians(decaying.step, cosine.step, ROUNDS, 500)),
        ]
    finally:
        accelerate_hooks.remove()
        Accelerator.backward, AcceleratedOptimizer.step = originals
        accelerate_hooks.install()
    print("\na step between tests, beside transformers' cosine schedule")
    print(f"{'':>24} {'autowu':>10} {'cosine':>10} {'ratio':>8}")
    for name, ours, theirs in rows:
        print(f"{name:>24} {ours * 1e6:>7.2f} us {theirs * 1e6:>7.2f} us {ours / theirs:>7.2f}x")


def forbid_waiting(step: Callable[[], object], flush: Callable[[], object]) -> None:
    """On a GPU: raises an error where an ordinary step waits for it."""
    if DEVICE.type != "cuda":
        return
    step()
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(100):
        step()
    torch.cuda.set_sync_debug_mode("default")
    flush()
    print("\n100 steps of a growth, between tests, did not wait for the GPU")


def approaches() -> None:
    """What the schedule's steps take in training around the scale: the median step, and all of them, as a share of the
    whole run. From the third step until the peak is known, with the snapshot and the sketches of the weights, those
    that look at the losses apart from those between; and from there on as long as the losses are watched. Short runs
    are made several times, in turn with the cosine's, and the median is taken of each step.
    """
    rows: list[tuple[str, str]] = []
    for total, repeats in REPEATS.items():
        runs: dict[str, list[Any]] = {"autowu": [], "cosine": []}
        for _ in range(repeats):
            for method, made in runs.items():
                made.append(_seconds_of_steps(total, method))
        ours, theirs = (
            [statistics.median(same_step) for same_step in zip(*(seconds for seconds, *_ in made), strict=True)]
            for made in runs.values()
        )
        _, switch, _, looked = runs["autowu"][0]
        whole = statistics.median(whole for *_, whole, _ in runs["autowu"])
        until, later = range(2, switch), range(switch, len(ours))
        looks, between = ([i for i in until if (i in looked) == is_look] for is_look in (True, False))
        for name, steps in ((f"2 to {switch}, between", between), (f"{len(looks)} looks", looks), ("watched", later)):
            median, cosine = (statistics.median(seconds[i] for i in steps) for seconds in (ours, theirs))
            share = sum(ours[i] for i in steps) / (whole / len(ours) * total)
            said = f"{median * 1e6:>7.2f} us {cosine * 1e6:>7.2f} us {median / cosine:>7.1f}x {share:>10.2%}"
            rows.append((f"{total} steps, {name}", said))
    titles = (
        "between looks, from the third step until the peak is known, around the scale",
        "the looks at the losses of these steps, minimum tests included",
        "from there on, while the losses are watched",
    )
    for i, title in enumerate(titles):
        print(f"\n{title}: an MLP of 0.4 M weights, batch 32")
        print(f"{'run of':>28} {'autowu':>10} {'cosine':>10} {'ratio':>8} {'of the run':>11}")
        for name, said in rows[i::3]:
            print(f"{name:>28} {said}")


def _seconds_of_steps(total: int, method: str) -> tuple[list[float], int, float, set[int]]:
    """The seconds in which the schedule was stepped, until 80 % of the run; the steps until the peak was known; the
    seconds of the whole training until then; and the steps, from 0, that gathered losses.
    """
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(512, 10)).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    teacher = torch.randn(256, 10, device=DEVICE)
    schedule, seconds, looked = get_cosine_schedule_with_warmup(optimizer, 5, total), [], set()
    if method == "autowu":
        schedule = autowu_hf.get_autowu_schedule(optimizer, total)
    begun = time.perf_counter()
    for _ in range(round(0.8 * total)):
        x = torch.randn(32, 256, device=DEVICE)
        loss = torch.nn.functional.cross_entropy(model(x), (x @ teacher).argmax(1))
        loss.backward()
        optimizer.step()
        start = time.perf_counter()
        schedule.step(loss) if method == "autowu" else schedule.step()
        seconds.append(time.perf_counter() - start)
        if method == "autowu" and len(schedule.pending_losses()) == 0:
            looked.add(len(seconds) - 1)
        optimizer.zero_grad()
    switch = schedule.switch_step if method == "autowu" else 0
    return seconds, switch, time.perf_counter() - begun, looked


def whole_models() -> None:
    """What is done with all weights at once, beside a training step of a small GPT: a copy of them and of AdamW's
    state, a step that is measured, with the way from w_0, and a sketch.
    """
    config = GPT2Config(vocab_size=1000, n_positions=64, n_embd=WIDTH, n_layer=4, n_head=4, bos_token_id=0)
    model = GPT2LMHeadModel(config).to(DEVICE)
    tokens = torch.randint(0, 1000, (8, 64), device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters())

    def train_step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    train_step()
    kept = [snapshot.take(optimizer, [model], 0)]
    meter = UpdateMeter(optimizer, [1.0])
    start = [parameter.detach().to("cpu", copy=True) for parameter in model.parameters()]

    def take() -> None:
        kept[0] = snapshot.take(optimizer, [model], 0, reuse=kept[0])

    def measured_step() -> None:
        meter.arm(takes_back=False)
        meter.hold_start(start)
        train_step()
        meter.disarm()
        meter.updates.clear()

    parameters = sum(p.numel() for p in model.parameters())
    print(f"\nbeside a training step: GPT of {parameters / 1e6:.1f} M parameters, batch 8 x 64")
    print(f"{'':>24} {'autowu':>10} {'step':>10} {'ratio':>8}")
    ratios = []
    for name, ours in (("snapshot", take), ("measured step", measured_step), ("sketch", meter.sketch)):
        seconds, step_seconds = medians(ours, train_step, rounds=max(ROUNDS // 4, 1), calls=1)
        ratios.append(seconds / step_seconds)
        print(f"{name:>24} {seconds * 1e3:>7.2f} ms {step_seconds * 1e3:>7.2f} ms {ratios[-1]:>7.2f}x")
    schedule = autowu_hf.get_autowu_schedule(optimizer, 10_000, scale=False)
    size = kept[0].num_bytes()
    train_step()
    schedule.step(0.0)
    schedule.step(0.0)
    most = schedule.rewind.limit
    count = 1 + int(np.log(1.0 / 1e-5) / np.log(LR_FACTOR))
    print(f"  snapshots: {size / 2**20:.1f} MiB each, {size / 4 / parameters:.2f} x the parameters; ", end="")
    print(f"at most {most} at a time")
    print(f"  a warm-up of any length takes {count} at most: as long as {count * ratios[0]:.1f} training steps")


def main() -> None:
    print(f"torch {torch.__version__}, one thread" + ("" if ON_CPU else f", {torch.cuda.get_device_name()}"))
    minimum_tests()
    steps()
    approaches()
    whole_models()


if __name__ == "__main__":
    main()
