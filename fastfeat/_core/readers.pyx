"""The reader table: who is inside the arena, and since which epoch.

    slots [0, 128)      the writing process's own; of a private arena all there are
    slots [128, 1024)   claimed by other processes, each by holding the lock of that byte of the table's file

Invariant:   what a reader may still see is never handed out again, unless the reader was expelled, and then its answer
             is thrown away. A writer unpublishes an offset, takes the epoch (a full fence) and frees the bytes only
             when no slot is pinned at that epoch or before.
Ordering:    reader_pin is a compare-and-swap, a full fence, before the reader's first load from the arena; it pairs
             with the fence in readers_oldest_pin. If the writer's scan misses the pin, the reader's loads come after
             the writer's unpublishing stores, so it can't find the retired offset. A release store would not do: the
             pin could drift after the loads it protects. A pin may name an older epoch than the current one; that only
             keeps more.
             `high` is raised before a claimed slot is first pinned, and by a full fence; so a scan that stops below a
             slot missed its pin as well, and the same argument holds.
Expelling:   a pin that has stood in the way for long is taken away: pinned -> EXPELLED by compare-and-swap, then the
             memory is used again. unpin is one exchange: it finds either its own epoch, and then every load of the read
             came before any reuse, or EXPELLED, and then the read is made again. Until it notices, the expelled reader
             may meet any bytes at all: timeline.pyx and cells.pyx hold whatever they read to the arena's bounds.
Death:       the kernel drops a dead process's locks. The writer, who finds the lock of a slot in its way free, takes
             it, clears the pin and drops it again; while it has it nobody else can claim the slot, so the pin that it
             clears is the dead one's. A number of a process would not do: it may be another's by then.
Fork:        see readers.h.
Concurrency: threads of one process share its slots; a free one is found by compare-and-swap.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import os
import time

from ..errors import StorageError
from .atomics cimport (
    atomic_exchange_u64, atomic_fence, atomic_load_u32, atomic_load_u64, atomic_store_u32, atomic_store_u64,
    atomic_swap_u32, atomic_swap_u64, cpu_relax, ff_seeded_bug,
)
from .layout cimport MAGIC, READER_SLOTS, WRITER_SLOTS, ReaderTable

cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "readers.h" nogil:
    enum:
        FF_OWN_MAX
    int ff_readers_watch_forks()
    void ff_readers_add(Readers* readers)
    void ff_readers_drop(Readers* readers)
    bint ff_lock_take(int fd, int64_t at)
    void ff_lock_drop(int fd, int64_t at)
    bint ff_lock_is_held(int fd, int64_t at)

cdef uint64_t EXPELLED = <uint64_t>1 << 63
cdef int64_t WRITER_LOCK = 1 << 20    # the byte whose lock the writing process holds

cdef enum:
    WAIT_S = 10               # for a slot, where all are taken: whoever is inside stays for microseconds

DEAD_AFTER_S = 0.1            # a pin of so long is looked at: may its owner be dead?
EXPEL_AFTER_S = 2.0           # and so long is too long for anyone

if ff_readers_watch_forks():
    raise MemoryError("no memory to watch forks")


cdef class ReaderSlots:
    """A reader table as one process sees it.

    fd: of the table's file, which this object closes; -1: a private table. is_writer: this process may write the arena;
    it makes the table. Raises StorageError: no table of this generation; another writer has it.
    """

    def __cinit__(self, int fd=-1, bint is_writer=True, uint64_t generation=1):
        self.readers.fd = fd
        self.readers.is_writer = is_writer
        self.size = sizeof(ReaderTable)
        if fd < 0:
            self.readers.table = aligned_alloc(64, self.size)
            if self.readers.table == NULL:
                raise MemoryError("no memory for a reader table")
            memset(self.readers.table, 0, self.size)
            self.own_first()
            return
        if is_writer:
            # Why first: what follows is written over what another writer may be using.
            if not ff_lock_take(fd, WRITER_LOCK):
                raise StorageError("another process writes this arena; stop it first")
            os.truncate(fd, self.size)
            os.posix_fallocate(fd, 0, self.size)
            self.map_file()
            self.begin_writing(generation)
        else:
            if os.fstat(fd).st_size < <int64_t>self.size:
                raise StorageError("the file of the readers is too short; its server is not of this version")
            self.map_file()
            if atomic_load_u64(&table_of(&self.readers).magic) != MAGIC or (
                table_of(&self.readers).generation != generation
            ):
                raise StorageError("the file of the readers is not of this arena; attach again")
            # Why now: the first read would wait for a slot, and for ever where other processes have them all.
            if not readers_claim(&self.readers):
                raise StorageError(
                    f"all {READER_SLOTS - WRITER_SLOTS} slots of readers are taken; let other processes detach first"
                )
        ff_readers_add(&self.readers)

    cdef map_file(self):
        cdef void* at = mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED, self.readers.fd, 0)
        if at == MAP_FAILED:
            raise StorageError("the system refused to map the reader table")
        self.readers.table = at

    cdef own_first(self):
        """Have the slots of the writing process; one before may have died inside. Those of others stay theirs."""
        cdef uint32_t i
        for i in range(WRITER_SLOTS):
            self.readers.own[i] = i
            atomic_store_u64(&table_of(&self.readers).slots[i].pinned, 0)
        raise_high(table_of(&self.readers), WRITER_SLOTS)
        self.readers.own_count = WRITER_SLOTS

    cdef begin_writing(self, uint64_t generation):
        self.own_first()
        table_of(&self.readers).generation = generation
        atomic_store_u64(&table_of(&self.readers).magic, MAGIC)
        self.seen = <uint64_t*>calloc(READER_SLOTS, 8)
        self.since = <double*>calloc(READER_SLOTS, 8)
        if self.seen == NULL or self.since == NULL:
            raise MemoryError("no memory for a reader table")

    def __dealloc__(self):
        if self.readers.fd == -1:
            free(self.readers.table)
        else:
            ff_readers_drop(&self.readers)
            if self.readers.fd >= 0:
                os.close(self.readers.fd)
            if self.readers.table != NULL:
                munmap(self.readers.table, self.size)
        free(self.seen)
        free(self.since)

    @property
    def has_writer(self):
        """True while the process that writes the arena lives. Asks the kernel."""
        return self.readers.is_writer or ff_lock_is_held(self.readers.fd, WRITER_LOCK)

    @property
    def own(self):
        """The slots that are this process's."""
        return [self.readers.own[i] for i in range(atomic_load_u32(&self.readers.own_count))]

    @property
    def pinned(self):
        """{slot: epoch} of the readers that are inside at this moment; the epoch is None for one that was expelled."""
        cdef uint32_t slot
        cdef uint64_t pin
        found = {}
        for slot in range(atomic_load_u32(&table_of(&self.readers).high)):
            pin = atomic_load_u64(&table_of(&self.readers).slots[slot].pinned)
            if pin:
                found[slot] = None if pin & EXPELLED else pin
        return found

    def sweep(self, uint64_t epoch, double dead_after_s=DEAD_AFTER_S, double expel_after_s=EXPEL_AFTER_S):
        """Clear the pins of dead processes and expel readers that have been inside for too long; how many of both.

        epoch: of now; a pin of this very epoch is in nobody's way and is no reader's fault. For the writer.
        """
        cdef uint32_t slot
        cdef uint64_t pin
        cdef double now = time.monotonic()
        cdef int dead = 0
        cdef int expelled = 0
        if self.seen == NULL:
            return 0, 0
        for slot in range(WRITER_SLOTS, atomic_load_u32(&table_of(&self.readers).high)):
            pin = atomic_load_u64(&table_of(&self.readers).slots[slot].pinned)
            if pin == 0 or pin & EXPELLED:
                self.seen[slot] = 0
            elif pin != self.seen[slot]:
                self.seen[slot] = pin
                self.since[slot] = now
            elif now - self.since[slot] >= dead_after_s and self.clear_dead(slot):
                dead += 1
            elif now - self.since[slot] >= expel_after_s and pin != epoch:
                expelled += atomic_swap_u64(&table_of(&self.readers).slots[slot].pinned, pin, EXPELLED)
        return dead, expelled

    cdef bint clear_dead(self, uint32_t slot):
        """True where the slot's owner is gone; its pin is then, too."""
        if not ff_lock_take(self.readers.fd, slot):
            return False
        atomic_store_u64(&table_of(&self.readers).slots[slot].pinned, 0)
        ff_lock_drop(self.readers.fd, slot)
        return True


# --- readers ---------------------------------------------------------------------------------------------------------

cdef int reader_try_pin(Readers* readers, const uint64_t* epoch) noexcept nogil:
    """Enter: nothing retired from now on is reused before reader_unpin. Returns the slot taken, -1: none is free."""
    cdef uint32_t i
    cdef uint64_t* pinned
    for i in range(atomic_load_u32(&readers.own_count)):
        pinned = &table_of(readers).slots[readers.own[i]].pinned
        if atomic_load_u64(pinned) == 0 and atomic_swap_u64(pinned, 0, atomic_load_u64(epoch)):
            return readers.own[i]
    return -1


cdef int reader_pin(Readers* readers, const uint64_t* epoch) noexcept nogil:
    """Enter, after claiming a slot or waiting for one; not with the GIL, which a reader inside may need to leave."""
    cdef int slot = reader_try_pin(readers, epoch)
    cdef int64_t until = 0
    while slot < 0:
        if not readers_claim(readers):
            if readers.fd == READERS_LOST or until and monotonic_s() > until:
                return -1
            if until == 0:
                until = monotonic_s() + WAIT_S
            sched_yield()                 # a processor for those inside, which may be many more than there are
        slot = reader_try_pin(readers, epoch)
    return slot


cdef int64_t monotonic_s() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec


cdef bint reader_unpin(Readers* readers, int slot) noexcept nogil:
    cdef uint64_t* pinned = &table_of(readers).slots[slot].pinned
    if readers.fd == -1 or readers.is_writer:
        atomic_store_u64(pinned, 0)
        return True
    return (atomic_exchange_u64(pinned, 0) & EXPELLED) == 0 or ff_seeded_bug("unpin_ignores_expelled")


cdef bint readers_claim(Readers* readers) noexcept nogil:
    """One more slot of this process's own. False: there is none, or it has enough."""
    cdef uint32_t count
    cdef uint32_t slot
    cdef bint is_claimed = False
    if readers.fd < 0 or readers.is_writer:
        return False
    while not atomic_swap_u32(&readers.lock, 0, 1):
        cpu_relax()
    count = readers.own_count
    if count < FF_OWN_MAX:
        # Why from the last own one on: the kernel would give this process the locks that it has once more.
        for slot in range(readers.own[count - 1] + 1 if count else WRITER_SLOTS, READER_SLOTS):
            if ff_lock_take(readers.fd, slot):
                atomic_store_u64(&table_of(readers).slots[slot].pinned, 0)     # a dead owner's
                raise_high(table_of(readers), slot + 1)
                readers.own[count] = slot
                atomic_store_u32(&readers.own_count, count + 1)
                is_claimed = True
                break
    atomic_store_u32(&readers.lock, 0)
    return is_claimed


cdef void raise_high(ReaderTable* table, uint32_t high) noexcept nogil:
    cdef uint32_t now = atomic_load_u32(&table.high)
    while now < high and not atomic_swap_u32(&table.high, now, high):
        now = atomic_load_u32(&table.high)


# --- the writer ------------------------------------------------------------------------------------------------------

cdef uint64_t readers_oldest_pin(Readers* readers) noexcept nogil:
    """What was retired at an epoch before the returned one can't be seen by anyone whose answer will count."""
    cdef uint64_t oldest = ~<uint64_t>0
    cdef uint64_t pinned
    cdef uint32_t slot
    if ff_seeded_bug("reclaim_ignores_pins"):
        return oldest
    atomic_fence()
    for slot in range(atomic_load_u32(&table_of(readers).high)):
        pinned = atomic_load_u64(&table_of(readers).slots[slot].pinned)
        if pinned != 0 and pinned < oldest:          # EXPELLED is greater than every epoch
            oldest = pinned
    return oldest
