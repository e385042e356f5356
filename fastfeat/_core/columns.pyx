"""Columns: the layout of a row, and Arrow rows on their way in.

    row (row_stride bytes)
    +----------------------+---------------------+-------------------------------------------+
    | null bits, 1 = null  | heap_at u64, only   | cells: widest first, each aligned to its  |
    | padded to 8 bytes    | with variable cells | element, in schema order within a width   |
    +----------------------+---------------------+-------------------------------------------+
                                    |
                                    +--> size u64 | bytes that (offset u32, size u32) cells point into

A RowBatch holds rows that passed every check, either as an Arrow struct array borrowed through the C data interface
(bulk loads: nothing is copied until a row reaches its place in the arena) or as row images (values.pyx: rows of Python
values; records.pyx: rows of a log).

Invariant:  a cell under a null bit is zero, so equal rows are equal bytes.
Ownership:  a RowBatch keeps the Arrow array alive; the arena copies.
Errors:     DataError for columns of other names or types, keys and rows that are too large.
Source:     https://arrow.apache.org/docs/format/CDataInterface.html and .../Columnar.html
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport UINT32_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import zlib

from ..dtypes import SCALAR_WIDTH, DType
from ..errors import DataError

from .atomics cimport prefetch_far

KEY_SIZE_MAX = 4096
HEAP_SIZE_MAX = 1 << 24           # bytes of one row's strings, bytes and lists

cdef uint32_t key_size_max = KEY_SIZE_MAX
cdef uint64_t heap_size_max = HEAP_SIZE_MAX

cdef enum:
    CELL_SIZE = 8
    IMAGED_ROWS = 128             # encoded column by column while their images stay in the first cache


# --- layout ----------------------------------------------------------------------------------------------------------

cdef inline uint32_t aligned(uint32_t at, uint32_t to) noexcept nogil:
    return (at + to - 1) & ~(to - 1)


cdef class RowLayout:
    """Where each cell of a view's row lies.

    view, key_names, key_types: the names that errors use. fields: (name, dtype, nullable) in schema order.
    """

    def __cinit__(self, view, key_names, key_types, fields):
        self.view = view
        self.key_names = tuple(key_names)
        self.key_types = tuple(key_types)
        self.names = tuple(name for name, _, _ in fields)
        self.dtypes = tuple(dtype for _, dtype, _ in fields)
        self.fields_count = len(self.names)
        self.keys_count = len(self.key_names)
        self.fields = <FieldView*>calloc(self.fields_count, sizeof(FieldView))
        self.key_kinds = <uint8_t*>calloc(self.keys_count, 1)
        if self.fields == NULL or self.key_kinds == NULL:
            raise MemoryError(f"view {view!r}: no memory for its layout")
        cdef uint32_t i
        for i in range(self.keys_count):
            self.key_kinds[i] = DType.parse(self.key_types[i]).kind
        self.key_is_u64 = self.keys_count == 1 and self.key_kinds[0] != STRING
        self.place_cells([nullable for _, _, nullable in fields])

    cdef place_cells(self, nullable):
        cdef uint32_t at = aligned((self.fields_count + 7) // 8, 8)
        cdef uint32_t i
        cdef FieldView* field
        if any(dtype.is_variable for dtype in self.dtypes):
            self.heap_offset = at
            at += 8
        alignment = [SCALAR_WIDTH.get(d.element or d.name, CELL_SIZE) if not d.is_variable else CELL_SIZE
                     for d in self.dtypes]
        for i in sorted(range(self.fields_count), key=lambda i: -alignment[i]):
            dtype = self.dtypes[i]
            field = &self.fields[i]
            field.kind = dtype.kind
            field.element_kind = dtype.element_kind
            field.element_width = SCALAR_WIDTH.get(dtype.element or dtype.name, 0)
            field.width = dtype.width
            field.size = dtype.size
            field.nullable = nullable[i]
            field.offset = at
            at += field.width
        self.row_stride = aligned(at, 8)
        places = [(n, str(d), self.fields[i].offset) for i, (n, d) in enumerate(zip(self.names, self.dtypes))]
        self.fingerprint = zlib.crc32(repr((self.key_names, self.key_types, places, self.row_stride)).encode())

    def __dealloc__(self):
        free(self.fields)
        free(self.key_kinds)


# --- batch: common ---------------------------------------------------------------------------------------------------

cdef class RowBatch:
    """Checked rows of one view, ready for Table.append."""

    def __dealloc__(self):
        free(self.event_times)
        free(self.created_times)
        free(self.key_data)
        free(self.key_offsets)
        free(self.images)
        free(self.heap)
        free(self.heap_offsets)
        free(self.columns)
        free(self.sequences)

    def __len__(self):
        return self.view.count

    @property
    def view_name(self):
        return self.layout.view

    @property
    def sequence(self):
        """Of row 0, where the rows follow one another."""
        return self.view.sequence

    @property
    def created_max(self):
        """The greatest created time, int us. The batch has rows."""
        cdef int64_t most = self.view.created_times[0]
        cdef int64_t i
        for i in range(1, self.view.count):
            most = max(most, self.view.created_times[i])
        return most

    def set_created(self, const int64_t[::1] created_us):
        """Give each row of a batch of Python rows its own created time."""
        if self.created_times == NULL or created_us.shape[0] != self.view.count:
            raise DataError(f"{created_us.shape[0]} created times for {self.view.count} rows")
        memcpy(self.created_times, &created_us[0], self.view.count * 8)

    def set_sequences(self, const uint64_t[::1] sequences):
        """Give each row the sequence it had elsewhere; without, rows follow the sequence that they are written at."""
        if sequences.shape[0] != self.view.count:
            raise DataError(f"{sequences.shape[0]} sequences for {self.view.count} rows")
        if self.view.count:
            self.sequences = <uint64_t*>allocated(malloc(self.view.count * 8))
            memcpy(self.sequences, &sequences[0], self.view.count * 8)
            self.view.sequences = self.sequences


cdef RowBatch batch_new(RowLayout layout, int64_t count):
    cdef RowBatch batch = RowBatch()
    batch.layout = layout
    batch.view.count = count
    batch.view.fields = layout.fields
    batch.view.fields_count = layout.fields_count
    batch.view.row_stride = layout.row_stride
    batch.view.heap_offset = layout.heap_offset
    return batch


cdef void* allocated(void* memory) except NULL:
    if memory == NULL:
        raise MemoryError("no memory for a batch of rows; push or load smaller batches")
    return memory


# --- batch: Arrow ----------------------------------------------------------------------------------------------------

cdef struct ArrowSchema:
    const char* format
    const char* name
    const char* metadata
    int64_t flags
    int64_t n_children
    ArrowSchema** children
    ArrowSchema* dictionary
    void (*release)(ArrowSchema*)
    void* private_data

cdef struct ArrowArray:
    int64_t length
    int64_t null_count
    int64_t offset
    int64_t n_buffers
    int64_t n_children
    const void** buffers
    ArrowArray** children
    ArrowArray* dictionary
    void (*release)(ArrowArray*)
    void* private_data

cdef dict ARROW_FORMAT = {
    "bool": b"b", "int8": b"c", "int16": b"s", "int32": b"i", "int64": b"l", "uint8": b"C", "uint16": b"S",
    "uint32": b"I", "uint64": b"L", "float32": b"f", "float64": b"g", "timestamp": b"tsu:", "string": b"u",
    "bytes": b"z",
}


cdef bytes arrow_format(dtype):
    if dtype.name == "vector":
        return b"+w:%d" % dtype.size
    return b"+l" if dtype.name == "list" else ARROW_FORMAT[dtype.name]


cdef int check_column(RowLayout layout, ArrowSchema* schema, str name, bytes wanted) except -1:
    cdef bytes found = schema.format
    cdef bytes column = schema.name if schema.name != NULL else b""
    if column != name.encode() or not found.startswith(wanted):
        raise DataError(
            f"view {layout.view!r}: column {column.decode()!r} of Arrow format {found.decode()!r} where {name!r} of"
            f" format {wanted.decode()!r} belongs"
        )
    return 0


cdef int fill_column(ArrowColumn* column, ArrowArray* array, uint8_t kind, int64_t base) except -1:
    """Resolve the buffers of one exported column."""
    cdef ArrowArray* child
    column.offset = array.offset + base
    column.validity = <const uint8_t*>array.buffers[0] if array.null_count != 0 else NULL
    if kind == STRING or kind == BYTES:
        column.offsets = <const uint8_t*>array.buffers[1]
        column.data = <const uint8_t*>array.buffers[2]
    elif kind == VECTOR or kind == LIST:
        if kind == LIST:
            column.offsets = <const uint8_t*>array.buffers[1]
        child = array.children[0]
        column.child_offset = child.offset
        if child.n_buffers == 3:
            column.child_offsets = <const uint8_t*>child.buffers[1]
            column.child_data = <const uint8_t*>child.buffers[2]
        else:
            column.child_data = <const uint8_t*>child.buffers[1]
    else:
        column.data = <const uint8_t*>array.buffers[1]
    return 0


cdef RowBatch batch_from_arrow(RowLayout layout, object source):
    """Borrow a normalized record batch (see Table.append_arrow)."""
    schema_capsule, array_capsule = source.__arrow_c_array__()
    cdef ArrowSchema* schema = <ArrowSchema*>PyCapsule_GetPointer(schema_capsule, "arrow_schema")
    cdef ArrowArray* array = <ArrowArray*>PyCapsule_GetPointer(array_capsule, "arrow_array")
    cdef int64_t keys = layout.keys_count
    cdef int64_t f
    cdef RowBatch batch = batch_new(layout, array.length)
    batch.source = (source, array_capsule)
    check_keys(layout, schema, 2 + layout.fields_count)
    for f in range(2):
        if schema.children[keys + f].format not in (b"l", b"tsu:UTC"):
            raise DataError(f"view {layout.view!r}: the time columns must be int64 or timestamp[us, UTC]")
    batch.view.event_times = int64_column(array, keys)
    batch.view.created_times = int64_column(array, keys + 1)
    take_keys(batch, array)
    take_fields(batch, schema, array, keys + 2)
    return batch


cdef RowBatch batch_of_keys(RowLayout layout, object source):
    """Borrow the keys of a record batch of nothing else: entities, without rows."""
    schema_capsule, array_capsule = source.__arrow_c_array__()
    cdef ArrowSchema* schema = <ArrowSchema*>PyCapsule_GetPointer(schema_capsule, "arrow_schema")
    cdef ArrowArray* array = <ArrowArray*>PyCapsule_GetPointer(array_capsule, "arrow_array")
    cdef RowBatch batch = batch_new(layout, array.length)
    batch.source = (source, array_capsule)
    check_keys(layout, schema, 0)
    take_keys(batch, array)
    return batch


cdef RowBatch batch_of_fields(RowLayout layout, object source, const int64_t[:, ::1] stamps):
    """Borrow rows without keys: fields, and the event time, created time and sequence of each (int64 [3, n])."""
    schema_capsule, array_capsule = source.__arrow_c_array__()
    cdef ArrowSchema* schema = <ArrowSchema*>PyCapsule_GetPointer(schema_capsule, "arrow_schema")
    cdef ArrowArray* array = <ArrowArray*>PyCapsule_GetPointer(array_capsule, "arrow_array")
    cdef RowBatch batch = batch_new(layout, array.length)
    batch.source = (source, array_capsule, stamps)
    if schema.n_children != layout.fields_count or stamps.shape[0] != 3 or stamps.shape[1] != array.length:
        shape = (stamps.shape[0], stamps.shape[1])
        raise DataError(
            f"view {layout.view!r}: {schema.n_children} columns of {array.length} rows with stamps {shape}, not"
            f" {layout.fields_count} columns and a stamp for each row"
        )
    take_fields(batch, schema, array, 0)
    if array.length:
        batch.view.event_times = &stamps[0, 0]
        batch.view.created_times = &stamps[1, 0]
        batch.view.sequences = <const uint64_t*>&stamps[2, 0]
    return batch


cdef int check_keys(RowLayout layout, ArrowSchema* schema, int64_t others) except -1:
    """The batch begins with the keys, and `others` follow."""
    cdef int64_t f
    if schema.n_children != layout.keys_count + others:
        raise DataError(f"view {layout.view!r}: {schema.n_children} columns, not {layout.keys_count + others}")
    for f in range(layout.keys_count):
        kind = layout.key_types[f]
        wanted = b"u" if kind == "string" else b"L" if kind == "uint64" else b"l"
        check_column(layout, schema.children[f], layout.key_names[f], wanted)
    return 0


cdef int take_keys(RowBatch batch, ArrowArray* array) except -1:
    batch.view.keys.count = array.length
    if batch.layout.key_is_u64:
        batch.view.keys.data = <const uint8_t*>int64_column(array, 0)
        return 0
    return arrow_keys(batch, array)


cdef int take_fields(RowBatch batch, ArrowSchema* schema, ArrowArray* array, int64_t first) except -1:
    """The fields, which are the columns from `first` on."""
    cdef RowLayout layout = batch.layout
    cdef int64_t f
    batch.columns = <ArrowColumn*>allocated(calloc(layout.fields_count, sizeof(ArrowColumn)))
    for f in range(layout.fields_count):
        check_column(layout, schema.children[first + f], layout.names[f], arrow_format(layout.dtypes[f]))
        fill_column(&batch.columns[f], array.children[first + f], layout.fields[f].kind, array.offset)
    batch.view.columns = batch.columns
    if layout.heap_offset:
        check_heaps(batch)
    return 0


cdef const int64_t* int64_column(ArrowArray* array, int64_t i) noexcept:
    return <const int64_t*>array.children[i].buffers[1] + array.children[i].offset + array.offset


cdef int arrow_keys(RowBatch batch, ArrowArray* array) except -1:
    """Encode string and composite keys."""
    cdef RowLayout layout = batch.layout
    cdef int64_t count = array.length
    cdef int64_t i
    cdef uint32_t k
    cdef uint32_t size
    cdef uint64_t at = 0
    cdef uint64_t total = 0
    cdef const int32_t* offsets
    cdef int64_t first
    for k in range(layout.keys_count):
        if layout.key_kinds[k] == STRING and count > 0:
            first = array.children[k].offset + array.offset
            offsets = <const int32_t*>array.children[k].buffers[1] + first
            total += 4 * count + (offsets[count] - offsets[0])
        else:
            total += 8 * count
    if total > UINT32_MAX:
        raise DataError(f"view {layout.view!r}: the batch's keys take {total} B, at most 4 GiB; use smaller batches")
    batch.key_data = <uint8_t*>allocated(malloc(total + 1))
    batch.key_offsets = <uint32_t*>allocated(malloc((count + 1) * 4))
    batch.key_offsets[0] = 0
    for i in range(count):
        for k in range(layout.keys_count):
            first = array.children[k].offset + array.offset + i
            if layout.key_kinds[k] == STRING:
                offsets = <const int32_t*>array.children[k].buffers[1] + first
                size = <uint32_t>(offsets[1] - offsets[0])
                memcpy(batch.key_data + at, &size, 4)
                memcpy(batch.key_data + at + 4, <const uint8_t*>array.children[k].buffers[2] + offsets[0], size)
                at += 4 + size
            else:
                memcpy(batch.key_data + at, <const int64_t*>array.children[k].buffers[1] + first, 8)
                at += 8
        batch.key_offsets[i + 1] = <uint32_t>at
        if at - batch.key_offsets[i] > key_size_max:
            raise DataError(
                f"view {layout.view!r}: row {i}: the key takes {at - batch.key_offsets[i]} B, at most {key_size_max};"
                " hash long keys before storing them"
            )
    batch.view.keys.data = batch.key_data
    batch.view.keys.offsets = batch.key_offsets
    return 0


cdef int check_heaps(RowBatch batch) except -1:
    cdef int64_t i
    for i in range(batch.view.count):
        if batch_heap_size(&batch.view, i) > heap_size_max:
            raise DataError(
                f"view {batch.layout.view!r}: row {i}: its variable values take over {heap_size_max} B;"
                " keep large objects elsewhere"
            )
    return 0


# --- encoding --------------------------------------------------------------------------------------------------------

cdef inline bint bit_at(const uint8_t* bits, int64_t i) noexcept nogil:
    return (bits[i >> 3] >> (i & 7)) & 1


cdef void encode_words(
    const uint64_t* data, const int64_t* rows, int64_t count, uint8_t* cell, uint32_t stride,
) noexcept nogil:
    cdef int64_t i
    if rows == NULL:
        for i in range(count):
            (<uint64_t*>cell)[0] = data[i]
            cell += stride
    else:
        for i in range(count):
            (<uint64_t*>cell)[0] = data[rows[i]]
            cell += stride


cdef void encode_plain(
    const uint8_t* data, const int64_t* rows, int64_t count, uint8_t* cell, uint32_t stride, uint32_t width,
) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        memcpy(cell, data + width * (i if rows == NULL else rows[i]), width)
        cell += stride


cdef void encode_bools(
    const uint8_t* bits, int64_t first, const int64_t* rows, int64_t count, uint8_t* cell, uint32_t stride,
) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        cell[0] = bit_at(bits, first + (i if rows == NULL else rows[i]))
        cell += stride


cdef void encode_nulls(
    const uint8_t* validity, int64_t first, const int64_t* rows, int64_t count, uint8_t* images, uint32_t stride,
    uint32_t f, const FieldView* field,
) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        if not bit_at(validity, first + (i if rows == NULL else rows[i])):
            images[f >> 3] |= 1 << (f & 7)
            memset(images + field.offset, 0, field.width)
        images += stride


cdef void encode(
    const BatchView* batch, int64_t low, const int64_t* rows, int64_t count, uint8_t* images,
) noexcept nogil:
    """Arrow rows low + rows[0], low + rows[1], ..., or from low on where `rows` is NULL; column by column."""
    cdef uint32_t stride = batch.row_stride
    cdef uint32_t f
    cdef int64_t i
    cdef int64_t first
    cdef const FieldView* field
    cdef const ArrowColumn* column
    cdef uint32_t cells_offset = batch.heap_offset + 8 if batch.heap_offset else ((batch.fields_count + 63) >> 6) << 3
    cdef int64_t last = count - 1 if rows == NULL else rows[count - 1]
    cdef int64_t ahead = count if rows == NULL else last - rows[0]
    cdef int64_t left = batch.count - (low + last + 1)
    if count < 16 or ahead > 8 * count:   # few rows, or scattered: those that follow may be nobody's
        ahead = 0
    ahead = min(ahead, left)
    for i in range(count):
        memset(images + i * stride, 0, cells_offset)
        memset(images + (i + 1) * stride - 8, 0, 8)       # the padding after the last cell
    for f in range(batch.fields_count):
        field = &batch.fields[f]
        column = &batch.columns[f]
        first = column.offset + low
        if ahead > 0 and field.kind < STRING and field.kind != BOOL:
            prefetch_far(<uint64_t>column.data + (first + last + 1) * field.width, ahead * field.width)
        if field.kind >= STRING and field.kind != VECTOR:
            for i in range(count):
                memset(images + i * stride + field.offset, 0, field.width)
        elif field.kind == VECTOR:
            encode_plain(
                column.child_data + (column.child_offset + first * field.size) * field.element_width,
                rows, count, images + field.offset, stride, field.width,
            )
        elif field.kind == BOOL:
            encode_bools(column.data, first, rows, count, images + field.offset, stride)
        elif field.width == 8:
            encode_words(<const uint64_t*>column.data + first, rows, count, images + field.offset, stride)
        else:
            encode_plain(column.data + first * field.width, rows, count, images + field.offset, stride, field.width)
        if column.validity != NULL:
            encode_nulls(column.validity, first, rows, count, images, stride, f, field)


cdef void batch_encode(const BatchView* batch, int64_t low, int64_t high, uint8_t* images) noexcept nogil:
    if batch.columns == NULL:
        memcpy(images, batch.images + low * batch.row_stride, (high - low) * batch.row_stride)
    else:
        encode(batch, low, NULL, high - low, images)


cdef void batch_encode_rows(
    const BatchView* batch, const int64_t* rows, int64_t count, uint8_t* images,
) noexcept nogil:
    cdef int64_t i
    if batch.columns == NULL:
        for i in range(count):
            memcpy(images + i * batch.row_stride, batch.images + rows[i] * batch.row_stride, batch.row_stride)
    elif rows[count - 1] - rows[0] == count - 1:
        encode(batch, rows[0], NULL, count, images)
    else:
        encode(batch, 0, rows, count, images)


# --- the heap of a row -----------------------------------------------------------------------------------------------

cdef uint64_t arrow_cell_size(const FieldView* field, const ArrowColumn* column, int64_t i) noexcept nogil:
    """Bytes of a variable cell in the row's heap."""
    cdef const int32_t* offsets = <const int32_t*>column.offsets + column.offset + i
    cdef const int32_t* child
    if column.validity != NULL and not bit_at(column.validity, column.offset + i):
        return 0
    if field.kind != LIST:
        return offsets[1] - offsets[0]
    if field.element_kind == STRING or field.element_kind == BYTES:
        child = <const int32_t*>column.child_offsets + column.child_offset
        return 4 + 4 * (offsets[1] - offsets[0]) + child[offsets[1]] - child[offsets[0]]
    return <uint64_t>(offsets[1] - offsets[0]) * field.element_width


cdef void arrow_cell_write(
    const FieldView* field, const ArrowColumn* column, int64_t i, uint8_t* to, uint64_t size
) noexcept nogil:
    cdef const int32_t* offsets = <const int32_t*>column.offsets + column.offset + i
    cdef const int32_t* child
    cdef int32_t at
    cdef uint32_t number
    if field.kind != LIST:
        memcpy(to, column.data + offsets[0], size)
    elif field.element_kind == BOOL:
        for at in range(offsets[0], offsets[1]):
            to[at - offsets[0]] = bit_at(column.child_data, column.child_offset + at)
    elif field.element_kind == STRING or field.element_kind == BYTES:
        child = <const int32_t*>column.child_offsets + column.child_offset
        number = <uint32_t>(offsets[1] - offsets[0])
        memcpy(to, &number, 4)
        for at in range(offsets[0], offsets[1]):
            number = <uint32_t>(child[at + 1] - child[at])
            memcpy(to + 4 + 4 * (at - offsets[0]), &number, 4)
        number = 4 + 4 * <uint32_t>(offsets[1] - offsets[0])
        memcpy(to + number, column.child_data + child[offsets[0]], size - number)
    else:
        memcpy(to, column.child_data + (column.child_offset + offsets[0]) * field.element_width, size)


cdef uint64_t batch_heap_size(const BatchView* batch, int64_t i) noexcept nogil:
    """Bytes that row i's variable cells take; 0 where they are all empty or null."""
    cdef uint64_t size = 0
    cdef uint32_t f
    if batch.columns == NULL:
        return batch.heap_offsets[i + 1] - batch.heap_offsets[i]
    for f in range(batch.fields_count):
        if batch.fields[f].kind >= STRING and batch.fields[f].kind != VECTOR:
            size += arrow_cell_size(&batch.fields[f], &batch.columns[f], i)
    return size


cdef void batch_heap_write(const BatchView* batch, int64_t i, uint8_t* heap, uint8_t* image) noexcept nogil:
    """Write row i's variable bytes at `heap` and its cells into `image`."""
    cdef uint32_t f
    cdef uint32_t at = 0
    cdef uint64_t size
    cdef Cell* cell
    if batch.columns == NULL:             # the image's cells are already right
        size = batch.heap_offsets[i + 1] - batch.heap_offsets[i]
        memcpy(heap, batch.heap + batch.heap_offsets[i], size)
        return
    for f in range(batch.fields_count):
        if batch.fields[f].kind >= STRING and batch.fields[f].kind != VECTOR:
            size = arrow_cell_size(&batch.fields[f], &batch.columns[f], i)
            cell = <Cell*>(image + batch.fields[f].offset)
            cell.offset = at
            cell.size = <uint32_t>size
            if size > 0:
                arrow_cell_write(&batch.fields[f], &batch.columns[f], i, heap + at, size)
            at += <uint32_t>size


# --- the image form -------------------------------------------------------------------------------------------------

cdef RowBatch batch_imaged(RowBatch batch):
    """The same rows in memory of their own, as row images; the batch itself where it is so already."""
    cdef int64_t count = batch.view.count
    cdef int64_t i
    cdef uint64_t size = 0
    cdef uint64_t key_size = 8 * count
    cdef RowBatch out
    if batch.view.columns == NULL:
        return batch
    out = batch_new(batch.layout, count)
    out.event_times = <int64_t*>copied(batch.view.event_times, 8 * count)
    out.created_times = <int64_t*>copied(batch.view.created_times, 8 * count)
    if batch.view.keys.offsets != NULL:
        out.key_offsets = <uint32_t*>copied(batch.view.keys.offsets, 4 * (count + 1))
        key_size = batch.view.keys.offsets[count]
    out.key_data = <uint8_t*>copied(batch.view.keys.data, key_size)
    out.images = <uint8_t*>allocated(malloc(count * out.view.row_stride + 1))
    if batch.layout.heap_offset:
        out.heap_offsets = <uint64_t*>allocated(malloc(8 * (count + 1)))
        out.heap_offsets[0] = 0
    with nogil:
        for i in range(0, count, 128):    # IMAGED_ROWS
            batch_encode(&batch.view, i, min(i + IMAGED_ROWS, count), out.images + i * out.view.row_stride)
        if batch.layout.heap_offset:
            for i in range(count):
                size += batch_heap_size(&batch.view, i)
                out.heap_offsets[i + 1] = size
    if batch.layout.heap_offset:
        out.heap = <uint8_t*>allocated(malloc(size + 1))
        with nogil:
            for i in range(count):
                batch_heap_write(&batch.view, i, out.heap + out.heap_offsets[i], out.images + i * out.view.row_stride)
    batch_point(out)
    return out


cdef void* copied(const void* data, uint64_t size) except NULL:
    return memcpy(allocated(malloc(size + 1)), data, size)


cdef void batch_point(RowBatch batch):
    """Let the view see the batch's own memory."""
    batch.view.event_times = batch.event_times
    batch.view.created_times = batch.created_times
    batch.view.images = batch.images
    batch.view.heap = batch.heap
    batch.view.heap_offsets = batch.heap_offsets
    batch.view.keys.count = batch.view.count
    batch.view.keys.data = batch.key_data
    batch.view.keys.offsets = batch.key_offsets


# --- out -------------------------------------------------------------------------------------------------------------

cdef double cell_double(uint8_t kind, const uint8_t* cell) noexcept nogil:
    """A scalar cell as float64."""
    if kind == FLOAT64:
        return (<const double*>cell)[0]
    if kind == FLOAT32:
        return (<const float*>cell)[0]
    if kind == INT64 or kind == TIMESTAMP:
        return <double>(<const int64_t*>cell)[0]
    if kind == INT32:
        return (<const int32_t*>cell)[0]
    if kind == INT16:
        return (<const int16_t*>cell)[0]
    if kind == INT8:
        return (<const int8_t*>cell)[0]
    if kind == UINT64:
        return <double>(<const uint64_t*>cell)[0]
    if kind == UINT32:
        return (<const uint32_t*>cell)[0]
    if kind == UINT16:
        return (<const uint16_t*>cell)[0]
    return cell[0]
