"""What the Markdown files say is so: snippets run, tables are the code's and the runs', links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from margins import assert_learned
from result_pages import RESULTS, shown
from run_programs import script_alone

from autowu_hf import get_autowu_schedule

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "autowu_hf"
BENCHMARKS = ROOT / "examples" / "benchmarks"
PAGES = [
    ROOT / "README.md",
    *(page for folder in (PACKAGE, ROOT / "examples", ROOT / "tests") for page in folder.rglob("*.md")),
]


def read(path):
    return path.read_text(encoding="utf-8")


def fenced(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", read(path), flags=re.DOTALL | re.MULTILINE)


README = read(ROOT / "README.md")
SNIPPETS = [
    (name, snippet) for name in ("README.md", "examples/README.md") for snippet in fenced(ROOT / name, "python")
]


def section(path, title):
    """The text below a heading, down to the next of its rank."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", read(path), flags=re.DOTALL | re.MULTILINE)
    assert found, f"{path} has no section {title}"
    return found[1]


def option_rows(path, title):
    return {m[1]: m[2] for m in re.finditer(r"^\| `(\w+)` \| (.*?) \|", section(path, title), flags=re.MULTILINE)}


def schedule(**options):
    return get_autowu_schedule(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]), 1000, **options)


def slug(heading):
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_it_fits_two_screens():
    assert len(README.splitlines()) <= 180


def test_it_has_its_picture_at_the_top():
    assert "](examples/pictures/digits_0_to_4.png)" in "\n".join(README.splitlines()[:12])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", read(file), flags=re.MULTILINE)
            assert anchor in map(slug, headings), f"{page} links to {target}"


def test_there_are_two_whole_runs_to_paste():
    assert [name for name, _ in SNIPPETS] == ["README.md", "examples/README.md"]


FOUND = {
    "README.md": "print(scheduler.ended_by, *scheduler.losses[:1], loss.item())",
    "examples/README.md": "s = trainer.lr_scheduler; print(s.ended_by, s.losses[0], min(s.losses))",
}
"""What tells of a snippet's run, after its last line: the ending, a loss of the start and a lower one."""


@pytest.mark.once
@pytest.mark.parametrize(("name", "snippet"), SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_a_snippet_runs_as_it_stands_and_finds_something(name, snippet, tmp_path):
    assert re.search(r"^(import|from) autowu_hf\b", snippet, flags=re.MULTILINE)  # which the process has already done
    (tmp_path / "snippet.py").write_text(f"{snippet}\n{FOUND[name]}")
    *said, found = script_alone("snippet.py", folder=tmp_path).strip().splitlines()
    (last,) = (line for line in said if line.startswith(("learning rate found: ", "decay ")))
    ended_by, early, late = found.split()
    assert ended_by in (("scale", "cliff", "cap") if name == "examples/README.md" else ("scale", "cliff"))
    assert_learned(float(late), float(early), 0.3)
    assert 1e-5 <= float(last.split()[-1]) <= 1.0  # min_lr and max_lr
    assert list(tmp_path.rglob("autowu.png"))


@pytest.mark.parametrize("difference", fenced(ROOT / "README.md", "diff"))
def test_a_difference_gives_python(difference):
    kept = [line[1:] for line in difference.splitlines() if not line.startswith("-")]
    tree = ast.parse("\n".join(kept))
    assert any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree))
    assert "autowu" in "\n".join(line for line in difference.splitlines() if line.startswith("+"))


def assert_defaults(rows):
    for name, default in vars(schedule().settings).items():
        if name in rows:
            shown = rows[name].strip("`")
            assert shown == str(default) or shown == f'"{default}"' or float(shown) == default, name


def test_every_option_has_its_row():
    rows = option_rows(PACKAGE / "README.md", "All options")
    assert set(rows) == set(inspect.signature(get_autowu_schedule).parameters) - {"optimizer"}
    assert set(vars(schedule().settings)) <= set(rows)
    assert_defaults(rows)


def test_the_ten_options_are_options_and_have_their_defaults():
    rows = option_rows(ROOT / "README.md", "Options")
    assert len(rows) == 10
    assert set(rows) < set(option_rows(PACKAGE / "README.md", "All options"))
    assert_defaults(rows)


def test_the_map_has_every_room():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"^\| `(\w+)/` \|", section(PACKAGE / "README.md", "The rooms"), flags=re.MULTILINE))


def test_the_support_table_names_tests_that_exist():
    page = read(PACKAGE / "integrations" / "README.md")
    table = page[page.index("| launcher |") : page.index("All of these ran on the CPU")].strip()
    named = re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", table)
    assert len(named) >= 12
    for file, function in named:
        assert any(f"def {function}" in read(path) for path in (ROOT / "tests").rglob(file)), (file, function)
    for row in table.splitlines()[2:]:
        assert "untested" in row or "test_" in row


def test_the_summary_has_no_number_that_is_not_in_the_benchmarks():
    summary = [*section(ROOT / "README.md", "Measured").splitlines()]
    rows = [row for row in summary if row.startswith("|")]
    assert len(rows) == 2 + 8
    pages = "\n".join(map(read, sorted(RESULTS.glob("*.md"))))
    measured = set(re.findall(r"\d+\.\d+", pages))
    shown = set(re.findall(r"\d+\.\d+", "\n".join(rows)))
    assert len(shown) >= 20
    assert shown <= measured
    share = r"{} took (\S+ %) of the wall time in\s+the median, (\S+ %) at most"
    (found,) = re.findall(share.format("the schedule"), read(ROOT / "README.md"))
    assert "share of the wall time: {} in the median, {} at most".format(*found) in pages


def test_every_page_of_results_has_the_name_of_a_benchmark_and_its_row():
    index = read(BENCHMARKS / "README.md")
    rows = re.findall(
        r"^\| .* \| \[(\w+)\]\(results/(\w+)\.md\) \| `(\w+)\.py(?: --(\w+))?`", index, flags=re.MULTILINE
    )
    for name, page, script, option in rows:
        assert name == page == (option or script)
        assert (BENCHMARKS / f"{script}.py").exists()
    assert {page for _, page, *_ in rows} == {path.stem for path in RESULTS.glob("*.md")}


@pytest.fixture
def fine_tuning(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fine_tuning")


def test_the_fine_tuning_table_is_what_the_committed_runs_give(fine_tuning, capsys):
    fine_tuning.markdown()
    printed = capsys.readouterr().out.strip()
    assert len(printed.splitlines()) >= 8
    assert printed == shown("fine_tuning", "fine-tuning")


def test_the_rule_called_the_default_there_is_the_default(fine_tuning):
    there, default = schedule(**fine_tuning.RULES[fine_tuning.DEFAULT]), schedule()
    assert there.settings == default.settings
    assert there.peak_rule == default.peak_rule
