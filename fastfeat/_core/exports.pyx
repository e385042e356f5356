"""Exports: rows and heads of a table, copied out as columns: what snapshots keep and what reads of the past start from.

    shards or keys --collect--> entities, rows (pointers) --cells.pyx--> a column per field, per join key and per stamp

Promise:     an entity's rows come in order. Every row published before the call with a sequence below `sequence_end`
             is there, or its entity's head counts it as dropped or deleted; no row from `sequence_end` on is there.
             (A tail's head and its count are two words: of rows published meanwhile, some may show without others.)
Concurrency: a reader like any other: a pin from the first look-up to the last byte copied, so writers go on but what
             they replace waits for it; keep the ranges small. The GIL is released around the work.
Errors:      MemoryError; DataError from request.pyx; StorageError where a column of variable values passes 2 GiB.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

cimport numpy as cnp

import numpy as np

from ..errors import StorageError
from .arena cimport arena_pin, arena_unpin, pin_check
from .atomics cimport atomic_load_u64
from .builder cimport Vector, vector_add
from .cells cimport PlanFeature, column_bytes, column_fixed, column_offsets, column_valid
from .columns cimport STRING, VECTOR, FieldView, KeyView, RowLayout, key_at, key_size
from .index cimport slots_mask, slots_of
from .layout cimport NEVER, BlockHeader, DirectoryEntry, Slot, TimelineHead
from .plan import NUMPY_OF_KIND
from .request cimport Request
from .table cimport Table
from .timeline cimport (
    TableView, block_count, block_createds, block_events, block_head_at, block_key, block_key_size, block_of, block_row,
    block_sequences, directory_of, head_of,
    keys_hash, timeline_block,
)

cnp.import_array()

cdef enum:
    CHUNK = 256                   # rows whose bytes stay in cache while each field's column takes its cells
    HEAD_WORDS = 7
    ENTITY_WORDS = 9              # the key's place, then its size, then the head

cdef uint64_t OFFSET_MAX = 0x7FFFFFFF


cdef class Export:
    """Vectors of what was found; freed with it."""

    cdef Vector rows              # const uint8_t*
    cdef Vector stamps            # event_time, created_time, sequence, entity: int64 each
    cdef Vector entities          # ENTITY_WORDS int64 each

    def __dealloc__(self):
        free(self.rows.data)
        free(self.stamps.data)
        free(self.entities.data)


# --- collecting ------------------------------------------------------------------------------------------------------

cdef int add_block(Export e, const TableView* view, BlockHeader* block, uint64_t sequence_end) except -1 nogil:
    """Every published row of a block."""
    cdef uint32_t count = block_count(block)
    cdef uint32_t i
    cdef int64_t* stamp
    cdef const uint8_t** row
    for i in range(count):
        if block_sequences(block)[i] >= sequence_end:
            continue
        stamp = <int64_t*>vector_add(&e.stamps, 1, 32)
        row = <const uint8_t**>vector_add(&e.rows, 1, sizeof(void*))
        if stamp == NULL or row == NULL:
            with gil:
                raise MemoryError(f"no memory for an export of {e.rows.count} rows; export fewer shards at once")
        stamp[0] = block_events(block)[i]
        stamp[1] = block_createds(block)[i]
        stamp[2] = <int64_t>block_sequences(block)[i]
        stamp[3] = <int64_t>e.entities.count - 1
        row[0] = block_row(view, block, i)
    return 0


cdef int add_entity(Export e, const TableView* view, BlockHeader* tail, uint64_t sequence_end) except -1 nogil:
    """One entity: its head, its rows in order."""
    cdef int64_t* entity = <int64_t*>vector_add(&e.entities, 1, ENTITY_WORDS * 8)
    cdef uint64_t head_at
    cdef const TimelineHead* head
    cdef const DirectoryEntry* entries
    cdef uint32_t i
    if entity == NULL:
        with gil:
            raise MemoryError(f"no memory for an export of {e.entities.count} entities; export fewer shards at once")
    entity[0] = <int64_t>(<uint8_t*>block_key(tail) - view.arena.base)
    entity[1] = block_key_size(tail)
    entity[2] = NEVER
    entity[3] = 0
    head_at = block_head_at(tail)
    if head_at != 0:
        head = head_of(view, head_at)
        entity[2] = head.deleted_us
        entity[3] = head.has_dropped
        if head.has_dropped:
            entity[4] = head.dropped_min_event
            entity[5] = head.dropped_min_created
            entity[6] = head.dropped_max_created
            entity[7] = head.dropped_last_event
            entity[8] = head.dropped_last_created
        entries = directory_of(view, head.directory_at)
        for i in range(head.directory_first, head.directory_count):
            add_block(e, view, block_of(view, entries[i].block_at), sequence_end)
    return add_block(e, view, tail, sequence_end)


cdef int add_shard(Export e, const TableView* view, uint32_t shard, uint64_t sequence_end) except -1 nogil:
    cdef uint64_t word = atomic_load_u64(&view.slots[shard])
    cdef Slot* slots = slots_of(view.arena.base, word)
    cdef uint64_t i
    cdef uint64_t block_at
    for i in range(slots_mask(word) + 1):
        if atomic_load_u64(&slots[i].hash) != 0:
            block_at = atomic_load_u64(&slots[i].block_at)
            if block_at != 0:
                add_entity(e, view, block_of(view, block_at), sequence_end)
    return 0


cdef int add_keys(Export e, const TableView* view, const KeyView* keys, uint64_t sequence_end) except -1:
    cdef int64_t i
    cdef BlockHeader* tail
    hashes = np.empty(keys.count, np.uint64)
    cdef uint64_t* hash = <uint64_t*>cnp.PyArray_DATA(hashes)
    with nogil:
        keys_hash(view, keys, 0, keys.count, hash)
        for i in range(keys.count):
            tail = timeline_block(view, hash[i], key_at(keys, i), key_size(keys, i))
            if tail != NULL:
                add_entity(e, view, tail, sequence_end)
    return 0


# --- copying ---------------------------------------------------------------------------------------------------------

cdef PlanFeature feature_of(const FieldView* field, uint32_t f) noexcept:
    cdef PlanFeature feature
    feature.view = 0
    feature.field = f
    feature.offset = field.offset
    feature.width = field.width
    feature.size = field.size if field.kind == VECTOR else 1
    feature.out_column = 0
    feature.kind = field.kind
    feature.element_kind = field.element_kind
    feature.element_width = field.element_width
    return feature


cdef list field_columns(Export e, Table table):
    """(valid, data, offsets) per field, as Plan.columns gives them."""
    cdef int64_t count = e.rows.count
    cdef const uint8_t** rows = <const uint8_t**>e.rows.data
    cdef RowLayout layout = table.layout
    cdef uint32_t f
    cdef int64_t low
    cdef int64_t n
    cdef uint64_t size
    features = np.empty(layout.fields_count * sizeof(PlanFeature), np.uint8)
    pointers = np.empty((layout.fields_count, 2), np.uintp)
    cdef PlanFeature* feature = <PlanFeature*>cnp.PyArray_DATA(features)
    cdef uint8_t** at = <uint8_t**>cnp.PyArray_DATA(pointers)
    columns = []
    for f in range(layout.fields_count):
        feature[f] = feature_of(&layout.fields[f], f)
        valid = np.empty(count, np.uint8)
        data = offsets = None
        if is_fixed(&feature[f]):
            data = np.empty(count * feature[f].size, NUMPY_OF_KIND[feature[f].element_kind])
            at[2 * f + 1] = <uint8_t*>cnp.PyArray_DATA(data)
            if feature[f].kind == VECTOR:
                data = data.reshape(count, feature[f].size)
        at[2 * f] = <uint8_t*>cnp.PyArray_DATA(valid)
        columns.append((valid, data, offsets))
    with nogil:
        for low in range(0, count, 256):      # CHUNK
            n = min(CHUNK, count - low)
            for f in range(layout.fields_count):
                column_valid(&feature[f], rows + low, n, at[2 * f] + low)
                if is_fixed(&feature[f]):
                    column_fixed(&feature[f], rows + low, n, at[2 * f + 1] + low * feature[f].width)
    for f in range(layout.fields_count):
        if not is_fixed(&feature[f]):
            offsets = np.empty(count + 1, np.uint32)
            size = column_offsets(&feature[f], &table.view, rows, count, <uint32_t*>cnp.PyArray_DATA(offsets))
            if size > OFFSET_MAX:
                raise StorageError(
                    f"view {table.name!r}: field {layout.names[f]!r} takes {size} B in one shard, at most 2 GiB"
                )
            data = np.empty(size, np.uint8)
            column_bytes(
                &feature[f], &table.view, rows, count, <const uint32_t*>cnp.PyArray_DATA(offsets),
                <uint8_t*>cnp.PyArray_DATA(data),
            )
            columns[f] = (columns[f][0], data, offsets)
    return columns


cdef inline bint is_fixed(const PlanFeature* feature) noexcept nogil:
    return feature.kind < STRING or feature.kind == VECTOR


cdef list key_columns(Export e, Table table):
    """(data, offsets) per join key, of every entity: int64 or uint64, or bytes with offsets."""
    cdef RowLayout layout = table.layout
    cdef int64_t count = e.entities.count
    cdef int64_t* entities = <int64_t*>e.entities.data
    cdef const uint8_t* base = table.view.arena.base
    cdef const uint8_t* key
    cdef int64_t i
    cdef uint32_t k
    cdef uint32_t size
    cdef uint64_t[::1] starts = np.zeros(count, np.uint64)      # of the next part in each key
    cdef uint64_t[::1] ints
    cdef uint32_t[::1] ends
    cdef uint64_t total
    cdef uint8_t* text
    columns = []
    for k in range(layout.keys_count):
        if layout.key_kinds[k] != STRING:
            ints = np.empty(count, np.uint64)
            with nogil:
                for i in range(count):
                    memcpy(&ints[i], base + entities[ENTITY_WORDS * i] + starts[i], 8)
                    starts[i] += 8
            whole = np.asarray(ints)
            columns.append((whole if layout.key_types[k] == "uint64" else whole.view(np.int64), None))
            continue
        ends = np.zeros(count + 1, np.uint32)
        total = 0
        with nogil:
            for i in range(count):
                memcpy(&size, base + entities[ENTITY_WORDS * i] + starts[i], 4)
                total += size
                ends[i + 1] = <uint32_t>min(total, OFFSET_MAX)
        if total > OFFSET_MAX:
            raise StorageError(f"view {table.name!r}: keys take over 2 GiB in one shard")
        data = np.empty(total, np.uint8)
        text = <uint8_t*>cnp.PyArray_DATA(data)
        with nogil:
            for i in range(count):
                key = base + entities[ENTITY_WORDS * i] + starts[i] + 4
                memcpy(text + ends[i], key, ends[i + 1] - ends[i])
                starts[i] += 4 + ends[i + 1] - ends[i]
        columns.append((data, np.asarray(ends)))
    return columns


cdef object words(Vector* vector, Py_ssize_t width):
    """A copy of a vector of int64 words as an array [count, width]."""
    copy = np.empty((vector.count, width), np.int64)
    cdef void* to = cnp.PyArray_DATA(copy)
    cdef size_t size = vector.count * width * 8
    if size:
        with nogil:
            memcpy(to, vector.data, size)
    return copy


cdef tuple copied_out(Export e, Table table):
    entities = words(&e.entities, ENTITY_WORDS)
    return key_columns(e, table), entities[:, 2:], words(&e.stamps, 4), field_columns(e, table)


# --- the border ------------------------------------------------------------------------------------------------------

def export_shards(Table table, uint32_t low, uint32_t high, uint64_t sequence_end):
    """Entities and rows of shards [low, high): (keys, heads, stamps, columns).

    keys:    per join key (data, offsets) of every entity: int64 or uint64 [n], or UTF-8 uint8 with offsets [n + 1].
    heads:   int64 [n, 7], as Table.prepare_heads takes them.
    stamps:  int64 [rows, 4]: event time, created time, sequence, and the entity's number.
    columns: per field (valid, data, offsets) as Plan.columns gives them.
    """
    cdef Export e = Export()
    cdef uint32_t shard
    cdef int pin
    with nogil:
        pin = arena_pin(&table.view.arena)
    pin_check(&table.view.arena, pin)
    try:
        with nogil:
            for shard in range(low, high):
                add_shard(e, &table.view, shard, sequence_end)
        return copied_out(e, table)
    finally:
        arena_unpin(&table.view.arena, pin)


def export_keys(Table table, entity_rows, uint64_t sequence_end):
    """What export_shards gives, of the entities named that the table knows, in their order."""
    cdef Export e = Export()
    cdef Request request = Request(table.layout.key_names, table.layout.key_types)
    cdef KeyView keys
    cdef int32_t columns[8]       # schema.JOIN_KEYS_MAX
    cdef int32_t i
    cdef int pin
    request.set_rows(entity_rows)
    for i in range(request.columns_count):
        columns[i] = i
    request.keys(0, columns, request.columns_count, &keys)
    with nogil:
        pin = arena_pin(&table.view.arena)
    pin_check(&table.view.arena, pin)
    try:
        add_keys(e, &table.view, &keys, sequence_end)
        return copied_out(e, table)
    finally:
        arena_unpin(&table.view.arena, pin)


def shards_of(Table table):
    """How many shards the table has."""
    return 1 << table.view.shard_bits
