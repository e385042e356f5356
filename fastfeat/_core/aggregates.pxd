from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from .exact cimport Exact, int128
from .timeline cimport TableView

# Numbers of fastfeat.aggregation.FUNCTIONS.
cdef enum Function:
    COUNT = 0
    SUM = 1
    MEAN = 2
    MIN = 3
    MAX = 4
    FIRST = 5
    LAST = 6
    STD = 7
    VAR = 8
    COUNT_DISTINCT = 9
    QUANTILE = 10
    LAST_N = 11
    TOP_K = 12

# Numbers of fastfeat.aggregation.OPERATORS.
cdef enum Operator:
    EQUAL = 0
    NOT_EQUAL = 1
    LESS = 2
    AT_MOST = 3
    MORE = 4
    AT_LEAST = 5
    AMONG = 6
    NOT_AMONG = 7


cdef struct WindowRange:      # event times [T + low_us, T + high_us], both ends inside
    int64_t low_us
    int64_t high_us


cdef struct Constant:         # what a condition compares with
    int128 whole              # of an integer's column
    double number             # of a float's
    const uint8_t* data       # of a string's or bytes'
    uint32_t size


cdef struct Condition:
    uint32_t field            # its null bit
    uint32_t offset
    uint8_t kind
    uint8_t operator
    uint32_t constants_first
    uint32_t constants_count


cdef struct WindowFunction:
    uint32_t field            # of the answer's row: its null bit
    uint32_t offset           # of the cell there
    uint8_t function
    uint32_t n
    double q


cdef struct WindowGroup:      # functions of the same values: one pass over them
    uint32_t range
    int32_t column            # field of the source, -1: rows
    uint32_t offset
    uint32_t width
    uint8_t kind
    bint is_nullable
    int32_t sum               # the source's summed column, -1: none
    bint is_summed            # count, sum and mean of every row: from tiles
    uint32_t conditions_first
    uint32_t conditions_count
    uint32_t functions_first
    uint32_t functions_count


cdef struct WindowPlan:
    const TableView* source
    uint32_t ranges_count
    uint32_t groups_count
    uint32_t image_stride
    uint32_t heap_offset
    WindowRange* ranges
    WindowGroup* groups
    WindowFunction* functions
    Condition* conditions
    Constant* constants


cdef struct Deferred:         # a quantile of so many values that a sketch takes over
    int64_t entity
    uint32_t function
    int64_t count
    double* values


cdef struct WindowScratch:    # of one request and one window view
    uint8_t* images           # the answers, rows like those of a table: entity i's at i * image_stride
    size_t images_size
    uint8_t* heap             # what their variable cells point into
    size_t heap_size
    size_t heap_capacity
    const uint8_t** cells     # values gathered, in row order
    uint64_t* keys
    int64_t cells_capacity
    int128* words             # running sums of one block, row by row: see windows.pyx, row_words
    uint64_t words_capacity
    Deferred* deferred
    int64_t deferred_count
    bint has_failed           # no memory, or an answer beyond its limit
    Exact sum
    Exact squares


cdef inline void image_null(uint8_t* image, const WindowFunction* function) noexcept nogil:
    image[function.field >> 3] |= <uint8_t>(1 << (function.field & 7))


cdef inline void image_put_int(uint8_t* image, const WindowFunction* function, int64_t value) noexcept nogil:
    memcpy(image + function.offset, &value, 8)


cdef inline void image_put_double(uint8_t* image, const WindowFunction* function, double value) noexcept nogil:
    memcpy(image + function.offset, &value, 8)


# One function of the first `count` rows in scratch.cells, into its cell of the answer's row.
cdef void function_write(
    const WindowPlan* plan, const WindowGroup* group, const WindowFunction* function, uint32_t number,
    WindowScratch* s, int64_t entity, int64_t count, uint8_t* image,
) noexcept nogil
