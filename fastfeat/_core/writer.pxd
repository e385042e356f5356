from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .builder cimport RowRef, ShardWriter, Vector
from .columns cimport BatchView, KeyView
from .status cimport Status
from .timeline cimport TableView


cdef struct Grouping:         # rows of a batch by entity: `counts[i]` > 0 where row i is its entity's first
    uint32_t* counts
    uint32_t* following       # next row of the same entity
    uint32_t* last
    uint32_t* table
    uint64_t table_mask
    uint32_t per_shard[64]
    Vector replaced           # sequences of published rows that rows of the batch take the place of, see ids.pyx
    uint32_t* replaced_at     # of an entity's first row: where its own begin; NULL where there are none at all
    uint32_t* replaced_counts


cdef Status grouping_make(
    Grouping* group, const TableView* view, const KeyView* keys, const uint64_t* hashes
) noexcept nogil
cdef void grouping_free(Grouping* group) noexcept nogil

# Prepare what the shards in [shard_low, shard_high) have to do; nothing becomes visible. `staging`: room for
# STAGED_ROWS rows, which are encoded column by column.
cdef Status shards_prepare(
    const TableView* view, ShardWriter* writers, const BatchView* batch, const Grouping* group, const uint64_t* hashes,
    uint32_t shard_low, uint32_t shard_high, int64_t now_us, uint8_t* staging,
) noexcept nogil
# Rows that lie entity by entity, each one's in order: entity g's are [begins[g], begins[g + 1]) of the batch, whose own
# keys are not looked at. `refs`: room for the rows of any one entity.
cdef Status shards_prepare_ordered(
    const TableView* view, ShardWriter* writers, const KeyView* keys, const uint64_t* hashes, const BatchView* batch,
    const int64_t* begins, RowRef* refs, int64_t now_us,
) noexcept nogil
cdef Status shards_prepare_delete(
    const TableView* view, ShardWriter* writers, const KeyView* keys, const Grouping* group, const uint64_t* hashes,
    int64_t deleted_us,
) noexcept nogil
cdef Status shards_prepare_heads(
    const TableView* view, ShardWriter* writers, const KeyView* keys, const Grouping* group, const uint64_t* hashes,
    const int64_t* given,
) noexcept nogil
cdef void shards_commit(
    const TableView* view, ShardWriter* writers, uint32_t shard_low, uint32_t shard_high
) noexcept nogil
cdef void shards_abort(
    const TableView* view, ShardWriter* writers, uint32_t shard_low, uint32_t shard_high
) noexcept nogil
cdef void shards_reclaim(
    const TableView* view, ShardWriter* writers, uint32_t shard_low, uint32_t shard_high
) noexcept nogil

cdef enum:
    STAGED_ROWS = 64          # of 50 numbers, their images stay in the first cache
