"""Timeline: the rows of one entity in (event_time, created_time, sequence) order, and the as-of read over them.

    slot.block_at --> tail block (the newest rows)                  TimelineHead (only where needed)
                      +--------+-----+--------+------+              +-----------+---------+-----------+
                      | header | key | stamps | rows | --head_at--> | directory | deleted | dropped.. |
                      +--------+-----+--------+------+              +-----------+---------+-----------+
                                                                         |
                                             older blocks in order <-----+  (first_event, block_at) each

    An entity with one row is one block of capacity 1: a packed record, found with two cache misses and read with its
    own lines. Its head_at is part of its shape, so that 50 float64 and all that belongs to them fill seven lines. More
    rows make larger blocks; when the tail is full the older ones go into the directory.

    stamps: event_time[capacity], created_time[capacity], sequence[capacity]; then row[capacity].

Invariant:   a published row never changes. Rows [0, count) are published; the writer fills row `count` and then stores
             count + 1 (release), which is part of the block's shape. Everything else is built aside and published by
             one store of the slot's block_at or of the tail's head_at, which for a block of one row is its shape too.
Invariant:   a non-empty directory's blocks all come before the tail in the order, and no block is empty.
Invariant:   dropped rows come before every kept row in the order, so a row that is found is the right one.
Ordering:    each acquire load here (block_at, head_at, shape) pairs with the release store of the same word in
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
from libc.string cimport memcmp

from .arena cimport arena_end
from .atomics cimport atomic_load_u64, copy_once, load_once_u64, prefetch_far
from .columns cimport KeyView, key_at, key_size
from .index cimport SearchPlan, block_fetch, hash_bytes, hash_u64s, lines_search
from .layout cimport BLOCK_HEADER_SIZE, HEAD_AT_SIZE, NEVER, STAMP_SIZE, BlockHeader, DirectoryEntry, TimelineHead
from .status cimport BEFORE_HISTORY, DELETED, EXPIRED, NOT_FOUND, PRESENT, TORN

cdef void keys_hash(
    const TableView* view, const KeyView* keys, int64_t low, int64_t high, uint64_t* hashes,
) noexcept nogil:
    """Hash keys [low, high) into hashes[low:high]."""
    cdef int64_t i
    if keys.offsets == NULL:
        hash_u64s(view.seed, <const uint64_t*>keys.data + low, high - low, hashes + low)
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
        if not block_open(view, load_once_u64(&entries[i].block_at), &block) or block.count == 0:
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
    head_at = block_head_at(block.header)
    if head_at != 0:
        return timeline_older(view, head_at, event_us, known_us, status, event_time)
    status[0] = NOT_FOUND
    return NULL


cdef uint8_t timeline_find(
    const TableView* view, uint64_t hash, const uint8_t* key, uint16_t size, BlockView* block
) noexcept nogil:
    """Open the entity's tail block: PRESENT, NOT_FOUND or TORN."""
    cdef uint64_t word = atomic_load_u64(&view.slots[shard_of(view, hash)])
    cdef uint64_t step = 0
    cdef uint64_t block_at = next_block(view, word, hash, &step)
    while block_at != 0:
        if not block_open(view, block_at, block):
            return TORN
        if block_has_key(block, key, size):
            return PRESENT
        block_at = next_block(view, word, hash, &step)
    return NOT_FOUND


cdef BlockHeader* timeline_block(
    const TableView* view, uint64_t hash, const uint8_t* key, uint16_t size,
) noexcept nogil:
    cdef BlockView block
    return block.header if timeline_find(view, hash, key, size, &block) == PRESENT else NULL


cdef const uint8_t* timeline_read(
    const TableView* view, const KeyView* keys, int64_t i, uint64_t hash, int64_t event_us, int64_t known_us,
    uint8_t* status, int64_t* event_time,
) noexcept nogil:
    """The read of one entity from its slot on, whatever it meets."""
    cdef BlockView block
    status[0] = timeline_find(view, hash, key_at(keys, i), key_size(keys, i), &block)
    if status[0] == PRESENT:
        return timeline_as_of(view, &block, event_us, known_us, status, event_time)
    event_time[0] = 0
    return NULL


cdef inline void blocks_find(
    const TableView* view, const uint64_t* hashes, int64_t count, uint64_t fetched, uint64_t* blocks_at,
) noexcept nogil:
    """first_block of up to GROUP hashes, whose slots are on their way; asks for `fetched` bytes from each shape on.

    A search that leaves its first cache line waits until all others are done, while its next line comes: a miss that
    the processor has to wait for takes longer than all else about an entity.
    """
    cdef uint8_t later[GROUP]
    cdef SearchPlan plan
    cdef int64_t waiting
    cdef int64_t i
    plan.base = view.arena.base
    plan.words = view.slots
    plan.shift = 63 - view.shard_bits
    plan.end = arena_end(&view.arena)
    plan.fetch_offset = HEAD_AT_SIZE
    plan.fetch_size = fetched
    waiting = lines_search(&plan, hashes, count, blocks_at, later)
    for i in range(waiting):
        blocks_at[later[i]] = first_block(view, hashes[later[i]])
        block_fetch(&plan, blocks_at[later[i]])


cdef void timelines_as_of(
    const TableView* view, uint32_t row_bytes, const KeyView* keys, const uint64_t* hashes, int64_t low, int64_t high,
    const int64_t* event_us, const int64_t* known_us, int64_t step,
    const uint8_t** rows, uint8_t* statuses, int64_t* event_times,
) noexcept nogil:
    cdef uint64_t blocks_at[GROUP]
    cdef uint64_t fetched = row_bytes if row_bytes < FETCH_MAX else FETCH_MAX
    cdef bint is_packed = view.keep_rows == 1     # one row a block: where it lies is known before its header is
    cdef int64_t start
    cdef int64_t end
    for start in range(low, high, 128):    # GROUP
        end = start + GROUP if start + GROUP < high else high
        if end < keys.count:              # the next group's, in this call or the next one
            prefetch_slots(view, hashes, end, end + GROUP if end + GROUP < keys.count else keys.count)
        blocks_find(
            view, hashes + start, end - start,
            BLOCK_HEADER_SIZE - HEAD_AT_SIZE + 8 + STAMP_SIZE + fetched if is_packed else 2 * LINE, blocks_at,
        )
        newest_read(
            view, fetched, is_packed, keys, hashes, start, end, blocks_at, event_us, known_us, step,
            rows, statuses, event_times,
        )


cdef inline void newest_read(
    const TableView* view, uint64_t fetched, bint is_packed, const KeyView* keys, const uint64_t* hashes,
    int64_t start, int64_t end, const uint64_t* blocks_at,
    const int64_t* event_us, const int64_t* known_us, int64_t step,
    const uint8_t** rows, uint8_t* statuses, int64_t* event_times,
) noexcept nogil:
    """timeline_read of entities [start, end), whose first blocks are known; asks for `fetched` bytes of each row.

    Most reads are of an entity's newest row: of it no more is looked at than that, with what does not change in
    locals. Whatever else there is, timeline_read meets from the slot on.
    """
    cdef const uint8_t* base = view.arena.base
    cdef const uint64_t* ints = <const uint64_t*>keys.data if keys.offsets == NULL else NULL
    cdef uint64_t arena_size = arena_end(&view.arena)     # every offset was loaded before: it covers them
    cdef uint64_t row_stride = view.row_stride
    cdef uint64_t ttl_us = atomic_load_u64(<const uint64_t*>&view.ttl_us)
    cdef uint64_t one_row = shape_make(1, 1, 8)
    cdef uint64_t one_mask = <uint64_t>0xFFFF << 48 | 1    # what of a shape does not depend on the head
    cdef uint64_t one_size = BLOCK_HEADER_SIZE + 8 + STAMP_SIZE + row_stride
    cdef uint64_t one_end = arena_size - one_size if one_size <= arena_size else 0     # where the last one may begin
    cdef const BlockHeader* header
    cdef const uint64_t* key
    cdef const int64_t* events
    cdef const uint8_t* row
    cdef uint64_t at
    cdef uint64_t shape
    cdef uint64_t size
    cdef uint32_t count
    cdef uint32_t capacity
    cdef uint32_t width
    cdef int64_t event
    cdef int64_t created
    cdef int64_t i
    for i in range(start, end):
        at = blocks_at[i - start]
        row = NULL
        if at - 1 < one_end and (at & 7) == 0 and ints != NULL:     # not 0, and inside
            key = <const uint64_t*>(base + at + BLOCK_HEADER_SIZE)
            shape = atomic_load_u64(&(<const BlockHeader*>(base + at)).shape)
            if shape & one_mask == one_row and key[0] == ints[i]:
                event = <int64_t>load_once_u64(&key[1])
                created = <int64_t>key[2]
                row = <const uint8_t*>(key + 4)
        if row == NULL:
            if at == 0:
                event_times[i] = 0
                statuses[i] = NOT_FOUND
                rows[i] = NULL
                continue
            if is_inside(arena_size, at, BLOCK_HEADER_SIZE):
                header = <const BlockHeader*>(base + at)
                key = <const uint64_t*>(header + 1)
                shape = atomic_load_u64(&header.shape)
                count = shape_count(shape)
                capacity = shape_capacity(shape)
                width = shape_key_size(shape)
                size = BLOCK_HEADER_SIZE + key_padded(width) + <uint64_t>capacity * (STAMP_SIZE + row_stride)
                if count - 1 < capacity and size <= arena_size - at and width == key_size(keys, i):   # 0 rows: not so
                    if memcmp(key, key_at(keys, i), width) == 0:
                        events = <const int64_t*>(<const uint8_t*>key + key_padded(width))
                        event = <int64_t>load_once_u64(&events[count - 1])
                        created = events[capacity + count - 1]
                        row = <const uint8_t*>(events + 3 * capacity) + (count - 1) * row_stride
        if row == NULL or event > event_us[i * step] or created > known_us[i * step]:
            rows[i] = timeline_read(
                view, keys, i, hashes[i], event_us[i * step], known_us[i * step], &statuses[i], &event_times[i]
            )
            if rows[i] != NULL:
                prefetch_far(<uint64_t>rows[i], fetched)
            continue
        event_times[i] = event
        # Why unsigned: the row is at or before event_us, and nothing else about their distance is known.
        if <int64_t>ttl_us >= 0 and <uint64_t>event_us[i * step] - <uint64_t>event > ttl_us:
            statuses[i] = EXPIRED
            row = NULL
        else:
            statuses[i] = PRESENT
            if not is_packed:             # else it came with its block
                prefetch_far(<uint64_t>row, fetched)
        rows[i] = row
