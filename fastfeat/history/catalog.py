"""The history's catalog: the one file that says which data files are the history, and up to where it covers the log.

    catalog-40.json    the one before the newest stays for whoever has to look
    catalog-42.json    {"crc32c": ..., "catalog": {"number": 42, "covered": ..., "files": [...], "deletes": [...]}}
    user/07/41.parquet, user/deletes/39.parquet      named by the newest catalog, or no part of the history

Promise:  a catalog never changes; a change of the history is a new catalog with a higher number, written whole and
          durable after the files that it names.
Errors:   HistoryCorrupt where the newest catalog is damaged or names a file that is gone. Why not the one before it:
          what the newest one covered may have left the log already, and an older state would lose it without a word.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Self

from crc32c import crc32c

from ..errors import HistoryCorrupt
from ..places import Place

FORMAT = 1  # of catalogs and row files; a reader of this version reads no other
CATALOG_NAME = re.compile(r"catalog-(\d+)\.json")
DATA_NAME = re.compile(r"\w+/(?:\d{2}|deletes)/(\d+)\.parquet")


class Covered(NamedTuple):
    """What of the log the history holds: every row with a smaller sequence, every record before the position."""

    sequence: int
    position: int


NOTHING_COVERED = Covered(0, 0)


@dataclass(frozen=True, slots=True)
class RowFile:
    """One file of rows of a view and bucket; its footer is checked by itself, since a read needs nothing else whole."""

    name: str
    view: str
    bucket: int
    rows: int
    size: int
    crc32c: int
    footer_size: int
    footer_crc32c: int
    sequences: tuple[int, int]  # least and greatest, as the next two (us)
    event_times: tuple[int, int]
    created_times: tuple[int, int]
    erased: int  # the number of the newest deletes that were applied to it, 0 for none


@dataclass(frozen=True, slots=True)
class DeletesFile:
    """All deletes of a view, the greatest time per key."""

    name: str
    view: str
    number: int
    rows: int
    size: int
    crc32c: int


@dataclass(frozen=True)
class Catalog:
    """One state of the history."""

    number: int = 0
    covered: Covered = NOTHING_COVERED
    files: tuple[RowFile, ...] = ()
    deletes: tuple[DeletesFile, ...] = ()
    _by_bucket: dict[tuple[str, int], list[RowFile]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_bucket: dict[tuple[str, int], list[RowFile]] = defaultdict(list)
        for file in self.files:
            by_bucket[file.view, file.bucket].append(file)
        object.__setattr__(self, "_by_bucket", dict(by_bucket))

    def files_of(self, view: str, bucket: int) -> list[RowFile]:
        return self._by_bucket.get((view, bucket), [])

    def buckets(self, view: str | None = None) -> list[tuple[str, int]]:
        """(view, bucket) of all that hold rows, in order."""
        return sorted(key for key in self._by_bucket if view in (None, key[0]))

    def deletes_of(self, view: str) -> DeletesFile | None:
        return next((each for each in self.deletes if each.view == view), None)

    def names(self) -> set[str]:
        return {each.name for each in self.files} | {each.name for each in self.deletes}

    def after_add(self, files: Iterable[RowFile], deletes: Iterable[DeletesFile], covered: Covered) -> Self:
        by_view = {each.view: each for each in (*self.deletes, *deletes)}
        return replace(self, covered=covered, files=(*self.files, *files), deletes=tuple(by_view.values()))

    def after_merge(self, sources: Iterable[RowFile], merged: RowFile | None) -> Self:
        gone = set(sources)
        files = [each for each in self.files if each not in gone]
        return replace(self, files=(*files, *([merged] if merged else [])))


def catalog_name(number: int) -> str:
    return f"catalog-{number}.json"


def row_file_name(view: str, bucket: int, number: int) -> str:
    return f"{view}/{bucket:02}/{number}.parquet"


def deletes_name(view: str, number: int) -> str:
    return f"{view}/deletes/{number}.parquet"


def number_of(name: str) -> int | None:
    """The number in a name that the history gives, None for a file that is none of its."""
    match = CATALOG_NAME.fullmatch(name) or DATA_NAME.fullmatch(name)
    return int(match[1]) if match else None


def catalog_numbers(names: Iterable[str]) -> list[int]:
    """Of the catalogs among the names, oldest first."""
    return sorted(int(match[1]) for name in names if (match := CATALOG_NAME.fullmatch(name)))


def encode_catalog(catalog: Catalog) -> bytes:
    body = {
        "format": FORMAT,
        "number": catalog.number,
        "covered": catalog.covered._asdict(),
        "files": [asdict(each) for each in catalog.files],
        "deletes": [asdict(each) for each in catalog.deletes],
    }
    return json.dumps({"crc32c": checksum_of(body), "catalog": body}, separators=(",", ":")).encode()


def checksum_of(body: Any) -> int:
    """Of the values, not of how they are spelled: what parses to the same is the same."""
    return crc32c(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def decode_catalog(data: bytes | memoryview) -> Catalog:
    """Raises ValueError that says what is wrong with the bytes."""
    try:
        outer = json.loads(bytes(data))
        stated, body = outer["crc32c"], outer["catalog"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"it can't be parsed ({error})") from None
    if checksum_of(body) != stated:
        raise ValueError("its checksum does not match")
    if body["format"] != FORMAT:
        raise ValueError(f"it has format {body['format']}, this version reads {FORMAT}")
    files = (RowFile(**{name: paired(value) for name, value in each.items()}) for each in body["files"])
    deletes = (DeletesFile(**each) for each in body["deletes"])
    return Catalog(body["number"], Covered(**body["covered"]), tuple(files), tuple(deletes))


def paired(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read_newest(place: Place, names: Iterable[str]) -> Catalog | None:
    """The newest catalog of the files listed, None where there is none. Raises HistoryCorrupt: see above."""
    present = set(names)
    numbers = catalog_numbers(present)
    if not numbers:
        if data := sorted(name for name in present if DATA_NAME.fullmatch(name)):
            raise HistoryCorrupt(
                f"{place.where}: {len(data)} data files (such as {data[0]}) and no catalog that says which of them"
                " count; restore the directory from a backup"
            )
        return None
    catalog = read_catalog(place, numbers[-1], earlier=numbers[:-1])
    if missing := sorted(catalog.names() - present):
        raise HistoryCorrupt(
            f"{place.where}: {catalog_name(catalog.number)} names {len(missing)} files that are not there, such as"
            f" {missing[0]}; restore them from a backup"
        )
    return catalog


def read_catalog(place: Place, number: int, earlier: list[int]) -> Catalog:
    name = catalog_name(number)
    try:
        catalog = decode_catalog(place.read(name))
        if catalog.number != number:
            raise ValueError(f"it says that it is number {catalog.number}")
    except ValueError as error:
        raise HistoryCorrupt(
            f"{place.where}: {name} is damaged: {error}. {what_an_earlier_one_holds(place, earlier)} Rows that only"
            f" {name} covers may be in no log any more, so no older state is taken for it: restore it from a backup"
        ) from None
    return catalog


def what_an_earlier_one_holds(place: Place, numbers: list[int]) -> str:
    for number in reversed(numbers):
        try:
            covered = decode_catalog(place.read(catalog_name(number))).covered
        except (ValueError, OSError):
            continue
        return (
            f"{catalog_name(number)} is sound and covers rows below sequence {covered.sequence} and the log before"
            f" position {covered.position}."
        )
    return "No earlier catalog is sound."
