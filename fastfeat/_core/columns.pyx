"""Columns: the layout of a row, and rows on their way in.

    row (row_stride bytes)
    +----------------------+---------------------+-------------------------------------------+
    | null bits, 1 = null  | heap_at u64, only   | cells: widest first, each aligned to its  |
    | padded to 8 bytes    | with variable cells | element, in schema order within a width   |
    +----------------------+---------------------+-------------------------------------------+
                                    |
                                    +--> size u64 | bytes that (offset u32, size u32) cells point into

A RowBatch holds rows that passed every check, either as an Arrow struct array borrowed through the C data interface
(bulk loads: nothing is copied until a row reaches its place in the arena) or as row images (rows of Python values).

Invariant:  a cell under a null bit is zero, so equal rows are equal bytes.
Ownership:  a RowBatch keeps the Arrow array alive; the arena copies.
Errors:     everything that can be wrong with a value is found here, before anything is applied: DataError names view,
            row, field, what was wrong and the remedy.
Source:     https://arrow.apache.org/docs/format/CDataInterface.html and .../Columnar.html
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport (
    INT16_MAX, INT16_MIN, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, INT8_MAX, INT8_MIN, UINT16_MAX, UINT32_MAX,
    UINT8_MAX, int16_t, int32_t, int64_t, int8_t, uint16_t, uint32_t, uint64_t, uint8_t,
)
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from operator import index as as_index

from ..dtypes import SCALAR_WIDTH, DType
from ..errors import DataError, SchemaError

EVENT_TIMESTAMP = "event_timestamp"
KEY_SIZE_MAX = 4096
HEAP_SIZE_MAX = 1 << 24           # bytes of one row's strings, bytes and lists
TIME_MIN_US = -62_135_596_800_000_000    # 0001-01-01T00:00:00Z
TIME_MAX_US = 253_402_300_799_999_999    # 9999-12-31T23:59:59.999999Z

cdef object EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
cdef int64_t time_min = TIME_MIN_US
cdef int64_t time_max = TIME_MAX_US
cdef uint32_t key_size_max = KEY_SIZE_MAX
cdef uint64_t heap_size_max = HEAP_SIZE_MAX

cdef enum:
    CELL_SIZE = 8


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

    def __dealloc__(self):
        free(self.fields)
        free(self.key_kinds)


# --- scalars from Python ---------------------------------------------------------------------------------------------

cdef int64_t us_of(value) except? -1:
    """Microseconds since 1970 UTC of an aware datetime or an int. Raises DataError; the caller says where."""
    cdef int64_t us
    if isinstance(value, datetime):
        if value.tzinfo is None or value.utcoffset() is None:
            raise DataError(f"datetime {value} has no zone; add one, such as tzinfo=timezone.utc")
        delta = value - EPOCH
        return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    if isinstance(value, bool) or isinstance(value, float):
        raise DataError(f"a time is an aware datetime or int microseconds, not {value!r}")
    try:
        number = as_index(value)
    except TypeError:
        raise DataError(f"a time is an aware datetime or int microseconds, not {type(value).__name__}") from None
    if not time_min <= number <= time_max:
        raise DataError(f"time {number} us is outside 0001-01-01 to 9999-12-31; times are microseconds since 1970 UTC")
    us = number
    return us


cdef object whole_number(value, low, high, str type_name):
    """The value as an int in [low, high]. Raises DataError."""
    if type(value) is not int:
        if isinstance(value, (bool, float)) or type(value).__name__ == "bool":
            raise DataError(f"{value!r} is {type(value).__name__}, not {type_name}")
        try:
            value = as_index(value)
        except TypeError:
            raise DataError(f"{value!r} is {type(value).__name__}, not {type_name}") from None
    if not low <= value <= high:
        raise DataError(f"{value} is outside {type_name}, {low} to {high}")
    return value


cdef tuple INT_RANGE = (
    None, (INT8_MIN, INT8_MAX), (INT16_MIN, INT16_MAX), (INT32_MIN, INT32_MAX), (INT64_MIN, INT64_MAX),
    (0, UINT8_MAX), (0, UINT16_MAX), (0, UINT32_MAX), (0, 0xFFFFFFFFFFFFFFFF),
)
cdef tuple INT_NAME = (None, "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


cdef double real_number(value, str type_name) except? -1.0:
    if type(value) is float:
        return value
    if isinstance(value, (bool, str, bytes)) or type(value).__name__ == "bool":
        raise DataError(f"{value!r} is {type(value).__name__}, not {type_name}")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{value!r} is {type(value).__name__}, not a number that {type_name} holds") from None


cdef int scalar_encode(uint8_t kind, value, uint8_t* cell) except -1:
    """Write one scalar's bytes. Raises DataError that says what the value is and what was wanted."""
    cdef int64_t signed
    cdef uint64_t unsigned
    cdef double real
    cdef float single
    if kind == FLOAT64:
        real = real_number(value, "float64")
        memcpy(cell, &real, 8)
    elif kind == FLOAT32:
        real = real_number(value, "float32")
        single = <float>real
        if (single - single) != 0 and (real - real) == 0:
            raise DataError(f"{value!r} is too large for float32; declare the field float64")
        memcpy(cell, &single, 4)
    elif kind == BOOL:
        if type(value).__name__ not in ("bool", "bool_"):
            raise DataError(f"{value!r} is {type(value).__name__}, not bool")
        cell[0] = 1 if value else 0
    elif kind == TIMESTAMP:
        signed = us_of(value)
        memcpy(cell, &signed, 8)
    else:
        low, high = INT_RANGE[kind]
        value = whole_number(value, low, high, INT_NAME[kind])
        if kind == UINT64:
            unsigned = value
            memcpy(cell, &unsigned, 8)
        else:
            signed = value
            memcpy(cell, &signed, 8 if kind == INT64 else 1 << ((kind - 1) & 3))    # little-endian: low bytes first
    return 0


cdef bytes text_bytes(uint8_t kind, value):
    """The bytes of a string or bytes value. Raises DataError."""
    if kind == STRING:
        if not isinstance(value, str):
            raise DataError(f"{value!r} is {type(value).__name__}, not string")
        try:
            return (<str?>str(value)).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{value!r} holds a lone surrogate, which is no text; clean it, or use type bytes") from None
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise DataError(f"{value!r} is {type(value).__name__}, not bytes")
    return bytes(value)


cdef bytes list_bytes(uint8_t kind, uint8_t width, value):
    """A list's bytes: numbers packed; strings as count u32, sizes u32 each, then the bytes. Raises DataError."""
    cdef bytearray out
    cdef uint8_t cell[8]
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise DataError(f"{value!r} is {type(value).__name__}, not a list")
    if kind == STRING or kind == BYTES:
        parts = [element_text(kind, item, i) for i, item in enumerate(value)]
        sizes = [len(parts), *map(len, parts)]
        return b"".join([size.to_bytes(4, "little") for size in sizes] + parts)
    out = bytearray()
    for i, item in enumerate(value):
        if item is None:
            raise DataError(f"element {i} is None; lists hold no nulls")
        scalar_encode(kind, item, cell)
        out += (<char*>cell)[:width]
    return bytes(out)


cdef bytes element_text(uint8_t kind, item, i):
    if item is None:
        raise DataError(f"element {i} is None; lists hold no nulls")
    return text_bytes(kind, item)


cdef int vector_encode(FieldView* field, value, uint8_t* cell) except -1:
    cdef uint32_t i
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__len__"):
        raise DataError(f"{value!r} is {type(value).__name__}, not a vector of {field.size} numbers")
    if len(value) != field.size:
        raise DataError(f"the vector has {len(value)} elements, not {field.size}")
    for i, item in enumerate(value):
        if item is None:
            raise DataError(f"element {i} is None; vectors hold no nulls")
        scalar_encode(field.element_kind, item, cell + i * field.element_width)
    return 0


# --- keys ------------------------------------------------------------------------------------------------------------

cdef bytes key_part(RowLayout layout, uint32_t i, value):
    """One join key's bytes in a composite or string key. Raises DataError."""
    cdef uint8_t cell[8]
    if value is None:
        raise DataError("is null; every row needs its key")
    if layout.key_kinds[i] == STRING:
        text = text_bytes(STRING, value)
        return len(text).to_bytes(4, "little") + text
    key_int_encode(layout.key_kinds[i], value, cell)
    return (<char*>cell)[:8]


cdef int key_int_encode(uint8_t kind, value, uint8_t* cell) except -1:
    cdef int64_t signed
    cdef uint64_t unsigned
    if value is None:
        raise DataError("is null; every row needs its key")
    low, high = INT_RANGE[kind]
    value = whole_number(value, low, high, INT_NAME[kind])
    if kind == UINT64:
        unsigned = value
        memcpy(cell, &unsigned, 8)
    else:
        signed = value
        memcpy(cell, &signed, 8)
    return 0


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


# --- batch: rows of Python values ------------------------------------------------------------------------------------

cdef RowBatch batch_from_rows(RowLayout layout, object rows, int64_t created_us):
    """Check and encode rows of Python values (see Table.append_rows)."""
    cdef int64_t count = len(rows)
    cdef int64_t i
    cdef RowBatch batch = batch_new(layout, count)
    cdef int64_t room = count if count > 0 else 1
    batch.event_times = <int64_t*>allocated(malloc(room * 8))
    batch.created_times = <int64_t*>allocated(malloc(room * 8))
    batch.images = <uint8_t*>allocated(calloc(room, layout.row_stride))
    if layout.key_is_u64:
        batch.key_data = <uint8_t*>allocated(malloc(room * 8))
    else:
        batch.key_offsets = <uint32_t*>allocated(calloc(room + 1, 4))
    if layout.heap_offset:
        batch.heap_offsets = <uint64_t*>allocated(calloc(room + 1, 8))
    keys = []
    cdef RowReader reader = RowReader(layout)
    for i in range(count):
        batch.created_times[i] = created_us
        reader.read(batch, i, rows[i], keys)
    if not layout.key_is_u64:
        set_keys(batch, keys)
    batch.view.event_times = batch.event_times
    batch.view.created_times = batch.created_times
    batch.view.images = batch.images
    batch.view.heap = batch.heap
    batch.view.heap_offsets = batch.heap_offsets
    batch.view.keys.count = count
    batch.view.keys.data = batch.key_data
    batch.view.keys.offsets = batch.key_offsets
    return batch


cdef int set_keys(RowBatch batch, list keys) except -1:
    """Lay the encoded keys back to back."""
    cdef int64_t i
    cdef uint64_t at = 0
    cdef bytes joined = b"".join(keys)
    if len(joined) > UINT32_MAX:
        raise DataError(f"view {batch.layout.view!r}: the batch's keys take {len(joined)} B, at most 4 GiB; send less")
    batch.key_data = <uint8_t*>allocated(malloc(len(joined) + 1))
    memcpy(batch.key_data, PyBytes_AS_STRING(joined), len(joined))
    for i in range(len(keys)):
        at += len(<bytes>keys[i])
        batch.key_offsets[i + 1] = <uint32_t>at
    return 0


cdef class RowReader:
    """Reads one Python row into a batch; keeps what is the same for every row."""

    cdef RowLayout layout
    cdef Py_ssize_t names_count

    def __init__(self, RowLayout layout):
        self.layout = layout
        self.names_count = layout.keys_count + layout.fields_count + 1

    cdef int read(self, RowBatch batch, int64_t i, object row, list keys) except -1:
        cdef RowLayout layout = self.layout
        cdef str name = EVENT_TIMESTAMP
        cdef uint32_t f
        cdef uint8_t* image = batch.images + i * layout.row_stride
        if not isinstance(row, Mapping) and not isinstance(row, dict):
            raise DataError(f"view {layout.view!r}: row {i} is {type(row).__name__}, not a dict of names and values")
        try:
            batch.event_times[i] = us_of(row[name])
            self.read_key(batch, i, row, keys)
            if layout.heap_offset:
                batch.heap_offsets[i + 1] = batch.heap_offsets[i]
            for f in range(layout.fields_count):
                name = <str>layout.names[f]
                value = row[name]
                if value is None:
                    self.read_null(f, image)
                else:
                    self.read_cell(batch, i, &layout.fields[f], value, image)
        except KeyError:
            if self.missing(row) is None:
                raise
            raise DataError(self.missing(row).replace("row #", f"row {i}")) from None
        except DataError as error:
            raise DataError(f"view {layout.view!r}: row {i}: {self.culprit(row, name, error)}") from None
        if len(row) != self.names_count:
            self.raise_unknown(row, i)
        return 0

    cdef int read_key(self, RowBatch batch, int64_t i, object row, list keys) except -1:
        cdef RowLayout layout = self.layout
        cdef uint32_t k
        cdef bytes key
        if layout.key_is_u64:
            try:
                key_int_encode(layout.key_kinds[0], row[layout.key_names[0]], batch.key_data + 8 * i)
            except DataError as error:
                raise KeyFault(f"key {layout.key_names[0]!r}: {error}") from None
            return 0
        parts = []
        for k in range(layout.keys_count):
            try:
                parts.append(key_part(layout, k, row[layout.key_names[k]]))
            except DataError as error:
                raise KeyFault(f"key {layout.key_names[k]!r}: {error}") from None
        key = b"".join(parts)
        if len(key) > key_size_max:
            raise KeyFault(f"the key takes {len(key)} B, at most {key_size_max}; hash long keys before storing them")
        keys.append(key)
        return 0

    cdef int read_null(self, uint32_t f, uint8_t* image) except -1:
        if not self.layout.fields[f].nullable:
            raise DataError("is null, but the field is declared nullable=False")
        image[f >> 3] |= 1 << (f & 7)
        return 0

    cdef int read_cell(self, RowBatch batch, int64_t i, FieldView* field, value, uint8_t* image) except -1:
        cdef bytes data
        cdef Cell* cell
        if field.kind == VECTOR:
            return vector_encode(field, value, image + field.offset)
        if field.kind < STRING:
            return scalar_encode(field.kind, value, image + field.offset)
        if field.kind == LIST:
            data = list_bytes(field.element_kind, field.element_width, value)
        else:
            data = text_bytes(field.kind, value)
        cdef uint64_t start = batch.heap_offsets[i]
        cdef uint64_t end = batch.heap_offsets[i + 1]
        if end - start + len(data) > heap_size_max:
            raise DataError(f"the row's variable values take over {heap_size_max} B; keep large objects elsewhere")
        if end + len(data) > batch.heap_capacity:
            batch.heap_capacity = 2 * batch.heap_capacity + len(data) + 4096
            batch.heap = <uint8_t*>allocated(realloc(batch.heap, batch.heap_capacity))
        memcpy(batch.heap + end, PyBytes_AS_STRING(data), len(data))
        cell = <Cell*>(image + field.offset)
        cell.offset = <uint32_t>(end - start)
        cell.size = <uint32_t>len(data)
        batch.heap_offsets[i + 1] = end + len(data)
        return 0

    cdef str culprit(self, row, str name, error):
        if isinstance(error, KeyFault):
            return str(error)
        return f"{name}: {error}" if name == EVENT_TIMESTAMP else f"field {name!r}: {error}"

    cdef object missing(self, row):
        names = [*self.layout.key_names, EVENT_TIMESTAMP, *self.layout.names]
        absent = [name for name in names if name not in row]
        if not absent:
            return None
        return (f"view {self.layout.view!r}: row #: {', '.join(map(repr, absent))} missing; rows are whole: give every key,"
                f" {EVENT_TIMESTAMP!r} and every field (None for a null)")

    cdef int raise_unknown(self, row, i) except -1:
        known = {*self.layout.key_names, EVENT_TIMESTAMP, *self.layout.names}
        unknown = ", ".join(repr(name) for name in row if name not in known)
        raise DataError(f"view {self.layout.view!r}: row {i}: unknown name {unknown}; it has {', '.join(sorted(known))}")


class KeyFault(DataError):
    """Inside this module: the fault is in a key and the message already names it."""


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
    if schema.name != NULL and schema.name != name.encode() or not found.startswith(wanted):
        raise DataError(
            f"view {layout.view!r}: column {(<bytes>schema.name).decode() if schema.name != NULL else ''!r} of Arrow format"
            f" {found.decode()!r} where {name!r} of format {wanted.decode()!r} belongs"
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
    if schema.n_children != keys + 2 + layout.fields_count:
        raise DataError(f"view {layout.view!r}: {schema.n_children} columns, not {keys + 2 + layout.fields_count}")
    for f in range(keys):
        kind = layout.key_types[f]
        wanted = b"u" if kind == "string" else b"L" if kind == "uint64" else b"l"
        check_column(layout, schema.children[f], layout.key_names[f], wanted)
    for f in range(2):
        if schema.children[keys + f].format not in (b"l", b"tsu:UTC"):
            raise DataError(f"view {layout.view!r}: the time columns must be int64 or timestamp[us, UTC]")
    batch.columns = <ArrowColumn*>allocated(calloc(layout.fields_count, sizeof(ArrowColumn)))
    for f in range(layout.fields_count):
        check_column(layout, schema.children[keys + 2 + f], layout.names[f], arrow_format(layout.dtypes[f]))
        fill_column(&batch.columns[f], array.children[keys + 2 + f], layout.fields[f].kind, array.offset)
    batch.view.columns = batch.columns
    batch.view.event_times = int64_column(array, keys)
    batch.view.created_times = int64_column(array, keys + 1)
    batch.view.keys.count = array.length
    if layout.key_is_u64:
        batch.view.keys.data = <const uint8_t*>int64_column(array, 0)
    else:
        arrow_keys(batch, array)
    if layout.heap_offset:
        check_heaps(batch)
    return batch


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


cdef void encode_words(const uint64_t* data, int64_t count, uint8_t* cell, uint32_t stride) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        (<uint64_t*>cell)[0] = data[i]
        cell += stride


cdef void encode_plain(const uint8_t* data, int64_t count, uint8_t* cell, uint32_t stride, uint32_t width) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        memcpy(cell, data, width)
        data += width
        cell += stride


cdef void encode_bools(const uint8_t* bits, int64_t first, int64_t count, uint8_t* cell, uint32_t stride) noexcept nogil:
    cdef int64_t i
    for i in range(first, first + count):
        cell[0] = bit_at(bits, i)
        cell += stride


cdef void encode_nulls(
    const uint8_t* validity, int64_t first, int64_t count, uint8_t* images, uint32_t stride, uint32_t f,
    const FieldView* field,
) noexcept nogil:
    cdef int64_t i
    for i in range(first, first + count):
        if not bit_at(validity, i):
            images[f >> 3] |= 1 << (f & 7)
            memset(images + field.offset, 0, field.width)
        images += stride


cdef void batch_encode(const BatchView* batch, int64_t low, int64_t high, uint8_t* images) noexcept nogil:
    cdef uint32_t stride = batch.row_stride
    cdef uint32_t f
    cdef int64_t i
    cdef int64_t first
    cdef const FieldView* field
    cdef const ArrowColumn* column
    cdef uint32_t cells_offset = batch.heap_offset + 8 if batch.heap_offset else ((batch.fields_count + 63) >> 6) << 3
    if batch.columns == NULL:
        memcpy(images, batch.images + low * stride, (high - low) * stride)
        return
    for i in range(high - low):
        memset(images + i * stride, 0, cells_offset)
        memset(images + (i + 1) * stride - 8, 0, 8)       # the padding after the last cell
    for f in range(batch.fields_count):
        field = &batch.fields[f]
        column = &batch.columns[f]
        first = column.offset + low
        if field.kind >= STRING and field.kind != VECTOR:
            for i in range(high - low):
                memset(images + i * stride + field.offset, 0, field.width)
        elif field.kind == VECTOR:
            encode_plain(
                column.child_data + (column.child_offset + first * field.size) * field.element_width,
                high - low, images + field.offset, stride, field.width,
            )
        elif field.kind == BOOL:
            encode_bools(column.data, first, high - low, images + field.offset, stride)
        elif field.width == 8:
            encode_words(<const uint64_t*>column.data + first, high - low, images + field.offset, stride)
        else:
            encode_plain(column.data + first * field.width, high - low, images + field.offset, stride, field.width)
        if column.validity != NULL:
            encode_nulls(column.validity, first, high - low, images, stride, f, field)


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
