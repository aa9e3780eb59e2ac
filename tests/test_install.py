"""What users install is the wheel; an editable installation would not notice a room that it lacks."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*command: str | Path, cwd: Path) -> str:
    """What a command printed, in a process that does not see this checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The python of an environment that has the wheel, and this one's packages without its editable installations."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("environment")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "autowu_hf", source / "autowu_hf", ignore=shutil.ignore_patterns("__pycache__"))
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env")
    python = folder / "env" / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    own = sysconfig.get_path("purelib", vars={"base": str(folder / "env")})
    # Python looks for further .pth files, which editable installations are, in its own site-packages alone.
    (Path(own) / "packages.pth").write_text("\n".join(site.getsitepackages()))
    return python


@pytest.mark.once
def test_the_wheel_has_every_room_and_its_types(installed, tmp_path):
    rooms = {path.parent.relative_to(ROOT) for path in (ROOT / "autowu_hf").rglob("__init__.py")}
    assert len(rooms) >= 9
    names = sorted(".".join(room.parts) for room in rooms)
    code = f"""
import importlib, pathlib, sys
import autowu_hf
folder = pathlib.Path(autowu_hf.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
for name in {names!r}:
    importlib.import_module(name)
for name in autowu_hf.__all__:
    getattr(autowu_hf, name)
assert (folder / "py.typed").is_file()
print(*sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py")))
"""
    shipped = run(installed, "-W", "ignore", "-c", code, cwd=tmp_path).split()
    assert shipped == sorted(str(path.relative_to(ROOT / "autowu_hf")) for path in (ROOT / "autowu_hf").rglob("*.py"))


@pytest.mark.once
def test_its_command_runs_a_script(installed, tmp_path):
    usage = run(installed.parent / "autowu-run", "--help", cwd=tmp_path)
    assert "python -m autowu_hf.run script.py" in usage
    (tmp_path / "script.py").write_text(
        "import sys\nfrom transformers import SchedulerType\nprint(SchedulerType('autowu').value, *sys.argv[1:])\n"
    )
    assert run(installed, "-m", "autowu_hf.run", "script.py", "--flag", cwd=tmp_path).split() == ["autowu", "--flag"]
