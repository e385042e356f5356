from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from .arena cimport Arena
from .cells cimport PlanView, Scratch
from .codec cimport Reader, Writer
from .columns cimport RowLayout
from .request cimport Request
from .table cimport Clock


cdef class Answer:
    cdef Request request
    cdef uint32_t views_count
    cdef Scratch scratch
    cdef int64_t event_us
    cdef int64_t known_us


cdef class Plan:
    cdef PlanView view
    cdef Clock clock
    cdef Answer spare             # of an earlier request, for the next one
    cdef list spares              # and more of them, of requests that ran at once
    cdef tuple tables             # per view: where its rows lie
    cdef tuple windows            # per view: Windows, or None
    cdef bint has_windows
    cdef int32_t* key_columns     # 8 per key
    cdef uint32_t* key_sizes
    cdef readonly tuple key_names
    cdef readonly tuple key_types
    cdef readonly tuple views
    cdef readonly tuple features
    cdef readonly tuple dtypes
    cdef readonly tuple view_of
    cdef readonly int matrix_columns
    cdef readonly int64_t release_min    # entities from which a read lets go of the GIL

    # Append the msgpack result of a GET to `out`. `params` stands behind the plan number, `remaining` elements are
    # left.
    cdef int answer(self, Reader* params, uint32_t remaining, Writer* out, uint64_t size_max) except -1

    cdef RowLayout layout_of(self, uint32_t v)
    cdef int place_windows(self, list items) except -1
    cdef int finish_windows(self, Answer answer) except -1
    cdef int place_keys(self, list signatures) except -1
    cdef int place_features(self, list names) except -1
    cdef int place_runs(self) except -1
    cdef Answer take(self)
    cdef Answer begin(self, object as_of, object known_at)
    cdef int keys_ready(self, Answer answer) except -1
    cdef int windows_ready(self, Answer answer) except -1
    cdef int pin(self) except -1
    cdef bint unpin(self, int pin) noexcept
    cdef bint fill_pinned(self, Answer answer, void* matrix, double* line, int pin) noexcept nogil
    cdef int fill(self, Answer answer, void* matrix, bint single) except -1
    cdef int fill_windows(self, Answer answer, void* matrix, double* line, int pin) except -1
    cdef int resolve(self, Answer answer) except -1
    cdef int check_history(self, Answer answer) except -1
    cdef int check_matrix(self) except -1
    cdef object read_vector(self, object entity_row, object as_of, object known_at, object out)
    cdef object read_matrix(self, object entity_rows, object as_of, object known_at, object out, object dtype)
    cdef object matrix_for(self, int64_t count, object out, object dtype)
    cdef int write_stamps(self, Answer answer, Writer* out) except -1
    cdef int write_matrix(self, Answer answer, bint single, Writer* out) except -1
    cdef int write_columns(self, Answer answer, Writer* out) except -1
    cdef int write_rows(self, Answer answer, Writer* out) except -1
    cdef object read_columns(self, Answer answer, object size_max)
    cdef object column(self, Answer answer, uint32_t f)
    cdef int check_size(self, Answer answer, uint64_t size_max) except -1
    cdef int check_column_size(self, uint32_t f, uint64_t size) except -1
    cdef int64_t wire_moment(self, Reader* params, bint is_given, str name) except? -1
    cdef int write_pinned(self, Answer answer, int64_t format, Writer* out, uint64_t size_max) except -1
    cdef give_back(self, Answer answer)


cdef class PlansAtHand:
    cdef Arena arena
    cdef uint64_t catalogue_word
    cdef dict plans

    cdef object find(self, object features)
    cpdef object vector(self, object features, object entity_row, object out)
    cpdef object matrix(self, object features, object entity_rows, object out)


cdef class ReadsAtHand:
    cdef readonly PlansAtHand at_hand
