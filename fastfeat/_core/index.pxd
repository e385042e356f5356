from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .arena cimport ArenaView, arena_end
from .atomics cimport atomic_load_u64
from .layout cimport Slot

cdef enum:
    SLOTS_BITS_MIN = 8        # one page


cdef inline uint64_t rotate(uint64_t x, int by) noexcept nogil:
    return (x << by) | (x >> (64 - by))


cdef inline void sip_round(uint64_t* v) noexcept nogil:
    v[0] += v[1]
    v[1] = rotate(v[1], 13) ^ v[0]
    v[0] = rotate(v[0], 32)
    v[2] += v[3]
    v[3] = rotate(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = rotate(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = rotate(v[1], 17) ^ v[2]
    v[2] = rotate(v[2], 32)


cdef inline void sip_begin(uint64_t* v, const uint64_t* seed) noexcept nogil:
    v[0] = seed[0] ^ <uint64_t>0x736F6D6570736575
    v[1] = seed[1] ^ <uint64_t>0x646F72616E646F6D
    v[2] = seed[0] ^ <uint64_t>0x6C7967656E657261
    v[3] = seed[1] ^ <uint64_t>0x7465646279746573


cdef inline uint64_t sip_end(uint64_t* v, uint64_t last) noexcept nogil:
    v[3] ^= last
    sip_round(v)
    v[0] ^= last
    v[2] ^= 0xFF
    sip_round(v)
    sip_round(v)
    sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef inline uint64_t hash_u64(const uint64_t* seed, uint64_t value) noexcept nogil:
    """SipHash-1-3 of the value's 8 little-endian bytes; never 0."""
    cdef uint64_t v[4]
    cdef uint64_t hash
    sip_begin(v, seed)
    v[3] ^= value
    sip_round(v)
    v[0] ^= value
    hash = sip_end(v, <uint64_t>8 << 56)
    return hash if hash != 0 else 1


cdef uint64_t hash_bytes(const uint64_t* seed, const uint8_t* data, uint64_t size) noexcept nogil


# A shard's slots: `word` is their offset with log2 of their count in the low 6 bits.
cdef inline Slot* slots_of(const uint8_t* base, uint64_t word) noexcept nogil:
    return <Slot*>(base + (word & ~<uint64_t>63))


cdef inline uint64_t slots_mask(uint64_t word) noexcept nogil:
    return (<uint64_t>1 << (word & 63)) - 1


cdef inline uint64_t slots_size(uint64_t word) noexcept nogil:
    return (<uint64_t>1 << (word & 63)) * sizeof(Slot)


cdef inline Slot* slot_find(Slot* slots, uint64_t mask, uint64_t hash, uint64_t* at) noexcept nogil:
    """The next slot at or after position `at` with this hash, or the empty slot that ends the search.

    `at` starts as the hash; to go on past a slot whose key turned out to differ, call again with at + 1.
    """
    cdef uint64_t i = at[0]
    cdef uint64_t found
    while True:
        found = atomic_load_u64(&slots[i & mask].hash)
        if found == hash or found == 0:
            at[0] = i
            return &slots[i & mask]
        i += 1


# What readers do: the slots' word and the slots may be anything, see timeline.pyx.
cdef enum:
    NOWHERE = 1               # misaligned, so that no block lies there and whoever looks at it finds it torn


cdef inline bint slots_are_inside(const ArenaView* arena, uint64_t word) noexcept nogil:
    cdef uint64_t at = word & ~<uint64_t>63
    cdef uint64_t end = arena_end(arena)
    return at <= end and ((end - at) // sizeof(Slot)) >> (word & 63) != 0


cdef inline uint64_t slots_next_block(const Slot* slots, uint64_t mask, uint64_t hash, uint64_t* at) noexcept nogil:
    """Where the next block published under this hash lies, at or after position `at`, which moves past it.

    `at` starts as the hash. 0: there is none. NOWHERE: every slot is taken, so these are no slots.
    """
    cdef uint64_t i = at[0]
    cdef uint64_t found
    cdef uint64_t block_at
    while i - hash <= mask:
        found = atomic_load_u64(&slots[i & mask].hash)
        if found == 0:
            return 0
        if found == hash:
            block_at = atomic_load_u64(&slots[i & mask].block_at)
            if block_at != 0:
                at[0] = i + 1
                return block_at
        i += 1
    return NOWHERE


cdef uint64_t slots_alloc(ArenaView* arena, uint32_t bits) noexcept nogil
cdef void slots_rehash(const uint8_t* base, uint64_t from_word, uint64_t to_word) noexcept nogil
