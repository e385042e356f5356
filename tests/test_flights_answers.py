"""The flights example: what the store answers about all flights holds nothing from later, and equals plain Python."""

from __future__ import annotations

import csv
import io
import zipfile
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from fastfeat_flights import data, demo
from fastfeat_flights.demo import Questions

from fastfeat import Store

NEW_YORK = ZoneInfo("America/New_York")


@pytest.fixture(scope="module")
def flights() -> pa.Table:
    return data.flights()


@pytest.fixture(scope="module")
def store(flights: pa.Table) -> Store:
    store = Store()
    store.apply(demo.DEFINITIONS)
    for view, table in data.view_tables(flights).items():
        report = store.load(view, table)
        assert (report.accepted, report.rejected) == (table.num_rows, 0)
    return store


@pytest.fixture(scope="module")
def asked(flights: pa.Table) -> Questions:
    return demo.questions(flights)


@pytest.fixture(scope="module")
def times_then(store: Store, asked: Questions) -> dict[str, np.ndarray]:
    return demo.event_times_then(store, asked)


def test_no_answer_holds_a_row_from_after_its_moment(times_then: dict[str, np.ndarray], asked: Questions) -> None:
    """All flights, all views; and the answers are not empty."""
    assert len(asked) == 336_776
    assert demo.leaks(times_then, asked) == dict.fromkeys(demo.VIEWS, 0)
    assert all((times != 0).mean() > 0.8 for times in times_then.values())


def test_reading_now_would_leak(store: Store, asked: Questions) -> None:
    """The check above can fail: the same check on answers of now finds nearly every flight."""
    found = demo.leaks(demo.event_times_now(store, asked), asked)
    assert found["last_airport_delay"] > 336_000
    assert found["last_aircraft_delay"] > 330_000


def test_a_flight_that_left_early_is_in_its_own_answer_unless_asked_sooner(
    store: Store, asked: Questions, times_then: dict[str, np.ndarray]
) -> None:
    left_by_then = (asked.departed_us != -1) & (asked.departed_us <= asked.moments_us)
    assert demo.own_departures(times_then, asked) >= 0.99 * left_by_then.sum()
    sooner = demo.event_times_then(store, asked.earlier(demo.LEAD))
    assert demo.own_departures(sooner, asked) == 0


Answer = dict[str, float | None]


class PlainPython:
    """The features of a flight from the raw file, by loops over dicts: no Arrow, no NumPy, no store."""

    def __init__(self, raw: list[dict[str, str]]) -> None:
        self.delays: dict[str, list[tuple[datetime, float]]] = {}
        for row in raw:
            if row["dep_delay"] != "NA":
                delay = float(row["dep_delay"])
                left = (self.scheduled(row) + timedelta(minutes=delay), delay)
                for key in (row["tailnum"], row["origin"]):
                    self.delays.setdefault(key, []).append(left)
        self.weather: dict[str, list[dict[str, str]]] = {}
        for row in read_plain("weather.csv"):
            self.weather.setdefault(row["origin"], []).append(row)
        self.planes = {row["tailnum"]: row for row in read_plain("planes.csv")}

    def scheduled(self, row: dict[str, str]) -> datetime:
        year, month, day, clock = (int(row[name]) for name in ("year", "month", "day", "sched_dep_time"))
        return datetime(year, month, day, clock // 100, clock % 100, tzinfo=NEW_YORK).astimezone(UTC)

    def last_delay(self, key: str, moment: datetime) -> float | None:
        """Of the departures by then, the last; of those in one minute, the last in the file."""
        best: tuple[datetime, float] | None = None
        for left, delay in self.delays.get(key, ()):
            if left <= moment and (best is None or left >= best[0]):
                best = (left, delay)
        return None if best is None else best[1]

    def answer(self, row: dict[str, str]) -> Answer:
        moment = self.scheduled(row)
        out: Answer = {
            "last_aircraft_delay:minutes": self.last_delay(row["tailnum"], moment),
            "last_airport_delay:minutes": self.last_delay(row["origin"], moment),
        }
        plane = self.planes.get(row["tailnum"])
        for name, column in (("built", "year"), ("engines", "engines"), ("seats", "seats")):
            known = plane is not None and moment >= data.REGISTRY_TIME
            out[f"aircraft:{name}"] = number(plane[column]) if plane is not None and known else None
        observed = [
            observation
            for observation in self.weather[row["origin"]]
            if timedelta(0) <= moment - datetime.fromisoformat(observation["time_hour"]) <= timedelta(hours=3)
        ]
        latest = max(observed, key=lambda observation: observation["time_hour"], default=None)
        for name in ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"):
            out[f"weather:{name}"] = None if latest is None else number(latest[name])
        return out


def read_plain(name: str) -> list[dict[str, str]]:
    with (data.data_directory() / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(text: str) -> float | None:
    return None if text == "NA" else float(text)


def test_a_sample_equals_a_computation_in_plain_python(store: Store) -> None:
    with zipfile.ZipFile(data.data_directory() / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        raw = list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8")))
    plain = PlainPython(raw)
    sample = [raw[i] for i in np.random.default_rng(36).choice(len(raw), 150, replace=False)]
    sample += raw[:5] + raw[-5:]
    for row in sample:
        entity = {"origin": row["origin"], "tailnum": "" if row["tailnum"] == "NA" else row["tailnum"]}
        result = store.get_online_features(demo.SERVICE, [entity], as_of=plain.scheduled(row))
        assert {name: values[0] for name, values in result.to_dict().items()} == plain.answer(row), row
