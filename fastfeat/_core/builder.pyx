"""Builder: rows into new blocks, in memory that can be given back.

    RowRef, RowRef, ... --block_build--> block (header, key, stamps, rows) + row heaps

    A RowRef is a row on its way to a block: one that is published already, or one of the batch. What a batch allocates
    and
    what it replaces are listed, so that it can be taken back whole or its leavings retired.

Invariant:  nothing here is visible to readers; the blocks are published by writer.pyx.
Errors:     ARENA_FULL or NO_MEMORY; what was allocated is listed in the shard's `allocated`.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from .arena cimport heap_alloc, heap_free
from .atomics cimport atomic_store_u64, ff_check, ff_seeded_bug
from .columns cimport batch_encode, batch_heap_size, batch_heap_write
from .layout cimport BlockHeader
from .status cimport ARENA_FULL, NO_MEMORY, OK, Status
from .tiles cimport tiles_build
from .timeline cimport (
    block_capacity, block_count, block_createds, block_events, block_key, block_key_size, block_of, block_offset,
    block_put_head, block_row, block_sequences, block_size, shape_make,
)

cdef enum:
    VECTOR_KEPT = 4096        # bytes of scratch that a shard keeps from batch to batch


cdef char* vector_add(Vector* vector, size_t items, size_t size) noexcept nogil:
    """Room for `items` more structs of `size` bytes at the end; NULL where there is no memory."""
    cdef size_t need = (vector.count + items) * size
    cdef char* data
    if need > vector.capacity or vector.data == NULL:
        data = <char*>realloc(vector.data, need + (need >> 1) + 256)
        if data == NULL:
            return NULL
        vector.data = data
        vector.capacity = need + (need >> 1) + 256
    vector.count += items
    return vector.data + (vector.count - items) * size


cdef Status piece_add(Vector* vector, uint64_t at, uint64_t size) noexcept nogil:
    cdef Piece* piece = <Piece*>vector_add(vector, 1, sizeof(Piece))
    if piece == NULL:
        return NO_MEMORY
    piece.at = at
    piece.size = size
    return OK


cdef Status writer_alloc(Entity* entity, uint64_t size, uint64_t* at) noexcept nogil:
    """Bytes of the shard's heap that the batch gives back if it fails."""
    at[0] = heap_alloc(&entity.view.arena, entity.heap, size, entity.urgent)
    if at[0] == 0:
        return ARENA_FULL
    if piece_add(&entity.writer.allocated, at[0], size) != OK:
        heap_free(&entity.view.arena, entity.heap, at[0], size)
        return NO_MEMORY
    return OK


cdef void vector_clear(Vector* vector) noexcept nogil:
    """Empty it; what a large batch needed is given back."""
    vector.count = 0
    if vector.capacity > VECTOR_KEPT:
        free(vector.data)
        vector.data = NULL
        vector.capacity = 0


cdef void writer_free_memory(ShardWriter* writer) noexcept nogil:
    free(writer.allocated.data)
    free(writer.replaced.data)
    free(writer.pending.data)
    free(writer.refs.data)
    free(writer.entries.data)
    free(writer.retired.data)
    memset(writer, 0, sizeof(ShardWriter))


# --- rows into blocks ------------------------------------------------------------------------------------------------

cdef Status row_heap_place(Entity* entity, int64_t staged, uint8_t* row) noexcept nogil:
    """Copy a new row's variable bytes into the arena."""
    cdef uint64_t size = batch_heap_size(entity.batch, staged)
    cdef uint64_t at
    cdef Status status
    if size == 0:
        return OK
    status = writer_alloc(entity, size + 8, &at)
    if status != OK:
        return status
    (<uint64_t*>(entity.view.arena.base + at))[0] = size
    batch_heap_write(entity.batch, staged, entity.view.arena.base + at + 8, row)
    (<uint64_t*>(row + entity.view.heap_offset))[0] = at
    return OK


cdef Status block_place(
    Entity* entity, BlockHeader* block, uint32_t i, const RowRef* ref, bint is_encoded=False,
) noexcept nogil:
    """Write one row at place i, unpublished. is_encoded: its cells are there already."""
    cdef uint8_t* row = block_row(entity.view, block, i)
    block_events(block)[i] = ref.event_time
    block_createds(block)[i] = ref.created_time
    block_sequences(block)[i] = ref.sequence
    if ref.image != NULL:
        memcpy(row, ref.image, entity.view.row_stride)
    elif not is_encoded:
        batch_encode(entity.batch, ref.staged, ref.staged + 1, row)
    if ref.staged >= 0 and entity.view.heap_offset:
        return row_heap_place(entity, ref.staged, row)
    return OK


cdef bint refs_follow(const RowRef* refs, uint32_t count) noexcept nogil:
    """True where these are new rows, one after the other in the batch: they are encoded at once, column by column."""
    cdef uint32_t i
    for i in range(count):
        if refs[i].image != NULL or refs[i].staged != refs[0].staged + i:
            return False
    return count > 1


cdef Status block_build(
    Entity* entity, const RowRef* refs, uint32_t count, uint32_t capacity, uint64_t head_at, uint64_t* at
) noexcept nogil:
    """A new block with these rows in this order."""
    cdef BlockHeader* block
    cdef uint32_t i
    cdef bint is_encoded = refs_follow(refs, count)
    cdef uint64_t offset = block_offset(capacity)
    cdef Status status = writer_alloc(entity, block_size(entity.view, capacity, entity.key_size) - offset, at)
    if status != OK:
        return status
    ff_check(count == 1 or capacity != 1)
    at[0] -= offset
    block = block_of(entity.view, at[0])
    block.shape = shape_make(count, capacity, entity.key_size)
    block_put_head(block, head_at)
    if entity.key_size & 7:
        memset(block_key(block) + (entity.key_size & ~7), 0, 8)
    memcpy(block_key(block), entity.key, entity.key_size)
    if ff_seeded_bug("slot_before_rows") and at == &entity.pending.block_at:
        atomic_store_u64(&entity.pending.slot.block_at, at[0])
    if is_encoded:
        batch_encode(entity.batch, refs[0].staged, refs[0].staged + count, block_row(entity.view, block, 0))
    for i in range(count):
        status = block_place(entity, block, i, &refs[i], is_encoded)
        if status != OK:
            return status
    tiles_build(entity.view, block)
    return OK


cdef Status block_replace(Entity* entity, uint64_t at) noexcept nogil:
    """Retire the block itself (its rows live on elsewhere) when the batch is published."""
    cdef BlockHeader* block = block_of(entity.view, at)
    cdef uint32_t capacity = block_capacity(block)
    cdef uint64_t offset = block_offset(capacity)
    cdef uint64_t size = block_size(entity.view, capacity, block_key_size(block)) - offset
    return piece_add(&entity.writer.replaced, at + offset, size)


cdef int ref_compare(const void* a, const void* b) noexcept nogil:
    cdef const RowRef* x = <const RowRef*>a
    cdef const RowRef* y = <const RowRef*>b
    cdef int order = row_order(x.event_time, x.created_time, y.event_time, y.created_time)
    return order if order != 0 else -1 if x.sequence < y.sequence else 1 if x.sequence > y.sequence else 0


cdef Status refs_add_block(
    Entity* entity, BlockHeader* block, const RowRef* fresh, uint32_t fresh_count,
) noexcept nogil:
    """Merge a block's rows and fresh ones (in order) onto the end of the writer's refs."""
    cdef uint32_t count = block_count(block) if block != NULL else 0
    cdef RowRef* to = <RowRef*>vector_add(&entity.writer.refs, count + fresh_count, sizeof(RowRef))
    cdef uint32_t i = 0
    cdef uint32_t j = 0
    if to == NULL:
        return NO_MEMORY
    while i < count or j < fresh_count:
        if j == fresh_count or i < count and row_order(
            block_events(block)[i], block_createds(block)[i], fresh[j].event_time, fresh[j].created_time
        ) <= 0:
            to.event_time = block_events(block)[i]
            to.created_time = block_createds(block)[i]
            to.sequence = block_sequences(block)[i]
            to.image = block_row(entity.view, block, i)
            to.staged = -1
            i += 1
        else:
            to[0] = fresh[j]
            j += 1
        to += 1
    return OK


cdef Status row_heap_replace(Entity* entity, const uint8_t* row) noexcept nogil:
    """Retire a published row's variable bytes."""
    cdef uint64_t at
    if entity.view.heap_offset == 0:
        return OK
    at = (<const uint64_t*>(row + entity.view.heap_offset))[0]
    if at == 0:
        return OK
    return piece_add(&entity.writer.replaced, at, (<uint64_t*>(entity.view.arena.base + at))[0] + 8)
