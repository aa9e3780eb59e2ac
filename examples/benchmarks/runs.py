"""The runs of a benchmark: a CSV with one row a run, and the worker processes that make those that are missing.

A benchmark is a list of jobs and a function from a job to its results:

    table = RunTable(Path("new.csv"), key={"task": str, "seed": int}, results=("test", "seconds"))

    def run(job):  # of the module, so that the worker processes find it
        task, seed = job
        ...
        return {"test": 0.9, "seconds": 3.2}

    table.complete(run, lambda rows: [("digits", seed) for seed in range(5)])

``complete`` runs the jobs that have no row yet and writes every row as soon as it is there, so a killed benchmark goes
on where it was.
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from tqdm.auto import tqdm
from training import ON_CPU

import autowu_hf

Job = tuple[Any, ...]
"""What names a run: task, method, seed and the like."""
Row = dict[str, str]
"""Column -> what the CSV has there."""

VERSIONS = " ".join(
    f"{name} {version}"
    for name, version in {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "autowu_hf": autowu_hf.__version__,
        **({} if ON_CPU else {"cuda": torch.version.cuda}),
    }.items()
)
"""What a run was made with. The GPU is not asked for its name: worker processes could not use it any more."""


def optional_float(text: str) -> float | None:
    return float(text) if text else None


def written(value: Any) -> Any:
    """A value of a job as the CSV has it."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else value


def read(path: Path) -> list[Row]:
    """The rows of a CSV without the last one where a kill has cut it off; none where there is no file."""
    if not path.exists():
        return []
    text = path.read_bytes().decode()
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))


def prepare_worker() -> None:
    """Runs are on one thread each, so that two of them on two cores do not get in each other's way."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


@dataclass(frozen=True)
class RunTable:
    """The CSV of a benchmark.

    Args:
        path: of the file, which need not be there yet.
        key: the columns that name a job, in its order, each with the function that reads its text. Floats must be
            equal to themselves after ``f"{value:g}"``.
        results: the other columns.
    """

    path: Path
    key: Mapping[str, Callable[[str], Any]]
    results: tuple[str, ...]

    def at(self, path: Path) -> RunTable:
        """The same columns in another file."""
        return replace(self, path=path)

    @property
    def fields(self) -> tuple[str, ...]:
        """All columns."""
        return (*self.key, *self.results)

    def rows(self) -> list[Row]:
        """All rows that are there, in the order of the file."""
        return read(self.path)

    def job(self, row: Row) -> Job:
        """What the row is about."""
        return tuple(parse(row[name]) for name, parse in self.key.items())

    def row(self, job: Job, results: Mapping[str, Any]) -> Row:
        """A row as the CSV has it; results that are missing are empty.

        Raises:
            ValueError: a result has no column.
        """
        unknown = set(results) - set(self.results)
        if unknown:
            raise ValueError(
                f"results must be among {', '.join(self.results)}, got {', '.join(sorted(unknown))}; "
                "add the missing columns to the table's results"
            )
        values = dict(zip(self.key, map(written, job), strict=True)) | dict(results)
        return {name: "" if values.get(name) is None else str(values[name]) for name in self.fields}

    def complete(
        self, run: Callable[[Job], Mapping[str, Any]], needed: Callable[[list[Row]], list[Job]], workers: int = 2
    ) -> None:
        """Runs what is missing until nothing is.

        Args:
            run: job -> results, by the names of their columns; a function of a module.
            needed: the rows so far -> jobs. It is asked again after every run, so that later jobs may depend on what
                earlier ones found.
            workers: the number of processes.
        """
        rows = self.rows()
        begun = {self.job(row) for row in rows}
        running: dict[Future[Mapping[str, Any]], Job] = {}
        pool = ProcessPoolExecutor(workers, initializer=prepare_worker)
        with self._appending() as file, tqdm(unit="run") as progress:
            writer = csv.DictWriter(file, self.fields, lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            try:
                while True:
                    missing = [job for job in dict.fromkeys(needed(rows)) if job not in begun]
                    progress.total = progress.n + len(missing) + len(running)
                    # Only so many wait for a worker, so that what a new row asks for has its turn soon.
                    for job in missing[: 50 * workers - len(running)]:
                        running[pool.submit(run, job)] = job
                        begun.add(job)
                    if not running:
                        break
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        job = running.pop(future)
                        rows.append(self.row(job, future.result()))
                        writer.writerow(rows[-1])
                        progress.update()
                        progress.set_postfix_str(", ".join(str(written(value)) for value in job if value is not None))
                    file.flush()
            finally:
                pool.shutdown(cancel_futures=True)

    def command(
        self,
        doc: str | None,
        run: Callable[[Job], Mapping[str, Any]],
        needed: Callable[[list[Row]], list[Job]],
        show: Callable[[list[Row]], None],
    ) -> None:
        """The command line of a script that completes its table and shows it.

        Args:
            doc: of the script.
            run: as in ``complete``.
            needed: as in ``complete``.
            show: prints the rows.
        """
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--csv", type=Path, default=self.path, help=f"instead of {self.path.name}")
        parser.add_argument("--workers", type=int, default=2)
        parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
        options = parser.parse_args()
        table = self.at(options.csv)
        if not options.table:
            table.complete(run, needed, options.workers)
        show(table.rows())

    def _appending(self) -> io.TextIOWrapper:
        """The file, open at the end of its last whole row."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+b")
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.seek(0, io.SEEK_END)
        return io.TextIOWrapper(file, encoding="utf-8", newline="")
