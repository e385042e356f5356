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
Safety:      a reader of another process that was stopped for long loses its pin, and with it the promises above: what
             it reads next may be anything and may change while it reads. So a reader loads each offset and count once
             into a local, holds what it is about to read to the arena's bounds, and addresses by the locals alone. The
             worst is then a wrong row or TORN, which is thrown away with the pin: no fault, no endless search, no
             write beyond its own buffers. Writers, alone with their memory, use the unchecked functions of the .pxd.
Errors:      none: the outcome of a read is a status.
Source:      docs/SEMANTICS.md, "Point read".
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .arena cimport arena_end
from .atomics cimport atomic_load_u64, copy_once, ff_unlikely, load_once_u64
from .columns cimport KeyView, key_at, key_size
from .index cimport hash_bytes, hash_u64
from .layout cimport BLOCK_HEADER_SIZE, NEVER, STAMP_SIZE, BlockHeader, DirectoryEntry, TimelineHead
from .status cimport BEFORE_HISTORY, DELETED, EXPIRED, NOT_FOUND, PRESENT, TORN

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


cdef inline int64_t block_search(const BlockView* block, int64_t event_us, int64_t known_us) noexcept nogil:
    """The last of the block's rows with event_time <= event_us and created_time <= known_us, or -1."""
    cdef const int64_t* events = block.events
    cdef const int64_t* createds = events + block.capacity
    cdef int64_t low = 0
    cdef int64_t high = block.count
    cdef int64_t middle
    if high > 0 and events[high - 1] <= event_us:
        low = high
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


cdef inline const uint8_t* row_live(
    const TableView* view, const BlockView* block, int64_t i, int64_t event_us, uint8_t* status, int64_t* event_time
) noexcept nogil:
    """The row where its ttl allows, NULL and EXPIRED otherwise."""
    cdef int64_t event = <int64_t>load_once_u64(&block.events[i])
    cdef int64_t ttl_us = <int64_t>atomic_load_u64(<const uint64_t*>&view.ttl_us)
    event_time[0] = event
    # Why unsigned: the row is at or before event_us, and nothing else about their distance is known.
    if ttl_us >= 0 and <uint64_t>event_us - <uint64_t>event > <uint64_t>ttl_us:
        status[0] = EXPIRED
        return NULL
    status[0] = PRESENT
    return <const uint8_t*>(block.events + 3 * block.capacity) + <uint64_t>i * view.row_stride


cdef inline const uint8_t* row_torn(uint8_t* status, int64_t* event_time) noexcept nogil:
    event_time[0] = 0
    status[0] = TORN
    return NULL


cdef const uint8_t* timeline_older(
    const TableView* view, uint64_t head_at, int64_t event_us, int64_t known_us, uint8_t* status, int64_t* event_time,
) noexcept nogil:
    """The read where the tail has no row for it: older blocks, then what the head remembers."""
    cdef TimelineHead head
    cdef const DirectoryEntry* entries
    cdef BlockView block
    cdef uint64_t end = arena_end(&view.arena)
    cdef uint64_t unread = end         # blocks lie side by side: together no more than the arena holds
    cdef uint64_t size
    cdef uint32_t i
    cdef int64_t found
    if not is_inside(end, head_at, sizeof(TimelineHead)):
        return row_torn(status, event_time)
    copy_once(&head, head_of(view, head_at), sizeof(TimelineHead))
    if not is_inside(end, head.directory_at, <uint64_t>head.directory_count * sizeof(DirectoryEntry)):
        return row_torn(status, event_time)
    entries = directory_of(view, head.directory_at)
    i = head.directory_first
    if head.directory_count > head.directory_first:
        i = directory_search(entries, head.directory_first, head.directory_count, event_us)
    while i > head.directory_first:
        i -= 1
        if not block_open(view, load_once_u64(&entries[i].block_at), &block):
            return row_torn(status, event_time)
        size = BLOCK_HEADER_SIZE + <uint64_t>block.count * STAMP_SIZE
        if size > unread:
            return row_torn(status, event_time)
        unread -= size
        found = block_search(&block, event_us, known_us)
        if found >= 0:
            return row_live(view, &block, found, event_us, status, event_time)
    if head.has_dropped and event_us >= head.dropped_min_event and known_us >= head.dropped_min_created:
        status[0] = BEFORE_HISTORY
    elif head.deleted_us != NEVER:
        status[0] = DELETED
    else:
        status[0] = NOT_FOUND
    return NULL


cdef inline const uint8_t* timeline_as_of(
    const TableView* view, const BlockView* block, int64_t event_us, int64_t known_us,
    uint8_t* status, int64_t* event_time,
) noexcept nogil:
    """One entity's row at (T, K)."""
    cdef uint64_t head_at
    cdef int64_t found = block_search(block, event_us, known_us)
    if found >= 0:
        return row_live(view, block, found, event_us, status, event_time)
    event_time[0] = 0
    head_at = atomic_load_u64(&block.header.head_at)
    if head_at != 0:
        return timeline_older(view, head_at, event_us, known_us, status, event_time)
    status[0] = NOT_FOUND
    return NULL


cdef uint8_t timeline_find(
    const TableView* view, uint64_t hash, const uint8_t* key, uint16_t size, BlockView* block
) noexcept nogil:
    """Open the entity's tail block: PRESENT, NOT_FOUND or TORN."""
    cdef uint64_t word = atomic_load_u64(&view.slots[shard_of(view, hash)])
    cdef uint64_t at = hash
    cdef uint64_t block_at = next_block(view, word, hash, &at)
    while block_at != 0:
        if not block_open(view, block_at, block):
            return TORN
        if block_has_key(block, key, size):
            return PRESENT
        block_at = next_block(view, word, hash, &at)
    return NOT_FOUND


cdef BlockHeader* timeline_block(
    const TableView* view, uint64_t hash, const uint8_t* key, uint16_t size,
) noexcept nogil:
    cdef BlockView block
    return block.header if timeline_find(view, hash, key, size, &block) == PRESENT else NULL


cdef void timelines_as_of(
    const TableView* view, const KeyView* keys, const uint64_t* hashes, int64_t low, int64_t high,
    const int64_t* event_us, const int64_t* known_us, int64_t step,
    const uint8_t** rows, uint8_t* statuses, int64_t* event_times,
) noexcept nogil:
    cdef uint64_t blocks_at[GROUP]
    cdef BlockView block
    cdef uint8_t found
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
            blocks_at[i - start] = first_block(view, hashes[i])
        if end - start == 1 and blocks_at[0] != 0:
            # Alone, there is nothing to overlap its misses with: ask for the whole packed row with its header.
            prefetch_lines(view, blocks_at[0] + 2 * LINE, view.row_stride)
        for i in range(start, end):
            found = NOT_FOUND
            if blocks_at[i - start] != 0:
                found = PRESENT
                if ff_unlikely(not block_open(view, blocks_at[i - start], &block)):
                    found = TORN
                elif not block_has_key(&block, key_at(keys, i), key_size(keys, i)):
                    found = timeline_find(view, hashes[i], key_at(keys, i), key_size(keys, i), &block)
            if found == PRESENT:
                rows[i] = timeline_as_of(
                    view, &block, event_us[i * step], known_us[i * step], &statuses[i], &event_times[i]
                )
            else:
                rows[i] = NULL
                statuses[i] = found
                event_times[i] = 0
