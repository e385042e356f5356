"""A store that is little more than native tables, for tests of the protocol, the server and the clients."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow as pa

from fastfeat._core.arena import Arena
from fastfeat._core.plan import Plan
from fastfeat._core.table import Clock, Table
from fastfeat.dtypes import DType
from fastfeat.errors import DataError, FastFeatError, UnknownFeature, UnknownView
from fastfeat.report import LoadReport

NOW_US = 1_700_000_000_000_000
USER_FIELDS = [("x", "float64"), ("y", "float64"), ("count", "int64"), ("name", "string"), ("tags", "list<string>")]
NUMBERS = ["user:x", "user:y", "user:count"]
EVERYTHING = [f"user:{name}" for name, _ in USER_FIELDS] + ["place:embedding", "place:open", "place:seen"]
PLACE_FIELDS = [("embedding", "vector<float32, 3>"), ("open", "bool"), ("seen", "timestamp")]


class TableStore:
    """Two views: `user` by user_id (int64), `place` by city (string) and zone (uint64).

    load_gate: a load waits here before each batch, so that a test says when it goes on.
    """

    def __init__(self) -> None:
        self.clock = Clock(lambda: NOW_US)
        self.arena = Arena(64 << 20)
        self.tables = {
            "user": self._table("user", ["user_id"], ["int64"], USER_FIELDS),
            "place": self._table("place", ["city", "zone"], ["string", "uint64"], PLACE_FIELDS),
        }
        self.created_us = NOW_US
        self.load_gate = threading.Event()
        self.load_gate.set()

    def _table(self, name: str, keys: list[str], types: list[str], fields: list[tuple[str, str]]) -> Table:
        parsed = [(field_name, DType.parse(kind), True) for field_name, kind in fields]
        return Table(self.arena, self.clock, name, keys, types, parsed, None, None, None)

    def _view(self, name: str) -> Table:
        if name not in self.tables:
            raise UnknownView(f"view {name!r} is not applied")
        return self.tables[name]

    def plan(self, features: Any) -> Plan:
        names = EVERYTHING if features == "everything" else features
        if not isinstance(names, list):
            raise UnknownView(f"service {features!r} is not applied")
        known = {
            f"{view}:{name}" for view, fields in (("user", USER_FIELDS), ("place", PLACE_FIELDS)) for name, _ in fields
        }
        for name in names:
            if name not in known:
                raise UnknownFeature(f"feature {name!r} is unknown")
        return Plan(self.clock, [(self.tables[name.split(":")[0]], name.split(":")[1]) for name in names])

    def push(self, view: str, rows: Any) -> int:
        self.created_us += 1
        plain = rows.to_pylist() if isinstance(rows, pa.Table) else [rows] if isinstance(rows, dict) else rows
        self._view(view).append_rows(plain, self.created_us)
        return self.created_us

    def push_group(self, pushes: list[tuple[str, Any]]) -> list[int | FastFeatError]:
        answers: list[int | FastFeatError] = []
        for view, rows in pushes:
            try:
                answers.append(self.push(view, rows))
            except FastFeatError as error:
                answers.append(error)
        return answers

    def delete(self, view: str, rows: Any) -> int:
        self.created_us += 1
        self._view(view).delete(rows, self.created_us)
        return self.created_us

    def load(self, view: str, reader: Any, *, event_time: str, created_time: str | None) -> LoadReport:
        report = LoadReport(view)
        table = self._view(view)
        if event_time not in reader.schema.names:
            raise DataError(f"the source has no column {event_time!r}")
        for batch in reader:
            self.load_gate.wait()
            table.append_rows(batch.to_pylist(), NOW_US)
            report.accepted += batch.num_rows
        return report

    def info(self) -> dict[str, Any]:
        return {"views": {name: {"rows": table.rows} for name, table in self.tables.items()}}


def user(user_id: int, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "user_id": user_id,
        "x": user_id + 0.5,
        "y": None,
        "count": user_id,
        "name": f"user {user_id}",
        "tags": [],
    }
    return {**row, "event_timestamp": NOW_US - 1000, **values}


def place(city: str, zone: int, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"city": city, "zone": zone, "embedding": [1.0, 2.0, 3.0], "open": True, "seen": NOW_US}
    return {**row, "event_timestamp": NOW_US - 1000, **values}
