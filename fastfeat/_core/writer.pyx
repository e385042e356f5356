"""Writer: how a batch becomes visible, all of it or none.

    group rows by entity -> prepare each entity aside (entity.pyx) -> publish every entity -> retire what was replaced

    Preparing may fail (the arena is full) and then gives everything back; publishing is a run of stores that can't
    fail.

Invariant:   before publishing, nothing that a reader can reach has changed, except slots claimed with block_at 0, which
             readers take for absent, and shards' slots replaced by larger copies of themselves.
Ordering:    each publishing store is a release store; readers' acquire loads are in timeline.pyx. Retired pieces carry
             the epoch taken after the stores (see arena.pyx) and wait for older pins to leave.
Concurrency: one writer per shard. Disjoint shard ranges may be prepared by different threads at once.
Errors:      ARENA_FULL or NO_MEMORY, with everything as it was.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcmp, memmove, memset

from .arena cimport epoch_advance, epoch_oldest_pin, extent_free, heap_free
from .atomics cimport atomic_store_u64, ff_seeded_bug, prefetch
from .builder cimport Entity, Pending, Piece, Retired, RowRef, ref_compare, vector_add, vector_clear
from .columns cimport batch_encode_rows, batch_sequence, key_at, key_size
from .entity cimport entity_begin, entity_delete, entity_prepare, entity_remember, entity_replace
from .index cimport slot_find, slots_alloc, slots_mask, slots_of, slots_rehash, slots_size
from .layout cimport SHARDS_MAX, BlockHeader, Slot
from .status cimport ARENA_FULL, NO_MEMORY, OK
from .timeline cimport (
    block_head_at, block_key, block_key_size, block_of, block_put_count, block_put_head, shard_of,
)

# --- grouping --------------------------------------------------------------------------------------------------------

cdef bint keys_equal(const KeyView* keys, int64_t a, int64_t b) noexcept nogil:
    return key_size(keys, a) == key_size(keys, b) and memcmp(key_at(keys, a), key_at(keys, b), key_size(keys, a)) == 0


cdef Status grouping_make(
    Grouping* group, const TableView* view, const KeyView* keys, const uint64_t* hashes,
) noexcept nogil:
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
    free(group.replaced.data)
    free(group.replaced_at)
    free(group.replaced_counts)
    memset(group, 0, sizeof(Grouping))


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
    if larger == 0:                       # nearly full: most of them may be known already; slot_claim decides
        return OK
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


cdef Slot* slot_claim(
    const TableView* view, uint64_t hash, const uint8_t* key, uint16_t size, uint64_t taken, bint* is_claimed,
) noexcept nogil:
    """The entity's slot. An empty one is claimed, but not the last: NULL. Another key's of this hash is passed over."""
    cdef uint64_t word = view.slots[shard_of(view, hash)]
    cdef uint64_t step = 0
    cdef Slot* slot
    cdef BlockHeader* block
    is_claimed[0] = False
    while True:
        slot = slot_find(slots_of(view.arena.base, word), slots_mask(word), hash, &step)
        if slot.hash == 0:
            if taken >= slots_mask(word):
                return NULL
            slot.block_at = 0
            atomic_store_u64(&slot.hash, hash)
            is_claimed[0] = True
            return slot
        if slot.block_at != 0:
            block = block_of(view, slot.block_at)
            if block_key_size(block) == size and memcmp(block_key(block), key, size) == 0:
                return slot
        step += 1


cdef Status pending_add(
    const TableView* view, ShardWriter* writer, uint64_t hash, const uint8_t* key, uint16_t size
) noexcept nogil:
    cdef Pending* pending = <Pending*>vector_add(&writer.pending, 1, sizeof(Pending))
    cdef uint64_t taken = view.shards[shard_of(view, hash)].entities + writer.claimed
    cdef bint is_claimed
    if pending == NULL:
        return NO_MEMORY
    memset(pending, 0, sizeof(Pending))
    pending.slot = slot_claim(view, hash, key, size, taken, &is_claimed)
    if pending.slot == NULL:
        return ARENA_FULL
    pending.is_claimed = is_claimed
    writer.claimed += is_claimed
    return OK


cdef void entity_open(
    Entity* entity, const TableView* view, ShardWriter* writers, const KeyView* keys, int64_t i, uint64_t hash,
    size_t pending,
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
    """Prepare the entity whose first row in the batch is i; `image` is that row's."""
    cdef uint32_t count = group.counts[i]
    cdef RowRef* refs = one
    cdef uint32_t j
    cdef int64_t row = i
    cdef bint is_sorted = True
    cdef uint64_t* replaced
    cdef Status status
    if count > 1:
        refs = <RowRef*>malloc(count * sizeof(RowRef))
        if refs == NULL:
            return NO_MEMORY
        if group.following[i] == i + 1:   # most often a run, which block_build encodes at once
            image = NULL
    for j in range(count):
        refs[j].event_time = entity.batch.event_times[row]
        refs[j].created_time = entity.batch.created_times[row]
        refs[j].sequence = batch_sequence(entity.batch, row)
        refs[j].image = image if j == 0 else NULL
        refs[j].staged = row
        if j > 0 and ref_compare(&refs[j - 1], &refs[j]) > 0:
            is_sorted = False
        row = group.following[row]
    if not is_sorted:
        qsort(refs, count, sizeof(RowRef), ref_compare)
    if group.replaced_counts == NULL or group.replaced_counts[i] == 0:
        status = entity_prepare(entity, refs, count)
    else:
        replaced = <uint64_t*>group.replaced.data + group.replaced_at[i]
        status = entity_replace(entity, refs, count, replaced, group.replaced_counts[i])
    if count > 1:
        free(refs)
    return status


cdef inline void prefetch_old(const TableView* view, const Pending* pending) noexcept nogil:
    """Ask for the rest of a packed row and for the head, which merging will read; the block's first line is here."""
    cdef const BlockHeader* block
    if pending.slot.block_at != 0:
        block = block_of(view, pending.slot.block_at)
        prefetch(<const uint8_t*>block + 64)
        if block_head_at(block) != 0:
            prefetch(view.arena.base + block_head_at(block))
            prefetch(view.arena.base + block_head_at(block) + 64)


cdef Status shards_prepare(
    const TableView* view, ShardWriter* writers, const BatchView* batch, const Grouping* group, const uint64_t* hashes,
    uint32_t shard_low, uint32_t shard_high, int64_t now_us, uint8_t* staging,
) noexcept nogil:
    cdef Entity entity
    cdef RowRef one
    cdef int64_t rows[STAGED_ROWS]
    cdef size_t pending[STAGED_ROWS]
    cdef int64_t following = 0
    cdef int64_t count
    cdef int64_t i
    cdef int64_t row
    cdef uint32_t shard
    cdef uint64_t word
    cdef uint64_t block_at
    cdef const uint8_t* image
    cdef const uint8_t* key
    cdef Status status
    for shard in range(shard_low, shard_high):
        status = shard_make_room(view, writers, shard, group.per_shard[shard])
        if status != OK:
            return status
    entity.batch = batch
    entity.urgent = False
    entity.now_us = now_us
    while True:
        count = 0
        while following < batch.count and count < STAGED_ROWS:
            shard = shard_of(view, hashes[following])
            if group.counts[following] and shard_low <= shard < shard_high:
                word = view.slots[shard]
                prefetch(&slots_of(view.arena.base, word)[hashes[following] & slots_mask(word)])
                rows[count] = following
                count += 1
            following += 1
        if count == 0:
            return shards_reserve(writers, shard_low, shard_high)
        if batch.columns != NULL:
            batch_encode_rows(batch, rows, count, staging)
        # Ask for the block in each first slot, which most often is the entity's. Why here and not in a function: the
        # compiler left its call out, as of one without an effect.
        for i in range(count):
            word = view.slots[shard_of(view, hashes[rows[i]])]
            block_at = slots_of(view.arena.base, word)[hashes[rows[i]] & slots_mask(word)].block_at
            if block_at != 0:
                prefetch(view.arena.base + block_at)
        for i in range(count):
            row = rows[i]
            shard = shard_of(view, hashes[row])
            pending[i] = writers[shard].pending.count
            key = key_at(&batch.keys, row)
            status = pending_add(view, &writers[shard], hashes[row], key, key_size(&batch.keys, row))
            if status != OK:
                return status
            prefetch_old(view, <Pending*>writers[shard].pending.data + pending[i])
        for i in range(count):
            row = rows[i]
            entity_open(&entity, view, writers, &batch.keys, row, hashes[row], pending[i])
            image = staging + i * view.row_stride if batch.columns != NULL else batch.images + row * view.row_stride
            status = group_prepare(&entity, group, row, image, &one)
            if status != OK:
                return status


cdef Status shards_prepare_ordered(
    const TableView* view, ShardWriter* writers, const KeyView* keys, const uint64_t* hashes, const BatchView* batch,
    const int64_t* begins, RowRef* refs, int64_t now_us,
) noexcept nogil:
    cdef Entity entity
    cdef uint32_t per_shard[SHARDS_MAX]
    cdef uint32_t shard
    cdef int64_t g
    cdef int64_t i
    cdef int64_t count
    cdef size_t pending
    cdef Status status
    memset(per_shard, 0, sizeof(per_shard))
    for g in range(keys.count):
        per_shard[shard_of(view, hashes[g])] += 1
    for shard in range(<uint32_t>1 << view.shard_bits):
        status = shard_make_room(view, writers, shard, per_shard[shard])
        if status != OK:
            return status
    entity.batch = batch
    entity.urgent = False
    entity.now_us = now_us
    for g in range(keys.count):
        shard = shard_of(view, hashes[g])
        pending = writers[shard].pending.count
        status = pending_add(view, &writers[shard], hashes[g], key_at(keys, g), key_size(keys, g))
        if status != OK:
            return status
        entity_open(&entity, view, writers, keys, g, hashes[g], pending)
        count = begins[g + 1] - begins[g]
        for i in range(count):
            refs[i].event_time = batch.event_times[begins[g] + i]
            refs[i].created_time = batch.created_times[begins[g] + i]
            refs[i].sequence = batch_sequence(batch, begins[g] + i)
            refs[i].image = NULL
            refs[i].staged = begins[g] + i
        status = entity_prepare(&entity, refs, <uint32_t>count)
        if status != OK:
            return status
    return shards_reserve(writers, 0, <uint32_t>1 << view.shard_bits)


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
            status = pending_add(view, &writers[shard], hashes[i], key_at(keys, i), key_size(keys, i))
            if status != OK:
                return status
            entity_open(&entity, view, writers, keys, i, hashes[i], pending)
            status = entity_delete(&entity, deleted_us)
            if status != OK:
                return status
    return shards_reserve(writers, 0, <uint32_t>1 << view.shard_bits)


cdef Status shards_prepare_heads(
    const TableView* view, ShardWriter* writers, const KeyView* keys, const Grouping* group, const uint64_t* hashes,
    const int64_t* given,
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
    entity.urgent = False
    entity.now_us = 0
    for i in range(keys.count):
        if group.counts[i]:
            shard = shard_of(view, hashes[i])
            pending = writers[shard].pending.count
            status = pending_add(view, &writers[shard], hashes[i], key_at(keys, i), key_size(keys, i))
            if status != OK:
                return status
            entity_open(&entity, view, writers, keys, i, hashes[i], pending)
            status = entity_remember(&entity, given + 7 * i)
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
        block_put_head(pending.tail, pending.head_at)
    if pending.count != 0:
        block_put_count(pending.tail, pending.count)


cdef void shard_clear(ShardWriter* writer) noexcept nogil:
    vector_clear(&writer.allocated)
    vector_clear(&writer.replaced)
    vector_clear(&writer.pending)
    vector_clear(&writer.refs)
    vector_clear(&writer.entries)
    writer.rows_delta = 0
    writer.entities_delta = 0
    writer.live_delta = 0
    writer.claimed = 0


cdef void shards_commit(
    const TableView* view, ShardWriter* writers, uint32_t shard_low, uint32_t shard_high,
) noexcept nogil:
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
        # Why atomic: others may ask for the sizes meanwhile.
        atomic_store_u64(&view.shards[shard].rows, view.shards[shard].rows + writer.rows_delta)
        view.shards[shard].entities += writer.entities_delta
        atomic_store_u64(&view.shards[shard].live, view.shards[shard].live + writer.live_delta)
    epoch = epoch_advance(&view.arena) - ff_seeded_bug("retired_an_epoch_early")
    for shard in range(shard_low, shard_high):
        writer = &writers[shard]
        for i in range(writer.replaced.count):
            retired = <Retired*>vector_add(&writer.retired, 1, sizeof(Retired))     # reserved: can't fail
            retired.at = (<Piece*>writer.replaced.data)[i].at
            retired.size = (<Piece*>writer.replaced.data)[i].size
            retired.is_slots = False
            retired.epoch = epoch
        shard_clear(writer)


cdef void shards_abort(
    const TableView* view, ShardWriter* writers, uint32_t shard_low, uint32_t shard_high,
) noexcept nogil:
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


cdef void shards_reclaim(
    const TableView* view, ShardWriter* writers, uint32_t shard_low, uint32_t shard_high,
) noexcept nogil:
    """Free what was retired and can't be seen any more."""
    cdef uint64_t oldest = epoch_oldest_pin(&view.arena)
    cdef uint32_t shard
    cdef size_t first
    cdef size_t size
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
            vector_clear(&writer.retired)
        elif first > 1024 and 2 * first > writer.retired.count:
            writer.retired.count -= first
            size = writer.retired.count * sizeof(Retired)
            memmove(writer.retired.data, writer.retired.data + first * sizeof(Retired), size)
            writer.retired_first = 0
