"""The reclaim protocol holds in every order of events of small systems, and the checker that says so finds seeded bugs.

    tests/reclaim/reclaim.pml --spin--> pan.c --cc--> pan: all states

The model stands for fastfeat/_core/readers.pyx, whose docstring argues for what is checked here. `make model` runs
this alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).parent / "reclaim" / "reclaim.pml"
COMPILER = shutil.which("cc") or shutil.which("gcc")
MISSING = [name for name, path in {"spin": shutil.which("spin"), "a C compiler": COMPILER}.items() if path is None]
DEPTH_MAX = 1_000_000
SECONDS_MAX = 1_800  # a run takes seconds, of a campaign minutes; this ends one that hangs

# name: (what is defined, fewer states than there are, so that a model that is stuck early doesn't pass for sound)
SOUND = {
    "two readers": ([], 2_000_000),
    "a reader dies, another one takes its slot": (
        ["READERS=1", "PIECES=3", "WRITES=3", "READS=2", "DEATHS=2"],
        1_000_000,
    ),
    "a new generation": (["READERS=1", "READS=2", "DEATHS=1", "GENERATIONS=2"], 1_000_000),
}
LARGE = {
    "two readers, one dies": (["DEATHS=1", "WRITES=1"], 10_000_000),
    "two readers and a new generation": (["GENERATIONS=2", "WRITES=1"], 6_000_000),
}
BUGS = {
    "NO_PIN_FENCE": [],
    "SCAN_BEFORE_EPOCH": [],
    "CLEAR_WITHOUT_LOCK": ["READERS=1", "DEATHS=1"],
    "UNPIN_WITHOUT_SWAP": [],
    "HIGH_AFTER_LOAD": [],
    "TOLD_TOO_EARLY": ["READERS=1", "READS=2", "GENERATIONS=2"],
}

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"the model of the reclaim protocol is not checked: {' and '.join(MISSING)} missing (apt: spin gcc)",
    ),
]


def check(where: Path, defined: list[str]) -> str:
    """What the checker says of the model with these names defined."""
    assert COMPILER is not None
    flags = [f"-D{name}" for name in defined]
    run(where, "spin", "-a", *flags, str(MODEL))
    run(where, COMPILER, "-O1", "-w", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c")
    return run(where, "./pan", f"-m{DEPTH_MAX}", "-w22")


def run(where: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=SECONDS_MAX)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def number(pattern: str, report: str) -> int:
    found = re.search(pattern, report)
    assert found is not None, report
    return int(found[1])


def check_sound(where: Path, defined: list[str], states_min: int) -> None:
    report = check(where, defined)
    assert number(r"errors: (\d+)", report) == 0, report
    assert number(r"(\d+) states, stored", report) > states_min, report
    # What would make the search less than whole.
    assert "max search depth too small" not in report, report
    assert "Search not completed" not in report, report


@pytest.mark.parametrize("name", SOUND)
def test_no_accepted_answer_came_from_reused_memory(name: str, tmp_path: Path) -> None:
    check_sound(tmp_path, *SOUND[name])


@pytest.mark.long
@pytest.mark.parametrize("name", LARGE)
def test_no_accepted_answer_came_from_reused_memory_in_larger_systems(name: str, tmp_path: Path) -> None:
    check_sound(tmp_path, *LARGE[name])


@pytest.mark.parametrize("bug", BUGS)
def test_the_checker_finds(bug: str, tmp_path: Path) -> None:
    report = check(tmp_path, [bug, *BUGS[bug]])
    assert number(r"errors: (\d+)", report) == 1, report
    assert "assertion violated" in report, report


def test_every_bug_of_the_model_is_tried() -> None:
    text = MODEL.read_text(encoding="utf-8")
    named = set(re.findall(r"^#ifn?def (\w+)$", text, re.MULTILINE))
    sizes = {"READERS", "PIECES", "WRITES", "READS", "DEATHS", "GENERATIONS"}
    assert named - sizes == set(BUGS)
