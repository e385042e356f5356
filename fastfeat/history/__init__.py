"""History: every row ever accepted, in Parquet files that a catalog names.

    history --> audit, deletes, merging --> rowfile --> catalog --> a place; what was read last stays in a cache

Who needs rows uses `History`; `fastfeat check` and `backup` look at the catalog too.
"""

from __future__ import annotations

from .catalog import Covered
from .history import CompactReport, History

__all__ = ["CompactReport", "Covered", "History"]
