"""The comparison on pretrained models; what needs their weights is skipped where they are not installed."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from margins import assert_above
from result_pages import shown

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
VIT, PAIRS, FULL = "ViT, 3 epochs", "MiniLM, pairs, 10 steps", "SmolLM2, full, 60 steps"
SEEDS = [10, 11, 12]


@pytest.fixture(scope="module")
def real_models(load):
    return load("real_models")


@pytest.fixture(scope="module")
def tasks(load):
    return load("real_model_tasks")


@pytest.fixture(scope="module")
def adapters(load):
    return load("adapter_tasks")


@pytest.fixture(scope="module")
def heads(load):
    return load("head_tasks")


def with_weights(load, task):
    lacking = load("pretrained").missing(task.packages)
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}")
    return task


def row(real_models, name, method, lr, seed, test, **results):
    defaults = {"start": 0.2, "tune": test, "steps": 60, "peak_lr": lr, "looked": 0, "kept_start": 1.0, "kept": 0.5}
    return real_models.RUNS.row((name, method, lr, seed), {**defaults, "test": test, **results})


# What is run ----------------------------------------------------------------------------------------------------------


def test_cheap_tasks_come_first_and_in_each_the_cosine_last(real_models, tasks):
    jobs = real_models.needed([], [FULL, PAIRS, VIT], list(real_models.METHODS), SEEDS)
    assert list(dict.fromkeys(job[0] for job in jobs)) == [VIT, PAIRS, FULL]
    assert list(dict.fromkeys(job[1] for job in jobs if job[0] == PAIRS)) == [
        "linear 5e-5",
        "practice",
        *real_models.AUTOWU,
        "cosine",
    ]
    assert "practice" not in {job[1] for job in jobs if job[0] == VIT}
    assert [job for job in jobs if job[:2] == (PAIRS, "practice")] == [(PAIRS, "practice", 2e-5, s) for s in SEEDS]
    assert [job for job in jobs if job[:2] == (VIT, "autowu")] == [(VIT, "autowu", None, seed) for seed in SEEDS]
    grids = {name: {job[2:] for job in jobs if job[:2] == (name, "cosine")} for name in (VIT, FULL)}
    lrs = (1e-4, 3.16228e-4, 1e-3, 3.16228e-3, 1e-2)
    assert grids[VIT] == {(lr, seed) for lr in lrs for seed in (0, 1, 2)}
    assert grids[FULL] == {(lr, 0) for lr in (3.16228e-5, 1e-4, 3.16228e-4)}  # each of its runs takes minutes


def test_the_cosine_is_reported_where_tuning_found_it_best(real_models):
    def rows(best):
        grid = real_models.needed([], [FULL], ["cosine"], SEEDS)
        return [row(real_models, *job, -3 - abs(math.log(job[2] / best))) for job in grid]

    assert real_models.needed(rows(1e-4), [FULL], ["cosine"], SEEDS) == [(FULL, "cosine", 1e-4, s) for s in SEEDS]
    # The best lies at the edge, or beyond it.
    assert real_models.needed(rows(1e-3), [FULL], ["cosine"], SEEDS) == [(FULL, "cosine", 1e-3, 0)]
    assert real_models.needed(rows(1e-6), [FULL], ["cosine"], SEEDS) == [(FULL, "cosine", 1e-5, 0)]
    assert real_models.needed(rows(1e-4)[1:], [FULL], ["cosine"], SEEDS) == [(FULL, "cosine", 3.16228e-5, 0)]


def test_each_task_has_seeds_of_its_own_unless_some_are_given(real_models, tasks):
    assert len(tasks.TASKS[PAIRS].seeds) == 10
    assert len(tasks.TASKS[FULL].seeds) == 3
    jobs = real_models.needed([], [PAIRS, FULL], ["autowu"])
    assert [(job[0], job[3]) for job in jobs] == [(name, s) for name in (PAIRS, FULL) for s in tasks.TASKS[name].seeds]
    rows = [row(real_models, *job, 0.5) for job in jobs]
    assert {key: len(own) for key, own in real_models.reported(rows).items()} == {
        (PAIRS, "autowu"): 10,
        (FULL, "autowu"): 3,
    }
    assert [len(own) for own in real_models.reported(rows, [10, 19]).values()] == [2, 1]


def test_missing_packages_end_the_script_with_the_pip_line(real_models, load, monkeypatch):
    assert load("pretrained").missing(("torch", "no_such_package")) == ["no_such_package"]
    monkeypatch.setattr(real_models, "missing", lambda packages: [name for name in packages if "gguf" in name])
    monkeypatch.setattr(sys, "argv", ["real_models.py", "--tasks", FULL])
    with pytest.raises(SystemExit, match="missing packages: gguf; install them with: pip install -e"):
        real_models.main()
    for text in (real_models.__doc__, (BENCHMARKS / "README.md").read_text(encoding="utf-8")):
        assert all(line in text for line in load("pretrained").PIP.split(" && "))


def test_the_schedules_are_what_their_names_say(real_models, monkeypatch):
    monkeypatch.setitem(real_models.AUTOWU, "autowu, linear", {"decay_type": "linear"})
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    run = SimpleNamespace(model=model, steps=60, steps_per_epoch=20)
    lrs = {}
    for method in ("linear 5e-5", "practice", "cosine"):
        optimizer, schedule = real_models.make(method, 5e-5, run, {})
        assert [p is model.weight for group in optimizer.param_groups for p in group["params"]] == [True]
        lrs[method] = []
        for _ in range(60):
            lrs[method].append(optimizer.param_groups[0]["lr"] / 5e-5)
            optimizer.step()
            schedule.step()
    assert lrs["linear 5e-5"] == pytest.approx([1 - step / 60 for step in range(60)])
    assert lrs["practice"][:7] == pytest.approx([step / 6 for step in range(7)])
    assert lrs["cosine"][:4] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert lrs["cosine"][57 // 2 + 3] == pytest.approx(0.5, abs=0.03)
    _, schedule = real_models.make("autowu, linear", None, run, {"rewind": False})
    assert (schedule.settings.decay_type, schedule.settings.rewind) == ("linear", False)
    assert schedule.steps_per_epoch == 20


def test_the_parts_to_tune_and_to_report_on_are_all_that_is_held_out(load, tasks):
    torch.manual_seed(0)
    x, y = torch.randn(250, 3), torch.randint(2, (250,))
    run = load("fine_tuning_tasks").classification(torch.nn.Linear(3, 2), x, y, 40, 8, 1, 0, "linear")
    whole, *parts = (run.evaluate(run.model, rows) for rows in (slice(None), *tasks.ROWS.values()))
    assert run.evaluate(run.model)[:2] == whole[:2]
    assert whole[1] == pytest.approx((100 * parts[0][1] + 110 * parts[1][1]) / 210, rel=1e-4)


# Tables ---------------------------------------------------------------------------------------------------------------


def test_gaps_are_in_percent_of_the_tuned_gain(real_models, load):
    gaps = load("real_model_tables").gaps

    def rows(method, *values, **results):
        return [
            row(real_models, VIT, method, 1e-3, seed, value, **results)
            for seed, value in zip(SEEDS, values, strict=False)
        ]

    tuned = rows("cosine", 0.5, 0.7, 0.9)  # a gain of 0.5 over 0.2
    assert gaps(rows("autowu", 0.55, 0.6, 0.9), tuned) == pytest.approx([10, -20, 0])
    assert gaps(rows("autowu", 0.0, math.nan, 5.0), tuned) == pytest.approx([-100, -100, 100])
    assert gaps(rows("autowu", 0.55), tuned) == pytest.approx([10])  # of the seeds that both have
    assert gaps(rows("autowu", 0.55), []) == []
    assert gaps(rows("autowu", 0.55), rows("cosine", 0.1, 0.2, 0.3)) == []  # nothing was gained
    assert gaps(rows("autowu", -3.5, start=-4.0), rows("cosine", -3.0, start=-4.0)) == pytest.approx([-50])


def test_the_tables_have_what_the_rows_give(real_models, load, capsys):
    grids = real_models.needed([], [VIT, FULL], ["cosine"], SEEDS)
    best = {VIT: 1e-3, FULL: 1e-4}
    rows = [row(real_models, *job, 0.7 - abs(math.log10(job[2] / best[job[0]]))) for job in grids]
    for i, seed in enumerate(SEEDS):
        rows.append(row(real_models, VIT, "cosine", 1e-3, seed, 0.7))
        rows.append(row(real_models, VIT, "cosine", 1e-4, seed, 0.9))  # tuning did not choose it
        rows.append(row(real_models, VIT, "linear 5e-5", 5e-5, seed, 0.3))
        warm_up = {"peak_lr": 10.0 ** (i - 4), "looked": 10 + i, "kept": 0.25}
        rows.append(row(real_models, VIT, "autowu", None, seed, 0.65 + 0.1 * i, **warm_up))
        language = {"start": -4.0, "kept_start": -3.5, "kept": -3.6}
        rows.append(row(real_models, FULL, "cosine", 1e-4, seed, -3.0, **language))
        rows.append(row(real_models, FULL, "autowu", None, seed, -3.25, **{**language, **warm_up}))
    results = real_models.reported(rows, SEEDS)
    assert [len(own) for own in results.values()] == [3] * 5
    load("real_model_tables").show(results, real_models.METHODS, tuple(real_models.AUTOWU))
    printed = capsys.readouterr().out
    assert "| task | start | tuned cosine | at | linear 5e-5 | autowu |" in printed
    assert "| ViT, 3 epochs (accuracy, %) | 20.0 | 70.0 | 0.001 | -80 | +10 |" in printed
    assert "| SmolLM2, full, 60 steps (loss, nats) | 4.000 | 3.000 | 0.0001 |  | -25 |" in printed
    assert "| mean |  |  |  | -80.0 (1) | -7.5 (2) |" in printed
    assert "| task | before | linear 5e-5 | autowu | cosine |" in printed
    assert "| ViT, 3 epochs | 1.00 | 0.50 | 0.25 | 0.50 |" in printed
    assert "| SmolLM2, full, 60 steps | -3.50 |  | 0.25 | -3.60 |" in printed
    assert "| ViT, 3 epochs | 1.0e-03, 11 of 60 |" in printed


# Real runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("little_pretraining")
def test_a_row_of_the_fine_tuned_vit(real_models):
    results = real_models.run((VIT, "autowu", None, 10))
    made = real_models.RUNS.row((VIT, "autowu", None, 10), results)
    assert not [name for name, value in made.items() if value == "" and name not in ("lr", "rewound_to")]
    assert 0 <= results["looked"] <= results["switch"]
    assert results["steps"] == 60
    assert_above(results["test"], results["start"] + 0.1, results["test"] - results["start"])
    assert results["kept"] < results["kept_start"]


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["pairs", "efficientnet"])
def test_a_row_of_a_real_model(real_models, tasks, heads, load, monkeypatch, name):
    task = tasks.pairs_task(4) if name == "pairs" else tasks.efficientnet_task(16, 4)
    monkeypatch.setitem(heads.ALL_TASKS, "short", with_weights(load, task))
    texts = load("real_model_texts")
    monkeypatch.setattr(texts, "TUNE", 20)
    monkeypatch.setattr(texts, "TEST", 60)
    results = real_models.run(("short", "practice", task.practice, 10))
    assert (results["steps"], results["looked"], results["peak_lr"]) == (4, 0, task.practice)
    assert ("kept" in results) == (name == "pairs")
    if name == "pairs":
        assert results["start"] > 0.3
        assert results["kept_start"] == pytest.approx(1.0, abs=1e-4)
        assert 0.9 < results["kept"] < 1.0
    else:
        assert results["start"] < 0.3  # its head is new
        norms = [m for m in task.prepare(10).model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert [norm.momentum for norm in norms] == pytest.approx([0.1] * len(norms))
        assert all(float(norm.running_mean.abs().sum()) > 0 for norm in norms)  # those of ImageNet


# Adapters -------------------------------------------------------------------------------------------------------------


def test_adapters_and_heads_have_rows_of_their_own(real_models, adapters, heads, tasks, monkeypatch, capsys):
    apart = (tasks.TASKS, adapters.ADAPTER_TASKS, heads.HEAD_TASKS)
    assert dict(task for own in apart for task in own.items()) == heads.ALL_TASKS
    assert len(heads.ALL_TASKS) == sum(map(len, apart))
    assert {task.prepare.keywords["adapter"] for task in adapters.ADAPTER_TASKS.values()} == set(adapters.ADAPTERS)
    assert {task.prepare.keywords["steps"] for task in adapters.ADAPTER_TASKS.values()} == {60, 150}
    oft, head = "OFT, 60 steps", "head on MiniLM, 60 steps"
    for argument, own, other in (("--adapters", oft, VIT), ("--heads", head, oft), ("--workers=1", VIT, head)):
        monkeypatch.setattr(sys, "argv", ["real_models.py", argument, "--table"])
        real_models.main()
        printed = capsys.readouterr().out
        assert own in printed
        assert other not in printed
        monkeypatch.setattr(sys, "argv", ["real_models.py", argument, "--table", "--tasks", other])
        with pytest.raises(SystemExit):
            real_models.main()
        assert f"{other}: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["LoRA, q and v", "OFT", "VeRA", "IA3", "prompt", "layer norms"])
@pytest.mark.filterwarnings("ignore")
def test_only_the_adapter_is_trained(adapters, monkeypatch, name):
    pytest.importorskip("peft")
    monkeypatch.setattr(adapters, "PRETRAINING", 1)
    adapters.pretrained_llama.cache_clear()
    monkeypatch.setattr(adapters, "texts", lambda: dict.fromkeys(("prose", "train", "tune", "test"), torch.arange(200)))
    run = adapters.adapted(10, name, 1)
    adapters.pretrained_llama.cache_clear()
    trained = sum(own.numel() for own in run.model.parameters() if own.requires_grad)
    assert 0 < trained < 0.1 * sum(own.numel() for own in run.model.parameters())
    run.loss_of(run.model, run.batches(0)).backward()
    assert {own.grad is not None for own in run.model.parameters() if own.requires_grad} == {True}
    assert run.batches(0).shape == (4, 96)
    assert not torch.equal(run.batches(0), run.batches(1))


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
def test_a_row_of_an_adapter(real_models, adapters, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(adapters, "PRETRAINING", 16)
    monkeypatch.setattr(adapters, "EVALUATED", 32)
    adapters.pretrained_llama.cache_clear()
    results = real_models.run(("LoRA, q and v, 60 steps", "autowu", None, 10))
    adapters.pretrained_llama.cache_clear()
    assert_above(results["test"], results["start"], -results["start"])
    assert results["kept"] != results["kept_start"]


def test_the_tables_on_the_page_are_what_the_committed_rows_give(real_models, capsys):
    rows = real_models.RUNS.rows()
    real_models.show(real_models.reported(rows), real_models.METHODS, tuple(real_models.AUTOWU))
    printed = capsys.readouterr().out.strip()
    assert "SmolLM2, full, 300 steps" in printed
    assert printed == shown("real_models")


# Heads ----------------------------------------------------------------------------------------------------------------


def given_features(classes=3):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (400,), generator=generator)
    x = torch.randn(classes, 16, generator=generator)[y] + torch.randn(400, 16, generator=generator)
    return (x[:200], y[:200]), (x[200:300], y[200:300]), (x[300:], y[300:])


def test_a_row_of_a_head(real_models, heads, monkeypatch):
    monkeypatch.setitem(heads.FEATURES, "given", (given_features, ()))
    monkeypatch.setitem(heads.ALL_TASKS, "short", heads.head_task("given", 60))
    results = real_models.run(("short", "autowu", None, 10))
    assert_above(results["test"], results["start"], 1.0)
    assert "kept" not in results
    run = heads.head(10, "given", 60)
    assert [tuple(own.shape) for own in run.model.parameters()] == [(3, 16), (3,)]
    assert run.batches(0)[0].shape == (heads.BATCH, 16)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
def test_features_are_those_of_the_frozen_models(heads, load, monkeypatch):
    monkeypatch.setattr(load("real_model_texts"), "MOST_TOKENS", 6)
    heads.of_minilm.cache_clear()
    for name, width, classes in (("MiniLM", 384, 20), ("MiniLM, normalized", 384, 20)):
        make, packages = heads.FEATURES[name]
        if load("pretrained").missing(packages):
            pytest.skip(f"needs {', '.join(packages)}")
        parts = make()
        assert [len(x) == len(y) > 0 for x, y in parts] == [True] * 3
        assert {x.shape[1] for x, _ in parts} == {width}
        assert len(parts[0][1].unique()) == classes
        assert not any(x.requires_grad for x, _ in parts)
    heads.of_minilm.cache_clear()
    assert float((parts[0][0].norm(dim=1) - 1.0).abs().max()) < 1e-5  # the last ones are normalized


@pytest.mark.parametrize(
    ("kind", "known"), [("adapters", "LoRA, q and v, 150 steps"), ("heads", "head on EfficientNet, 200 steps")]
)
def test_the_tables_of_adapters_and_heads_are_too(real_models, monkeypatch, capsys, kind, known):
    monkeypatch.setattr(sys, "argv", ["real_models.py", f"--{kind}", "--table"])
    real_models.main()
    printed = capsys.readouterr().out.strip()
    assert known in printed
    assert printed == shown(kind)
