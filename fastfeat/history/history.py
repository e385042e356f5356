"""History: every row ever accepted, in Parquet, one entity's rows found without reading the others.

    add --bucket, sort--> row files --then--> catalog            rows: catalog -> files of the bucket -> row groups
    compact: the files of a bucket -> one file --then--> catalog --then--> the old files go

Layout:      catalog-<n>.json names <view>/<bucket>/<n>.parquet and <view>/deletes/<n>.parquet. The bucket is the top 5
             bits of the key's hash. No number is given twice, so nothing is ever written over.
Promise:     what `add` was given is seen as a whole or not at all, and is durable when it returns. `covered` never says
             more than the files hold. A file goes when no catalog in use names it.
Concurrency: any number of threads may read, add and compact; adds take turns, and so do compactions. A reader works on
             the catalog that it began with. Nothing here belongs on an event loop: calls wait for disks and networks.
Errors:      HistoryCorrupt where a file is missing or not what was written; DiskFull, ReadOnly and StorageError from
             the place, after which the history is what it was.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ReadOnly, StorageError
from ..places import Place
from .audit import audit
from .cache import Cache
from .catalog import (
    Catalog,
    Covered,
    DeletesFile,
    RowFile,
    catalog_name,
    catalog_numbers,
    deletes_name,
    encode_catalog,
    number_of,
    read_newest,
    row_file_name,
)
from .deletes import DELETED, erase, merge_deletes, read_deletes, write_deletes
from .merging import files_to_merge, merge_rows
from .rowfile import (
    CREATED_TIME,
    EVENT_TIME,
    SEQUENCE,
    TIMES,
    Footer,
    Key,
    key_range,
    keys_of,
    read_footer,
    read_group,
    read_groups,
    sort_rows,
    write_row_file,
)

BUCKET_BITS = 5
BUCKETS = 1 << BUCKET_BITS
CACHE_SIZE = 96 << 20  # of footers (those of 100 million rows x 10 float64 fit), and as much of decoded row groups
CATALOGS_KEPT = 2
READERS = 8  # row groups read at once: they wait for a disk or a network more than they work


@dataclass(frozen=True)
class CompactReport:
    """What a compaction did to the buckets that it wrote anew."""

    buckets: int = 0
    files_before: int = 0
    files_after: int = 0
    rows_erased: int = 0
    size_before: int = 0
    size_after: int = 0

    def plus(self, sources: Sequence[RowFile], merged: RowFile | None) -> Self:
        after = [merged] if merged else []
        return replace(
            self,
            buckets=self.buckets + 1,
            files_before=self.files_before + len(sources),
            files_after=self.files_after + len(after),
            rows_erased=self.rows_erased + sum(each.rows for each in sources) - sum(each.rows for each in after),
            size_before=self.size_before + sum(each.size for each in sources),
            size_after=self.size_after + sum(each.size for each in after),
        )


class History:
    """The rows of all views in one place."""

    def __init__(
        self, place: Place, catalog: Catalog, names: Iterable[str], *, read_only: bool, cache_size: int
    ) -> None:
        self._place = place
        self._read_only = read_only
        self._catalog = catalog
        self._numbers = count(1 + max((n for name in names if (n := number_of(name)) is not None), default=0))
        self._catalogs = [catalog_name(number) for number in catalog_numbers(names)]
        self._lock = threading.Lock()  # of what is current, pinned and doomed; never held while a file is touched
        self._installing = threading.Lock()
        self._adding = threading.Lock()
        self._compacting = threading.Lock()
        self._pins: Counter[int] = Counter()  # catalog number -> readers at work on it
        self._doomed: dict[str, int] = {}  # name -> the number of the first catalog that does without it
        self._footers: Cache[Footer] = Cache(cache_size)
        self._tables: Cache[pa.Table] = Cache(cache_size)
        self._readers = ThreadPoolExecutor(READERS, "history")  # starts a thread when there is something to read

    @classmethod
    def open(cls, place: Place, *, read_only: bool = False, cache_size: int = CACHE_SIZE) -> Self:
        """The history as its newest catalog says; files of ours that it does not name are removed.

        read_only: nothing is removed, and a place that holds none is an empty history. Raises HistoryCorrupt.
        """
        names = place.list()
        newest = read_newest(place, names)
        if newest is None and not read_only:
            # From the first file on there is a catalog: files without one mean that it was lost.
            newest = Catalog()
            place.write(catalog_name(newest.number), encode_catalog(newest))
            names = [*names, catalog_name(newest.number)]
        history = cls(place, newest or Catalog(), names, read_only=read_only, cache_size=cache_size)
        if not read_only:
            history._remove_strays(names)
        return history

    def _remove_strays(self, names: Iterable[str]) -> None:
        """What an add or a compaction left that did not come to its end. Files that have no name of ours are let be."""
        self._place.tidy()
        self._catalogs = self._catalogs[-CATALOGS_KEPT:]
        kept = {*self._catalog.names(), *self._catalogs}
        for name in names:
            if name not in kept and number_of(name) is not None:
                self._place.remove(name)

    @property
    def covered(self) -> Covered:
        """What of the log the history holds."""
        return self._catalog.covered

    # --- writing

    def add(
        self,
        rows: Mapping[str, pa.Table],
        hashes: Mapping[str, npt.NDArray[np.uint64]],
        deletes: Mapping[str, pa.Table],
        covered: Covered,
    ) -> None:
        """Take rows and deletes of any views; they and `covered` are durable when this returns.

        rows:    join keys, event_timestamp, created_timestamp, _sequence, then the fields; rows in any order.
        hashes:  of each row's key.
        deletes: join keys and deleted_us.
        covered: what of the log the history holds with these.
        Raises ValueError (a row's sequence is covered before this call, or not after it), ReadOnly, DiskFull,
        StorageError.
        """
        self._check_writable()
        with self._adding:
            check_sequences(rows, self.covered, covered)
            number = next(self._numbers)
            with self._new_files() as names:
                files = [
                    file for view in rows for file in self._write_rows(view, number, rows[view], hashes[view], names)
                ]
                erased = [self._write_deletes(view, number, deletes[view], names) for view in deletes]
            self._install(lambda now: now.after_add(files, erased, covered), names)
        with suppress(StorageError):  # what was added is; a file that can't go now goes later
            self._collect()

    def _write_rows(
        self, view: str, number: int, table: pa.Table, hashes: npt.NDArray[np.uint64], names: list[str]
    ) -> Iterator[RowFile]:
        for bucket, part in split(table, hashes):
            names.append(row_file_name(view, bucket, number))
            if file := write_row_file(self._place, view, bucket, number, [sort_rows(part)]):
                yield file

    def _write_deletes(self, view: str, number: int, deletes: pa.Table, names: list[str]) -> DeletesFile:
        names.append(deletes_name(view, number))
        old = self._catalog.deletes_of(view)
        merged = merge_deletes(read_deletes(self._place, old) if old else None, deletes)
        return write_deletes(self._place, view, number, merged)

    @contextmanager
    def _new_files(self) -> Iterator[list[str]]:
        """Names of files that no catalog can name yet: they go again where what is done here fails."""
        names: list[str] = []
        try:
            yield names
        except BaseException:
            for name in names:
                with suppress(StorageError):
                    self._place.remove(name)
            raise

    def _install(self, change: Callable[[Catalog], Catalog], names: list[str]) -> None:
        """Make the changed catalog the current one, once it is durable; `names` are the new files that it names."""
        with self._installing:
            old = self._catalog
            new = replace(change(old), number=next(self._numbers))
            name = catalog_name(new.number)
            try:
                self._place.write(name, encode_catalog(new))
            except BaseException:
                # Whether it is there is not known. So its files stay until another one of a higher number is durable.
                with self._lock:
                    self._doomed |= dict.fromkeys([*names, name], new.number)
                raise
            with self._lock:
                self._catalog = new
                self._catalogs.append(name)
                gone = [*(old.names() - new.names()), *self._catalogs[:-CATALOGS_KEPT]]
                self._catalogs = self._catalogs[-CATALOGS_KEPT:]
                self._doomed |= dict.fromkeys(gone, new.number)

    def _collect(self) -> None:
        """Remove the files that neither the current catalog nor a reader's names."""
        with self._lock:
            oldest = min([self._catalog.number, *self._pins])
            ready = [name for name, number in self._doomed.items() if number <= oldest]
        for name in ready:
            self._place.remove(name)
            with self._lock:
                self._doomed.pop(name, None)

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnly(f"the history at {self._place.where} was opened read-only; open it for writing")

    # --- reading

    @contextmanager
    def _reading(self) -> Iterator[Catalog]:
        """The current catalog, whose files stay for as long as this is held."""
        with self._lock:
            catalog = self._catalog
            self._pins[catalog.number] += 1
        try:
            yield catalog
        finally:
            with self._lock:
                self._pins[catalog.number] -= 1
                if not self._pins[catalog.number]:
                    del self._pins[catalog.number]
            with suppress(StorageError):  # a read is no worse for it; a compaction says so
                self._collect()

    def rows(
        self, view: str, keys: pa.Table, hashes: npt.NDArray[np.uint64], columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Every row of these entities as it was added, deleted or not, in no order that is promised.

        keys:    a row per entity, its join keys in the view's order; twice the same counts once.
        hashes:  of each of them.
        columns: fields to read beside join keys, times and sequence; None is all.
        A view without any file gives an empty table that has no fields.
        """
        wanted: dict[int, dict[Key, None]] = defaultdict(dict)
        for key, bucket in zip(keys_of(keys, keys.column_names), bucket_of(hashes).tolist(), strict=True):
            wanted[bucket][key] = None
        with self._reading() as catalog:
            reads = [(file, some) for bucket, some in wanted.items() for file in catalog.files_of(view, bucket)]
            each = map if len(reads) == 1 else self._readers.map  # one is read sooner than handed over
            found = list(chain.from_iterable(each(lambda read: self._rows_in(read[0], read[1], columns), reads)))
            return pa.concat_tables(found).combine_chunks() if found else self._no_rows(catalog, view, keys, columns)

    def _rows_in(self, file: RowFile, keys: Iterable[Key], columns: Sequence[str] | None) -> list[pa.Table]:
        footer = self._footer(file)
        found = []
        for group, some in footer.groups_of(keys).items():
            table = self._group(footer, group, columns)
            for key in some:
                first, stop = key_range(table, footer.key_names, key)
                if stop > first:
                    found.append(table.slice(first, stop - first))
        return found

    def _footer(self, file: RowFile) -> Footer:
        return self._footers.get(file.name, lambda: read_footer(self._place, file), lambda footer: footer.size)

    def _group(self, footer: Footer, group: int, columns: Sequence[str] | None) -> pa.Table:
        names = None if columns is None else [*footer.key_names, *TIMES, *columns]
        key = (footer.file.name, group, names and tuple(names))
        return self._tables.get(key, lambda: read_group(self._place, footer, group, names), lambda table: table.nbytes)

    def _no_rows(self, catalog: Catalog, view: str, keys: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        for name, bucket in catalog.buckets(view)[:1]:
            footer = self._footer(catalog.files_of(name, bucket)[0])
            return self._group(footer, 0, columns).slice(0, 0)
        return pa.schema([*keys.schema, *TIME_FIELDS]).empty_table()

    def deletes(self, view: str) -> pa.Table:
        """Join keys and deleted_us, the latest of each key, sorted by key. No join keys where nothing was deleted."""
        with self._reading() as catalog:
            file = catalog.deletes_of(view)
            return read_deletes(self._place, file) if file else pa.schema([(DELETED, pa.int64())]).empty_table()

    def scan(self, view: str) -> Iterator[pa.Table]:
        """All rows of a view, a table per bucket that has any, each sorted by key, times and sequence."""
        with self._reading() as catalog:
            for _, bucket in catalog.buckets(view):
                files = catalog.files_of(view, bucket)
                yield pa.concat_tables(merge_rows(read_groups(self._place, each) for each in files))

    @contextmanager
    def reading_bucket(
        self, view: str, bucket: int, columns: Sequence[str]
    ) -> Iterator[tuple[int, int, list[Iterator[pa.Table]]]]:
        """Per file of a bucket its rows, sorted by key, times and sequence; they may be read while this is held.

        Before them the sequence below which the history has every row, and how many rows the files hold.
        """
        with self._reading() as catalog:
            files = catalog.files_of(view, bucket)
            streams = [read_groups(self._place, each, columns) for each in files]
            yield catalog.covered.sequence, sum(each.rows for each in files), streams

    def check(self) -> list[str]:
        """What is wrong with the files, one sentence each: checksums, counts, order, rows that are there twice."""
        with self._reading() as catalog:
            return list(audit(self._place, catalog))

    # --- compaction

    def compact(self, view: str | None = None, *, all_files: bool = False) -> CompactReport:
        """Merge the files of each bucket that has many, or all of them, and leave out the rows that were deleted.

        With all_files no byte of a row that was created before a delete known now is in any file when this returns,
        readers at work on such files excepted: the last of them removes them. Memory: one bucket's file. Raises
        ReadOnly, DiskFull, StorageError, HistoryCorrupt; buckets done by then stay done.
        """
        self._check_writable()
        report = CompactReport()
        with self._compacting:
            for name, bucket in self._catalog.buckets(view):
                report = self._compact_bucket(name, bucket, all_files, report)
            self._collect()
        return report

    def _compact_bucket(self, view: str, bucket: int, all_files: bool, report: CompactReport) -> CompactReport:
        with self._reading() as catalog:
            deletes = catalog.deletes_of(view)
            erased = deletes.number if deletes else 0
            sources = files_to_merge(catalog.files_of(view, bucket), erased, all_files=all_files)
            if not sources:
                return report
            rows = merge_rows(read_groups(self._place, each) for each in sources)
            if deletes:
                rows = erase(rows, read_deletes(self._place, deletes))
            number = next(self._numbers)
            with self._new_files() as names:
                names.append(row_file_name(view, bucket, number))
                merged = write_row_file(self._place, view, bucket, number, rows, erased)
            self._install(lambda now: now.after_merge(sources, merged), names)
        return report.plus(sources, merged)


TIME_FIELDS = [
    (EVENT_TIME, pa.timestamp("us", "UTC")),
    (CREATED_TIME, pa.timestamp("us", "UTC")),
    (SEQUENCE, pa.uint64()),
]


def bucket_of(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    return (hashes >> np.uint64(64 - BUCKET_BITS)).astype(np.uint8)


def split(table: pa.Table, hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each bucket that has any."""
    buckets = bucket_of(hashes)
    order = np.argsort(buckets, kind="stable")
    ends = np.cumsum(np.bincount(buckets, minlength=BUCKETS))
    for bucket, rows in enumerate(np.split(order, ends[:-1])):
        if len(rows):
            yield bucket, table.take(pa.array(rows))


def check_sequences(rows: Mapping[str, pa.Table], before: Covered, after: Covered) -> None:
    if after.sequence < before.sequence or after.position < before.position:
        raise ValueError(f"the history covers {before} and can't go back to {after}")
    for view, table in rows.items():
        if table.num_rows:
            ends = pc.min_max(table.column(SEQUENCE)).as_py()
            if ends["min"] < before.sequence or ends["max"] >= after.sequence:
                raise ValueError(
                    f"view {view!r}: sequences {ends['min']} to {ends['max']} are not in what this call covers:"
                    f" {before.sequence} to {after.sequence - 1}"
                )
