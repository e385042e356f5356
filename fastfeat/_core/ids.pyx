"""Ids: which row of an event counts, so that an event that is sent again changes nothing.

    a batch's rows by entity --(key, event id)--> index --> new:        the row goes on its way
                                                            known:      the row is left out of the batch
                                                            earlier:    it goes, and the known row is taken out

    Of an entity's rows with one event id the one that was created first counts (created_time, then sequence). Of rows
    that a delete took none does.

    The index is memory of the writing process alone: readers never ask it. It is made from the table's rows before the
    first write, and again whenever it is too full. So recovery, a shared arena that is taken up, and rows that
    retention dropped or a delete took need no code here: what the table does not hold is forgotten at the next making.

Promise:     after ids_sift a batch holds no two rows of one event, and names those that it takes the place of.
Invariant:   a slot's row is in the table, on its way in, dropped by retention, or created before its entity's delete.
Concurrency: the table's writer only.
Errors:      NO_MEMORY, with the index as it was. A change that was prepared and is given up calls ids_undo.
Why not in the arena: it would double what an event takes there, and nobody who only reads needs it.
Why fingerprints: ids may be long. Two that share 128 bits of SipHash under a secret seed are not to be found.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from .builder cimport vector_add
from .columns cimport ArrowColumn, BatchView, Cell, batch_sequence, key_at, key_size
from .index cimport hash_bytes, slots_mask, slots_of
from .layout cimport NEVER, BlockHeader, TimelineHead
from .status cimport NO_MEMORY, OK, Status
from .timeline cimport (
    TableView, block_count, block_createds, block_head_at, block_key, block_key_size, block_of, block_row,
    block_sequences, directory_of, head_of, timeline_block,
)
from .writer cimport Grouping

cdef enum RowState:
    UNSEEN = 0
    LEFT_OUT = 1
    SIFTED = 2                # first of an entity whose rows are done

cdef struct IdChange:
    Id before
    bint was_absent


# --- the index -------------------------------------------------------------------------------------------------------

cdef Status mark_make(
    IdIndex* ids, const TableView* view, const uint8_t* key, uint64_t size, const uint8_t* id, uint64_t id_size,
    uint64_t* mark,
) noexcept nogil:
    """The fingerprint of an entity's event id."""
    cdef uint64_t second[2]
    cdef char* text
    ids.text.count = 0
    text = vector_add(&ids.text, 8 + size + id_size, 1)
    if text == NULL:
        return NO_MEMORY
    memcpy(text, &size, 8)
    memcpy(text + 8, key, size)
    memcpy(text + 8 + size, id, id_size)
    second[0] = ~view.seed[0]
    second[1] = ~view.seed[1]
    mark[0] = hash_bytes(view.seed, <uint8_t*>text, 8 + size + id_size)     # never 0
    mark[1] = hash_bytes(second, <uint8_t*>text, 8 + size + id_size)
    return OK


cdef Id* id_find(const IdIndex* ids, const uint64_t* mark) noexcept nogil:
    """The slot of this mark, or the empty one where it belongs."""
    cdef uint64_t at = mark[0]
    cdef Id* slot
    while True:
        slot = &ids.slots[at & ids.mask]
        if slot.mark[0] == 0 or slot.mark[0] == mark[0] and slot.mark[1] == mark[1]:
            return slot
        at += 1


cdef void id_forget(IdIndex* ids, Id* slot) noexcept nogil:
    """Empty a slot, and move those behind it so that every search still finds its end."""
    cdef uint64_t hole = slot - ids.slots
    cdef uint64_t at = hole
    ids.count -= 1
    while True:
        at = (at + 1) & ids.mask
        if ids.slots[at].mark[0] == 0:
            break
        # Its search begins at its mark: it may move to the hole unless it begins behind it.
        if ((at - ids.slots[at].mark[0]) & ids.mask) >= ((at - hole) & ids.mask):
            ids.slots[hole] = ids.slots[at]
            hole = at
    ids.slots[hole].mark[0] = 0


cdef inline bint is_earlier(
    int64_t created_a, uint64_t sequence_a, int64_t created_b, uint64_t sequence_b
) noexcept nogil:
    return created_a < created_b or created_a == created_b and sequence_a < sequence_b


cdef Status block_add(IdIndex* ids, const TableView* view, BlockHeader* tail, BlockHeader* block) noexcept nogil:
    """The rows of one block of the entity of this tail."""
    cdef uint64_t mark[2]
    cdef const uint8_t* row
    cdef const uint8_t* id
    cdef uint64_t size
    cdef uint32_t i
    cdef Id* slot
    cdef Status status
    for i in range(block_count(block)):
        row = block_row(view, block, i)
        id = row + ids.offset
        size = ids.width
        if ids.is_variable:
            size = (<const Cell*>id).size
            id = view.arena.base + (<const uint64_t*>(row + view.heap_offset))[0] + 8 + (<const Cell*>id).offset
        status = mark_make(ids, view, block_key(tail), block_key_size(tail), id, size, mark)
        if status != OK:
            return status
        slot = id_find(ids, mark)
        if slot.mark[0] == 0:
            ids.count += 1
        elif is_earlier(slot.created_time, slot.sequence, block_createds(block)[i], block_sequences(block)[i]):
            continue
        memcpy(slot.mark, mark, 16)
        slot.created_time = block_createds(block)[i]
        slot.sequence = block_sequences(block)[i]
        slot.row = 0
    return OK


cdef Status table_add(IdIndex* ids, const TableView* view) noexcept nogil:
    """Every row of the table."""
    cdef uint32_t shard
    cdef uint64_t word
    cdef uint64_t i
    cdef uint32_t j
    cdef uint64_t block_at
    cdef BlockHeader* tail
    cdef const TimelineHead* head
    cdef Status status
    for shard in range(<uint32_t>1 << view.shard_bits):
        word = view.slots[shard]
        for i in range(slots_mask(word) + 1):
            block_at = slots_of(view.arena.base, word)[i].block_at
            if slots_of(view.arena.base, word)[i].hash == 0 or block_at == 0:
                continue
            tail = block_of(view, block_at)
            if block_head_at(tail) != 0:
                head = head_of(view, block_head_at(tail))
                for j in range(head.directory_first, head.directory_count):
                    block_at = directory_of(view, head.directory_at)[j].block_at
                    status = block_add(ids, view, tail, block_of(view, block_at))
                    if status != OK:
                        return status
            status = block_add(ids, view, tail, tail)
            if status != OK:
                return status
    return OK


cdef Status ids_reserve(IdIndex* ids, const TableView* view, uint64_t added) noexcept nogil:
    """Make sure that `added` more ids fit; where they don't, make the index anew from the table."""
    cdef IdIndex new
    cdef uint64_t rows = added
    cdef uint64_t slots = 64
    cdef uint32_t shard
    cdef Status status
    if ids.is_made and 10 * (ids.count + added) <= 7 * (ids.mask + 1):
        return OK
    for shard in range(<uint32_t>1 << view.shard_bits):
        rows += view.shards[shard].rows
    while slots < 2 * rows:
        slots *= 2
    new = ids[0]
    new.slots = <Id*>calloc(slots, sizeof(Id))
    if new.slots == NULL:
        return NO_MEMORY
    new.mask = slots - 1
    new.count = 0
    new.is_made = True
    status = table_add(&new, view)
    if status != OK:
        free(new.slots)
        new.slots = ids.slots
        ids.text = new.text
        return status
    free(ids.slots)
    ids[0] = new
    return OK


cdef void ids_settle(IdIndex* ids) noexcept nogil:
    """The batch is published."""
    ids.undo.count = 0


cdef void ids_undo(IdIndex* ids) noexcept nogil:
    """The batch is given up: the index as it was before."""
    cdef IdChange* change
    cdef Id* slot
    while ids.undo.count > 0:
        ids.undo.count -= 1
        change = <IdChange*>ids.undo.data + ids.undo.count
        slot = id_find(ids, change.before.mark)
        if change.was_absent:
            id_forget(ids, slot)
        else:
            slot[0] = change.before


cdef void ids_free(IdIndex* ids) noexcept nogil:
    free(ids.slots)
    free(ids.undo.data)
    free(ids.text.data)
    memset(ids, 0, sizeof(IdIndex))


# --- sifting a batch -------------------------------------------------------------------------------------------------

cdef Status row_mark(
    IdIndex* ids, const TableView* view, const BatchView* batch, int64_t row, uint64_t* mark
) noexcept nogil:
    """The mark of a batch's row."""
    cdef const ArrowColumn* column
    cdef const int32_t* offsets
    cdef const uint8_t* id
    cdef uint64_t size = ids.width
    if batch.columns == NULL:
        id = batch.images + row * batch.row_stride + ids.offset
        if ids.is_variable:
            size = (<const Cell*>id).size
            id = batch.heap + batch.heap_offsets[row] + (<const Cell*>id).offset
    else:
        column = &batch.columns[ids.field]
        id = column.data + (column.offset + row) * <int64_t>ids.width
        if ids.is_variable:
            offsets = <const int32_t*>column.offsets + column.offset + row
            size = <uint64_t>(offsets[1] - offsets[0])
            id = column.data + offsets[0]
    return mark_make(ids, view, key_at(&batch.keys, row), key_size(&batch.keys, row), id, size, mark)


cdef int64_t entity_deleted_us(
    const TableView* view, const BatchView* batch, int64_t row, uint64_t hash
) noexcept nogil:
    """When the row's entity was deleted last; rows created before it are none."""
    cdef BlockHeader* tail = timeline_block(view, hash, key_at(&batch.keys, row), key_size(&batch.keys, row))
    return NEVER if tail == NULL or block_head_at(tail) == 0 else head_of(view, block_head_at(tail)).deleted_us


cdef Status row_sift(
    IdIndex* ids, const TableView* view, const BatchView* batch, int64_t row, int64_t deleted_us, Grouping* group,
    uint8_t* states,
) noexcept nogil:
    """Leave the row out where its event is known, or let it take the known row's place."""
    cdef int64_t created_time = batch.created_times[row]
    cdef uint64_t sequence = batch_sequence(batch, row)
    cdef uint64_t mark[2]
    cdef uint64_t* replaced
    cdef IdChange* change
    cdef Id* slot
    cdef bint is_there
    cdef Status status
    if created_time < deleted_us:
        return OK
    status = row_mark(ids, view, batch, row, mark)
    if status != OK:
        return status
    slot = id_find(ids, mark)
    is_there = slot.mark[0] != 0 and slot.created_time >= deleted_us
    if is_there and not is_earlier(created_time, sequence, slot.created_time, slot.sequence):
        states[row] = LEFT_OUT
        return OK
    change = <IdChange*>vector_add(&ids.undo, 1, sizeof(IdChange))
    if change == NULL:
        return NO_MEMORY
    change.before = slot[0]
    change.was_absent = slot.mark[0] == 0
    memcpy(change.before.mark, mark, 16)
    if is_there and slot.row < batch.count and batch_sequence(batch, slot.row) == slot.sequence:
        states[slot.row] = LEFT_OUT
    elif is_there:
        replaced = <uint64_t*>vector_add(&group.replaced, 1, 8)
        if replaced == NULL:
            return NO_MEMORY
        replaced[0] = slot.sequence
    ids.count += slot.mark[0] == 0
    memcpy(slot.mark, mark, 16)
    slot.created_time = created_time
    slot.sequence = sequence
    slot.row = <uint32_t>row
    return OK


cdef Status replaced_note(Grouping* group, int64_t count, int64_t first, size_t before) noexcept nogil:
    """Say which published rows the entity of this first row loses."""
    if group.replaced_counts == NULL:
        group.replaced_counts = <uint32_t*>calloc(count, 4)
        group.replaced_at = <uint32_t*>calloc(count, 4)
        if group.replaced_counts == NULL or group.replaced_at == NULL:
            return NO_MEMORY
    group.replaced_at[first] = <uint32_t>before
    group.replaced_counts[first] = <uint32_t>(group.replaced.count - before)
    return OK


cdef Status entity_sift(
    IdIndex* ids, const TableView* view, const BatchView* batch, int64_t first, uint64_t hash, Grouping* group,
    uint8_t* states,
) noexcept nogil:
    """Sift the rows of one entity, and close the gaps that those left out leave in its chain."""
    cdef int64_t deleted_us = entity_deleted_us(view, batch, first, hash)
    cdef size_t before = group.replaced.count
    cdef uint32_t count = group.counts[first]
    cdef uint32_t kept = 0
    cdef uint32_t _
    cdef int64_t row = first
    cdef int64_t head = first
    cdef int64_t last = first
    cdef int64_t following
    cdef Status status
    for _ in range(count):
        status = row_sift(ids, view, batch, row, deleted_us, group, states)
        if status != OK:
            return status
        row = group.following[row]
    row = first
    group.counts[first] = 0
    for _ in range(count):
        following = group.following[row]      # of the last row, nothing
        if states[row] != LEFT_OUT:
            if kept == 0:
                head = row
            else:
                group.following[last] = <uint32_t>row
            last = row
            kept += 1
        row = following
    if kept == 0:
        return OK
    group.counts[head] = kept
    states[head] = SIFTED
    return OK if group.replaced.count == before else replaced_note(group, batch.count, head, before)


cdef Status ids_sift(
    IdIndex* ids, const TableView* view, const BatchView* batch, const uint64_t* hashes, Grouping* group,
) noexcept nogil:
    """Leave out of a grouped batch the rows of events that are known, and say which known rows others take out."""
    cdef uint8_t* states
    cdef int64_t i
    cdef Status status = ids_reserve(ids, view, batch.count)
    if status != OK:
        return status
    states = <uint8_t*>calloc(batch.count, 1)
    if states == NULL:
        return NO_MEMORY
    for i in range(batch.count):
        if group.counts[i] and states[i] != SIFTED:
            status = entity_sift(ids, view, batch, i, hashes[i], group, states)
            if status != OK:
                ids_undo(ids)
                break
    free(states)
    return status
