"""Snapshots: whole or not there, read by anyone, and never a value that was not written."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from crc32c import crc32c

from fastfeat import Entity, FeatureView, Field, Store
from fastfeat.errors import LayoutMismatch, SnapshotCorrupt, StorageError
from fastfeat.files import Files
from fastfeat.places import Place, open_place
from fastfeat.snapshot import (
    Manifest,
    Part,
    SnapshotInfo,
    checksum_line,
    list_snapshots,
    read_info,
    read_parts,
    remove_snapshots,
    write_snapshot,
)

from .object_store import object_store

US = pa.timestamp("us", "UTC")
HOUR_US = 3_600_000_000
ROWS = pa.schema(
    [
        ("user_id", pa.int64()),
        ("event_timestamp", US),
        ("created_timestamp", US),
        ("_sequence", pa.uint64()),
        ("score", pa.float64()),
        ("name", pa.string()),
        ("vector", pa.list_(pa.float32(), 3)),
    ]
)
HEADS = pa.schema(
    [("user_id", pa.int64()), ("deleted_us", pa.int64()), ("has_dropped", pa.bool_())]
    + [
        (name, pa.int64())
        for name in (
            "dropped_min_event",
            "dropped_min_created",
            "dropped_max_created",
            "dropped_last_event",
            "dropped_last_created",
        )
    ]
)


def rows_of(shard: int, count: int) -> pa.RecordBatch:
    ids = np.arange(count, dtype=np.int64) * 64 + shard
    times = pa.array(ids * HOUR_US).cast(US)
    score = pa.array(ids * 0.25, mask=ids % 5 == 4)
    names = pa.array([None if each % 7 == 3 else f"user {each}" for each in ids], pa.string())
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(ids, 3).astype(np.float32)), 3)
    columns = [pa.array(ids), times, times, pa.array(ids.astype(np.uint64)), score, names, vectors]
    return pa.RecordBatch.from_arrays(columns, schema=ROWS)


def heads_of(shard: int, count: int) -> pa.RecordBatch:
    rows = [
        {"user_id": shard + 64 * n, "deleted_us": None if n % 2 else n, "has_dropped": n % 2 == 1} for n in range(count)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=HEADS)


def parts_of(rows: int, *, shards: int = 3) -> list[Part]:
    """`rows` rows in each shard; heads in the first, no rows in the last, which is all heads."""
    parts = [Part("profile", shard, rows_of(shard, rows), heads_of(shard, 0)) for shard in range(shards)]
    parts[0] = parts[0]._replace(heads=heads_of(0, 4))
    return [*parts, Part("profile", shards, rows_of(shards, 0), heads_of(shards, 2))]


def info_of(sequence: int = 1000) -> SnapshotInfo:
    return SnapshotInfo(
        generation=0,
        sequence=sequence,
        log_start=10,
        log_end=20,
        created_us=5,
        taken_us=6,
        seed=(2**64 - 1, 7),
        definitions=[{"name": "profile"}],
        views={"profile": {"rows": 0, "entities": 3}, "empty": {"rows": 0, "entities": 0}},
    )


def take(place: Place, rows: int = 5, sequence: int = 1000) -> SnapshotInfo:
    return write_snapshot(place, parts_of(rows), lambda: info_of(sequence))


def assert_parts(found: list[Part], expected: list[Part]) -> None:
    assert [(part.view, part.shard) for part in found] == [(part.view, part.shard) for part in expected]
    for one, other in zip(found, expected, strict=True):
        for kind in ("rows", "heads"):
            assert getattr(one, kind).equals(getattr(other, kind), check_metadata=True)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part has its own files."""
    monkeypatch.setattr("fastfeat.snapshot.GROUP_SIZE", 1)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return open_place(Files(), str(tmp_path / "snapshots"))


# --- what is written comes back


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_parts_come_back_as_they_were_written(place: Place, threads: int) -> None:
    taken = take(place)
    assert list_snapshots(place) == [taken.generation]
    assert read_info(place, taken.generation) == taken
    assert_parts(list(read_parts(place, taken.generation, threads=threads)), parts_of(5))


def test_the_info_counts_what_was_written(place: Place) -> None:
    taken = take(place, rows=7)
    assert taken.generation == 1
    assert taken.views == {"profile": {"rows": 21, "entities": 3}, "empty": {"rows": 0, "entities": 0}}
    assert (taken.seed, taken.log_end) == ((2**64 - 1, 7), 20)


def test_empty_parts_take_no_file(place: Place) -> None:
    write_snapshot(place, [Part("profile", 9, rows_of(9, 0), heads_of(9, 0))], info_of)
    assert place.list() == ["00000000000000000001/manifest.json"]
    assert list(read_parts(place, 1)) == []


def test_small_shards_share_files_and_large_ones_do_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastfeat.snapshot.GROUP_SIZE", rows_of(0, 100).nbytes * 1.5)
    parts = [Part("profile", n, rows_of(n, 100), heads_of(n, 0)) for n in range(5)]
    parts += [Part("empty", n, rows_of(n, 1), heads_of(n, 1)) for n in range(3)]
    write_snapshot(place, parts, info_of)
    files = [name.partition("/")[2] for name in place.list()]
    assert files == ["empty/heads/00.arrow", "empty/rows/00.arrow", "manifest.json"] + [
        f"profile/rows/{shard:02d}.arrow" for shard in (0, 2, 4)
    ]
    assert_parts(list(read_parts(place, 1, threads=2)), parts)


def test_a_shard_that_comes_twice_is_refused(place: Place) -> None:
    with pytest.raises(ValueError, match="came twice"):
        write_snapshot(place, [parts_of(2)[0], parts_of(2)[0]], info_of)
    assert place.list() == []


def test_finish_is_called_after_the_last_part_and_before_the_manifest(place: Place) -> None:
    seen: list[object] = []

    def parts() -> Iterator[Part]:
        for part in parts_of(2):
            seen.append(part.shard)
            yield part

    def finish() -> SnapshotInfo:
        seen.append(list_snapshots(place))
        return info_of()

    write_snapshot(place, parts(), finish)
    assert seen == [0, 1, 2, 3, []]


def test_parts_of_one_view_with_two_schemas_are_refused(place: Place) -> None:
    odd = parts_of(2)[1]
    odd = odd._replace(rows=odd.rows.drop_columns(["name"]))
    with pytest.raises(ValueError, match="view 'profile', shard 1: rows have another schema"):
        write_snapshot(place, [parts_of(2)[0], odd], info_of)
    assert place.list() == []


def test_a_view_that_the_info_does_not_name_is_refused(place: Place) -> None:
    with pytest.raises(ValueError, match="does not name: other"):
        write_snapshot(place, [parts_of(2)[0]._replace(view="other")], info_of)
    assert place.list() == []


@pytest.mark.usefixtures("small_groups")
def test_reading_ahead_is_bounded_and_stops_with_the_reader(place: Place) -> None:
    write_snapshot(place, (Part("profile", n, rows_of(n, 1), heads_of(n, 0)) for n in range(40)), info_of)
    opened: list[str] = []

    class Watched(Files):
        def read(self, path: str) -> memoryview:
            opened.append(path)
            return super().read(path)

    reader = read_parts(open_place(Watched(), place.where), 1, threads=2)
    for taken in range(1, 11):
        next(reader)
        assert len(opened) <= 1 + taken + 2
    reader.close()  # type: ignore[attr-defined]
    del reader
    gc.collect()
    assert len(opened) <= 1 + 10 + 3


# --- generations


def test_generations_are_listed_newest_first_and_the_oldest_go(place: Place) -> None:
    assert [take(place, sequence=n).generation for n in (1, 2, 3)] == [1, 2, 3]
    assert list_snapshots(place) == [3, 2, 1]
    remove_snapshots(place, 2)
    assert list_snapshots(place) == [3, 2]
    assert {name.split("/")[0] for name in place.list()} == {f"{n:020d}" for n in (2, 3)}
    assert [read_info(place, n).sequence for n in (3, 2)] == [3, 2]
    remove_snapshots(place, 0)
    assert list(Path(place.where).iterdir()) == []


def test_damaged_snapshots_go_and_count_as_none_that_is_kept(place: Place) -> None:
    for _ in range(4):
        take(place)
    remove_snapshots(place, 2, damaged={3})
    assert list_snapshots(place) == [4, 2]


@pytest.mark.parametrize("fails_in", ["parts", "finish"])
def test_a_snapshot_that_fails_leaves_nothing_and_the_older_one_whole(place: Place, fails_in: str) -> None:
    take(place)
    before = place.list()

    def parts() -> Iterator[Part]:
        yield from parts_of(2)
        if fails_in == "parts":
            raise StorageError("the reader failed")

    def finish() -> SnapshotInfo:
        raise StorageError("the log failed")

    with pytest.raises(StorageError, match="failed"):
        write_snapshot(place, parts(), finish)
    assert place.list() == before
    assert_parts(list(read_parts(place, 1)), parts_of(5))


@pytest.mark.usefixtures("small_groups")
def test_leftovers_of_a_killed_writer_go_and_their_number_is_not_used_again(place: Place) -> None:
    take(place)

    def killed() -> Iterator[Part]:
        yield from parts_of(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_snapshot(place, killed(), info_of)
    assert any(name.startswith("00000000000000000002/") for name in place.list())
    assert list_snapshots(place) == [1]
    assert take(place).generation == 3
    assert {name.split("/")[0] for name in place.list()} == {f"{n:020d}" for n in (1, 3)}


# --- damage


def read_all(place: Place) -> tuple[SnapshotInfo, list[Part]]:
    return read_info(place, 1), list(read_parts(place, 1, threads=2))


def assert_damage_is_found(place: Place, name: str, data: bytes) -> None:
    Path(place.where, name).write_bytes(data)
    with pytest.raises(SnapshotCorrupt):
        read_all(place)


def small(place: Place) -> dict[str, bytes]:
    write_snapshot(place, [Part("profile", 0, rows_of(0, 2), heads_of(0, 1))], info_of)
    return {name: bytes(place.read(name)) for name in place.list()}


CAMPAIGNS = [pytest.param("sampled"), pytest.param("long", marks=pytest.mark.long)]


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_every_truncation_is_found(place: Place, campaign: str) -> None:
    for name, good in small(place).items():
        for size in range(0, len(good), 1 if campaign == "long" else 41):
            assert_damage_is_found(place, name, good[:size])
        Path(place.where, name).write_bytes(good)
    assert_parts(read_all(place)[1], [Part("profile", 0, rows_of(0, 2), heads_of(0, 1))])


def assert_flips_are_found(place: Place, name: str, good: bytes, bits: Iterable[int]) -> None:
    for bit in bits:
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        assert_damage_is_found(place, name, bytes(damaged))
    Path(place.where, name).write_bytes(good)


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_every_flipped_bit_is_found(place: Place, campaign: str) -> None:
    for name, good in small(place).items():
        assert_flips_are_found(place, name, good, range(0, len(good) * 8, 1 if campaign == "long" else 211))
    assert_parts(read_all(place)[1], [Part("profile", 0, rows_of(0, 2), heads_of(0, 1))])


def test_a_skipped_checksum_is_caught(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A positive control of the tests above."""
    monkeypatch.setattr("fastfeat.snapshot.crc32c", lambda data: 7)
    name, good = next((name, data) for name, data in small(place).items() if "/rows/" in name)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        assert_flips_are_found(place, name, good, range(len(good) * 4, len(good) * 8, 7))


@pytest.mark.usefixtures("small_groups")
def test_a_longer_a_missing_and_an_exchanged_file_are_found(place: Place) -> None:
    take(place)
    names = [name for name in place.list() if "/rows/" in name]
    good = {name: bytes(place.read(name)) for name in names}
    assert_damage_is_found(place, names[0], good[names[0]] + b"\0")
    assert_damage_is_found(place, names[0], good[names[1]])
    Path(place.where, names[0]).unlink()
    with pytest.raises(SnapshotCorrupt, match=r"rows/00\.arrow: the file is missing"):
        read_all(place)


def test_a_manifest_in_another_generations_place_is_found(place: Place) -> None:
    take(place)
    place.write("00000000000000000002/manifest.json", place.read("00000000000000000001/manifest.json"))
    with pytest.raises(SnapshotCorrupt, match="holds the manifest of snapshot 1"):
        read_info(place, 2)


@pytest.mark.parametrize("change", ["rows", "schema", "no arrow"])
def test_files_that_only_their_checksum_fits_are_found(place: Place, change: str) -> None:
    """The manifest's other promises are looked at too, not only the checksums."""
    good = rows_of(0, 2)
    place_of = {"rows": good.slice(0, 1), "schema": good.drop_columns(["name"])}.get(change)
    data = pa.BufferOutputStream()
    if place_of is None:
        data.write(b"ARROW1 this is not")
    else:
        with pa.ipc.new_file(data, place_of.schema) as writer:
            writer.write_batch(place_of)
    write_snapshot(place, [Part("profile", 0, good, heads_of(0, 0))], info_of)
    manifest = Manifest.decode(bytes(place.read("00000000000000000001/manifest.json")), "")
    forged = forge(manifest, data.getvalue())
    place.write("00000000000000000001/manifest.json", forged.encode())
    place.write("00000000000000000001/profile/rows/00.arrow", data.getvalue())
    with pytest.raises(SnapshotCorrupt, match="no Arrow file" if change == "no arrow" else "other rows or columns"):
        read_all(place)


def forge(manifest: Manifest, data: pa.Buffer) -> Manifest:
    group = manifest.groups[0]
    assert group.rows
    return replace(manifest, groups=[replace(group, rows=replace(group.rows, size=data.size, crc32c=crc32c(data)))])


def test_a_later_format_is_told_apart_from_damage(place: Place) -> None:
    take(place)
    text = bytes(place.read("00000000000000000001/manifest.json")).partition(b"\n")[2].replace(b": 1,", b": 2,", 1)
    place.write("00000000000000000001/manifest.json", checksum_line(text) + text)
    with pytest.raises(LayoutMismatch, match="a snapshot of format 2, this fastfeat reads 1"):
        read_info(place, 1)


# --- plain Arrow


def test_pyarrow_polars_and_duckdb_read_a_snapshot(place: Place) -> None:
    take(place)
    expected = pa.Table.from_batches([part.rows for part in parts_of(5)])
    files = f"{place.where}/00000000000000000001/profile/rows"
    dataset = ds.dataset(files, format="ipc")
    assert dataset.to_table().equals(expected)
    frame = polars.read_ipc(f"{files}/*.arrow")
    assert frame["_sequence"].to_list() == expected["_sequence"].to_pylist()
    assert frame["name"].to_list() == expected["name"].to_pylist()
    assert frame["vector"].to_list() == expected["vector"].to_pylist()
    assert frame["event_timestamp"].to_list() == expected["event_timestamp"].to_pylist()
    with duckdb.connect() as connection:
        found: Any = connection.sql("select user_id, _sequence, score, name from dataset order by user_id").fetchall()
    columns = expected.select(["user_id", "_sequence", "score", "name"]).sort_by("user_id")
    assert found == [tuple(row.values()) for row in columns.to_pylist()]


def test_the_manifest_is_json_that_a_person_can_read(place: Place) -> None:
    take(place)
    body = json.loads(bytes(place.read("00000000000000000001/manifest.json")))
    assert (body["format"], body["info"]["log_end"]) == (1, 20)
    (group,) = body["groups"]
    assert (group["view"], group["shards"], group["rows"]["counts"]) == ("profile", [0, 1, 2, 3], [5, 5, 5, 0])


def test_a_store_loads_a_snapshot_from_elsewhere(place: Place) -> None:
    take(place)
    user = Entity("user", join_keys={"user_id": "int64"})
    fields = [Field("score", "float64"), Field("name", "string"), Field("vector", "vector<float32, 3>")]
    view = FeatureView("profile", entity=user, schema=fields)
    with Store(64 << 20, clock=lambda: 10**15) as store:
        store.apply([view])
        report = store.load(
            "profile",
            f"{place.where}/00000000000000000001/profile/rows",
            event_time="event_timestamp",
            created_time="created_timestamp",
        )
        assert (report.accepted, report.rejected) == (15, 0)
        names = ["profile:score", "profile:name", "profile:vector"]
        result = store.get_online_features(names, {"user_id": np.array([65, 64], np.int64)}).to_dict()
    assert result["profile:score"] == [16.25, None]
    assert result["profile:vector"] == [[65.0] * 3, [64.0] * 3]


# --- a bucket


def test_a_snapshot_in_a_bucket_is_the_same() -> None:
    with object_store() as store:
        place = open_place(Files(), store.make_bucket("prod/snapshots"))
        first, second = take(place), take(place, rows=2)
        assert list_snapshots(place) == [2, 1]
        assert_parts(list(read_parts(place, first.generation, threads=2)), parts_of(5))
        remove_snapshots(place, 1)
        assert list_snapshots(place) == [second.generation]
        assert_parts(list(read_parts(place, 2)), parts_of(2))
