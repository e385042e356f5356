"""Training sets against Polars and DuckDB, all from the same unsorted Arrow tables; and memory over a long history.

join     1.75 M labels x 1.75 M rows over 5,000 entities: the last row before each label; Polars: sort both, join_asof
windows  six windows at each of 1.75 M events: Polars: sort, rolling; DuckDB: window functions over RANGE
feast    100,000 labels x 100,000 rows of a file: Feast's own historical retrieval, which runs in a process of its own
memory   a store whose history is ten times the memory that its training set is allowed

The peers take turns (Feast's rounds follow ours); a time is the median of the rounds. Answers are compared: values bit
for bit, means (which the peers sum in floating point) to 12 digits.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fastfeat import FeatureView, Field, Store
from fastfeat.training import join_bucket

from . import data, events, programs
from .measure import Findings, Size, quiet

PRICE: Final = FeatureView("price", entity=events.CARD, schema=[Field("amount", "float64")])
ROUNDS: Final = 7
FEAST_ROUNDS: Final = 3
FEAST_ROWS: Final = 100_000  # Feast pairs each label with all rows of its entity: 2 million pairs
FEAST_ROWS_EACH: Final = 20
DAYS: Final = events.DAYS
FLOOR_COLUMNS: Final = {"card_id": pa.int64(), "event_timestamp": pa.int64(), "amount": pa.float64()}

MEMORY_BYTES: Final = 128 << 20
MEMORY_FACTOR: Final = 10  # a history's rows in memory over what training is allowed
LONG: Final = FeatureView(
    "long", entity=events.CARD, schema=[Field(f"f{i}", "float64") for i in range(10)], keep="latest"
)
LONG_ROW_BYTES: Final = 8 * (1 + 3 + 10)
LONG_LABELS: Final = 100_000


def sized(size: Size) -> int:
    return size.entities // 20 if size.smoke else events.ENTITIES


def labels_of(entities: int) -> pa.Table:
    rng = np.random.default_rng(data.SEED + 1)
    count = entities * events.EVENTS_EACH
    times = events.START_US + rng.integers(0, 30 * events.DAY_US, count)
    table = events.event_table(rng.integers(0, entities, count), times, np.zeros(count))
    return table.drop_columns(["amount"])


def turns(calls: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds and the last answer of each; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    answers: dict[str, Any] = {}
    for turn in range(rounds + 1):
        for name, call in calls.items() if turn % 2 == 0 else reversed(calls.items()):
            with quiet():
                began = time.perf_counter()
                answers[name] = call()
                seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values[1:])) for name, values in seconds.items()}, answers


# --- the last row before each label


def measure_join(size: Size) -> Findings:
    findings = Findings()
    rows, labels = events.events(sized(size)), labels_of(sized(size))
    rows_polars, labels_polars = pl.from_arrow(rows), pl.from_arrow(labels)
    assert isinstance(rows_polars, pl.DataFrame)
    assert isinstance(labels_polars, pl.DataFrame)

    def polars() -> pl.DataFrame:
        left, right = labels_polars.sort("event_timestamp"), rows_polars.sort("event_timestamp")
        return left.join_asof(right, on="event_timestamp", by="card_id", check_sortedness=False)

    seconds, answers = turns(
        {"fastfeat": lambda: join_bucket(labels, {"price": rows}, [PRICE], ["price:amount"]), "polars": polars},
        1 if size.smoke else ROUNDS,
    )
    ours = pl.from_arrow(answers["fastfeat"].rename_columns([*labels.schema.names, "amount"]))
    assert isinstance(ours, pl.DataFrame)
    findings.checksums["training.join"] = check(in_order(ours), in_order(answers["polars"]))
    findings.rates["training.join"] = {f"{name}_s": value for name, value in seconds.items()}
    findings.bars["training.join.ratio_polars"] = seconds["fastfeat"] / seconds["polars"]
    return findings


def in_order(frame: pl.DataFrame) -> dict[str, np.ndarray]:
    """Rows of equal key and time have equal answers, so any order of them will do."""
    frame = frame.sort("card_id", "event_timestamp")
    return {name: frame[name].to_numpy() for name in frame.columns if name != "event_timestamp"}


def check(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance: float = 0.0) -> str:
    """The checksum of ours. Raises AssertionError where theirs differ."""
    for name, values in theirs.items():
        if not np.allclose(ours[name], values, rtol=tolerance, atol=0, equal_nan=True):
            raise AssertionError(f"{name}: the peers' answers differ")
    return data.checksum(np.column_stack(list(ours.values())))


# --- six windows at each event


def measure_windows(size: Size) -> Findings:
    findings = Findings()
    rows = events.events(sized(size))
    labels = rows.drop_columns(["amount"])
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    # DuckDB takes 2.2 times as long where the times have a zone, and 1.3 times where they have none.
    in_microseconds = rows.set_column(1, "event_timestamp", rows.column("event_timestamp").cast(pa.int64()))
    seconds, answers = turns(
        {
            "fastfeat": lambda: join_bucket(
                labels, {"payments": rows}, [events.PAYMENTS, events.SPENDING, events.WINDOWS], "windows"
            ),
            "duckdb": lambda: windows_duckdb(in_microseconds),
            "polars": lambda: windows_polars(frame),
        },
        1 if size.smoke else 3,
    )
    names = [f"{what}_{days}" for days in DAYS for what in ("count", "mean")]
    seconds["floor"], floor = floor_of_windows(rows, 1 if size.smoke else ROUNDS)
    for name, ours_array, array in zip(names, answers["fastfeat"].columns[2:], floor, strict=True):
        if not np.allclose(ours_array.to_numpy(), array, rtol=1e-9, atol=0, equal_nan=True):
            raise AssertionError(f"{name}: the floor's answers differ")
    ours = pl.from_arrow(answers["fastfeat"].rename_columns(["card_id", "event_timestamp", *names]))
    theirs = pl.from_arrow(answers["duckdb"])
    assert isinstance(ours, pl.DataFrame)
    assert isinstance(theirs, pl.DataFrame)
    findings.checksums["training.windows"] = check(in_order(ours), in_order(theirs), 1e-12)
    findings.rates["training.windows"] = {f"{name}_s": value for name, value in seconds.items()}
    for peer in ("duckdb", "polars"):
        findings.bars[f"training.windows.ratio_{peer}"] = seconds["fastfeat"] / seconds[peer]
    findings.bars["training.windows.floor_ratio_polars"] = seconds["floor"] / seconds["polars"]
    return findings


def floor_of_windows(rows: pa.Table, rounds: int) -> tuple[float, data.Floats]:
    """Median seconds of plain C, see floors.c, and its answers: [column, row]. The first round is not counted."""
    columns = [rows.column(name).cast(kind).to_numpy() for name, kind in FLOOR_COLUMNS.items()]
    head = np.array([len(rows), columns[0].max() + 1, events.START_US], np.uint64)
    with tempfile.TemporaryDirectory(prefix="fastfeat-floor-") as name:
        given, taken = Path(name) / "rows", Path(name) / "out"
        given.write_bytes(b"".join(part.tobytes() for part in (head, *columns)))
        said = programs.run([str(programs.floors()), "windows", str(given), str(rounds + 1), str(taken)])
        return float(np.median(json.loads(said)["seconds"][1:])), np.fromfile(taken).reshape(-1, len(rows))


def windows_duckdb(rows: pa.Table) -> pa.Table:
    columns = ", ".join(
        f"count(amount) OVER w{days} AS count_{days}, avg(amount) OVER w{days} AS mean_{days}" for days in DAYS
    )
    windows = ", ".join(
        f"w{days} AS (PARTITION BY card_id ORDER BY event_timestamp RANGE BETWEEN {days * events.DAY_US} PRECEDING"
        " AND 1 PRECEDING)"
        for days in DAYS
    )
    with duckdb.connect() as connection:
        connection.register("payments", rows)
        query = f"SELECT card_id, event_timestamp, {columns} FROM payments WINDOW {windows}"
        return connection.sql(query).to_arrow_table()


def windows_polars(frame: pl.DataFrame) -> list[pl.DataFrame]:
    frame = frame.sort("card_id", "event_timestamp")
    value = pl.col("amount")
    return [
        frame.rolling("event_timestamp", period=f"{days}d", closed="left", group_by="card_id").agg(
            value.count().alias("count"), value.mean().alias("mean")
        )
        for days in DAYS
    ]


# --- Feast


def measure_feast(size: Size) -> Findings:
    findings = Findings()
    try:
        python = programs.feast_python(may_install=not size.smoke)
    except RuntimeError as reason:
        findings.unmeasured["training.feast.ratio"] = str(reason)
        return findings
    rows, labels = feast_tables(400 if size.smoke else FEAST_ROWS)
    rounds = 1 if size.smoke else FEAST_ROUNDS
    with tempfile.TemporaryDirectory(prefix="fastfeat-feast-") as name:
        folder = Path(name)
        pq.write_table(rows, folder / "rows.parquet")
        pq.write_table(labels, folder / "labels.parquet")

        def fastfeat() -> pa.Table:
            return join_bucket(labels, {"price": pq.read_table(folder / "rows.parquet")}, [PRICE], ["price:amount"])

        seconds, answers = turns({"fastfeat": fastfeat}, rounds)
        # -I: a module beside the program (concurrent) would hide the standard library's.
        said = programs.run([str(python), "-I", str(programs.HERE / "feast_peer.py"), name, str(rounds)])
        theirs = pl.read_parquet(folder / "answer.parquet")
    seconds["feast"] = float(np.median(json.loads(said)))
    ours = pl.from_arrow(answers["fastfeat"].rename_columns([*labels.schema.names, "amount"]))
    assert isinstance(ours, pl.DataFrame)
    findings.checksums["training.feast"] = check(in_order(ours), in_order(theirs))
    findings.rates["training.feast"] = {f"{name}_s": value for name, value in seconds.items()}
    findings.bars["training.feast.ratio"] = seconds["fastfeat"] / seconds["feast"]
    return findings


def feast_tables(count: int) -> tuple[pa.Table, pa.Table]:
    """So many rows and labels. Feast leaves out labels before their entity's first row: each entity begins with one."""
    rng = np.random.default_rng(data.SEED + 3)
    entities = count // FEAST_ROWS_EACH
    keys, label_keys = rng.integers(0, entities, (2, count))
    times, label_times = events.START_US + rng.integers(0, 30 * events.DAY_US, (2, count))
    keys[:entities], times[:entities] = np.arange(entities), events.START_US
    labels = events.event_table(label_keys, label_times, np.zeros(count)).drop_columns(["amount"])
    return events.event_table(keys, times, np.round(rng.lognormal(3, 1, count), 2)), labels


# --- memory


def measure_memory(size: Size) -> Findings:
    findings = Findings()
    allowed = (32 << 20) if size.smoke else MEMORY_BYTES
    rows = (1 << 16) if size.smoke else MEMORY_FACTOR * allowed // LONG_ROW_BYTES
    with tempfile.TemporaryDirectory(prefix="fastfeat-training-") as folder:
        fill(Path(folder), rows)
        command = [sys.executable, "-m", "benchmarks.training", folder, str(allowed)]
        said = programs.run(command)
        peak, joined, seconds, answered = said.split()
    findings.rates["training.memory"] = {
        "rows": rows,
        "labels": float(joined),
        "allowed_mb": allowed / 1e6,
        "peak_mb": int(peak) / 1e6,
        "seconds": float(seconds),
    }
    findings.checksums["training.memory"] = answered
    findings.bars["training.memory.ratio"] = int(peak) / allowed
    return findings


def fill(folder: Path, rows: int) -> None:
    """A store whose history has the rows, of which memory keeps the last of each entity; and a file of labels."""
    with Store.open(str(folder / "data"), fsync="off") as store:
        store.apply(LONG)
        for part in long_rows(rows):
            store.load(LONG, part)
        store.flush_history()
    rng = np.random.default_rng(data.SEED + 2)
    keys = rng.integers(0, events.ENTITIES, min(rows, LONG_LABELS))
    times = events.START_US + rng.integers(0, 30 * events.DAY_US, len(keys))
    pq.write_table(events.event_table(keys, times, np.zeros(len(keys))), folder / "labels.parquet")


def long_rows(rows: int) -> Iterator[pa.Table]:
    rng = np.random.default_rng(data.SEED)
    step = 1 << 18
    for start in range(0, rows, step):
        count = min(step, rows - start)
        times = np.sort(events.START_US + rng.integers(0, 30 * events.DAY_US, count))
        table = events.event_table(rng.integers(0, events.ENTITIES, count), times, np.zeros(count))
        for field in LONG.schema:
            table = table.append_column(field.name, pa.array(rng.normal(size=count)))
        yield table.drop_columns(["amount"])


def join_in_little(folder: str, allowed: int) -> None:
    """In a process of its own: print the most memory that training took over what the open store has, the rows that it
    made, its seconds, and a checksum of its last feature.
    """
    with Store.open(str(Path(folder, "data")), read_only=True) as store:
        features = [f"{LONG.name}:{field.name}" for field in LONG.schema]
        pa.default_memory_pool().release_unused()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # from here on the kernel notes the peak anew
        before = status_bytes("VmRSS")
        began = time.perf_counter()
        reader = store.get_historical_features(Path(folder, "labels.parquet"), features, memory_bytes=allowed)
        joined, answered = 0, hashlib.blake2b(digest_size=8)
        for batch in reader:
            joined += batch.num_rows
            answered.update(batch.columns[-1].to_numpy(zero_copy_only=False))
        seconds = time.perf_counter() - began
        print(max(status_bytes("VmHWM") - before, 0), joined, seconds, answered.hexdigest())


def status_bytes(name: str) -> int:
    """A size that the kernel says of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


if __name__ == "__main__":
    join_in_little(sys.argv[1], int(sys.argv[2]))
