"""The wheel: it holds every file of the package, and works where there is no repository."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dartune"
EVERY_MODULE = """
import importlib, pkgutil, sys, dartune
assert dartune.__file__.startswith(sys.prefix), dartune.__file__
for module in pkgutil.walk_packages(dartune.__path__, "dartune."):
    if module.name != "dartune.__main__":
        importlib.import_module(module.name)
        print(module.name)
"""

pytestmark = pytest.mark.slow


def done(folder: Path, *command: str | Path) -> str:
    """What a command prints that knows neither this repository nor its environment's settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build leaves files in its folder, and takes up those that an earlier one left."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("src", "recipes"):  # the package's recipes are a link to the other folder
        copytree(ROOT / name, source / name, symlinks=True, ignore=ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, source / name)
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    done(folder, sys.executable, "-m", "pip", "wheel", *flags, source)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The folder of programs of an environment with the wheel and, for what it needs, this environment's packages."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    scripts, packages = (
        Path(sysconfig.get_path(name, "venv", {"base": str(home), "platbase": str(home)}))
        for name in ("scripts", "purelib")
    )
    pip = (sys.executable, "-m", "pip", f"--python={scripts / 'python'}")
    done(home, *pip, "install", "--no-deps", "--no-index", wheel)
    # Only now: pip would find the dartune that is installed here.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return scripts


def test_the_wheel_holds_every_file_of_the_package(wheel):
    folders = (Path(folder, file) for folder, _, files in os.walk(PACKAGE, followlinks=True) for file in files)
    ours = {path.relative_to(PACKAGE.parent).as_posix() for path in folders if path.parent.name != "__pycache__"}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("dartune/")}
    assert packed == ours


def test_every_module_can_be_imported(programs, tmp_path):
    modules = done(tmp_path, programs / "python", "-c", EVERY_MODULE).split()
    files = {path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")}
    assert len(modules) >= len(files)


def test_the_command_runs_with_the_files_that_come_with_it(programs, tmp_path):
    assert "check-reward" in done(tmp_path, programs / "dartune", "--help")
    assert "Sampling: " in done(tmp_path, programs / "dartune", "check", "lab")
