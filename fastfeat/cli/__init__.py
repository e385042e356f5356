"""The command line: one module per command group, each importing what it needs when it runs."""

from __future__ import annotations

import sys


def main() -> None:
    """The `fastfeat` program. Exit codes: 0 done, 1 failed, 2 used wrongly."""
    from .app import run

    sys.exit(run(sys.argv[1:]))
