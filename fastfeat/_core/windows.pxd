from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .aggregates cimport WindowPlan, WindowScratch
from .columns cimport KeyView
from .timeline cimport TableView

# A window view's answers for entities [low, high), each at times of its own; `rows[i]` is its answer. The caller holds
# a pin.
cdef void windows_read(
    const WindowPlan* plan, WindowScratch* scratch, const KeyView* keys, const uint64_t* hashes,
    int64_t low, int64_t high, const int64_t* event_us, const int64_t* known_us, int64_t step,
    const uint8_t** rows, uint8_t* statuses, int64_t* event_times,
) noexcept nogil
cdef list window_spans(
    const WindowPlan* plan, uint32_t feature, uint64_t hash, const uint8_t* key, uint16_t size,
    int64_t event_us, int64_t known_us,
)
cdef bint scratch_begin(WindowScratch* scratch, const WindowPlan* plan, int64_t count) noexcept nogil
cdef void scratch_free(WindowScratch* scratch) noexcept nogil
