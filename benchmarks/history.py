"""History: one entity out of 100 million rows (1 million entities, 100 rows each, 10 float64), nothing of it at hand.

    build: 7 adds per bucket, each with a seventh of every entity's days   -->  read  -->  compact  -->  read

Seven files are the most that a compaction leaves in a bucket, so the first reads are the worst that a running store
shows, and the second ones the best. Every read is of an entity that was not read before, by a history opened anew; the
files are pushed out of the page cache before. Every answer is compared with the data bit for bit.
"""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.progress import track

from fastfeat._core.request import hash_keys
from fastfeat.files import Files
from fastfeat.history import Covered, History
from fastfeat.history.history import BUCKETS, bucket_of
from fastfeat.history.merging import MERGE_AT
from fastfeat.places import open_place

from .measure import Findings, Latency, Size, quiet

VIEW = "user"
ROWS_PER_ENTITY = 100
FIELDS = 10
ADDS = MERGE_AT - 1
FIRST_DAY_US = 1_600_000_000_000_000
DAY_US = 86_400_000_000
READS = 400
ENTITIES, ENTITIES_SMOKE = 1_000_000, 200

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def measure(size: Size) -> Findings:
    entities = ENTITIES_SMOKE if size.smoke else int(os.environ.get("FASTFEAT_BENCH_ENTITIES", ENTITIES))
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="fastfeat-history-") as folder:
        began = time.perf_counter()
        build(folder, entities, size.smoke)
        rows = entities * ROWS_PER_ENTITY
        findings.rates["history.build"] = {"rows_per_s": rows / (time.perf_counter() - began), **disk(folder, rows)}
        keys = np.random.default_rng(4).permutation(entities)
        reads = min(READS, entities // 2)
        read(findings, "history.7_files", folder, keys[:reads])
        began = time.perf_counter()
        open_history(folder).compact(all_files=True)
        findings.rates["history.compact"] = {"rows_per_s": rows / (time.perf_counter() - began), **disk(folder, rows)}
        read(findings, "history.1_file", folder, keys[reads : 2 * reads])
    worst = max(findings.latencies[f"history.{files}"].at(50) for files in ("7_files", "1_file"))
    findings.bars["history.cold_read_100m.p50_ms"] = worst / 1000
    return findings


def open_history(folder: str) -> History:
    return History.open(open_place(Files(), folder))


def disk(folder: str, rows: int) -> dict[str, float]:
    return {"bytes_per_row": sum(path.stat().st_size for path in Path(folder).rglob("*.parquet")) / rows}


# --- the data: any row can be made by itself


def mixed(numbers: Hashes) -> Hashes:
    """Well spread 64-bit numbers. Source: the finalizer of SplitMix64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def rows_of(keys: Ints, first_day: int, stop_day: int, sequence: int) -> pa.Table:
    """A row per key and day, day by day as they arrive; all bits of a value's mantissa are drawn."""
    days = np.repeat(np.arange(first_day, stop_day), len(keys))
    entities = np.tile(keys, stop_day - first_day)
    times = pa.array(FIRST_DAY_US + days * DAY_US + entities % DAY_US).cast(pa.timestamp("us", "UTC"))
    columns: dict[str, Any] = {"user_id": entities, "event_timestamp": times, "created_timestamp": times}
    columns["_sequence"] = np.arange(sequence, sequence + len(days), dtype=np.uint64)
    rows = (entities * ROWS_PER_ENTITY + days).astype(np.uint64) * np.uint64(FIELDS)
    for field in range(FIELDS):
        columns[f"f{field}"] = (mixed(rows + np.uint64(field)) >> np.uint64(11)) * 2.0**-53
    return pa.table(columns)


def hashes_of(keys: Ints) -> Hashes:
    return hash_keys(["user_id"], ["int64"], {"user_id": keys})


def build(folder: str, entities: int, is_smoke: bool) -> None:
    history = open_history(folder)
    keys = np.arange(entities, dtype=np.int64)
    hashes = hashes_of(keys)
    buckets = bucket_of(hashes)
    sequence = 0
    for bucket in track(range(BUCKETS), "building the history", transient=True, disable=is_smoke):
        mine = buckets == bucket
        for first_day, stop_day in slices():
            table = rows_of(keys[mine], first_day, stop_day, sequence)
            sequence += table.num_rows
            of_rows = np.tile(hashes[mine], stop_day - first_day)
            history.add({VIEW: table}, {VIEW: of_rows}, {}, Covered(sequence, sequence))


def slices() -> Iterator[tuple[int, int]]:
    days = np.linspace(0, ROWS_PER_ENTITY, ADDS + 1).astype(int).tolist()
    return pairwise(days)


# --- the reads


def read(findings: Findings, name: str, folder: str, keys: Ints) -> None:
    """Time reads of entities not read before, the files on the disk only; compare every answer with the data."""
    drop_from_page_cache(folder)
    history = open_history(folder)
    hashes = hashes_of(keys)
    requests = [pa.table({"user_id": keys[i : i + 1]}) for i in range(len(keys))]
    samples: list[int] = []
    crc32 = 0
    with quiet():
        for i, request in enumerate(requests):
            began = time.perf_counter_ns()
            found = history.rows(VIEW, request, hashes[i : i + 1])
            samples.append(time.perf_counter_ns() - began)
            crc32 = checked(found, keys[i : i + 1], crc32)
    findings.latencies[name] = Latency.of_samples(np.array(samples))
    findings.checksums[name] = f"{crc32:08x}"


def checked(found: pa.Table, key: Ints, crc32: int) -> int:
    """The checksum with this answer in it. Raises AssertionError where it is not the data's."""
    found = found.sort_by("event_timestamp").drop("_sequence").combine_chunks()
    wanted = rows_of(key, 0, ROWS_PER_ENTITY, 0).drop("_sequence")
    if not found.equals(wanted):
        raise AssertionError(f"the rows of entity {key[0]} are not those that were added")
    for field in range(FIELDS):
        crc32 = zlib.crc32(found.column(f"f{field}").to_numpy(), crc32)
    return crc32


def drop_from_page_cache(folder: str) -> None:
    for path in Path(folder).rglob("*.parquet"):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
