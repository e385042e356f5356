"""The torture's own control: a core with a known bug, built in on purpose, must not survive it.

Only a debug build has the bugs (fastfeat/_core/checks.h names them by FASTFEAT_SEEDED_BUG): see `make debug-test`.
"""

from __future__ import annotations

import os
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
TORTURE = "from tests.test_concurrency import everything_at_once; everything_at_once(seconds=60.0)"


@pytest.mark.skipif(not IS_DEBUG, reason="a release build has no seeded bugs: run `make debug-test`")
@pytest.mark.parametrize("bug", BUGS)
def test_the_torture_catches(bug: str) -> None:
    environment = {**os.environ, "FASTFEAT_SEEDED_BUG": bug}
    run = subprocess.run(
        [sys.executable, "-c", TORTURE], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode != 0, f"a store that {bug} passed for a sound one"
    assert run.returncode < 0 or "Error" in run.stderr, run.stderr
