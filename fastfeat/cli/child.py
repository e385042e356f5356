"""A server in a process of its own, for the commands that show or time one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SECONDS = 20


@contextmanager
def served(*options: str) -> Iterator[str]:
    """The URL of `fastfeat serve *options` on a free port; it ends with the block.

    Raises ConnectionError when it does not start; what it said stands on stderr.
    """
    command = [sys.executable, "-m", "fastfeat.cli", "serve", "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # the server's first line, written once it accepts connections
            if not line:
                raise ConnectionError(f"the server ended at once, with exit code {process.wait(STOP_SECONDS)}")
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)
