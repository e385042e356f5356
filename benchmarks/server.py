"""The server alone: prebuilt request bytes, no client library.

    echo   one blocking socket, a request at a time, turn by turn with a bare uvloop echo of the same sizes
    rps    50 connections from one C load generator, closed loop at pipeline depths 1 and 16, turn by turn with Redis
    open   the same connections at a fixed rate, latency from when each request was due

Servers sit on one core, who asks on the other.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from . import data, programs, redis_peer, wire
from .loadgen import Run, Target, expected_checksum, generate, write_records
from .measure import Findings, Latency, Size, Subject, cores, interleave, pin_to

ROUNDS = 5


def measure_echo(size: Size) -> Findings:
    server_core, client_core = cores()
    findings = Findings()
    keys = data.random_keys(size.entities, (size.calls[1],), 1)
    with programs.server("fastfeat", ["benchmarks.store_server", str(size.entities)], server_core) as port:
        pin_to(client_core)
        ours = wire.FixedConnection(port)
        requests = wire.get_requests(ours.greet(), keys)
        ours.learn_reply_size(requests[0])
        answered = ours.rows(requests[:100])
        findings.checksums["server.echo"] = data.check_equal("fastfeat", data.rows_of(keys[:100]), answered)
        sizes = [str(len(requests[0])), str(ours.reply_size)]
        with programs.server("echo", ["benchmarks.echo_server", *sizes], server_core) as echo_port:
            echo = wire.FixedConnection(echo_port, ours.reply_size)
            subjects = [Subject("fastfeat", ours.exchange, requests), Subject("echo", echo.exchange, requests)]
            for name, latency in interleave(subjects, size.calls[1], size.rounds).items():
                findings.latencies[f"server.echo.1x50.{name}"] = latency
            echo.close()
        ours.close()
    for percent in (50, 99):
        names = ("server.echo.1x50.fastfeat", "server.echo.1x50.echo")
        findings.ratio(f"server.echo.1x50.ratio_p{percent}", *names, percent)
    return findings


def measure_rps(size: Size) -> Findings:
    findings = Findings()
    with targets(size) as peers:
        for depth in (1, 16):
            runs = take_turns(peers, size.seconds, depth=depth)
            rates = {name: median(run.per_second for run in some) for name, some in runs.items()}
            for name, some in runs.items():
                busy = median(run.generator_busy for run in some)
                findings.rates[f"server.rps.depth{depth}.{name}"] = {"per_second": rates[name], "generator_busy": busy}
                findings.latencies[f"server.rps.depth{depth}.{name}"] = median_of([run.latency for run in some])
            findings.bars[f"server.rps.depth{depth}"] = rates["fastfeat"] / rates["redis"]
            findings.checksums |= checksums(f"server.rps.depth{depth}", runs)
    return findings


def measure_open(size: Size) -> Findings:
    findings = Findings()
    with targets(size) as peers:
        runs = take_turns(peers, size.seconds, rate=size.open_rate)
    findings.checksums |= checksums("server.open", runs)
    for name, some in runs.items():
        findings.latencies[f"server.open.{name}"] = median_of([run.latency for run in some])
    ours = findings.latencies["server.open.fastfeat"]
    findings.bars |= {f"server.open.{name}_us": ours.at(p) for name, p in (("p50", 50), ("p99", 99), ("p999", 99.9))}
    return findings


@contextlib.contextmanager
def targets(size: Size) -> Iterator[list[Target]]:
    """Our server, Redis with packed blobs, and the echo, all answering the same keys."""
    server_core, _ = cores()
    keys = data.random_keys(size.entities, (max(10_000, size.entities),), 1)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = ["benchmarks.store_server", str(size.entities)]
        ours = our_target(folder, stack.enter_context(programs.server("fastfeat", command, server_core)), keys)
        peer = stack.enter_context(redis_peer.RedisPeer(server_core))
        peer.load(size.entities, hashes=False)
        redis = redis_target(folder, peer.port, keys)
        request_size = len(wire.get_requests(0, keys[:1])[0])
        echo_command = ["benchmarks.echo_server", str(request_size), str(ours.reply_size)]
        echo_port = stack.enter_context(programs.server("echo", echo_command, server_core))
        yield [ours, redis, Target("echo", echo_port, ours.requests, ours.reply_size)]


def our_target(folder: Path, port: int, keys: data.Integers) -> Target:
    connection = wire.FixedConnection(port)
    requests = wire.get_requests(connection.greet(), keys)
    connection.learn_reply_size(requests[0])
    connection.exchange(requests[0])
    opening = bytes(connection.reply[:7])  # the frame's size, and [1, id, nil
    connection.close()
    return Target(
        "fastfeat",
        port,
        write_records(folder / "fastfeat", requests),
        connection.reply_size,
        opening=opening,
        payload_size=data.ROW_SIZE,
        checksum=expected_checksum(keys),
        greeting=write_records(folder / "greeting", wire.GREETING),
    )


def redis_target(folder: Path, port: int, keys: data.Integers) -> Target:
    return Target(
        "redis",
        port,
        write_records(folder / "redis", redis_peer.get_requests(keys)),
        redis_peer.PACKED_REPLY_SIZE,
        opening=redis_peer.PACKED_REPLY_OPENING,
        payload_size=data.ROW_SIZE,
        checksum=expected_checksum(keys),
        tail_size=len("\r\n"),
    )


def take_turns(peers: list[Target], seconds: float, *, depth: int = 1, rate: float = 0) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {target.name: [] for target in peers}
    for turn in range(ROUNDS):
        for target in peers if turn % 2 == 0 else reversed(peers):
            runs[target.name].append(generate(target, cores()[1], seconds, depth=depth, rate=rate))
    return runs


def checksums(name: str, runs: dict[str, list[Run]]) -> dict[str, str]:
    """Of the peers that answer with data; `generate` has compared every run's with the data's."""
    return {f"{name}.{peer}": some[0].checksum for peer, some in runs.items() if peer != "echo"}


def median_of(latencies: list[Latency]) -> Latency:
    """Each percentile's median over the windows: one disturbed window does not speak for all."""
    names = latencies[0].percentiles_us
    count = sum(latency.count for latency in latencies)
    return Latency(count, {name: median(latency.percentiles_us[name] for latency in latencies) for name in names})
