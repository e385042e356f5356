from libc.stdint cimport int64_t

from .columns cimport RowBatch, RowLayout


cdef RowBatch batch_from_rows(RowLayout layout, object rows, int64_t created_us)
