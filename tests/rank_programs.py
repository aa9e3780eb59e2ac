"""What the ranks of a run with several processes do; see ``ranks``."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import PartialState
from accelerate.utils import DistributedType, gather_object
from tiny import IS_TRANSFORMERS_5, TinyClassifier, batches, get_schedule

from autowu_hf import get_autowu_schedule
from autowu_hf.runtime import collective

GLOBAL_BATCH = 16


def count_collectives() -> list[str]:
    """The names of the collectives that this package issues from now on, in their order."""
    calls: list[str] = []
    for name in ("gather", "broadcast"):
        original = getattr(collective, name)
        setattr(collective, name, lambda *a, _f=original, _n=name, **k: (calls.append(_n), _f(*a, **k))[1])
    return calls


def notes_of(logger: str) -> list[str]:
    """What a logger says from now on."""
    notes: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    logging.getLogger(logger).addHandler(Keep())
    return notes


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def noisy(n: int) -> list[dict[str, torch.Tensor]]:
    """``batches`` with every fifth label wrong, so that a high LR hurts."""
    data = batches(n)
    for i in range(0, n, 5):
        data[i]["labels"] = (data[i]["labels"] + 1) % 3
    return data


def accelerate_loop(
    *,
    steps: int = 120,
    split_batches: bool = False,
    accumulation: int = 1,
    samples: int = 480,
    step_with_optimizer: bool = True,
    scheduler_steps: str = "optimizer step",
    explicit: bool = False,
    backwards: int = 1,
    overflow_at: tuple[int, ...] = (),
    nan_at: dict[int, int] | None = None,
    clean: bool = False,
    save_every: int | None = None,
    save_on: str = "all",
    folder: str | None = None,
    resume: bool = False,
    kill_at: tuple[int, str] | None = None,
    log_notes: bool = False,
    report_dir: str | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """An accelerate loop; what it saw and what the scheduler made of it.

    ``steps`` are optimizer steps over epochs of ``samples``; the global batch is the same for any number of processes.
    """
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=accumulation,
        step_scheduler_with_optimizer=step_with_optimizer,
        dataloader_config=DataLoaderConfiguration(split_batches=split_batches),
    )
    rank, world = accelerator.process_index, accelerator.num_processes
    if overflow_at:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    calls = count_collectives()
    model = TinyClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = GLOBAL_BATCH if split_batches else GLOBAL_BATCH // world
    data = torch.utils.data.DataLoader(noisy(samples), batch_size=batch)
    micro_per_epoch = -(-samples // GLOBAL_BATCH)
    steps_per_epoch = -(-micro_per_epoch // accumulation)
    ticks = world if step_with_optimizer and not split_batches else 1
    total = {"optimizer step": steps * ticks, "micro-batch": steps * accumulation, "epoch": steps // steps_per_epoch}
    report_dir = report_dir if accelerator.is_main_process else None  # as many scripts would pass it
    scheduler = get_schedule(optimizer, total[scheduler_steps], **(options or {}), report_dir=report_dir)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)
    inner = scheduler.scheduler
    lrs: list[float] = []
    expected: list[float] = []
    group: list[float] = []
    silent_calls = 0
    step, skipped, epoch = 0, 0, 0
    notes = notes_of("autowu_hf") if log_notes else []
    if resume:
        step = max(int(name) for name in os.listdir(folder) if os.path.exists(f"{folder}/{name}/complete"))
        accelerator.load_state(f"{folder}/{step}")
        epoch = step // steps_per_epoch
    start = step
    while step < steps:
        loader = data
        if resume and epoch == start // steps_per_epoch:
            loader = accelerator.skip_first_batches(data, (start % steps_per_epoch) * accumulation)
        for example in loader:
            with accelerator.accumulate(model) if accumulation > 1 else contextlib.nullcontext():
                loss = model(**example)["loss"]
                if nan_at is not None and nan_at.get(step) == rank:
                    loss = loss * float("nan")
                if step + skipped in overflow_at:
                    loss = loss * float("inf")
                for _ in range(backwards):
                    if kill_at == (step + 1, "backward"):
                        die()
                    accelerator.backward(loss / backwards, **({"retain_graph": True} if backwards > 1 else {}))
                if clean:  # a NaN gradient would end the training, not only the step
                    for parameter in model.parameters():
                        parameter.grad.nan_to_num_(0.0)
                group.append(loss.item())
                if accelerator.sync_gradients:
                    lrs.append(optimizer.param_groups[0]["lr"])
                before = len(calls), len(inner.tests)
                optimizer.step()
                if kill_at == (step + 1, "optimizer"):
                    die()
                ended_step = accelerator.sync_gradients
                if scheduler_steps == "micro-batch" or (scheduler_steps == "optimizer step" and ended_step):
                    scheduler.step(*([loss] if explicit else []))
                elif scheduler_steps == "optimizer step" and step_with_optimizer:
                    scheduler.step()  # accelerate leaves it out while gradients accumulate
                optimizer.zero_grad()
                silent_calls += len(calls) - before[0] if len(inner.tests) == before[1] else 0
            if not ended_step:
                continue
            if optimizer.step_was_skipped:
                skipped += 1
                group = []
                continue
            expected.append(sum(group) / len(group))
            group = []
            step += 1
            if save_every and step % save_every == 0 and (save_on == "all" or accelerator.is_main_process):
                accelerator.save_state(f"{folder}/{step}")
                if save_on == "all":
                    accelerator.wait_for_everyone()
                open(f"{folder}/{step}/complete", "w").close()
            if kill_at == (step, "step"):
                die()
            if step == steps:
                break
        epoch += 1
        if scheduler_steps == "epoch":
            before = len(calls), len(inner.tests)
            scheduler.step()
            silent_calls += len(calls) - before[0] if len(inner.tests) == before[1] else 0
    mean = torch.tensor(gather_object([expected])).mean(dim=0).tolist()
    return {
        "lrs": lrs,
        "all_lrs_equal": all(other == lrs for other in gather_object([lrs])),
        "losses": inner.losses,
        "expected": mean,
        "pending": len(inner.pending_losses()),
        "skipped": skipped,
        "calls": list(calls),
        "calls_outside_tests": silent_calls,
        "num_tests": len(inner.tests),
        "test_steps": [record.step / ticks for record in inner.tests],
        "switch_step": None if inner.switch_step is None else inner.switch_step / ticks,
        "cap": inner.warmup_cap / ticks,
        "peak_lr": inner.peak_lr,
        "rewound_to": inner.rewound_to,
        "last_lr": inner.get_last_lr()[0],
        "notes": notes,
    }


def two_models() -> dict[str, Any]:
    """Two models and schedulers of one accelerator: first without, then with an explicit loss."""
    accelerator = Accelerator(cpu=True)
    parts = []
    for value in (1.0, 2.0):
        model = TinyClassifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        parts.append((value, *accelerator.prepare(model, optimizer, get_schedule(optimizer, 400))))

    def train_step(value: float, model: Any, optimizer: Any, scheduler: Any, explicit: bool) -> None:
        loss = model(torch.zeros(1, 4))["logits"].sum() * 0.0 + value
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step(*([loss] if explicit else []))
        optimizer.zero_grad()

    error = ""
    try:
        train_step(*parts[0], explicit=False)
    except ValueError as refusal:
        error = str(refusal)
    for _ in range(5):
        for part in parts:
            train_step(*part, explicit=True)
    for part in parts:
        part[-1].scheduler.flush()
    return {"error": error, "losses": [part[-1].scheduler.losses for part in parts]}


def allow_fsdp_on_a_cpu() -> None:
    """accelerate offers FSDP on accelerators alone, torch also on a CPU: makes the one believe in the other."""
    state = PartialState._shared_state
    state["distributed_type"], state["device"] = DistributedType.MULTI_XPU, torch.device("cpu")


def fsdp_trainer_run(folder: str, version: int, use_orig_params: bool = True, **options: Any) -> dict[str, Any]:
    """``trainer_run`` under FSDP1 or FSDP2; the former has flat parameters without ``use_orig_params``."""
    config: dict[str, Any] = {"version": version, "state_dict_type": "SHARDED_STATE_DICT"}
    if version == 1:
        config |= {"use_orig_params": use_orig_params, "sync_module_states": False}
    os.environ["FSDP_STATE_DICT_TYPE"] = config["state_dict_type"]  # where transformers 4 reads it
    return trainer_run(
        folder,
        fsdp=True if IS_TRANSFORMERS_5 else "full_shard",
        fsdp_config=config,
        before_trainer=allow_fsdp_on_a_cpu,
        **options,
    )


def trainer_run(
    folder: str,
    *,
    steps: int = 120,
    samples: int = 480,
    kill_at: int | None = None,
    save_at: tuple[int, ...] = (),
    resume: str | bool = False,
    model: Callable[[], Any] | None = None,
    optimizer: Any = None,
    watch_states: bool = False,
    asks_later: bool = False,
    goes_too_far: bool = False,
    relapses: bool = False,
    options: dict[str, Any] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """A Trainer run on as many processes as there are; what it saw and what the scheduler made of it.

    Each process makes its own ``model``, for one that is handed over lies in memory that they share. The steps of
    ``save_at`` leave a checkpoint, whose collectives are not counted; ``watch_states`` ends the run a step after the
    switch; ``asks_later`` has later batches say how much of the first slope lasts, although P does not lie far below R;
    ``goes_too_far`` takes whatever they say after the growth for a loss that has risen; ``relapses`` takes whatever the
    losses say after the switch for a relapse.
    """
    from tiny import trainer_for
    from transformers import TrainerCallback, TrainingArguments

    from autowu_hf import AutoWUCallback
    from autowu_hf.autowu.course.later import lasting, overshoot
    from autowu_hf.autowu.course.measures import scale
    from autowu_hf.autowu.relapse import attempt, relapse

    if asks_later:
        scale.LAYER_SHARE = math.inf
        for module in (scale, lasting):
            module.TRUST_SHARE, module.FAR = 1e3, 1.0
    if goes_too_far:
        overshoot.OVERSHOT = overshoot._ERRORS = -1e6
    if relapses:
        relapse.is_lost = lambda *seen: True
        take = attempt.Attempt.take
        attempt.Attempt.take = lambda self, *seen: take(self, *seen) or True
        relapse.FEWEST_TO_TRY = 0

    if not IS_TRANSFORMERS_5:
        # Its Trainer cannot load an optimizer's state onto "cpu:0", the device of a process among several on a CPU.
        set_up = TrainingArguments.device.fget
        TrainingArguments.device = property(lambda self: torch.device(set_up(self).type))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    calls = count_collectives()
    seen: dict[str, Any] = {"lrs": [], "tests_at": []}

    states: dict[int, list[torch.Tensor]] = {}

    def keep_and_compare(step: int, kwargs: dict[str, Any]) -> None:
        """Keeps the state of every step of the warm-up; at the switch, finds the one that it went back to."""
        scheduler, optimizer = kwargs["lr_scheduler"], kwargs["optimizer"]
        scheduler = getattr(scheduler, "scheduler", scheduler)
        state = [*kwargs["model"].parameters(), *kwargs["model"].buffers()]
        state += [torch.as_tensor(value) for own in optimizer.state.values() for value in own.values()]
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
            state += getattr(optimizer.optimizer, name, [])  # DeepSpeed's own weights
        state += itertools.chain(*getattr(optimizer.optimizer, "fp32_groups", []))
        states[step] = [getattr(t, "_local_tensor", t).detach().clone() for t in state]
        if scheduler.switch_step is not None:
            then = states[scheduler.rewound_to // scheduler._cadence.ticks_per_step]
            seen["went_back"] = all(torch.equal(a, b) for a, b in zip(states[step], then, strict=True))

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen["lrs"].append(kwargs["optimizer"].param_groups[0]["lr"])

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if kill_at == state.global_step + 1:
                die()
            if state.global_step + 1 in save_at:
                control.should_save = True  # known to the callback of this package, as where Trainer decides it
                seen["before_saving"] = len(calls)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if watch_states:
                if "went_back" in seen:
                    control.should_training_stop = True
                else:
                    keep_and_compare(state.global_step, kwargs)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "before_saving" in seen:  # not where Trainer saves by itself
                del calls[seen.pop("before_saving") :]

    trainer = trainer_for(
        folder,
        callbacks=[AutoWUCallback(plot=False), Watch()],
        train_dataset=noisy(samples),
        per_device_train_batch_size=GLOBAL_BATCH // world,
        max_steps=steps,
        logging_steps=1,
        lr_scheduler_kwargs={"max_lr": 10.0, **(options or {})},
        **({"model": model()} if model is not None else {}),
        **({"optimizers": (optimizer, None)} if optimizer is not None else {}),
        **arguments,
    )
    trainer.train(resume_from_checkpoint=resume or None)
    scheduler = trainer.lr_scheduler
    scheduler = getattr(scheduler, "scheduler", scheduler)
    return {
        "lrs": seen["lrs"],
        "all_lrs_equal": all(other == seen["lrs"] for other in gather_object([seen["lrs"]])),
        "losses": scheduler.losses,
        "calls": list(calls),
        "num_tests": len(scheduler.tests),
        "switch_step": scheduler.switch_step,
        "cap": scheduler.warmup_cap,
        "peak_lr": scheduler.peak_lr,
        "rewound_to": scheduler.rewound_to,
        "peak_rule": scheduler.peak_rule,
        "approach": scheduler.report().get("approach") if hasattr(scheduler, "report") else None,
        "relapses": scheduler.report()["relapses"] if hasattr(scheduler, "report") else None,
        "num_lost": scheduler.num_steps_lost if hasattr(scheduler, "num_steps_lost") else None,
        "went_back": seen.get("went_back"),
        "steps_per_epoch": scheduler.steps_per_epoch,
        "test_steps": [record.step for record in scheduler.tests],
        "last_lr": scheduler.get_last_lr()[0],
        "logged": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "weights": [getattr(p, "_local_tensor", p).detach().clone() for p in trainer.model.parameters()],
    }


def uneven_loop(*, options: dict[str, Any], epochs: int = 30, even: bool = False) -> dict[str, Any]:
    """An accelerate loop over 21 batches an epoch inside join_uneven_inputs, where two ranks have 11 and 10."""
    accelerator = Accelerator(cpu=True)
    world = accelerator.num_processes
    calls = count_collectives()
    model = TinyClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.utils.data.DataLoader(noisy(21 * 8), batch_size=8)
    steps_per_epoch = -(-21 // world)
    scheduler = get_schedule(optimizer, epochs * steps_per_epoch * world, **options)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)
    if world > 1:
        # accelerate joins uneven inputs on several GPUs alone; torch's join, which it calls, works everywhere.
        Accelerator.distributed_type = property(lambda self: DistributedType.MULTI_GPU)
    inner = scheduler.scheduler
    inside = 0
    own: list[list[float]] = []
    lrs: list[float] = []
    for _ in range(epochs):
        own.append([])
        with accelerator.join_uneven_inputs([model], even_batches=even):
            before = len(calls)
            for example in data:
                loss = model(**example)["loss"]
                accelerator.backward(loss)
                own[-1].append(loss.item())
                lrs.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            inside += len(calls) - before
    return {
        "calls_inside": inside if world > 1 else 0,
        "steps": inner.last_epoch,
        "lr": optimizer.param_groups[0]["lr"],
        "lrs": lrs,
        "switch_step": inner.switch_step,
        "cap": inner.warmup_cap,
        "losses": inner.losses,
        "test_steps": [record.step for record in inner.tests],
        "own": own,
        "rewound_to": inner.rewound_to,
        "weights": [p.detach().clone() for p in model.parameters()],
    }


def clipped_loop(limit: float) -> dict[str, Any]:
    """An accelerate loop of 40 steps that clips by torch's own function; the scale that it found."""
    accelerator = Accelerator(cpu=True)
    model = TinyClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.utils.data.DataLoader(noisy(480), batch_size=GLOBAL_BATCH // accelerator.num_processes)
    scheduler = get_autowu_schedule(optimizer, 40 * accelerator.num_processes)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)
    for example, _ in zip(itertools.cycle(data), range(40), strict=False):
        accelerator.backward(model(**example)["loss"])
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return scheduler.scheduler.report()["approach"]


def unprepared_loop(*, steps: int = 120) -> dict[str, Any]:
    """An accelerate loop whose model nobody has prepared, so that each process trains its own."""
    accelerator = Accelerator(cpu=True)
    notes = notes_of("autowu_hf")
    model = TinyClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.utils.data.DataLoader(noisy(480), batch_size=8)
    scheduler = get_autowu_schedule(optimizer, steps * accelerator.num_processes)
    optimizer, data, scheduler = accelerator.prepare(optimizer, data, scheduler)
    lrs: list[float] = []
    while len(lrs) < steps:
        for example in data:
            accelerator.backward(model(**example)["loss"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            lrs.append(optimizer.param_groups[0]["lr"])
    return {"lrs": lrs, "scale": scheduler.scheduler.report()["approach"]["scale"], "notes": notes}


def deepspeed_config(stage: int, optimizer: bool = False, scheduler: bool = False) -> dict[str, Any]:
    config: dict[str, Any] = {
        "zero_optimization": {"stage": stage},
        "fp16": {"enabled": False},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
    }
    if optimizer:
        config["optimizer"] = {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}}
    if scheduler:
        config["scheduler"] = {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}
    return config


def allow_deepspeed_on_a_cpu() -> None:
    """TrainingArguments names no backend for DeepSpeed, and accelerate counts no processes without one on a CPU."""
    state = PartialState._shared_state
    rank = torch.distributed.get_rank()
    state.update(backend="gloo", num_processes=torch.distributed.get_world_size())
    state.update(process_index=rank, local_process_index=rank)


def compile_nothing() -> None:
    """DeepSpeed builds reductions through shared memory, where it can, for minutes; gloo has its own.

    Nor does it try its compiler on each of its operations, of which no run here has one.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}


def deepspeed_trainer_run(folder: str, config: dict[str, Any], **options: Any) -> dict[str, Any]:
    """``trainer_run`` under DeepSpeed."""
    from transformers import training_args

    compile_nothing()
    if "bf16" in config:  # TrainingArguments wants a GPU for it
        training_args.is_torch_bf16_gpu_available = lambda *args: True
        options["bf16"] = True
    return trainer_run(folder, deepspeed=config, use_cpu=False, before_trainer=allow_deepspeed_on_a_cpu, **options)


def sharded_loop(
    kind: str, folder: str, *, steps: int = 120, save_at: int | None = None, resume: bool = False
) -> dict[str, Any]:
    """An accelerate loop under "fsdp2", "deepspeed", or "deepspeed optimizer": with the optimizer in its config.

    Saves its state at ``save_at``; ``resume`` goes on from it.
    """
    from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin, InitProcessGroupKwargs
    from accelerate.utils import DummyOptim, DummyScheduler

    own_optimizer = kind == "deepspeed optimizer"
    if kind == "fsdp2":
        PartialState(cpu=True)
        allow_fsdp_on_a_cpu()
        accelerator = Accelerator(fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
    else:
        compile_nothing()
        config = {**deepspeed_config(2, optimizer=own_optimizer), "train_micro_batch_size_per_gpu": 8}
        accelerator = Accelerator(
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config={**config, "gradient_accumulation_steps": 1}),
            kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")],
        )
    model = TinyClassifier()
    data = torch.utils.data.DataLoader(noisy(480), batch_size=8)
    ticks = 1 if own_optimizer else accelerator.num_processes
    options = {"max_lr": 10.0, "test_every": 3 * ticks, "rewind": False}  # its copies are not in the checkpoint
    if own_optimizer:
        optimizer: Any = DummyOptim(model.parameters(), lr=1e-3)
        scheduler: Any = DummyScheduler(
            optimizer, lr_scheduler_callable=lambda made: get_schedule(made, steps, **options)
        )
    else:
        groups = [{"params": [*model.parameters()]}]
        if kind == "deepspeed":  # which drops groups that are empty, as that of no weights that decay under LoRA
            groups.insert(0, {"params": [], "lr": 2e-3})
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        scheduler = get_schedule(optimizer, steps * ticks, **options)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)
    inner = scheduler.scheduler
    step = 0
    if resume:
        accelerator.load_state(folder)
        step = inner.last_epoch // ticks
    lrs, expected = [], []
    while step < steps:
        loader = accelerator.skip_first_batches(data, step % 30)
        for example in loader:
            lrs.append(optimizer.param_groups[0]["lr"])
            loss = model(**example)["loss"]
            accelerator.backward(loss)
            expected.append(loss.item())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            if step == save_at:
                accelerator.save_state(folder)
            if step == steps:
                break
    return {
        "all_lrs_equal": all(other == lrs for other in gather_object([lrs])),
        "lrs": lrs,
        "switch_step": None if inner.switch_step is None else inner.switch_step / ticks,
        "losses": inner.losses,
        "expected": torch.tensor(gather_object([expected])).mean(dim=0).tolist(),
        "last_lr": inner.get_last_lr()[0],
    }


def search_in_a_worker(folder: str) -> Any:
    """Sends a Trainer to a spawned process; what its schedule did there."""
    import multiprocessing

    import cloudpickle
    from search_worker import work
    from tiny import trainer_for

    from autowu_hf import AutoWUCallback

    trainer = trainer_for(folder, max_steps=30, callbacks=[AutoWUCallback(plot=False, report=False)])
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    worker = context.Process(target=work, args=(cloudpickle.dumps(trainer), results))
    worker.start()
    outcome = results.get(timeout=120)
    worker.join(timeout=60)
    return outcome


def rex_loop(folder: str) -> tuple[Any, Any]:
    """LRs and last weights of an accelerate loop with REX: a whole run, and one that goes on at its tenth step."""
    from autowu_hf import get_rex_schedule_with_warmup

    def run(start: int, save_at: int | None) -> tuple[list[float], list[Any]]:
        accelerator = Accelerator(cpu=True)
        world = accelerator.num_processes
        model = TinyClassifier()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        data = torch.utils.data.DataLoader(noisy(480), batch_size=GLOBAL_BATCH // world)
        scheduler = get_rex_schedule_with_warmup(
            optimizer, 4 * world, 24 * world, sampling="epoch", steps_per_epoch=6 * world
        )
        model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)
        if start:
            accelerator.load_state(folder)
        lrs, examples = [], list(data)
        for step in range(start, 24):
            accelerator.backward(model(**examples[step % len(examples)])["loss"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            lrs.append(scheduler.get_last_lr()[0])
            if step + 1 == save_at:
                accelerator.save_state(folder)
        return lrs, [parameter.tolist() for parameter in model.parameters()]

    whole, part = run(0, 10), run(10, None)
    return (whole[0][10:], whole[1]), part
