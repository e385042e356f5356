"""`python -m fastfeat.cli` is `fastfeat`."""

from __future__ import annotations

from . import main

main()
