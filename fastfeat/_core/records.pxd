from libc.stdint cimport uint64_t

from .columns cimport RowBatch, RowLayout


cdef list batch_parts(RowBatch batch, uint64_t sequence)
cdef RowBatch batch_from_bytes(RowLayout layout, object data)
