from libc.stdint cimport int64_t, uint32_t, uint64_t

from .arena cimport Arena
from .builder cimport ShardWriter
from .columns cimport RowBatch, RowLayout
from .ids cimport IdIndex
from .layout cimport TableHeader
from .timeline cimport SumColumn, TableView


cdef class Clock:
    cdef object function
    cdef int64_t read(self) except? -1


cdef class Table:
    cdef TableView view
    cdef ShardWriter* writers
    cdef TableHeader* header
    cdef readonly RowLayout layout
    cdef readonly Arena arena
    cdef readonly str name
    cdef Clock clock
    cdef object lock
    cdef uint64_t sequence
    cdef readonly uint64_t header_at
    cdef public bint is_kept      # the catalogue names it: it outlives this object
    cdef uint64_t header_size
    cdef SumColumn* sums
    cdef int place_sums(self) except -1
    cdef bint has_ids             # rows are events with an id
    cdef IdIndex ids
    cdef int append(self, RowBatch batch, uint32_t threads) except -1
    cdef void free_writers(self) noexcept
    cdef int make_shards(self) except -1
    cdef int take_up(self, uint64_t header_at) except -1
    cdef uint64_t waiting(self)
    cdef bint has_spans(self)
    cdef give_back_shards(self, uint32_t shards)
