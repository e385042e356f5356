"""Merging: the rows of several sorted files as one sorted stream.

    file  aabbcc|ccdd           each file gives its row groups in order
    file  abbd|dee       -->    aaabbbb  cccc  ddd  ee     what lies below every file's next row group is complete
    file  bce

Promise:  memory holds a row group or two per file (and the rows of one entity, where they are more).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from .catalog import RowFile
from .rowfile import Key, key_at, key_names, key_range, sort_rows

MERGE_AT = 8  # files of a bucket: a read of one entity decodes a row group of each


def files_to_merge(files: Sequence[RowFile], deletes: int, *, all_files: bool) -> list[RowFile]:
    """Which files of a bucket to write anew as one: none where nothing is gained.

    all_files: all, where there are several or one holds what the deletes of number `deletes` take. Else, from MERGE_AT
    files on, the smaller half, and larger ones as long as none is twice as large as all before it: so a row is written
    again about as often as the history doubles, not at every compaction.
    """
    if all_files:
        return list(files) if len(files) > 1 or any(each.erased < deletes for each in files) else []
    if len(files) < MERGE_AT:
        return []
    by_size = sorted(files, key=lambda each: each.rows)
    taken = by_size[: len(files) - MERGE_AT // 2]
    rows = sum(each.rows for each in taken)
    for each in by_size[len(taken) :]:
        if each.rows > 2 * rows:
            break
        taken.append(each)
        rows += each.rows
    return taken


class Source:
    """One sorted stream and what of it was read and not yet given on."""

    def __init__(self, chunks: Iterable[pa.Table]) -> None:
        self._chunks = iter(chunks)
        self.held: pa.Table | None = None
        self.is_finished = False

    def read(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            self.is_finished = True
        else:
            self.held = chunk if self.held is None else pa.concat_tables([self.held, chunk])

    def last_key(self) -> Key:
        assert self.held is not None
        return key_at(self.held, key_names(self.held.schema), self.held.num_rows - 1)

    def take(self, before: Key | None) -> pa.Table | None:
        """What is held of keys below `before`, or all."""
        table, self.held = self.held, None
        if table is None or before is None:
            return table
        first, _ = key_range(table, key_names(table.schema), before)
        if first < table.num_rows:
            self.held = table.slice(first)
        return table.slice(0, first) if first else None


def merge_rows(streams: Iterable[Iterable[pa.Table]]) -> Iterator[pa.Table]:
    """Sorted tables, each key whole in one of them, from streams of sorted tables."""
    sources = [Source(each) for each in streams]
    while True:
        for source in sources:
            while source.held is None and not source.is_finished:
                source.read()
        open_ended = [source for source in sources if not source.is_finished]
        limit = min((source.last_key() for source in open_ended), default=None)
        ready = [table for source in sources if (table := source.take(limit)) is not None]
        if ready:
            yield sort_rows(pa.concat_tables(ready)) if len(ready) > 1 else ready[0]
        elif limit is None:
            return
        for source in open_ended:
            if source.last_key() == limit:
                source.read()
