"""The torture's own control: a core with a known bug, built in on purpose, must not survive it.

Only a debug build has the bugs (fastfeat/_core/checks.h names them by FASTFEAT_SEEDED_BUG): see `make debug-test`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastfeat._core.layout import IS_DEBUG

ROOT = Path(__file__).parent.parent
BUGS = [
    "reclaim_ignores_pins",
    "retired_an_epoch_early",
    "count_before_row",
    "slot_before_rows",
    "late_row_appended",
]
BUGS_WITH_OTHER_PROCESSES = ["unpin_ignores_expelled", "reclaim_ignores_pins", "retired_an_epoch_early"]
BUGS_AMONG_PROCESSES = ["unpin_ignores_expelled", "reclaim_ignores_pins", "retired_an_epoch_early"]
TORTURE = "from tests.test_concurrency import everything_at_once; everything_at_once(seconds=60.0)"
SHARED_TORTURE = "from tests.test_shared_torture import stop_readers_inside; stop_readers_inside(seconds=60.0)"


@pytest.mark.skipif(not IS_DEBUG, reason="a release build has no seeded bugs: run `make debug-test`")
@pytest.mark.parametrize("bug", BUGS)
def test_the_torture_catches(bug: str) -> None:
    run = run_with(bug, TORTURE)
    assert run.returncode < 0 or "Error" in run.stderr, run.stderr


@pytest.mark.skipif(not IS_DEBUG, reason="a release build has no seeded bugs: run `make debug-test`")
@pytest.mark.parametrize("bug", BUGS_AMONG_PROCESSES)
def test_the_torture_of_processes_catches(bug: str) -> None:
    run = run_with(bug, SHARED_TORTURE)
    assert re.search(r"torn: |lost: |error: |ended by itself, with -", run.stderr), run.stderr


def run_with(bug: str, torture: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FASTFEAT_SEEDED_BUG": bug}
    run = subprocess.run(
        [sys.executable, "-c", torture], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
    )
    assert run.returncode != 0, f"a store that {bug} passed for a sound one"
    return run
