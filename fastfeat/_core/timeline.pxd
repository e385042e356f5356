from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from libc.string cimport memcmp, memcpy

from .arena cimport ArenaView, arena_end
from .atomics cimport atomic_load_u64, atomic_store_u64, ff_unlikely, load_once_u64, prefetch
from .columns cimport Cell, KeyView
from .index cimport NOWHERE, Slot, slot_line, slots_are_inside, slots_mask, slots_next_block, slots_of
from .layout cimport BLOCK_HEADER_SIZE, HEAD_AT_SIZE, STAMP_SIZE, BlockHeader, DirectoryEntry, ShardHeader, TimelineHead

cdef enum:
    GROUP = 128               # entities whose cache misses overlap
    FETCH_MAX = 2048          # bytes of one row that are fetched at once: of a group, what the second cache holds
    LINE = 64
    TILE = 8                  # rows that a tile sums
    ROW_HEAP_MAX = 1 << 24    # columns.HEAP_SIZE_MAX


cdef struct SumColumn:        # a column of an event view that tiles sum
    uint32_t field
    uint32_t offset
    uint8_t kind


cdef struct TableView:        # one process's resolved pointers and the view's constants
    ArenaView arena
    uint64_t* slots           # a word per shard
    ShardHeader* shards
    uint64_t seed[2]
    uint32_t shard_bits
    uint32_t row_stride
    uint32_t heap_offset      # of a row's heap_at, 0: no variable cells
    uint32_t rows_max         # of one block
    uint32_t keep_rows        # 0: no such rule
    int64_t keep_us           # -1: no such rule
    int64_t ttl_us            # -1: for ever
    uint32_t sums_count       # columns that blocks keep tiles of, see tiles.pyx; 0: none, as in a state view
    const SumColumn* sums


cdef inline uint32_t key_padded(uint32_t size) noexcept nogil:
    return (size + 7) & ~<uint32_t>7


cdef inline uint64_t tiles_size(const TableView* view, uint32_t capacity) noexcept nogil:
    """Bytes of a block's tiles, behind its rows: see tiles.pyx."""
    if view.sums_count == 0 or capacity < TILE:
        return 0
    return (capacity // TILE) * (8 + 16 * <uint64_t>view.sums_count) + ((2 * view.sums_count + 7) & ~<uint32_t>7)


cdef inline uint64_t block_size(const TableView* view, uint32_t capacity, uint32_t key_size) noexcept nogil:
    """Bytes of a block from its offset on: its own, and for one row those of HEAD_AT_SIZE before."""
    return (
        BLOCK_HEADER_SIZE + key_padded(key_size) + <uint64_t>capacity * (STAMP_SIZE + view.row_stride)
        + tiles_size(view, capacity)
    )


cdef inline uint64_t block_offset(uint32_t capacity) noexcept nogil:
    """From a block's offset to its first own byte."""
    return HEAD_AT_SIZE if capacity == 1 else 0


# A block's shape changes with its count, and with the head of one row: readers load it atomically, and once where they
# compare its parts.
cdef inline uint64_t shape_make(uint32_t count, uint32_t capacity, uint16_t key_size) noexcept nogil:
    if capacity == 1:
        return <uint64_t>key_size << 48 | 1
    return <uint64_t>key_size << 48 | <uint64_t>capacity << 32 | <uint64_t>count << 16


cdef inline bint shape_is_one(uint64_t shape) noexcept nogil:
    """True where the block has room for one row, and has it."""
    return shape & 1


cdef inline uint32_t shape_count(uint64_t shape) noexcept nogil:
    return 1 if shape & 1 else <uint32_t>(shape >> 16) & 0xFFFF


cdef inline uint32_t shape_capacity(uint64_t shape) noexcept nogil:
    return 1 if shape & 1 else <uint32_t>(shape >> 32) & 0xFFFF


cdef inline uint16_t shape_key_size(uint64_t shape) noexcept nogil:
    return <uint16_t>(shape >> 48)


cdef inline uint32_t block_count(const BlockHeader* block) noexcept nogil:
    return shape_count(atomic_load_u64(&block.shape))


cdef inline uint32_t block_capacity(const BlockHeader* block) noexcept nogil:
    return shape_capacity(atomic_load_u64(&block.shape))


cdef inline uint16_t block_key_size(const BlockHeader* block) noexcept nogil:
    return shape_key_size(atomic_load_u64(&block.shape))


cdef inline uint64_t block_head_at(const BlockHeader* block) noexcept nogil:
    cdef uint64_t shape = atomic_load_u64(&block.shape)
    return shape & (<uint64_t>0xFFFF_FFFF_FFFE) if shape_is_one(shape) else atomic_load_u64(&block.head_at)


cdef inline void block_put_count(BlockHeader* block, uint32_t count) noexcept nogil:
    """Publish rows [0, count) of a block that has room for more than one."""
    atomic_store_u64(&block.shape, (block.shape & ~(<uint64_t>0xFFFF << 16)) | <uint64_t>count << 16)


cdef inline void block_put_head(BlockHeader* block, uint64_t head_at) noexcept nogil:
    if shape_is_one(block.shape):
        atomic_store_u64(&block.shape, (block.shape & (<uint64_t>0xFFFF << 48)) | head_at | 1)
    else:
        atomic_store_u64(&block.head_at, head_at)


cdef inline uint8_t* block_key(BlockHeader* block) noexcept nogil:
    return <uint8_t*>block + BLOCK_HEADER_SIZE


cdef inline int64_t* block_stamps(BlockHeader* block, uint32_t column) noexcept nogil:
    """Event times (0), created times (1), sequences (2) or, behind them, the rows (3). Why by one load of the shape:
    these are taken row by row, and the compiler keeps every atomic load."""
    cdef uint64_t shape = atomic_load_u64(&block.shape)
    cdef uint64_t offset = BLOCK_HEADER_SIZE + key_padded(shape_key_size(shape)) + 8 * column * shape_capacity(shape)
    return <int64_t*>(<uint8_t*>block + offset)


cdef inline int64_t* block_events(BlockHeader* block) noexcept nogil:
    return block_stamps(block, 0)


cdef inline int64_t* block_createds(BlockHeader* block) noexcept nogil:
    return block_stamps(block, 1)


cdef inline uint64_t* block_sequences(BlockHeader* block) noexcept nogil:
    return <uint64_t*>block_stamps(block, 2)


cdef inline uint8_t* block_row(const TableView* view, BlockHeader* block, uint32_t i) noexcept nogil:
    return <uint8_t*>block_stamps(block, 3) + <uint64_t>i * view.row_stride


cdef inline BlockHeader* block_of(const TableView* view, uint64_t at) noexcept nogil:
    return <BlockHeader*>(view.arena.base + at)


cdef inline TimelineHead* head_of(const TableView* view, uint64_t at) noexcept nogil:
    return <TimelineHead*>(view.arena.base + at)


cdef inline DirectoryEntry* directory_of(const TableView* view, uint64_t at) noexcept nogil:
    return <DirectoryEntry*>(view.arena.base + at)


cdef inline uint32_t shard_of(const TableView* view, uint64_t hash) noexcept nogil:
    return <uint32_t>(hash >> (64 - view.shard_bits)) if view.shard_bits else 0


# --- reading blocks that may be anything, see Safety in timeline.pyx --------------------------------------------------

cdef struct BlockView:        # a block as one look-up sees it: its header read once, its arrays inside of the arena
    BlockHeader* header
    const int64_t* events
    uint32_t count
    uint32_t capacity
    uint32_t key_size


cdef inline bint is_inside(uint64_t end, uint64_t at, uint64_t size) noexcept nogil:
    """True where `size` bytes at `at` come before `end`, aligned as everything but bytes is."""
    return (at & 7) == 0 and at <= end and size <= end - at


cdef inline bint block_open(const TableView* view, uint64_t at, BlockView* block) noexcept nogil:
    """Look at the block at `at`; False where no block can be there."""
    cdef BlockHeader* header
    cdef uint64_t end = arena_end(&view.arena)
    cdef uint64_t shape
    cdef uint64_t size
    if ff_unlikely(not is_inside(end, at, BLOCK_HEADER_SIZE)):
        return False
    header = block_of(view, at)
    block.header = header
    shape = atomic_load_u64(&header.shape)
    block.count = shape_count(shape)
    block.capacity = shape_capacity(shape)
    block.key_size = shape_key_size(shape)
    size = block_size(view, block.capacity, block.key_size)
    if ff_unlikely(block.count > block.capacity or size > end - at):
        return False
    block.events = <const int64_t*>(block_key(header) + key_padded(block.key_size))
    return True


cdef inline bint block_has_key(const BlockView* block, const uint8_t* key, uint16_t size) noexcept nogil:
    if block.key_size != size:
        return False
    if size == 8:
        return (<uint64_t*>block_key(block.header))[0] == (<const uint64_t*>key)[0]
    return memcmp(block_key(block.header), key, size) == 0


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


cdef inline const uint8_t* cell_bytes(
    const TableView* table, const uint8_t* row, uint32_t offset, uint32_t* size,
) noexcept nogil:
    """A variable cell's bytes and their number, which it reads once; NULL and 0 where there are none."""
    cdef uint64_t word = load_once_u64(row + offset)
    cdef Cell cell
    cdef uint64_t arena_size
    cdef uint64_t heap_at
    cdef uint64_t end
    size[0] = 0
    memcpy(&cell, &word, sizeof(Cell))
    if cell.size == 0:
        return NULL
    heap_at = load_once_u64(row + table.heap_offset)
    if table.arena.base != NULL:          # NULL: a window view's answer, whose heap lies at an address
        end = <uint64_t>cell.offset + cell.size
        arena_size = arena_end(&table.arena)
        if ff_unlikely(end > ROW_HEAP_MAX or heap_at > arena_size or end + 8 > arena_size - heap_at):
            return NULL
    size[0] = cell.size
    return table.arena.base + heap_at + 8 + cell.offset


cdef inline uint64_t next_block(const TableView* view, uint64_t word, uint64_t hash, uint64_t* step) noexcept nogil:
    """slots_next_block in the slots that `word` names."""
    if ff_unlikely(not slots_are_inside(&view.arena, word)):
        return NOWHERE
    return slots_next_block(slots_of(view.arena.base, word), slots_mask(word), hash, step)


cdef inline void prefetch_at(const TableView* view, uint64_t at) noexcept nogil:
    """Prefetch at an offset that may lie anywhere: a prefetch never faults."""
    prefetch(<const void*>(<uint64_t>view.arena.base + at))


cdef inline void prefetch_slots(
    const TableView* view, const uint64_t* hashes, int64_t start, int64_t end,
) noexcept nogil:
    cdef const uint8_t* base = view.arena.base
    cdef const uint64_t* words = view.slots
    cdef uint32_t shift = 63 - view.shard_bits
    cdef int64_t i
    cdef uint64_t word
    for i in range(start, end):           # shard_of and prefetch_at, with what does not change in locals
        word = atomic_load_u64(&words[hashes[i] >> 1 >> shift])
        prefetch(<const void*>(<uint64_t>base + slot_line(word, hashes[i])))


cdef inline uint64_t first_block(const TableView* view, uint64_t hash) noexcept nogil:
    """Where the first block of this hash lies, not yet looked at, its first lines on their way; or 0."""
    cdef uint64_t step = 0
    cdef uint64_t block_at = next_block(view, atomic_load_u64(&view.slots[shard_of(view, hash)]), hash, &step)
    if block_at != 0:
        prefetch_at(view, block_at)
        prefetch_at(view, block_at + LINE)
    return block_at


cdef void keys_hash(
    const TableView* view, const KeyView* keys, int64_t low, int64_t high, uint64_t* hashes
) noexcept nogil

# An entity's tail block, NULL where there is none. The caller holds a pin.
cdef BlockHeader* timeline_block(
    const TableView* view, uint64_t hash, const uint8_t* key, uint16_t size
) noexcept nogil

# Open the entity's tail block: PRESENT, NOT_FOUND or TORN.
cdef uint8_t timeline_find(
    const TableView* view, uint64_t hash, const uint8_t* key, uint16_t size, BlockView* block
) noexcept nogil

# The kernel of every read: rows [low, high) of `keys`, entity i at (event_us[i * step], known_us[i * step]). `rows[i]`
# is NULL unless PRESENT; the first of its `row_bytes` are on their way. The caller holds a pin, and has asked for the
# slots of the first GROUP of them.
cdef void timelines_as_of(
    const TableView* view, uint32_t row_bytes, const KeyView* keys, const uint64_t* hashes, int64_t low, int64_t high,
    const int64_t* event_us, const int64_t* known_us, int64_t step,
    const uint8_t** rows, uint8_t* statuses, int64_t* event_times,
) noexcept nogil
