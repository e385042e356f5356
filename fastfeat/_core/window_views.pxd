from .aggregates cimport WindowPlan
from .columns cimport RowLayout
from .timeline cimport TableView


cdef class Windows:
    cdef WindowPlan plan
    cdef TableView answer         # of the answers' rows: no arena, heaps at addresses
    cdef RowLayout layout         # of the answers
    cdef object source            # keeps the source's table alive
    cdef readonly str name
    cdef readonly tuple features
    cdef list texts               # keeps constants' bytes alive
