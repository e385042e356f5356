"""Out of cache: batches of 100 at 5 million entities, against 100,000 entities and against Redis, in one run."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import data, redis_peer
from .fastfeat_peer import store_of
from .measure import Findings, Size, Subject, cores, interleave, pin_to

BATCH = 100
WARM_BATCH = 1_000
# Of the calls that other groups time: of 5,000, one bad moment of a shared machine (50 calls) is the whole p99.
OFTEN = 10


def measure(size: Size) -> Findings:
    server_core, client_core = cores()
    pin_to(client_core)
    findings = Findings()
    small, large = store_of(size.entities), store_of(size.entities_large)
    for store, entities in ((small, size.entities), (large, size.entities_large)):
        read_all(store, entities)
    keys = data.random_keys(size.entities, (size.calls[BATCH], BATCH), 2)
    keys_large = data.random_keys(size.entities_large, (size.calls[BATCH], BATCH), 3)
    ours = Subject("fastfeat", reader(large), list(keys_large))
    compare(findings, size, [Subject("fastfeat_100k", reader(small), list(keys)), ours], "scale", OFTEN)
    findings.latencies["scale.5m.100x50.fastfeat_alone"] = findings.latencies.pop("scale.fastfeat")
    measure_redis(size, findings, ours, server_core)
    info = large.info()["arena"]
    findings.rates["scale.5m.fastfeat"] = {"arena_ratio": info["used"] / (size.entities_large * data.ROW_SIZE)}
    findings.ratio("scale.5m_vs_100k.p99_ratio", "scale.5m.100x50.fastfeat_alone", "scale.fastfeat_100k", 99)
    for theirs, bar in (("redis_packed", "mget"), ("redis_hmget", "hmget")):
        names = ("scale.5m.100x50.fastfeat", f"scale.5m.100x50.{theirs}")
        findings.ratio(f"scale.5m.100x50.ratio_{bar}", *names, 50)
    return findings


def read_all(store: Any, entities: int, service: str = data.SERVICE) -> None:
    """Read every entity once, untimed: under a hypervisor the first reads after a load cost many times later ones."""
    for start in range(0, entities, WARM_BATCH):
        store.get_feature_vectors(service, {"user_id": np.arange(start, min(start + WARM_BATCH, entities))})


def measure_redis(size: Size, findings: Findings, ours: Subject, server_core: int) -> None:
    keys: Any = ours.arguments
    with redis_peer.RedisPeer(server_core) as peer:
        peer.load(size.entities_large)
        packed = Subject("redis_packed", peer.mget_packed, [redis_peer.packed_keys(some) for some in keys])
        hashes = Subject("redis_hmget", peer.hmget, [redis_peer.hash_keys(some) for some in keys])
        for subject in (ours, packed, hashes):
            answered = np.array(subject.call(subject.arguments[0]))
            name = f"scale.5m.{subject.name}"
            findings.checksums[name] = data.check_equal(subject.name, data.rows_of(keys[0]), answered)
        compare(findings, size, [ours, packed, hashes], "scale.5m.100x50")


def compare(findings: Findings, size: Size, subjects: list[Subject], name: str, often: int = 1) -> None:
    for subject, latency in interleave(subjects, size.calls[BATCH] * often, size.rounds * often).items():
        findings.latencies[f"{name}.{subject}"] = latency


def reader(store: Any) -> Any:
    get = store.get_feature_vectors
    return lambda keys: get(data.SERVICE, {"user_id": keys})
