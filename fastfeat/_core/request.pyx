"""Request: the entities that a read or delete names, as columns of keys.

    list of dicts | dict of columns | msgpack --> KeyColumn per join key --keys()--> KeyView (bytes to hash and compare)

    A view's key is the bytes of its join keys in the entity's order: one integer is its 8 bytes; otherwise integers
    are 8
    bytes and strings their size (u32) and UTF-8 bytes. Rows are encoded the same way in columns.pyx.

Ownership:  strings are borrowed from the Python objects or the message; the request keeps the objects alive (a row may
            make them on the way), the caller the message. Buffers are kept from use to use.
Errors:     DataError that names the join key, the entity's position, what it was and what it must be.
"""

from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy

from collections.abc import Mapping
from operator import index as as_index

cimport numpy as cnp

import numpy as np

from ..dtypes import DType
from ..errors import DataError
from .codec cimport (
    CODEC_OK, KIND_BIN, Reader, codec_raise, reader_array, reader_bin, reader_int64, reader_kind, reader_str,
    reader_uint64,
)
from .columns cimport INT64, STRING, UINT64, KeyView, RowBatch, RowLayout, batch_of_keys, key_at, key_size
from .columns import KEY_SIZE_MAX
from .index cimport hash_bytes, hash_u64s

cdef uint32_t key_size_max = KEY_SIZE_MAX

cdef dict INT_RANGE = {
    f"{sign}{bits}": (0, 2 ** bits - 1) if sign == "uint" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for sign in ("int", "uint") for bits in (8, 16, 32, 64)
}


cnp.import_array()


cdef inline bint is_int64_vector(object values):
    """True for a plain NumPy array whose memory is the keys."""
    return (
        cnp.PyArray_CheckExact(values) and cnp.PyArray_TYPE(<cnp.ndarray>values) == cnp.NPY_INT64
        and cnp.PyArray_NDIM(<cnp.ndarray>values) == 1
        and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>values)
    )


cdef void* resized(void* memory, size_t size) except NULL:
    cdef void* larger = realloc(memory, size if size > 0 else 1)
    if larger == NULL:
        raise MemoryError("no memory for the request's keys; ask for fewer entities at once")
    return larger


cdef class Request:
    """Keys of one request; reusable, one thread at a time.

    names and types: the join keys that it reads. packed_count: how many different keys are made of them.
    """

    def __cinit__(self, tuple names, tuple types, Py_ssize_t packed_count=1):
        self.packed_count = packed_count
        self.packed = <PackedKeys*>calloc(packed_count, sizeof(PackedKeys))
        self.names = names
        self.types = types
        self.columns_count = len(names)
        self.kinds = <uint8_t*>resized(NULL, self.columns_count)
        self.columns = <KeyColumn*>calloc(max(self.columns_count, 1), sizeof(KeyColumn))
        self.capacities = <int64_t*>calloc(max(self.columns_count, 1), 8)
        if self.columns == NULL or self.capacities == NULL or self.packed == NULL:
            raise MemoryError("no memory for a request")
        for i in range(self.columns_count):
            self.kinds[i] = DType.parse(types[i]).kind
        self.kept = []

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.columns_count):
            if self.columns != NULL:
                free(self.columns[i].ints)
                free(self.columns[i].texts)
                free(self.columns[i].sizes)
        free(self.kinds)
        free(self.columns)
        free(self.capacities)
        for i in range(self.packed_count):
            if self.packed != NULL:
                free(self.packed[i].data)
                free(self.packed[i].offsets)
        free(self.packed)

    cdef int room(self, Py_ssize_t column, int64_t count) except -1:
        cdef KeyColumn* keys = &self.columns[column]
        if count <= self.capacities[column]:
            return 0
        if self.kinds[column] == STRING:
            keys.texts = <const char**>resized(keys.texts, count * sizeof(char*))
            keys.sizes = <uint32_t*>resized(keys.sizes, count * 4)
        else:
            keys.ints = <int64_t*>resized(keys.ints, count * 8)
        self.capacities[column] = count
        return 0

    # --- from Python

    cdef int set_one(self, object row) except -1:
        """One entity: a dict of join key -> value."""
        cdef Py_ssize_t i
        if self.kept:
            self.kept.clear()
        self.batch = None
        self.count = 1
        for i in range(self.columns_count):
            self.room(i, 1)
            try:
                value = row[self.names[i]]
            except (KeyError, TypeError, IndexError):
                raise missing_key(self, row) from None
            if self.kinds[i] == STRING:
                self.kept.append(value)
            self.set_value(i, 0, value)
        return 0

    cdef int set_rows(self, object entity_rows) except -1:
        """Entities: a list of dicts, a dict of columns of equal length, or a batch of keys (keys_batch)."""
        cdef Py_ssize_t c
        if self.kept:
            self.kept.clear()
        self.batch = None
        if type(entity_rows) is list:           # whether it is a Mapping takes as long as one entity
            return self.set_list(entity_rows)
        if type(entity_rows) is not dict and isinstance(entity_rows, RowBatch):
            return self.set_batch(entity_rows)
        if type(entity_rows) is dict or isinstance(entity_rows, Mapping):
            for c in range(self.columns_count):
                if self.names[c] not in entity_rows:
                    raise missing_key(self, entity_rows)
                self.set_column(c, entity_rows[self.names[c]])
            return 0
        if isinstance(entity_rows, (str, bytes)) or not hasattr(entity_rows, "__len__"):
            raise DataError(
                f"entity_rows is {type(entity_rows).__name__}; give a list of dicts or a dict of columns of"
                f" {', '.join(self.names)}"
            )
        return self.set_list(list(entity_rows))

    cdef int set_list(self, list entity_rows) except -1:
        """Entities: dicts of join key -> value."""
        cdef Py_ssize_t c
        cdef int64_t i
        # Why a copy: a row's own __getitem__ may change the caller's list.
        cdef list rows = entity_rows[:]
        self.count = len(rows)
        for c in range(self.columns_count):
            self.room(c, self.count)
            name = self.names[c]
            for i, row in enumerate(rows):
                try:
                    value = row[name]
                except (KeyError, TypeError, IndexError):
                    raise missing_key(self, row, i) from None
                if self.kinds[c] == STRING:
                    self.kept.append(value)     # the row may have made it just now
                self.set_value(c, i, value)
        return 0

    cdef int set_value(self, Py_ssize_t column, int64_t i, object value) except -1:
        cdef Py_ssize_t size
        cdef const char* text
        cdef uint64_t unsigned
        cdef int64_t signed
        cdef int overflow
        if self.kinds[column] != STRING:
            if type(value) is not int:
                value = key_int(self, column, i, value)
            if self.kinds[column] == INT64:
                signed = PyLong_AsLongLongAndOverflow(value, &overflow)
                if not overflow:
                    self.columns[column].ints[i] = signed
                    return 0
            low, high = INT_RANGE[self.types[column]]
            if not low <= value <= high:
                raise fault(self, column, i, f"{value} is outside {self.types[column]}, {low} to {high}")
            if self.kinds[column] == UINT64:
                unsigned = value
                self.columns[column].ints[i] = <int64_t>unsigned
            else:
                self.columns[column].ints[i] = value
            return 0
        if type(value) is not str:
            if not isinstance(value, str):
                raise fault(self, column, i, wrong_type(value, "string"))
            value = str(value)
            self.kept.append(value)
        try:
            text = PyUnicode_AsUTF8AndSize(value, &size)
        except UnicodeEncodeError:
            raise fault(self, column, i, f"{value!r} holds a lone surrogate, which is no text") from None
        if size > key_size_max:
            raise fault(self, column, i, f"takes {size} B, at most {key_size_max}")
        self.columns[column].texts[i] = text
        self.columns[column].sizes[i] = <uint32_t>size
        return 0

    cdef int set_column(self, Py_ssize_t column, object values) except -1:
        cdef int64_t i
        if self.kinds[column] == INT64 and is_int64_vector(values):
            self.column_room(column, cnp.PyArray_DIM(<cnp.ndarray>values, 0))
            memcpy(self.columns[column].ints, cnp.PyArray_DATA(<cnp.ndarray>values), self.count * 8)
            return 0
        if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
            raise DataError(
                f"join key {self.names[column]!r}: {type(values).__name__} is not a column; give a list or an array"
            )
        if self.kinds[column] != STRING and isinstance(values, np.ndarray):
            return self.set_ints(column, values)
        if hasattr(values, "to_pylist"):
            values = values.to_pylist()
        elif hasattr(values, "tolist"):
            values = values.tolist()
        elif hasattr(values, "to_list"):
            values = values.to_list()
        # Why a copy: a value's own __index__ may change the caller's list, and its strings must live as long as we do.
        cdef list copied = list(values)
        self.column_room(column, len(copied))
        self.kept.append(copied)
        for i, value in enumerate(copied):
            self.set_value(column, i, value)
        return 0

    cdef int column_room(self, Py_ssize_t column, int64_t count) except -1:
        """Room for a column that is as long as those before it."""
        if column > 0 and count != self.count:
            raise DataError(
                f"join key {self.names[column]!r} has {count} values, {self.names[0]!r} has {self.count};"
                " give columns of equal length"
            )
        self.count = count
        return self.room(column, count)

    cdef int set_ints(self, Py_ssize_t column, object values) except -1:
        """A NumPy array of integers, without a Python object per value."""
        cdef int64_t i
        cdef const int64_t[::1] signed
        cdef int64_t low
        cdef int64_t high
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise DataError(
                f"join key {self.names[column]!r}: an array of {values.dtype} with {values.ndim} dimensions;"
                f" give one dimension of integers ({self.types[column]})"
            )
        self.column_room(column, len(values))
        least, most = INT_RANGE[self.types[column]]
        if values.dtype != np.int64:
            if len(values) and not (least <= int(values.min()) and int(values.max()) <= most):
                bad = next(i for i, value in enumerate(values.tolist()) if not least <= value <= most)
                raise fault(self, column, bad, f"{values[bad]} is outside {self.types[column]}, {least} to {most}")
            values = values.astype(np.uint64 if self.kinds[column] == UINT64 else np.int64).view(np.int64)
            least, most = INT64_MIN, INT64_MAX
        signed = np.ascontiguousarray(values)
        low, high = max(least, INT64_MIN), min(most, INT64_MAX)
        for i in range(self.count):
            if not low <= signed[i] <= high:
                raise fault(self, column, i, f"{signed[i]} is outside {self.types[column]}, {least} to {most}")
        if self.count:
            memcpy(self.columns[column].ints, &signed[0], self.count * 8)
        return 0

    # --- from the wire

    cdef int set_wire(self, Reader* reader) except -1:
        """The key columns of a GET: an array with one array or bin per join key (docs/PROTOCOL.md)."""
        cdef uint32_t columns = 0
        cdef Py_ssize_t c
        self.batch = None
        cdef int code = reader_array(reader, &columns)
        if code != CODEC_OK:
            codec_raise(code, "GET keys")
        if columns != self.columns_count:
            raise DataError(
                f"GET has {columns} key columns, the plan has {self.columns_count}: {', '.join(self.names)}"
            )
        for c in range(self.columns_count):
            self.wire_column(reader, c)
        return 0

    cdef int wire_column(self, Reader* reader, Py_ssize_t column) except -1:
        cdef const uint8_t* data = NULL
        cdef uint32_t size = 0
        cdef uint32_t count = 0
        cdef uint32_t i
        cdef int64_t value = 0
        cdef int code
        cdef bint is_packed = reader_kind(reader) == KIND_BIN
        if is_packed and self.kinds[column] != STRING:
            code = reader_bin(reader, &data, &size)
            count = size // 8
            if code == CODEC_OK and size % 8 != 0:
                raise DataError(f"join key {self.names[column]!r}: a bin of {size} B is not whole 8-byte integers")
        else:
            code = reader_array(reader, &count)
        if code != CODEC_OK:
            codec_raise(code, f"GET join key {self.names[column]!r}")
        if column > 0 and count != self.count:
            raise DataError(
                f"join key {self.names[column]!r} has {count} values, {self.names[0]!r} has {self.count}"
            )
        self.count = count
        self.room(column, count)
        if is_packed and self.kinds[column] != STRING:
            memcpy(self.columns[column].ints, data, size)
        elif self.kinds[column] == STRING:
            for i in range(count):
                code = reader_str(
                    reader, <const uint8_t**>&self.columns[column].texts[i], &self.columns[column].sizes[i]
                )
                if code != CODEC_OK:
                    raise fault(self, column, i, "is not a msgpack str, as the type string needs")
                if self.columns[column].sizes[i] > key_size_max:
                    raise fault(self, column, i, f"takes {self.columns[column].sizes[i]} B, at most {key_size_max}")
            return 0
        else:
            for i in range(count):
                if self.kinds[column] == UINT64:
                    code = reader_uint64(reader, <uint64_t*>&value)
                else:
                    code = reader_int64(reader, &value)
                if code != CODEC_OK:
                    raise fault(self, column, i, f"is not a msgpack int that fits {self.types[column]}")
                self.columns[column].ints[i] = value
        if self.kinds[column] != UINT64 and self.kinds[column] != INT64:
            least, most = INT_RANGE[self.types[column]]
            self.check_range(column, least, most)
        return 0

    cdef int check_range(self, Py_ssize_t column, int64_t least, int64_t most) except -1:
        cdef int64_t i
        for i in range(self.count):
            if not least <= self.columns[column].ints[i] <= most:
                raise fault(
                    self, column, i,
                    f"{self.columns[column].ints[i]} is outside {self.types[column]}, {least} to {most}",
                )
        return 0

    # --- from Arrow

    cdef int set_batch(self, RowBatch batch) except -1:
        """The keys of a batch as they are: encoded alike, and checked when it was made."""
        if batch.layout.key_names != self.names or batch.layout.key_types != self.types or self.packed_count != 1:
            raise DataError(f"a batch of keys {batch.layout.key_names} where {self.names} are asked")
        self.batch = batch
        self.count = batch.view.count
        return 0

    # --- to the index

    cdef int keys(self, Py_ssize_t which, const int32_t* columns, Py_ssize_t columns_count, KeyView* view) except -1:
        """Key `which`, made of these columns in this order; valid until the request changes."""
        cdef PackedKeys* packed = &self.packed[which]
        cdef int64_t i
        cdef Py_ssize_t c
        cdef KeyColumn* column
        cdef uint64_t at = 0
        cdef uint64_t size = 0
        if self.batch is not None:
            view[0] = self.batch.view.keys
            return 0
        view.count = self.count
        view.offsets = NULL
        if columns_count == 1 and self.kinds[columns[0]] != STRING:
            view.data = <const uint8_t*>self.columns[columns[0]].ints
            return 0
        for c in range(columns_count):
            column = &self.columns[columns[c]]
            if self.kinds[columns[c]] != STRING:
                size += 8 * self.count
            else:
                for i in range(self.count):
                    size += 4 + column.sizes[i]
        if size > 0xFFFFFFFF:
            raise DataError(f"the request's keys take {size} B, at most 4 GiB; ask for fewer entities at once")
        if size > packed.data_capacity:
            packed.data = <uint8_t*>resized(packed.data, size)
            packed.data_capacity = size
        if self.count + 1 > packed.offsets_capacity:
            packed.offsets = <uint32_t*>resized(packed.offsets, (self.count + 1) * 4)
            packed.offsets_capacity = self.count + 1
        packed.offsets[0] = 0
        for i in range(self.count):
            for c in range(columns_count):
                column = &self.columns[columns[c]]
                if self.kinds[columns[c]] != STRING:
                    memcpy(packed.data + at, &column.ints[i], 8)
                    at += 8
                else:
                    memcpy(packed.data + at, &column.sizes[i], 4)
                    memcpy(packed.data + at + 4, column.texts[i], column.sizes[i])
                    at += 4 + column.sizes[i]
            if at - packed.offsets[i] > key_size_max:
                raise DataError(f"entity {i}: its key takes {at - packed.offsets[i]} B, at most {key_size_max}")
            packed.offsets[i + 1] = <uint32_t>at
        view.data = packed.data
        view.offsets = packed.offsets
        return 0

    def plain(self):
        """Every entity's keys: join key -> list of int or str."""
        cdef int64_t i
        out = {}
        for c, name in enumerate(self.names):
            if self.kinds[c] == STRING:
                values = [self.columns[c].texts[i][:self.columns[c].sizes[i]].decode() for i in range(self.count)]
            elif self.kinds[c] == UINT64:
                values = [<uint64_t>self.columns[c].ints[i] for i in range(self.count)]
            else:
                values = [self.columns[c].ints[i] for i in range(self.count)]
            out[name] = values
        return out

    def describe(self, int64_t i):
        """Entity i's keys as text, for messages."""
        parts = []
        if self.batch is not None:
            return describe_key(self, key_at(&self.batch.view.keys, i)[:key_size(&self.batch.view.keys, i)])
        for c in range(self.columns_count):
            if self.kinds[c] == STRING:
                value = repr(self.columns[c].texts[i][:self.columns[c].sizes[i]].decode("utf-8", "replace"))
            elif self.kinds[c] == UINT64:
                value = str(<uint64_t>self.columns[c].ints[i])
            else:
                value = str(self.columns[c].ints[i])
            parts.append(f"{self.names[c]}={value}")
        return ", ".join(parts)


def hash_keys(names, types, entity_rows):
    """The stable hash of entities' keys, uint64 [n]: the same on every machine and for ever, unlike an arena's.

    It spreads rows over files; who chooses keys can choose collisions, so no index in memory uses it. Source: SipHash-
    1-3 under a key of zeros, of the key's bytes as above.
    """
    cdef Request request = Request(tuple(names), tuple(types))
    cdef KeyView keys
    cdef int32_t columns[8]       # schema.JOIN_KEYS_MAX
    cdef uint64_t seed[2]
    cdef int64_t i
    request.set_rows(entity_rows)
    for i in range(request.columns_count):
        columns[i] = <int32_t>i
    request.keys(0, columns, request.columns_count, &keys)
    seed[0] = seed[1] = 0
    hashes = np.empty(keys.count, np.uint64)
    cdef uint64_t* out = <uint64_t*>cnp.PyArray_DATA(hashes)
    with nogil:
        if keys.offsets == NULL:
            hash_u64s(seed, <const uint64_t*>keys.data, keys.count, out)
        else:
            for i in range(keys.count):
                out[i] = hash_bytes(seed, key_at(&keys, i), key_size(&keys, i))
    return hashes


def keys_batch(names, types, source):
    """An Arrow record batch of join keys, in the types that Table.append_arrow takes, as set_rows takes entities."""
    return batch_of_keys(RowLayout("keys", names, types, ()), source)


def plain_keys(names, types, entity_rows):
    """Checked keys as plain values: join key -> list of int or str. Raises DataError."""
    cdef Request request = Request(tuple(names), tuple(types))
    request.set_rows(entity_rows)
    return request.plain()


cdef object describe_key(Request request, bytes key):
    """A batch's key as text."""
    parts = []
    at = 0
    for c, name in enumerate(request.names):
        if request.kinds[c] == STRING:
            size = int.from_bytes(key[at:at + 4], "little")
            value = repr(key[at + 4:at + 4 + size].decode("utf-8", "replace"))
            at += 4 + size
        else:
            value = str(int.from_bytes(key[at:at + 8], "little", signed=request.kinds[c] != UINT64))
            at += 8
        parts.append(f"{name}={value}")
    return ", ".join(parts)


cdef object fault(Request request, Py_ssize_t column, int64_t i, str what):
    return DataError(f"entity {i}: join key {request.names[column]!r}: {what}")


cdef object missing_key(Request request, object row, object i=0):
    if not isinstance(row, Mapping):
        return DataError(f"entity {i} is {type(row).__name__}, not a dict of {', '.join(request.names)}")
    absent = ", ".join(repr(name) for name in request.names if name not in row)
    return DataError(f"entity {i}: join key {absent} missing; give {', '.join(request.names)}")


cdef str wrong_type(object value, str type_name):
    if value is None:
        return f"is null; every entity needs its key, {type_name}"
    return f"{value!r} is {type(value).__name__}, not {type_name}"


cdef object key_int(Request request, Py_ssize_t column, int64_t i, object value):
    """A Python int of what is not exactly one. Raises DataError."""
    if value is None or isinstance(value, (bool, float, str, bytes)) or type(value).__name__ == "bool":
        raise fault(request, column, i, wrong_type(value, request.types[column]))
    try:
        return as_index(value)
    except TypeError:
        raise fault(request, column, i, wrong_type(value, request.types[column])) from None
