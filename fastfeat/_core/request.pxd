from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from .codec cimport Reader
from .columns cimport KeyView, RowBatch


cdef struct KeyColumn:        # one join key of every entity of a request
    int64_t* ints             # integers (uint64 as its bits)
    const char** texts        # strings: where they lie and
    uint32_t* sizes           # how long they are; the source is kept alive by the request


cdef struct PackedKeys:
    uint8_t* data
    uint32_t* offsets
    uint64_t data_capacity
    int64_t offsets_capacity


cdef class Request:
    cdef tuple names
    cdef tuple types
    cdef Py_ssize_t columns_count
    cdef uint8_t* kinds
    cdef KeyColumn* columns
    cdef int64_t* capacities
    cdef list kept            # Python objects that own borrowed strings
    cdef readonly int64_t count
    cdef PackedKeys* packed   # one per key that the request is turned into
    cdef Py_ssize_t packed_count
    cdef RowBatch batch       # whose keys are the request's, or None: columns hold them
    cdef int set_one(self, object row) except -1
    cdef int set_rows(self, object entity_rows) except -1
    cdef int set_list(self, list entity_rows) except -1
    cdef int set_wire(self, Reader* reader) except -1
    cdef int set_batch(self, RowBatch batch) except -1
    cdef int keys(self, Py_ssize_t which, const int32_t* columns, Py_ssize_t columns_count, KeyView* view) except -1
    cdef int room(self, Py_ssize_t column, int64_t count) except -1
    cdef int column_room(self, Py_ssize_t column, int64_t count) except -1
    cdef int set_column(self, Py_ssize_t column, object values) except -1
    cdef int set_value(self, Py_ssize_t column, int64_t i, object value) except -1
    cdef int set_ints(self, Py_ssize_t column, object values) except -1
    cdef int wire_column(self, Reader* reader, Py_ssize_t column) except -1
    cdef int check_range(self, Py_ssize_t column, int64_t least, int64_t most) except -1
