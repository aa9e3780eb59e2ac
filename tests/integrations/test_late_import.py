from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import inspect
import sys

import pytest

from autowu_hf.integrations.late_import import forget, on_import

NAME = "a_package_for_late_import.inner"


class Curious(importlib.abc.MetaPathFinder):
    """Another library's finder that asks all finders, as the one under test does."""

    def __init__(self):
        self.is_asking = False

    def find_spec(self, name, path=None, target=None):
        if name != NAME or self.is_asking:
            return None
        self.is_asking = True
        try:
            return importlib.util.find_spec(name)
        finally:
            self.is_asking = False


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """The values that the action saw; the module is not imported yet."""
    (tmp_path / "a_package_for_late_import").mkdir()
    (tmp_path / "a_package_for_late_import" / "__init__.py").touch()
    (tmp_path / "a_package_for_late_import" / "inner.py").write_text("VALUE = 7\n\n\ndef function():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    values = []

    def action(module):
        values.append(module.VALUE)

    values_and_action = values, action
    yield values_and_action
    forget(NAME, action)
    for name in (NAME, NAME.partition(".")[0]):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("others", [0, 1])
def test_the_action_follows_the_import_and_the_module_keeps_its_loader(seen, others):
    values, action = seen
    on_import(NAME, action)
    on_import(NAME, action)
    sys.meta_path[:0] = [Curious() for _ in range(others)]
    assert values == []
    assert NAME.partition(".")[0] not in sys.modules
    spec = importlib.util.find_spec(NAME)
    assert spec.loader.get_source(NAME).startswith("VALUE = 7")
    module = importlib.import_module(NAME)
    assert values == [7]
    assert type(module.__loader__) is type(module.__spec__.loader) is importlib.machinery.SourceFileLoader
    assert inspect.getsource(module.function).startswith("def function")
    importlib.reload(module)
    assert len(values) >= 2 - others  # where another finder comes first, that one is asked alone


def test_an_imported_module_is_acted_on_at_once_and_a_forgotten_one_no_more(seen):
    values, action = seen
    finders = [*sys.meta_path]
    module = importlib.import_module(NAME)
    on_import(NAME, action)
    assert values == [7]
    forget(NAME, action)
    forget(NAME, action)
    importlib.reload(module)
    assert values == [7]
    assert sys.meta_path == finders


def test_what_is_not_there_stays_an_import_error(seen):
    on_import("a_package_for_late_import.nothing", seen[1])
    try:
        with pytest.raises(ModuleNotFoundError, match="nothing"):
            importlib.import_module("a_package_for_late_import.nothing")
    finally:
        forget("a_package_for_late_import.nothing", seen[1])
