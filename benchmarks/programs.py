"""Programs a benchmark builds for itself and runs beside itself: the C load generator, the floors, the echo,
servers, Feast.

Built once into build/benchmarks/ and again when a source is newer; Feast's environment when its version changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "benchmarks"
CC = os.environ.get("CC", "cc")
FEAST = "0.67.0"
START_TIMEOUT_S = 300.0  # a server that loads five million rows before it answers


def loadgen() -> Path:
    """The load generator's path, built if need be."""
    source, program = HERE / "loadgen.c", BUILD / "loadgen"
    build(source, program, lambda to: run([CC, "-O2", "-Wall", "-Wextra", "-o", str(to), str(source)]))
    return program


def floors() -> Path:
    """The path of the program that does what a bar asks and nothing else, built if need be."""
    source, program = HERE / "floors.c", BUILD / "floors"
    options = ["-O3", "-march=native", "-Wall", "-Wextra", "-pthread"]
    build(source, program, lambda to: run([CC, *options, "-o", str(to), str(source)]))
    return program


def echo_module() -> Path:
    """The directory that holds the compiled `echo` extension module, built if need be."""
    source = HERE / "echo.pyx"
    build(source, BUILD / f"echo{sysconfig.get_config_var('EXT_SUFFIX')}", lambda to: compile_cython(source, to))
    return BUILD


def compile_cython(source: Path, module: Path) -> None:
    generated = BUILD / f"{source.stem}.c"
    run([sys.executable, "-m", "cython", "-3", str(source), "-o", str(generated)])
    include = sysconfig.get_paths()["include"]
    run([CC, "-O3", "-DNDEBUG", "-shared", "-fPIC", f"-I{include}", "-o", str(module), str(generated)])


def build(source: Path, target: Path, make: Callable[[Path], object]) -> None:
    """Make the target aside and rename it, so that two runs at once never use a half-written one."""
    if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}.{os.getpid()}")
    make(aside)
    aside.replace(target)


def feast_python(*, may_install: bool) -> Path:
    """The interpreter of an environment that holds Feast and nothing of ours; made if need be and allowed.

    Why not the `bench` extra: Feast holds pandas and a hundred other packages to versions of its own.
    Raises RuntimeError, which says why, where there is none.
    """
    home = BUILD / f"feast-venv-{FEAST}"
    if not home.exists():
        if not may_install:
            raise RuntimeError(f"Feast's environment ({home}) is not there; a run that is no smoke run makes it")
        BUILD.mkdir(parents=True, exist_ok=True)
        install_feast(home)
    return home / "bin" / "python"


def install_feast(home: Path) -> None:
    """Made aside and renamed, so that what is there is whole."""
    aside = home.with_name(f"{home.name}.{os.getpid()}")
    try:
        run([sys.executable, "-m", "venv", str(aside)])
        run([str(aside / "bin" / "python"), "-m", "pip", "install", "--quiet", f"feast=={FEAST}"])
        aside.replace(home)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def run(command: Sequence[str]) -> str:
    """The program's output. Raises RuntimeError with what it said when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    return done.stdout


def on_core(core: int, command: Sequence[str]) -> list[str]:
    return ["taskset", "--cpu-list", str(core), *command]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(name: str, command: Sequence[str], core: int | None, *, kill: bool = False) -> Iterator[int]:
    """Run a server program of ours that prints `{"port": N}` once it answers; its port; it ends with the block."""
    words = [sys.executable, "-m", *command]
    process = subprocess.Popen(
        words if core is None else on_core(core, words), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name} ended before it answered, exit code {process.wait()}")
        yield int(json.loads(line)["port"])
    finally:
        if kill:
            process.kill()
        stop(process)
        process.stdout.close()


def stop(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server on port {port} ended, exit code {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
            return
        time.sleep(0.01)
    raise RuntimeError(f"nothing answers on port {port} after {START_TIMEOUT_S:.0f} s")
