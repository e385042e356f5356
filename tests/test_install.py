"""`pip install .` gives a whole package: every module, stub and program, importable away from the source tree."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torture  # compiling takes over a minute

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("fastfeat", "server", "examples", "pyproject.toml", "setup.py", "README.md", "LICENSE")
GENERATED = ROOT / "build/release"  # C that Cython made before; reused where it is newer than its source


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package installed by pip from a copy of the tree. Compiling takes most of a minute, so once for all tests."""
    tree, target = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("installed")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy2(source, tree / name)
    if GENERATED.is_dir():
        shutil.copytree(GENERATED, tree / "build/release", ignore=shutil.ignore_patterns("*.o"))
    options = ["-q", "--no-deps", "--no-build-isolation", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", *options, str(tree)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return target


def python(installed: Path, code: str) -> str:
    """What the code prints in a fresh interpreter that sees the installed copy first and the source tree not at all."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=installed, env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


@pytest.mark.parametrize(
    "name",
    ["fastfeat", "fastfeat.client", "fastfeat.cli", "fastfeat.history", "fastfeat_server", "fastfeat_flights"],
)
def test_packages_import_from_where_they_were_installed(installed: Path, name: str) -> None:
    where = python(installed, f"import {name}; print({name}.__file__)")
    assert Path(where).is_relative_to(installed)


def test_every_python_source_and_stub_is_installed(installed: Path) -> None:
    roots = {
        "fastfeat": ROOT / "fastfeat",
        "fastfeat_server": ROOT / "server/fastfeat_server",
        "fastfeat_flights": ROOT / "examples/flights/fastfeat_flights",
    }
    wanted = {
        str(Path(name) / path.relative_to(root))
        for name, root in roots.items()
        for path in root.rglob("*")
        if path.suffix in (".py", ".pyi") or path.name == "py.typed"
    }
    assert wanted
    assert sorted(name for name in wanted if not (installed / name).exists()) == []


def test_every_extension_is_built(installed: Path) -> None:
    sources = {path.stem for path in (ROOT / "fastfeat/_core").glob("*.pyx")}
    built = {path.name.split(".")[0] for path in (installed / "fastfeat/_core").glob("*.so")}
    assert built == sources


def test_the_program_is_installed(installed: Path) -> None:
    program = installed / "bin/fastfeat"
    assert program.exists()
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    run = subprocess.run([str(program), "--version"], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("fastfeat 0.")


def test_a_star_import_gives_the_public_names_and_no_others(installed: Path) -> None:
    code = "from fastfeat import *; import fastfeat; print(sorted(set(fastfeat.__all__) ^ set(dir())))"
    names = ast.literal_eval(python(installed, code))
    assert [name for name in names if not name.startswith("__")] == ["fastfeat"]
