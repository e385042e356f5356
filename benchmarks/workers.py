"""`fastfeat serve --workers`: reads while rows are loaded, and what a second worker adds.

    workers.load    one worker on one core with who asks it; the writer, and who loads through it, on the other
    workers.scale   one worker's requests per second of its processor time; two at once, and theirs together

Why processor time: on two cores two workers and a generator can't all have a core. A worker's requests per second of
its own time is what it serves on a core of its own; what two hinder one another by (locks, shared cache lines) is in
it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np

import fastfeat
from fastfeat.shared import writer_socket

from . import data, programs, wire
from .concurrent import time_for
from .durable import work_directory
from .loadgen import generate
from .measure import Findings, Latency, Size, Subject, cores, pin_to
from .programs import ROOT
from .server import our_target
from .shared import PIPES, arena_name, end, run

LOADS: Final = 10  # of load_rows each: ten million rows
ROUNDS: Final = 5
DEPTH: Final = 16


@dataclass(frozen=True)
class Service:
    """A running `fastfeat serve --workers`."""

    name: str
    port: int
    writer: int  # process
    workers: tuple[int, ...]


def measure_load(size: Size) -> Findings:
    findings = Findings()
    server_core, other_core = cores()
    allowed = os.sched_getaffinity(0)
    samples: dict[str, list[int]] = {"idle": [], "loading": []}
    with serving(size.load_rows, workers=1) as service:
        keep_on(server_core, *service.workers)
        keep_on(other_core, service.writer)
        pin_to(server_core)
        connection = wire.FixedConnection(service.port)
        keys = data.random_keys(size.load_rows, (10_000,), 14)
        requests = wire.get_requests(connection.greet(), keys)
        connection.learn_reply_size(requests[0])
        findings.checksums["workers.load"] = data.check_equal(
            "fastfeat", data.rows_of(keys[:100]), connection.rows(requests[:100])
        )
        subject = Subject("worker", connection.exchange, requests)
        time_for(size.seconds, subject, [])
        time_for(ROUNDS * size.seconds, subject, samples["idle"])
        words = [sys.executable, "-m", "benchmarks.workers", service.name, str(size.load_rows), str(LOADS)]
        loader = subprocess.Popen(programs.on_core(other_core, words), cwd=ROOT, **PIPES)
        try:
            assert loader.stdout is not None
            loader.stdout.readline()
            while loader.poll() is None:
                time_for(size.seconds / 4, subject, samples["loading"])
            if loader.returncode:
                raise RuntimeError(f"the loader ended with {loader.returncode}")
            found = json.loads(loader.stdout.readline())
        finally:
            end(loader)
        connection.close()
    os.sched_setaffinity(0, allowed)
    for phase, values in samples.items():
        findings.latencies[f"workers.load.{phase}"] = Latency.of_samples(np.array(values))
    findings.rates["workers.load.loader"] = found
    findings.ratio("workers.load.p99_ratio", "workers.load.loading", "workers.load.idle", 99)
    return findings


def measure_scale(size: Size) -> Findings:
    findings = Findings()
    capacity: dict[int, list[float]] = {1: [], 2: []}
    _, client_core = cores()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        services = {count: stack.enter_context(serving(size.entities, workers=count)) for count in capacity}
        keys = data.random_keys(size.entities, (max(10_000, size.entities),), 15)
        for count, service in services.items():
            for worker, core in zip(service.workers, cores(), strict=False):
                keep_on(core, worker)
            (folder / str(count)).mkdir()
        targets = {count: our_target(folder / str(count), each.port, keys) for count, each in services.items()}
        for _ in range(ROUNDS):
            for count, service in services.items():
                before = [processor_seconds(worker) for worker in service.workers], gets_of(service)
                found = generate(targets[count], client_core, size.seconds, depth=DEPTH)
                took = [processor_seconds(worker) - was for worker, was in zip(service.workers, before[0], strict=True)]
                gets = {worker: gets_of(service)[worker] - was for worker, was in before[1].items()}
                pairs = zip(service.workers, took, strict=True)
                capacity[count].append(sum(gets[worker] / seconds for worker, seconds in pairs))
                findings.checksums[f"workers.scale.{count}"] = found.checksum
    one, two = (float(np.median(capacity[count])) for count in (1, 2))
    findings.rates["workers.scale"] = {"one_per_processor_s": one, "two_per_processor_s": two}
    findings.bars["workers.scale.rps_ratio"] = two / one
    return findings


def gets_of(service: Service) -> dict[int, int]:
    """GETs that each worker has answered; asked until each was met."""
    found: dict[int, int] = {}
    while len(found) < len(service.workers):
        with fastfeat.connect(f"fastfeat://127.0.0.1:{service.port}") as client:
            server = client.info()["server"]
            found[server["pid"]] = server["gets"]
    return found


def processor_seconds(process: int) -> float:
    """Of all its threads, to the nanosecond."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def keep_on(core: int, *processes: int) -> None:
    """Every thread that they have, and those that these begin."""
    for process in processes:
        for task in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})


@contextlib.contextmanager
def serving(entities: int, workers: int) -> Iterator[Service]:
    """A durable store of the data, served by so many workers."""
    with work_directory() as folder, arena_name() as base:
        name, directory = f"{base}-{workers}", str(folder / "store")
        run("stop", name, entities, directory)
        words = [sys.executable, "-m", "fastfeat.cli", "serve", "--directory", directory, "--port", "0", "--json"]
        words += ["--workers", str(workers), "--name", name]
        words += ["--capacity-mib", str((1 << 10) + entities * 1024 // 2**20)]
        process = subprocess.Popen(words, cwd=ROOT, **PIPES)
        try:
            assert process.stdout is not None
            port = urlsplit(json.loads(process.stdout.readline())["url"]).port
            assert port is not None
            seen: set[int] = set()
            while len(seen) < workers:
                with fastfeat.connect(f"fastfeat://127.0.0.1:{port}") as client:
                    seen.add(client.info()["server"]["pid"])
            yield Service(name, port, writer_of(name), tuple(sorted(seen)))
        finally:
            process.terminate()
            process.wait(60)
            end(process)
            fastfeat.shared.remove(name)


def writer_of(name: str) -> int:
    with fastfeat.connect(f"fastfeat+unix://{writer_socket(name)}") as client:
        return int(client.info()["server"]["pid"])


def load(name: str, rows: int, times: int) -> dict[str, Any]:
    """Load the data so many times, each at a later time, over the writer's own socket."""
    tables = list(data.chunks(rows))
    with fastfeat.connect(f"fastfeat+unix://{writer_socket(name)}", timeout=120.0) as client:
        print(json.dumps({"rows": 0}), flush=True)  # who measures may begin
        began = time.perf_counter()
        taken = 0
        for turn in range(1, times + 1):
            for keys, values in tables:
                report = client.load(data.VIEW, data.record_batch(keys, values, data.EVENT_TIME_US + turn))
                taken += report.accepted
        return {"rows": taken, "rows_per_s": taken / (time.perf_counter() - began)}


if __name__ == "__main__":
    print(json.dumps(load(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))), flush=True)
