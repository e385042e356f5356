"""Training sets of a store: labels in chunks, each answered bucket by bucket, streamed in the labels' order.

    store in memory   chunk of labels --------------------------------------------> its own tables --> answers
    store on a disk   chunk of labels --by bucket of the key--> rows of the bucket --> private table --> answers

Promise:  the whole of a durable store's set is of one position: rows that come meanwhile are in none of it.
Memory:   a chunk of labels with its answers, and per worker the rows of one chunk of a bucket, so a view may be larger
          than memory. All rows of one entity must fit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .._core.plan import Plan
from .._core.table import Clock
from ..applied import Definitions
from ..durable import Storage
from ..errors import DataError
from ..history.history import BUCKETS, bucket_of
from ..history.rowfile import key_at, key_range
from ..report import ignore_rows, load_progress
from ..rows import key_hashes, rows_schema
from ..sources import BATCH_ROWS_MAX
from .joining import (
    THREADS,
    Columns,
    Features,
    Request,
    ViewJoin,
    Workers,
    check_known,
    check_labels,
    fill,
    fill_from_table,
    request_of,
    with_columns,
)
from .labels import Asked, Known, Labels, asked_of
from .stored import StoredRows

MEMORY_SIZE: Final = 1 << 30  # what a training set takes beside the store, about
LABEL_SHARE: Final = 6  # of it: labels, what they ask, and their answers
ROWS_SHARE: Final = 192  # of it: a chunk of rows as Arrow; the next one, copies and blocks are many times that
ASKED_SIZE: Final = 64  # bytes that a label takes beside its own columns and its answers
VARIABLE_SIZE: Final = 64  # of an answer, taken for texts and lists, whose size nobody knows beforehand
LABEL_ROWS_MAX: Final = 1 << 21


class Source(Protocol):
    """Where answers come from: a column per stored feature of the request, in the labels' order."""

    def answer(self, asked: Asked) -> list[Any]: ...


class Tables:
    """A store's own tables, which hold every row or say that they don't.

    Why not private ones: there is nothing to gather, and a copy would take as much memory as the store.
    """

    def __init__(self, request: Request, definitions: Definitions, clock: Clock) -> None:
        self._request = request
        self._plans = [Plan(clock, definitions.plan_items(join.features, definitions.tables)) for join in request.joins]

    def answer(self, asked: Asked) -> list[Any]:
        columns: list[Any] = [None] * len(self._request.stored)
        with ThreadPoolExecutor(THREADS, "fastfeat-training") as pool:
            for join, plan in zip(self._request.joins, self._plans, strict=True):
                filled = Columns(join.dtypes, len(asked))
                fill_from_table(filled, join.view, plan, asked, pool)
                for place, column in zip(join.places, filled.arrays(), strict=True):
                    columns[place] = column
        return columns


class Buckets:
    """A durable store's history and tails as they are at a position."""

    def __init__(self, request: Request, rows: StoredRows, chunk_size: int) -> None:
        self._request = request
        self._rows = rows
        self._chunk_size = chunk_size
        self._workers = [Workers(join) for join in request.joins]

    def answer(self, asked: Asked) -> list[Any]:
        columns: list[Any] = [None] * len(self._request.stored)
        with ThreadPoolExecutor(THREADS, "fastfeat-training") as pool:
            for workers in self._workers:
                join = workers.join
                filled = Columns(join.dtypes, len(asked))
                fill_bucket = partial(self._fill_bucket, filled, workers, asked.of(join.keys))
                deque(pool.map(fill_bucket, by_bucket(join, asked)), 0)
                for place, column in zip(join.places, filled.arrays(), strict=True):
                    columns[place] = column
        return columns

    def _fill_bucket(
        self, columns: Columns, workers: Workers, asked: Asked, bucket: tuple[int, NDArray[np.uint32]]
    ) -> None:
        """Put the answers of the labels at these places, all of one bucket."""
        number, places = bucket
        chunks = self._rows.chunks(workers.join.view.name, number, self._chunk_size)
        for at, some, rows in matched(workers.join, asked.take(places), chunks):
            fill(columns, workers, some, places[at], rows)


def by_bucket(join: ViewJoin, asked: Asked) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """The labels of each bucket of the key's hash that has any."""
    buckets = bucket_of(key_hashes(join.view, asked.keys(join.keys)))
    order = np.argsort(buckets, kind="stable").astype(np.uint32)
    ends = np.cumsum(np.bincount(buckets, minlength=BUCKETS))
    for bucket, places in enumerate(np.split(order, ends[:-1])):
        if len(places):
            yield bucket, places


def matched(
    join: ViewJoin, asked: Asked, chunks: Iterator[pa.Table]
) -> Iterator[tuple[NDArray[np.int64], Asked, pa.Table]]:
    """Each chunk of rows, which follow one another by key, with the labels of its keys; every label once."""
    everyone = np.arange(len(asked))
    chunk = next(chunks, None)
    if chunk is None:
        chunk = rows_schema(join.view).empty_table()
    following = next(chunks, None)
    if following is None:
        yield everyone, asked, chunk
        return
    names = list(join.keys)
    table = pa.Table.from_batches([asked.rows.select(names)])
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in names]).to_numpy()
    table = table.take(pa.array(order))
    start = 0
    while chunk is not None:
        last = key_at(chunk, names, chunk.num_rows - 1)
        stop = len(asked) if following is None else key_range(table, names, last)[1]
        if stop > start:
            yield order[start:stop], asked.take(order[start:stop]), chunk
        start = stop
        chunk, following = following, next(chunks, None)


def size_beside(request: Request) -> int:
    """About the bytes that a label takes in memory beside its own columns."""
    dtypes = [request.dtype(feature) for feature in request.features]
    return ASKED_SIZE + sum(2 * (VARIABLE_SIZE if dtype.is_variable else dtype.width + 1) for dtype in dtypes)


def training_set(
    labels: object,
    features: Features,
    definitions: Definitions,
    clock: Clock,
    *,
    stored: tuple[Storage, int] | None,
    known: Known = "as_served",
    event_time: str = "event_timestamp",
    progress: bool = False,
    memory_bytes: int = MEMORY_SIZE,
) -> tuple[Any, Request]:
    """A reader of the labels with a column per feature, and what was resolved for it.

    stored: a durable store's storage and the position to read.
    """
    check_known(known)
    if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, int) or memory_bytes < 1:
        raise DataError(f"memory_bytes is {memory_bytes!r}; give how many bytes the training set may take, as 1 << 30")
    request = request_of(features, definitions)
    examples = Labels(labels, request.keys, event_time)
    check_labels(examples.schema, request, event_time)
    source: Source
    if stored is None:
        source = Tables(request, definitions, clock)
    else:
        views = {join.view.name: join.view for join in request.joins}
        source = Buckets(request, StoredRows(stored[0], definitions, views, stored[1]), memory_bytes // ROWS_SHARE)

    def batches() -> Iterator[pa.RecordBatch]:
        size_max = memory_bytes // LABEL_SHARE
        with load_progress("labels", examples) if progress else nullcontext(ignore_rows) as advance:
            for chunk in examples.chunks(LABEL_ROWS_MAX, size_max, size_beside(request)):
                asked = asked_of(chunk, request.keys, event_time, known)
                joined = with_columns(chunk, request, asked, source.answer(asked))
                yield from joined.to_batches(BATCH_ROWS_MAX)
                advance(chunk.num_rows)

    reader = pa.RecordBatchReader.from_batches(pa.schema([*examples.schema, *request.fields]), batches())
    return reader, request
