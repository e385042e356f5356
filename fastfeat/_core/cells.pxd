from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .aggregates cimport WindowPlan, WindowScratch
from .codec cimport Writer
from .columns cimport KeyView
from .timeline cimport TableView


cdef struct PlanFeature:
    uint32_t view
    uint32_t field            # its null bit
    uint32_t offset
    uint32_t width
    uint32_t size             # elements of a vector, 1 otherwise
    uint32_t out_column       # of the float matrix
    uint8_t kind
    uint8_t element_kind
    uint8_t element_width


cdef struct PlanRun:          # float64 cells that lie side by side in the row and in the matrix
    uint32_t offset
    uint32_t out_column
    uint32_t count


cdef struct PlanViewPart:     # one view of the plan
    const TableView* table    # where its rows' variable cells lie; of a window view: nowhere, see cell_bytes
    const WindowPlan* windows     # NULL: point reads
    uint32_t key              # which of the plan's keys
    uint32_t null_words
    uint32_t row_bytes        # of a row that the plan reads, from its start
    uint32_t features_first   # into PlanView.by_view
    uint32_t features_count
    uint32_t runs_first
    uint32_t runs_count
    uint32_t rest_first       # features outside runs, into PlanView.rest
    uint32_t rest_count


cdef struct PlanView:
    const TableView* stored   # some table with rows: all of a plan's lie in its arena
    uint32_t views_count
    uint32_t features_count
    uint32_t keys_count
    uint32_t matrix_columns
    PlanViewPart* views
    PlanFeature* features
    uint32_t* by_view
    PlanRun* runs
    uint32_t* rest


cdef struct Scratch:          # of one request: per view (or key) x entity
    int64_t capacity
    KeyView* keys
    uint64_t* hashes
    const uint8_t** rows
    uint8_t* statuses
    int64_t* event_times
    const int64_t* event_us   # T and K of entity i at i * step: one for all, or one each
    const int64_t* known_us
    int64_t step
    WindowScratch* windows    # per view


cdef void read_group(
    const PlanView* plan, const Scratch* s, int64_t count, int64_t low, int64_t high,
) noexcept nogil
# What read_group found of entities [low, high), into their lines of a row-major matrix: float32 where `line`, room for
# a row of float64, is given, else float64.
cdef void copy_rows(
    const PlanView* plan, const Scratch* s, int64_t count, int64_t low, int64_t high, void* matrix, double* line,
) noexcept nogil
cdef void column_valid(const PlanFeature* feature, const uint8_t** rows, int64_t count, uint8_t* valid) noexcept nogil
cdef void column_fixed(const PlanFeature* feature, const uint8_t** rows, int64_t count, uint8_t* data) noexcept nogil
cdef uint64_t column_offsets(
    const PlanFeature* feature, const TableView* table, const uint8_t** rows, int64_t count, uint32_t* offsets
) noexcept nogil
cdef uint64_t column_size(
    const PlanFeature* feature, const TableView* table, const uint8_t** rows, int64_t count
) noexcept nogil
cdef void column_bytes(
    const PlanFeature* feature, const TableView* table, const uint8_t** rows, int64_t count, const uint32_t* offsets,
    uint8_t* data,
) noexcept nogil
cdef int value_write(const PlanFeature* feature, const TableView* table, const uint8_t* row, Writer* out) noexcept nogil
