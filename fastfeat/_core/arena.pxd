from libc.stdint cimport uint8_t, uint64_t

from .atomics cimport atomic_load_u64
from .layout cimport ArenaHeader, HeapHeader
from .readers cimport Readers, ReaderSlots


cdef struct ArenaView:        # one process's resolved pointers
    uint8_t* base
    ArenaHeader* header
    uint64_t limit            # bytes of the mapping
    Readers* readers
    int fd                    # of the file whose pages are reserved before use; -1: none

cdef class Arena:
    cdef ArenaView view
    cdef readonly uint64_t capacity
    cdef uint64_t populated       # bytes from the base on, as far as populate_ahead went
    cdef readonly bint is_shared  # other processes may read it
    cdef readonly bint is_reader  # another process writes it
    cdef ReaderSlots slots
    cdef list replaced            # catalogues that readers may still see: (epoch, offset, size)
    cpdef bint is_current(self, uint64_t catalogue_word) noexcept
    cdef make(self, bytes seed, uint64_t generation)
    cdef take_up(self)

# Where what readers may touch ends. Why not at `limit`: a file's pages from here on need not exist, and where the file
# system is full, even a load of such a page kills. Whoever loads an offset (acquire) and then this sees it covered.
cdef inline uint64_t arena_end(const ArenaView* arena) noexcept nogil:
    return atomic_load_u64(&arena.header.backed)


# Extents: whole pages, from a list of free ones or from the untouched end. 0: full. `urgent` may use the reserve.
cdef uint64_t extent_alloc(ArenaView* arena, uint64_t size, bint urgent) noexcept nogil
cdef void extent_free(ArenaView* arena, uint64_t at, uint64_t size) noexcept nogil

# Heap of one shard: one writer at a time. 0: full.
cdef uint64_t heap_alloc(ArenaView* arena, HeapHeader* heap, uint64_t size, bint urgent) noexcept nogil
cdef void heap_free(ArenaView* arena, HeapHeader* heap, uint64_t at, uint64_t size) noexcept nogil

# Epochs.
cdef int arena_try_pin(const ArenaView* arena) noexcept nogil
cdef int arena_pin(const ArenaView* arena) noexcept nogil
# Raises StorageError: it is not the slot of a pin.
cdef int pin_check(const ArenaView* arena, int slot) except -1
cdef bint arena_unpin(const ArenaView* arena, int slot) noexcept nogil
cdef uint64_t epoch_advance(ArenaView* arena) noexcept nogil
cdef uint64_t epoch_oldest_pin(ArenaView* arena) noexcept nogil
