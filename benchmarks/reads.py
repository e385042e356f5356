"""Reads of 1, 100 and 1,000 entities, Python to NumPy, against redis-py: what `embedded` and `client` share."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import data, redis_peer
from .measure import Findings, Size, Subject, interleave

BATCHES = (100, 1_000)


def measure_reads(group: str, size: Size, findings: Findings, reader: Any, peer: redis_peer.RedisPeer) -> None:
    """Latencies "group.batch.peer" of a Store or Client and of Redis, after their answers were compared bit for bit."""
    measure_subjects(f"{group}.1x50", size, findings, one_entity(size, reader, peer), 1)
    for batch in BATCHES:
        measure_subjects(f"{group}.{batch}x50", size, findings, many_entities(size, reader, peer, batch), batch)


def measure_subjects(name: str, size: Size, findings: Findings, subjects: list[Subject], batch: int) -> None:
    expected = data.rows_of(keys_of(size, batch)[0])
    for subject in subjects:
        answered = np.array(subject.call(subject.arguments[0])).reshape(batch, -1)
        findings.checksums[f"{name}.{subject.name}"] = data.check_equal(subject.name, expected, answered)
    for subject_name, latency in interleave(subjects, size.calls[batch], size.rounds).items():
        findings.latencies[f"{name}.{subject_name}"] = latency


def keys_of(size: Size, batch: int) -> data.Integers:
    return data.random_keys(size.entities, (size.calls[batch], batch), batch)


def one_entity(size: Size, reader: Any, peer: redis_peer.RedisPeer) -> list[Subject]:
    keys = keys_of(size, 1)[:, 0]
    get, out = reader.get_feature_vector, np.empty(data.FEATURES)
    return [
        Subject("fastfeat", lambda key: get(data.SERVICE, {"user_id": key}), keys.tolist()),
        Subject("fastfeat_out", lambda key: get(data.SERVICE, {"user_id": key}, out=out), keys.tolist()),
        Subject("redis_packed", peer.get_packed, redis_peer.packed_keys(keys)),
        Subject("redis_hmget", peer.hmget, [[key] for key in redis_peer.hash_keys(keys)]),
    ]


def many_entities(size: Size, reader: Any, peer: redis_peer.RedisPeer, batch: int) -> list[Subject]:
    keys = keys_of(size, batch)
    get, out = reader.get_feature_vectors, np.empty((batch, data.FEATURES))
    return [
        Subject("fastfeat", lambda some: get(data.SERVICE, {"user_id": some}), list(keys)),
        Subject("fastfeat_out", lambda some: get(data.SERVICE, {"user_id": some}, out=out), list(keys)),
        Subject("redis_packed", peer.mget_packed, [redis_peer.packed_keys(some) for some in keys]),
        Subject("redis_hmget", peer.hmget, [redis_peer.hash_keys(some) for some in keys]),
    ]
