from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .arena cimport ArenaView
from .columns cimport KeyView
from .layout cimport BLOCK_HEADER_SIZE, STAMP_SIZE, BlockHeader, DirectoryEntry, ShardHeader, TimelineHead


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


cdef inline uint32_t key_padded(uint32_t size) noexcept nogil:
    return (size + 7) & ~<uint32_t>7


cdef inline uint64_t block_size(const TableView* view, uint32_t capacity, uint32_t key_size) noexcept nogil:
    return BLOCK_HEADER_SIZE + key_padded(key_size) + <uint64_t>capacity * (STAMP_SIZE + view.row_stride)


cdef inline uint8_t* block_key(BlockHeader* block) noexcept nogil:
    return <uint8_t*>block + BLOCK_HEADER_SIZE


cdef inline int64_t* block_events(BlockHeader* block) noexcept nogil:
    return <int64_t*>(<uint8_t*>block + BLOCK_HEADER_SIZE + key_padded(block.key_size))


cdef inline int64_t* block_createds(BlockHeader* block) noexcept nogil:
    return block_events(block) + block.capacity


cdef inline uint64_t* block_sequences(BlockHeader* block) noexcept nogil:
    return <uint64_t*>(block_events(block) + 2 * block.capacity)


cdef inline uint8_t* block_row(const TableView* view, BlockHeader* block, uint32_t i) noexcept nogil:
    return <uint8_t*>(block_events(block) + 3 * block.capacity) + <uint64_t>i * view.row_stride


cdef inline BlockHeader* block_of(const TableView* view, uint64_t at) noexcept nogil:
    return <BlockHeader*>(view.arena.base + at)


cdef inline TimelineHead* head_of(const TableView* view, uint64_t at) noexcept nogil:
    return <TimelineHead*>(view.arena.base + at)


cdef inline DirectoryEntry* directory_of(const TableView* view, uint64_t at) noexcept nogil:
    return <DirectoryEntry*>(view.arena.base + at)


cdef inline uint32_t shard_of(const TableView* view, uint64_t hash) noexcept nogil:
    return <uint32_t>(hash >> (64 - view.shard_bits)) if view.shard_bits else 0


cdef void keys_hash(
    const TableView* view, const KeyView* keys, int64_t low, int64_t high, uint64_t* hashes
) noexcept nogil

# An entity's tail block, NULL where there is none. The caller holds a pin.
cdef BlockHeader* timeline_block(
    const TableView* view, uint64_t hash, const uint8_t* key, uint16_t size
) noexcept nogil

# The kernel of every read: rows [low, high) of `keys`, entity i at (event_us[i * step], known_us[i * step]). `rows[i]`
# is NULL unless PRESENT. The caller holds a pin.
cdef void timelines_as_of(
    const TableView* view, const KeyView* keys, const uint64_t* hashes, int64_t low, int64_t high,
    const int64_t* event_us, const int64_t* known_us, int64_t step,
    const uint8_t** rows, uint8_t* statuses, int64_t* event_times,
) noexcept nogil
