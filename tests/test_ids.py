"""Event ids: of an entity's rows with one id the one created first counts, in whatever order and batches they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import initialize, run_state_machine_as_test

from fastfeat import ArenaFull, Entity, FeatureView, Field, Status, Store, WindowView

from .strategies import START_US, World, event_worlds
from .test_durable_store import DurableMachine
from .test_stateful import StoreMachine

USER = Entity("user", {"user_id": "int64"})
FIELDS = [Field("id", "string", nullable=False), Field("x", "int64")]
EVENTS = FeatureView("events", USER, FIELDS, kind="event", event_id="id")
Row = tuple[int, int, str, int]  # event and created microseconds after START_US, id, x


class EventMachine(StoreMachine):
    """Point reads of event views, which have an id more often than not."""

    @initialize(world=event_worlds())
    def apply(self, world: World) -> None:
        super().apply(replace(world, windows=()))


class DurableEventMachine(EventMachine, DurableMachine):
    pass


TestEvents = pytest.mark.torture(EventMachine.TestCase)  # half a minute: not for every run


@pytest.mark.torture
def test_a_durable_store_counts_an_event_once_before_and_after_a_crash() -> None:
    profile = settings()
    run_state_machine_as_test(DurableEventMachine, settings=settings(profile, max_examples=profile.max_examples // 2))


class IdIgnored(Store):
    """An event that is sent again counts again."""

    def apply(self, definitions: Any) -> Any:
        return super().apply([without_id(each) for each in definitions])


def without_id(view: Any) -> Any:
    """The view, or the window view over it, as if its events had no ids."""
    if isinstance(view, WindowView):
        return replace(view, source=without_id(view.source))
    return replace(view, event_id=None) if getattr(view, "event_id", None) else view


@pytest.mark.torture
def test_the_machine_catches_events_that_count_twice() -> None:
    class Control(EventMachine):
        make_store = IdIgnored

    bounded = settings(
        max_examples=400,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Control, settings=bounded)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store(64 << 20, clock=lambda: START_US + 10**9) as store:
        store.apply(EVENTS)
        yield store


def load(store: Store, rows: Sequence[Row], user: int = 7) -> None:
    stamp = pa.timestamp("us", "UTC")
    columns = {
        "user_id": pa.array([user] * len(rows)),
        "event_timestamp": pa.array([START_US + row[0] for row in rows], stamp),
        "created": pa.array([START_US + row[1] for row in rows], stamp),
        "id": [row[2] for row in rows],
        "x": [row[3] for row in rows],
    }
    store.load("events", pa.table(columns), created_time="created")


def rows_of(store: Store) -> int:
    return int(store.info()["views"]["events"]["rows"])


def x_at(store: Store, at: int, user: int = 7) -> Any:
    result = store.get_online_features(["events:x"], [{"user_id": user}], as_of=START_US + at)
    status = Status(result.statuses["events"][0])
    return result.to_dict()["events:x"][0] if status == Status.PRESENT else status


def test_in_one_batch_the_row_created_first_counts(store: Store) -> None:
    load(store, [(5, 9, "a", 1), (6, 8, "a", 2), (7, 9, "a", 3), (1, 9, "b", 4)])
    assert rows_of(store) == 2
    assert [x_at(store, at) for at in (0, 1, 5, 6, 7)] == [Status.NOT_FOUND, 4, 4, 2, 2]


def test_of_rows_created_at_one_moment_the_first_to_arrive_counts(store: Store) -> None:
    load(store, [(5, 9, "a", 1), (6, 9, "a", 2)])
    load(store, [(4, 9, "a", 3)])
    assert (rows_of(store), x_at(store, 9)) == (1, 1)


def test_a_row_created_earlier_takes_the_place_of_one_that_is_there(store: Store) -> None:
    load(store, [(5, 9, "a", 1), (6, 9, "b", 2)])
    load(store, [(7, 8, "a", 3)])
    assert rows_of(store) == 2
    assert [x_at(store, at) for at in (5, 6, 7)] == [Status.NOT_FOUND, 2, 3]
    load(store, [(1, 7, "a", 4), (2, 6, "a", 5), (3, 6, "b", 6)])
    assert rows_of(store) == 2
    assert [x_at(store, at) for at in (1, 2, 3, 9)] == [Status.NOT_FOUND, 5, 6, 6]


def test_an_entity_whose_only_row_is_replaced_is_one_entity_still(store: Store) -> None:
    load(store, [(5, 9, "a", 1)])
    load(store, [(5, 8, "a", 2)])
    assert store.info()["views"]["events"] | {"rows": 1, "entities": 1} == store.info()["views"]["events"]
    assert x_at(store, 5) == 2


def test_ten_thousand_events_come_three_times_in_three_orders(store: Store) -> None:
    count = 10_000
    for offset, step in ((2, 7), (1, 77), (0, 777)):
        order = [(i * step) % count for i in range(1, count + 1) if i % 7]
        rest = [(i * step) % count for i in range(1, count + 1) if not i % 7]
        for part in (order, rest):
            load(store, [(i, 3 * i + offset, f"event {i}", 3 * i + offset) for i in part])
    assert rows_of(store) == count
    assert [x_at(store, at) for at in (0, 1, 4_999, count - 1)] == [0, 3, 3 * 4_999, 3 * (count - 1)]


def test_ids_of_many_entities_do_not_meet(store: Store) -> None:
    for user in range(100):
        load(store, [(5, 9, "a", user), (5, 10, "a", -1)], user=user)
    load(store, [(5, 11, "a", -2)], user=50)
    assert [x_at(store, 5, user) for user in range(100)] == list(range(100))


def test_an_event_that_a_delete_took_may_be_sent_again(store: Store) -> None:
    load(store, [(5, 9, "a", 1), (6, 9, "b", 2)])
    store.delete("events", [{"user_id": 7}])
    load(store, [(5, 8, "a", 3)])  # created before the delete: no row
    assert (rows_of(store), x_at(store, 9)) == (0, Status.DELETED)
    load(store, [(5, 2 * 10**9, "a", 4), (7, 2 * 10**9 + 1, "a", 5)])
    assert (rows_of(store), x_at(store, 9)) == (1, 4)


@pytest.mark.parametrize("dtype", ["string", "bytes", "int8", "int64", "uint64"])
def test_ids_compare_by_value_pushed_or_loaded(dtype: str) -> None:
    values: dict[str, list[Any]] = {"string": ["", "a", "a" * 300], "bytes": [b"", b"\x00", b"\x00\x00"]}
    view = replace(EVENTS, schema=[Field("pad", "string"), Field("id", dtype, nullable=False), Field("x", "int64")])
    with Store(64 << 20, clock=lambda: START_US) as store:
        store.apply(view)
        for i, value in enumerate(values.get(dtype, [0, 1, 127])):
            row = {"user_id": 7, "event_timestamp": START_US - 10 + i, "pad": "p" * i, "id": value, "x": i}
            store.push("events", row)
            store.push("events", [row | {"pad": "other"}, row | {"user_id": 8}])
            arrow = {name: [cell] for name, cell in row.items() if name not in ("id", "event_timestamp")}
            arrow |= {"id": pa.array([value], pa.type_for_alias("binary" if dtype == "bytes" else dtype))}
            arrow |= {"event_timestamp": pa.array([START_US - 10 + i], pa.timestamp("us", "UTC"))}
            store.push("events", pa.table(arrow))
        assert rows_of(store) == 6


def test_a_write_that_the_arena_has_no_room_for_leaves_no_id_behind() -> None:
    view = replace(EVENTS, schema=[*FIELDS, Field("text", "string")])
    with Store(1 << 20, clock=lambda: START_US + 10**9) as store:
        store.apply(view)
        row = {"user_id": 7, "event_timestamp": START_US, "text": "", "x": 1}
        store.push("events", row | {"id": "known"})
        before = rows_of(store)
        many = [row | {"id": str(i), "text": "x" * 30_000} for i in range(100)]
        with pytest.raises(ArenaFull):
            store.push("events", many)
        assert rows_of(store) == before
        store.push("events", [row | {"id": str(i)} for i in range(100)] + [row | {"id": "known"}])
        assert rows_of(store) == 101


def test_ids_are_known_again_after_a_restart_from_a_snapshot_or_the_log(tmp_path: Path) -> None:
    def opened() -> Store:
        return Store.open(tmp_path, capacity_bytes=64 << 20, clock=lambda: START_US + 10**9)

    with opened() as store:
        store.apply(EVENTS)
        load(store, [(5, 9, "a", 1), (6, 9, "b", 2)])
        store.snapshot()
        load(store, [(7, 8, "a", 3), (8, 10, "b", 4), (9, 9, "c", 5)])
    with opened() as store:
        assert rows_of(store) == 3
        load(store, [(10, 10, "c", 6), (11, 9, "a", 7), (12, 7, "b", 8)])
        assert rows_of(store) == 3
        assert [x_at(store, at) for at in (6, 7, 9, 12)] == [Status.NOT_FOUND, 3, 5, 8]


def test_a_view_without_an_event_id_counts_every_row(store: Store) -> None:
    store.apply(replace(EVENTS, name="all", event_id=None))
    row = {"user_id": 7, "event_timestamp": START_US, "id": "a", "x": 1}
    store.push("all", [row, row])
    assert store.info()["views"]["all"]["rows"] == 2
