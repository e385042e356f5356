"""The parts by themselves, with pytest-benchmark: python -m pytest benchmarks/test_parts.py.

They say where time goes when a bar moves; no bar is judged by them. FASTFEAT_BENCH_ENTITIES sets the size.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import data, wire
from fastfeat._core.arena import Arena
from fastfeat._core.codec import FrameSplitter, unpack
from fastfeat._core.plan import Plan
from fastfeat._core.table import Clock, Table
from fastfeat.dtypes import DType

ENTITIES = int(os.environ.get("FASTFEAT_BENCH_ENTITIES", "2000"))
VERSIONS = 64  # rows per entity where the as-of search is timed


def table_of(capacity_rows: int) -> Table:
    fields = [(name, DType.parse("float64"), True) for name in data.FEATURE_NAMES]
    arena = Arena((64 << 20) + capacity_rows * 2048)
    return Table(arena, Clock(), "profile", ["user_id"], ["int64"], fields, None, None, None)


def normalized(entities: int, event_time_us: int = data.EVENT_TIME_US) -> pa.RecordBatch:
    """One chunk as the core takes it: key, event time and created time as int64, then the fields."""
    keys, values = next(data.chunks(entities))
    times = pa.array(np.full(len(keys), event_time_us))
    columns = [pa.array(column) for column in np.ascontiguousarray(values.T)]
    return pa.record_batch(
        [pa.array(keys), times, times, *columns],
        names=["user_id", "event_timestamp", "created_timestamp", *data.FEATURE_NAMES],
    )


def plan_of(table: Table) -> Plan:
    return Plan(Clock(), [(table, name) for name in data.FEATURE_NAMES])


@pytest.fixture(scope="module")
def plan() -> Plan:
    table = table_of(ENTITIES)
    table.append_arrow(normalized(ENTITIES))
    return plan_of(table)


@pytest.fixture(scope="module")
def deep_plan() -> Plan:
    """A hundred entities with many rows each, a second apart."""
    table = table_of(100 * VERSIONS)
    for version in range(VERSIONS):
        table.append_arrow(normalized(100, data.EVENT_TIME_US + version * 1_000_000))
    return plan_of(table)


@pytest.mark.benchmark(group="read")
def test_hash_find_and_write_one_entity(benchmark: Any, plan: Plan) -> None:
    answered = benchmark(plan.vector, {"user_id": 7}, None, None, None)
    data.check_equal("Plan.vector", data.rows_of(np.array([7])), answered.reshape(1, -1))


@pytest.mark.benchmark(group="read")
def test_hash_find_and_write_100_entities(benchmark: Any, plan: Plan) -> None:
    keys = data.random_keys(ENTITIES, (100,), 6)
    answered = benchmark(plan.matrix, {"user_id": keys}, None, None, None)
    data.check_equal("Plan.matrix", data.rows_of(keys), answered)


@pytest.mark.benchmark(group="as-of")
def test_find_the_row_of_a_past_moment_among_many(benchmark: Any, deep_plan: Plan) -> None:
    moment = data.EVENT_TIME_US + VERSIONS // 2 * 1_000_000
    keys = np.arange(100)
    answered = benchmark(deep_plan.matrix, {"user_id": keys}, moment, moment, None)
    data.check_equal("Plan.matrix", data.rows_of(keys), answered)


@pytest.mark.benchmark(group="codec")
def test_split_and_unpack_a_request(benchmark: Any) -> None:
    request = wire.get_requests(1, np.array([7]))[0]
    splitter = FrameSplitter()
    message = benchmark(lambda: [unpack(payload) for payload in splitter.feed(request)])
    assert message == [[0, wire.REQUEST_ID, "GET", [1, [np.int64(7).tobytes()], wire.FLOAT64_MATRIX]]]


@pytest.mark.benchmark(group="codec")
def test_answer_a_request_from_bytes_to_bytes(benchmark: Any, plan: Plan) -> None:
    from fastfeat._core.session import ServerSession

    session = ServerSession(unexpected, 1 << 20, 16_384)
    session.greet(1 << 20)
    request = wire.get_requests(session.add_plan(plan), np.array([7]))[0]
    reply = benchmark(lambda: bytes(session.receive(request) or b""))
    answered = np.frombuffer(reply[-data.ROW_SIZE :]).reshape(1, -1)
    data.check_equal("ServerSession", data.rows_of(np.array([7])), answered)


def unexpected(request_id: int, method: str, params: object) -> None:
    raise AssertionError(f"the session hands over {method}, which it answers itself")


@pytest.mark.benchmark(group="load")
def test_load_one_batch(benchmark: Any) -> None:
    batch = normalized(ENTITIES)

    def fresh() -> tuple[tuple[Table, pa.RecordBatch], dict[str, Any]]:
        return (table_of(ENTITIES), batch), {}

    tables: list[Table] = []

    def load(table: Table, rows: pa.RecordBatch) -> None:
        table.append_arrow(rows)
        tables[:] = [table]

    benchmark.pedantic(load, setup=fresh, rounds=5)
    assert tables[0].rows == ENTITIES
