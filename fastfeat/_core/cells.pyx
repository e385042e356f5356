"""Cells: the batch kernels of a plan, from rows found to numbers, columns and msgpack.

    keys, hashes --timelines_as_of--> rows --cells--> float64 or float32 matrix | typed columns | msgpack values

    A matrix is filled per group of entities: every view is read and its cells written at once, so that rows are still
    in
    the cache. Where a row has no null, float64 cells that lie side by side in the row and in the matrix are one copy.

Promise:     no Python object; no allocation but the writer's own growth.
Concurrency: the caller holds a pin from the first look-up to the last byte copied.
Safety:      a reader that lost its pin may find anything in a row, changing while it reads (see timeline.pyx). A row
             lies inside of the arena; what its cells point at is held to the arena by cell_bytes, each cell read once,
             and a list's elements to the list. A column's bytes fill exactly what its offsets said before. What does
             not fit is empty or zero.
Errors:      none but the writer's codes: a value that is absent is NaN, zero bytes with valid 0, or nil.
"""

from libc.math cimport NAN
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from .atomics cimport ff_unlikely, load_once_u32
from .codec cimport (
    CODEC_OK, Writer, writer_array, writer_bin, writer_bool, writer_float32, writer_float64, writer_int, writer_nil,
    writer_str, writer_uint,
)
from .columns cimport (
    BOOL, BYTES, FLOAT32, FLOAT64, INT8, INT16, INT32, INT64, STRING, TIMESTAMP, UINT8, UINT16, UINT64, VECTOR,
    cell_double, row_is_null,
)
from .timeline cimport cell_bytes, timelines_as_of
from .windows cimport windows_read

cdef extern from "copying.h" nogil:
    ctypedef struct CopyPlan:
        uint64_t null_words
        uint64_t offset
        uint64_t size
        uint64_t out_stride
    int copy_bits() noexcept
    int64_t copy_whole(const CopyPlan* plan, const uint8_t** rows, int64_t i, int64_t count, uint8_t* out) noexcept


def copying_bits():
    """How wide the vectors are that copy rows: 512, 256 or 128 bits; see vectors.h."""
    return copy_bits()


# --- kernels ---------------------------------------------------------------------------------------------------------

cdef void read_group(
    const PlanView* plan, const Scratch* s, int64_t count, int64_t low, int64_t high,
) noexcept nogil:
    """Find the rows of entities [low, high) in every view."""
    cdef uint32_t v
    cdef const PlanViewPart* part
    for v in range(plan.views_count):
        part = &plan.views[v]
        if part.windows != NULL:
            windows_read(
                part.windows, &s.windows[v], &s.keys[part.key], s.hashes + part.key * count, low, high,
                s.event_us, s.known_us, s.step, s.rows + v * count, s.statuses + v * count, s.event_times + v * count,
            )
            continue
        timelines_as_of(
            part.table, part.row_bytes, &s.keys[part.key], s.hashes + part.key * count, low, high,
            s.event_us, s.known_us, s.step, s.rows + v * count, s.statuses + v * count, s.event_times + v * count,
        )


cdef inline bint row_has_null(const uint8_t* row, uint32_t words) noexcept nogil:
    cdef uint32_t i
    for i in range(words):
        if (<const uint64_t*>row)[i]:
            return True
    return False


cdef inline void put_float64(double* at, double value) noexcept nogil:
    """A store that may be misaligned: a matrix inside a reply begins wherever its message lets it."""
    memcpy(at, &value, 8)


cdef inline void put_float32(float* at, float value) noexcept nogil:
    memcpy(at, &value, 4)


cdef inline void feature_to_float64(const PlanFeature* feature, const uint8_t* row, double* out) noexcept nogil:
    cdef uint32_t i
    if feature.kind != VECTOR:
        put_float64(out + feature.out_column, cell_double(feature.kind, row + feature.offset))
        return
    for i in range(feature.size):
        put_float64(
            out + feature.out_column + i,
            cell_double(feature.element_kind, row + feature.offset + i * feature.element_width),
        )


cdef inline void feature_to_nan(const PlanFeature* feature, double* out) noexcept nogil:
    cdef uint32_t i
    for i in range(feature.size):
        put_float64(out + feature.out_column + i, NAN)


cdef inline void row_to_float64(
    const PlanView* plan, const PlanViewPart* part, const uint8_t* row, double* out,
) noexcept nogil:
    cdef uint32_t i
    cdef const PlanFeature* feature
    if row != NULL and not row_has_null(row, part.null_words):
        for i in range(part.runs_first, part.runs_first + part.runs_count):
            memcpy(out + plan.runs[i].out_column, row + plan.runs[i].offset, plan.runs[i].count * 8)
        for i in range(part.rest_first, part.rest_first + part.rest_count):
            feature_to_float64(&plan.features[plan.rest[i]], row, out)
        return
    for i in range(part.features_first, part.features_first + part.features_count):
        feature = &plan.features[plan.by_view[i]]
        if row == NULL or row_is_null(row, feature.field):
            feature_to_nan(feature, out)
        else:
            feature_to_float64(feature, row, out)


cdef void copy_run(
    const PlanView* plan, const PlanViewPart* part, const uint8_t** rows, int64_t count, double* out,
) noexcept nogil:
    """Of a view whose features are float64 that lie side by side, as most views' are."""
    cdef const PlanRun* run = &plan.runs[part.runs_first]
    cdef CopyPlan copying
    cdef int64_t i = 0
    copying.null_words = part.null_words
    copying.offset = run.offset
    copying.size = 8 * <uint64_t>run.count
    copying.out_stride = 8 * <uint64_t>plan.matrix_columns
    while True:
        i = copy_whole(&copying, rows, i, count, <uint8_t*>(out + run.out_column))
        if i == count:
            return
        row_to_float64(plan, part, rows[i], out + i * plan.matrix_columns)
        i += 1


cdef void copy_cells(
    const PlanView* plan, const PlanViewPart* part, const uint8_t** rows, int64_t count, double* out,
) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        row_to_float64(plan, part, rows[i], out)
        out += plan.matrix_columns


cdef void copy_float32(
    const PlanView* plan, const Scratch* s, int64_t count, int64_t low, int64_t high, float* out, double* line,
) noexcept nogil:
    """Rows into a row-major float32 matrix; `line` has room for one row as float64."""
    cdef int64_t i
    cdef uint32_t v
    for i in range(low, high):
        for v in range(plan.views_count):
            row_to_float64(plan, &plan.views[v], s.rows[v * count + i], line)
        for v in range(plan.matrix_columns):
            put_float32(out + i * plan.matrix_columns + v, <float>line[v])


cdef void copy_rows(
    const PlanView* plan, const Scratch* s, int64_t count, int64_t low, int64_t high, void* matrix, double* line,
) noexcept nogil:
    cdef const PlanViewPart* part
    cdef const uint8_t** rows
    cdef double* out
    cdef uint32_t v
    if line != NULL:
        copy_float32(plan, s, count, low, high, <float*>matrix, line)
        return
    for v in range(plan.views_count):
        part = &plan.views[v]
        rows = s.rows + v * count + low
        out = <double*>matrix + low * plan.matrix_columns
        if part.runs_count == 1 and part.rest_count == 0:
            copy_run(plan, part, rows, high - low, out)
        else:
            copy_cells(plan, part, rows, high - low, out)


cdef inline bint has_value(const PlanFeature* feature, const uint8_t* row) noexcept nogil:
    return row != NULL and not row_is_null(row, feature.field)


cdef void column_valid(const PlanFeature* feature, const uint8_t** rows, int64_t count, uint8_t* valid) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        valid[i] = has_value(feature, rows[i])


cdef void column_fixed(const PlanFeature* feature, const uint8_t** rows, int64_t count, uint8_t* data) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        if has_value(feature, rows[i]):
            memcpy(data, rows[i] + feature.offset, feature.width)
        else:
            memset(data, 0, feature.width)
        data += feature.width


cdef inline const uint8_t* value_bytes(
    const PlanFeature* feature, const TableView* table, const uint8_t* row, uint32_t* size,
) noexcept nogil:
    """cell_bytes where there is a value; NULL and 0 otherwise."""
    if has_value(feature, row):
        return cell_bytes(table, row, feature.offset, size)
    size[0] = 0
    return NULL


cdef uint64_t column_offsets(
    const PlanFeature* feature, const TableView* table, const uint8_t** rows, int64_t count, uint32_t* offsets,
) noexcept nogil:
    """Where each entity's bytes begin; returns their sum."""
    cdef int64_t i
    cdef uint64_t at = 0
    cdef uint32_t size
    for i in range(count):
        offsets[i] = <uint32_t>at
        value_bytes(feature, table, rows[i], &size)
        at += size
    offsets[count] = <uint32_t>at
    return at


cdef uint64_t column_size(
    const PlanFeature* feature, const TableView* table, const uint8_t** rows, int64_t count,
) noexcept nogil:
    """Bytes of a variable feature's values."""
    cdef int64_t i
    cdef uint64_t sum = 0
    cdef uint32_t size
    for i in range(count):
        value_bytes(feature, table, rows[i], &size)
        sum += size
    return sum


cdef void column_bytes(
    const PlanFeature* feature, const TableView* table, const uint8_t** rows, int64_t count, const uint32_t* offsets,
    uint8_t* data,
) noexcept nogil:
    """The bytes that column_offsets counted; zero where a cell is no longer what it was then."""
    cdef int64_t i
    cdef const uint8_t* value
    cdef uint32_t size
    cdef uint32_t counted
    for i in range(count):
        counted = offsets[i + 1] - offsets[i]
        if counted:
            value = value_bytes(feature, table, rows[i], &size)
            if ff_unlikely(size != counted):
                memset(data + offsets[i], 0, counted)
            else:
                memcpy(data + offsets[i], value, counted)


# --- msgpack values
# ----------------------------------------------------------------------------------------------------

cdef int scalar_write(uint8_t kind, const uint8_t* cell, Writer* out) noexcept nogil:
    """One number, bool or timestamp (int us)."""
    if kind == FLOAT64:
        return writer_float64(out, (<const double*>cell)[0])
    if kind == FLOAT32:
        return writer_float32(out, (<const float*>cell)[0])
    if kind == BOOL:
        return writer_bool(out, cell[0])
    if kind == UINT64:
        return writer_uint(out, (<const uint64_t*>cell)[0])
    return writer_int(out, int_cell(kind, cell))


cdef inline int64_t int_cell(uint8_t kind, const uint8_t* cell) noexcept nogil:
    if kind == TIMESTAMP or kind == INT64:
        return (<const int64_t*>cell)[0]
    if kind == INT8:
        return (<const int8_t*>cell)[0]
    if kind == INT16:
        return (<const int16_t*>cell)[0]
    if kind == INT32:
        return (<const int32_t*>cell)[0]
    if kind == UINT8:
        return cell[0]
    if kind == UINT16:
        return (<const uint16_t*>cell)[0]
    return (<const uint32_t*>cell)[0]


cdef int texts_write(const PlanFeature* feature, const uint8_t* data, uint32_t size, Writer* out) noexcept nogil:
    """A list of strings or bytes: count u32, sizes u32 each, then the bytes."""
    cdef uint32_t count = load_once_u32(data) if size >= 4 else 0
    cdef uint32_t text_size
    cdef uint32_t i
    cdef uint64_t at = 4 + 4 * <uint64_t>count
    cdef int code
    if ff_unlikely(at > size):
        count = 0
    code = writer_array(out, count)
    for i in range(count):
        text_size = load_once_u32(data + 4 + 4 * i)
        if ff_unlikely(text_size > size - at):
            text_size = 0
        if code == CODEC_OK and feature.element_kind == STRING:
            code = writer_str(out, data + at, text_size)
        elif code == CODEC_OK:
            code = writer_bin(out, data + at, text_size)
        at += text_size
    return code


cdef int list_write(const PlanFeature* feature, const uint8_t* data, uint32_t size, Writer* out) noexcept nogil:
    """A list's heap bytes as a msgpack array."""
    cdef uint32_t count
    cdef uint32_t i
    cdef uint64_t element              # aligned, as elements behind a string are not
    cdef int code
    if feature.element_kind == STRING or feature.element_kind == BYTES:
        return texts_write(feature, data, size, out)
    count = size // feature.element_width
    code = writer_array(out, count)
    for i in range(count):
        memcpy(&element, data + i * feature.element_width, feature.element_width)
        if code == CODEC_OK:
            code = scalar_write(feature.element_kind, <const uint8_t*>&element, out)
    return code


cdef int value_write(
    const PlanFeature* feature, const TableView* table, const uint8_t* row, Writer* out,
) noexcept nogil:
    """One feature's value, nil where there is none."""
    cdef const uint8_t* data
    cdef uint32_t size
    cdef uint32_t i
    cdef int code
    if not has_value(feature, row):
        return writer_nil(out)
    if feature.kind < STRING:
        return scalar_write(feature.kind, row + feature.offset, out)
    if feature.kind == VECTOR:
        code = writer_array(out, feature.size)
        for i in range(feature.size):
            if code == CODEC_OK:
                code = scalar_write(feature.element_kind, row + feature.offset + i * feature.element_width, out)
        return code
    data = cell_bytes(table, row, feature.offset, &size)
    if feature.kind == STRING:
        return writer_str(out, data, size)
    if feature.kind == BYTES:
        return writer_bin(out, data, size)
    return list_write(feature, data, size, out)
