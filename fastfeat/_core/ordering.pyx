"""Ordering: rows, or labels, put side by side entity by entity, each entity's in order.

    keys, times --hash of the key--> partitions --group by key--> entities --sort--> rows in order

A partition is small enough for the second cache, so what follows (grouping, sorting, building blocks, reading) misses
it seldom, and partitions are independent: threads share them.

Promise:     an entity's rows are all in one partition, one after the other, by event time, created time and sequence.
             Keys are compared, not hashes alone. Rows without sequences keep the order in which they are given.
Invariant:   count() of every part, then settle(), then place() of every part; then partitions may be asked for.
Concurrency: parts are disjoint ranges of the rows, partitions are only read: both may be worked on by many threads,
             without the GIL.
Errors:      MemoryError.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

cimport numpy as cnp

import numpy as np

from .atomics cimport prefetch
from .columns cimport KeyView, RowBatch, allocated, key_at, key_size
from .index cimport hash_bytes, hash_u64

cnp.import_array()

cdef enum:
    AHEAD = 16                # rows whose keys are on their way while one is looked at
    INSERTED_MAX = 24         # rows that are sorted by insertion
    DIGITS_MAX = 4096         # of the first pass over an entity's rows


cdef struct Moment:           # a row while its entity's rows are sorted
    int64_t event_time
    uint32_t row
    uint32_t pad


cdef struct Place:            # a row in its partition
    uint64_t name             # its key where that is 8 bytes, else the key's hash
    int64_t event_time
    uint32_t row
    uint32_t group


cdef struct Stamps:           # of each row
    const int64_t* event_times
    const int64_t* created_times
    const uint64_t* sequences     # NULL: in the order in which they are given


cdef class Ordering:
    """Rows by partition.

    keys: of each row (request.keys_batch); then its times, and its sequence or None. seed: 16 bytes, of the hash. bits:
    log2 of the number of partitions. parts: how many ranges of the rows are counted and placed by themselves.
    """

    cdef RowBatch keys
    cdef tuple times              # keeps them alive
    cdef Stamps stamps
    cdef int64_t rows
    cdef uint64_t seed[2]
    cdef uint32_t bits
    cdef int64_t parts
    cdef uint16_t* partitions     # of each row
    cdef Place* places
    cdef int64_t* counts          # of part i and partition p: counts[(i << bits) + p]; then where they begin
    cdef int64_t* starts          # of partition p

    def __cinit__(
        self, RowBatch keys not None, const int64_t[::1] event_times, const int64_t[::1] created_times,
        const uint64_t[::1] sequences, bytes seed not None, uint32_t bits, int64_t parts=1,
    ):
        self.rows = keys.view.count
        if len(seed) != 16 or bits > 16 or parts < 1 or self.rows > UINT32_MAX:
            raise ValueError("an ordering needs a seed of 16 bytes, at most 16 bits, 2**32 - 1 rows, and a part")
        if event_times.shape[0] != self.rows or created_times.shape[0] != self.rows or (
            sequences is not None and sequences.shape[0] != self.rows
        ):
            raise ValueError(f"an ordering of {self.rows} rows needs as many times")
        self.keys = keys
        self.times = (event_times, created_times, sequences)
        if self.rows:
            self.stamps.event_times = &event_times[0]
            self.stamps.created_times = &created_times[0]
            self.stamps.sequences = &sequences[0] if sequences is not None else NULL
        memcpy(self.seed, PyBytes_AS_STRING(seed), 16)
        self.bits = bits
        self.parts = parts
        self.partitions = <uint16_t*>allocated(malloc(2 * self.rows + 1))
        self.places = <Place*>allocated(malloc(sizeof(Place) * self.rows + 1))
        self.counts = <int64_t*>allocated(calloc(parts << bits, 8))
        self.starts = <int64_t*>allocated(calloc((1 << bits) + 1, 8))

    def __dealloc__(self):
        free(self.partitions)
        free(self.places)
        free(self.counts)
        free(self.starts)

    cdef int64_t bound(self, int64_t part) noexcept nogil:
        return self.rows * part // self.parts

    cdef inline uint64_t hash_of(self, int64_t i) noexcept nogil:
        cdef const KeyView* keys = &self.keys.view.keys
        if keys.offsets == NULL:
            return hash_u64(self.seed, (<const uint64_t*>keys.data)[i])
        return hash_bytes(self.seed, key_at(keys, i), key_size(keys, i))

    def count(self, int64_t part):
        """Hash the keys of a part and count how many go where."""
        cdef int64_t i
        cdef int64_t* counts = self.counts + (part << self.bits)
        cdef uint64_t mask = (<uint64_t>1 << self.bits) - 1
        with nogil:
            for i in range(self.bound(part), self.bound(part + 1)):
                # Why not the top bits: they choose a table's shard, and the low ones its slot.
                self.partitions[i] = <uint16_t>((self.hash_of(i) >> 32) & mask)
                counts[self.partitions[i]] += 1

    def settle(self):
        """Decide where each part's rows of each partition go: partition by partition, parts in order."""
        cdef int64_t at = 0
        cdef int64_t count
        cdef int64_t part
        cdef int64_t p
        for p in range(1 << self.bits):
            self.starts[p] = at
            for part in range(self.parts):
                count = self.counts[(part << self.bits) + p]
                self.counts[(part << self.bits) + p] = at
                at += count
        self.starts[1 << self.bits] = at

    def place(self, int64_t part):
        """Put a part's rows into their partitions, in the order in which they are given."""
        cdef int64_t i
        cdef int64_t* at = self.counts + (part << self.bits)
        cdef Place* place
        cdef const KeyView* keys = &self.keys.view.keys
        with nogil:
            for i in range(self.bound(part), self.bound(part + 1)):
                place = &self.places[at[self.partitions[i]]]
                at[self.partitions[i]] += 1
                place.name = (<const uint64_t*>keys.data)[i] if keys.offsets == NULL else self.hash_of(i)
                place.event_time = self.stamps.event_times[i]
                place.row = <uint32_t>i

    def entities_of(self, int64_t partition):
        """The rows of a partition, entity by entity and in order: (rows, begins, stamps).

        rows: uint32. begins: where each entity's rows begin, and at the end their count: int64. stamps: int64 [3, n],
        event time, created time and sequence of each.
        """
        cdef int64_t start = self.starts[partition]
        cdef int64_t count = self.starts[partition + 1] - start
        cdef int64_t groups = -1
        cdef Place* places = self.places + start
        cdef int64_t* ends = <int64_t*>allocated(malloc(8 * (count + 2)))
        cdef Moment* moments = <Moment*>malloc(2 * sizeof(Moment) * count + 1)
        rows = np.empty(count, np.uint32)
        stamps = np.empty((3, count), np.int64)
        cdef uint32_t* rows_out = <uint32_t*>cnp.PyArray_DATA(rows)
        cdef int64_t* stamps_out = <int64_t*>cnp.PyArray_DATA(stamps)
        with nogil:
            if moments != NULL:
                groups = places_group(&self.keys.view.keys, self.seed, places, count, ends)
            if groups >= 0:
                groups_sort(&self.stamps, places, count, ends, groups, moments)
                moments_write(&self.stamps, moments, count, rows_out, stamps_out)
        free(moments)
        if groups < 0:
            free(ends)
            raise MemoryError(f"no memory to put {count} rows in order; take fewer at once")
        begins = np.empty(groups + 1, np.int64)
        memcpy(cnp.PyArray_DATA(begins), ends, 8 * (groups + 1))
        free(ends)
        return rows, begins, stamps


# --- grouping --------------------------------------------------------------------------------------------------------

cdef inline bint keys_equal(const KeyView* keys, int64_t a, int64_t b) noexcept nogil:
    """Of two rows whose names are equal."""
    if keys.offsets == NULL:
        return True
    return key_size(keys, a) == key_size(keys, b) and memcmp(key_at(keys, a), key_at(keys, b), key_size(keys, a)) == 0


cdef int64_t places_group(
    const KeyView* keys, const uint64_t* seed, Place* places, int64_t count, int64_t* begins,
) noexcept nogil:
    """Number the keys in the order in which they come; begins[g] is then where group g's rows belong. -1: no memory."""
    cdef uint64_t slots = 16
    cdef uint32_t shift = 60              # 64 - log2(slots)
    cdef uint64_t odd = seed[1] | 1
    cdef uint64_t at
    cdef uint32_t head
    cdef uint32_t* table
    cdef int64_t groups = 0
    cdef int64_t i
    cdef int64_t begin = 0
    cdef int64_t size
    while slots < 2 * <uint64_t>count:
        slots *= 2
        shift -= 1
    table = <uint32_t*>calloc(slots, 4)   # a group's first place + 1, 0: empty
    if table == NULL:
        return -1
    for i in range(count):
        if keys.offsets != NULL and i + AHEAD < count:
            prefetch(key_at(keys, places[i + AHEAD].row))
        # Multiplied by a secret, so that who chooses the keys can't choose where they meet.
        at = ((places[i].name ^ seed[0]) * odd) >> shift
        while True:
            head = table[at & (slots - 1)]
            if head == 0:
                table[at & (slots - 1)] = <uint32_t>i + 1
                places[i].group = <uint32_t>groups
                begins[groups] = 1
                groups += 1
                break
            head -= 1
            if places[head].name == places[i].name and keys_equal(keys, places[head].row, places[i].row):
                places[i].group = places[head].group
                begins[places[i].group] += 1
                break
            at += 1
    free(table)
    for i in range(groups):
        size = begins[i]
        begins[i] = begin
        begin += size
    begins[groups] = begin
    return groups


# --- sorting ---------------------------------------------------------------------------------------------------------

cdef inline bint is_before(const Stamps* stamps, const Moment* a, const Moment* b) noexcept nogil:
    """The order of rows: event time, created time, sequence."""
    if a.event_time != b.event_time:
        return a.event_time < b.event_time
    if stamps.created_times[a.row] != stamps.created_times[b.row]:
        return stamps.created_times[a.row] < stamps.created_times[b.row]
    if stamps.sequences == NULL:
        return a.row < b.row
    return stamps.sequences[a.row] < stamps.sequences[b.row]


cdef void groups_sort(
    const Stamps* stamps, const Place* places, int64_t count, int64_t* begins, int64_t groups, Moment* moments,
) noexcept nogil:
    """The rows of each group in order, into `moments`, which has room for twice as many."""
    cdef Moment* scratch = moments + count
    cdef Moment* moment
    cdef int64_t g
    cdef int64_t i
    for i in range(count):
        moment = &moments[begins[places[i].group]]
        begins[places[i].group] += 1
        moment.event_time = places[i].event_time
        moment.row = places[i].row
    for g in range(groups, 0, -1):        # each begin has moved to the next one's
        begins[g] = begins[g - 1]
    begins[0] = 0
    for g in range(groups):
        moments_sort(stamps, moments + begins[g], begins[g + 1] - begins[g], scratch)


cdef void moments_write(
    const Stamps* stamps, const Moment* moments, int64_t count, uint32_t* rows, int64_t* out,
) noexcept nogil:
    """The rows and their stamps, each kind in turn: one that is the same as another costs no look at the rows."""
    cdef bint has_created = stamps.created_times != stamps.event_times
    cdef int64_t i
    for i in range(count):
        if i + AHEAD < count and has_created:
            prefetch(&stamps.created_times[moments[i + AHEAD].row])
        if i + AHEAD < count and stamps.sequences != NULL:
            prefetch(&stamps.sequences[moments[i + AHEAD].row])
        rows[i] = moments[i].row
        out[i] = moments[i].event_time
        out[count + i] = stamps.created_times[moments[i].row] if has_created else moments[i].event_time
        out[2 * count + i] = moments[i].row if stamps.sequences == NULL else <int64_t>stamps.sequences[moments[i].row]


cdef void moments_sort(const Stamps* stamps, Moment* moments, int64_t count, Moment* scratch) noexcept nogil:
    """By the top digits of the event time first, which leaves little to do where times are spread; then each digit."""
    cdef int64_t starts[DIGITS_MAX + 1]
    cdef int64_t least = moments[0].event_time
    cdef int64_t most = least
    cdef int64_t sorted_count = 1
    cdef uint32_t shift = 0
    cdef uint64_t digits = 16
    cdef uint64_t digit
    cdef int64_t i
    cdef int64_t at = 0
    cdef int64_t size
    while sorted_count < count and not is_before(stamps, &moments[sorted_count], &moments[sorted_count - 1]):
        sorted_count += 1
    if sorted_count >= count:
        return
    if count <= INSERTED_MAX:
        moments_insert(stamps, moments, count)
        return
    for i in range(1, count):
        least = min(least, moments[i].event_time)
        most = max(most, moments[i].event_time)
    while digits < <uint64_t>count and digits < DIGITS_MAX:
        digits *= 2
    while (<uint64_t>most - <uint64_t>least) >> shift >= digits:
        shift += 1
    for digit in range(digits + 1):
        starts[digit] = 0
    for i in range(count):
        starts[((<uint64_t>moments[i].event_time - <uint64_t>least) >> shift) + 1] += 1
    for digit in range(digits):
        starts[digit + 1] += starts[digit]
    for i in range(count):
        digit = (<uint64_t>moments[i].event_time - <uint64_t>least) >> shift
        scratch[starts[digit]] = moments[i]
        starts[digit] += 1
    memcpy(moments, scratch, count * sizeof(Moment))
    for digit in range(digits):           # each start has moved to the next one's
        size = starts[digit] - at
        if size > INSERTED_MAX:
            moments_merge(stamps, moments + at, size, scratch)
        elif size > 1:
            moments_insert(stamps, moments + at, size)
        at = starts[digit]


cdef void moments_insert(const Stamps* stamps, Moment* moments, int64_t count) noexcept nogil:
    cdef Moment moment
    cdef int64_t i
    cdef int64_t j
    for i in range(1, count):
        moment = moments[i]
        j = i
        while j > 0 and is_before(stamps, &moment, &moments[j - 1]):
            moments[j] = moments[j - 1]
            j -= 1
        moments[j] = moment


cdef void moments_merge(const Stamps* stamps, Moment* moments, int64_t count, Moment* scratch) noexcept nogil:
    """Merge sort, from runs that are inserted."""
    cdef int64_t width = INSERTED_MAX
    cdef int64_t low
    cdef int64_t middle
    cdef int64_t high
    cdef int64_t i
    cdef int64_t j
    cdef int64_t k
    for low in range(0, count, 24):       # INSERTED_MAX
        moments_insert(stamps, moments + low, min(width, count - low))
    while width < count:
        low = 0
        while low < count:
            middle = min(low + width, count)
            high = min(low + 2 * width, count)
            i, j = low, middle
            for k in range(low, high):
                if j == high or i < middle and not is_before(stamps, &moments[j], &moments[i]):
                    scratch[k] = moments[i]
                    i += 1
                else:
                    scratch[k] = moments[j]
                    j += 1
            low = high
        memcpy(moments, scratch, count * sizeof(Moment))
        width *= 2


# --- out of order ----------------------------------------------------------------------------------------------------

cdef inline void scatter_words(
    const uint64_t* values, const uint32_t* rows, int64_t count, uint64_t* to,
) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        to[rows[i]] = values[i]


cdef inline void scatter_bytes(const uint8_t* values, const uint32_t* rows, int64_t count, uint8_t* to) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        to[rows[i]] = values[i]


cdef void scatter_any(
    const uint8_t* values, const uint32_t* rows, int64_t count, uint8_t* to, int64_t width,
) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        memcpy(to + rows[i] * width, values + i * width, width)


def scatter(values, const uint32_t[::1] rows, to):
    """to[rows] = values, along the first axis, without the GIL; both are contiguous and of one type.

    Raises ValueError. The caller answers for the rows: they are inside of `to`.
    """
    cdef int64_t count = rows.shape[0]
    cdef int64_t width = values.nbytes // count if count else 1
    cdef const uint8_t* source = <const uint8_t*>cnp.PyArray_DATA(<cnp.ndarray?>values)
    cdef uint8_t* target = <uint8_t*>cnp.PyArray_DATA(<cnp.ndarray?>to)
    if values.dtype != to.dtype or len(values) != count or values.shape[1:] != to.shape[1:] or not (
        values.flags.c_contiguous and to.flags.c_contiguous
    ):
        raise ValueError(f"{values.dtype} {values.shape} can't be scattered by {count} rows into {to.dtype} {to.shape}")
    if count == 0:
        return
    with nogil:
        if width == 8:
            scatter_words(<const uint64_t*>source, &rows[0], count, <uint64_t*>target)
        elif width == 1:
            scatter_bytes(source, &rows[0], count, target)
        else:
            scatter_any(source, &rows[0], count, target, width)
