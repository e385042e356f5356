"""Past: reads that need rows which memory no longer keeps.

    history rows + tail rows of the entities asked --> tables of their own, nothing dropped --plan--> the answer

Promise: what is answered is what a store that keeps every row would answer, by the same kernel.
Errors:  HistoryCorrupt and StorageError of the place; DataError for keys.
Blocks:  it reads files; not for an event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ._core.arena import Arena
from ._core.exports import export_keys
from ._core.request import plain_keys
from ._core.table import Clock, Table
from .applied import Definitions, needed
from .computed import AnyPlan, compile_plan
from .durable import EVERY_SEQUENCE, Storage, whole_table
from .rows import (
    SEQUENCE,
    batch_of_rows,
    entity_columns,
    heads_batch,
    key_fields,
    key_hashes,
    rows_batch,
    rows_schema,
)
from .schema import Feature, FeatureView

CAPACITY_MIN = 64 << 20  # reserved, not used
CAPACITY_FACTOR = 8  # of the rows' Arrow bytes: blocks have room to spare and rows are padded


def past_plan(
    storage: Storage,
    clock: Clock,
    features: Sequence[Feature],
    definitions: Definitions,
    entity_rows: Any,
    sequence_end: int | None = None,
) -> AnyPlan:
    """A plan of these features over all rows below `sequence_end`, or all, that the entities asked ever had."""
    return compile_plan(
        clock, definitions, features, past_tables(storage, clock, features, definitions, entity_rows, sequence_end)
    )


def past_tables(
    storage: Storage,
    clock: Clock,
    features: Sequence[Feature],
    definitions: Definitions,
    entity_rows: Any,
    sequence_end: int | None = None,
) -> dict[str, Table]:
    """The tables of these features' views with all rows below `sequence_end`, or all, that the entities ever had.

    definitions: what the features mean (a view's ttl counts), and the tables in memory (their deletes count).
    """
    stored, _ = needed(features, definitions.readable)
    views = {view.name: view for view in (definitions.stored(feature.view) for feature in stored)}
    keys = {name: unique_keys(view, entity_rows) for name, view in views.items()}
    end = EVERY_SEQUENCE if sequence_end is None else sequence_end
    rows = {name: gather(storage, view, keys[name], end) for name, view in views.items()}
    arena = Arena(CAPACITY_MIN + CAPACITY_FACTOR * sum(each.nbytes for each in rows.values()))
    tables = {}
    for name, view in views.items():
        tables[name] = whole_table(arena, clock, view, view.ttl_us, view.event_id)
        # Order: the deletes first, so that no row which they take stands for an event that was sent again after them.
        apply_deletes(tables[name], definitions.tables[name], view, keys[name])
        for batch in rows[name].combine_chunks().to_batches():
            tables[name].prepare(batch_of_rows(tables[name], view, batch)).commit()
    return tables


def unique_keys(view: FeatureView, entity_rows: Any) -> dict[str, list[Any]]:
    """The entities asked, each once, as plain values. Raises DataError."""
    keys = view.entity.join_keys
    columns = plain_keys(list(keys), list(keys.values()), entity_rows)
    rows = dict.fromkeys(zip(*columns.values(), strict=True))
    return {name: [row[i] for row in rows] for i, name in enumerate(keys)}


def gather(storage: Storage, view: FeatureView, keys: dict[str, list[Any]], sequence_end: int) -> pa.Table:
    """Every row of these entities of a view, by what is at rest: the history and what it does not hold yet."""
    schema = rows_schema(view)
    # Order: the tails first. What moves into the history meanwhile is then met twice, never missed.
    tables = [table for tail in storage.tails if (table := tail.table(view)) is not None]
    parts = [rows_batch(view, export_keys(table, keys, sequence_end)) for table in tables]
    new = pa.Table.from_batches(parts, schema=schema)
    asked = pa.table([pa.array(keys[field.name], field.type) for field in key_fields(view)], names=list(keys))
    old = storage.history.rows(view.name, asked, key_hashes(view, keys))
    if not old.num_rows:
        return new
    old = old.select(schema.names).cast(schema)
    old = old.filter(pc.less(old.column(SEQUENCE), pa.scalar(sequence_end, pa.uint64())))
    twice = pc.is_in(new.column(SEQUENCE), value_set=old.column(SEQUENCE).combine_chunks())
    return pa.concat_tables([old, new.filter(pc.invert(twice))])


def apply_deletes(table: Table, in_memory: Table, view: FeatureView, keys: dict[str, list[Any]]) -> None:
    """Keep out of `table` what was deleted: rows created before their entity's last delete."""
    heads = heads_batch(view, export_keys(in_memory, keys, 0))
    deleted = heads.filter(pc.is_valid(heads.column("deleted_us")))
    for moment in deleted.column("deleted_us").unique().to_pylist():
        some = deleted.filter(pc.equal(deleted.column("deleted_us"), moment))
        table.prepare_delete(entity_columns(view, some), moment).commit()
