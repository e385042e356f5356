"""Cores: how many threads are worth starting."""

from __future__ import annotations

import os
from typing import Final

WRITING_MAX: Final = 8  # beyond it, memory bandwidth is the limit


def usable_cores() -> int:
    """At least 1. Fewer than the machine has where taskset or a cpuset gives only some; a quota of time is not seen."""
    return len(os.sched_getaffinity(0))


def writing_threads() -> int:
    """For rows on their way into an arena."""
    return min(usable_cores(), WRITING_MAX)
