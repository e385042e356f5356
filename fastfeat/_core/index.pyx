"""Hash index: key hash -> timeline, in shards that grow alone.

    TableHeader.slots[shard]                slots (16 B each, open addressing)
    +-------------------------+             +----------+-------------+
    | slots_at | log2(count)  | ----------> | hash u64 | block_at u64| ...
    +-------------------------+             +----------+-------------+
          one atomic word                    0: empty    0: claimed, nothing published

    A search begins at the slot that the hash names and goes around its cache line of four before it takes the next
    line: one miss finds nearly every key.

    hash: SipHash-1-3 of the key's bytes under the arena's secret seed, so that nobody who chooses keys can choose
    collisions. Its top bits choose the shard, its low bits the slot. 0 is kept for "empty". Two keys of one hash live
    in
    two slots; the timeline's own copy of the key decides.

Invariant:   slots are never removed; a deleted entity keeps its slot. A search ends at the first empty slot.
Invariant:   a shard has more slots than entities (at most 7/8 are taken while memory lasts), so every search ends.
Ordering:    a slot's block is stored (release) after the block's bytes; a reader that loads it (acquire) sees them. A
             shard's new slots are filled before their word is stored (release).
Concurrency: one writer per shard, any number of readers. A reader may search slots that were just replaced; they are
             retired by epoch and show the state at their replacement.
Errors:      slots_alloc returns 0 when the arena is full.
Source:      SipHash: Aumasson and Bernstein, 2012; the 1-3 variant as in CPython's and Rust's default hashes.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from .arena cimport ArenaView, extent_alloc
from .layout cimport Slot


def siphash13(bytes seed, bytes data):
    """SipHash-1-3 as the index computes it, for tests: 16 bytes of seed, any data. 0 is answered as 1."""
    cdef uint64_t key[2]
    if len(seed) != 16:
        raise ValueError(f"the seed has 16 bytes, not {len(seed)}")
    memcpy(key, <const char*>seed, 16)
    return hash_bytes(key, <const uint8_t*><const char*>data, len(data))


def hashing_bits():
    """How wide the vectors are that hash: 512, 256 or 128 bits; see vectors.h."""
    return hash_bits()


def searching_bits():
    """How wide the vectors are that search the index for many keys at once."""
    return search_bits()


cdef uint64_t slots_alloc(ArenaView* arena, uint32_t bits) noexcept nogil:
    """The word of 2**bits empty slots (whole pages, so that the low 6 bits of their offset are free), or 0."""
    cdef uint64_t size = (<uint64_t>1 << bits) * sizeof(Slot)
    cdef uint64_t at = extent_alloc(arena, size, False)
    if at == 0:
        return 0
    memset(arena.base + at, 0, size)
    return at | bits


cdef void slots_rehash(const uint8_t* base, uint64_t from_word, uint64_t to_word) noexcept nogil:
    """Copy every taken slot; the target is empty, larger and not yet published."""
    cdef Slot* old = slots_of(base, from_word)
    cdef Slot* new = slots_of(base, to_word)
    cdef uint64_t mask = slots_mask(to_word)
    cdef uint64_t i
    cdef uint64_t step
    for i in range(slots_mask(from_word) + 1):
        if old[i].hash != 0:
            step = 0
            while new[slot_at(old[i].hash, step, mask)].hash != 0:
                step += 1
            new[slot_at(old[i].hash, step, mask)] = old[i]
