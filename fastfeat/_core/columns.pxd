from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

# Numbers of fastfeat.dtypes.KIND.
cdef enum Kind:
    BOOL = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOAT32 = 9
    FLOAT64 = 10
    TIMESTAMP = 11
    STRING = 12
    BYTES = 13
    VECTOR = 14
    LIST = 15


cdef struct FieldView:
    uint32_t offset           # of the cell in its row
    uint32_t width            # of the cell
    uint32_t size             # elements of a vector
    uint8_t kind
    uint8_t element_kind
    uint8_t element_width
    uint8_t nullable


cdef struct Cell:             # a variable cell: bytes of the row's heap
    uint32_t offset
    uint32_t size


cdef class RowLayout:
    cdef FieldView* fields
    cdef uint32_t fields_count
    cdef uint32_t row_stride
    cdef uint32_t heap_offset     # of the row's heap_at, 0 where no field is variable
    cdef readonly str view
    cdef readonly tuple key_names
    cdef readonly tuple key_types
    cdef readonly tuple names
    cdef readonly tuple dtypes
    cdef uint8_t* key_kinds
    cdef uint32_t keys_count
    cdef bint key_is_u64          # one integer join key: its 8 bytes are the key
    cdef readonly uint32_t fingerprint    # of keys, fields and their places: equal where row images are alike
    cdef place_cells(self, nullable)


# A row in the arena: null bits (1 = null), heap_at where a field is variable, cells.
cdef inline bint row_is_null(const uint8_t* row, uint32_t field) noexcept nogil:
    return (row[field >> 3] >> (field & 7)) & 1


# --- the keys of a batch: bytes back to back, 8 each or with offsets --------------------------------------------------

cdef struct KeyView:
    const uint8_t* data
    const uint32_t* offsets       # NULL: 8 bytes each
    int64_t count


cdef inline const uint8_t* key_at(const KeyView* keys, int64_t i) noexcept nogil:
    return keys.data + (8 * i if keys.offsets == NULL else keys.offsets[i])


cdef inline uint16_t key_size(const KeyView* keys, int64_t i) noexcept nogil:
    return 8 if keys.offsets == NULL else <uint16_t>(keys.offsets[i + 1] - keys.offsets[i])


# --- rows on their way in ---------------------------------------------------------------------------------------------

cdef struct ArrowColumn:
    const uint8_t* validity       # NULL: no nulls
    const uint8_t* data
    const uint8_t* offsets        # 32-bit, of string, bytes and list
    const uint8_t* child_data     # elements of vector and list (characters of list<string>)
    const uint8_t* child_offsets  # of list<string>
    int64_t offset                # of the first row, in elements
    int64_t child_offset


cdef struct BatchView:
    int64_t count
    const int64_t* event_times
    const int64_t* created_times
    uint64_t sequence             # of row 0, the others follow
    const uint64_t* sequences     # of each row, NULL: they follow row 0's
    KeyView keys
    const FieldView* fields
    uint32_t fields_count
    uint32_t row_stride
    uint32_t heap_offset
    const ArrowColumn* columns    # NULL: images and heap instead
    const uint8_t* images         # count x row_stride
    const uint8_t* heap
    const uint64_t* heap_offsets  # count + 1


cdef class RowBatch:
    cdef BatchView view
    cdef RowLayout layout
    cdef object source            # keeps alive what is borrowed: an Arrow array, a record's bytes
    cdef int64_t* event_times
    cdef int64_t* created_times
    cdef uint8_t* key_data
    cdef uint32_t* key_offsets
    cdef uint8_t* images
    cdef uint8_t* heap
    cdef uint64_t heap_capacity
    cdef uint64_t* heap_offsets
    cdef ArrowColumn* columns
    cdef uint64_t* sequences


# Encode rows [low, high) at `images`, a row_stride apart; variable cells are left zero.
cdef void batch_encode(const BatchView* batch, int64_t low, int64_t high, uint8_t* images) noexcept nogil
# The same of `count` >= 1 rows by their numbers, which ascend.
cdef void batch_encode_rows(
    const BatchView* batch, const int64_t* rows, int64_t count, uint8_t* images
) noexcept nogil
cdef uint64_t batch_heap_size(const BatchView* batch, int64_t i) noexcept nogil
cdef void batch_heap_write(const BatchView* batch, int64_t i, uint8_t* heap, uint8_t* image) noexcept nogil

cdef RowBatch batch_new(RowLayout layout, int64_t count)
cdef RowBatch batch_from_arrow(RowLayout layout, object source)
cdef RowBatch batch_of_keys(RowLayout layout, object source)
cdef RowBatch batch_of_fields(RowLayout layout, object source, const int64_t[:, ::1] stamps)
cdef RowBatch batch_imaged(RowBatch batch)
cdef void batch_point(RowBatch batch)
cdef void* allocated(void* memory) except NULL

cdef inline uint64_t batch_sequence(const BatchView* batch, int64_t i) noexcept nogil:
    return batch.sequence + <uint64_t>i if batch.sequences == NULL else batch.sequences[i]

# --- values on their way out ------------------------------------------------------------------------------------------

cdef double cell_double(uint8_t kind, const uint8_t* cell) noexcept nogil
