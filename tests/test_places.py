"""Places: a directory, a file:// URL and a bucket keep the same promises."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastfeat.errors import DiskFull, ReadOnly, StorageError
from fastfeat.files import Files
from fastfeat.places import DirectoryPlace, Place, open_place

from .object_store import ObjectStore, object_store


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as running:
        yield running


@pytest.fixture(params=["directory", "file-url", "bucket", "prefix"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "directory":
        return open_place(Files(), str(tmp_path / "not there yet"))
    if request.param == "file-url":
        return open_place(Files(), f"file://{tmp_path}/with%20space")
    store: ObjectStore = request.getfixturevalue("store")
    return open_place(Files(), store.make_bucket("some/prefix" if request.param == "prefix" else ""))


def test_what_was_written_is_read_back(place: Place) -> None:
    place.write("a/b/one", b"first")
    place.write("two", memoryview(b"second"))
    place.write("empty", b"")
    assert place.list() == ["a/b/one", "empty", "two"]
    assert [bytes(place.read(name)) for name in place.list()] == [b"first", b"", b"second"]
    assert [place.size(name) for name in place.list()] == [5, 0, 6]


def test_a_later_write_replaces_the_file_whole(place: Place) -> None:
    place.write("name", b"a longer text")
    place.write("name", b"short")
    assert (bytes(place.read("name")), place.size("name"), place.list()) == (b"short", 5, ["name"])


def test_names_are_listed_by_prefix_and_sorted(place: Place) -> None:
    for name in ("b/2", "a/1", "b/10", "bc", "b/d/3"):
        place.write(name, name.encode())
    assert place.list("b") == ["b/10", "b/2", "b/d/3", "bc"]
    assert place.list("b/") == ["b/10", "b/2", "b/d/3"]
    assert place.list("b/1") == ["b/10"]
    assert place.list("no/such") == []


def test_a_sub_place_holds_the_names_below_it(place: Place) -> None:
    below = place.sub("b")
    assert below.list() == []
    below.write("x/1", b"1")
    place.write("c", b"2")
    assert below.list() == ["x/1"]
    assert place.list() == ["b/x/1", "c"]
    assert bytes(below.sub("x").read("1")) == b"1"


def test_open_gives_random_access(place: Place) -> None:
    place.write("f", bytes(range(200)))
    with place.open("f") as file:
        assert file.size() == 200
        file.seek(150)
        assert file.read(3) == bytes([150, 151, 152])


def test_a_removed_name_is_gone_and_may_be_removed_again(place: Place) -> None:
    place.write("d/f", b"1")
    place.remove("d/f")
    place.remove("d/f")
    place.tidy()
    assert place.list() == []
    place.write("d/f", b"2")
    assert bytes(place.read("d/f")) == b"2"


def test_a_missing_name_is_a_file_not_found(place: Place) -> None:
    for method in (place.read, place.size, place.open):
        with pytest.raises(FileNotFoundError):
            method("nothing")


# --- directories


def test_a_local_file_is_read_through_a_mapping(tmp_path: Path) -> None:
    place = open_place(Files(), str(tmp_path))
    place.write("f", b"x" * 10_000)
    with place.open("f") as file:
        assert file.read_buffer(10_000).address % os.sysconf("SC_PAGE_SIZE") == 0


def test_half_written_files_are_not_listed_and_tidied_away(tmp_path: Path) -> None:
    class Dying(Files):
        def rename(self, old: str, new: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_place(Dying(), str(tmp_path)).write("d/f", b"1")
    place = open_place(Files(), str(tmp_path))
    assert any(files for _, _, files in os.walk(tmp_path))
    assert place.list() == []
    place.tidy()
    assert os.listdir(tmp_path) == []


def test_every_new_directory_is_synced_into_its_parent_before_it_is_used(tmp_path: Path) -> None:
    calls: list[tuple[str, str]] = []

    class Watched(Files):
        def make_directory(self, path: str) -> None:
            calls.append(("make", path))
            super().make_directory(path)

        def sync_directory(self, path: str) -> None:
            calls.append(("sync", path))
            super().sync_directory(path)

    root = f"{tmp_path}/root"
    place = open_place(Watched(), root)
    place.sub("a").write("b/f", b"1")
    expected = [("make", root), ("sync", str(tmp_path)), ("make", f"{root}/a"), ("sync", root)]
    expected += [("make", f"{root}/a/b"), ("sync", f"{root}/a"), ("sync", f"{root}/a/b")]
    assert calls == expected
    calls.clear()
    place.write("a/b/g", b"1")
    assert calls == [("sync", f"{root}/a/b")]


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EROFS, ReadOnly), (errno.EIO, StorageError)],
)
def test_a_disk_that_refuses_is_a_typed_error_that_names_the_file(
    tmp_path: Path, code: int, error: type[StorageError]
) -> None:
    class Refusing(Files):
        def sync(self, fd: int) -> None:
            raise OSError(code, os.strerror(code))

    place = DirectoryPlace(Refusing(), str(tmp_path))
    with pytest.raises(error, match=f"cannot write {tmp_path}/f") as caught:
        place.write("f", b"1")
    assert type(caught.value) is error
    assert place.list() == []


# --- URLs


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://host/x", "Unrecognized filesystem type"),
        ("s3://bucket/x?bogus=1", "Unexpected query parameter in S3 URI: 'bogus'"),
        ("s3://", "there is no bucket ''"),
    ],
)
def test_an_unknown_url_is_refused_with_what_is_wrong(url: str, says: str) -> None:
    with pytest.raises(StorageError, match=says):
        open_place(Files(), url)


def test_a_secret_in_a_url_is_in_no_message() -> None:
    with pytest.raises(StorageError) as caught:
        open_place(Files(), "s3://key:secret@bucket/x?bogus=1")
    assert "secret" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_known_at_once(store: ObjectStore) -> None:
    with pytest.raises(StorageError, match="there is no bucket 'absent'; make it"):
        open_place(Files(), store.url("absent/x"))


def test_a_bucket_that_goes_away_is_a_storage_error(store: ObjectStore) -> None:
    url = store.make_bucket()
    place = open_place(Files(), url)
    store.client.delete_bucket(Bucket=url.removeprefix("s3://").partition("?")[0])
    with pytest.raises(StorageError, match=r"cannot write s3://.*/f: .*credentials"):
        place.write("f", b"1")


@pytest.mark.torture  # the library waits for six seconds
def test_an_unreachable_host_is_a_storage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(StorageError, match=r"cannot reach s3://bucket/x.*the network"):
        open_place(Files(), "s3://bucket/x?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1")
