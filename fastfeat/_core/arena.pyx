"""The arena: one mapping of fixed reserved size that holds every view's rows, addressed by offsets.

    0             header_size                                    bump                        capacity
    +-------------+--------+--------+---------+--------+---------+---------------------------+
    | ArenaHeader | extent | extent | (free)  | extent | ...     | never touched             |
    +-------------+--------+--------+---------+--------+---------+---------------------------+
                     |
                     +-- a span of one shard's heap: blocks, heads and row heaps of 8 B .. 64 KiB in size classes
                     +-- or one large thing: a shard's slots, a directory, a very large block

Invariant:   every byte below `bump` belongs to exactly one extent; free extents are listed in address order and merged.
Invariant:   what a reader may still see is never handed out again. A writer unpublishes an offset, takes the epoch
             (epoch_advance, a full fence) and frees the bytes only when no reader is pinned at that epoch or before.
Ordering:    reader_pin is a compare-and-swap, a full fence, before the reader's first load from the arena; it pairs
             with
             the fence in epoch_advance. If the writer's scan misses the pin, the reader's loads come after the
             writer's unpublishing stores, so it can't find the retired offset. A release store would not do: the pin
             could
             drift after the loads it protects. A pin may name an older epoch than the current one; that only keeps
             more.
Concurrency: extents are guarded by a spin lock held for a few dozen instructions; a heap by its shard's one writer.
Errors:      allocation returns 0 when the limit is reached and changes nothing.
Ownership:   the Arena object owns the mapping; views and tables borrow it and hold a reference to the object.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)

import os

from ..errors import DataError, StorageError
from .atomics cimport (
    atomic_add_u64, atomic_fence, atomic_load_u64, atomic_store_u32, atomic_store_u64, atomic_swap_u32,
    atomic_swap_u64, cpu_relax, ff_check, ff_poison, ff_seeded_bug, prefetch,
)
from .layout cimport MAGIC, PAGE_SIZE, READER_SLOTS, ArenaHeader, FreeExtent, HeapHeader
from .layout import LAYOUT_VERSION

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<sys/mman.h>" nogil:
    const int MAP_NORESERVE
    const int MADV_HUGEPAGE
    int madvise(void* at, size_t size, int advice)

cdef enum:
    SMALL_MAX = 1024              # classes of 8 B up to here, four per doubling above
    HEAP_SIZE_MAX = 65536         # larger things are extents of their own
    SPAN_SIZE_MIN = 4096
    SPAN_SIZE_MAX = 65536         # the most a shard holds unused: 64 shards then waste 2 MiB of an arena on average
    CAPACITY_MIN = 1048576
    POPULATE_WRITE = 23           # MADV_POPULATE_WRITE, which older headers lack


cdef inline uint64_t pages(uint64_t size) noexcept nogil:
    return (size + PAGE_SIZE - 1) & ~(<uint64_t>PAGE_SIZE - 1)


cdef class Arena:
    """A private mapping of `capacity_bytes`: reserved at once, used page by page.

    `used` counts the bytes handed out, the header included. Raises DataError for a capacity below 1 MiB and
    StorageError
    where the mapping is refused. seed: 16 bytes of the hash's key, as `seed` of another arena gave them; else random.
    """

    def __cinit__(self, capacity_bytes, bytes seed=None):
        if isinstance(capacity_bytes, bool) or not isinstance(capacity_bytes, int):
            raise DataError(f"capacity_bytes must be an int, not {type(capacity_bytes).__name__}")
        if not CAPACITY_MIN <= capacity_bytes < 1 << 46:
            raise DataError(f"capacity_bytes is {capacity_bytes}; the least is {CAPACITY_MIN} (1 MiB), the most 2**46")
        cdef uint64_t capacity = capacity_bytes & ~(PAGE_SIZE - 1)
        cdef void* base = mmap(
            NULL, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        if base == MAP_FAILED:
            raise StorageError(f"the system refused to reserve {capacity} B for the arena; lower capacity_bytes")
        # Point reads touch a random line of a random page: with 4 KiB pages each is a TLB miss as well.
        madvise(base, capacity, MADV_HUGEPAGE)
        self.capacity = capacity
        self.view.base = <uint8_t*>base
        self.view.header = <ArenaHeader*>base
        cdef ArenaHeader* header = self.view.header
        seed = os.urandom(16) if seed is None else seed
        if len(seed) != 16:
            raise DataError(f"an arena's seed has 16 bytes, not {len(seed)}")
        memcpy(header.seed, <const char*>seed, 16)
        header.magic = MAGIC
        header.layout_version = LAYOUT_VERSION
        header.endian = 1
        header.capacity = capacity
        header.generation = 1
        header.epoch = 1
        header.bump = pages(sizeof(ArenaHeader))
        header.used = header.bump
        header.reserve = pages(min(capacity // 64, 1 << 20))

    def __dealloc__(self):
        if self.view.base != NULL:
            munmap(self.view.base, self.capacity)

    @property
    def seed(self):
        """The key of the hash, 16 bytes: whoever knows it can make keys collide."""
        return (<const char*>self.view.header.seed)[:16]

    def populate_ahead(self, uint64_t size):
        """Have the system give memory to the next `size` bytes that nobody uses yet; returns how many were new to it.

        Whoever takes them later need not wait for a page to be found and zeroed. The GIL is released meanwhile. 0 also
        where the system can't (Linux before 5.14) or has none to give.
        """
        cdef uint64_t bump = atomic_load_u64(&self.view.header.bump)
        cdef uint64_t start = max(bump, self.populated)
        cdef uint64_t end = min(pages(bump + size), self.capacity)
        cdef int failed
        if start >= end:
            return 0
        with nogil:
            failed = madvise(self.view.base + start, end - start, POPULATE_WRITE)
        if failed:
            return 0
        self.populated = end
        return end - start

    @property
    def used(self):
        """Bytes handed out, of `capacity`."""
        return self.view.header.used


# --- extents ---------------------------------------------------------------------------------------------------------

cdef void arena_lock(ArenaHeader* header) noexcept nogil:
    while not atomic_swap_u32(&header.lock, 0, 1):
        cpu_relax()


cdef inline void arena_unlock(ArenaHeader* header) noexcept nogil:
    atomic_store_u32(&header.lock, 0)


cdef uint64_t extent_alloc(ArenaView* arena, uint64_t size, bint urgent) noexcept nogil:
    cdef ArenaHeader* header = arena.header
    cdef uint64_t limit
    cdef uint64_t at
    cdef uint64_t result = 0
    cdef uint64_t* link
    cdef FreeExtent* extent
    size = pages(size)
    arena_lock(header)
    limit = header.capacity if urgent else header.capacity - header.reserve
    if header.used + size <= limit:
        link = &header.free_at
        while link[0] != 0 and result == 0:
            at = link[0]
            extent = <FreeExtent*>(arena.base + at)
            if extent.size > size:
                extent.size -= size
                result = at + extent.size
            elif extent.size == size:
                link[0] = extent.next_at
                result = at
            else:
                link = &extent.next_at
        if result == 0 and header.bump + size <= header.capacity:
            result = header.bump
            header.bump += size
        if result != 0:
            header.used += size
    arena_unlock(header)
    return result


cdef void extent_free(ArenaView* arena, uint64_t at, uint64_t size) noexcept nogil:
    cdef ArenaHeader* header = arena.header
    cdef FreeExtent* extent = <FreeExtent*>(arena.base + at)
    cdef FreeExtent* before = NULL
    cdef FreeExtent* after
    cdef uint64_t before_at = 0
    cdef uint64_t* link
    size = pages(size)
    ff_poison(extent, size)
    arena_lock(header)
    link = &header.free_at
    while link[0] != 0 and link[0] < at:
        before_at = link[0]
        before = <FreeExtent*>(arena.base + before_at)
        link = &before.next_at
    ff_check(before == NULL or before_at + before.size <= at)
    extent.next_at = link[0]
    extent.size = size
    link[0] = at
    if extent.next_at == at + size:
        after = <FreeExtent*>(arena.base + extent.next_at)
        extent.size += after.size
        extent.next_at = after.next_at
    if before != NULL and before_at + before.size == at:
        before.size += extent.size
        before.next_at = extent.next_at
    header.used -= size
    arena_unlock(header)


# --- heap of a shard -------------------------------------------------------------------------------------------------

cdef inline uint32_t heap_class(uint64_t size) noexcept nogil:
    """The least class that holds `size` (at most HEAP_SIZE_MAX)."""
    cdef uint32_t power = 10
    cdef uint64_t step
    if size <= SMALL_MAX:
        return <uint32_t>((size + 7) >> 3)
    while (<uint64_t>2 << power) < size:
        power += 1
    step = <uint64_t>1 << (power - 2)
    return 128 + (power - 10) * 4 + <uint32_t>((size - (<uint64_t>1 << power) + step - 1) // step)


cdef inline uint64_t heap_class_size(uint32_t class_) noexcept nogil:
    cdef uint32_t above
    cdef uint32_t power
    if class_ <= 128:
        return <uint64_t>class_ << 3
    above = class_ - 129
    power = 10 + (above >> 2)
    return (<uint64_t>1 << power) + (<uint64_t>((above & 3) + 1) << (power - 2))


cdef inline void heap_push(ArenaView* arena, HeapHeader* heap, uint64_t at, uint32_t class_) noexcept nogil:
    (<uint64_t*>(arena.base + at))[0] = heap.free[class_]
    heap.free[class_] = at
    heap.mask[class_ >> 6] |= <uint64_t>1 << (class_ & 63)


cdef inline uint64_t heap_pop(ArenaView* arena, HeapHeader* heap, uint32_t class_) noexcept nogil:
    cdef uint64_t at = heap.free[class_]
    cdef uint64_t following = (<uint64_t*>(arena.base + at))[0]
    heap.free[class_] = following
    if following == 0:
        heap.mask[class_ >> 6] &= ~(<uint64_t>1 << (class_ & 63))
    else:
        prefetch(arena.base + following)  # the next one to be popped begins with where the one after it lies
    return at


cdef void heap_give(ArenaView* arena, HeapHeader* heap, uint64_t at, uint64_t size) noexcept nogil:
    """List `size` bytes (a multiple of 8) as free, cut into the largest classes that fit."""
    cdef uint32_t class_
    cdef uint64_t part
    while size >= 8:
        class_ = heap_class(size if size <= HEAP_SIZE_MAX else HEAP_SIZE_MAX)
        if heap_class_size(class_) > size:
            class_ -= 1
        part = heap_class_size(class_)
        heap_push(arena, heap, at, class_)
        at += part
        size -= part


cdef uint32_t heap_larger(HeapHeader* heap, uint32_t class_) noexcept nogil:
    """The least non-empty class of at least `class_`, or 0."""
    cdef uint32_t word = class_ >> 6
    cdef uint64_t bits = heap.mask[word] & (~<uint64_t>0 << (class_ & 63))
    while bits == 0:
        word += 1
        if word == 3:
            return 0
        bits = heap.mask[word]
    class_ = word << 6
    while not bits & 1:
        bits >>= 1
        class_ += 1
    return class_


cdef uint64_t heap_alloc(ArenaView* arena, HeapHeader* heap, uint64_t size, bint urgent) noexcept nogil:
    cdef uint32_t class_
    cdef uint32_t larger
    cdef uint64_t at
    cdef uint64_t span
    if size > HEAP_SIZE_MAX:
        return extent_alloc(arena, size, urgent)
    class_ = heap_class(size)
    if heap.free[class_] != 0:
        return heap_pop(arena, heap, class_)
    size = heap_class_size(class_)
    if heap.span_end - heap.span_at < size:
        # Why before a new span: memory that deletes gave back serves other sizes too.
        larger = heap_larger(heap, class_)
        if larger != 0:
            at = heap_pop(arena, heap, larger)
            heap_give(arena, heap, at + size, heap_class_size(larger) - size)
            return at
        span = min(max(heap.span_size * 2, <uint64_t>SPAN_SIZE_MIN), <uint64_t>SPAN_SIZE_MAX)
        while span < size:
            span *= 2
        at = extent_alloc(arena, span, urgent)
        if at == 0:                       # nearly full: what is just enough may still be there
            span = pages(size)
            at = extent_alloc(arena, span, urgent)
            if at == 0:
                return 0
        heap_give(arena, heap, heap.span_at, heap.span_end - heap.span_at)
        heap.span_at = at
        heap.span_end = at + span
        heap.span_size = span
    at = heap.span_at
    heap.span_at += size
    return at


cdef void heap_free(ArenaView* arena, HeapHeader* heap, uint64_t at, uint64_t size) noexcept nogil:
    if size > HEAP_SIZE_MAX:
        extent_free(arena, at, size)
    else:
        ff_poison(arena.base + at, size)
        heap_push(arena, heap, at, heap_class(size))


# --- epochs ----------------------------------------------------------------------------------------------------------

cdef int reader_try_pin(ArenaView* arena) noexcept nogil:
    """Enter: nothing retired from now on is reused before reader_unpin. Returns the slot taken, -1: none is free."""
    cdef ArenaHeader* header = arena.header
    cdef int slot
    for slot in range(READER_SLOTS):
        if header.readers[slot].pinned == 0 and atomic_swap_u64(
            &header.readers[slot].pinned, 0, atomic_load_u64(&header.epoch)
        ):
            return slot
    return -1


cdef int reader_pin(ArenaView* arena) noexcept nogil:
    """Enter, after waiting for a free slot; not with the GIL, which a reader inside may need to leave."""
    cdef int slot = reader_try_pin(arena)
    while slot < 0:
        sched_yield()                     # a processor for those inside, which may be many more than there are
        slot = reader_try_pin(arena)
    return slot


cdef void reader_unpin(ArenaView* arena, int slot) noexcept nogil:
    atomic_store_u64(&arena.header.readers[slot].pinned, 0)


cdef uint64_t epoch_advance(ArenaView* arena) noexcept nogil:
    """The epoch at which everything unpublished so far is retired."""
    return atomic_add_u64(&arena.header.epoch, 1)


cdef uint64_t epoch_oldest_pin(ArenaView* arena) noexcept nogil:
    """What was retired at an epoch before the returned one can't be seen by anyone."""
    cdef uint64_t oldest = ~<uint64_t>0
    cdef uint64_t pinned
    cdef int slot
    if ff_seeded_bug("reclaim_ignores_pins"):
        return oldest
    atomic_fence()
    for slot in range(READER_SLOTS):
        pinned = atomic_load_u64(&arena.header.readers[slot].pinned)
        if pinned != 0 and pinned < oldest:
            oldest = pinned
    return oldest
