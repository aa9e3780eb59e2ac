"""The table of runs that all benchmarks share, and their training loop."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
TESTS = Path(__file__).parent


@pytest.fixture
def table(load, tmp_path):
    runs = load("runs")
    key = {"task": str, "lr": runs.optional_float, "seed": int}
    return runs.RunTable(tmp_path / "new" / "runs.csv", key, ("test", "note"))


def run_of_a_worker(job):
    _, lr, seed = job
    return {"test": seed + (lr or 0.0), "note": f"{torch.get_num_threads()} thread"}


def run_that_fails(job):
    raise OverflowError(f"{job[0]} diverged")


JOBS = [("digits", None, 0), ("digits", 3.16228e-05, 0), ("signals, long", None, 1)]


def test_every_job_gets_a_row_that_names_it(table):
    table.complete(run_of_a_worker, lambda rows: JOBS)
    assert sorted(table.path.read_text().splitlines()[1:]) == sorted(
        ["digits,,0,0.0,1 thread", "digits,3.16228e-05,0,3.16228e-05,1 thread", '"signals, long",,1,1.0,1 thread']
    )
    assert table.path.read_text().startswith("task,lr,seed,test,note\n")
    assert {table.job(row) for row in table.rows()} == set(JOBS)


def test_a_run_that_has_a_row_is_not_made_again(table):
    table.complete(run_of_a_worker, lambda rows: JOBS)
    before = table.path.read_bytes()
    table.complete(run_that_fails, lambda rows: JOBS)
    assert table.path.read_bytes() == before


def test_a_row_that_a_kill_has_cut_off_is_made_again(table):
    table.complete(run_of_a_worker, lambda rows: JOBS, workers=1)
    whole = table.path.read_bytes()
    for cut in (1, 8, len(whole) - 30, len(whole) - 3):
        table.path.write_bytes(whole[:-cut])
        assert len(table.rows()) < 3
        table.complete(run_of_a_worker, lambda rows: JOBS, workers=1)
        assert sorted(table.path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_what_was_found_decides_what_is_run_next(table):
    def needed(rows):
        best = max((float(row["test"]) for row in rows), default=0.0)
        return [("digits", None, seed) for seed in range(min(int(best) + 2, 4))]

    table.complete(run_of_a_worker, needed)
    assert sorted(table.job(row)[2] for row in table.rows()) == [0, 1, 2, 3]


def test_a_run_that_fails_ends_the_benchmark_and_leaves_its_rows(table):
    table.complete(run_of_a_worker, lambda rows: JOBS[:1])
    with pytest.raises(OverflowError, match="diverged"):
        table.complete(run_that_fails, lambda rows: JOBS, workers=1)
    assert [table.job(row) for row in table.rows()] == JOBS[:1]


def test_a_result_without_a_column_is_refused(table):
    message = re.escape("results must be among test, note, got accuracy; add the missing columns")
    with pytest.raises(ValueError, match=message):
        table.row(JOBS[0], {"accuracy": 1.0})


@pytest.mark.parametrize(
    "name", ["compare", "fine_tuning", "batch_sizes", "nothing_found", "suggestions", "optimizers"]
)
def test_the_committed_rows_are_as_the_table_would_write_them(load, name):
    table = load(name).RUNS
    rows = table.rows()
    assert table.path.read_text().splitlines()[0] == ",".join(table.fields)
    assert len({table.job(row) for row in rows}) == len(rows) > 50
    for row in rows:
        assert table.row(table.job(row), {name: row[name] for name in table.results}) == row


def test_the_loop_steps_the_schedule_and_clips_as_it_is_told(load):
    training = load("training")
    lrs, norms = [], []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            lrs.append(self.param_groups[0]["lr"])
            norms.append(float(self.param_groups[0]["params"][0].grad.norm()))
            return super().step(closure)

    def loss_of(model, batch):
        return model(batch).sum()

    seen = []
    for max_norm in (1.0, None):
        model = torch.nn.Linear(3, 1, bias=False)
        optimizer = Recorder(model.parameters(), lr=0.5)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        batches = (torch.full((1, 3), 4.0) for _ in range(3))
        seconds = training.train(model, optimizer, schedule, batches, loss_of, max_norm, after_step=seen.append)
        assert seconds >= 0
    assert lrs == [0.5, 0.25, 0.125] * 2
    assert norms == pytest.approx([1.0] * 3 + [48**0.5] * 3, rel=1e-4)
    assert seen == [0, 1, 2] * 2


def test_the_loop_of_a_loader_is_the_loop_of_its_batches(load):
    """accelerate prepares a loader; the weights do not tell which of them it was."""
    training = load("training")
    x = torch.randn(8, 3)
    weights = []
    for is_loader in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        dataset = training.BatchPerStep(4, lambda step: x[2 * step :][:2])
        batches = (
            torch.utils.data.DataLoader(dataset, batch_size=None) if is_loader else [*map(dataset.batches, range(4))]
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        training.train(model, optimizer, None, batches, lambda model, batch: model(batch).square().mean())
        weights.append(model.weight.detach().clone())
    assert torch.equal(*weights)


def test_no_benchmark_imports_from_the_tests():
    modules = {path.stem for path in TESTS.glob("*.py")} | {"tests"}
    for path in BENCHMARKS.glob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert not modules & set(imported), path
        assert "sys.path" not in path.read_text(encoding="utf-8"), path


def test_faithfulness_replays_the_recorded_curves(load, curves):
    """One curve of each: the paper's settings find the authors' switch, and a spike moves the default's by no test."""
    faithfulness = load("faithfulness")
    records = faithfulness.load()
    assert [record["switch_step"] for record in records] == [record["switch_step"] for record in curves]
    record = min(records, key=lambda record: record["switch_step"])
    tests, factor = faithfulness.paper(record)[0]
    assert tests <= 2
    assert 1 <= factor < 10
    assert faithfulness.DEFAULT.peak_rule == "minimum"
