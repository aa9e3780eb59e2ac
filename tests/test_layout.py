"""The doors between the rooms of the package open one way."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "autowu_hf"
FILES = sorted(PACKAGE.rglob("*.py"))

METHOD = 2
"""The rank of a method's folder (or file, rex.py), and so of every room that is not named here."""

RANKS = {
    "console": -1,
    "_version": 0,
    "shapes": 0,
    "runtime": 0,
    "loss_curve": 1,
    "rewind": 1,
    "integrations": 3,
    "suggest": 3,
    "registration": 4,
    "": 5,  # the package's __init__
    "run": 6,
}
"""A room may import from rooms of a lower rank, and from itself."""


def module_of(path: Path) -> str:
    """``autowu.scheduler`` for autowu_hf/autowu/scheduler.py; a package is called by its folder."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in it, for its type checker too."""
    here = [*path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "autowu_hf"}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1] + (node.module.split(".") if node.module else [])
            for name in node.names:
                inner = ".".join([*base, name.name])
                found.add(inner if inner in MODULES else ".".join(base))
    return found - {module_of(path)}


def room_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_no_import_goes_to_a_higher_room_or_from_one_method_to_another(path):
    own = room_of(module_of(path))
    for module in imports_of(path):
        other = room_of(module)
        assert other == own or RANKS.get(other, METHOD) < RANKS.get(own, METHOD), f"{path.name} imports {module}"


def test_the_imports_that_it_looks_at_are_found():
    found = imports_of(PACKAGE / "autowu" / "scheduler.py")
    assert {"runtime.losses.history", "rewind", "autowu.warm_up"} <= found
    assert imports_of(PACKAGE / "run.py") >= {"", "runtime.methods"}
    assert "integrations.trainer_hooks" in imports_of(PACKAGE / "registration.py")  # inside a function


def test_no_modules_import_each_other_in_a_circle():
    left = {module_of(path): imports_of(path) for path in FILES}
    while ready := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in ready:
            del left[module]
    assert not left, f"in a circle, or behind one: {sorted(left)}"


def test_rooms_and_files_stay_small():
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 260, path
    for folder in {path.parent for path in FILES}:
        assert len([*folder.glob("*.py")]) <= 12, folder


TESTED_ELSEWHERE = {"_version.py"}
"""Modules without a file of tests that has their name, beside the packages' ``__init__``."""


def test_every_module_has_its_tests_in_the_same_place():
    modules = {path.relative_to(PACKAGE) for path in FILES if path.name != "__init__.py"}
    tests = Path(__file__).parent
    missing = {str(path) for path in modules if not (tests / path.parent / f"test_{path.name}").is_file()}
    assert missing == TESTED_ELSEWHERE


def test_what_meets_the_libraries_knows_no_method():
    names = re.compile(r"\b(AutoWU|AutoLRS|Salsa)(Scheduler|Trainer)\b")
    for path in [PACKAGE / "registration.py", *(PACKAGE / "integrations").glob("*.py")]:
        assert not names.search(path.read_text(encoding="utf-8")), path


def test_what_the_makefile_leaves_out_is_there():
    makefile = (PACKAGE.parent / "Makefile").read_text(encoding="utf-8")
    names = (
        re.search(r"^NUMERICS := (.*?)\n\n", makefile, flags=re.DOTALL | re.MULTILINE)[1].replace("\\\n", " ").split()
    )
    assert len(names) > 10
    for name in names:
        assert (PACKAGE.parent / "tests" / name).exists(), name
