"""Timeline: the rows of one entity in (event_time, created_time, sequence) order, and the as-of read over them.

    slot.block_at --> tail block (the newest rows)                  TimelineHead (only where needed)
                      +--------+-----+--------+------+              +-----------+---------+-----------+
                      | header | key | stamps | rows | --head_at--> | directory | deleted | dropped.. |
                      +--------+-----+--------+------+              +-----------+---------+-----------+
                                                                         |
                                             older blocks in order <-----+  (first_event, block_at) each

    An entity with one row is one block of capacity 1: a packed record, found with two cache misses and read with its
    own lines. More rows make larger blocks; when the tail is full the older ones go into the directory.

    stamps: event_time[capacity], created_time[capacity], sequence[capacity]; then row[capacity].

Invariant:   a published row never changes. Rows [0, count) are published; the writer fills row `count` and then stores
             count + 1 (release). Everything else is built aside and published by one store of the slot's block_at or
             of the tail's head_at.
Invariant:   a non-empty directory's blocks all come before the tail in the order, and no block is empty.
Invariant:   dropped rows come before every kept row in the order, so a row that is found is the right one.
Ordering:    each acquire load here (block_at, head_at, count) pairs with the release store of the same word in
             writer.pyx.
             A reader may see a head newer than its tail, whose directory then repeats the tail: harmless, as the tail
             was already searched.
Concurrency: any number of readers under a pin; one writer per shard.
Errors:      none: the outcome of a read is a status.
Source:      docs/SEMANTICS.md, "Point read".
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from .atomics cimport atomic_load_u32, atomic_load_u64, prefetch
from .columns cimport KeyView, key_at, key_size
from .index cimport Slot, hash_bytes, hash_u64, slot_find, slots_mask, slots_of
from .layout cimport NEVER, BlockHeader, DirectoryEntry, TimelineHead
from .status cimport BEFORE_HISTORY, DELETED, EXPIRED, NOT_FOUND, PRESENT

cdef enum:
    GROUP = 128               # entities whose cache misses overlap
    LINE = 64


cdef void keys_hash(
    const TableView* view, const KeyView* keys, int64_t low, int64_t high, uint64_t* hashes,
) noexcept nogil:
    """Hash keys [low, high) into hashes[low:high]."""
    cdef int64_t i
    if keys.offsets == NULL:
        for i in range(low, high):
            hashes[i] = hash_u64(view.seed, (<const uint64_t*>keys.data)[i])
    else:
        for i in range(low, high):
            hashes[i] = hash_bytes(view.seed, key_at(keys, i), key_size(keys, i))


cdef inline int64_t block_search(
    const TableView* view, BlockHeader* block, uint32_t count, int64_t event_us, int64_t known_us
) noexcept nogil:
    """The last of the block's first `count` rows with event_time <= event_us and created_time <= known_us, or -1."""
    cdef const int64_t* events = block_events(block)
    cdef const int64_t* createds = events + block.capacity
    cdef int64_t low = 0
    cdef int64_t high = count
    cdef int64_t middle
    if count > 0 and events[count - 1] <= event_us:
        low = count
    while low < high:                     # low: rows known to be at or before event_us
        middle = (low + high) >> 1
        if events[middle] <= event_us:
            low = middle + 1
        else:
            high = middle
    low -= 1
    while low >= 0 and createds[low] > known_us:
        low -= 1
    return low


cdef inline uint32_t directory_search(
    const DirectoryEntry* entries, uint32_t first, uint32_t count, int64_t event_us
) noexcept nogil:
    """One past the last entry in [first, count) whose block begins at or before event_us."""
    cdef uint32_t low = first
    cdef uint32_t high = count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) >> 1
        if entries[middle].first_event <= event_us:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline const uint8_t* row_live(
    const TableView* view, BlockHeader* block, int64_t i, int64_t event_us, uint8_t* status, int64_t* event_time
) noexcept nogil:
    """The row where its ttl allows, NULL and EXPIRED otherwise."""
    event_time[0] = block_events(block)[i]
    if view.ttl_us >= 0 and event_us - event_time[0] > view.ttl_us:
        status[0] = EXPIRED
        return NULL
    status[0] = PRESENT
    return block_row(view, block, <uint32_t>i)


cdef const uint8_t* timeline_older(
    const TableView* view, const TimelineHead* head, int64_t event_us, int64_t known_us,
    uint8_t* status, int64_t* event_time,
) noexcept nogil:
    """The read where the tail has no row for it: older blocks, then what the head remembers."""
    cdef const DirectoryEntry* entries = directory_of(view, head.directory_at)
    cdef uint32_t i = head.directory_first
    cdef BlockHeader* block
    cdef int64_t found
    if head.directory_count > head.directory_first:
        i = directory_search(entries, head.directory_first, head.directory_count, event_us)
    while i > head.directory_first:
        i -= 1
        block = block_of(view, entries[i].block_at)
        found = block_search(view, block, atomic_load_u32(&block.count), event_us, known_us)
        if found >= 0:
            return row_live(view, block, found, event_us, status, event_time)
    if head.has_dropped and event_us >= head.dropped_min_event and known_us >= head.dropped_min_created:
        status[0] = BEFORE_HISTORY
    elif head.deleted_us != NEVER:
        status[0] = DELETED
    else:
        status[0] = NOT_FOUND
    return NULL


cdef inline const uint8_t* timeline_as_of(
    const TableView* view, BlockHeader* block, int64_t event_us, int64_t known_us,
    uint8_t* status, int64_t* event_time,
) noexcept nogil:
    """One entity's row at (T, K)."""
    cdef uint64_t head_at
    cdef int64_t found
    event_time[0] = 0
    if block == NULL:
        status[0] = NOT_FOUND
        return NULL
    found = block_search(view, block, atomic_load_u32(&block.count), event_us, known_us)
    if found >= 0:
        return row_live(view, block, found, event_us, status, event_time)
    head_at = atomic_load_u64(&block.head_at)
    if head_at != 0:
        return timeline_older(view, head_of(view, head_at), event_us, known_us, status, event_time)
    status[0] = NOT_FOUND
    return NULL


cdef inline BlockHeader* timeline_find(
    const TableView* view, uint64_t hash, const uint8_t* key, uint16_t size
) noexcept nogil:
    """The entity's tail block, or NULL."""
    cdef uint64_t word = atomic_load_u64(&view.slots[shard_of(view, hash)])
    cdef Slot* slots = slots_of(view.arena.base, word)
    cdef uint64_t at = hash
    cdef Slot* slot
    cdef uint64_t block_at
    cdef BlockHeader* block
    while True:
        slot = slot_find(slots, slots_mask(word), hash, &at)
        if slot.hash == 0:
            return NULL
        block_at = atomic_load_u64(&slot.block_at)
        if block_at != 0:
            block = block_of(view, block_at)
            if block_has_key(block, key, size):
                return block
        at += 1


cdef BlockHeader* timeline_block(
    const TableView* view, uint64_t hash, const uint8_t* key, uint16_t size,
) noexcept nogil:
    return timeline_find(view, hash, key, size)


cdef void timelines_as_of(
    const TableView* view, const KeyView* keys, const uint64_t* hashes, int64_t low, int64_t high,
    int64_t event_us, int64_t known_us, const uint8_t** rows, uint8_t* statuses, int64_t* event_times,
) noexcept nogil:
    cdef BlockHeader* blocks[GROUP]
    cdef int64_t start
    cdef int64_t end
    cdef int64_t i
    for start in range(low, high, 128):    # GROUP
        end = start + GROUP if start + GROUP < high else high
        if start == 0 and end > 1:
            prefetch_slots(view, hashes, start, end)
        if end < keys.count:              # the next group's, in this call or the next one
            prefetch_slots(view, hashes, end, end + GROUP if end + GROUP < keys.count else keys.count)
        for i in range(start, end):
            blocks[i - start] = timeline_find_fast(view, hashes[i])
        if end - start == 1 and blocks[0] != NULL:
            # Alone, there is nothing to overlap its misses with: ask for the whole packed row with its header.
            prefetch_lines(<uint8_t*>blocks[0] + 2 * LINE, view.row_stride)
        for i in range(start, end):
            if blocks[i - start] != NULL and not block_has_key(blocks[i - start], key_at(keys, i), key_size(keys, i)):
                blocks[i - start] = timeline_find(view, hashes[i], key_at(keys, i), key_size(keys, i))
            rows[i] = timeline_as_of(view, blocks[i - start], event_us, known_us, &statuses[i], &event_times[i])


cdef inline void prefetch_slots(
    const TableView* view, const uint64_t* hashes, int64_t start, int64_t end,
) noexcept nogil:
    cdef int64_t i
    cdef uint64_t word
    for i in range(start, end):
        word = atomic_load_u64(&view.slots[shard_of(view, hashes[i])])
        prefetch(&slots_of(view.arena.base, word)[hashes[i] & slots_mask(word)])


cdef inline void prefetch_lines(const uint8_t* at, uint32_t size) noexcept nogil:
    cdef uint32_t i
    for i in range(0, size, 64):          # LINE
        prefetch(at + i)


cdef inline bint block_has_key(BlockHeader* block, const uint8_t* key, uint16_t size) noexcept nogil:
    if block.key_size != size:
        return False
    if size == 8:
        return (<uint64_t*>block_key(block))[0] == (<const uint64_t*>key)[0]
    return memcmp(block_key(block), key, size) == 0


cdef inline BlockHeader* timeline_find_fast(const TableView* view, uint64_t hash) noexcept nogil:
    """The first block of this hash, its key not yet compared, its first lines on their way; or NULL."""
    cdef uint64_t word = atomic_load_u64(&view.slots[shard_of(view, hash)])
    cdef Slot* slots = slots_of(view.arena.base, word)
    cdef uint64_t at = hash
    cdef Slot* slot
    cdef uint64_t block_at
    while True:
        slot = slot_find(slots, slots_mask(word), hash, &at)
        if slot.hash == 0:
            return NULL
        block_at = atomic_load_u64(&slot.block_at)
        if block_at != 0:
            prefetch(view.arena.base + block_at)
            prefetch(view.arena.base + block_at + LINE)
            return block_of(view, block_at)
        at += 1
