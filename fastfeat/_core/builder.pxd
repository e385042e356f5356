from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .columns cimport BatchView
from .layout cimport BlockHeader, HeapHeader, Slot, TimelineHead
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
    uint64_t claimed          # slots
    int64_t rows_delta
    int64_t entities_delta    # slots taken
    int64_t live_delta        # entities with rows


cdef struct Piece:
    uint64_t at
    uint64_t size


cdef struct Retired:
    uint64_t at
    uint64_t size
    uint64_t epoch
    bint is_slots             # an extent of a shard's slots, not of its heap


cdef struct Pending:          # what publishing one entity takes
    Slot* slot
    bint is_claimed           # the slot was empty before this batch
    uint64_t block_at         # new tail, 0: the old one stays
    BlockHeader* tail         # the old tail, for head_at and count
    uint64_t head_at          # new head of the old tail, 0: unchanged
    uint32_t count            # new count of the old tail, 0: unchanged


cdef struct RowRef:           # a row on its way to a block
    int64_t event_time
    int64_t created_time
    uint64_t sequence
    const uint8_t* image      # published row, or staged image, or NULL: encode from the batch
    int64_t staged            # row of the batch, -1: a published row


cdef struct Entity:           # one entity while it is prepared
    const TableView* view
    ShardWriter* writer
    HeapHeader* heap
    const BatchView* batch
    const uint8_t* key
    uint16_t key_size
    bint urgent               # may use the arena's reserve
    int64_t now_us
    Pending* pending
    BlockHeader* tail         # NULL: new
    TimelineHead* head        # NULL: none
    TimelineHead next         # the head to be
    bint is_head_changed
    uint32_t first_changed    # directory entries before it stay


cdef inline int row_order(int64_t event_a, int64_t created_a, int64_t event_b, int64_t created_b) noexcept nogil:
    if event_a != event_b:
        return -1 if event_a < event_b else 1
    return 0 if created_a == created_b else -1 if created_a < created_b else 1


cdef char* vector_add(Vector* vector, size_t items, size_t size) noexcept nogil
cdef Status piece_add(Vector* vector, uint64_t at, uint64_t size) noexcept nogil
cdef Status writer_alloc(Entity* entity, uint64_t size, uint64_t* at) noexcept nogil
cdef void writer_free_memory(ShardWriter* writer) noexcept nogil
cdef Status block_build(
    Entity* entity, const RowRef* refs, uint32_t count, uint32_t capacity, uint64_t head_at, uint64_t* at
) noexcept nogil
cdef Status block_place(
    Entity* entity, BlockHeader* block, uint32_t i, const RowRef* ref, bint is_encoded=*,
) noexcept nogil
cdef Status block_replace(Entity* entity, uint64_t at) noexcept nogil
cdef Status refs_add_block(Entity* entity, BlockHeader* block, const RowRef* fresh, uint32_t fresh_count) noexcept nogil
cdef Status row_heap_replace(Entity* entity, const uint8_t* row) noexcept nogil
cdef int ref_compare(const void* a, const void* b) noexcept nogil
cdef void vector_clear(Vector* vector) noexcept nogil
