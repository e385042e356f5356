"""What durability costs: writes that are on the disk, starts after a crash, reads while a snapshot is written.

    ingest    batches of 1,000 rows, a record and a sync each; Redis: the same rows as pipelined SETs, a batch at a time
    push      50 connections, each a row at a time; Redis: SETs of the same values packed, appendfsync always, everysec
    recovery  Store.open of the ingest's log, which nobody closed; of a snapshot
    snapshot  a GET at a time while the server writes a snapshot, over idle, turn by turn

Every store lies in a new directory beside the build's files, so on the disk that holds the project. A write that is
answered is looked for after the process was killed. What was just written is in the page cache when it is read again.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import data, programs, redis_peer, wire
from .concurrent import time_for
from .durable_store import BATCH, EVENT_NAMES, EVENTS, event_chunks, event_values, open_store
from .loadgen import CHECKED, CONNECTIONS, Run, Target, write_records
from .measure import Findings, Latency, Size, Subject, cores, pin_to, quiet
from .server import take_turns

DISK_WRITE_SIZE = 4096
DISK_WRITES = 300
DISK_FILE_SIZE = 4 << 20
PUSH_KEYS = 20_000
PUSH_REPLY_SIZE = 17  # the frame's size, then [1, id, nil, created time]
PUSH_REPLY_OPENING = bytes.fromhex("0000000d 94 01 03 c0")
REDIS_REPLY = b"+OK\r\n"
REDIS_SHARE = 5  # of the ingest's rows, one in so many for Redis, which takes longer for each
ROW_OVERHEAD = 4 * 8  # bytes of a stored row beside its values: key, event time, created time, sequence
SNAPSHOT_ROUNDS = 5
READS_PER_LOOK = 50  # timed reads between two looks at whether the snapshot is done


def measure(size: Size) -> Findings:
    findings = Findings()
    with work_directory() as folder:
        findings.rates["durable.disk"] = measure_disk(folder)
        findings.bars["durable.disk.syncs_per_s"] = findings.rates["durable.disk"]["per_s"]
        measure_ingest(size, findings, folder)
        measure_snapshots(size, findings, folder)
        measure_push(size, findings, folder)
    return findings


@contextlib.contextmanager
def work_directory() -> Iterator[Path]:
    programs.BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="durable-", dir=programs.BUILD) as folder:
        yield Path(folder)


def measure_disk(folder: Path) -> dict[str, float]:
    """The disk alone: one small write after the other into a file that is all there, each followed by fdatasync."""
    fd = os.open(folder / "disk", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(fd, bytes(DISK_FILE_SIZE))
        os.fsync(fd)
        samples = []
        for i in range(DISK_WRITES):
            began = time.perf_counter_ns()
            os.pwrite(fd, os.urandom(DISK_WRITE_SIZE), i * DISK_WRITE_SIZE % DISK_FILE_SIZE)
            os.fdatasync(fd)
            samples.append(time.perf_counter_ns() - began)
    finally:
        os.close(fd)
    latency = Latency.of_samples(np.array(samples))
    return {"fdatasync_us_p50": latency.at(50), "fdatasync_us_p99": latency.at(99), "per_s": 1e6 / latency.at(50)}


def run_store(*words: str) -> Any:
    """What a verb of durable_store prints, once it has ended."""
    return json.loads(programs.run([sys.executable, "-m", "benchmarks.durable_store", *words]))


# Batches and their log -----------------------------------------------------------------------------------------------


def measure_ingest(size: Size, findings: Findings, folder: Path) -> None:
    """Ours and Redis's turn by turn; then the log of the last run is replayed as often."""
    rows = size.load_rows
    speeds: list[float] = []
    peers: dict[str, list[float]] = {"everysec": [], "always": []}
    for turn in range(size.load_repeats):
        speeds.append(rows / run_store("ingest", str(folder / f"ingest{turn}"), str(rows))["took_s"])
        for policy, found in peers.items():
            found.append(redis_ingest(max(BATCH, rows // REDIS_SHARE), policy, folder))
    findings.bars["durable.ingest.rows_per_s"] = ours = median(speeds)
    findings.rates["durable.ingest"] = {"rows": rows, "rows_per_s": ours, "rows_per_s_least": min(speeds)}
    for policy, found in peers.items():
        findings.rates[f"durable.ingest.redis_{policy}"] = {"rows_per_s": median(found)}
        findings.bars[f"durable.redis_aof_{policy}.ingest_ratio"] = ours / median(found)
    starts = [run_store("recover", str(folder / f"ingest{size.load_repeats - 1}")) for _ in range(size.load_repeats)]
    if any(start["rows"][EVENTS] != rows for start in starts):
        raise AssertionError(f"of {rows} acknowledged rows there are {starts[0]['rows']} after a restart")
    findings.bars["durable.recovery.log_rows_per_s"] = rows / median(start["took_s"] for start in starts)
    findings.checksums["durable.recovery.log"] = starts[0]["checksum"]


def redis_ingest(rows: int, policy: str, folder: Path) -> float:
    """Rows per second of SETs of packed values, pipelined: a batch is sent when the one before it was answered."""
    batches = [redis_peer.set_commands(keys, values) for keys, values in event_chunks(rows)]
    with durable_redis(folder, policy) as peer, peer.connect() as connection:
        began = time.perf_counter()
        for batch in batches:
            redis_peer.send_commands(connection, batch, REDIS_REPLY)
        return rows / (time.perf_counter() - began)


@contextlib.contextmanager
def durable_redis(folder: Path, policy: str) -> Iterator[redis_peer.RedisPeer]:
    with (
        tempfile.TemporaryDirectory(prefix="redis-", dir=folder) as own,
        redis_peer.RedisPeer(cores()[0], append_only=(Path(own), policy)) as peer,
    ):
        yield peer


# Snapshots -----------------------------------------------------------------------------------------------------------


def measure_snapshots(size: Size, findings: Findings, folder: Path) -> None:
    directory, entities = str(folder / "filled"), size.load_rows
    run_store("fill", directory, str(entities))
    starts = [run_store("recover", directory) for _ in range(size.load_repeats)]
    if any(start["rows"][data.VIEW] != entities for start in starts):
        raise AssertionError(f"of {entities} rows there are {starts[0]['rows']} after a restart")
    row_bytes = entities * (data.ROW_SIZE + ROW_OVERHEAD)
    took = median(start["took_s"] for start in starts)
    findings.bars["durable.recovery.snapshot_gb_per_s"] = row_bytes / took / 1e9
    findings.rates["durable.recovery.snapshot"] = {"row_bytes": row_bytes, "took_s": took}
    findings.checksums["durable.recovery.snapshot"] = starts[0]["checksum"]
    measure_reads(size, findings, directory, entities)


def measure_reads(size: Size, findings: Findings, directory: str, entities: int) -> None:
    """Idle and during a snapshot, turn by turn; the server writes it on its own core, who asks sits on the other."""
    server_core, client_core = cores()
    allowed = os.sched_getaffinity(0)
    samples: dict[str, list[int]] = {"idle": [], "snapshot": []}
    words = ["benchmarks.durable_store", "serve", directory, "always"]
    with programs.server("fastfeat", words, server_core) as port:
        pin_to(client_core)
        reader, asker = wire.FixedConnection(port), wire.FixedConnection(port)
        asker.greet()
        keys = data.random_keys(entities, (10_000,), 9)
        requests = wire.get_requests(reader.greet(), keys)
        reader.learn_reply_size(requests[0])
        findings.checksums["durable.snapshot"] = data.check_equal(
            "fastfeat", data.rows_of(keys[:100]), reader.rows(requests[:100])
        )
        subject = Subject("server", reader.exchange, requests)
        for _ in range(SNAPSHOT_ROUNDS):
            time_for(size.seconds, subject, samples["idle"])
            time_snapshot(asker, subject, samples["snapshot"])
        reader.close()
        asker.close()
    os.sched_setaffinity(0, allowed)
    for phase, values in samples.items():
        findings.latencies[f"durable.snapshot.{phase}"] = Latency.of_samples(np.array(values))
    findings.ratio("durable.snapshot.p99_ratio", "durable.snapshot.snapshot", "durable.snapshot.idle", 99)


def time_snapshot(asker: wire.FixedConnection, subject: Subject, samples: list[int]) -> None:
    """Time reads for as long as a snapshot takes."""
    call, clock, at = subject.call, time.perf_counter_ns, 0
    asker.socket.sendall(wire.frame([0, 4, "SNAPSHOT", []]))
    with quiet():
        while at == 0 or not select.select([asker.socket], [], [], 0)[0]:
            for argument in (subject.arguments[(at + i) % len(subject.arguments)] for i in range(READS_PER_LOOK)):
                began = clock()
                call(argument)
                samples.append(clock() - began)
            at += READS_PER_LOOK
    wire.receive_result(asker.socket)


# Single rows ---------------------------------------------------------------------------------------------------------


def measure_push(size: Size, findings: Findings, folder: Path) -> None:
    """Each of ours beside the Redis that promises the same: "always" on the disk, "everysec" within a second."""
    keys = np.arange(PUSH_KEYS)
    for policy, fsync in (("always", "always"), ("everysec", "interval")):
        directory = str(folder / f"push-{fsync}")
        words = ["benchmarks.durable_store", "serve", directory, fsync]
        with (
            programs.server("fastfeat", words, cores()[0], kill=True) as port,
            durable_redis(folder, policy) as peer,
        ):
            targets = [push_target(folder, port, keys), set_target(folder, peer.port, keys)]
            runs = take_turns(targets, size.seconds)
        rates = {name: report_push(findings, f"durable.push50.{policy}.{name}", some) for name, some in runs.items()}
        if policy == "always":
            findings.bars["durable.push50.per_s"] = rates["fastfeat"]
            findings.rates["durable.push50.disk"] = measure_disk(folder)
            findings.checksums["durable.push50"] = check_pushed(directory)
        findings.bars[f"durable.redis_aof_{policy}.ratio"] = rates["fastfeat"] / rates["redis"]


def report_push(findings: Findings, name: str, runs: list[Run]) -> float:
    per_second = median(run.per_second for run in runs)
    findings.rates[name] = {"per_s": per_second, "generator_busy": median(run.generator_busy for run in runs)}
    findings.latencies[name] = runs[0].latency
    return per_second


def push_target(folder: Path, port: int, keys: data.Integers) -> Target:
    """PUSHes of one row, each key with its own values."""
    rows = (
        {"user_id": key, "event_timestamp": data.EVENT_TIME_US, **dict(zip(EVENT_NAMES, values, strict=True))}
        for key, values in zip(keys.tolist(), event_values(keys).tolist(), strict=True)
    )
    requests = [wire.frame([0, wire.REQUEST_ID, "PUSH", [EVENTS, [row]]]) for row in rows]
    return Target(
        "fastfeat",
        port,
        write_records(folder / "pushes", requests),
        PUSH_REPLY_SIZE,
        opening=PUSH_REPLY_OPENING,
        greeting=write_records(folder / "greeting", wire.GREETING[:1]),
    )


def set_target(folder: Path, port: int, keys: data.Integers) -> Target:
    requests = [command.tobytes() for command in redis_peer.set_commands(keys, event_values(keys))]
    return Target("redis", port, write_records(folder / "sets", requests), len(REDIS_REPLY), opening=REDIS_REPLY)


def check_pushed(directory: str) -> str:
    """The checksum of rows whose pushes were answered before the server was killed. Raises AssertionError."""
    starts = np.arange(CONNECTIONS) * (PUSH_KEYS // CONNECTIONS)
    answered = (starts[:, None] + np.arange(CHECKED)).ravel()
    with open_store(directory) as store:
        found = store.get_feature_vectors(EVENTS, {"user_id": answered})
    return data.check_equal("fastfeat", event_values(answered), found)
