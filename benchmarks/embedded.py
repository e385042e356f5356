"""Embedded: Python to NumPy in one process, no network, against redis-py on the same data."""

from __future__ import annotations

from .fastfeat_peer import store_of
from .measure import Findings, Size, cores, pin_to
from .reads import measure_reads
from .redis_peer import RedisPeer


def measure(size: Size) -> Findings:
    server_core, client_core = cores()
    pin_to(client_core)
    findings = Findings()
    store = store_of(size.entities)
    with RedisPeer(server_core) as peer:
        peer.load(size.entities)
        measure_reads("embedded", size, findings, store, peer)
    alone = findings.latencies["embedded.1x50.fastfeat"]
    findings.bars["embedded.1x50.p50_us"] = alone.at(50)
    findings.bars["embedded.1x50.p99_us"] = alone.at(99)
    ours = "embedded.100x50.fastfeat"
    findings.ratio("embedded.100x50.ratio_hmget", ours, "embedded.100x50.redis_hmget", 50)
    findings.ratio("embedded.100x50.ratio_mget", ours, "embedded.100x50.redis_packed", 50)
    return findings
