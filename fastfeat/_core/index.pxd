from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .arena cimport ArenaView, arena_end
from .atomics cimport atomic_load_u64
from .layout cimport Slot

cdef enum:
    SLOTS_BITS_MIN = 8        # one page


cdef extern from "siphash.h" nogil:
    int hash_bits() noexcept
    uint64_t hash_u64(const uint64_t* seed, uint64_t value) noexcept
    uint64_t hash_bytes(const uint64_t* seed, const uint8_t* data, uint64_t size) noexcept
    void hash_u64s(const uint64_t* seed, const uint64_t* values, int64_t count, uint64_t* hashes) noexcept


cdef extern from "searching.h" nogil:
    ctypedef struct SearchPlan:
        const uint8_t* base
        const uint64_t* words
        uint32_t shift
        uint64_t end
        uint64_t fetch_offset
        uint64_t fetch_size
    int search_bits() noexcept
    uint64_t slot_line(uint64_t word, uint64_t hash) noexcept
    void block_fetch(const SearchPlan* plan, uint64_t block_at) noexcept
    int64_t lines_search(
        const SearchPlan* plan, const uint64_t* hashes, int64_t count, uint64_t* blocks_at, uint8_t* later
    ) noexcept


# A shard's slots: `word` is their offset with log2 of their count in the low 6 bits.
cdef inline Slot* slots_of(const uint8_t* base, uint64_t word) noexcept nogil:
    return <Slot*>(base + (word & ~<uint64_t>63))


cdef inline uint64_t slots_mask(uint64_t word) noexcept nogil:
    return (<uint64_t>1 << (word & 63)) - 1


cdef inline uint64_t slots_size(uint64_t word) noexcept nogil:
    return (<uint64_t>1 << (word & 63)) * sizeof(Slot)


cdef inline uint64_t slot_at(uint64_t hash, uint64_t step, uint64_t mask) noexcept nogil:
    """Where a search for this hash looks after so many steps: through its own line first, then line by line."""
    return (((hash & ~<uint64_t>3) + (step & ~<uint64_t>3)) | ((hash + step) & 3)) & mask


cdef inline Slot* slot_find(Slot* slots, uint64_t mask, uint64_t hash, uint64_t* step) noexcept nogil:
    """The next slot with this hash, or the empty slot that ends the search.

    `step` starts as 0; to go on past a slot whose key turned out to differ, call again with step + 1.
    """
    cdef uint64_t found
    cdef Slot* slot
    while True:
        slot = &slots[slot_at(hash, step[0], mask)]
        found = atomic_load_u64(&slot.hash)
        if found == hash or found == 0:
            return slot
        step[0] += 1


# What readers do: the slots' word and the slots may be anything, see timeline.pyx.
cdef enum:
    NOWHERE = 1               # misaligned, so that no block lies there and whoever looks at it finds it torn


cdef inline bint slots_are_inside(const ArenaView* arena, uint64_t word) noexcept nogil:
    cdef uint64_t at = word & ~<uint64_t>63
    cdef uint64_t end = arena_end(arena)
    return at <= end and ((end - at) // sizeof(Slot)) >> (word & 63) != 0


cdef inline uint64_t slots_next_block(const Slot* slots, uint64_t mask, uint64_t hash, uint64_t* step) noexcept nogil:
    """Where the next block published under this hash lies, at or after `step`, which moves past it.

    `step` starts as 0. 0: there is none. NOWHERE: every slot is taken, so these are no slots.
    """
    cdef uint64_t found
    cdef uint64_t block_at
    cdef const Slot* slot
    while step[0] <= mask:
        slot = &slots[slot_at(hash, step[0], mask)]
        step[0] += 1
        found = atomic_load_u64(&slot.hash)
        if found == 0:
            return 0
        if found == hash:
            block_at = atomic_load_u64(&slot.block_at)
            if block_at != 0:
                return block_at
    return NOWHERE


cdef uint64_t slots_alloc(ArenaView* arena, uint32_t bits) noexcept nogil
cdef void slots_rehash(const uint8_t* base, uint64_t from_word, uint64_t to_word) noexcept nogil
