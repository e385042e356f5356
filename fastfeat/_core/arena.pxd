from libc.stdint cimport uint8_t, uint64_t

from .layout cimport ArenaHeader, HeapHeader


cdef struct ArenaView:        # one process's resolved pointers
    uint8_t* base
    ArenaHeader* header

cdef class Arena:
    cdef ArenaView view
    cdef readonly uint64_t capacity
    cdef uint64_t populated       # bytes from the base on, as far as populate_ahead went

# Extents: whole pages, from a list of free ones or from the untouched end. 0: full. `urgent` may use the reserve.
cdef uint64_t extent_alloc(ArenaView* arena, uint64_t size, bint urgent) noexcept nogil
cdef void extent_free(ArenaView* arena, uint64_t at, uint64_t size) noexcept nogil

# Heap of one shard: one writer at a time. 0: full.
cdef uint64_t heap_alloc(ArenaView* arena, HeapHeader* heap, uint64_t size, bint urgent) noexcept nogil
cdef void heap_free(ArenaView* arena, HeapHeader* heap, uint64_t at, uint64_t size) noexcept nogil

# Epochs.
cdef int reader_try_pin(ArenaView* arena) noexcept nogil
cdef int reader_pin(ArenaView* arena) noexcept nogil
cdef void reader_unpin(ArenaView* arena, int slot) noexcept nogil
cdef uint64_t epoch_advance(ArenaView* arena) noexcept nogil
cdef uint64_t epoch_oldest_pin(ArenaView* arena) noexcept nogil
