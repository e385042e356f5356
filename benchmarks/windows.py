"""Windows online: six against a plain read over TCP, batches in process, and one entity with a million events."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

import fastfeat
from fastfeat import Store

from . import data, events, programs
from .measure import Findings, Latency, Size, Subject, cores, interleave, pin_to

HOT_KEY: Final = 1 << 40
HOT_EVENTS: Final = 1_000_000
PUSHES: Final = 2_000
APPENDED_AT_ONCE: Final = 1_000
APPENDS: Final = 50


def measure(size: Size) -> Findings:
    findings = Findings()
    server_core, client_core = cores()
    entities = size.entities if size.smoke else events.ENTITIES
    keys = data.random_keys(entities, (size.calls[1],), 21).tolist()
    command = ["benchmarks.event_server", str(entities)]
    with (
        programs.server("fastfeat", command, server_core) as port,
        fastfeat.connect(f"fastfeat://127.0.0.1:{port}") as client,
    ):
        pin_to(client_core)
        latencies = interleave(
            [
                Subject("tcp.windows", lambda key: client.get_feature_vector("windows", {"card_id": key}), keys),
                Subject("tcp.point", lambda key: client.get_feature_vector("point", {"card_id": key}), keys),
            ],
            size.calls[1],
            size.rounds,
        )
    keep(findings, latencies)
    findings.ratio("windows.tcp.1x6.ratio_point", "windows.tcp.windows", "windows.tcp.point", 50)
    store = events.store_of(entities)
    measure_embedded(size, findings, store, entities)
    measure_hot(size, findings, store)
    return findings


def keep(findings: Findings, latencies: dict[str, Latency]) -> None:
    findings.latencies |= {f"windows.{name}": latency for name, latency in latencies.items()}


def measure_embedded(size: Size, findings: Findings, store: Store, entities: int) -> None:
    batches = list(data.random_keys(entities, (size.calls[100], 100), 22))
    out = np.empty((100, 6))
    store.get_feature_vectors("windows", {"card_id": np.arange(entities)})
    found = interleave(
        [Subject("100x6", lambda some: store.get_feature_vectors("windows", {"card_id": some}, out=out), batches)],
        size.calls[100],
        size.rounds,
    )
    keep(findings, found)
    findings.bars["windows.embedded.100x6.p50_us"] = found["100x6"].at(50)
    findings.checksums["windows.100x6"] = data.checksum(
        store.get_feature_vectors("windows", {"card_id": batches[0]}).round(9)
    )


def measure_hot(size: Size, findings: Findings, store: Store) -> None:
    """One entity's million events: read its windows, append in order, then late."""
    count = 10_000 if size.smoke else HOT_EVENTS
    rng = np.random.default_rng(data.SEED)
    times = np.sort(rng.integers(0, 30 * events.DAY_US, count)) + events.START_US
    amounts = np.round(rng.lognormal(3, 1, count), 2)
    store.load(events.PAYMENTS, events.event_table(np.full(count, HOT_KEY), times, amounts))
    entity = {"card_id": HOT_KEY}
    found = interleave(
        [Subject("hot.read", lambda _: store.get_feature_vector("windows", entity), [None])],
        size.calls[100],
        size.rounds,
    )
    pushes, appends = (20, 2) if size.smoke else (PUSHES, APPENDS)
    per_row = []
    for i in range(appends):
        new = events.NOW_US + (1 + i) * 1_000_000 + np.arange(APPENDED_AT_ONCE)
        rows = events.event_table(np.full(APPENDED_AT_ONCE, HOT_KEY), new, np.full(APPENDED_AT_ONCE, 1.5))
        began = time.perf_counter_ns()
        store.push(events.PAYMENTS, rows)
        per_row.append((time.perf_counter_ns() - began) / APPENDED_AT_ONCE)
    after = events.NOW_US + 3_600_000_000
    in_order = [{**entity, "event_timestamp": after + i, "amount": 1.25} for i in range(pushes)]
    late_times = rng.integers(0, 30 * events.DAY_US, pushes) + events.START_US
    late = [{**entity, "event_timestamp": int(when), "amount": 1.25} for when in late_times]
    found["hot.push_in_order"] = time_pushes(store, in_order)
    found["hot.push_late"] = time_pushes(store, late)
    keep(findings, found)
    findings.bars["windows.hot.read.p50_us"] = found["hot.read"].at(50)
    findings.bars["windows.hot.append.us_per_row"] = float(np.median(per_row)) / 1e3
    findings.bars["windows.hot.late.p50_us"] = found["hot.push_late"].at(50)
    findings.rates["windows.hot.append"] = {"least_us": min(per_row) / 1e3, "most_us": max(per_row) / 1e3}


def time_pushes(store: Store, rows: list[dict[str, float]]) -> Latency:
    """Each by itself: a push of one row."""
    samples = []
    for row in rows:
        began = time.perf_counter_ns()
        store.push(events.PAYMENTS, row)
        samples.append(time.perf_counter_ns() - began)
    return Latency.of_samples(np.array(samples))
