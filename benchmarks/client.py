"""Client: Python to NumPy over TCP loopback, the server in a process of its own, against redis-py on the same data.

Both servers sit on one core and both clients on the other.
"""

from __future__ import annotations

import fastfeat

from . import programs
from .measure import Findings, Size, cores, pin_to
from .reads import measure_reads
from .redis_peer import RedisPeer


def measure(size: Size) -> Findings:
    server_core, client_core = cores()
    findings = Findings()
    server = programs.server("fastfeat", ["benchmarks.store_server", str(size.entities)], server_core)
    with server as port, RedisPeer(server_core) as peer, fastfeat.connect(f"fastfeat://127.0.0.1:{port}") as client:
        peer.load(size.entities)
        pin_to(client_core)
        measure_reads("client", size, findings, client, peer)
    for batch in ("1x50", "100x50", "1000x50"):
        for percent in (50, 99):
            names = (f"client.{batch}.fastfeat", f"client.{batch}.redis_packed")
            findings.ratio(f"client.{batch}.ratio_p{percent}", *names, percent)
    for percent in (50, 99):
        names = ("client.100x50.fastfeat", "client.100x50.redis_hmget")
        findings.ratio(f"client.100x50.ratio_hmget_p{percent}", *names, percent)
    return findings
