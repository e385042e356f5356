"""The controls of the history's checks: a history with a known bug, made on purpose, must not pass them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat, zip_longest
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from fastfeat.errors import HistoryCorrupt
from fastfeat.history import History, catalog, deletes, history, merging, rowfile
from fastfeat.history.catalog import Catalog, Covered
from fastfeat.history.rowfile import Footer
from fastfeat.places import DirectoryPlace, Place

from .histories import (
    check_crashes,
    check_damage,
    check_erasure,
    check_failures,
    check_latest_delete,
    check_pruning,
    check_readers,
    small_row_groups,
)

Patch = pytest.MonkeyPatch
BUGS: list[Any] = []


def bug(check: Callable[[], object], *raised: type[Exception]) -> Callable[[Callable[[Patch], None]], None]:
    """Name the check that must catch the bug, and how it does."""
    return lambda seed: BUGS.append(pytest.param(seed, check, raised or AssertionError, id=seed.__name__))


def crashes() -> None:
    check_crashes(seeds=2)


def pruning() -> None:
    check_pruning([(n,) for n in range(12)], "user")


def long_keys() -> None:
    check_pruning([("x" * size, 1) for size in (1, 5_000)], "account")


@bug(crashes, HistoryCorrupt)
def the_catalog_is_written_before_the_files(patch: Patch) -> None:
    write, held = DirectoryPlace.write, list[tuple[str, Any]]()

    def held_back(self: DirectoryPlace, name: str, data: Any) -> None:
        held.append((name, data))
        if name.startswith("catalog-"):
            for each in reversed(held):
                write(self, *each)
            held.clear()

    patch.setattr(DirectoryPlace, "write", held_back)


@bug(crashes, HistoryCorrupt)
def old_files_go_before_the_new_catalog(patch: Patch) -> None:
    install = History._install

    def hasty(self: History, change: Callable[[Catalog], Catalog], names: list[str]) -> None:
        for name in self._catalog.names() - change(self._catalog).names():
            self._place.remove(name)
        install(self, change, names)

    patch.setattr(History, "_install", hasty)


@bug(crashes)
def covered_runs_ahead_of_the_rows(patch: Patch) -> None:
    add = History.add

    def ahead(self: History, rows: Any, hashes: Any, deletes: Any, covered: Covered) -> None:
        before = self._catalog
        self._install(lambda now: now.after_add((), (), covered), [])
        self._catalog = Catalog(self._catalog.number, before.covered, before.files, before.deletes)
        add(self, rows, hashes, deletes, covered)

    patch.setattr(History, "add", ahead)


@bug(crashes)
def what_a_crash_left_stays(patch: Patch) -> None:
    patch.setattr(History, "_remove_strays", lambda self, names: None)


@bug(check_failures, HistoryCorrupt, AssertionError)
def a_number_is_given_twice(patch: Patch) -> None:
    patch.setattr(history, "count", repeat)


@bug(check_failures, HistoryCorrupt, AssertionError)
def files_of_a_catalog_that_may_be_there_are_removed(patch: Patch) -> None:
    install = History._install

    def tidy(self: History, change: Callable[[Catalog], Catalog], names: list[str]) -> None:
        try:
            install(self, change, names)
        except Exception:
            for name in names:
                self._place.remove(name)
            raise

    patch.setattr(History, "_install", tidy)


@bug(check_readers, HistoryCorrupt)
def files_go_while_a_reader_uses_them(patch: Patch) -> None:
    collect = History._collect

    def careless(self: History) -> None:
        self._pins.clear()
        collect(self)

    patch.setattr(History, "_collect", careless)


@bug(check_erasure)
def a_delete_takes_what_was_created_at_its_own_time(patch: Patch) -> None:
    patch.setattr(deletes, "pc", SimpleNamespace(less=pc.less_equal))


@bug(check_erasure)
def a_compaction_leaves_what_was_deleted(patch: Patch) -> None:
    patch.setattr(history, "erase", lambda chunks, deletes: chunks)


@bug(check_latest_delete)
def the_last_delete_counts_instead_of_the_latest(patch: Patch) -> None:
    patch.setattr(history, "merge_deletes", lambda old, new: new.sort_by("user_id"))


@bug(check_latest_delete)
def a_merged_file_is_never_looked_at_for_deletes_again(patch: Patch) -> None:
    choose = merging.files_to_merge
    patch.setattr(history, "files_to_merge", lambda files, deletes, all_files: choose(files, 0, all_files=all_files))


@bug(pruning)
def pruning_is_off_by_one(patch: Patch) -> None:
    def candidates(self: Footer, first: Any) -> range:
        assert self.ranges[0] is not None
        least, greatest = self.ranges[0]
        return range(bisect_right(greatest, first), bisect_right(least, first))

    patch.setattr(Footer, "_candidates", candidates)


@bug(pruning)
def an_entity_is_looked_for_in_one_row_group_only(patch: Patch) -> None:
    candidates = Footer._candidates
    patch.setattr(Footer, "_candidates", lambda self, first: candidates(self, first)[:1])


@bug(long_keys)
def a_row_group_without_statistics_is_taken_for_empty(patch: Patch) -> None:
    def ranges(metadata: Any, column: int) -> Any:
        groups = range(metadata.num_row_groups)
        found = [metadata.row_group(group).column(column).statistics for group in groups]
        return [each.min if each.has_min_max else "" for each in found], [each.max or "" for each in found]

    patch.setattr(rowfile, "ranges_of", ranges)


@bug(pruning)
def a_merge_takes_row_groups_by_turns(patch: Patch) -> None:
    def by_turns(streams: Iterable[Iterable[pa.Table]]) -> Iterator[pa.Table]:
        for tables in zip_longest(*streams):
            yield rowfile.sort_rows(pa.concat_tables([table for table in tables if table is not None]))

    patch.setattr(history, "merge_rows", by_turns)


@bug(check_damage, AssertionError, Exception)
def row_groups_are_not_checked(patch: Patch) -> None:
    def unchecked(place: Place, file: Any, start: int, size: int, checksum: int, what: str) -> Any:
        with place.open(file.name) as source:
            source.seek(start)
            return source.read_buffer(size)

    patch.setattr(rowfile, "read_range", unchecked)


@bug(check_damage, AssertionError)
def a_damaged_catalog_gives_way_to_an_older_one(patch: Patch) -> None:
    read = catalog.read_catalog

    def lenient(place: Place, number: int, earlier: list[int]) -> Catalog:
        try:
            return read(place, number, earlier)
        except HistoryCorrupt:
            return read(place, earlier[-1], earlier[:-1])

    patch.setattr(catalog, "read_catalog", lenient)


@bug(check_damage, Exception)
def the_catalog_is_not_checked(patch: Patch) -> None:
    patch.setattr(catalog, "checksum_of", lambda body: 0)


@pytest.mark.parametrize(("seed", "check", "raised"), BUGS)
def test_the_checks_catch(seed: Callable[[Patch], None], check: Callable[[], object], raised: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small_row_groups().items():
            patch.setattr(rowfile, name, value)
        patch.setattr(rowfile, "COMPRESSION", "none")
        seed(patch)
        with pytest.raises(raised):
            check()


@pytest.mark.parametrize("check", [pruning, long_keys, check_readers, check_erasure, check_latest_delete])
def test_a_sound_history_passes(check: Callable[[], object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small_row_groups().items():
            patch.setattr(rowfile, name, value)
        patch.setattr(rowfile, "COMPRESSION", "none")
        check()
