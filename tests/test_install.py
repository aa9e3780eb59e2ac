"""What users install is the wheel, from the source distribution; an editable installation lacks no room."""

from __future__ import annotations

import email
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
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


BUILD = """
import os, sys, tarfile
from setuptools import build_meta
folder = sys.argv[1]
with tarfile.open(os.path.join(folder, build_meta.build_sdist(folder))) as archive:
    archive.extractall(folder)  # a filter is unknown to older patch releases of Python
    os.chdir(os.path.join(folder, archive.getnames()[0]))
build_meta.build_wheel(folder)
"""


def files_of_the_project() -> list[str]:
    """What is committed, or new and not ignored; in an unpacked source distribution, what its list names."""
    if (ROOT / ".git").exists():
        listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    else:
        listed = (ROOT / "autowu_hf.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines()
    return [name for name in listed if not name.startswith("autowu_hf.egg-info/") and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with the unpacked source distribution and the wheel that was built from it."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in files_of_the_project():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-W", "ignore", "-c", BUILD, folder, cwd=source)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The python of an environment that has the wheel, and this one's packages without its editable installations."""
    folder = tmp_path_factory.mktemp("environment")
    (wheel,) = built.glob("*.whl")
    venv.create(folder / "env")
    python = folder / "env" / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", "--no-compile", wheel, cwd=folder)
    own = sysconfig.get_path("purelib", vars={"base": str(folder / "env")})
    # Python looks for further .pth files, which editable installations are, in its own site-packages alone.
    (Path(own) / "packages.pth").write_text("\n".join(site.getsitepackages()))
    return python


@pytest.mark.once
def test_the_source_distribution_has_all_that_the_project_has(built):
    (unpacked,) = built.glob("autowu_hf-*/")
    shipped = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    made = {name for name in shipped if name == "PKG-INFO" or name.startswith(("autowu_hf.egg-info/", "build/"))}
    assert shipped - made == set(files_of_the_project())
    assert {"tests/data/loss_curves.json.gz", ".ci/constraints.txt", "Makefile"} < shipped


@pytest.mark.once
def test_the_description_says_what_the_readme_says_and_has_no_relative_link(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Author"] == "autowu_hf contributors"
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2107.05855"]
    description = metadata.get_payload(decode=True).decode()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", description)
    assert links
    assert all(link.startswith("https://") for link in links)
    assert "![" not in description
    for part in (readme.split("\n\n")[1], re.search(r"^```diff\n.*?^```", readme, flags=re.DOTALL | re.MULTILINE)[0]):
        assert part in description


@pytest.mark.once
def test_its_command_runs_a_script_and_it_has_every_room_and_its_types(installed, tmp_path):
    rooms = {path.parent.relative_to(ROOT) for path in (ROOT / "autowu_hf").rglob("__init__.py")}
    assert len(rooms) >= 9
    names = sorted(".".join(room.parts) for room in rooms)
    (tmp_path / "script.py").write_text(f"""
import importlib, pathlib, sys
from transformers import SchedulerType
print(SchedulerType("autowu").value, *sys.argv[1:])
import autowu_hf
folder = pathlib.Path(autowu_hf.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
for name in {names!r}:
    importlib.import_module(name)
for name in autowu_hf.__all__:
    getattr(autowu_hf, name)
assert (folder / "py.typed").is_file()
print(*sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py")))
""")
    command, *shipped = run(installed.parent / "autowu-run", "script.py", "--flag", cwd=tmp_path).splitlines()
    assert command == "autowu --flag"
    assert shipped[-1].split() == sorted(
        str(path.relative_to(ROOT / "autowu_hf")) for path in (ROOT / "autowu_hf").rglob("*.py")
    )
