"""The flights example: what the store answers about all flights holds nothing from later, and equals plain Python and
DuckDB."""

from __future__ import annotations

import csv
import io
import zipfile
from bisect import bisect_left
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from fastfeat_flights import data, demo, model
from fastfeat_flights.demo import Questions

from fastfeat import Store

NEW_YORK = ZoneInfo("America/New_York")
EASTERN_STANDARD = timezone(timedelta(hours=-5))


@pytest.fixture(scope="module")
def flights() -> pa.Table:
    return data.flights()


@pytest.fixture(scope="module")
def store(flights: pa.Table) -> Store:
    return filled(Store(), flights)


def filled(store: Store, flights: pa.Table) -> Store:
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
    assert found["airport_delays"] > 336_000
    assert found["aircraft_delays"] > 330_000


def test_a_flight_that_left_early_is_in_its_own_answer_unless_asked_sooner(
    store: Store, asked: Questions, times_then: dict[str, np.ndarray]
) -> None:
    left_by_then = (asked.departed_us != -1) & (asked.departed_us < asked.moments_us)
    assert demo.own_departures(times_then, asked) >= 0.99 * left_by_then.sum()
    assert left_by_then.sum() > 180_000
    sooner = demo.event_times_then(store, asked.earlier(demo.LEAD))
    assert demo.own_departures(sooner, asked) == 0


@pytest.mark.long
def test_every_flight_is_served_the_vector_of_the_training_set(store: Store, asked: Questions) -> None:
    early = asked.earlier(demo.LEAD)
    trained = model.vectors(model.training_set(store, early))
    edges = [0, *(np.flatnonzero(np.diff(early.moments_us)) + 1).tolist(), len(early)]
    for start, stop in pairwise(edges):
        entities = {name: column[start:stop] for name, column in early.entities().items()}
        served = store.get_feature_vectors(demo.SERVICE, entities, as_of=int(early.moments_us[start]))
        assert served.tobytes() == trained[start:stop].tobytes()


@pytest.mark.long
def test_a_durable_store_makes_the_same_training_set_also_after_a_restart(
    store: Store, flights: pa.Table, asked: Questions, tmp_path: Path
) -> None:
    early = asked.earlier(demo.LEAD)
    examples = model.training_set(store, early)
    with filled(Store.open(tmp_path, fsync="off"), flights) as durable:
        assert model.training_set(durable, early).equals(examples)
    with Store.open(tmp_path, fsync="off") as durable:
        assert model.training_set(durable, early).equals(examples)


# The same windows in SQL: rows and labels in one table, and a label's frame ends just before its own moment.
MEANS_IN_SQL = """
    WITH departures AS (
        SELECT origin, carrier, epoch_us(departed) AS t, delay_minutes AS minutes, NULL AS label
        FROM flights WHERE departed IS NOT NULL
    ), rows AS (
        FROM departures UNION ALL SELECT origin, carrier, asked_us, NULL, label FROM labels
    ), answers AS (
        SELECT label,
            avg(minutes) OVER airport_1h AS "airport_delays:minutes_mean_1h",
            avg(minutes) OVER airport_3h AS "airport_delays:minutes_mean_3h",
            avg(minutes) OVER airport_24h AS "airport_delays:minutes_mean_24h",
            count(*) FILTER (minutes > 15) OVER airport_1h AS "airport_delays:late_1h",
            count(minutes) OVER airline_1h AS "airline_traffic:flights_1h",
            count(minutes) OVER airline_24h AS "airline_traffic:flights_24h",
            avg(minutes) OVER airline_3h AS "airline_traffic:minutes_mean_3h",
        FROM rows WINDOW
            airport_1h AS (PARTITION BY origin ORDER BY t RANGE BETWEEN 3600000000 PRECEDING AND 1 PRECEDING),
            airport_3h AS (PARTITION BY origin ORDER BY t RANGE BETWEEN 10800000000 PRECEDING AND 1 PRECEDING),
            airport_24h AS (PARTITION BY origin ORDER BY t RANGE BETWEEN 86400000000 PRECEDING AND 1 PRECEDING),
            airline_1h AS (PARTITION BY carrier ORDER BY t RANGE BETWEEN 3600000000 PRECEDING AND 1 PRECEDING),
            airline_3h AS (PARTITION BY carrier ORDER BY t RANGE BETWEEN 10800000000 PRECEDING AND 1 PRECEDING),
            airline_24h AS (PARTITION BY carrier ORDER BY t RANGE BETWEEN 86400000000 PRECEDING AND 1 PRECEDING)
    )
    SELECT * EXCLUDE (label) FROM answers WHERE label IS NOT NULL ORDER BY label
"""
LAST_IN_SQL = """
    WITH last AS (
        SELECT tailnum, epoch_us(departed) AS t, arg_max(delay_minutes, place) AS minutes
        FROM flights WHERE departed IS NOT NULL GROUP BY ALL
    )
    SELECT CASE WHEN asked_us - last.t <= 86400000000 THEN minutes END AS "aircraft_delays:minutes_last_24h"
    FROM labels ASOF LEFT JOIN last ON labels.tailnum = last.tailnum AND labels.asked_us > last.t
    ORDER BY label
"""


@pytest.mark.torture  # ten seconds; some of them are compared in test_windows_engines.py too
def test_the_windows_of_all_flights_equal_those_of_duckdb(store: Store, flights: pa.Table, asked: Questions) -> None:
    """To the last bit: delays are whole minutes, so their sums are exact in any order."""
    early = asked.earlier(demo.LEAD)
    examples = model.training_set(store, early)
    places = pa.array(np.arange(len(asked)))
    labels = pa.table({**early.entities(), "asked_us": early.moments_us, "label": places})
    with duckdb.connect() as connection:
        connection.register("flights", flights.append_column("place", places))
        connection.register("labels", labels)
        answers = [connection.sql(query).to_arrow_table() for query in (MEANS_IN_SQL, LAST_IN_SQL)]
    columns = {name: table[name] for table in answers for name in table.column_names}
    windows = [str(feature) for view in demo.WINDOW_VIEWS for feature in view]
    assert sorted(columns) == sorted(windows)
    for name in windows:
        theirs, mine = columns[name], examples[name]
        assert len(mine) == 336_776
        assert theirs.cast(mine.type).equals(mine), name
        assert pc.count_distinct(mine).as_py() > 20, name


Answer = dict[str, float | None]


class PlainPython:
    """The features of a flight from the raw file, by loops over dicts: no Arrow, no NumPy, no store."""

    def __init__(self, raw: list[dict[str, str]]) -> None:
        self.left: dict[str, list[tuple[datetime, float]]] = {}
        for row in raw:
            if row["dep_delay"] != "NA":
                delay = float(row["dep_delay"])
                left = (self.scheduled(row) + timedelta(minutes=delay), delay)
                for key in (row["tailnum"], row["origin"], row["carrier"]):
                    self.left.setdefault(key, []).append(left)
        for departures in self.left.values():
            departures.sort(key=itemgetter(0))  # of those in one minute the last in the file comes last
        self.weather: dict[str, list[dict[str, str]]] = {}
        for row in read_plain("weather.csv"):
            self.weather.setdefault(row["origin"], []).append(row)
        self.planes = {row["tailnum"]: row for row in read_plain("planes.csv")}

    def scheduled(self, row: dict[str, str]) -> datetime:
        year, month, day, clock = (int(row[name]) for name in ("year", "month", "day", "sched_dep_time"))
        return datetime(year, month, day, clock // 100, clock % 100, tzinfo=NEW_YORK).astimezone(UTC)

    def delays(self, key: str, moment: datetime, hours: int) -> list[float]:
        """Of the departures in the hours before a moment, which itself does not count."""
        left = self.left.get(key, [])
        start = bisect_left(left, moment - timedelta(hours=hours), key=itemgetter(0))
        return [delay for _, delay in left[start : bisect_left(left, moment, key=itemgetter(0))]]

    def answer(self, row: dict[str, str]) -> Answer:
        moment = self.scheduled(row)
        airport, airline = row["origin"], row["carrier"]
        hour = moment.astimezone(EASTERN_STANDARD).hour
        out: Answer = {
            "airport_delays:minutes_mean_1h": mean(self.delays(airport, moment, 1)),
            "airport_delays:minutes_mean_3h": mean(self.delays(airport, moment, 3)),
            "airport_delays:minutes_mean_24h": mean(self.delays(airport, moment, 24)),
            "airport_delays:late_1h": sum(delay > 15 for delay in self.delays(airport, moment, 1)),
            "aircraft_delays:minutes_last_24h": next(reversed(self.delays(row["tailnum"], moment, 24)), None),
            "airline_traffic:flights_1h": len(self.delays(airline, moment, 1)),
            "airline_traffic:flights_24h": len(self.delays(airline, moment, 24)),
            "airline_traffic:minutes_mean_3h": mean(self.delays(airline, moment, 3)),
            "departure_clock:is_night": hour >= 21 or hour < 6,
            "departure_clock:hour": hour,
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


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def number(text: str) -> float | None:
    return None if text == "NA" else float(text)


def test_a_sample_equals_a_computation_in_plain_python(store: Store) -> None:
    with zipfile.ZipFile(data.data_directory() / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        raw = list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8")))
    plain = PlainPython(raw)
    sample = [raw[i] for i in np.random.default_rng(36).choice(len(raw), 150, replace=False)]
    sample += raw[:5] + raw[-5:]
    for row in sample:
        scheduled = plain.scheduled(row)
        tailnum = "" if row["tailnum"] == "NA" else row["tailnum"]
        entity = {"origin": row["origin"], "tailnum": tailnum, "carrier": row["carrier"], "scheduled": scheduled}
        result = store.get_online_features(demo.SERVICE, [entity], as_of=scheduled)
        assert {name: values[0] for name, values in result.to_dict().items()} == plain.answer(row), row
