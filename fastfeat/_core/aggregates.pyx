"""Aggregates: functions of gathered values, into a cell of an answer's row.

    rows (scratch.cells) --kind, offset--> keys: integers in the order of the values --> min, max, quantile, top_k ...

    A key is 64 bits whose unsigned order is that of the values: integers with their sign bit turned, floats as IEEE 754
    bits turned around zero, so that -0.0 comes before 0.0 and NaN, of whichever bits, last.

Promise:     none but first, last and last_n looks at the order of the rows.
Concurrency: plain functions of their arguments; the caller holds a pin.
Errors:      `has_failed` in the scratch: no memory, or an answer with more bytes than a row may have.
Source:      docs/SEMANTICS.md, "Windows".
"""

from libc.math cimport HUGE_VAL, NAN, floor
from libc.stdint cimport (
    UINT64_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

from .columns cimport (
    BYTES, FLOAT32, FLOAT64, INT8, INT16, INT32, INT64, LIST, STRING, TIMESTAMP, UINT8, UINT16, UINT32, UINT64, Cell,
    cell_double,
)
from .exact cimport (
    FINITE, INFINITE, Finite, double_bits, exact_add, exact_add_square, exact_clear, exact_mean, exact_variance,
)
from .index cimport hash_bytes
from .tiles cimport cell_split
from .timeline cimport cell_bytes

cdef enum:
    EXACT_VALUES_MAX = 65536  # of a quantile; beyond, a sketch takes over
    ANSWER_HEAP_MAX = 1 << 30     # bytes of one entity's lists and strings

cdef uint64_t SIGN = <uint64_t>1 << 63


# --- keys ------------------------------------------------------------------------------------------------------------

cdef inline uint64_t double_key(double value) noexcept nogil:
    cdef uint64_t bits = double_bits(value)
    if value != value:
        return UINT64_MAX
    return ~bits if bits & SIGN else bits | SIGN


cdef inline double key_double(uint64_t key) noexcept nogil:
    cdef uint64_t bits = key & ~SIGN if key & SIGN else ~key
    return NAN if key == UINT64_MAX else (<double*>&bits)[0]


cdef inline bint is_signed(uint8_t kind) noexcept nogil:
    return INT8 <= kind <= INT64 or kind == TIMESTAMP


cdef inline uint64_t cell_key(uint8_t kind, const uint8_t* cell) noexcept nogil:
    if kind == FLOAT64:
        return double_key((<const double*>cell)[0])
    if kind == FLOAT32:
        return double_key(<double>(<const float*>cell)[0])
    if kind == INT64 or kind == TIMESTAMP:
        return <uint64_t>(<const int64_t*>cell)[0] ^ SIGN
    if kind == INT32:
        return <uint64_t><int64_t>(<const int32_t*>cell)[0] ^ SIGN
    if kind == INT16:
        return <uint64_t><int64_t>(<const int16_t*>cell)[0] ^ SIGN
    if kind == INT8:
        return <uint64_t><int64_t>(<const int8_t*>cell)[0] ^ SIGN
    if kind == UINT64:
        return (<const uint64_t*>cell)[0]
    if kind == UINT32:
        return (<const uint32_t*>cell)[0]
    if kind == UINT16:
        return (<const uint16_t*>cell)[0]
    return cell[0]


cdef inline uint32_t key_write(uint8_t kind, uint64_t key, uint8_t* cell) noexcept nogil:
    """The value of a key as a cell of its type; returns its width."""
    cdef double number
    cdef float single
    cdef uint32_t width = 8
    if kind == FLOAT64:
        number = key_double(key)
        memcpy(cell, &number, 8)
        return 8
    if kind == FLOAT32:
        single = <float>key_double(key)
        memcpy(cell, &single, 4)
        return 4
    if is_signed(kind):
        key ^= SIGN
    if kind == INT32 or kind == UINT32:
        width = 4
    elif kind == INT16 or kind == UINT16:
        width = 2
    elif kind == INT8 or kind == UINT8 or kind == 0:      # BOOL
        width = 1
    memcpy(cell, &key, width)             # little-endian, as everything in the arena
    return width


cdef void keys_gather(const WindowGroup* group, WindowScratch* s, int64_t count) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        s.keys[i] = cell_key(group.kind, s.cells[i] + group.offset)


cdef int descending(const void* a, const void* b) noexcept nogil:
    cdef uint64_t x = (<const uint64_t*>a)[0]
    cdef uint64_t y = (<const uint64_t*>b)[0]
    return (x < y) - (x > y)


cdef uint64_t keys_select(uint64_t* keys, int64_t count, int64_t k) noexcept nogil:
    """The key of rank k; afterwards none before it is greater and none after it less."""
    cdef int64_t low = 0
    cdef int64_t high = count - 1
    cdef int64_t i
    cdef int64_t j
    cdef uint64_t pivot
    cdef uint64_t held
    while low < high:
        pivot = keys[low + ((high - low) >> 1)]
        i = low
        j = high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                held = keys[i]
                keys[i] = keys[j]
                keys[j] = held
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return keys[k]


# --- the heap of an answer -------------------------------------------------------------------------------------------

cdef uint8_t* heap_room(
    const WindowPlan* plan, const WindowFunction* function, WindowScratch* s, uint64_t size, uint8_t* image,
) noexcept nogil:
    """Bytes for a variable cell, whose place is written; NULL: none needed, or none to be had."""
    cdef uint64_t start = (<uint64_t*>(image + plan.heap_offset))[0]
    cdef size_t capacity
    cdef uint8_t* heap
    cdef Cell cell
    if size == 0:
        return NULL
    if s.heap_size + size - start > ANSWER_HEAP_MAX:
        s.has_failed = True
        return NULL
    if s.heap_size + size > s.heap_capacity:
        capacity = s.heap_size + size
        capacity += (capacity >> 1) + 4096
        heap = <uint8_t*>realloc(s.heap, capacity)
        if heap == NULL:
            s.has_failed = True
            return NULL
        s.heap = heap
        s.heap_capacity = capacity
    cell.offset = <uint32_t>(s.heap_size - start)
    cell.size = <uint32_t>size
    memcpy(image + function.offset, &cell, sizeof(Cell))
    s.heap_size += size
    return s.heap + s.heap_size - size


# --- functions -------------------------------------------------------------------------------------------------------

cdef void extreme_write(
    const WindowGroup* group, const WindowFunction* function, WindowScratch* s, int64_t count, uint8_t* image,
) noexcept nogil:
    """min and max: NaN where there is one."""
    cdef bint is_float = group.kind == FLOAT64 or group.kind == FLOAT32
    cdef uint64_t found = cell_key(group.kind, s.cells[0] + group.offset)
    cdef uint64_t key
    cdef int64_t i
    for i in range(1, count):
        key = cell_key(group.kind, s.cells[i] + group.offset)
        if is_float and (key == UINT64_MAX or found == UINT64_MAX):
            found = UINT64_MAX
        elif (key > found) if function.function == MAX else (key < found):
            found = key
    key_write(group.kind, found, image + function.offset)


cdef void end_write(
    const WindowPlan* plan, const WindowGroup* group, const WindowFunction* function, WindowScratch* s,
    const uint8_t* row, uint8_t* image,
) noexcept nogil:
    """first and last: a row's cell as it is."""
    cdef const uint8_t* data
    cdef uint8_t* to
    cdef uint32_t size
    if group.kind == STRING or group.kind == BYTES or group.kind == LIST:
        data = cell_bytes(plan.source, row, group.offset, &size)
        to = heap_room(plan, function, s, size, image)
        if to != NULL:
            memcpy(to, data, size)
    else:
        memcpy(image + function.offset, row + group.offset, group.width)


cdef void moments_write(
    const WindowGroup* group, const WindowFunction* function, WindowScratch* s, int64_t count, uint8_t* image,
) noexcept nogil:
    """sum, mean, var and std."""
    cdef bint is_square = function.function == VAR or function.function == STD
    cdef bint has_nan = False
    cdef bint has_plus = False
    cdef bint has_minus = False
    cdef uint64_t magnitude
    cdef int32_t exponent
    cdef bint negative
    cdef Finite finite
    cdef double value
    cdef int64_t i
    if is_square and count < 2:
        image_null(image, function)
        return
    for i in range(count):
        finite = cell_split(group.kind, s.cells[i] + group.offset, &magnitude, &exponent, &negative)
        if finite == FINITE:
            exact_add(&s.sum, magnitude, negative, exponent)
            if is_square:
                exact_add_square(&s.squares, magnitude, exponent)
        elif finite == INFINITE:
            has_plus = has_plus or not negative
            has_minus = has_minus or negative
        else:
            has_nan = True
    if has_nan or (has_plus and has_minus) or (is_square and (has_plus or has_minus)):
        value = NAN
    elif has_plus or has_minus:
        value = HUGE_VAL if has_plus else -HUGE_VAL
    elif is_square:
        value = exact_variance(&s.sum, &s.squares, count, function.function == STD)
    else:
        value = exact_mean(&s.sum, count if function.function == MEAN else 1)
    image_put_double(image, function, value)
    exact_clear(&s.sum)
    if is_square:
        exact_clear(&s.squares)


cdef int64_t texts_distinct(
    const WindowPlan* plan, const WindowGroup* group, WindowScratch* s, int64_t count,
) noexcept nogil:
    """How many different strings."""
    cdef uint64_t slots = 16
    cdef int64_t distinct = 0
    cdef int64_t i
    cdef uint64_t at
    cdef uint64_t zero_seed[2]
    cdef uint32_t* table
    cdef const uint8_t* data
    cdef const uint8_t* other
    cdef uint32_t size
    cdef uint32_t other_size
    while slots < 2 * <uint64_t>count:
        slots *= 2
    table = <uint32_t*>malloc(4 * slots)  # number of a value + 1, 0: empty
    if table == NULL:
        s.has_failed = True
        return 0
    memset(table, 0, 4 * slots)
    memset(zero_seed, 0, 16)
    for i in range(count):
        data = cell_bytes(plan.source, s.cells[i], group.offset, &size)
        at = hash_bytes(zero_seed, data, size) & (slots - 1)
        while table[at]:
            other = cell_bytes(plan.source, s.cells[table[at] - 1], group.offset, &other_size)
            if size == other_size and (size == 0 or memcmp(data, other, size) == 0):
                break
            at = (at + 1) & (slots - 1)
        if table[at] == 0:
            table[at] = <uint32_t>i + 1
            distinct += 1
    free(table)
    return distinct


cdef int64_t distinct_count(
    const WindowPlan* plan, const WindowGroup* group, WindowScratch* s, int64_t count,
) noexcept nogil:
    """How many different values: -0.0 is 0.0, and all NaNs are one."""
    cdef int64_t distinct = 0
    cdef int64_t i
    if count == 0:
        return 0
    if group.kind == STRING or group.kind == BYTES:
        return texts_distinct(plan, group, s, count)
    keys_gather(group, s, count)
    if group.kind == FLOAT64 or group.kind == FLOAT32:
        for i in range(count):
            if s.keys[i] == ~SIGN:        # -0.0
                s.keys[i] = SIGN
    qsort(s.keys, count, 8, descending)
    for i in range(count):
        distinct += i == 0 or s.keys[i] != s.keys[i - 1]
    return distinct


cdef void quantile_write(
    const WindowGroup* group, const WindowFunction* function, uint32_t number, WindowScratch* s, int64_t entity,
    int64_t count, uint8_t* image,
) noexcept nogil:
    """Linear between neighbours: of sorted values v, v[h] where h = q * (count - 1)."""
    cdef double place = <double>(count - 1) * function.q
    cdef int64_t below = <int64_t>floor(place)
    cdef double part = place - <double>below
    cdef double low
    cdef double high
    cdef int64_t i
    for i in range(count):
        s.keys[i] = double_key(cell_double(group.kind, s.cells[i] + group.offset))
        if s.keys[i] == UINT64_MAX:
            image_put_double(image, function, NAN)
            return
    if count > EXACT_VALUES_MAX:
        defer(group, number, s, entity, count)
        return
    low = key_double(keys_select(s.keys, count, below))
    if part > 0.0:
        high = key_double(keys_select(s.keys, count, below + 1))
        if high != low:
            low += part * (high - low)
    image_put_double(image, function, low if low == low else NAN)     # of infinities; the processor's has a sign


cdef void defer(
    const WindowGroup* group, uint32_t number, WindowScratch* s, int64_t entity, int64_t count,
) noexcept nogil:
    """Keep the values, in row order, for a sketch that runs in Python."""
    cdef Deferred* deferred = <Deferred*>realloc(s.deferred, (s.deferred_count + 1) * sizeof(Deferred))
    cdef double* values = <double*>malloc(count * 8)
    cdef int64_t i
    if deferred != NULL:
        s.deferred = deferred
    if deferred == NULL or values == NULL:
        free(values)
        s.has_failed = True
        return
    for i in range(count):
        values[i] = cell_double(group.kind, s.cells[i] + group.offset)
    s.deferred[s.deferred_count].entity = entity
    s.deferred[s.deferred_count].function = number
    s.deferred[s.deferred_count].count = count
    s.deferred[s.deferred_count].values = values
    s.deferred_count += 1


cdef void texts_list_write(
    const WindowPlan* plan, const WindowGroup* group, const WindowFunction* function, WindowScratch* s, int64_t first,
    int64_t count, uint8_t* image,
) noexcept nogil:
    """A list of strings: count u32, sizes u32 each, then the bytes."""
    cdef uint64_t size = 4 + 4 * <uint64_t>(count - first)
    cdef uint32_t text_size
    cdef uint32_t number = <uint32_t>(count - first)
    cdef const uint8_t* data
    cdef uint8_t* to
    cdef uint64_t at = size
    cdef int64_t i
    for i in range(first, count):
        cell_bytes(plan.source, s.cells[i], group.offset, &text_size)
        size += text_size
    to = heap_room(plan, function, s, size, image)
    if to == NULL:
        return
    memcpy(to, &number, 4)
    for i in range(first, count):
        data = cell_bytes(plan.source, s.cells[i], group.offset, &text_size)
        if text_size > size - at:         # no longer what it was: this reader has lost its pin
            text_size = 0
        memcpy(to + 4 + 4 * (i - first), &text_size, 4)
        if text_size:
            memcpy(to + at, data, text_size)
        at += text_size


cdef void last_n_write(
    const WindowPlan* plan, const WindowGroup* group, const WindowFunction* function, WindowScratch* s, int64_t count,
    uint8_t* image,
) noexcept nogil:
    cdef int64_t first = count - function.n if count > function.n else 0
    cdef uint8_t* to
    cdef int64_t i
    if group.kind == STRING or group.kind == BYTES:
        texts_list_write(plan, group, function, s, first, count, image)
        return
    to = heap_room(plan, function, s, <uint64_t>(count - first) * group.width, image)
    if to == NULL:
        return
    for i in range(first, count):
        memcpy(to, s.cells[i] + group.offset, group.width)
        to += group.width


cdef void top_k_write(
    const WindowPlan* plan, const WindowGroup* group, const WindowFunction* function, WindowScratch* s, int64_t count,
    uint8_t* image,
) noexcept nogil:
    cdef int64_t kept = function.n if count > function.n else count
    cdef uint8_t* to
    cdef int64_t i
    if count == 0:
        return
    keys_gather(group, s, count)
    qsort(s.keys, count, 8, descending)
    to = heap_room(plan, function, s, <uint64_t>kept * group.width, image)
    if to == NULL:
        return
    for i in range(kept):
        to += key_write(group.kind, s.keys[i], to)


cdef void function_write(
    const WindowPlan* plan, const WindowGroup* group, const WindowFunction* function, uint32_t number,
    WindowScratch* s, int64_t entity, int64_t count, uint8_t* image,
) noexcept nogil:
    if function.function == COUNT:
        image_put_int(image, function, count)
    elif function.function == COUNT_DISTINCT:
        image_put_int(image, function, distinct_count(plan, group, s, count))
    elif function.function == LAST_N:
        last_n_write(plan, group, function, s, count, image)
    elif function.function == TOP_K:
        top_k_write(plan, group, function, s, count, image)
    elif count == 0:
        image_null(image, function)
    elif function.function == MIN or function.function == MAX:
        extreme_write(group, function, s, count, image)
    elif function.function == FIRST:
        end_write(plan, group, function, s, s.cells[0], image)
    elif function.function == LAST:
        end_write(plan, group, function, s, s.cells[count - 1], image)
    elif function.function == QUANTILE:
        quantile_write(group, function, number, s, entity, count, image)
    else:
        moments_write(group, function, s, count, image)
