# cython: wraparound=False
"""Plan: a list of features compiled once, and the requests it answers.

    request --keys--> hashes --cells.pyx--> float matrix | typed columns | msgpack of a GET's result

Promise:     no Python object per value; per batch a few. One kernel (timeline.pyx) answers every form.
Concurrency: any number of threads may use one plan: each request takes an Answer of its own. The GIL is released for
             batches. The arena is pinned from the first look-up to the last byte copied.
Errors:      DataError (keys, times, a feature without a float form); for the whole request BeforeHistory, and
             StorageError where the arena is damaged.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memchr, memcpy

cimport numpy as cnp

import numpy as np

from ..errors import BeforeHistory, DataError, StorageError, UnknownFeature
from .aggregates cimport Deferred, WindowFunction, WindowScratch, image_put_double
from .arena cimport arena_pin, arena_try_pin, arena_unpin, pin_check
from .cells cimport (
    PlanFeature, PlanRun, PlanView, PlanViewPart, Scratch, column_bytes, column_fixed, column_offsets, column_size,
    column_valid, copy_rows, read_group, value_write,
)
from .codec cimport (
    CODEC_OK, Reader, Writer, codec_raise, reader_int64, reader_take_nil, writer_array, writer_bin_begin, writer_uint,
)
from .columns cimport FLOAT64, STRING, VECTOR, FieldView, KeyView, RowLayout, key_at, key_size
from .layout cimport EVER
from .request cimport Request
from .status cimport BEFORE_HISTORY, TORN
from .table cimport Clock, Table
from .timeline cimport GROUP, TableView, keys_hash, prefetch_slots
from .window_views cimport Windows
from .windows cimport scratch_begin, scratch_free, window_spans
from .values import TIME_MAX_US, TIME_MIN_US

cnp.import_array()

cdef enum:
    RELEASE_BYTES = 131_072   # to read, from which releasing the GIL pays, see docs/ARCHITECTURE.md
    LOOKUP_BYTES = 128        # of an entity in a view, beside its row: a line of the index, its block's header
    JOIN_KEYS_MAX = 8
    SPARES_MAX = 16
    HASHED = 16               # keys at once, whose slots come while the next are hashed
    SKETCH_K = 200            # centroids of a t-digest: about 0.1 % of rank in the middle, far less at the ends

cdef enum Format:
    ROWS = 0
    COLUMNS = 1
    MATRIX64 = 2
    MATRIX32 = 3

cdef int64_t time_min = TIME_MIN_US
cdef int64_t time_max = TIME_MAX_US

NUMPY_OF_KIND = ("u1", "<i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f4", "<f8", "<i8")
cdef int[12] numpy_number = [np.dtype(name).num for name in NUMPY_OF_KIND]


cdef void* zeroed(size_t count, size_t size) except NULL:
    cdef void* memory = calloc(count if count > 0 else 1, size)
    if memory == NULL:
        raise MemoryError("no memory for a plan")
    return memory


cdef void* resized(void* memory, size_t size) except NULL:
    cdef void* larger = realloc(memory, size if size > 0 else 1)
    if larger == NULL:
        raise MemoryError("no memory for a request; ask for fewer entities at once")
    return larger


cdef int64_t moment(object us, str name) except? -1:
    """A time given as int us. Raises DataError."""
    if isinstance(us, bool) or not isinstance(us, int):
        raise DataError(f"{name} is {us!r}; give an aware datetime or int microseconds since 1970 UTC")
    if not time_min <= us <= time_max:
        raise DataError(f"{name} {us} us is outside 0001-01-01 to 9999-12-31; times are microseconds since 1970 UTC")
    return us


cdef double sketched_quantile(object values, double q) except? -1:
    """A quantile of many values by a t-digest: of the same values in the same order always the same."""
    try:
        from datasketches import tdigest_double
    except ImportError:
        raise DataError(
            f"a quantile of {len(values):,} values is taken from a sketch, and datasketches is not there: pip install"
            " 'fastfeat[sketches]', or declare a shorter window"
        ) from None
    sketch = tdigest_double(SKETCH_K)
    sketch.update(values)
    return sketch.get_quantile(q)


cdef class Answer:
    """The scratch memory of one request; reused by the next."""

    def __dealloc__(self):
        cdef uint32_t v
        free(self.scratch.keys)
        free(self.scratch.hashes)
        free(self.scratch.rows)
        free(self.scratch.statuses)
        free(self.scratch.event_times)
        if self.scratch.windows != NULL:
            for v in range(self.views_count):
                scratch_free(&self.scratch.windows[v])
        free(self.scratch.windows)


# --- the plan --------------------------------------------------------------------------------------------------------

cdef class Plan:
    """Features of one or more tables, read together.

    features: (table, field name), or (table, window view, aggregation, dtype) for a window over the table's rows, in
    the order of the answer's columns. All tables lie in one arena.
    key_names, key_types: the union of the views' join keys, in order of first use. view_of: per feature, an index into
    views. matrix_columns: columns of a float matrix, 0 where some feature has no float form. release_min: entities from
    which a read lets go of the GIL.
    Raises UnknownFeature, DataError (views that give one join key two types).
    """

    def __cinit__(self, Clock clock, features):
        cdef Table table
        self.clock = clock
        self.spares = []
        items = list(features)
        if not items:
            raise DataError("a plan needs at least one feature")
        named = [(item[0], item[0].name, item[1]) if len(item) == 2 else (item[0], item[1], item[2].name)
                 for item in items]
        sources = {view: table for table, view, _ in named}
        self.views = tuple(sources)
        self.tables = tuple(sources.values())
        self.features = tuple(f"{view}:{name}" for _, view, name in named)
        self.view_of = tuple(self.views.index(view) for _, view, _ in named)
        self.place_windows(items)
        names = [(self.layout_of(v), name) for v, (_, _, name) in zip(self.view_of, named)]
        for (table, view, name), (layout, _) in zip(named, names):
            if name not in layout.names:
                raise UnknownFeature(f"view {view!r} has no field {name!r}; it has {', '.join(layout.names)}")
        self.dtypes = tuple(layout.dtypes[layout.names.index(name)] for layout, name in names)
        types = {}
        signatures = []
        for table in self.tables:
            for name, type_name in zip(table.layout.key_names, table.layout.key_types):
                if types.setdefault(name, type_name) != type_name:
                    raise DataError(
                        f"join key {name!r} is {types[name]} in one view and {type_name} in view {table.name!r};"
                        " read them in two requests or give them one type"
                    )
            if table.layout.key_names not in signatures:
                signatures.append(table.layout.key_names)
        self.key_names = tuple(types)
        self.key_types = tuple(types.values())
        self.place_keys(signatures)
        self.place_features([name for _, _, name in named])
        self.place_runs()

    cdef RowLayout layout_of(self, uint32_t v):
        """The layout of the rows that answer for view v."""
        cdef Windows windows = self.windows[v]
        return (<Table>self.tables[v]).layout if windows is None else windows.layout

    cdef int place_windows(self, list items) except -1:
        """Compile the window views."""
        cdef Table table
        windows = []
        for view, table in zip(self.views, self.tables):
            features = [item[2:] for item in items if len(item) == 4 and item[1] == view]
            windows.append(Windows(view, table, table.layout, features) if features else None)
            if features:
                (<Windows>windows[len(windows) - 1]).plan.source = &table.view
        self.windows = tuple(windows)
        self.has_windows = any(each is not None for each in windows)
        return 0

    def __dealloc__(self):
        free(self.view.views)
        free(self.view.features)
        free(self.view.by_view)
        free(self.view.runs)
        free(self.view.rest)
        free(self.key_columns)
        free(self.key_sizes)

    cdef int place_keys(self, list signatures) except -1:
        cdef Table table
        cdef Windows windows
        self.view.keys_count = len(signatures)
        self.view.views_count = len(self.tables)
        self.view.views = <PlanViewPart*>zeroed(len(self.tables), sizeof(PlanViewPart))
        self.key_columns = <int32_t*>zeroed(len(signatures) * JOIN_KEYS_MAX, 4)
        self.key_sizes = <uint32_t*>zeroed(len(signatures), 4)
        for i, names in enumerate(signatures):
            self.key_sizes[i] = len(names)
            for j, name in enumerate(names):
                self.key_columns[i * JOIN_KEYS_MAX + j] = self.key_names.index(name)
        table = self.tables[0]
        self.view.stored = &table.view
        for i, table in enumerate(self.tables):
            self.view.views[i].table = &table.view
            if self.windows[i] is not None:
                windows = self.windows[i]
                self.view.views[i].table = &windows.answer
                self.view.views[i].windows = &windows.plan
            self.view.views[i].key = signatures.index(table.layout.key_names)
            self.view.views[i].null_words = (self.layout_of(i).fields_count + 63) // 64
        return 0

    cdef int place_features(self, list names) except -1:
        cdef RowLayout layout
        cdef FieldView* field
        cdef PlanFeature* feature
        cdef PlanViewPart* part
        cdef uint32_t out_column = 0
        cdef uint32_t at = 0
        cdef uint32_t v
        cdef uint32_t i
        self.view.features_count = len(names)
        self.view.features = <PlanFeature*>zeroed(len(names), sizeof(PlanFeature))
        self.view.by_view = <uint32_t*>zeroed(len(names), 4)
        for i, name in enumerate(names):
            feature = &self.view.features[i]
            feature.view = self.view_of[i]
            layout = self.layout_of(feature.view)
            feature.field = layout.names.index(name)
            field = &layout.fields[feature.field]
            feature.offset = field.offset
            feature.width = field.width
            feature.size = field.size if field.kind == VECTOR else 1
            feature.kind = field.kind
            feature.element_kind = field.element_kind
            feature.element_width = field.element_width
            feature.out_column = out_column
            part = &self.view.views[feature.view]
            part.row_bytes = max(part.row_bytes, field.offset + field.width)
            out_column += self.dtypes[i].matrix_columns
        for v in range(self.view.views_count):
            self.view.views[v].features_first = at
            for i in range(self.view.features_count):
                if self.view.features[i].view == v:
                    self.view.by_view[at] = i
                    at += 1
            self.view.views[v].features_count = at - self.view.views[v].features_first
        self.matrix_columns = out_column if all(dtype.matrix_columns for dtype in self.dtypes) else 0
        self.view.matrix_columns = self.matrix_columns
        self.release_min = 1 + RELEASE_BYTES // sum(
            [self.view.views[v].row_bytes + LOOKUP_BYTES for v in range(self.view.views_count)]
        )
        return 0

    cdef int place_runs(self) except -1:
        cdef PlanViewPart* part
        cdef PlanFeature* feature
        cdef PlanRun* run = NULL
        cdef uint32_t i
        cdef uint32_t v
        cdef uint32_t runs = 0
        cdef uint32_t rest = 0
        self.view.runs = <PlanRun*>zeroed(self.view.features_count, sizeof(PlanRun))
        self.view.rest = <uint32_t*>zeroed(self.view.features_count, 4)
        for v in range(self.view.views_count):
            part = &self.view.views[v]
            part.runs_first = runs
            part.rest_first = rest
            run = NULL
            for i in range(part.features_first, part.features_first + part.features_count):
                feature = &self.view.features[self.view.by_view[i]]
                if feature.element_kind != FLOAT64 or feature.kind not in (FLOAT64, VECTOR):
                    self.view.rest[rest] = self.view.by_view[i]
                    rest += 1
                    run = NULL
                elif (run != NULL and run.offset + 8 * run.count == feature.offset
                        and run.out_column + run.count == feature.out_column):
                    run.count += feature.size
                else:
                    run = &self.view.runs[runs]
                    run.offset = feature.offset
                    run.out_column = feature.out_column
                    run.count = feature.size
                    runs += 1
            part.runs_count = runs - part.runs_first
            part.rest_count = rest - part.rest_first
        return 0

    # --- one request

    cdef Answer take(self):
        """An Answer of an earlier request, or a new one."""
        cdef Answer answer
        if self.spare is not None:
            answer, self.spare = self.spare, None
        elif self.spares:
            answer = <Answer>self.spares.pop()
        else:
            answer = Answer()
            answer.request = Request(self.key_names, self.key_types, self.view.keys_count)
            answer.scratch.keys = <KeyView*>zeroed(self.view.keys_count, sizeof(KeyView))
            answer.views_count = self.view.views_count
            if self.has_windows:
                answer.scratch.windows = <WindowScratch*>zeroed(self.view.views_count, sizeof(WindowScratch))
        answer.scratch.event_us = &answer.event_us
        answer.scratch.known_us = &answer.known_us
        answer.scratch.step = 0
        return answer

    cdef Answer begin(self, object as_of, object known_at):
        """An Answer with its times set; the caller fills its request."""
        cdef Answer answer = self.take()
        answer.event_us = self.clock.read() if as_of is None else moment(as_of, "as_of")
        answer.known_us = EVER if known_at is None else moment(known_at, "known_at")
        return answer

    cdef int keys_ready(self, Answer answer) except -1:
        """Room for the request's entities, their keys hashed, and the first slots on their way from memory.

        Why so early: where they lie is no secret that needs a pin, and a prefetch never faults.
        """
        cdef Scratch* s = &answer.scratch
        cdef int64_t count = answer.request.count
        cdef uint32_t k
        cdef uint32_t v
        cdef int64_t low
        cdef int64_t high
        cdef size_t cells
        if count > s.capacity:
            cells = self.view.views_count * count
            s.hashes = <uint64_t*>resized(s.hashes, self.view.keys_count * count * 8)
            s.rows = <const uint8_t**>resized(s.rows, cells * sizeof(void*))
            s.statuses = <uint8_t*>resized(s.statuses, cells)
            s.event_times = <int64_t*>resized(s.event_times, cells * 8)
            s.capacity = count
        for k in range(self.view.keys_count):
            answer.request.keys(k, self.key_columns + k * JOIN_KEYS_MAX, self.key_sizes[k], &s.keys[k])
            for low in range(0, count, 16):    # HASHED
                high = low + HASHED if low + HASHED < count else count
                keys_hash(self.view.stored, &s.keys[k], low, high, s.hashes + k * count)
                for v in range(self.view.views_count if low < GROUP else 0):
                    if self.view.views[v].key == k and self.view.views[v].windows == NULL:
                        prefetch_slots(self.view.views[v].table, s.hashes + k * count, low, high)
        return 0

    cdef int windows_ready(self, Answer answer) except -1:
        """Room for the answers of window views, and nothing of an earlier attempt, which may have met any bytes."""
        cdef Scratch* s = &answer.scratch
        cdef uint32_t v
        if s.windows == NULL:
            return 0
        for v in range(self.view.views_count):
            if self.view.views[v].windows != NULL:
                if not scratch_begin(&s.windows[v], self.view.views[v].windows, answer.request.count):
                    raise MemoryError("no memory for a request; ask for fewer entities at once")
        return 0

    cdef int finish_windows(self, Answer answer) except -1:
        """What the kernel left to Python: sketches, and to say what it had no room for."""
        cdef WindowScratch* s
        cdef const WindowFunction* function
        cdef Deferred* deferred
        cdef double[::1] values
        cdef double value
        cdef uint32_t v
        cdef int64_t i
        if answer.scratch.windows == NULL:
            return 0
        for v in range(self.view.views_count):
            s = &answer.scratch.windows[v]
            if s.has_failed:
                raise DataError(
                    f"view {self.views[v]!r}: no room for the values of its windows; ask for fewer entities at once, or"
                    " for shorter lists"
                )
            for i in range(s.deferred_count):
                deferred = &s.deferred[i]
                function = &self.view.views[v].windows.functions[deferred.function]
                values = <double[:deferred.count]>deferred.values
                value = sketched_quantile(np.asarray(values), function.q)
                image_put_double(s.images + deferred.entity * self.view.views[v].table.row_stride, function, value)
        return 0

    cdef int fill(self, Answer answer, void* matrix, bint single) except -1:
        """Read into a float64 matrix, or float32 where `single`."""
        cdef int64_t count = answer.request.count
        cdef double* line = NULL
        cdef bint is_whole = False
        cdef int pin
        self.keys_ready(answer)
        if single:
            line = <double*>zeroed(self.view.matrix_columns, 8)
        while not is_whole:
            pin = self.pin()
            if self.has_windows:
                is_whole = self.fill_windows(answer, matrix, line, pin)
            elif count < self.release_min:
                is_whole = self.fill_pinned(answer, matrix, line, pin)
            else:
                with nogil:
                    is_whole = self.fill_pinned(answer, matrix, line, pin)
        free(line)
        return self.check_history(answer)

    cdef int fill_windows(self, Answer answer, void* matrix, double* line, int pin) except -1:
        """fill_pinned with a stop between reading and copying."""
        cdef int64_t count = answer.request.count
        try:
            self.windows_ready(answer)
            with nogil:                           # also for one: its window may be of a million rows
                read_group(&self.view, &answer.scratch, count, 0, count)
            self.finish_windows(answer)
        except BaseException:
            if self.unpin(pin):               # else it may come of bytes that were not meant for us
                free(line)
                raise
            return False
        copy_rows(&self.view, &answer.scratch, count, 0, count, matrix, line)
        return self.unpin(pin)

    cdef int pin(self) except -1:
        """Enter the arena. Why without the GIL where all slots are taken: whoever is inside may need it to leave."""
        cdef const TableView* table = self.view.stored
        cdef int pin = arena_try_pin(&table.arena)
        if pin < 0:
            with nogil:
                pin = arena_pin(&table.arena)
            pin_check(&table.arena, pin)
        return pin

    cdef bint fill_pinned(self, Answer answer, void* matrix, double* line, int pin) noexcept nogil:
        """Read and leave. False: expelled meanwhile, see readers.pyx; read again."""
        cdef const PlanView* plan = &self.view
        cdef int64_t count = answer.request.count
        cdef int64_t low
        cdef int64_t high
        for low in range(0, count, 128):  # GROUP
            high = low + GROUP if low + GROUP < count else count
            read_group(plan, &answer.scratch, count, low, high)
            copy_rows(plan, &answer.scratch, count, low, high, matrix, line)
        return arena_unpin(&plan.stored.arena, pin)

    cdef bint unpin(self, int pin) noexcept:
        return arena_unpin(&self.view.stored.arena, pin)

    cdef int resolve(self, Answer answer) except -1:
        """Find every row; the caller holds a pin and keeps it while it reads them."""
        cdef int64_t count = answer.request.count
        self.keys_ready(answer)
        self.windows_ready(answer)
        if count < self.release_min and not self.has_windows:    # one window may be of a million rows
            read_group(&self.view, &answer.scratch, count, 0, count)
        else:
            with nogil:
                read_group(&self.view, &answer.scratch, count, 0, count)
        self.check_history(answer)
        return self.finish_windows(answer)

    cdef int check_history(self, Answer answer) except -1:
        cdef int64_t count = answer.request.count
        cdef size_t cells = self.view.views_count * count
        cdef const uint8_t* found
        if cells == 0:
            return 0
        found = <const uint8_t*>memchr(answer.scratch.statuses, TORN, cells)
        if found != NULL:
            at = found - answer.scratch.statuses
            raise StorageError(
                f"view {self.views[at // count]!r}: the arena is damaged: what it holds of entity {at % count}"
                f" ({answer.request.describe(at % count)}) lies outside of it; restart its writer, which reads its log"
                " again"
            )
        found = <const uint8_t*>memchr(answer.scratch.statuses, BEFORE_HISTORY, cells)
        if found == NULL:
            return 0
        at = found - answer.scratch.statuses
        which = f"entity {at % count} ({answer.request.describe(at % count)})"
        raise BeforeHistory(
            f"view {self.views[at // count]!r}: {which} had rows that keep= no longer holds and this read may need;"
            " read a later time, or declare a longer keep"
        )

    cdef int check_matrix(self) except -1:
        if self.matrix_columns:
            return 0
        name, dtype = next((n, d) for n, d in zip(self.features, self.dtypes) if not d.matrix_columns)
        raise DataError(f"feature {name!r} is {dtype}, which a float matrix can't hold; leave it out or read columns")

    def vector(self, entity_row, as_of, known_at, out):
        """One entity's features as float64 [matrix_columns]; NaN where there is no value. Written to `out` if given."""
        return self.read_vector(entity_row, as_of, known_at, out)

    cdef object read_vector(self, object entity_row, object as_of, object known_at, object out):
        cdef Answer answer
        cdef cnp.npy_intp size = self.view.matrix_columns
        cdef cnp.ndarray vector
        if self.matrix_columns == 0:
            self.check_matrix()
        if out is None:
            vector = cnp.PyArray_SimpleNew(1, &size, cnp.NPY_DOUBLE)
        elif takes_vector(out, size):
            vector = <cnp.ndarray>out
        else:
            vector = self.checked_out(out, (self.matrix_columns,), np.dtype(np.float64))
        answer = self.begin(as_of, known_at)
        answer.request.set_one(entity_row)
        self.fill(answer, cnp.PyArray_DATA(vector), False)
        self.give_back(answer)
        return vector

    def matrix(self, entity_rows, as_of, known_at, out, dtype=None):
        """The entities' features as a float64 or float32 matrix [n, matrix_columns]; NaN where there is no value.

        dtype: None is that of `out`, float64 where there is none.
        """
        return self.read_matrix(entity_rows, as_of, known_at, out, dtype)

    cdef object read_matrix(self, object entity_rows, object as_of, object known_at, object out, object dtype):
        cdef Answer answer
        cdef cnp.ndarray matrix
        if self.matrix_columns == 0:
            self.check_matrix()
        answer = self.begin(as_of, known_at)
        answer.request.set_rows(entity_rows)
        if dtype is None and takes_matrix(out, answer.request.count, self.matrix_columns):
            matrix = <cnp.ndarray>out
        else:
            matrix = self.matrix_for(answer.request.count, out, dtype)
        self.fill(answer, cnp.PyArray_DATA(matrix), cnp.PyArray_TYPE(matrix) == cnp.NPY_FLOAT)
        self.give_back(answer)
        return matrix

    cdef object matrix_for(self, int64_t count, object out, object dtype):
        """A new matrix for so many entities, or `out` if it will do. Raises DataError."""
        kind = np.dtype(getattr(out, "dtype", np.float64) if dtype is None else dtype)
        if kind != np.float64 and kind != np.float32:
            raise DataError(f"dtype {str(kind)!r} is not float64 or float32; read columns for other types")
        shape = (count, self.matrix_columns)
        return np.empty(shape, kind) if out is None else self.checked_out(out, shape, kind)

    def checked_out(self, out, tuple shape, kind):
        """`out`, if it can take the answer as it is. Raises DataError."""
        if not isinstance(out, np.ndarray) or out.dtype != kind or out.shape != shape:
            got = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
            raise DataError(f"out must be a {kind} array of shape {shape}, not {got}")
        if not out.flags.c_contiguous or not out.flags.writeable:
            raise DataError("out must be C-contiguous and writeable")
        return out

    cdef give_back(self, Answer answer):
        if self.spare is None:            # a list of one would be allocated anew for each request
            self.spare = answer
        elif len(self.spares) < SPARES_MAX:
            self.spares.append(answer)

    def columns_at(self, entity_rows, const int64_t[::1] as_of, const int64_t[::1] known_at):
        """As `columns`, each entity at times of its own: int64 [n] us; the greatest int64 known_at is everything."""
        cdef Answer answer = self.begin(0, None)
        answer.request.set_rows(entity_rows)
        for name, times in (("as_of", as_of), ("known_at", known_at)):
            if len(times) != answer.request.count:
                raise DataError(f"{name} has {len(times)} times for {answer.request.count} entities; give one each")
        if answer.request.count:
            answer.scratch.event_us = &as_of[0]
            answer.scratch.known_us = &known_at[0]
            answer.scratch.step = 1
        return self.read_columns(answer, None)

    def spans(self, str feature, entity_row, as_of, known_at):
        """What a window feature of one entity is made of, block by block in the order of the rows.

        (rows of the block, first, end, tiles_first, tiles_end, anchor) each, see window_spans in windows.pyx.
        """
        cdef Windows windows
        cdef Answer answer = self.begin(as_of, known_at)
        cdef uint32_t v = self.view_of[self.features.index(feature)]
        cdef uint32_t k = self.view.views[v].key
        cdef bint is_whole = False
        cdef int pin
        windows = self.windows[v]
        if windows is None:
            return []
        place = windows.features.index(feature.partition(":")[2])
        answer.request.set_one(entity_row)
        self.keys_ready(answer)
        while not is_whole:
            pin = self.pin()
            try:
                spans = window_spans(
                    &windows.plan, place, answer.scratch.hashes[k], key_at(&answer.scratch.keys[k], 0),
                    key_size(&answer.scratch.keys[k], 0), answer.event_us, answer.known_us,
                )
            finally:
                is_whole = self.unpin(pin)
        self.give_back(answer)
        return spans

    def columns(self, entity_rows, as_of, known_at, size_max=None):
        """Typed columns: (statuses uint8 [views, n], event_times int64 [views, n] us, a column per feature).

        A column is (valid, data, offsets).

        valid: uint8 [n], 1 where there is a value. data: numbers [n] (bool uint8, timestamp int64 us), vectors
        [n, size], otherwise bytes, entity i's at offsets[i]:offsets[i + 1] (uint32 [n + 1]); offsets is None for the
        fixed. Raises DataError where the values take more than `size_max` bytes.
        """
        cdef Answer answer = self.begin(as_of, known_at)
        answer.request.set_rows(entity_rows)
        return self.read_columns(answer, size_max)

    cdef object read_columns(self, Answer answer, object size_max):
        cdef bint is_whole = False
        cdef int pin
        cdef cnp.npy_intp[2] shape
        cdef cnp.ndarray statuses
        cdef cnp.ndarray event_times
        while not is_whole:
            pin = self.pin()
            try:
                self.resolve(answer)
                if size_max is not None:
                    self.check_size(answer, size_max)
                columns = [self.column(answer, f) for f in range(self.view.features_count)]
            except BaseException:
                if self.unpin(pin):       # else it may come of bytes that were not meant for us
                    raise
            else:
                is_whole = self.unpin(pin)
        shape[0], shape[1] = self.view.views_count, answer.request.count
        statuses = cnp.PyArray_SimpleNew(2, shape, cnp.NPY_UINT8)
        event_times = cnp.PyArray_SimpleNew(2, shape, cnp.NPY_INT64)
        memcpy(cnp.PyArray_DATA(statuses), answer.scratch.statuses, cnp.PyArray_NBYTES(statuses))
        memcpy(cnp.PyArray_DATA(event_times), answer.scratch.event_times, cnp.PyArray_NBYTES(event_times))
        self.give_back(answer)
        return statuses, event_times, columns

    cdef object column(self, Answer answer, uint32_t f):
        cdef const PlanFeature* feature = &self.view.features[f]
        cdef int64_t count = answer.request.count
        cdef const uint8_t** rows = answer.scratch.rows + feature.view * count
        cdef const TableView* table = self.view.views[feature.view].table
        cdef uint64_t size
        cdef cnp.npy_intp[2] shape = [count, feature.size]
        cdef cnp.ndarray valid = cnp.PyArray_SimpleNew(1, shape, cnp.NPY_UINT8)
        cdef cnp.ndarray data
        cdef int dimensions
        column_valid(feature, rows, count, <uint8_t*>cnp.PyArray_DATA(valid))
        if feature.kind < STRING or feature.kind == VECTOR:
            dimensions = 2 if feature.kind == VECTOR else 1
            data = cnp.PyArray_SimpleNew(dimensions, shape, numpy_number[feature.element_kind])
            column_fixed(feature, rows, count, <uint8_t*>cnp.PyArray_DATA(data))
            return valid, data, None
        offsets = np.empty(count + 1, np.uint32)
        size = column_offsets(feature, table, rows, count, <uint32_t*>cnp.PyArray_DATA(offsets))
        self.check_column_size(f, size)
        data = np.empty(size, np.uint8)
        column_bytes(
            feature, table, rows, count, <const uint32_t*>cnp.PyArray_DATA(offsets), <uint8_t*>cnp.PyArray_DATA(data)
        )
        return valid, data, offsets

    cdef int check_size(self, Answer answer, uint64_t size_max) except -1:
        """Hold the values to the limit before any of them is copied: a few keys may name much."""
        cdef int64_t count = answer.request.count
        cdef const PlanFeature* feature
        cdef const TableView* table
        cdef uint64_t size = 0
        cdef uint32_t f
        for f in range(self.view.features_count):
            feature = &self.view.features[f]
            if feature.kind < STRING or feature.kind == VECTOR:
                size += <uint64_t> count * feature.width
            else:
                table = self.view.views[feature.view].table
                size += column_size(feature, table, answer.scratch.rows + feature.view * count, count)
        if size > size_max:
            raise DataError(f"the reply needs over {size} B, a frame takes {size_max} B; ask for fewer entities")
        return 0

    cdef int check_column_size(self, uint32_t f, uint64_t size) except -1:
        if size > 0xFFFFFFFF:
            raise DataError(
                f"feature {self.features[f]!r}: the answer takes {size} B, at most 4 GiB; ask for fewer entities"
            )
        return 0

    # --- the wire

    cdef int answer(self, Reader* params, uint32_t remaining, Writer* out, uint64_t size_max) except -1:
        cdef Answer answer = self.take()
        cdef int64_t format = ROWS
        cdef int code = CODEC_OK
        if remaining < 1 or remaining > 4:
            raise DataError(
                f"GET has {remaining + 1} parameters; give plan, keys, format, as_of, known_at (the last 3 optional)"
            )
        answer.request.set_wire(params)
        if remaining > 1 and not reader_take_nil(params):
            code = reader_int64(params, &format)
        answer.event_us = self.wire_moment(params, remaining > 2, "as_of")
        answer.known_us = self.wire_moment(params, remaining > 3, "known_at")
        if code != CODEC_OK:
            codec_raise(code, "GET format")
        if answer.event_us == EVER:
            answer.event_us = self.clock.read()
        if format == MATRIX64 or format == MATRIX32:
            self.write_matrix(answer, format == MATRIX32, out)
        elif format == COLUMNS or format == ROWS:
            self.write_pinned(answer, format, out, size_max)
        else:
            raise DataError(
                f"GET format {format} is unknown; 0 rows, 1 columns, 2 float64 matrix, 3 float32 matrix, 4 Arrow"
            )
        self.give_back(answer)
        return 0

    cdef int64_t wire_moment(self, Reader* params, bint is_given, str name) except? -1:
        """A time of a GET; EVER where it is absent or nil."""
        cdef int64_t us = 0
        cdef int code
        if not is_given or reader_take_nil(params):
            return EVER
        code = reader_int64(params, &us)
        if code != CODEC_OK:
            codec_raise(code, f"GET {name}")
        return moment(us, name)

    cdef int write_pinned(self, Answer answer, int64_t format, Writer* out, uint64_t size_max) except -1:
        cdef size_t began_at = out.size
        cdef bint is_whole = False
        cdef int pin
        while not is_whole:
            out.size = began_at
            pin = self.pin()
            try:
                self.resolve(answer)
                self.check_size(answer, size_max)
                if format == COLUMNS:
                    self.write_columns(answer, out)
                else:
                    self.write_rows(answer, out)
            except BaseException:
                if self.unpin(pin):
                    raise
            else:
                is_whole = self.unpin(pin)
        return 0

    cdef int write_stamps(self, Answer answer, Writer* out) except -1:
        cdef size_t cells = self.view.views_count * answer.request.count
        cdef uint8_t* at = out_bin(out, cells)
        memcpy(at, answer.scratch.statuses, cells)
        at = out_bin(out, 8 * cells)
        memcpy(at, answer.scratch.event_times, 8 * cells)
        return 0

    cdef int write_matrix(self, Answer answer, bint single, Writer* out) except -1:
        cdef int64_t count = answer.request.count
        cdef size_t size = count * self.view.matrix_columns * (4 if single else 8)
        cdef size_t cells = self.view.views_count * count
        cdef uint8_t* matrix
        cdef size_t statuses_at
        cdef size_t times_at
        self.check_matrix()
        written(writer_array(out, 5))
        out_bin(out, cells)
        statuses_at = out.size - cells
        out_bin(out, 8 * cells)
        times_at = out.size - 8 * cells
        written(writer_uint(out, count))
        written(writer_uint(out, self.view.matrix_columns))
        matrix = out_bin(out, size)
        self.fill(answer, matrix, single)
        memcpy(out.data + statuses_at, answer.scratch.statuses, cells)
        memcpy(out.data + times_at, answer.scratch.event_times, 8 * cells)
        return 0

    cdef int write_columns(self, Answer answer, Writer* out) except -1:
        cdef int64_t count = answer.request.count
        cdef const PlanFeature* feature
        cdef const uint8_t** rows
        cdef const TableView* table
        cdef uint32_t f
        cdef uint64_t size
        cdef uint8_t* at
        written(writer_array(out, 4))
        self.write_stamps(answer, out)
        written(writer_uint(out, count))
        written(writer_array(out, self.view.features_count))
        for f in range(self.view.features_count):
            feature = &self.view.features[f]
            rows = answer.scratch.rows + feature.view * count
            table = self.view.views[feature.view].table
            if feature.kind < STRING or feature.kind == VECTOR:
                written(writer_array(out, 2))
                column_valid(feature, rows, count, out_bin(out, count))
                at = out_bin(out, count * feature.width)
                column_fixed(feature, rows, count, at)
            else:
                written(writer_array(out, 3))
                column_valid(feature, rows, count, out_bin(out, count))
                offsets = np.empty(count + 1, np.uint32)
                size = column_offsets(feature, table, rows, count, <uint32_t*>cnp.PyArray_DATA(offsets))
                self.check_column_size(f, size)
                at = out_bin(out, size)
                column_bytes(feature, table, rows, count, <const uint32_t*>cnp.PyArray_DATA(offsets), at)
                at = out_bin(out, 4 * (count + 1))
                memcpy(at, cnp.PyArray_DATA(offsets), 4 * (count + 1))
        return 0

    cdef int write_rows(self, Answer answer, Writer* out) except -1:
        cdef int64_t count = answer.request.count
        cdef const PlanFeature* feature
        cdef int64_t i
        cdef uint32_t f
        written(writer_array(out, 3))
        self.write_stamps(answer, out)
        written(writer_array(out, <uint32_t>count))
        for i in range(count):
            written(writer_array(out, self.view.features_count))
            for f in range(self.view.features_count):
                feature = &self.view.features[f]
                written(value_write(
                    feature, self.view.views[feature.view].table, answer.scratch.rows[feature.view * count + i], out
                ))
        return 0


cdef inline bint takes_vector(out, cnp.npy_intp size):
    """True where `out` is a float64 vector of this size that can be filled as it is; checked_out says what is wrong."""
    return (
        cnp.PyArray_CheckExact(out) and cnp.PyArray_TYPE(<cnp.ndarray>out) == cnp.NPY_DOUBLE
        and cnp.PyArray_NDIM(<cnp.ndarray>out) == 1 and cnp.PyArray_DIM(<cnp.ndarray>out, 0) == size
        and cnp.PyArray_ISCARRAY(<cnp.ndarray>out)
    )


cdef inline bint takes_matrix(out, cnp.npy_intp rows, cnp.npy_intp columns):
    """As takes_vector, of a float64 matrix."""
    return (
        cnp.PyArray_CheckExact(out) and cnp.PyArray_TYPE(<cnp.ndarray>out) == cnp.NPY_DOUBLE
        and cnp.PyArray_NDIM(<cnp.ndarray>out) == 2 and cnp.PyArray_DIM(<cnp.ndarray>out, 0) == rows
        and cnp.PyArray_DIM(<cnp.ndarray>out, 1) == columns
        and cnp.PyArray_ISCARRAY(<cnp.ndarray>out)
    )


cdef inline int written(int code) except -1:
    if code != CODEC_OK:
        codec_raise(code, "reply")
    return 0


cdef uint8_t* out_bin(Writer* out, size_t size) except NULL:
    """A bin of `size` bytes to fill in place."""
    cdef uint8_t* at
    if size > 0xFFFFFFFF:
        raise DataError(f"the reply takes over {size} B, at most 4 GiB; ask for fewer entities at once")
    at = writer_bin_begin(out, <uint32_t>size)
    if at == NULL:
        raise MemoryError("no memory for the reply; ask for fewer entities at once")
    return at


cdef class PlansAtHand:
    """An attached store's plans, by the names of services, for as long as its arena holds what they were made of.

    A read that takes a microsecond is made of this and of the plan, and nothing between.
    """

    def turn_to(self, Arena arena, uint64_t catalogue_word, dict plans not None):
        """From now on they are of this arena, as Arena.is_current has it; None: there is none.

        plans: the store's own cache, in which plans come to lie once the long way has made them.
        """
        # Freed only once all three are new: what frees them may let another thread read.
        before = self.arena, self.plans
        self.arena, self.catalogue_word, self.plans = arena, catalogue_word, plans
        del before

    cdef object find(self, object features):
        if type(features) is not str or self.arena is None or not self.arena.is_current(self.catalogue_word):
            return None
        return self.plans.get(features)

    cpdef object vector(self, object features, object entity_row, object out):
        """The plan's vector of now; None: no such plan is at hand."""
        plan = self.find(features)
        if type(plan) is Plan:
            return (<Plan>plan).read_vector(entity_row, None, None, out)
        return None if plan is None else plan.vector(entity_row, None, None, out)

    cpdef object matrix(self, object features, object entity_rows, object out):
        """The plan's matrix of now; None: no such plan is at hand."""
        plan = self.find(features)
        if type(plan) is Plan:
            return (<Plan>plan).read_matrix(entity_rows, None, None, out, None)
        return None if plan is None else plan.matrix(entity_rows, None, None, out)


cdef class ReadsAtHand:
    """For a class to inherit: its reads of vectors by the plans at hand, else by its own `_vector` and `_vectors`."""

    def __cinit__(self, *_, **__):
        self.at_hand = PlansAtHand()

    def read_by(self, PlansAtHand at_hand not None):
        """From now on by these plans."""
        self.at_hand = at_hand

    def get_feature_vector(self, features, entity_row, *, as_of=None, known_at=None, out=None):
        """As Store.get_feature_vector."""
        if as_of is None and known_at is None:
            try:
                answer = self.at_hand.vector(features, entity_row, out)
                if answer is not None:
                    return answer
            except BeforeHistory:         # of rows that memory no longer has
                pass
        return self._vector(features, entity_row, as_of, known_at, out)

    def get_feature_vectors(self, features, entity_rows, *, as_of=None, known_at=None, out=None):
        """As Store.get_feature_vectors."""
        if as_of is None and known_at is None:
            try:
                answer = self.at_hand.matrix(features, entity_rows, out)
                if answer is not None:
                    return answer
            except BeforeHistory:
                pass
        return self._vectors(features, entity_rows, as_of, known_at, out)
