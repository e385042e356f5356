"""Values: rows of Python values on their way in, checked one by one and encoded as row images.

    {"user_id": 7, "event_timestamp": t, "age": 30, ...} --RowReader--> key bytes, event time, row image, heap bytes

Promise: every value is checked against its declared type before anything is applied; nothing is coerced that would
         change it (an
         int is no bool, a float is no int, a str is no bytes), but integers become floats where floats are declared.
Errors:  DataError names view, row, field, what was wrong and the remedy.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport (
    INT16_MAX, INT16_MIN, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, INT8_MAX, INT8_MIN, UINT16_MAX, UINT32_MAX,
    UINT8_MAX, int64_t, uint8_t, uint32_t, uint64_t,
)
from libc.stdlib cimport calloc, malloc, realloc
from libc.string cimport memchr, memcpy, memset

from collections.abc import Mapping
from datetime import datetime, timezone
from operator import index as as_index

cimport numpy as cnp

import numpy as np

from ..errors import DataError
from .columns cimport (
    BOOL, BYTES, FLOAT32, FLOAT64, INT64, LIST, STRING, TIMESTAMP, UINT64, VECTOR, Cell, FieldView, RowBatch, RowLayout,
    allocated, batch_new, batch_point,
)
from .columns import HEAP_SIZE_MAX, KEY_SIZE_MAX

EVENT_TIMESTAMP = "event_timestamp"
TIME_MIN_US = -62_135_596_800_000_000    # 0001-01-01T00:00:00Z
TIME_MAX_US = 253_402_300_799_999_999    # 9999-12-31T23:59:59.999999Z

cnp.import_array()

cdef object EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
cdef int64_t time_min = TIME_MIN_US
cdef int64_t time_max = TIME_MAX_US
cdef uint32_t key_size_max = KEY_SIZE_MAX
cdef uint64_t heap_size_max = HEAP_SIZE_MAX
cdef int64_t WHOLE_MAX = 1 << 53         # up to which every integer is a float64


# --- scalars from Python ---------------------------------------------------------------------------------------------

cdef int64_t us_of(value) except? -1:
    """Microseconds since 1970 UTC of an aware datetime or an int. Raises DataError; the caller says where."""
    if type(value) is int:
        return checked_us(value)
    if isinstance(value, datetime):
        if value.tzinfo is None or value.utcoffset() is None:
            raise DataError(f"datetime {value} has no zone; add one, such as tzinfo=timezone.utc")
        delta = value - EPOCH
        return checked_us((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds)
    if isinstance(value, bool) or isinstance(value, float):
        raise DataError(f"a time is an aware datetime or int microseconds, not {value!r}")
    try:
        number = as_index(value)
    except TypeError:
        raise DataError(f"a time is an aware datetime or int microseconds, not {type(value).__name__}") from None
    return checked_us(number)


cdef int64_t checked_us(number) except? -1:
    if not time_min <= number <= time_max:
        raise DataError(f"time {number} us is outside 0001-01-01 to 9999-12-31; times are microseconds since 1970 UTC")
    return number


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
    cdef double real
    cdef int64_t whole
    cdef int overflow
    if type(value) is float:
        return value
    if type(value) is int:
        whole = PyLong_AsLongLongAndOverflow(value, &overflow)
        if not overflow and -WHOLE_MAX <= whole <= WHOLE_MAX:
            return <double>whole
    if isinstance(value, (bool, str, bytes)) or type(value).__name__ == "bool":
        raise DataError(f"{value!r} is {type(value).__name__}, not {type_name}")
    try:
        real = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{value!r} is {type(value).__name__}, not a number that {type_name} holds") from None
    if type_name == "float64" and hasattr(value, "__index__") and as_index(value) != int(real):
        raise DataError(f"{value} is an integer that float64 can't hold exactly; declare the field int64")
    return real


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
        if value is not True and value is not False and type(value).__name__ not in ("bool", "bool_"):
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
            raise DataError(f"{value!r} holds a lone surrogate, which is no text; clean it or use bytes") from None
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
    cdef list items
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
        raise DataError(f"{value!r} is {type(value).__name__}, not a vector of {field.size} numbers")
    # Why a copy: the cell has room for `size` elements, and an element's own code may change the caller's list.
    items = list(value)
    if len(items) != field.size:
        raise DataError(f"the vector has {len(items)} elements, not {field.size}")
    for i, item in enumerate(items):
        if item is None:
            raise DataError(f"element {i} is None; vectors hold no nulls")
        scalar_encode(field.element_kind, item, cell + i * field.element_width)
    return 0


# --- columns ---------------------------------------------------------------------------------------------------------

cdef class ColumnReader:
    """Values of one type as a column of the answer to a read: (valid, data, offsets), see plan.pyx.

    what: begins the message of every DataError that is raised.
    """

    cdef readonly object dtype
    cdef readonly str what
    cdef FieldView field
    cdef bint is_scalar
    cdef bint is_variable
    cdef int data_type         # NumPy's number of the column's type,
    cdef int array_type        # and of arrays that are of it

    def __init__(self, dtype, str what not None):
        self.dtype = dtype
        self.what = what
        self.field.kind = dtype.kind
        self.field.size = dtype.size
        self.field.element_kind = dtype.element_kind
        self.field.width = dtype.width
        self.field.element_width = self.field.width // max(self.field.size, 1)
        self.is_variable = dtype.is_variable
        self.data_type = cnp.NPY_UINT8 if dtype.name == "bool" or self.is_variable else np.dtype(dtype.numpy).num
        self.array_type = cnp.NPY_BOOL if dtype.name == "bool" else self.data_type
        self.is_scalar = dtype.is_scalar_number

    def read(self, values):
        """The column of a list, None for a null, or of an array of this very type.

        None: the values are neither. Errors name the entity by its place.
        """
        if type(values) is list:
            return self.read_list(values)
        if cnp.PyArray_CheckExact(values):
            return self.read_array(<cnp.ndarray>values)
        return None

    cpdef tuple read_list(self, list values):
        """The column of a list, None for a null."""
        # Why a copy: `data` has room for so many, and a value's own code may change the caller's list.
        cdef list copied = values[:]
        cdef int64_t count = len(copied)
        cdef int64_t i = 0
        cdef cnp.npy_intp[2] shape = [count, self.field.size]
        cdef cnp.ndarray valid = cnp.PyArray_SimpleNew(1, shape, cnp.NPY_UINT8)
        cdef uint8_t* is_there = <uint8_t*>cnp.PyArray_DATA(valid)
        cdef cnp.ndarray data
        cdef uint8_t* at
        for i in range(count):
            is_there[i] = copied[i] is not None
        if self.is_variable:
            return valid, *encode_texts(self.dtype, copied, self.what)
        data = cnp.PyArray_ZEROS(1 if self.is_scalar else 2, shape, self.data_type, 0)
        at = <uint8_t*>cnp.PyArray_DATA(data)
        try:
            for i in range(count):
                if not is_there[i]:
                    continue
                if self.is_scalar:
                    scalar_encode(self.field.kind, copied[i], at + i * self.field.width)
                else:
                    vector_encode(&self.field, copied[i], at + i * self.field.width)
        except DataError as error:
            raise DataError(f"{self.what}: entity {i}: {error}") from None
        return valid, data, None

    cdef tuple read_array(self, cnp.ndarray values):
        """A copy: the array may be the caller's, and an answer stays as it is."""
        cdef cnp.npy_intp count
        cdef cnp.ndarray data
        cdef cnp.ndarray valid
        if (not self.is_scalar or cnp.PyArray_NDIM(values) != 1 or cnp.PyArray_TYPE(values) != self.array_type
                or not cnp.PyArray_ISNOTSWAPPED(values)):
            return None
        count = cnp.PyArray_DIM(values, 0)
        data = cnp.PyArray_NewCopy(values, cnp.NPY_CORDER)
        if self.field.kind == TIMESTAMP and not are_times(<const int64_t*>cnp.PyArray_DATA(data), count):
            return None                # whoever converts what is not of the type says what is wrong
        if self.field.kind == BOOL:
            data = data.view(np.uint8)
        valid = cnp.PyArray_SimpleNew(1, &count, cnp.NPY_UINT8)
        memset(cnp.PyArray_DATA(valid), 1, count)
        return valid, data, None


cdef bint are_times(const int64_t* times, int64_t count) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        if not time_min <= times[i] <= time_max:
            return False
    return True


def null_at(cnp.ndarray valid not None):
    """The first entity without a value, or -1. valid: uint8 [n], as of a column."""
    cdef const uint8_t* at
    cdef const void* found
    if not cnp.PyArray_IS_C_CONTIGUOUS(valid):
        valid = np.ascontiguousarray(valid)
    at = <const uint8_t*>cnp.PyArray_DATA(valid)
    found = memchr(at, 0, cnp.PyArray_NBYTES(valid))
    return -1 if found == NULL else <const uint8_t*>found - at


cdef tuple encode_texts(dtype, list values, str what):
    """Bytes and offsets of strings, bytes and lists."""
    cdef uint8_t kind = dtype.kind
    cdef uint8_t element_kind = dtype.element_kind
    cdef uint8_t element_width = 8 if kind != LIST else dtype.__class__(dtype.element).width
    parts = []
    for i, value in enumerate(values):
        if value is None:
            parts.append(b"")
            continue
        try:
            parts.append(
                list_bytes(element_kind, element_width, value) if kind == LIST else text_bytes(kind, value)
            )
        except DataError as error:
            raise DataError(f"{what}: entity {i}: {error}") from None
    offsets = np.zeros(len(parts) + 1, np.uint64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    if offsets[len(parts)] > UINT32_MAX:
        raise DataError(f"{what} takes {offsets[len(parts)]} B, at most 4 GiB; ask for fewer entities at once")
    return np.frombuffer(b"".join(parts), np.uint8), offsets.astype(np.uint32)


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
    batch_point(batch)
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
        if end + len(data) >= batch.heap_capacity:       # >=: memcpy of no bytes wants a heap, too
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
        return (
            f"view {self.layout.view!r}: row #: {', '.join(map(repr, absent))} missing; rows are whole: give every key,"
            f" {EVENT_TIMESTAMP!r} and every field (None for a null)"
        )

    cdef int raise_unknown(self, row, i) except -1:
        known = {*self.layout.key_names, EVENT_TIMESTAMP, *self.layout.names}
        unknown = ", ".join(repr(name) for name in row if name not in known)
        names = ", ".join(sorted(known))
        raise DataError(f"view {self.layout.view!r}: row {i}: unknown name {unknown}; it has {names}")


class KeyFault(DataError):
    """Inside this module: the fault is in a key and the message already names it."""
