from libc.stdint cimport int64_t, uint32_t, uint64_t

from .builder cimport Vector
from .columns cimport BatchView
from .status cimport Status
from .timeline cimport TableView
from .writer cimport Grouping


cdef struct Id:               # one event id of one entity
    uint64_t mark[2]          # keyed fingerprint of both; mark[0] is 0 where the slot is empty
    int64_t created_time      # of the row that counts
    uint64_t sequence
    uint32_t row              # its place in the batch that brought it


cdef struct IdIndex:          # of one table, in the memory of the process that writes it
    uint32_t field            # of the view: its event id
    uint32_t offset           # of the field's cell in a row
    uint32_t width            # of the cell
    bint is_variable
    bint is_made
    Id* slots
    uint64_t mask
    uint64_t count
    Vector undo               # IdChange: how slots were before the batch under way
    Vector text               # key and id back to back, to be hashed


cdef Status ids_sift(
    IdIndex* ids, const TableView* view, const BatchView* batch, const uint64_t* hashes, Grouping* group
) noexcept nogil
cdef void ids_settle(IdIndex* ids) noexcept nogil
cdef void ids_undo(IdIndex* ids) noexcept nogil
cdef void ids_free(IdIndex* ids) noexcept nogil
