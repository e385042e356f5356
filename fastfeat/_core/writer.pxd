from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .columns cimport BatchView, KeyView
from .status cimport Status
from .timeline cimport TableView


cdef struct Vector:           # a growing array of plain structs in process memory
    char* data
    size_t count
    size_t capacity           # bytes


cdef struct ShardWriter:      # what one shard's writer has prepared and what waits for readers to leave
    Vector allocated          # Piece: to give back if the batch fails
    Vector replaced           # Piece: to retire when the batch is published
    Vector pending            # Pending
    Vector refs               # RowRef
    Vector entries            # DirectoryEntry
    Vector retired            # Retired, oldest first
    size_t retired_first
    int64_t rows_delta
    int64_t entities_delta    # slots taken
    int64_t live_delta        # entities with rows


cdef struct Grouping:         # rows of a batch by entity: `counts[i]` > 0 where row i is its entity's first
    uint32_t* counts
    uint32_t* following       # next row of the same entity
    uint32_t* last
    uint32_t* table
    uint64_t table_mask
    uint32_t per_shard[64]


cdef Status grouping_make(Grouping* group, const TableView* view, const KeyView* keys, const uint64_t* hashes) noexcept nogil
cdef void grouping_free(Grouping* group) noexcept nogil

# Prepare what the shards in [shard_low, shard_high) have to do; nothing becomes visible. `staging`: STAGED_ROWS rows of room to
# encode a run of rows column by column, or NULL to encode row by row (where this range takes few rows of a run).
cdef Status shards_prepare(
    const TableView* view, ShardWriter* writers, const BatchView* batch, const Grouping* group, const uint64_t* hashes,
    uint32_t shard_low, uint32_t shard_high, int64_t now_us, uint8_t* staging,
) noexcept nogil
cdef Status shards_prepare_delete(
    const TableView* view, ShardWriter* writers, const KeyView* keys, const Grouping* group, const uint64_t* hashes,
    int64_t deleted_us,
) noexcept nogil
cdef void shards_commit(const TableView* view, ShardWriter* writers, uint32_t shard_low, uint32_t shard_high) noexcept nogil
cdef void shards_abort(const TableView* view, ShardWriter* writers, uint32_t shard_low, uint32_t shard_high) noexcept nogil
cdef void shards_reclaim(const TableView* view, ShardWriter* writers, uint32_t shard_low, uint32_t shard_high) noexcept nogil
cdef void writer_free_memory(ShardWriter* writer) noexcept nogil

cdef enum:
    STAGED_ROWS = 128
