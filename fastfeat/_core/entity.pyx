"""Entity: what one entity's timeline becomes when rows arrive or it is deleted.

        one row after the last, room in the tail   fill it in place, pending: count
        a new entity with one row                  a packed block, pending: slot
        anything else                              merge old and new rows into new blocks, directory and head,
                                                   pending: slot or head_at

    Late rows replace only the blocks that they belong to; a full tail moves into the directory; keep= drops whole older
    blocks, and rows of the tail once nothing older is left. A delete, and a row that takes another's place, gather all
    rows that stay and build the timeline anew.

Invariant:  dropped rows (retention) are a prefix of the order: what arrives late below the last dropped row is dropped
            too. So a row that a reader finds is the right one, and one that it doesn't find may have been dropped.
Invariant:  in-place writes touch only what no published count or head covers.
Errors:     ARENA_FULL or NO_MEMORY; readers have seen nothing.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memmove, memset

from .atomics cimport ff_seeded_bug
from .builder cimport (
    Entity, RowRef, block_build, block_place, block_replace, piece_add, ref_compare, refs_add_block, row_heap_replace,
    row_order, vector_add, writer_alloc,
)
from .layout cimport NEVER, BlockHeader, DirectoryEntry, TimelineHead
from .status cimport NO_MEMORY, OK, Status
from .tiles cimport tiles_extend
from .timeline cimport (
    TableView, block_capacity, block_count, block_createds, block_events, block_head_at, block_of, block_put_count,
    block_row, block_sequences, directory_of, head_of,
)

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


cdef Status block_drop(Entity* entity, uint64_t at) noexcept nogil:
    """Drop a whole block by retention."""
    cdef BlockHeader* block = block_of(entity.view, at)
    cdef uint32_t i
    cdef Status status
    for i in range(block_count(block)):
        drop_note(entity, block_events(block)[i], block_createds(block)[i])
        status = row_heap_replace(entity, block_row(entity.view, block, i))
        if status != OK:
            return status
    entity.writer.rows_delta -= block_count(block)
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
    cdef uint32_t count = block_count(block)
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

cdef uint32_t keep_rows_plan(
    Entity* entity, const RowRef* refs, uint32_t count, uint32_t* older_dropped,
) noexcept nogil:
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
        memmove(
            entity.writer.entries.data, entity.writer.entries.data + gone * sizeof(DirectoryEntry),
            entity.writer.entries.count * sizeof(DirectoryEntry),
        )
    return OK


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
    """Put the writer's new entries behind those that stay: in place where there is room, else in a new directory."""
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
        return piece_add(&entity.writer.replaced, block_head_at(entity.tail), sizeof(TimelineHead))
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
    if status == OK and entity.tail != NULL:
        status = block_replace(entity, entity.pending.slot.block_at)
    if status == OK:
        status = block_build(entity, refs, count, tail_capacity(entity.view, count), head_at, &entity.pending.block_at)
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
        if block_head_at(entity.tail) != 0:
            entity.head = head_of(entity.view, block_head_at(entity.tail))
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
    cdef uint32_t last = block_count(entity.tail) - 1
    if ff_seeded_bug("late_row_appended"):
        return True
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
    if entity.tail == NULL or block_count(entity.tail) == 0:
        entity.writer.live_delta += 1
    if entity.tail == NULL:
        entity.writer.entities_delta += 1
        if count == 1:
            return block_build(entity, fresh, 1, 1, 0, &entity.pending.block_at)
    elif (
        not entity.is_head_changed and block_count(entity.tail) > 0
        and block_count(entity.tail) + count <= block_capacity(entity.tail)
        and comes_after_tail(entity, fresh)
    ):
        if ff_seeded_bug("count_before_row"):
            block_put_count(entity.tail, block_count(entity.tail) + count)
        for i in range(count):
            status = block_place(entity, entity.tail, block_count(entity.tail) + i, &fresh[i])
            if status != OK:
                return status
        tiles_extend(entity.view, entity.tail, block_count(entity.tail), block_count(entity.tail) + count)
        entity.pending.tail = entity.tail
        entity.pending.count = block_count(entity.tail) + count
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


# --- taking rows out of one entity ------------------------------------------------------------------------------------

cdef struct Leaving:          # rows that are to go
    int64_t deleted_us        # those created before
    const uint64_t* sequences     # and these, in order
    uint32_t count


cdef bint is_leaving(const Leaving* leaving, int64_t created_time, uint64_t sequence) noexcept nogil:
    cdef uint32_t low = 0
    cdef uint32_t high = leaving.count
    cdef uint32_t middle
    if created_time < leaving.deleted_us:
        return True
    while low < high:
        middle = (low + high) >> 1
        if leaving.sequences[middle] < sequence:
            low = middle + 1
        else:
            high = middle
    return low < leaving.count and leaving.sequences[low] == sequence


cdef Status refs_add_survivors(Entity* entity, BlockHeader* block, const Leaving* leaving) noexcept nogil:
    """Rows that don't leave live on; the others' variable bytes are retired."""
    cdef uint32_t i
    cdef RowRef* ref
    cdef Status status
    for i in range(block_count(block)):
        if not is_leaving(leaving, block_createds(block)[i], block_sequences(block)[i]):
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


cdef Status timeline_take(Entity* entity, const Leaving* leaving) noexcept nogil:
    """Gather every row that stays; the older blocks are retired, as the tail is when the entity is finished."""
    cdef uint32_t i
    cdef uint64_t at
    cdef Status status
    for i in range(entity.next.directory_first, entity.next.directory_count):
        at = directory_of(entity.view, entity.next.directory_at)[i].block_at
        status = refs_add_survivors(entity, block_of(entity.view, at), leaving)
        if status == OK:
            status = block_replace(entity, at)
        if status != OK:
            return status
    entity.first_changed = entity.next.directory_first
    return refs_add_survivors(entity, entity.tail, leaving) if entity.tail != NULL else OK


cdef Status entity_delete(Entity* entity, int64_t deleted_us) noexcept nogil:
    """Prepare a delete: take out every row created before it and remember when."""
    cdef Leaving leaving
    cdef Status status
    if entity.next.deleted_us >= deleted_us:
        return OK
    entity.next.deleted_us = deleted_us
    if entity.next.has_dropped and entity.next.dropped_max_created < deleted_us:
        entity.next.has_dropped = 0
    if entity.tail == NULL:
        entity.writer.entities_delta += 1
    leaving.deleted_us = deleted_us
    leaving.sequences = NULL
    leaving.count = 0
    status = timeline_take(entity, &leaving)
    if status != OK:
        return status
    if entity.tail != NULL and block_count(entity.tail) > 0 and entity.writer.refs.count == 0:
        entity.writer.live_delta -= 1
    return entity_finish(entity, <RowRef*>entity.writer.refs.data, <uint32_t>entity.writer.refs.count)


cdef int sequence_compare(const void* a, const void* b) noexcept nogil:
    cdef uint64_t x = (<const uint64_t*>a)[0]
    cdef uint64_t y = (<const uint64_t*>b)[0]
    return -1 if x < y else 1 if x > y else 0


cdef Status entity_replace(
    Entity* entity, RowRef* fresh, uint32_t count, uint64_t* replaced, uint32_t replaced_count,
) noexcept nogil:
    """Prepare new rows, in order, of an entity that has rows, of which those with these sequences leave."""
    cdef Leaving leaving
    cdef RowRef* refs
    cdef Status status
    count = fresh_filter(entity, fresh, count)
    entity.writer.rows_delta += count
    qsort(replaced, replaced_count, 8, sequence_compare)
    leaving.deleted_us = NEVER
    leaving.sequences = replaced
    leaving.count = replaced_count
    status = timeline_take(entity, &leaving)
    if status != OK:
        return status
    refs = <RowRef*>vector_add(&entity.writer.refs, count, sizeof(RowRef))
    if refs == NULL:
        return NO_MEMORY
    memcpy(refs, fresh, count * sizeof(RowRef))
    refs = <RowRef*>entity.writer.refs.data
    qsort(refs, entity.writer.refs.count, sizeof(RowRef), ref_compare)
    entity.writer.live_delta += (entity.writer.refs.count > 0) - (block_count(entity.tail) > 0)
    return entity_finish(entity, refs, <uint32_t>entity.writer.refs.count)


# --- what an entity remembers ----------------------------------------------------------------------------------------

cdef Status entity_remember(Entity* entity, const int64_t* given) noexcept nogil:
    """Prepare a head that also remembers `given` (see Table.prepare_heads), as another table's head did."""
    cdef TimelineHead* next = &entity.next
    next.deleted_us = max(next.deleted_us, given[0])
    if given[1]:
        drop_note(entity, given[2], given[3])
        next.dropped_max_created = max(next.dropped_max_created, given[4])
        if row_order(next.dropped_last_event, next.dropped_last_created, given[5], given[6]) < 0:
            next.dropped_last_event = given[5]
            next.dropped_last_created = given[6]
    if entity.tail == NULL:
        entity.writer.entities_delta += 1
        return entity_finish(entity, NULL, 0)
    return entity_finish_head(entity)
