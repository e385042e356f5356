"""Reads while rows are loaded flat out, as ratios to idle; idle and loading take turns.

The view keeps the latest row per entity: a load that never ends has bounded memory, and retires what it replaces.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import data, programs, wire
from .fastfeat_peer import load_all, store_of
from .measure import Findings, Latency, Size, Subject, quiet

ROUNDS = 5
LOADED = 100_000  # entities that the loader replaces again and again


def measure(size: Size) -> Findings:
    findings = Findings()
    measure_embedded(size, findings)
    measure_server(size, findings)
    for name in ("embedded.1x50", "embedded.100x50", "server.1x50"):
        findings.ratio(f"concurrent.{name}.p99_ratio", f"concurrent.{name}.loading", f"concurrent.{name}.idle", 99)
    return findings


def measure_embedded(size: Size, findings: Findings) -> None:
    store = store_of(size.entities, "latest")
    one, many = store.get_feature_vector, store.get_feature_vectors
    keys = data.random_keys(size.entities, (10_000, 100), 4)
    subjects = {
        "1x50": Subject("1x50", lambda key: one(data.SERVICE, {"user_id": key}), keys[:, 0].tolist()),
        "100x50": Subject("100x50", lambda some: many(data.SERVICE, {"user_id": some}), list(keys)),
    }
    loader = Loader(store, min(LOADED, size.entities))
    samples: dict[str, list[int]] = {f"{name}.{phase}": [] for name in subjects for phase in ("idle", "loading")}
    for _ in range(ROUNDS):
        for name, subject in subjects.items():
            time_for(size.seconds / 2, subject, samples[f"{name}.idle"])
            with loader.running():
                time_for(size.seconds / 2, subject, samples[f"{name}.loading"])
    for name, values in samples.items():
        findings.latencies[f"concurrent.embedded.{name}"] = Latency.of_samples(np.array(values))
    # The last load's answers: the loader gives every entity the same values again at a later time.
    answered = many(data.SERVICE, {"user_id": keys[0]})
    findings.checksums["concurrent.embedded"] = data.check_equal("fastfeat", data.rows_of(keys[0]), answered)
    findings.rates["concurrent.embedded.loader"] = {"rows_per_s": loader.rows / loader.seconds}


def measure_server(size: Size, findings: Findings) -> None:
    samples: dict[str, list[int]] = {"idle": [], "loading": []}
    with programs.server("fastfeat", ["benchmarks.store_server", str(size.entities), "latest"], None) as port:
        connection = wire.FixedConnection(port)
        requests = wire.get_requests(connection.greet(), data.random_keys(size.entities, (10_000,), 5))
        connection.learn_reply_size(requests[0])
        subject = Subject("server", connection.exchange, requests)
        loader = ["benchmarks.loader", str(port), str(min(LOADED, size.entities))]
        for _ in range(ROUNDS):
            time_for(size.seconds, subject, samples["idle"])
            with programs.server("loader", loader, None):
                time_for(size.seconds, subject, samples["loading"])
        connection.close()
    for phase, values in samples.items():
        findings.latencies[f"concurrent.server.1x50.{phase}"] = Latency.of_samples(np.array(values))


def time_for(seconds: float, subject: Subject, samples: list[int]) -> None:
    """Time calls until the seconds have passed; long enough that many loads come and go."""
    call, clock = subject.call, time.perf_counter_ns
    with quiet():
        ends = clock() + int(seconds * 1e9)
        for argument in itertools.cycle(subject.arguments):
            began = clock()
            call(argument)
            done = clock()
            samples.append(done - began)
            if done > ends:
                return


class Loader:
    """A thread that loads newer rows of the same entities, one Arrow batch after the other."""

    def __init__(self, store: Any, entities: int) -> None:
        self.store = store
        self.keys, self.values = next(data.chunks(entities))
        self.event_time_us = data.EVENT_TIME_US
        self.stopping = threading.Event()
        self.rows = 0
        self.seconds = 0.0
        self.failure: BaseException | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.stopping.clear()
        thread = threading.Thread(target=self.load_until_stopped)
        thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            thread.join()
        if self.failure is not None:
            raise self.failure

    def load_until_stopped(self) -> None:
        began = time.perf_counter()
        try:
            while not self.stopping.is_set():
                self.event_time_us += 1
                load_all(self.store, data.record_batch(self.keys, self.values, self.event_time_us))
                self.rows += len(self.keys)
        except BaseException as error:
            self.failure = error
        self.seconds += time.perf_counter() - began
