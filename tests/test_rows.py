"""Rows at rest: what a table exports, or a log keeps of it, makes the same table again, bit for bit."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastfeat._core.arena import Arena
from fastfeat._core.exports import export_keys, export_shards, shards_of
from fastfeat._core.plan import Plan
from fastfeat._core.request import hash_keys
from fastfeat._core.table import Clock, Table
from fastfeat.errors import ArenaFull, BeforeHistory, LayoutMismatch, LogCorrupt
from fastfeat.rows import batch_of_rows, entity_columns, heads_batch, heads_of, rows_batch, rows_schema
from fastfeat.schema import Entity, FeatureView, Field
from fastfeat.store import retention

NOW_US = 1_700_000_000_000_000
EVERY_SEQUENCE = 2**63
FIELDS = [
    Field("amount", "float64"),
    Field("count", "int16"),
    Field("flag", "bool"),
    Field("seen", "timestamp"),
    Field("name", "string"),
    Field("raw", "bytes"),
    Field("embedding", "vector<float32, 3>"),
    Field("tags", "list<string>"),
    Field("scores", "list<int64>"),
]
USER = Entity("user", join_keys={"user_id": "int64"})
PLACE = Entity("place", join_keys={"city": "string", "zone": "uint64"})


def view_of(entity: Entity, keep: Any = "all") -> FeatureView:
    return FeatureView("v", entity, FIELDS, keep=keep)


def table_of(view: FeatureView, capacity: int = 64 << 20, seed: bytes | None = None) -> Table:
    keys = view.entity.join_keys
    fields = [(each.name, each.dtype, each.nullable) for each in view.schema]
    arena = Arena(capacity, seed)
    return Table(
        arena, Clock(lambda: NOW_US), view.name, list(keys), list(keys.values()), fields, None, *retention(view)
    )


def keys_of(entity: Entity, i: int) -> dict[str, Any]:
    return {"user_id": i} if entity is USER else {"city": "köln" * (i % 3), "zone": 2**63 + i}


def row_of(entity: Entity, i: int, time_us: int) -> dict[str, Any]:
    values = {
        "amount": -0.0 if i % 5 == 0 else i / 3,
        "count": None if i % 4 == 0 else i % 1000,
        "flag": i % 2 == 0,
        "seen": time_us,
        "name": None if i % 3 == 0 else "näme" * (i % 7),
        "raw": bytes(i % 5),
        "embedding": [i, 0.5, -1.0],
        "tags": None if i % 6 == 0 else ["a", "", "ü" * i][: i % 4],
        "scores": list(range(i % 4)),
    }
    return {**keys_of(entity, i % 50), "event_timestamp": time_us, **values}


def fill(table: Table, entity: Entity, count: int = 300) -> None:
    for start in range(0, count, 30):
        rows = [row_of(entity, i, NOW_US - 1_000_000 * ((i * 7) % 101)) for i in range(start, start + 30)]
        batch = table.rows_batch(rows, NOW_US + start)
        table.prepare(batch, start).commit()


def answers(table: Table, entity: Entity) -> list[Any]:
    plan = Plan(Clock(lambda: NOW_US), [(table, each.name) for each in FIELDS])
    out: list[Any] = []
    for as_of in range(NOW_US - 110_000_000, NOW_US + 2_000_000, 9_000_000):
        for known_at in (None, NOW_US + 150):
            for i in range(52):
                try:
                    statuses, times, columns = plan.columns([keys_of(entity, i)], as_of, known_at)
                except Exception as error:
                    out.append(type(error))
                    continue
                cells = [(v.tobytes(), d.tobytes(), None if o is None else o.tobytes()) for v, d, o in columns]
                out.append((statuses.tobytes(), times.tobytes(), cells))
    return out


def copied(table: Table, view: FeatureView, sequence_end: int = EVERY_SEQUENCE, seed: bytes | None = None) -> Table:
    """Another table from what the first exports."""
    other = table_of(view, seed=seed)
    for shard in range(shards_of(table)):
        exported = export_shards(table, shard, shard + 1, sequence_end)
        rows, heads = rows_batch(view, exported), heads_batch(view, exported)
        if rows.num_rows:
            other.prepare(batch_of_rows(other, view, rows)).commit()
        if heads.num_rows:
            other.prepare_heads(entity_columns(view, heads), heads_of(heads)).commit()
    return other


@pytest.mark.parametrize("entity", [USER, PLACE], ids=["int key", "composite key"])
@pytest.mark.parametrize("keep", ["all", "latest", 3, timedelta(seconds=40)], ids=str)
def test_a_table_made_of_an_export_answers_alike(entity: Entity, keep: Any) -> None:
    view = view_of(entity, keep)
    table = table_of(view)
    fill(table, entity)
    table.delete([keys_of(entity, 3), keys_of(entity, 51)], NOW_US + 100)
    other = copied(table, view)
    assert other.entities == table.entities
    given, wanted = answers(other, entity), answers(table, entity)
    if keep == 3:  # a table keeps a row more than it must until its block is full; a new one does not
        assert other.rows <= table.rows
        wanted = [BeforeHistory if a is BeforeHistory else b for a, b in zip(given, wanted, strict=True)]
        assert wanted.count(BeforeHistory) < len(wanted) / 2
    else:
        assert other.rows == table.rows
    assert given == wanted


def test_rows_from_the_sequence_end_on_are_left_out() -> None:
    view = view_of(USER)
    table, first = table_of(view), table_of(view)
    fill(table, USER, 300)
    fill(first, USER, 150)
    other = copied(table, view, 150)
    assert other.rows == first.rows == 150
    assert answers(other, USER) == answers(first, USER)


@pytest.mark.parametrize("keep", ["latest", 3], ids=str)
def test_a_copy_taken_late_and_the_rows_after_it_make_the_same_table(keep: Any) -> None:
    """The copy lacks rows that later ones pushed out meanwhile; replaying the later ones comes to the same."""
    view = view_of(USER, keep)
    table = table_of(view)
    fill(table, USER, 300)
    other = copied(table, view, 150)
    for start in range(150, 300, 30):
        rows = [row_of(USER, i, NOW_US - 1_000_000 * ((i * 7) % 101)) for i in range(start, start + 30)]
        other.prepare(other.rows_batch(rows, NOW_US + start), start).commit()
    assert answers(other, USER) == answers(table, USER)


def test_export_of_keys_gives_the_known_ones_in_order() -> None:
    view = view_of(PLACE)
    table = table_of(view)
    fill(table, PLACE)
    rows = rows_batch(view, export_keys(table, [keys_of(PLACE, 7), keys_of(PLACE, 99), keys_of(PLACE, 2)], 2**63))
    assert rows.column("zone").unique().to_pylist() == [2**63 + 7, 2**63 + 2]
    assert rows.schema == rows_schema(view)
    assert rows.num_rows == 12


@pytest.mark.parametrize("entity", [USER, PLACE], ids=["int key", "composite key"])
@pytest.mark.parametrize("is_arrow", [False, True])
def test_rows_of_a_record_are_the_rows_that_made_it(entity: Entity, is_arrow: bool) -> None:
    view = view_of(entity)
    table, other = table_of(view), table_of(view)
    fill(table, entity)
    exported = rows_batch(view, export_shards(table, 0, shards_of(table), 2**63))
    if is_arrow:
        batch = table.arrow_batch(exported.drop_columns(["_sequence"]))
    else:
        batch = table.rows_batch([row_of(entity, i, NOW_US - i) for i in range(100)], NOW_US)
    record = b"".join(table.record(batch, 77))
    assert len(record) % 8 == 0
    back = other.bytes_batch(record)
    assert b"".join(other.record(back, 77)) == record
    other.prepare(back).commit()
    again = table_of(view)
    again.prepare(again.bytes_batch(memoryview(b"12345" + record)[5:])).commit()  # not aligned
    assert answers(other, entity) == answers(again, entity)
    assert rows_batch(view, export_shards(other, 0, shards_of(other), 2**63)).column("_sequence").to_numpy().min() == 77


def test_a_record_that_does_not_fit_is_refused() -> None:
    view = view_of(PLACE)
    table = table_of(view)
    record = b"".join(table.record(table.rows_batch([row_of(PLACE, i, NOW_US) for i in range(9)], NOW_US), 0))
    for size in range(len(record)):
        with pytest.raises((LogCorrupt, LayoutMismatch)):
            table.bytes_batch(record[:size])
    with pytest.raises(LogCorrupt):
        table.bytes_batch(record + bytes(8))
    other = table_of(FeatureView("v", PLACE, FIELDS[:-1]))
    with pytest.raises(LayoutMismatch, match="layout"):
        other.bytes_batch(record)


def test_an_aborted_change_leaves_nothing() -> None:
    view = view_of(USER)
    table = table_of(view)
    fill(table, USER, 60)
    before, used = answers(table, USER), table.arena.used
    table.prepare(table.rows_batch([row_of(USER, i, NOW_US) for i in range(500)], NOW_US), 60).abort()
    table.prepare_delete([keys_of(USER, 1), keys_of(USER, 70)], NOW_US + 9).abort()
    assert answers(table, USER) == before
    assert table.arena.used <= used + (4 << 20)
    table.prepare(table.rows_batch([row_of(USER, 1, NOW_US)], NOW_US), 60).commit()
    assert table.rows == 61


def test_a_full_arena_lets_go_of_the_lock() -> None:
    view = view_of(USER)
    table = table_of(view, 1 << 20)
    huge = table.rows_batch([{**row_of(USER, i, NOW_US), "raw": bytes(4000)} for i in range(1000)], NOW_US)
    with pytest.raises(ArenaFull):
        table.prepare(huge, 0)
    table.prepare(table.rows_batch([row_of(USER, 1, NOW_US)], NOW_US), 0).commit()
    assert table.rows == 1


def test_the_stable_hash_is_of_values_and_never_changes() -> None:
    seven, minus_one, pair = 7364705619221056123, 3395815149532668813, 5421593421708264050
    assert hash_keys(["k"], ["int64"], {"k": [7, -1]}).tolist() == [seven, minus_one]
    assert hash_keys(["k"], ["int32"], {"k": np.array([7])}).tolist() == [seven]
    assert hash_keys(["a", "b"], ["string", "uint64"], {"a": pa.array(["x"]), "b": [5]}).tolist() == [pair]
