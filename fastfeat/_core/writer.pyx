"""Writer: how a batch of rows becomes visible, all of it or none.

    group rows by entity -> prepare each entity aside -> publish every entity -> retire what was replaced

    prepare may fail (the arena is full) and then gives everything back; publishing is a run of stores that can't fail.

        one row after the last, room in the tail     fill it in place, pending: count
        a new entity with one row                    a packed block, pending: slot
        anything else                                merge old and new rows into new blocks, directory and head, pending: slot or head_at

Invariant:   before publishing, nothing that a reader can reach has changed, except slots claimed with block_at 0, which readers
             take for absent, and shards' slots replaced by larger copies of themselves.
Invariant:   dropped rows (retention) are a prefix of the order: what arrives late below the last dropped row is dropped too.
Ordering:    each publishing store is a release store; readers' acquire loads are in timeline.pyx.
             Retired pieces carry the epoch taken after the stores (see arena.pyx) and wait for older pins to leave.
Concurrency: one writer per shard. Disjoint shard ranges may be prepared by different threads at once.
Errors:      ARENA_FULL or NO_MEMORY, with everything as it was.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

from .arena cimport epoch_advance, epoch_oldest_pin, extent_alloc, extent_free, heap_alloc, heap_free
from .atomics cimport atomic_store_u32, atomic_store_u64, ff_check, prefetch
from .columns cimport batch_encode, batch_heap_size, batch_heap_write, key_at, key_size
from .index cimport Slot, slot_find, slots_alloc, slots_mask, slots_of, slots_rehash, slots_size
from .layout cimport NEVER, BlockHeader, DirectoryEntry, HeapHeader, TimelineHead
from .status cimport ARENA_FULL, NO_MEMORY, OK
from .timeline cimport (
    block_createds, block_events, block_key, block_of, block_row, block_sequences, block_size, directory_of, head_of,
    shard_of,
)

cdef struct Piece:
    uint64_t at
    uint64_t size

cdef struct Retired:
    uint64_t at
    uint64_t size
    uint64_t epoch
    bint is_slots             # an extent of a shard's slots, not of its heap

cdef struct Pending:          # what publishing one entity takes
    Slot* slot
    bint is_claimed           # the slot was empty before this batch
    uint64_t block_at         # new tail, 0: the old one stays
    BlockHeader* tail         # the old tail, for head_at and count
    uint64_t head_at          # new head of the old tail, 0: unchanged
    uint32_t count            # new count of the old tail, 0: unchanged

cdef struct RowRef:           # a row on its way to a block
    int64_t event_time
    int64_t created_time
    uint64_t sequence
    const uint8_t* image      # published row, or staged image, or NULL: encode from the batch
    int64_t staged            # row of the batch, -1: a published row

cdef struct Entity:           # one entity while it is prepared
    const TableView* view
    ShardWriter* writer
    HeapHeader* heap
    const BatchView* batch
    const uint8_t* key
    uint16_t key_size
    bint urgent               # may use the arena's reserve
    int64_t now_us
    Pending* pending
    BlockHeader* tail         # NULL: new
    TimelineHead* head        # NULL: none
    TimelineHead next         # the head to be
    bint is_head_changed
    uint32_t first_changed    # directory entries before it stay


# --- vectors ---------------------------------------------------------------------------------------------------------

cdef char* vector_add(Vector* vector, size_t items, size_t size) noexcept nogil:
    """Room for `items` more structs of `size` bytes at the end; NULL where there is no memory."""
    cdef size_t need = (vector.count + items) * size
    cdef char* data
    if need > vector.capacity or vector.data == NULL:
        data = <char*>realloc(vector.data, 2 * need + 256)
        if data == NULL:
            return NULL
        vector.data = data
        vector.capacity = 2 * need + 256
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


cdef void writer_free_memory(ShardWriter* writer) noexcept nogil:
    free(writer.allocated.data)
    free(writer.replaced.data)
    free(writer.pending.data)
    free(writer.refs.data)
    free(writer.entries.data)
    free(writer.retired.data)
    memset(writer, 0, sizeof(ShardWriter))


# --- grouping --------------------------------------------------------------------------------------------------------

cdef bint keys_equal(const KeyView* keys, int64_t a, int64_t b) noexcept nogil:
    return key_size(keys, a) == key_size(keys, b) and memcmp(key_at(keys, a), key_at(keys, b), key_size(keys, a)) == 0


cdef Status grouping_make(Grouping* group, const TableView* view, const KeyView* keys, const uint64_t* hashes) noexcept nogil:
    cdef uint64_t count = keys.count
    cdef uint64_t slots = 16
    cdef uint64_t at
    cdef uint64_t i
    cdef uint32_t head
    memset(group, 0, sizeof(Grouping))
    while slots < 2 * count:
        slots *= 2
    group.table_mask = slots - 1
    group.counts = <uint32_t*>calloc(count + 1, 4)
    group.following = <uint32_t*>malloc((count + 1) * 4)
    group.last = <uint32_t*>malloc((count + 1) * 4)
    group.table = <uint32_t*>calloc(slots, 4)          # row + 1, 0: empty
    if group.counts == NULL or group.following == NULL or group.last == NULL or group.table == NULL:
        grouping_free(group)
        return NO_MEMORY
    for i in range(count):
        at = hashes[i]
        while True:
            head = group.table[at & group.table_mask]
            if head == 0:
                group.table[at & group.table_mask] = <uint32_t>i + 1
                group.counts[i] = 1
                group.last[i] = <uint32_t>i
                group.per_shard[shard_of(view, hashes[i])] += 1
                break
            head -= 1
            if hashes[head] == hashes[i] and keys_equal(keys, head, i):
                group.following[group.last[head]] = <uint32_t>i
                group.last[head] = <uint32_t>i
                group.counts[head] += 1
                break
            at += 1
    return OK


cdef void grouping_free(Grouping* group) noexcept nogil:
    free(group.counts)
    free(group.following)
    free(group.last)
    free(group.table)
    memset(group, 0, sizeof(Grouping))


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


cdef Status block_place(Entity* entity, BlockHeader* block, uint32_t i, const RowRef* ref) noexcept nogil:
    """Write one row at place i, unpublished."""
    cdef uint8_t* row = block_row(entity.view, block, i)
    block_events(block)[i] = ref.event_time
    block_createds(block)[i] = ref.created_time
    block_sequences(block)[i] = ref.sequence
    if ref.image != NULL:
        memcpy(row, ref.image, entity.view.row_stride)
    else:
        batch_encode(entity.batch, ref.staged, ref.staged + 1, row)
    if ref.staged >= 0 and entity.view.heap_offset:
        return row_heap_place(entity, ref.staged, row)
    return OK


cdef Status block_build(
    Entity* entity, const RowRef* refs, uint32_t count, uint32_t capacity, uint64_t head_at, uint64_t* at
) noexcept nogil:
    """A new block with these rows in this order."""
    cdef BlockHeader* block
    cdef uint32_t i
    cdef Status status = writer_alloc(entity, block_size(entity.view, capacity, entity.key_size), at)
    if status != OK:
        return status
    block = block_of(entity.view, at[0])
    block.head_at = head_at
    block.count = count
    block.capacity = <uint16_t>capacity
    block.key_size = entity.key_size
    if entity.key_size & 7:
        memset(block_key(block) + (entity.key_size & ~7), 0, 8)
    memcpy(block_key(block), entity.key, entity.key_size)
    for i in range(count):
        status = block_place(entity, block, i, &refs[i])
        if status != OK:
            return status
    return OK


cdef Status block_replace(Entity* entity, uint64_t at) noexcept nogil:
    """Retire the block itself (its rows live on elsewhere) when the batch is published."""
    cdef BlockHeader* block = block_of(entity.view, at)
    return piece_add(&entity.writer.replaced, at, block_size(entity.view, block.capacity, block.key_size))


cdef inline int row_order(int64_t event_a, int64_t created_a, int64_t event_b, int64_t created_b) noexcept nogil:
    if event_a != event_b:
        return -1 if event_a < event_b else 1
    return 0 if created_a == created_b else -1 if created_a < created_b else 1


cdef int ref_compare(const void* a, const void* b) noexcept nogil:
    cdef const RowRef* x = <const RowRef*>a
    cdef const RowRef* y = <const RowRef*>b
    cdef int order = row_order(x.event_time, x.created_time, y.event_time, y.created_time)
    return order if order != 0 else -1 if x.sequence < y.sequence else 1 if x.sequence > y.sequence else 0


cdef Status refs_add_block(Entity* entity, BlockHeader* block, const RowRef* fresh, uint32_t fresh_count) noexcept nogil:
    """Merge a block's rows and fresh ones (in order) onto the end of the writer's refs."""
    cdef uint32_t count = block.count if block != NULL else 0
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


# --- dropping --------------------------------------------------------------------------------------------------------

cdef void drop_note(Entity* entity, int64_t event_time, int64_t created_time) noexcept nogil:
    """Remember that a row of this entity is not in memory."""
    cdef TimelineHead* next = &entity.next
    if not next.has_dropped:
        next.has_dropped = 1
        next.dropped_min_event = event_time
        next.dropped_min_created = created_time
        next.dropped_max_created = created_time
        next.dropped_last_event = event_time
        next.dropped_last_created = created_time
    else:
        next.dropped_min_event = min(next.dropped_min_event, event_time)
        next.dropped_min_created = min(next.dropped_min_created, created_time)
        next.dropped_max_created = max(next.dropped_max_created, created_time)
        if row_order(next.dropped_last_event, next.dropped_last_created, event_time, created_time) < 0:
            next.dropped_last_event = event_time
            next.dropped_last_created = created_time
    entity.is_head_changed = True


cdef Status row_heap_replace(Entity* entity, const uint8_t* row) noexcept nogil:
    """Retire a published row's variable bytes."""
    cdef uint64_t at
    if entity.view.heap_offset == 0:
        return OK
    at = (<const uint64_t*>(row + entity.view.heap_offset))[0]
    if at == 0:
        return OK
    return piece_add(&entity.writer.replaced, at, (<uint64_t*>(entity.view.arena.base + at))[0] + 8)


cdef Status block_drop(Entity* entity, uint64_t at) noexcept nogil:
    """Drop a whole block by retention."""
    cdef BlockHeader* block = block_of(entity.view, at)
    cdef uint32_t i
    cdef Status status
    for i in range(block.count):
        drop_note(entity, block_events(block)[i], block_createds(block)[i])
        status = row_heap_replace(entity, block_row(entity.view, block, i))
        if status != OK:
            return status
    entity.writer.rows_delta -= block.count
    return block_replace(entity, at)


cdef Status refs_drop(Entity* entity, const RowRef* refs, uint32_t count) noexcept nogil:
    """Drop rows that are on their way: published ones leave, new ones never arrive."""
    cdef uint32_t i
    cdef Status status
    for i in range(count):
        drop_note(entity, refs[i].event_time, refs[i].created_time)
        entity.writer.rows_delta -= 1
        if refs[i].staged < 0:
            status = row_heap_replace(entity, refs[i].image)
            if status != OK:
                return status
    return OK


cdef uint32_t visible_count(const BlockHeader* block, int64_t now_us) noexcept nogil:
    cdef uint32_t count = block.count
    while count > 0 and block_events(<BlockHeader*>block)[count - 1] > now_us:
        count -= 1
    return count


# --- the directory to be: entries that stay, then the writer's new ones -----------------------------------------------

cdef inline uint32_t older_count(Entity* entity) noexcept nogil:
    return entity.first_changed - entity.next.directory_first + <uint32_t>entity.writer.entries.count


cdef inline DirectoryEntry* older_entry(Entity* entity, uint32_t i) noexcept nogil:
    cdef uint32_t kept = entity.first_changed - entity.next.directory_first
    if i < kept:
        return directory_of(entity.view, entity.next.directory_at) + entity.next.directory_first + i
    return <DirectoryEntry*>entity.writer.entries.data + (i - kept)


cdef Status entry_add(Entity* entity, int64_t first_event, uint64_t block_at) noexcept nogil:
    cdef DirectoryEntry* entry = <DirectoryEntry*>vector_add(&entity.writer.entries, 1, sizeof(DirectoryEntry))
    if entry == NULL:
        return NO_MEMORY
    entry.first_event = first_event
    entry.block_at = block_at
    return OK


cdef Status refs_to_entries(Entity* entity, const RowRef* refs, uint32_t count, uint32_t parts) noexcept nogil:
    """Older blocks with these rows, in `parts` nearly equal blocks that are exactly full."""
    cdef uint32_t i
    cdef uint32_t size
    cdef uint64_t at
    cdef Status status
    for i in range(parts):
        size = count // (parts - i)
        status = block_build(entity, refs, size, size, 0, &at)
        if status == OK:
            status = entry_add(entity, refs[0].event_time, at)
        if status != OK:
            return status
        refs += size
        count -= size
    return OK


# --- retention -------------------------------------------------------------------------------------------------------

cdef uint32_t keep_rows_plan(Entity* entity, const RowRef* refs, uint32_t count, uint32_t* older_dropped) noexcept nogil:
    """keep=n: how many leading refs to drop, and how many leading older blocks."""
    cdef int64_t left = entity.view.keep_rows
    cdef int64_t i = count
    cdef uint32_t older = older_count(entity)
    while i > 0:
        i -= 1
        if refs[i].event_time <= entity.now_us:
            left -= 1
            if left == 0:
                older_dropped[0] = older
                return <uint32_t>i
    while older > 0 and left > 0:
        older -= 1
        left -= visible_count(block_of(entity.view, older_entry(entity, older).block_at), entity.now_us)
    older_dropped[0] = older
    return 0


cdef uint32_t keep_us_plan(Entity* entity, const RowRef* refs, uint32_t count, uint32_t* older_dropped) noexcept nogil:
    """keep=duration: all rows since the cutoff and the last one before it stay."""
    cdef int64_t cutoff = entity.now_us - entity.view.keep_us
    cdef int64_t i = count
    cdef uint32_t older = older_count(entity)
    while i > 0:
        i -= 1
        if refs[i].event_time < cutoff:
            older_dropped[0] = older
            return <uint32_t>i
    while older > 0:
        older -= 1
        if older_entry(entity, older).first_event < cutoff:
            break
    older_dropped[0] = older
    return 0


cdef Status older_drop(Entity* entity, uint32_t count) noexcept nogil:
    """Drop the first `count` older blocks."""
    cdef uint32_t kept = entity.first_changed - entity.next.directory_first
    cdef uint32_t i
    cdef Status status
    cdef size_t gone
    for i in range(count):
        status = block_drop(entity, older_entry(entity, i).block_at)
        if status != OK:
            return status
    if count <= kept:
        entity.next.directory_first += count
    else:
        gone = count - kept
        entity.next.directory_first = entity.first_changed
        entity.writer.entries.count -= gone
        move_down(entity.writer.entries.data, gone * sizeof(DirectoryEntry),
                    entity.writer.entries.count * sizeof(DirectoryEntry))
    return OK


cdef void move_down(char* data, size_t by, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(size):
        data[i] = data[i + by]


# --- finishing one entity --------------------------------------------------------------------------------------------

cdef uint32_t tail_capacity(const TableView* view, uint32_t count) noexcept nogil:
    """Room for a tail of `count` rows: none to spare for one row or keep="latest", a half more otherwise."""
    cdef uint32_t capacity = 4
    if count <= 1 or view.keep_rows == 1 or count >= view.rows_max:
        return count
    while capacity < count + (count >> 1):
        capacity *= 2
    return capacity if capacity < view.rows_max else view.rows_max


cdef Status directory_finish(Entity* entity) noexcept nogil:
    """Put the writer's new entries behind those that stay: in place where there is room, in a new directory otherwise."""
    cdef TimelineHead* next = &entity.next
    cdef uint32_t kept = entity.first_changed - next.directory_first
    cdef uint32_t added = <uint32_t>entity.writer.entries.count
    cdef uint32_t old_count = entity.head.directory_count if entity.head != NULL else 0
    cdef uint32_t capacity = 4
    cdef uint64_t at = 0
    cdef Status status
    if added == 0 and entity.first_changed == old_count and kept > 0:
        return OK
    if kept > 0 and entity.first_changed == old_count and old_count + added <= next.directory_capacity:
        memcpy(directory_of(entity.view, next.directory_at) + old_count, entity.writer.entries.data,
               added * sizeof(DirectoryEntry))
        next.directory_count = old_count + added
        return OK
    if kept + added > 0:
        while capacity < kept + added + (kept >> 1):
            capacity *= 2
        status = writer_alloc(entity, capacity * sizeof(DirectoryEntry), &at)
        if status != OK:
            return status
        if kept > 0:
            memcpy(directory_of(entity.view, at), directory_of(entity.view, next.directory_at) + next.directory_first,
                   kept * sizeof(DirectoryEntry))
        memcpy(directory_of(entity.view, at) + kept, entity.writer.entries.data, added * sizeof(DirectoryEntry))
    else:
        capacity = 0
    if next.directory_at != 0:
        status = piece_add(&entity.writer.replaced, next.directory_at, next.directory_capacity * sizeof(DirectoryEntry))
        if status != OK:
            return status
    next.directory_at = at
    next.directory_first = 0
    next.directory_count = kept + added
    next.directory_capacity = capacity
    return OK


cdef Status head_finish(Entity* entity, uint64_t* at) noexcept nogil:
    """The new head's offset (0 where nothing needs one); the old head is retired."""
    cdef TimelineHead* next = &entity.next
    cdef Status status
    at[0] = 0
    if next.directory_count > next.directory_first or next.has_dropped or next.deleted_us != NEVER:
        status = writer_alloc(entity, sizeof(TimelineHead), at)
        if status != OK:
            return status
        head_of(entity.view, at[0])[0] = next[0]
    if entity.head != NULL:
        return piece_add(&entity.writer.replaced, entity.tail.head_at, sizeof(TimelineHead))
    return OK


cdef Status entity_finish(Entity* entity, const RowRef* refs, uint32_t count) noexcept nogil:
    """Directory, head and a new tail that ends with `refs`; the old tail is retired."""
    cdef uint32_t rows_max = entity.view.rows_max
    cdef uint32_t parts = (count - 1) // rows_max if count > 0 else 0
    cdef uint64_t head_at
    cdef Status status
    if parts > 0:
        status = refs_to_entries(entity, refs, parts * rows_max, parts)
        if status != OK:
            return status
        refs += parts * rows_max
        count -= parts * rows_max
    status = directory_finish(entity)
    if status == OK:
        status = head_finish(entity, &head_at)
    if status == OK:
        status = block_build(entity, refs, count, tail_capacity(entity.view, count), head_at, &entity.pending.block_at)
    if status == OK and entity.tail != NULL:
        status = block_replace(entity, entity.pending.slot.block_at)
    return status


cdef Status entity_finish_head(Entity* entity) noexcept nogil:
    """A new head for the tail as it is."""
    cdef Status status = directory_finish(entity)
    if status == OK:
        status = head_finish(entity, &entity.pending.head_at)
    entity.pending.tail = entity.tail
    return status


# --- preparing one entity --------------------------------------------------------------------------------------------

cdef void entity_begin(Entity* entity) noexcept nogil:
    """Find the old tail and head; start the new head as a copy."""
    cdef uint64_t block_at = entity.pending.slot.block_at
    entity.tail = NULL
    entity.head = NULL
    entity.is_head_changed = False
    entity.writer.refs.count = 0
    entity.writer.entries.count = 0
    memset(&entity.next, 0, sizeof(TimelineHead))
    entity.next.deleted_us = NEVER
    if block_at != 0:
        entity.tail = block_of(entity.view, block_at)
        if entity.tail.head_at != 0:
            entity.head = head_of(entity.view, entity.tail.head_at)
            entity.next = entity.head[0]
    entity.first_changed = entity.next.directory_count


cdef uint32_t fresh_filter(Entity* entity, RowRef* fresh, uint32_t count) noexcept nogil:
    """Leave out rows that a delete or retention already covers."""
    cdef uint32_t kept = 0
    cdef uint32_t i
    cdef TimelineHead* next = &entity.next
    if entity.head == NULL:
        return count
    for i in range(count):
        if fresh[i].created_time < next.deleted_us:
            continue
        if entity.head.has_dropped and row_order(
            fresh[i].event_time, fresh[i].created_time, entity.head.dropped_last_event, entity.head.dropped_last_created
        ) < 0:
            drop_note(entity, fresh[i].event_time, fresh[i].created_time)
            continue
        fresh[kept] = fresh[i]
        kept += 1
    return kept


cdef inline bint comes_after_tail(Entity* entity, const RowRef* fresh) noexcept nogil:
    cdef uint32_t last = entity.tail.count - 1
    return row_order(
        block_events(entity.tail)[last], block_createds(entity.tail)[last], fresh.event_time, fresh.created_time
    ) <= 0


cdef bint begins_after(BlockHeader* block, const RowRef* fresh) noexcept nogil:
    """True where the row belongs before the block's first row."""
    return row_order(fresh.event_time, fresh.created_time, block_events(block)[0], block_createds(block)[0]) < 0


cdef Status entity_prepare(Entity* entity, RowRef* fresh, uint32_t count) noexcept nogil:
    """Prepare new rows, in order, of one entity."""
    cdef uint32_t i
    cdef Status status
    count = fresh_filter(entity, fresh, count)
    entity.writer.rows_delta += count
    if count == 0:
        return entity_finish_head(entity) if entity.is_head_changed else OK
    if entity.tail == NULL or entity.tail.count == 0:
        entity.writer.live_delta += 1
    if entity.tail == NULL:
        entity.writer.entities_delta += 1
        if count == 1:
            return block_build(entity, fresh, 1, 1, 0, &entity.pending.block_at)
    elif (
        not entity.is_head_changed and entity.tail.count > 0 and entity.tail.count + count <= entity.tail.capacity
        and comes_after_tail(entity, fresh)
    ):
        for i in range(count):
            status = block_place(entity, entity.tail, entity.tail.count + i, &fresh[i])
            if status != OK:
                return status
        entity.pending.tail = entity.tail
        entity.pending.count = entity.tail.count + count
        return OK
    return entity_rebuild(entity, fresh, count)


cdef Status entity_rebuild(Entity* entity, const RowRef* fresh, uint32_t count) noexcept nogil:
    """The general case: late rows, full tails, retention."""
    cdef uint32_t late = 0
    cdef uint32_t older_dropped = 0
    cdef uint32_t rows_dropped = 0
    cdef RowRef* refs
    cdef Status status
    if entity.next.directory_count > entity.next.directory_first and begins_after(entity.tail, fresh):
        while late < count and begins_after(entity.tail, &fresh[late]):
            late += 1
        status = older_merge(entity, fresh, late)
        if status != OK:
            return status
    if late == count and entity.view.keep_rows == 0 and entity.view.keep_us < 0:
        return entity_finish_head(entity)
    entity.writer.refs.count = 0
    status = refs_add_block(entity, entity.tail, fresh + late, count - late)
    if status != OK:
        return status
    refs = <RowRef*>entity.writer.refs.data
    count = <uint32_t>entity.writer.refs.count
    if entity.view.keep_rows:
        rows_dropped = keep_rows_plan(entity, refs, count, &older_dropped)
    elif entity.view.keep_us >= 0:
        rows_dropped = keep_us_plan(entity, refs, count, &older_dropped)
    if older_dropped:
        status = older_drop(entity, older_dropped)
        if status != OK:
            return status
    status = refs_drop(entity, refs, rows_dropped)
    if status != OK:
        return status
    return entity_finish(entity, refs + rows_dropped, count - rows_dropped)


cdef uint32_t older_target(Entity* entity, const RowRef* fresh) noexcept nogil:
    """The older block that a late row belongs to: the last that begins at or before it, else the first."""
    cdef const DirectoryEntry* entries = directory_of(entity.view, entity.next.directory_at)
    cdef uint32_t low = entity.next.directory_first
    cdef uint32_t high = entity.next.directory_count
    cdef uint32_t middle
    while high - low > 1:
        middle = (low + high) >> 1
        if begins_after(block_of(entity.view, entries[middle].block_at), fresh):
            high = middle
        else:
            low = middle
    return low


cdef Status older_merge(Entity* entity, const RowRef* fresh, uint32_t count) noexcept nogil:
    """Merge late rows into older blocks: each block touched is replaced by one or more."""
    cdef const DirectoryEntry* entries = directory_of(entity.view, entity.next.directory_at)
    cdef uint32_t last = entity.next.directory_count
    cdef uint32_t i
    cdef uint32_t taken
    cdef uint32_t rows
    cdef BlockHeader* block
    cdef BlockHeader* following
    cdef Status status
    entity.first_changed = older_target(entity, fresh)
    for i in range(entity.first_changed, last):
        block = block_of(entity.view, entries[i].block_at)
        taken = count
        if i + 1 < last:
            following = block_of(entity.view, entries[i + 1].block_at)
            taken = 0
            while taken < count and begins_after(following, &fresh[taken]):
                taken += 1
        if taken == 0:
            status = entry_add(entity, entries[i].first_event, entries[i].block_at)
        else:
            entity.writer.refs.count = 0
            status = refs_add_block(entity, block, fresh, taken)
            if status == OK:
                rows = <uint32_t>entity.writer.refs.count
                status = refs_to_entries(entity, <RowRef*>entity.writer.refs.data, rows,
                                         (rows + entity.view.rows_max - 1) // entity.view.rows_max)
            if status == OK:
                status = block_replace(entity, entries[i].block_at)
            fresh += taken
            count -= taken
        if status != OK:
            return status
    return OK


# --- deleting one entity ---------------------------------------------------------------------------------------------

cdef Status refs_add_survivors(Entity* entity, BlockHeader* block, int64_t deleted_us) noexcept nogil:
    """Rows created at or after the delete live on; the others' variable bytes are retired."""
    cdef uint32_t i
    cdef RowRef* ref
    cdef Status status
    for i in range(block.count):
        if block_createds(block)[i] >= deleted_us:
            ref = <RowRef*>vector_add(&entity.writer.refs, 1, sizeof(RowRef))
            if ref == NULL:
                return NO_MEMORY
            ref.event_time = block_events(block)[i]
            ref.created_time = block_createds(block)[i]
            ref.sequence = block_sequences(block)[i]
            ref.image = block_row(entity.view, block, i)
            ref.staged = -1
        else:
            entity.writer.rows_delta -= 1
            status = row_heap_replace(entity, block_row(entity.view, block, i))
            if status != OK:
                return status
    return OK


cdef Status entity_delete(Entity* entity, int64_t deleted_us) noexcept nogil:
    """Prepare a delete: take out every row created before it and remember when."""
    cdef uint32_t i
    cdef uint64_t at
    cdef Status status
    if entity.next.deleted_us >= deleted_us:
        return OK
    entity.next.deleted_us = deleted_us
    if entity.next.has_dropped and entity.next.dropped_max_created < deleted_us:
        entity.next.has_dropped = 0
    if entity.tail == NULL:
        entity.writer.entities_delta += 1
    for i in range(entity.next.directory_first, entity.next.directory_count):
        at = directory_of(entity.view, entity.next.directory_at)[i].block_at
        status = refs_add_survivors(entity, block_of(entity.view, at), deleted_us)
        if status == OK:
            status = block_replace(entity, at)
        if status != OK:
            return status
    if entity.tail != NULL:
        status = refs_add_survivors(entity, entity.tail, deleted_us)
        if status != OK:
            return status
    if entity.tail != NULL and entity.tail.count > 0 and entity.writer.refs.count == 0:
        entity.writer.live_delta -= 1
    entity.first_changed = entity.next.directory_first
    return entity_finish(entity, <RowRef*>entity.writer.refs.data, <uint32_t>entity.writer.refs.count)


# --- shards ----------------------------------------------------------------------------------------------------------

cdef Status shard_make_room(const TableView* view, ShardWriter* writers, uint32_t shard, uint64_t added) noexcept nogil:
    """Grow the shard's slots so that `added` more entities fit; readers see the old ones or the new ones."""
    cdef uint64_t word = view.slots[shard]
    cdef uint64_t need = view.shards[shard].entities + added
    cdef uint32_t bits = <uint32_t>(word & 63)
    cdef uint64_t larger
    cdef Retired* retired
    while need > ((<uint64_t>7 << bits) >> 3):
        bits += 1
    if bits == (word & 63):
        return OK
    larger = slots_alloc(&view.arena, bits)
    if larger == 0:                       # nearly full: go on while one slot stays empty to end every search
        return OK if need <= slots_mask(word) else ARENA_FULL
    retired = <Retired*>vector_add(&writers[shard].retired, 1, sizeof(Retired))
    if retired == NULL:
        extent_free(&view.arena, larger & ~<uint64_t>63, slots_size(larger))
        return NO_MEMORY
    slots_rehash(view.arena.base, word, larger)
    atomic_store_u64(&view.slots[shard], larger)
    retired.at = word & ~<uint64_t>63
    retired.size = slots_size(word)
    retired.is_slots = True
    retired.epoch = epoch_advance(&view.arena)
    return OK


cdef Slot* slot_claim(const TableView* view, uint64_t hash, const uint8_t* key, uint16_t size, bint* is_claimed) noexcept nogil:
    """The entity's slot; an empty one is claimed. A slot claimed by another key of this hash is passed over."""
    cdef uint64_t word = view.slots[shard_of(view, hash)]
    cdef uint64_t at = hash
    cdef Slot* slot
    cdef BlockHeader* block
    is_claimed[0] = False
    while True:
        slot = slot_find(slots_of(view.arena.base, word), slots_mask(word), hash, &at)
        if slot.hash == 0:
            slot.block_at = 0
            atomic_store_u64(&slot.hash, hash)
            is_claimed[0] = True
            return slot
        if slot.block_at != 0:
            block = block_of(view, slot.block_at)
            if block.key_size == size and memcmp(block_key(block), key, size) == 0:
                return slot
        at += 1


cdef Pending* pending_add(
    const TableView* view, ShardWriter* writer, uint64_t hash, const uint8_t* key, uint16_t size
) noexcept nogil:
    cdef Pending* pending = <Pending*>vector_add(&writer.pending, 1, sizeof(Pending))
    cdef bint is_claimed
    if pending == NULL:
        return NULL
    memset(pending, 0, sizeof(Pending))
    pending.slot = slot_claim(view, hash, key, size, &is_claimed)
    pending.is_claimed = is_claimed
    if pending.slot.block_at != 0:
        prefetch(view.arena.base + pending.slot.block_at)
    return pending


cdef void entity_open(
    Entity* entity, const TableView* view, ShardWriter* writers, const KeyView* keys, int64_t i, uint64_t hash, size_t pending
) noexcept nogil:
    cdef uint32_t shard = shard_of(view, hash)
    entity.view = view
    entity.writer = &writers[shard]
    entity.heap = &view.shards[shard].heap
    entity.key = key_at(keys, i)
    entity.key_size = key_size(keys, i)
    entity.pending = <Pending*>writers[shard].pending.data + pending
    entity_begin(entity)


cdef Status group_prepare(
    Entity* entity, const Grouping* group, int64_t i, const uint8_t* image, RowRef* one
) noexcept nogil:
    """Prepare the entity whose first row in the batch is i; `image` is that row's staged image or NULL."""
    cdef uint32_t count = group.counts[i]
    cdef RowRef* refs = one
    cdef uint32_t j
    cdef int64_t row = i
    cdef bint is_sorted = True
    cdef Status status
    if count > 1:
        refs = <RowRef*>malloc(count * sizeof(RowRef))
        if refs == NULL:
            return NO_MEMORY
    for j in range(count):
        refs[j].event_time = entity.batch.event_times[row]
        refs[j].created_time = entity.batch.created_times[row]
        refs[j].sequence = entity.batch.sequence + row
        refs[j].image = image if j == 0 else NULL
        refs[j].staged = row
        if j > 0 and ref_compare(&refs[j - 1], &refs[j]) > 0:
            is_sorted = False
        row = group.following[row]
    if not is_sorted:
        qsort(refs, count, sizeof(RowRef), ref_compare)
    status = entity_prepare(entity, refs, count)
    if count > 1:
        free(refs)
    return status


cdef Status shards_prepare(
    const TableView* view, ShardWriter* writers, const BatchView* batch, const Grouping* group, const uint64_t* hashes,
    uint32_t shard_low, uint32_t shard_high, int64_t now_us, uint8_t* staging,
) noexcept nogil:
    cdef Entity entity
    cdef RowRef one
    cdef size_t pending[STAGED_ROWS]
    cdef int64_t start
    cdef int64_t end
    cdef int64_t i
    cdef uint32_t shard
    cdef uint64_t word
    cdef const uint8_t* image
    cdef Status status
    for shard in range(shard_low, shard_high):
        status = shard_make_room(view, writers, shard, group.per_shard[shard])
        if status != OK:
            return status
    entity.batch = batch
    entity.urgent = False
    entity.now_us = now_us
    for start in range(0, batch.count, 128):    # STAGED_ROWS
        end = start + STAGED_ROWS if start + STAGED_ROWS < batch.count else batch.count
        for i in range(start, end):
            word = view.slots[shard_of(view, hashes[i])]
            prefetch(&slots_of(view.arena.base, word)[hashes[i] & slots_mask(word)])
        if staging != NULL:
            batch_encode(batch, start, end, staging)
        for i in range(start, end):
            shard = shard_of(view, hashes[i])
            if group.counts[i] and shard_low <= shard < shard_high:
                pending[i - start] = writers[shard].pending.count
                if pending_add(view, &writers[shard], hashes[i], key_at(&batch.keys, i), key_size(&batch.keys, i)) == NULL:
                    return NO_MEMORY
        for i in range(start, end):
            shard = shard_of(view, hashes[i])
            if group.counts[i] and shard_low <= shard < shard_high:
                entity_open(&entity, view, writers, &batch.keys, i, hashes[i], pending[i - start])
                image = staging + (i - start) * view.row_stride if staging != NULL else NULL
                status = group_prepare(&entity, group, i, image, &one)
                if status != OK:
                    return status
    return shards_reserve(writers, shard_low, shard_high)


cdef Status shards_prepare_delete(
    const TableView* view, ShardWriter* writers, const KeyView* keys, const Grouping* group, const uint64_t* hashes,
    int64_t deleted_us,
) noexcept nogil:
    cdef Entity entity
    cdef int64_t i
    cdef uint32_t shard
    cdef size_t pending
    cdef Status status
    for shard in range(<uint32_t>1 << view.shard_bits):
        status = shard_make_room(view, writers, shard, group.per_shard[shard])
        if status != OK:
            return status
    entity.batch = NULL
    entity.urgent = True
    entity.now_us = deleted_us
    for i in range(keys.count):
        if group.counts[i]:
            shard = shard_of(view, hashes[i])
            pending = writers[shard].pending.count
            if pending_add(view, &writers[shard], hashes[i], key_at(keys, i), key_size(keys, i)) == NULL:
                return NO_MEMORY
            entity_open(&entity, view, writers, keys, i, hashes[i], pending)
            status = entity_delete(&entity, deleted_us)
            if status != OK:
                return status
    return shards_reserve(writers, 0, <uint32_t>1 << view.shard_bits)


cdef Status shards_reserve(ShardWriter* writers, uint32_t shard_low, uint32_t shard_high) noexcept nogil:
    """Make sure that retiring can't fail."""
    cdef uint32_t shard
    for shard in range(shard_low, shard_high):
        if vector_add(&writers[shard].retired, writers[shard].replaced.count, sizeof(Retired)) == NULL:
            return NO_MEMORY
        writers[shard].retired.count -= writers[shard].replaced.count
    return OK


# --- publishing, giving back, reclaiming ------------------------------------------------------------------------------

cdef void pending_publish(const Pending* pending) noexcept nogil:
    if pending.block_at != 0:
        atomic_store_u64(&pending.slot.block_at, pending.block_at)
        return
    if pending.head_at != 0:
        atomic_store_u64(&pending.tail.head_at, pending.head_at)
    if pending.count != 0:
        atomic_store_u32(&pending.tail.count, pending.count)


cdef void shard_clear(ShardWriter* writer) noexcept nogil:
    writer.allocated.count = 0
    writer.replaced.count = 0
    writer.pending.count = 0
    writer.rows_delta = 0
    writer.entities_delta = 0
    writer.live_delta = 0


cdef void shards_commit(const TableView* view, ShardWriter* writers, uint32_t shard_low, uint32_t shard_high) noexcept nogil:
    """Publish what was prepared. Can't fail."""
    cdef uint32_t shard
    cdef size_t i
    cdef uint64_t epoch
    cdef ShardWriter* writer
    cdef Retired* retired
    for shard in range(shard_low, shard_high):
        writer = &writers[shard]
        for i in range(writer.pending.count):
            pending_publish(<Pending*>writer.pending.data + i)
        view.shards[shard].rows += writer.rows_delta
        view.shards[shard].entities += writer.entities_delta
        view.shards[shard].live += writer.live_delta
    epoch = epoch_advance(&view.arena)
    for shard in range(shard_low, shard_high):
        writer = &writers[shard]
        for i in range(writer.replaced.count):
            retired = <Retired*>vector_add(&writer.retired, 1, sizeof(Retired))     # reserved: can't fail
            retired.at = (<Piece*>writer.replaced.data)[i].at
            retired.size = (<Piece*>writer.replaced.data)[i].size
            retired.is_slots = False
            retired.epoch = epoch
        shard_clear(writer)


cdef void shards_abort(const TableView* view, ShardWriter* writers, uint32_t shard_low, uint32_t shard_high) noexcept nogil:
    """Give back what was prepared."""
    cdef uint32_t shard
    cdef size_t i
    cdef ShardWriter* writer
    cdef Piece* piece
    cdef Pending* pending
    for shard in range(shard_low, shard_high):
        writer = &writers[shard]
        for i in range(writer.allocated.count):
            piece = <Piece*>writer.allocated.data + i
            heap_free(&view.arena, &view.shards[shard].heap, piece.at, piece.size)
        # Backwards, so that no search by a reader ever crosses a slot that empties before those claimed after it.
        for i in range(writer.pending.count):
            pending = <Pending*>writer.pending.data + (writer.pending.count - 1 - i)
            if pending.is_claimed:
                atomic_store_u64(&pending.slot.hash, 0)
        shard_clear(writer)


cdef void shards_reclaim(const TableView* view, ShardWriter* writers, uint32_t shard_low, uint32_t shard_high) noexcept nogil:
    """Free what was retired and can't be seen any more."""
    cdef uint64_t oldest = epoch_oldest_pin(&view.arena)
    cdef uint32_t shard
    cdef size_t first
    cdef ShardWriter* writer
    cdef Retired* retired
    for shard in range(shard_low, shard_high):
        writer = &writers[shard]
        first = writer.retired_first
        while first < writer.retired.count:
            retired = <Retired*>writer.retired.data + first
            if retired.epoch >= oldest:
                break
            if retired.is_slots:
                extent_free(&view.arena, retired.at, retired.size)
            else:
                heap_free(&view.arena, &view.shards[shard].heap, retired.at, retired.size)
            first += 1
        writer.retired_first = first
        if first == writer.retired.count:
            writer.retired_first = 0
            writer.retired.count = 0
        elif first > 1024 and 2 * first > writer.retired.count:
            writer.retired.count -= first
            move_down(writer.retired.data, first * sizeof(Retired), writer.retired.count * sizeof(Retired))
            writer.retired_first = 0
