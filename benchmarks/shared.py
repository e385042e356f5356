"""Reads from another process's memory; restarts of that process; a file system that is full.

shared.read      Client of fastfeat+shm:// to NumPy, at 5 million entities, the writer in a process of its own
shared.restart   Store.open of what a clean stop left in shared memory; reads while a killed writer recovers
shared.full      a small file system filled again and again
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

import fastfeat
import fastfeat.shared
from fastfeat import ArenaFull, Entity, FeatureView, Field, Store
from fastfeat.attached import AttachedStore

from . import data
from .durable import work_directory
from .measure import Findings, Latency, Size, Subject, cores, interleave, pin_to
from .programs import ROOT, floors, on_core
from .programs import run as run_program
from .scale import read_all
from .shared_store import WIDE, WIDE_PARTS

FILLS: Final = 200
CACHED: Final = 1_000  # entities that stay in the processor's caches
LOOP_STEPS: Final = 200
MAY_MOUNT: Final = [] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]  # a command's opening
FULL_SIZE: Final = 16 << 20  # bytes of the small file system
RESTARTS: Final = 5
SETTLE_SECONDS: Final = 2.0  # of reading before the writer is killed, and after the new one is there


def measure_read(size: Size) -> Findings:
    """One after the other, as one inference process reads; what it asks for lies anywhere."""
    findings = Findings()
    entities = size.entities_large
    _, core = cores()
    with arena_name() as name, writer("hold", name, entities):
        pin_to(core)
        with fastfeat.connect(f"fastfeat+shm://{name}") as client:
            read_all(client, entities)
            read_all(client, entities, WIDE)
            one, many = client.get_feature_vector, client.get_feature_vectors
            keys = data.random_keys(entities, (size.calls[1],), 11).tolist()
            batches = list(data.random_keys(entities, (size.calls[100], 100), 12))
            near = list(data.random_keys(min(entities, CACHED), (size.calls[100], 100), 14))
            out, wide_out, many_out = np.empty(50), np.empty(50 * WIDE_PARTS), np.empty((100, 50))
            check(findings, client, batches[0])
            findings.rates["shared.read.huge_pages"] = {"of_shared_memory": shared_huge_pages()}
            latencies = interleave(
                [
                    Subject("1x50", lambda key: one(data.SERVICE, {"user_id": key}, out=out), keys),
                    Subject("1x200", lambda key: one(WIDE, {"user_id": key}, out=wide_out), keys),
                    Subject("100x50", lambda some: many(data.SERVICE, {"user_id": some}, out=many_out), batches),
                    Subject("100x50.cached", lambda some: many(data.SERVICE, {"user_id": some}, out=many_out), near),
                    Subject("python_loop", plain_loop, [LOOP_STEPS]),
                ],
                max(size.calls.values()),
                size.rounds,
            )
        floor = floor_of_gather(entities, size.calls[100], core)
        floor_cached = floor_of_gather(min(entities, CACHED), size.calls[100], core)
    for what, found in latencies.items():
        findings.latencies[f"shared.read.{what}"] = found
    findings.latencies["shared.read.floor.100x50"] = floor
    findings.latencies["shared.read.floor.100x50.cached"] = floor_cached
    findings.bars["shared.read.floor.100x50.p50_us"] = floor.at(50)
    own = latencies["100x50.cached"].at(50) - floor_cached.at(50)
    findings.bars["shared.read.least.100x50.p50_us"] = floor.at(50) + own
    for what, percent in (("1x50", 50), ("1x50", 99), ("1x200", 50), ("100x50", 50)):
        findings.bars[f"shared.read.{what}.p{percent}_us"] = latencies[what].at(percent)
    return findings


def plain_loop(steps: int) -> int:
    """Says how quick the core was: it takes 1.4 times as long where the core's other thread is in use, by whomever."""
    total = 0
    for i in range(steps):
        total += i
    return total


def floor_of_gather(entities: int, calls: int, core: int) -> Latency:
    """What 100x50 takes in plain C, at the best of the distances that it tries; see floors.c."""
    said = run_program(on_core(core, [str(floors()), "gather", str(entities), str(calls)]))
    tried = [Latency.of_samples(np.array(samples)) for samples in json.loads(said).values()]
    return min(tried, key=lambda latency: latency.at(50))


def check(findings: Findings, client: fastfeat.Client, keys: data.Integers) -> None:
    expected = data.rows_of(keys)
    answered = client.get_feature_vectors(data.SERVICE, {"user_id": keys})
    findings.checksums["shared.read"] = data.check_equal("fastfeat", expected, answered)
    answered = client.get_feature_vectors(WIDE, {"user_id": keys})
    findings.checksums["shared.read.wide"] = data.check_equal("fastfeat", np.tile(expected, WIDE_PARTS), answered)


def shared_huge_pages() -> float:
    """The share of shared memory in huge pages at this moment; how the machine mounts /dev/shm decides it."""
    kib = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        kib[name] = float(value.split()[0])
    return kib["ShmemHugePages"] / kib["Shmem"] if kib["Shmem"] else 0.0


# Restarts ------------------------------------------------------------------------------------------------------------


def measure_restart(size: Size) -> Findings:
    findings = Findings()
    entities = size.entities_large
    with work_directory() as folder, arena_name() as name:
        directory = str(folder / "store")
        run("stop", name, entities, directory)
        starts = [run("time", name, entities, directory) for _ in range(1 if size.smoke else RESTARTS)]
        if len({start["generation"] for start in starts}) != 1:
            raise AssertionError(f"the arena was built anew and not taken up: {starts}")
        took = sorted(start["took_s"] for start in starts)
        findings.bars["shared.restart.clean_ms"] = took[len(took) // 2] * 1e3
        findings.rates["shared.restart.clean"] = {"least_s": took[0], "most_s": took[-1]}
        measure_killed(size, findings, name, directory)
    return findings


def measure_killed(size: Size, findings: Findings, name: str, directory: str) -> None:
    """Read without pause while the writer is killed and another recovers; until reads are of its arena."""
    entities, settle_seconds = size.entities_large, 0.1 if size.smoke else SETTLE_SECONDS
    keys = data.random_keys(entities, (1_000,), 13).tolist()
    expected = data.rows_of(np.array(keys))
    findings.checksums["shared.restart"] = data.checksum(expected)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(writer("open", name, entities, directory))
        reader = stack.enter_context(AttachedStore(name))
        generation = reader.info()["shared"]["generation"]
        asked = Asked(reader, keys, expected)
        asked.until(lambda: time.monotonic() > asked.began + settle_seconds)
        first.kill()
        second = subprocess.Popen(words("open", name, entities, directory), cwd=ROOT, **PIPES)
        stack.callback(end, second)
        stale_at = time.monotonic()
        asked.until(lambda: reader._arena.generation != generation)
        recovered = time.monotonic() - stale_at
        asked.until(lambda: time.monotonic() > stale_at + recovered + settle_seconds)
    findings.bars["shared.restart.killed_unanswered"] = asked.unanswered
    findings.rates["shared.restart.killed"] = {
        "reads": asked.reads,
        "longest_between_answers_ms": asked.longest_s * 1e3,
        "recovery_s": recovered,
    }


class Asked:
    """A reader that never pauses, and what it met."""

    def __init__(self, store: AttachedStore, keys: list[int], expected: data.Floats) -> None:
        self.store = store
        self.keys = keys
        self.expected = expected
        self.began = time.monotonic()
        self.reads = 0
        self.unanswered = 0  # an error, or another value
        self.longest_s = 0.0

    def until(self, is_over: Any) -> None:
        last = time.perf_counter()
        while not is_over():
            for i in range(0, len(self.keys), 10):
                try:
                    answer = self.store.get_feature_vector(data.SERVICE, {"user_id": self.keys[i]})
                    self.unanswered += answer.tobytes() != self.expected[i].tobytes()
                except fastfeat.FastFeatError:
                    self.unanswered += 1
                self.reads += 1
                now = time.perf_counter()
                self.longest_s, last = max(self.longest_s, now - last), now


# Full ----------------------------------------------------------------------------------------------------------------


def measure_full(size: Size) -> Findings:
    """In a process of its own, as a SIGBUS would end it."""
    findings = Findings()
    fills = 3 if size.smoke else FILLS
    words = [*MAY_MOUNT, sys.executable, "-m", "benchmarks.shared", str(fills)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True)
    if not done.stdout:
        raise RuntimeError(f"the fills ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    said = json.loads(done.stdout)
    findings.rates["shared.full"] = {"fills": float(said["fills"])}
    findings.checksums["shared.full"] = said["checksum"]
    findings.bars["shared.full.sigbus"] = float(done.returncode != 0)
    return findings


def fill(fills: int) -> str:
    """Fill a small file system so many times, each until ArenaFull, and read on; the checksum of what was read."""
    checksum = hashlib.blake2b(digest_size=8)
    view = FeatureView("blob", Entity("user", {"user_id": "int64"}), [Field("text", "string")], keep="latest")
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={FULL_SIZE}", "tmpfs", place], check=True)
        try:
            with Store(4 * FULL_SIZE, shared=f"{place}/arena") as store:
                store.apply(view)
                with AttachedStore(f"{place}/arena") as reader:
                    for _ in range(fills):
                        user = fill_once(store)
                        row = reader.get_online_features(["blob:text"], {"user_id": [0, user - 1]}).to_dict()
                        if row["blob:text"] != ["x" * 1000] * 2:
                            raise AssertionError(f"after a fill the reader sees {row}")
                        checksum.update("".join(row["blob:text"]).encode())
                        store.delete("blob", {"user_id": list(range(user))})
        finally:
            subprocess.run(["umount", place], check=True)
    return checksum.hexdigest()


def fill_once(store: Store) -> int:
    """How many users fit."""
    user = 0
    while True:
        rows = [{"user_id": user + i, "event_timestamp": data.EVENT_TIME_US, "text": "x" * 1000} for i in range(500)]
        try:
            store.push("blob", rows)
        except ArenaFull:
            if not user:
                raise
            return user
        user += 500


# Writers -------------------------------------------------------------------------------------------------------------

PIPES: Final[dict[str, Any]] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


@contextlib.contextmanager
def arena_name() -> Iterator[str]:
    name = f"benchmark-{os.getpid()}"
    try:
        yield name
    finally:
        fastfeat.shared.remove(name)


def words(verb: str, name: str, entities: int, *rest: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.shared_store", verb, name, str(entities), *rest]


def run(verb: str, name: str, entities: int, directory: str) -> Any:
    done = subprocess.run(words(verb, name, entities, directory), cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


@contextlib.contextmanager
def writer(verb: str, name: str, entities: int, *rest: str) -> Iterator[subprocess.Popen[str]]:
    """A process that writes the arena of this name, once its rows are there."""
    process = subprocess.Popen(words(verb, name, entities, *rest), cwd=ROOT, **PIPES)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(f"the writer ended before its rows were there, exit code {process.wait()}")
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


if __name__ == "__main__":
    print(json.dumps({"fills": int(sys.argv[1]), "checksum": fill(int(sys.argv[1]))}), flush=True)
