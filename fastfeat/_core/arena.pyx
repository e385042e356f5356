"""The arena: one mapping of fixed reserved size that holds every view's rows, addressed by offsets.

    0             header_size                                    bump                        capacity
    +-------------+--------+--------+---------+--------+---------+---------------------------+
    | ArenaHeader | extent | extent | (free)  | extent | ...     | never touched             |
    +-------------+--------+--------+---------+--------+---------+---------------------------+
                     |
                     +-- a span of one shard's heap: blocks, heads and row heaps of 8 B .. 64 KiB in size classes
                     +-- or one large thing: a shard's slots, a directory, a very large block

Invariant:   every byte below `bump` belongs to exactly one extent; free extents are listed in address order and merged.
Invariant:   what a reader may still see is never handed out again: see readers.pyx.
Invariant:   of a file, every byte below `backed` has a page of its own before anyone writes it (posix_fallocate), so a
             full file system is an allocation that fails and never a SIGBUS. The file is sparse beyond.
Concurrency: extents are guarded by a spin lock held for a few dozen instructions; a heap by its shard's one writer.
Errors:      allocation returns 0 when the limit is reached and changes nothing.
Sharing:     an arena in a file is written by one process (readers.pyx has its lock) and mapped read-only by others.
             Everything in it is an offset; no pointer ever.
Ownership:   the Arena object owns the mapping; views and tables borrow it and hold a reference to the object.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE, mmap, munmap,
)

import hashlib
import os

from ..errors import DataError, StorageError
from .atomics cimport (
    atomic_add_u64, atomic_load_u64, atomic_store_u32, atomic_store_u64, atomic_swap_u32, cpu_relax, ff_check,
    ff_poison, prefetch, prefetch_far,
)
from .layout cimport MAGIC, PAGE_SIZE, ArenaHeader, FreeExtent, HeapHeader
from .layout import LAYOUT_VERSION
from .readers cimport READERS_LOST, ReaderSlots, reader_pin, reader_try_pin, reader_unpin, readers_oldest_pin

cdef extern from "<fcntl.h>" nogil:
    int posix_fallocate(int fd, int64_t at, int64_t size)

cdef extern from "<sys/mman.h>" nogil:
    const int MAP_NORESERVE
    const int MADV_HUGEPAGE
    int madvise(void* at, size_t size, int advice)

cdef uint64_t CATALOGUE_PLACE = (<uint64_t>1 << 46) - 1   # of the header's word; an arena has less

cdef enum:
    SMALL_MAX = 1024              # classes of 8 B up to here, four per doubling above
    HEAP_SIZE_MAX = 65536         # larger things are extents of their own
    AHEAD_MAX = 1024              # bytes of a block whose place is asked for before it is written
    SPAN_SIZE_MIN = 4096
    SPAN_SIZE_MAX = 65536         # the most a shard holds unused: 64 shards then waste 2 MiB of an arena on average
    CAPACITY_MIN = 1048576
    POPULATE_READ = 22            # MADV_POPULATE_..., which older headers lack
    POPULATE_WRITE = 23
    COLLAPSE = 25
    HUGE_SIZE = 2097152           # bytes of a huge page; where it is another, there are none
    BACKED_AT_ONCE = 4194304      # bytes of a file given pages in one call: writers wait meanwhile
    CATALOGUE_HEAD = 16           # size u64, digest u64


cdef void* mapping(uint64_t size, int protection, int flags, int fd) noexcept nogil:
    """mmap to where huge pages may lie: without a word of ours files are mapped anywhere. MAP_FAILED: refused.

    The place is a wish, not MAP_FIXED: what another thread maps there meanwhile is left alone, and small pages will do.
    """
    cdef uint64_t whole = size + HUGE_SIZE
    cdef void* found = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    cdef uint64_t start = 0
    if found != MAP_FAILED:
        munmap(found, whole)
        start = (<uint64_t>found + HUGE_SIZE - 1) & ~(<uint64_t>HUGE_SIZE - 1)
    return mmap(<void*>start, size, protection, flags, fd, 0)


cdef inline uint64_t pages(uint64_t size) noexcept nogil:
    return (size + PAGE_SIZE - 1) & ~(<uint64_t>PAGE_SIZE - 1)


def digest_of(bytes data not None):
    """64 bits of it, as an int."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


cdef uint64_t checked_capacity(capacity_bytes) except 0:
    if isinstance(capacity_bytes, bool) or not isinstance(capacity_bytes, int):
        raise DataError(f"capacity_bytes must be an int, not {type(capacity_bytes).__name__}")
    if not CAPACITY_MIN <= capacity_bytes < 1 << 46:
        raise DataError(f"capacity_bytes is {capacity_bytes}; the least is {CAPACITY_MIN} (1 MiB), the most 2**46")
    return <uint64_t>capacity_bytes & ~(<uint64_t>PAGE_SIZE - 1)


cdef uint64_t capacity_of(int fd) except 0:
    """Of the arena in a file, whose header must be one of ours."""
    cdef ArenaHeader header
    text = os.pread(fd, sizeof(ArenaHeader), 0)
    if len(text) < <int64_t>sizeof(ArenaHeader):
        raise StorageError("the file is too short for an arena's header; its server has not begun yet")
    memcpy(&header, <const char*>text, sizeof(ArenaHeader))
    if header.magic != MAGIC:
        raise StorageError("the file holds no arena; is it of another program, or of a machine of other byte order?")
    if header.layout_version != LAYOUT_VERSION or header.endian != 1:
        raise StorageError(
            f"the arena's layout is version {header.layout_version}, this program reads {LAYOUT_VERSION}; run the same"
            " version of fastfeat on both sides"
        )
    if header.capacity != <uint64_t>os.fstat(fd).st_size or not CAPACITY_MIN <= header.capacity < 1 << 46:
        raise StorageError(f"the arena says that it has {header.capacity} B, its file has {os.fstat(fd).st_size} B")
    return header.capacity


cdef class Arena:
    """A mapping of `capacity_bytes`: reserved at once, used page by page.

    `used` counts the bytes handed out, the header included. seed: 16 bytes of the hash's key, as `seed` of another
    arena gave them; else random.

    Private, or a file's, as one of
        writer   Arena(capacity, fd=..., readers_fd=..., generation=n)           makes a new arena in an empty file
                 Arena(fd=..., readers_fd=..., is_resumed=True)                  takes up one that was let go of in
        order reader   Arena(fd=..., readers_fd=..., is_reader=True)                   reads what another process writes
    The descriptors are duplicated. Raises DataError for a capacity below 1 MiB and StorageError where the mapping is
    refused, the file system is full, the file holds no arena of this version, or another process writes it.
    """

    def __cinit__(
        self, capacity_bytes=None, bytes seed=None, *, int fd=-1, int readers_fd=-1, uint64_t generation=1,
        bint is_reader=False, bint is_resumed=False,
    ):
        cdef void* base
        cdef bint is_new = not is_reader and not is_resumed
        self.view.fd = -1
        self.is_reader = is_reader
        self.is_shared = fd >= 0
        self.replaced = []
        self.capacity = checked_capacity(capacity_bytes) if is_new else capacity_of(fd)
        if self.is_shared:
            self.view.fd = os.dup(fd)
            if is_new:
                os.ftruncate(fd, self.capacity)
                if posix_fallocate(fd, 0, PAGE_SIZE):
                    raise StorageError("the file system of the arena is full; free some of it, or give another place")
            base = mapping(self.capacity, PROT_READ if is_reader else PROT_READ | PROT_WRITE, MAP_SHARED, fd)
        else:
            base = mapping(self.capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1)
        if base == MAP_FAILED:
            raise StorageError(
                f"the system refused to reserve {self.capacity} B for the arena; lower capacity_bytes"
            )
        # Point reads touch a random line of a random page: with 4 KiB pages each is a TLB miss as well.
        madvise(base, self.capacity, MADV_HUGEPAGE)
        self.view.base = <uint8_t*>base
        self.view.limit = self.capacity
        self.view.header = <ArenaHeader*>base
        if not is_new:
            generation = self.view.header.generation
        self.slots = ReaderSlots(os.dup(readers_fd) if self.is_shared else -1, not is_reader, generation)
        self.view.readers = &self.slots.readers
        if is_new:
            self.make(os.urandom(16) if seed is None else seed, generation)
        elif is_resumed:
            self.take_up()

    cdef make(self, bytes seed, uint64_t generation):
        cdef ArenaHeader* header = self.view.header
        if len(seed) != 16:
            raise DataError(f"an arena's seed has 16 bytes, not {len(seed)}")
        memcpy(header.seed, <const char*>seed, 16)
        header.layout_version = LAYOUT_VERSION
        header.endian = 1
        header.capacity = self.capacity
        header.generation = generation
        header.epoch = 1
        header.bump = pages(sizeof(ArenaHeader))
        header.used = header.bump
        header.reserve = pages(min(self.capacity // 64, 1 << 20))
        header.backed = header.bump if self.is_shared else self.capacity
        atomic_store_u64(&header.magic, MAGIC)

    cdef take_up(self):
        cdef ArenaHeader* header = self.view.header
        if not header.is_clean:
            raise StorageError("the arena was not let go of in order; build a new one")
        atomic_store_u32(&header.is_clean, 0)
        atomic_store_u32(&header.lock, 0)

    def __dealloc__(self):
        if self.view.base != NULL:
            munmap(self.view.base, self.capacity)
        if self.view.fd >= 0:
            os.close(self.view.fd)

    def clear(self):
        """Begin anew, empty, with the pages that it has. For a private arena; nothing refers into it, nobody reads."""
        if self.is_shared:
            raise StorageError("a shared arena can't be cleared: others read it")
        self.view.header.bump = pages(sizeof(ArenaHeader))
        self.view.header.used = self.view.header.bump
        self.view.header.free_at = 0

    # --- what processes tell each other

    @property
    def generation(self):
        return self.view.header.generation

    @property
    def has_writer(self):
        """True while the process that writes the arena lives. Asks the kernel: a few hundred nanoseconds."""
        return self.slots.has_writer

    @property
    def superseded(self):
        """The generation that took this one's place, or will once there is one; 0: none."""
        return atomic_load_u64(&self.view.header.superseded)

    @property
    def is_removed(self):
        """True once no name leads to its file any more: who opens it next finds another, or none."""
        return self.is_shared and os.fstat(self.view.fd).st_nlink == 0

    @property
    def position(self):
        """Writes before it are visible."""
        return atomic_load_u64(&self.view.header.position)

    @position.setter
    def position(self, uint64_t position):
        atomic_store_u64(&self.view.header.position, position)

    @property
    def catalogue_word(self):
        """Where the catalogue lies, in the low 46 bits, and its number; 0: there is none yet.

        Why a number: the place alone comes back with the catalogue after the next, and who looked at neither in between
        would miss both.
        """
        return atomic_load_u64(&self.view.header.catalogue)

    cpdef bint is_current(self, uint64_t catalogue_word) noexcept:
        """True while nothing took this arena's place, nor that of this catalogue."""
        return atomic_load_u64(&self.view.header.superseded) == 0 and (
            atomic_load_u64(&self.view.header.catalogue) == catalogue_word
        )

    @property
    def catalogue(self):
        """The bytes that `publish` was given last; empty where there are none. Raises StorageError: damaged."""
        cdef uint64_t at
        cdef uint64_t end
        cdef uint64_t size
        cdef uint64_t digest
        cdef int slot
        cdef bint is_whole = False
        while not is_whole:
            text, digest = b"", 0
            with nogil:
                slot = arena_pin(&self.view)
            pin_check(&self.view, slot)
            at = atomic_load_u64(&self.view.header.catalogue) & CATALOGUE_PLACE
            end = arena_end(&self.view)
            if 0 < at <= end - CATALOGUE_HEAD:
                size = (<uint64_t*>(self.view.base + at))[0]
                digest = (<uint64_t*>(self.view.base + at))[1]
                size = min(size, end - at - CATALOGUE_HEAD)
                text = (<const char*>(self.view.base + at + CATALOGUE_HEAD))[:size]
            is_whole = arena_unpin(&self.view, slot)
        if at and digest_of(text) != digest:
            raise StorageError("the arena's catalogue is damaged; restart the process that writes it")
        return text

    def publish(self, bytes catalogue not None):
        """Put a catalogue in the place of the one before. Raises StorageError: there is no room."""
        cdef uint64_t size = len(catalogue)
        cdef uint64_t at = extent_alloc(&self.view, CATALOGUE_HEAD + size, True)
        cdef uint64_t word = self.view.header.catalogue
        cdef uint64_t old = word & CATALOGUE_PLACE
        cdef uint64_t oldest
        if at == 0:
            raise StorageError(f"the arena has no room for a catalogue of {size} B; raise capacity_bytes")
        (<uint64_t*>(self.view.base + at))[0] = size
        (<uint64_t*>(self.view.base + at))[1] = digest_of(catalogue)
        memcpy(self.view.base + at + CATALOGUE_HEAD, <const char*>catalogue, size)
        atomic_store_u64(&self.view.header.catalogue, (word & ~CATALOGUE_PLACE) + CATALOGUE_PLACE + 1 | at)
        if old:
            size = CATALOGUE_HEAD + (<uint64_t*>(self.view.base + old))[0]
            self.replaced.append((epoch_advance(&self.view), old, size))
        oldest = epoch_oldest_pin(&self.view)
        while self.replaced and self.replaced[0][0] < oldest:
            _, old, size = self.replaced.pop(0)
            extent_free(&self.view, old, size)

    def let_go(self):
        """Nothing will be written any more: who opens it next may take it up as it is."""
        atomic_store_u32(&self.view.header.is_clean, 1)

    @property
    def is_clean(self):
        return bool(self.view.header.is_clean)

    def sweep(self, *limits):
        """See ReaderSlots.sweep."""
        return self.slots.sweep(atomic_load_u64(&self.view.header.epoch), *limits)

    @property
    def own_slots(self):
        """The reader slots that are this process's."""
        return self.slots.own

    @property
    def pinned(self):
        """See ReaderSlots.pinned."""
        return self.slots.pinned

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
        cdef int failed = 0
        if start >= end:
            return 0
        with nogil:
            failed = not pages_give(&self.view, start, end - start)
        if failed:
            return 0
        self.populated = end
        return end - start

    def map_pages(self, uint64_t start, uint64_t size):
        """Enter the pages of [start, start + size) into this process's page table, so that no read meets a fault.

        Returns the bytes of the arena that are in use: the end of what is worth mapping.
        """
        cdef uint64_t end = atomic_load_u64(&self.view.header.bump)
        if start < end:
            with nogil:
                madvise(self.view.base + start, min(size, end - start), POPULATE_READ)
        return end

    @property
    def used(self):
        """Bytes handed out, of `capacity`."""
        return atomic_load_u64(&self.view.header.used)


def supersede(int fd, uint64_t generation):
    """Tell the readers of the arena in this file, open for writing, which one is there in its place, or will be."""
    cdef void* base
    # Its writer may have died before it had a header: then nobody reads it, and a store to it would be a signal.
    if os.fstat(fd).st_size < PAGE_SIZE or posix_fallocate(fd, 0, PAGE_SIZE):
        return
    base = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if base == MAP_FAILED:
        raise StorageError("the system refused to map the old arena's header")
    atomic_store_u64(&(<ArenaHeader*>base).superseded, generation)
    munmap(base, PAGE_SIZE)


# --- extents ---------------------------------------------------------------------------------------------------------

cdef void arena_lock(ArenaHeader* header) noexcept nogil:
    while not atomic_swap_u32(&header.lock, 0, 1):
        cpu_relax()


cdef inline void arena_unlock(ArenaHeader* header) noexcept nogil:
    atomic_store_u32(&header.lock, 0)


cdef bint extent_back(ArenaView* arena, uint64_t end) noexcept nogil:
    """Have the file's pages below `end`; the lock is held. False: the file system is full."""
    cdef ArenaHeader* header = arena.header
    cdef uint64_t wanted
    if end <= header.backed:
        return True
    wanted = (max(end, header.backed + BACKED_AT_ONCE) + HUGE_SIZE - 1) & ~(<uint64_t>HUGE_SIZE - 1)
    wanted = min(wanted, header.capacity)
    if not pages_give(arena, header.backed, wanted - header.backed):
        wanted = end
        if not pages_give(arena, header.backed, wanted - header.backed):
            return False
    atomic_store_u64(&header.backed, wanted)
    return True


cdef bint pages_give(const ArenaView* arena, uint64_t start, uint64_t size) noexcept nogil:
    """Have the system give pages to these bytes, the first ones first. False: it has no more.

    Why collapse: a file system in memory gives small pages unless it is mounted otherwise, but makes them into huge
    ones for who asks (Linux 6.1). A page of each must be there: in a hole it sees nothing to collapse. That it cannot,
    or has no huge pages left, is no error: what it leaves gets small ones.
    """
    cdef uint64_t end = start + size
    cdef uint64_t at = start
    cdef uint64_t next_at
    while at < end:
        next_at = min((at + HUGE_SIZE) & ~(<uint64_t>HUGE_SIZE - 1), end)
        if arena.fd >= 0 and next_at - at == HUGE_SIZE and madvise(arena.base + at, PAGE_SIZE, POPULATE_WRITE) == 0:
            madvise(arena.base + at, HUGE_SIZE, COLLAPSE)
        if not pages_back(arena, at, next_at - at):
            return False
        at = next_at
    return True


cdef bint pages_back(const ArenaView* arena, uint64_t start, uint64_t size) noexcept nogil:
    """Why not by posix_fallocate alone: it takes small pages where the mapping asked for huge ones."""
    return madvise(arena.base + start, size, POPULATE_WRITE) == 0 or (
        arena.fd >= 0 and posix_fallocate(arena.fd, start, size) == 0
    )


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
        if result == 0 and header.bump + size <= header.capacity and extent_back(arena, header.bump + size):
            result = header.bump
            atomic_store_u64(&header.bump, header.bump + size)
        if result != 0:
            atomic_store_u64(&header.used, header.used + size)
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
    atomic_store_u64(&header.used, header.used - size)
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
    if size <= AHEAD_MAX:
        prefetch_far(<uint64_t>arena.base + heap.span_at, size)  # where the next one, most often as large, is written
    return at


cdef void heap_free(ArenaView* arena, HeapHeader* heap, uint64_t at, uint64_t size) noexcept nogil:
    if size > HEAP_SIZE_MAX:
        extent_free(arena, at, size)
    else:
        ff_poison(arena.base + at, size)
        heap_push(arena, heap, at, heap_class(size))


# --- epochs ----------------------------------------------------------------------------------------------------------

cdef int arena_try_pin(const ArenaView* arena) noexcept nogil:
    return reader_try_pin(arena.readers, &arena.header.epoch)


cdef int arena_pin(const ArenaView* arena) noexcept nogil:
    return reader_pin(arena.readers, &arena.header.epoch)


cdef int pin_check(const ArenaView* arena, int slot) except -1:
    if slot >= 0:
        return 0
    if arena.readers.fd == READERS_LOST:
        raise StorageError("a child of fork could not open the reader table; attach anew, with a file to spare")
    raise StorageError("all slots of readers are taken, and were for seconds; let other processes or threads end first")


cdef bint arena_unpin(const ArenaView* arena, int slot) noexcept nogil:
    return reader_unpin(arena.readers, slot)


cdef uint64_t epoch_advance(ArenaView* arena) noexcept nogil:
    """The epoch at which everything unpublished so far is retired."""
    return atomic_add_u64(&arena.header.epoch, 1)


cdef uint64_t epoch_oldest_pin(ArenaView* arena) noexcept nogil:
    """See readers_oldest_pin."""
    return readers_oldest_pin(arena.readers)
