"""Table: the rows of one view, and the border where Python writes them.

    RowBatch --group, prepare, publish (writer.pyx)--> shards --read (timeline.pyx)--> rows

Promise:     all of a batch becomes visible or, on any error, nothing; other tables and readers go on meanwhile. It is
             published entity by entity: each one's rows at once, and a batch read may see some entities before others.
Concurrency: a lock admits one writing call per table at a time; inside it, threads may prepare disjoint ranges of
             shards. The GIL is released
             around the work. Readers take no lock.
Errors:      ArenaFull after waiting for readers to let go of what was replaced; DataError from columns.pyx and
             request.pyx.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

cimport cython

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from ..errors import ArenaFull, DataError, ReadOnly, StorageError
from .arena cimport Arena, extent_alloc, extent_free
from .arena import digest_of
from .atomics cimport atomic_load_u64, atomic_store_u64
from .builder cimport RowRef, ShardWriter, writer_free_memory
from .columns cimport (
    FLOAT64, STRING, KeyView, RowBatch, RowLayout, batch_from_arrow, batch_imaged, batch_of_fields,
)
from .ids cimport ids_free, ids_settle, ids_sift, ids_undo
from .index cimport SLOTS_BITS_MIN, slots_alloc, slots_size
from .layout cimport SHARDS_MAX, STAMP_SIZE, ShardHeader, TableHeader
from .records cimport batch_from_bytes, batch_parts
from .request cimport Request
from .status cimport ARENA_FULL, NO_MEMORY, OK, Status, raise_for
from .timeline cimport SumColumn, keys_hash
from .values cimport batch_from_rows
from .writer cimport (
    STAGED_ROWS, Grouping, grouping_free, grouping_make, shards_abort, shards_commit, shards_prepare,
    shards_prepare_delete, shards_prepare_heads, shards_prepare_ordered, shards_reclaim,
)

cdef enum:
    BLOCK_SIZE_AIM = 16384        # a block's bytes when full: a late row or a full tail copies about this much
    BLOCK_ROWS_MIN = 4
    BLOCK_ROWS_MAX = 128
    EVENT_BLOCK_SIZE_AIM = 65536  # of an event view, whose windows cross few large blocks sooner than many small ones
    EVENT_BLOCK_ROWS_MAX = 1024
    PARALLEL_ROWS_MIN = 8192      # fewer rows are not worth a second thread

DURATION_MAX_US = 1 << 62         # longer than all of time: no difference to it, and no overflow
DELETE_PART = 64                  # entities: their tombstones fit the reserve of the least arena
RECLAIM_WAIT_S = 1.0              # how long a writer that finds the arena full waits for readers to leave


cdef class Clock:
    """Now, in microseconds since 1970 UTC: the system's clock, or `function`, which drives time in tests."""

    def __init__(self, function=None):
        self.function = function

    cdef int64_t read(self) except? -1:
        cdef timespec now
        if self.function is not None:
            return self.function()
        clock_gettime(CLOCK_REALTIME, &now)
        return <int64_t>now.tv_sec * 1_000_000 + now.tv_nsec // 1000

    def now(self):
        """Microseconds since 1970 UTC."""
        return self.read()


cdef uint32_t shard_bits_for(uint64_t capacity):
    """64 shards in any arena that serves; fewer in a tiny one, where each shard's own page would fill it."""
    if capacity >= 256 << 20:
        return 6
    return 4 if capacity >= 32 << 20 else 2 if capacity >= 4 << 20 else 0


cdef int check_count(RowBatch batch) except -1:
    cdef int64_t count = batch.view.count
    if count > 0x7FFFFFFF:
        raise DataError(f"view {batch.layout.view!r}: a batch of {count} rows, at most 2**31 - 1; split it")
    return 0


@cython.no_gc_clear           # __dealloc__ needs the arena, also when a cycle is collected
cdef class Table:
    """The rows of one view.

    fields: (name, dtype, nullable) in schema order. ttl_us None: for ever. keep_rows and keep_us None: keep all;
    keep_rows 1 is keep="latest". is_event: blocks keep sums of their numbers, for windows. event_id: the field of which
    an entity has no value twice (ids.pyx). header_at: of a table that is there, as another object's `header_at` gave
    it: the arena's writer goes on with it, others only read it. Raises ArenaFull where the arena has no room for an
    empty table.
    """

    def __cinit__(
        self, Arena arena, Clock clock, str name, key_names, key_types, fields, ttl_us, keep_rows, keep_us, header_at=0,
        is_event=False, event_id=None,
    ):
        self.arena = arena
        self.clock = clock
        self.name = name
        self.lock = threading.Lock()
        self.layout = RowLayout(name, key_names, key_types, fields)
        self.view.arena = arena.view
        memcpy(self.view.seed, arena.view.header.seed, 16)
        self.view.row_stride = self.layout.row_stride
        self.view.heap_offset = self.layout.heap_offset
        if is_event:
            self.place_sums()
        aim, most = (EVENT_BLOCK_SIZE_AIM, EVENT_BLOCK_ROWS_MAX) if is_event else (BLOCK_SIZE_AIM, BLOCK_ROWS_MAX)
        rows = aim // (STAMP_SIZE + self.layout.row_stride + 2 * self.view.sums_count)
        self.view.rows_max = min(max(rows, BLOCK_ROWS_MIN), most)
        self.view.keep_rows = 0 if keep_rows is None else min(keep_rows, 0xFFFFFFFF)
        self.view.keep_us = -1 if keep_us is None else min(keep_us, DURATION_MAX_US)
        self.set_ttl(ttl_us)
        self.view.shard_bits = shard_bits_for(arena.capacity)
        if event_id is not None:
            self.ids.field = self.layout.names.index(event_id)
            self.ids.offset = self.layout.fields[self.ids.field].offset
            self.ids.width = self.layout.fields[self.ids.field].width
            self.ids.is_variable = self.layout.fields[self.ids.field].kind >= STRING
            self.has_ids = True
        if header_at:
            self.take_up(header_at)
        else:
            self.make_shards()

    cdef int place_sums(self) except -1:
        """Which columns the blocks of an event view keep sums of: the numbers."""
        cdef uint32_t i
        cdef SumColumn* column
        self.sums = <SumColumn*>calloc(self.layout.fields_count, sizeof(SumColumn))
        if self.sums == NULL:
            raise MemoryError(f"view {self.name!r}: no memory for its layout")
        for i in range(self.layout.fields_count):
            if self.layout.fields[i].kind <= FLOAT64:
                column = &self.sums[self.view.sums_count]
                column.field = i
                column.offset = self.layout.fields[i].offset
                column.kind = self.layout.fields[i].kind
                self.view.sums_count += 1
        self.view.sums = self.sums
        return 0

    cdef void free_writers(self) noexcept:
        cdef uint32_t shard
        if self.writers != NULL:
            for shard in range(<uint32_t>1 << self.view.shard_bits):
                writer_free_memory(&self.writers[shard])
        free(self.writers)
        self.writers = NULL

    def __dealloc__(self):
        free(self.sums)
        ids_free(&self.ids)
        self.free_writers()
        # Not in a child of fork, whose parent's arena it is.
        if self.header != NULL and not self.is_kept and self.arena.slots.readers.is_writer and not self.has_spans():
            self.give_back_shards(<uint32_t>1 << self.view.shard_bits)

    cdef int make_shards(self) except -1:
        cdef uint32_t shards = <uint32_t>1 << self.view.shard_bits
        cdef uint32_t shard
        self.writers = <ShardWriter*>calloc(shards, sizeof(ShardWriter))
        if self.writers == NULL:
            raise MemoryError(f"view {self.name!r}: no memory for its writers")
        self.header_size = sizeof(TableHeader) - (SHARDS_MAX - shards) * sizeof(ShardHeader)
        self.header_at = extent_alloc(&self.arena.view, self.header_size, False)
        if self.header_at == 0:
            raise_for(ARENA_FULL, self.full_message())
        self.header = <TableHeader*>(self.arena.view.base + self.header_at)
        memset(self.header, 0, self.header_size)
        self.header.shard_bits = self.view.shard_bits
        self.view.slots = self.header.slots
        self.view.shards = self.header.shards
        for shard in range(shards):
            self.header.slots[shard] = slots_alloc(&self.arena.view, SLOTS_BITS_MIN)
            if self.header.slots[shard] == 0:
                self.give_back_shards(shard)
                raise_for(ARENA_FULL, self.full_message())
        return 0

    cdef int take_up(self, uint64_t header_at) except -1:
        """Go on with a table that is in the arena."""
        cdef uint32_t shards = <uint32_t>1 << self.view.shard_bits
        self.header_size = sizeof(TableHeader) - (SHARDS_MAX - shards) * sizeof(ShardHeader)
        if header_at > self.arena.capacity - self.header_size or header_at % 8:
            raise StorageError(f"view {self.name!r}: its table is said to lie at {header_at}, outside of the arena")
        self.header_at = header_at
        self.is_kept = True
        self.header = <TableHeader*>(self.arena.view.base + header_at)
        if self.header.shard_bits != self.view.shard_bits:
            raise StorageError(f"view {self.name!r}: its table at {header_at} is none; the arena is damaged")
        self.view.slots = self.header.slots
        self.view.shards = self.header.shards
        if not self.arena.is_reader:
            self.writers = <ShardWriter*>calloc(shards, sizeof(ShardWriter))
            if self.writers == NULL:
                raise MemoryError(f"view {self.name!r}: no memory for its writers")
        return 0

    @property
    def fingerprint(self):
        """What a row looks like in memory: two programs that differ in it can't read each other's tables."""
        fields = [(self.layout.fields[i].offset, self.layout.fields[i].width, self.layout.fields[i].kind)
                  for i in range(self.layout.fields_count)]
        keys = list(zip(self.layout.key_names, self.layout.key_types))
        shape = [keys, self.layout.names, fields, self.view.row_stride, self.view.heap_offset, self.view.rows_max,
                 self.view.sums_count]
        return digest_of(repr(shape).encode())

    def tidy(self):
        """Free what readers have left, unless somebody writes at this moment, who will do it."""
        if self.lock.acquire(False):
            try:
                if self.waiting():
                    self.reclaim()
            finally:
                self.lock.release()

    @property
    def is_quiet(self):
        """True where nobody writes at this moment and nothing that was replaced waits for readers to leave."""
        if not self.lock.acquire(False):
            return False
        try:
            return self.waiting() == 0
        finally:
            self.lock.release()

    cdef bint has_spans(self):
        """True where some shard ever held a row."""
        cdef uint32_t shard
        for shard in range(<uint32_t>1 << self.view.shard_bits):
            if self.view.shards[shard].heap.span_end:
                return True
        return False

    cdef give_back_shards(self, uint32_t shards):
        """Free an empty table's extents: nothing was ever published in them."""
        cdef uint32_t shard
        cdef uint64_t word
        for shard in range(shards):
            word = self.header.slots[shard]
            extent_free(&self.view.arena, word & ~<uint64_t>63, slots_size(word))
        extent_free(&self.view.arena, self.header_at, self.header_size)
        self.header = NULL

    def full_message(self):
        return (
            f"view {self.name!r}: the arena is full, {self.arena.used} of {self.arena.capacity} B are in use; the write"
            " changed nothing; raise capacity_bytes, or delete entities or keep fewer rows"
        )

    def set_ttl(self, ttl_us):
        """Change the ttl; None is for ever. Reads that begin later use it."""
        cdef int64_t ttl = -1 if ttl_us is None else min(ttl_us, DURATION_MAX_US)
        atomic_store_u64(<uint64_t*>&self.view.ttl_us, <uint64_t>ttl)

    @property
    def rows(self):
        """Rows in memory."""
        return sum(atomic_load_u64(&self.view.shards[shard].rows) for shard in range(1 << self.view.shard_bits))

    @property
    def entities(self):
        """Entities with rows in memory."""
        return sum(atomic_load_u64(&self.view.shards[shard].live) for shard in range(1 << self.view.shard_bits))

    # --- writing

    def append_arrow(self, batch, threads=1):
        """Append a normalized record batch: join keys, event_time, created_time, then the fields in schema order.

        batch: has __arrow_c_array__; integers of keys as int64 (uint64 keys as uint64), times as int64 us, fields in
        the
               Arrow type of dtypes.py; no nulls in keys, times, vector and list elements or non-nullable fields.
        All rows become visible or none. Raises DataError (columns of other names or types) and ArenaFull.
        """
        self.append(batch_from_arrow(self.layout, batch), threads)

    def append_rows(self, rows, created_us):
        """Append rows of Python values (a sequence of dicts): join keys, every field and "event_timestamp".

        All rows become visible or none. Raises DataError that names row and field, and ArenaFull.
        """
        self.append(batch_from_rows(self.layout, rows, created_us), 1)

    cdef int append(self, RowBatch batch, uint32_t threads) except -1:
        if batch.view.count == 0:
            return 0
        check_count(batch)
        with self.lock:
            batch.view.sequence = self.sequence
            self.apply(Append(self, batch, threads))
            self.sequence += batch.view.count
        return 0

    def append_ordered(self, RowBatch keys, fields, const int64_t[:, ::1] stamps, const int64_t[::1] begins):
        """Append rows that lie entity by entity, each one's in order, as Ordering.entities_of puts them.

        keys: of each entity. fields: a record batch, as append_arrow takes them. Raises ArenaFull, DataError (also for
        a table of events with ids, whose rows must be sifted on their way in).
        """
        if self.has_ids:
            raise DataError(f"view {self.name!r} has an event id; append its rows by prepare")
        cdef RowBatch batch = batch_of_fields(self.layout, fields, stamps)
        if batch.view.count == 0:
            return
        check_count(batch)
        if keys.layout.key_names != self.layout.key_names or keys.layout.key_types != self.layout.key_types:
            raise DataError(f"view {self.name!r}: its keys are {self.layout.key_names}, not {keys.layout.key_names}")
        if begins.shape[0] != keys.view.count + 1 or begins[0] != 0 or begins[keys.view.count] != batch.view.count:
            raise DataError(f"view {self.name!r}: the rows of {len(keys)} entities do not end where {len(batch)} end")
        with self.lock:
            self.apply(Ordered(self, keys, batch, begins))

    def clear(self):
        """Forget every row. For a table that has a private arena to itself, which nobody reads meanwhile."""
        with self.lock:
            self.free_writers()
            self.ids.is_made = False      # the index is then made anew
            self.arena.clear()
            self.make_shards()

    # --- writing in steps, for whoever logs between preparing and publishing

    def rows_batch(self, rows, created_us):
        """Check and encode rows of Python values. Raises DataError that names row and field."""
        return batch_from_rows(self.layout, rows, created_us)

    def arrow_batch(self, batch):
        """Check a normalized record batch (see append_arrow) and encode its rows as a log keeps them."""
        return batch_imaged(batch_from_arrow(self.layout, batch))

    def borrowed_batch(self, batch):
        """Check a normalized record batch (see append_arrow) and borrow its memory."""
        return batch_from_arrow(self.layout, batch)

    def bytes_batch(self, data):
        """The rows of a record (bytes-like) that `record` made. Raises LayoutMismatch, LogCorrupt."""
        return batch_from_bytes(self.layout, data)

    def record(self, RowBatch batch, sequence):
        """The bytes, in parts, that a log keeps of these rows; valid while the batch lives."""
        return batch_parts(batch, sequence)

    def prepare(self, RowBatch batch, sequence=None, threads=1):
        """Prepare rows aside: nobody sees them until the change's commit(); abort() gives everything back.

        sequence: of row 0, greater than that of any row before; None: the batch's own. The table takes no other write
        until then. Raises ArenaFull, with nothing changed.
        """
        check_count(batch)
        if sequence is not None:
            batch.view.sequence = sequence
        self.lock.acquire()
        return self.prepared(lambda: Append(self, batch, threads))

    def prepare_delete(self, entity_rows, created_us, low=0, high=None):
        """Prepare the delete of entities [low, high) of those named, as `prepare` does rows."""
        cdef Request keys = Request(self.layout.key_names, self.layout.key_types)
        keys.set_rows(entity_rows)
        self.lock.acquire()
        return self.prepared(lambda: Delete(self, keys, created_us, low, keys.count if high is None else high))

    def prepare_heads(self, entity_rows, heads):
        """Prepare what entities remember of rows that are gone.

        heads: int64 [n, 7]: deleted_us (-2**63: never), has_dropped (0 or 1), then the least event and created time,
        the greatest created time, and the last row's event and created time of the dropped rows.
        """
        cdef Request keys = Request(self.layout.key_names, self.layout.key_types)
        keys.set_rows(entity_rows)
        self.lock.acquire()
        return self.prepared(lambda: Heads(self, keys, heads))

    def restore_shard(self, RowBatch batch, uint32_t shard):
        """Append rows that all belong to one shard, with the sequences they bring, while a store is being opened.

        Other threads may restore other shards meanwhile; nobody may write otherwise. Raises ArenaFull, and DataError
        where a row belongs elsewhere; nothing of the batch is there then.
        """
        cdef Append change
        cdef Status status
        check_count(batch)
        change = Append(self, batch, 1, is_sifted=False)      # they come from a table
        change.check_shard(shard)
        status = change.prepare_range(shard, shard + 1)
        with nogil:
            if status == OK:
                shards_commit(&self.view, self.writers, shard, shard + 1)
                shards_reclaim(&self.view, self.writers, shard, shard + 1)
            else:
                shards_abort(&self.view, self.writers, shard, shard + 1)
        raise_for(status, self.full_message() if status == ARENA_FULL else f"view {self.name!r}: no memory")

    def prepared(self, make):
        """The change that `make` makes, prepared; the lock, which is held, is let go of on an error."""
        try:
            change = make()
            self.make_ready(change)
            return change
        except BaseException:
            self.lock.release()
            raise

    def delete(self, entity_rows, created_us):
        """Delete entities: every row created before `created_us` leaves every answer at once.

        entity_rows: a list of dicts of join keys, or a dict of columns. Raises DataError and ArenaFull.
        """
        cdef Request keys = Request(self.layout.key_names, self.layout.key_types)
        keys.set_rows(entity_rows)
        if keys.count == 0:
            return
        with self.lock:
            try:
                self.apply(Delete(self, keys, created_us, 0, keys.count))
            except ArenaFull:
                # In small parts, each living on what the one before gave back: forgetting must not need room.
                self.delete_in_parts(keys, created_us)

    def delete_in_parts(self, Request keys, created_us):
        """Delete part by part. Raises ArenaFull that says how far it came."""
        for low in range(0, keys.count, DELETE_PART):
            try:
                self.apply(Delete(self, keys, created_us, low, min(low + DELETE_PART, keys.count)))
            except ArenaFull:
                raise ArenaFull(
                    f"view {self.name!r}: the arena is full: {low} of {keys.count} entities are deleted, the rest are"
                    " as they were; raise capacity_bytes and delete again"
                ) from None

    def apply(self, change):
        """Prepare and publish."""
        self.make_ready(change)
        self.publish()

    def make_ready(self, change):
        """Prepare; on a full arena wait for readers to leave, reclaim and try once more."""
        cdef Status status = NO_MEMORY
        try:
            status = change.prepare()
            if status == ARENA_FULL and self.reclaim_waiting():
                status = change.prepare()
        finally:
            if status != OK:
                ids_undo(&self.ids)
        if status != OK:
            self.reclaim()
            raise_for(status, self.full_message() if status == ARENA_FULL else f"view {self.name!r}: no memory")

    def publish(self):
        """Make what was prepared visible. Can't fail."""
        with nogil:
            shards_commit(&self.view, self.writers, 0, <uint32_t>1 << self.view.shard_bits)
            ids_settle(&self.ids)
        self.reclaim()

    def reclaim(self):
        """Free what was replaced and no reader can see any more."""
        with nogil:
            shards_reclaim(&self.view, self.writers, 0, <uint32_t>1 << self.view.shard_bits)

    def reclaim_waiting(self):
        """Reclaim until nothing waits for a reader or the time is up. True where something was freed."""
        cdef uint64_t before = self.waiting()
        deadline = time.monotonic() + RECLAIM_WAIT_S
        while self.waiting() and time.monotonic() < deadline:
            self.arena.sweep(0.05, 0.5)
            self.reclaim()
            time.sleep(0)
        return self.waiting() < before

    cdef uint64_t waiting(self):
        """Pieces that wait for readers to leave. For who holds the lock."""
        cdef uint64_t count = 0
        cdef uint32_t shard
        for shard in range(<uint32_t>1 << self.view.shard_bits):
            count += self.writers[shard].retired.count - self.writers[shard].retired_first
        return count


cdef class Change:
    """A write on its way into a table: its keys hashed and its rows grouped by entity."""

    cdef Table table
    cdef uint64_t* hashes
    cdef Grouping group

    def __dealloc__(self):
        free(self.hashes)
        grouping_free(&self.group)

    def commit(self):
        """Publish what Table.prepare prepared. Can't fail."""
        self.table.publish()
        self.table.lock.release()

    def abort(self):
        """Give back what Table.prepare prepared: nobody saw anything."""
        with nogil:
            shards_abort(&self.table.view, self.table.writers, 0, <uint32_t>1 << self.table.view.shard_bits)
            ids_undo(&self.table.ids)
        self.table.reclaim()
        self.table.lock.release()

    cdef int make(self, Table table, const KeyView* keys) except -1:
        cdef Status status
        cdef str what = f"view {table.name!r}: no memory for a write of {keys.count} rows; write fewer at once"
        if table.arena.is_reader:
            raise ReadOnly(f"view {table.name!r}: another process writes this arena; send writes to it")
        self.table = table
        self.hashes = <uint64_t*>malloc(keys.count * 8)
        if self.hashes == NULL:
            raise MemoryError(what)
        with nogil:
            keys_hash(&table.view, keys, 0, keys.count, self.hashes)
            status = grouping_make(&self.group, &table.view, keys, self.hashes)
        raise_for(status, what)
        return 0


cdef class Append(Change):
    """Rows on their way in."""

    cdef RowBatch batch
    cdef uint32_t threads
    cdef int64_t now_us

    def __cinit__(self, Table table, RowBatch batch, uint32_t threads, bint is_sifted=True):
        cdef Status status
        self.batch = batch
        self.threads = threads if batch.view.count >= PARALLEL_ROWS_MIN else 1
        self.now_us = table.clock.read()
        self.make(table, &batch.view.keys)
        if table.has_ids and is_sifted:
            with nogil:
                status = ids_sift(&table.ids, &table.view, &batch.view, self.hashes, &self.group)
            raise_for(status, f"view {table.name!r}: no memory for a write of {batch.view.count} rows")

    def prepare(self):
        """The status of preparing every shard; what failed is given back."""
        cdef uint32_t shards = <uint32_t>1 << self.table.view.shard_bits
        cdef uint32_t threads = min(self.threads, shards)
        cdef Status status
        if threads > 1:
            bounds = [shards * i // threads for i in range(threads + 1)]
            try:
                with ThreadPoolExecutor(threads) as pool:
                    status = max(pool.map(self.prepare_range, bounds[:threads], bounds[1:]))
            except BaseException:         # no thread to be had, an interrupt: some shards may be prepared
                shards_abort(&self.table.view, self.table.writers, 0, shards)
                raise
        else:
            status = self.prepare_range(0, shards)
        if status != OK:
            shards_abort(&self.table.view, self.table.writers, 0, shards)
        return status

    cdef int check_shard(self, uint32_t shard) except -1:
        """Raises DataError where a row belongs to another shard."""
        cdef uint32_t i
        for i in range(SHARDS_MAX):
            if i != shard and self.group.per_shard[i]:
                raise DataError(f"view {self.table.name!r}: rows of shard {i} among those of shard {shard}")
        return 0

    def prepare_range(self, uint32_t low, uint32_t high):
        """The status of preparing shards [low, high)."""
        cdef Status status = NO_MEMORY
        cdef uint8_t* staging = NULL
        with nogil:
            staging = <uint8_t*>malloc(STAGED_ROWS * self.batch.view.row_stride)
            if staging != NULL:
                status = shards_prepare(
                    &self.table.view, self.table.writers, &self.batch.view, &self.group, self.hashes, low, high,
                    self.now_us, staging,
                )
            free(staging)
        return status


cdef class Ordered(Change):
    """Rows that were put in order beforehand, on their way in."""

    cdef RowBatch keys            # of the entities
    cdef RowBatch batch
    cdef const int64_t[::1] begins
    cdef RowRef* refs
    cdef int64_t now_us

    def __cinit__(self, Table table, RowBatch keys, RowBatch batch, const int64_t[::1] begins):
        cdef int64_t groups = keys.view.count
        cdef int64_t most = 0
        cdef int64_t g
        self.table = table
        self.keys = keys
        self.batch = batch
        self.begins = begins
        self.now_us = table.clock.read()
        self.hashes = <uint64_t*>malloc(groups * 8)
        if self.hashes != NULL:
            for g in range(groups):
                if begins[g] >= begins[g + 1]:
                    raise DataError(f"view {table.name!r}: an entity's rows end before they begin")
                most = max(most, begins[g + 1] - begins[g])
            keys_hash(&table.view, &keys.view.keys, 0, groups, self.hashes)
        self.refs = <RowRef*>malloc(most * sizeof(RowRef))
        if self.hashes == NULL or self.refs == NULL:
            raise MemoryError(f"view {table.name!r}: no memory for {batch.view.count} rows; append fewer at once")

    def __dealloc__(self):
        free(self.refs)

    def prepare(self):
        """The status of preparing every entity; what failed is given back."""
        cdef Status status
        with nogil:
            status = shards_prepare_ordered(
                &self.table.view, self.table.writers, &self.keys.view.keys, self.hashes, &self.batch.view,
                &self.begins[0], self.refs, self.now_us,
            )
            if status != OK:
                shards_abort(&self.table.view, self.table.writers, 0, <uint32_t>1 << self.table.view.shard_bits)
        return status


cdef int request_keys(Request request, int64_t low, int64_t high, KeyView* keys) except -1:
    """Keys [low, high) of a request for one table; valid until the request changes."""
    cdef int32_t columns[8]       # schema.JOIN_KEYS_MAX
    cdef int32_t i
    for i in range(request.columns_count):
        columns[i] = i
    request.keys(0, columns, request.columns_count, keys)
    keys.count = high - low
    if keys.offsets == NULL:
        keys.data += 8 * low
    else:
        keys.offsets += low
    return 0


cdef class Delete(Change):
    """Entities on their way out."""

    cdef KeyView keys
    cdef Request request          # owns the keys' bytes
    cdef int64_t deleted_us

    def __cinit__(self, Table table, Request request, int64_t deleted_us, int64_t low, int64_t high):
        self.request = request
        self.deleted_us = deleted_us
        request_keys(request, low, high, &self.keys)
        self.make(table, &self.keys)

    def prepare(self):
        """The status of preparing every entity; what failed is given back."""
        cdef Status status
        with nogil:
            status = shards_prepare_delete(
                &self.table.view, self.table.writers, &self.keys, &self.group, self.hashes, self.deleted_us
            )
            if status != OK:
                shards_abort(&self.table.view, self.table.writers, 0, <uint32_t>1 << self.table.view.shard_bits)
        return status


cdef class Heads(Change):
    """What entities remember of rows that are gone, on its way back in."""

    cdef KeyView keys
    cdef Request request          # owns the keys' bytes
    cdef const int64_t[:, ::1] given

    def __cinit__(self, Table table, Request request, const int64_t[:, ::1] given):
        if given.shape[0] != request.count or given.shape[1] != 7:
            shape = (given.shape[0], given.shape[1])
            raise DataError(f"view {table.name!r}: heads of shape {shape} for {request.count} entities")
        self.request = request
        self.given = given
        request_keys(request, 0, request.count, &self.keys)
        self.make(table, &self.keys)

    def prepare(self):
        """The status of preparing every entity; what failed is given back."""
        cdef Status status = OK
        cdef const int64_t* given = &self.given[0, 0] if self.keys.count else NULL
        with nogil:
            status = shards_prepare_heads(
                &self.table.view, self.table.writers, &self.keys, &self.group, self.hashes, given
            )
            if status != OK:
                shards_abort(&self.table.view, self.table.writers, 0, <uint32_t>1 << self.table.view.shard_bits)
        return status
