from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from .layout cimport ReaderTable

cdef extern from "readers.h" nogil:
    ctypedef struct Readers:
        void* table
        int fd
        uint32_t is_writer
        uint32_t lock
        uint32_t own_count
        uint16_t* own

    enum:
        READERS_LOST "FF_LOST"


cdef inline ReaderTable* table_of(const Readers* readers) noexcept nogil:
    return <ReaderTable*>readers.table


# In and out of a read. The slot taken; -1: none is free (try_pin), nor became so for seconds, nor will (pin). unpin:
# False where the reader was expelled meanwhile; what it read is worth nothing then.
cdef int reader_try_pin(Readers* readers, const uint64_t* epoch) noexcept nogil
cdef int reader_pin(Readers* readers, const uint64_t* epoch) noexcept nogil
cdef bint reader_unpin(Readers* readers, int slot) noexcept nogil

cdef uint64_t readers_oldest_pin(Readers* readers) noexcept nogil

cdef class ReaderSlots:
    cdef Readers readers
    cdef uint64_t* seen       # per slot: the pin that was there at the last look, and since when (s)
    cdef double* since
    cdef size_t size
    cdef map_file(self)
    cdef own_first(self)
    cdef begin_writing(self, uint64_t generation)
    cdef bint clear_dead(self, uint32_t slot)
