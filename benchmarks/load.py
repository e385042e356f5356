"""Bulk load of Arrow: rows per second on one core, and the memory that the rows take."""

from __future__ import annotations

import gc
import time
from statistics import median

import pyarrow as pa

from . import data
from .fastfeat_peer import empty_store, load_all
from .measure import Findings, Size, cores, pin_to, quiet

WARM_ROWS = 1_000


def measure(size: Size) -> Findings:
    pin_to(cores()[1])  # whatever threads a load has, they share this core
    findings = Findings()
    rows = pa.Table.from_batches([data.record_batch(keys, values) for keys, values in data.chunks(size.load_rows)])
    # Memory first: afterwards the process keeps pages that earlier loads have freed.
    memory = measure_memory(rows)
    speeds = [measure_speed(rows, findings) for _ in range(size.load_repeats)]
    findings.rates["load.fastfeat"] = {"rows": rows.num_rows, "rows_per_s_least": min(speeds), **memory}
    findings.bars["load.rows_per_s"] = median(speeds)
    findings.bars["load.memory_ratio"] = max(memory["resident_growth"], memory["arena_used"]) / memory["raw"]
    return findings


def measure_speed(rows: pa.Table, findings: Findings) -> float:
    """Rows per second into a fresh store, first touch of its memory included."""
    store = empty_store(rows.num_rows)
    with quiet():
        began = time.perf_counter()
        load_all(store, rows)
        took = time.perf_counter() - began
    keys = data.random_keys(rows.num_rows, (100,), 7)
    answered = store.get_feature_vectors(data.SERVICE, {"user_id": keys})
    findings.checksums["load"] = data.check_equal("fastfeat", data.rows_of(keys), answered)
    return float(rows.num_rows / took)


def measure_memory(rows: pa.Table) -> dict[str, float]:
    """Bytes after a load: of the arena, of the process's growth, and of the 50 float64 values alone."""
    # The first load of a process imports what loading needs, which is code and no row's memory.
    load_all(empty_store(WARM_ROWS), rows.slice(0, WARM_ROWS))
    store = empty_store(rows.num_rows)
    gc.collect()
    before, used_before = resident_size(), store.info()["arena"]["used"]
    load_all(store, rows)
    gc.collect()
    return {
        "resident_growth": resident_size() - before,
        "arena_used": store.info()["arena"]["used"] - used_before,
        "raw": rows.num_rows * data.ROW_SIZE,
    }


def resident_size() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))
