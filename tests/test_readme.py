from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_it_has_snippets_and_its_picture():
    assert len(SNIPPETS) == 2
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file()


@pytest.mark.once
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs_as_it_stands(number, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SNIPPETS[number]], cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(("learning rate found: 0.", "decay "))
    assert list(tmp_path.rglob("autowu.png"))


def test_every_option_has_its_row():
    import inspect

    from autowu_hf import get_autowu_schedule
    from autowu_hf.autowu.settings import AutoWUSettings

    rows = {m[1]: m[2] for m in re.finditer(r"^\| `(\w+)` \| (.*?) \|", README, flags=re.MULTILINE)}
    arguments = set(inspect.signature(get_autowu_schedule).parameters) - {"optimizer"}
    assert set(rows) == arguments
    for name, default in vars(AutoWUSettings()).items():
        shown = rows[name].strip("`")
        assert shown == str(default) or shown == f'"{default}"' or float(shown) == default


def test_the_support_table_names_tests_that_exist():
    table = README[README.index("| launcher |") : README.index("All of these ran on the CPU")].strip()
    named = re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", table)
    assert len(named) >= 12
    for file, function in named:
        assert f"def {function}" in (ROOT / "tests" / file).read_text(encoding="utf-8")
    for row in table.splitlines()[2:]:
        assert "untested" in row or "test_" in row


def fine_tuning():
    path = ROOT / "examples" / "benchmarks" / "fine_tuning.py"
    spec = importlib.util.spec_from_file_location("fine_tuning", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_fine_tuning_table_is_what_the_committed_runs_give(capsys):
    fine_tuning().markdown()
    printed = capsys.readouterr().out.strip()
    assert len(printed.splitlines()) >= 8
    assert printed in README


def test_the_rule_called_the_default_there_is_the_default():
    from autowu_hf.autowu.settings import AutoWUSettings

    module = fine_tuning()
    settings = AutoWUSettings.from_options(None, module.RULES[module.DEFAULT])
    assert dataclasses.replace(settings, peak_rule=None) == AutoWUSettings()
    assert settings.rule == AutoWUSettings().rule
