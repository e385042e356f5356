"""Windows: aggregates over the rows of an event view, computed when they are read.

    key --index--> timeline --two searches per range--> rows [first, end) of its blocks
                                   |
          count, sum, mean: differences of tiles (tiles.pyx) and a few rows at the edges
          all else, and whatever has conditions: values gathered in row order --aggregates.pyx--> the answer's row

    The answers of a window view are rows like those of a table (RowLayout of its features), in the request's own
    memory; what copies cells out of rows copies them out of these. Features over the same range, column and
    conditions share one pass.

Promise:     an answer depends on the set of rows alone: sums are exact (exact.pyx), the rest does not look at order
             or looks at the order of the rows themselves. No block, tile or path shows in it.
Concurrency: any number of readers under a pin. A timeline is looked at as it stood at one moment: its head is loaded
             before and after the count of its tail, and again where it changed between.
Safety:      as timeline.pyx: each offset and count is loaded once and held to the arena.
Errors:      statuses; BEFORE_HISTORY where a range may reach dropped rows; `has_failed` where there is no memory.
Source:      docs/SEMANTICS.md, "Windows".
"""

from libc.math cimport HUGE_VAL, NAN
from libc.stdint cimport (
    INT64_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memset

from .aggregates cimport (
    AMONG, AT_MOST, COUNT, EQUAL, LESS, MORE, NOT_AMONG, NOT_EQUAL, SUM, Condition, Constant, WindowFunction,
    WindowGroup, WindowPlan, WindowRange, WindowScratch, function_write, image_null, image_put_double, image_put_int,
)
from .arena cimport arena_end
from .atomics cimport (
    copy_once, cpu_relax, ff_seeded_bug, ff_unlikely, load_once_u16, load_once_u64,
    prefetch,
)
from .columns cimport (
    BYTES, FLOAT32, FLOAT64, INT8, INT16, INT32, INT64, STRING, TIMESTAMP, UINT16, UINT32, UINT64, key_at,
    key_size, row_is_null,
)
from .exact cimport (
    FINITE, INFINITE, Finite, exact_add, exact_add_int128, exact_clear, exact_init, exact_mean, int128, int128_mean,
    uint128,
)
from .layout cimport BLOCK_HEADER_SIZE, EVER, NEVER, STAMP_SIZE, DirectoryEntry, TimelineHead
from .status cimport BEFORE_HISTORY, DELETED, NOT_FOUND, PRESENT, TORN
from .tiles cimport (
    COUNT_BITS, Tile, cell_split, cell_term, tile_fits, tiles_anchors, tiles_created, tiles_of,
)
from .timeline cimport (
    GROUP, TILE, BlockView, block_count, block_has_key, block_head_at, block_open, cell_bytes, directory_of,
    first_block, head_of, is_inside, prefetch_slots, timeline_find,
)

cdef enum:
    PLAIN_ANCHOR = -80        # of rows in blocks too small for tiles
    ANCHOR_MIN = -1200        # what a double's exponent can come to
    ANCHOR_MAX = 1000
    STEPS_MAX = 8             # rows that a place moves on before it is searched for
    HINTS_MAX = 16            # ranges whose places are remembered
    ASKED_MIN = 16            # reads of one entity in a row for which its tail is summed row by row
    ROWS_PER_ASKED = 16       # and for how many of its rows one more of them pays
    WORDS_COLUMNS_MAX = 64
    AHEAD = 4                 # blocks on their way while one is summed


# --- one entity's rows, as they stood at one moment ------------------------------------------------------------------

cdef struct Place:            # between two rows: before row `row` of segment `segment`
    uint32_t segment
    uint32_t row


cdef struct Timeline:
    const TableView* view
    const DirectoryEntry* entries
    uint32_t first            # segments [first, last) are older blocks of the directory, segment `last` is the tail
    uint32_t last
    bint has_head
    bint is_torn
    uint64_t unread           # blocks lie side by side: together no more than the arena holds
    uint32_t opened           # the segment that `block` is of
    BlockView tail
    BlockView block
    const int128* words       # of the tail, see row_words; NULL: there are none
    uint64_t words_fit        # bit c: summed column c has them
    int64_t known_us          # rows [0, known_end) of the tail were created by then
    uint32_t known_end
    TimelineHead head
    Place now                 # where the last read of this entity ended
    Place low[HINTS_MAX]      # and where its ranges began and ended
    Place high[HINTS_MAX]


cdef void timeline_open(Timeline* t, const TableView* view, const BlockView* tail) noexcept nogil:
    cdef uint64_t end
    cdef uint64_t head_at
    cdef int _
    t.view = view
    t.tail = tail[0]
    t.first = 0
    t.last = 0
    t.is_torn = False
    t.words = NULL
    t.known_end = 0
    while True:                           # head and count change one at a time: see both as of one moment
        head_at = block_head_at(tail.header)
        if ff_seeded_bug("count_after_head"):
            for _ in range(20_000):
                cpu_relax()
        t.tail.count = block_count(tail.header)
        if ff_seeded_bug("count_after_head") or block_head_at(tail.header) == head_at:
            break
    end = arena_end(&view.arena)          # after the head's offset was loaded: so it covers it
    t.unread = end
    t.has_head = head_at != 0
    if ff_unlikely(t.tail.count > t.tail.capacity):
        t.is_torn = True
        return
    if t.has_head:
        if not is_inside(end, head_at, sizeof(TimelineHead)):
            t.is_torn = True
            return
        copy_once(&t.head, head_of(view, head_at), sizeof(TimelineHead))
        if not is_inside(end, t.head.directory_at, <uint64_t>t.head.directory_count * sizeof(DirectoryEntry)):
            t.is_torn = True
            return
        t.entries = directory_of(view, t.head.directory_at)
        if t.head.directory_count > t.head.directory_first:
            t.first = t.head.directory_first
            t.last = t.head.directory_count
    t.opened = t.last
    t.block = t.tail
    memset(&t.now, 0, sizeof(Place))
    memset(t.low, 0, sizeof(t.low))
    memset(t.high, 0, sizeof(t.high))


cdef inline const BlockView* segment(Timeline* t, uint32_t s) noexcept nogil:
    """The block of a segment; NULL: torn."""
    cdef uint64_t size
    if s == t.last:
        return &t.tail
    if s != t.opened:
        t.opened = t.last                 # until it is found to be whole, `block` is of no segment
        if not block_open(t.view, load_once_u64(&t.entries[s].block_at), &t.block) or t.block.count == 0:
            t.is_torn = True
            return NULL
        t.opened = s
        size = BLOCK_HEADER_SIZE + <uint64_t>t.block.count * STAMP_SIZE
        if size > t.unread:
            t.is_torn = True
            return NULL
        t.unread -= size
    return &t.block


cdef inline const uint8_t* rows_of(const BlockView* block) noexcept nogil:
    return <const uint8_t*>(block.events + 3 * <uint64_t>block.capacity)


cdef inline bint moves_on(Timeline* t, Place* place, int64_t event_us) noexcept nogil:
    """Move a place of before to that of `event_us` if it is a few rows further in the same block; False: search.

    Why: a training set asks one entity at one moment after another.
    """
    cdef const BlockView* block
    cdef uint32_t row = place.row
    cdef uint32_t end
    if place.segment != t.last and place.segment != t.opened:
        return False
    block = &t.tail if place.segment == t.last else &t.block
    if row == 0 or row >= block.count or block.events[row - 1] >= event_us:
        return False
    end = min(row + STEPS_MAX, block.count)
    while row < end and block.events[row] < event_us:
        row += 1
    if row == end:
        return False
    place.row = row
    return True


cdef Place place_of(Timeline* t, int64_t event_us) noexcept nogil:
    """Before the first row with event_time >= event_us."""
    cdef Place place
    cdef const BlockView* block
    cdef uint32_t low = t.first
    cdef uint32_t high = t.last
    cdef uint32_t middle
    place.segment = t.last
    place.row = 0
    if low < high and not (t.tail.count > 0 and t.tail.events[0] < event_us):
        while low < high:                 # low: segments that begin before event_us
            middle = (low + high) >> 1
            if t.entries[middle].first_event < event_us:
                low = middle + 1
            else:
                high = middle
        place.segment = low - 1 if low > t.first else low
    block = segment(t, place.segment)
    if block == NULL:
        return place
    low = 0
    high = block.count
    if high > 0 and block.events[high - 1] < event_us:
        low = high
    while low < high:
        middle = (low + high) >> 1
        if block.events[middle] < event_us:
            low = middle + 1
        else:
            high = middle
    place.row = low
    return place


cdef uint8_t status_at(Timeline* t, int64_t event_us, int64_t known_us, int64_t* event_time) noexcept nogil:
    """The status of a point read, and its row's time."""
    cdef Place place
    cdef const BlockView* block
    cdef const int64_t* createds
    if not moves_on(t, &t.now, event_us + 1):
        t.now = place_of(t, event_us + 1)
    place = t.now
    event_time[0] = 0
    while not t.is_torn:
        block = segment(t, place.segment)
        if block == NULL:
            break
        createds = block.events + block.capacity
        while place.row > 0:
            place.row -= 1
            if createds[place.row] <= known_us:
                event_time[0] = block.events[place.row]
                return PRESENT
        if place.segment == t.first:
            if not t.has_head:
                return NOT_FOUND
            if reaches_dropped(t, INT64_MAX, event_us, known_us):
                return BEFORE_HISTORY
            return DELETED if t.head.deleted_us != NEVER else NOT_FOUND
        place.segment -= 1
        block = segment(t, place.segment)
        place.row = block.count if block != NULL else 0
    return TORN


cdef inline bint reaches_dropped(const Timeline* t, int64_t low_us, int64_t high_us, int64_t known_us) noexcept nogil:
    """True where rows that are not in memory may have event times in the range; low_us INT64_MAX: from ever."""
    return (
        t.has_head and t.head.has_dropped and high_us >= t.head.dropped_min_event
        and known_us >= t.head.dropped_min_created and (low_us == INT64_MAX or low_us <= t.head.dropped_last_event)
    )


# --- sums ------------------------------------------------------------------------------------------------------------

cdef struct Running:          # a sum on its way
    int128 value              # * 2**anchor
    int32_t anchor
    bint is_wide              # and scratch.sum
    bint has_nan
    bint has_plus
    bint has_minus
    uint64_t count


cdef inline void running_add(Running* r, WindowScratch* s, int128 value, int32_t anchor) noexcept nogil:
    if value == 0:
        return
    # Why 2**120: a block adds less than 2**112, so the sum of two never overflows.
    if ff_unlikely(r.value != 0 and (anchor != r.anchor or <uint128>((r.value >> 120) + 1) > 1)):
        exact_add_int128(&s.sum, r.value, r.anchor)
        r.is_wide = True
        r.value = 0
    r.anchor = anchor
    r.value += value


cdef inline void word_add(Running* r, WindowScratch* s, int128 word, int32_t anchor) noexcept nogil:
    """Add a difference of tiles."""
    r.count += <uint64_t>word & ((1 << COUNT_BITS) - 1)
    running_add(r, s, word >> COUNT_BITS, anchor)


cdef void rows_sum(
    const TableView* view, const WindowGroup* group, const BlockView* block, uint32_t low, uint32_t high,
    int64_t known_us, int32_t anchor, Running* r, WindowScratch* s,
) noexcept nogil:
    """Add rows one by one."""
    cdef const int64_t* createds = block.events + block.capacity
    cdef const uint8_t* row = rows_of(block) + <uint64_t>low * view.row_stride
    cdef int128 sum = 0
    cdef int128 term
    cdef uint64_t magnitude
    cdef int32_t exponent
    cdef bint negative
    cdef Finite finite
    cdef uint32_t i
    for i in range(low, high):
        if createds[i] <= known_us and not (group.is_nullable and row_is_null(row, <uint32_t>group.column)):
            r.count += 1
            if cell_term(group.kind, row + group.offset, anchor, &term):
                sum += term
            else:
                finite = cell_split(group.kind, row + group.offset, &magnitude, &exponent, &negative)
                if finite == FINITE:
                    exact_add(&s.sum, magnitude, negative, exponent)
                    r.is_wide = True
                elif finite == INFINITE:
                    r.has_plus = r.has_plus or not negative
                    r.has_minus = r.has_minus or negative
                else:
                    r.has_nan = True
        row += view.row_stride
    running_add(r, s, sum, anchor)


cdef inline bint all_known(
    const TableView* view, const BlockView* block, uint32_t high, int64_t known_us,
) noexcept nogil:
    """True where rows [0, high) were all created by known_us: then nobody need ask each of them."""
    cdef const int64_t* createds = block.events + block.capacity
    cdef uint32_t i = 0
    if known_us == EVER:
        return True
    if view.sums_count and high >= TILE and block.capacity >= TILE:
        i = high // TILE
        if tiles_created(view, block)[i - 1] > known_us:
            return False
        i *= TILE
    while i < high:
        if createds[i] > known_us:
            return False
        i += 1
    return True


cdef inline bint block_anchor(
    const TableView* view, const BlockView* block, int32_t sum, int32_t* anchor,
) noexcept nogil:
    """What the summed column's tiles count in; False: there are none, and any anchor will do."""
    anchor[0] = PLAIN_ANCHOR
    if block.capacity < TILE:
        return False
    anchor[0] = <int16_t>load_once_u16(<const uint16_t*>&tiles_anchors(view, block)[sum])
    if ff_unlikely(anchor[0] < ANCHOR_MIN or anchor[0] > ANCHOR_MAX):
        anchor[0] = PLAIN_ANCHOR          # no writer's: whatever comes of it is thrown away with the pin
        return False
    return True


cdef void block_sum(
    const TableView* view, const WindowGroup* group, const BlockView* block, uint32_t low, uint32_t high,
    int64_t known_us, Running* r, WindowScratch* s,
) noexcept nogil:
    """Add rows [low, high) of a block."""
    cdef uint32_t first = (low + TILE - 1) // TILE
    cdef uint32_t end = high // TILE
    cdef const Tile* tiles
    cdef int128 word
    cdef int128 before = 0
    cdef int32_t anchor
    if block_anchor(view, block, group.sum, &anchor) and first < end and all_known(view, block, high, known_us):
        tiles = tiles_of(view, block, group.sum)
        if tile_fits(&tiles[end - 1], &word) and (first == 0 or tile_fits(&tiles[first - 1], &before)):
            word_add(r, s, word - before, anchor)
            rows_sum(view, group, block, low, first * TILE, EVER, anchor, r, s)
            rows_sum(view, group, block, end * TILE, high, EVER, anchor, r, s)
            return
    rows_sum(view, group, block, low, high, known_us, anchor, r, s)


cdef void row_words(Timeline* t, WindowScratch* s) noexcept nogil:
    """Sum the tail row by row: word i of a summed column is the tile (tiles.pyx) of rows [0, i).

    Why: who asks one entity at many moments, as a training set does, then takes each window as one difference and adds
    no rows at its edges. A column with a value that does not fit, or without the memory, goes without.
    """
    cdef const TableView* view = t.view
    cdef const uint8_t* row
    cdef int128* words
    cdef int128 word
    cdef int128 term
    cdef uint64_t each = <uint64_t>t.tail.count + 1
    cdef uint32_t columns = min(view.sums_count, <uint32_t>WORDS_COLUMNS_MAX)
    cdef uint32_t c
    cdef uint32_t i
    cdef int32_t anchor
    if columns * each > s.words_capacity:
        words = <int128*>realloc(s.words, columns * each * sizeof(int128))
        if words == NULL:
            return
        s.words = words
        s.words_capacity = columns * each
    t.words = s.words
    t.words_fit = 0
    for c in range(columns):
        words = s.words + c * each
        block_anchor(view, &t.tail, c, &anchor)
        row = rows_of(&t.tail)
        word = 0
        words[0] = 0
        for i in range(t.tail.count):
            if not row_is_null(row, view.sums[c].field):
                if not cell_term(view.sums[c].kind, row + view.sums[c].offset, anchor, &term):
                    break
                word += (term << COUNT_BITS) + 1
            words[i + 1] = word
            row += view.row_stride
        else:
            t.words_fit |= <uint64_t>1 << c


cdef inline bint tail_sum(
    Timeline* t, const WindowGroup* group, uint32_t low, uint32_t high, int64_t known_us, Running* r, WindowScratch* s,
) noexcept nogil:
    """Add rows [low, high) of the tail, if row_words has summed it and they were all known. False: nothing is added."""
    cdef const int128* words
    cdef int32_t anchor
    if t.words == NULL or group.sum >= WORDS_COLUMNS_MAX or not t.words_fit >> group.sum & 1:
        return False
    if t.known_end < high or t.known_us != known_us:
        if not all_known(t.view, &t.tail, high, known_us):
            return False
        t.known_end = high
        t.known_us = known_us
    words = t.words + group.sum * (<uint64_t>t.tail.count + 1)
    block_anchor(t.view, &t.tail, group.sum, &anchor)
    word_add(r, s, words[high] - words[low], anchor)
    return True


cdef inline void rows_count(
    const TableView* view, const BlockView* block, uint32_t low, uint32_t high, int64_t known_us, Running* r,
) noexcept nogil:
    cdef const int64_t* createds = block.events + block.capacity
    cdef uint32_t i
    if all_known(view, block, high, known_us):
        r.count += high - low
        return
    for i in range(low, high):
        r.count += createds[i] <= known_us


cdef double running_mean(Running* r, WindowScratch* s, uint64_t count) noexcept nogil:
    """The sum / count."""
    if r.has_nan or (r.has_plus and r.has_minus):
        return NAN
    if r.has_plus or r.has_minus:
        return HUGE_VAL if r.has_plus else -HUGE_VAL
    if not r.is_wide:
        return int128_mean(r.value, r.anchor, count)
    if r.value != 0:
        exact_add_int128(&s.sum, r.value, r.anchor)
        r.value = 0
    return exact_mean(&s.sum, count)


cdef inline void prefetch_segment(Timeline* t, uint32_t s) noexcept nogil:
    if s < t.last:
        prefetch(<const void*>(<uint64_t>t.view.arena.base + load_once_u64(&t.entries[s].block_at)))


cdef void group_sum(
    const WindowPlan* plan, const WindowGroup* group, Timeline* t, Place low, Place high, int64_t known_us,
    WindowScratch* s, uint8_t* image,
) noexcept nogil:
    """Count, sum and mean of a range."""
    cdef Running r
    cdef const BlockView* block
    cdef const WindowFunction* function
    cdef uint32_t at
    cdef uint32_t first
    cdef uint32_t end
    cdef uint32_t f
    memset(&r, 0, sizeof(Running))
    for at in range(low.segment, high.segment + 1):
        prefetch_segment(t, at + AHEAD)
        block = segment(t, at)
        if block == NULL:
            return
        first = low.row if at == low.segment else 0
        end = min(high.row, block.count) if at == high.segment else block.count
        if end <= first:
            continue
        if group.sum >= 0:
            if at != t.last or not tail_sum(t, group, first, end, known_us, &r, s):
                block_sum(plan.source, group, block, first, end, known_us, &r, s)
        else:
            rows_count(plan.source, block, first, end, known_us, &r)
    for f in range(group.functions_first, group.functions_first + group.functions_count):
        function = &plan.functions[f]
        if function.function == COUNT:
            image_put_int(image, function, <int64_t>r.count)
        elif r.count == 0:
            image_null(image, function)
        elif function.function == SUM:
            image_put_double(image, function, running_mean(&r, s, 1))
        else:
            image_put_double(image, function, running_mean(&r, s, r.count))
    if r.is_wide:
        exact_clear(&s.sum)


# --- gathering -------------------------------------------------------------------------------------------------------

cdef inline int128 whole_of(uint8_t kind, const uint8_t* cell) noexcept nogil:
    if kind == INT64 or kind == TIMESTAMP:
        return (<const int64_t*>cell)[0]
    if kind == UINT64:
        return (<const uint64_t*>cell)[0]
    if kind == INT32:
        return (<const int32_t*>cell)[0]
    if kind == UINT32:
        return (<const uint32_t*>cell)[0]
    if kind == INT16:
        return (<const int16_t*>cell)[0]
    if kind == UINT16:
        return (<const uint16_t*>cell)[0]
    if kind == INT8:
        return (<const int8_t*>cell)[0]
    return cell[0]


cdef inline bint compared(int order, bint is_ordered, uint8_t operator) noexcept nogil:
    """What the operator says of the sign of a - b. Not ordered (a NaN): nothing holds but that they differ."""
    if operator == NOT_EQUAL or operator == NOT_AMONG:
        return not is_ordered or order != 0
    if not is_ordered:
        return False
    if operator == EQUAL or operator == AMONG:
        return order == 0
    if operator == LESS:
        return order < 0
    if operator == AT_MOST:
        return order <= 0
    return order > 0 if operator == MORE else order >= 0


cdef bint meets(
    const TableView* view, const WindowPlan* plan, const Condition* condition, const uint8_t* row,
) noexcept nogil:
    cdef const Constant* constant
    cdef const uint8_t* data = NULL
    cdef uint32_t size = 0
    cdef uint32_t i
    cdef bint is_any = condition.operator != NOT_AMONG
    cdef bint holds
    cdef int order
    cdef int128 whole = 0
    cdef double number = 0.0
    if row_is_null(row, condition.field):
        return False
    if condition.kind == FLOAT64:
        number = (<const double*>(row + condition.offset))[0]
    elif condition.kind == FLOAT32:
        number = <double>(<const float*>(row + condition.offset))[0]
    elif condition.kind == STRING or condition.kind == BYTES:
        data = cell_bytes(view, row, condition.offset, &size)
    else:
        whole = whole_of(condition.kind, row + condition.offset)
    for i in range(condition.constants_first, condition.constants_first + condition.constants_count):
        constant = &plan.constants[i]
        if condition.kind == FLOAT64 or condition.kind == FLOAT32:
            order = (number > constant.number) - (number < constant.number)
            holds = compared(order, number == number, condition.operator)
        elif condition.kind == STRING or condition.kind == BYTES:
            order = memcmp(data, constant.data, min(size, constant.size)) if size and constant.size else 0
            if order == 0:
                order = (size > constant.size) - (size < constant.size)
            holds = compared(order, True, condition.operator)
        else:
            order = (whole > constant.whole) - (whole < constant.whole)
            holds = compared(order, True, condition.operator)
        if holds == is_any:               # one of them is enough, or, of `not in`, one is too many
            return is_any
    return not is_any


cdef bint cells_room(WindowScratch* s, int64_t count) noexcept nogil:
    """Room for `count` gathered values."""
    cdef int64_t capacity
    cdef void* cells
    cdef void* keys
    if count <= s.cells_capacity:
        return True
    capacity = count + (count >> 1) + 64
    cells = realloc(s.cells, capacity * sizeof(void*))
    if cells != NULL:
        s.cells = <const uint8_t**>cells
    keys = realloc(s.keys, capacity * 8)
    if keys != NULL:
        s.keys = <uint64_t*>keys
    if cells == NULL or keys == NULL:
        s.has_failed = True
        return False
    s.cells_capacity = capacity
    return True


cdef int64_t gather(
    const WindowPlan* plan, const WindowGroup* group, Timeline* t, Place low, Place high, int64_t known_us,
    WindowScratch* s,
) noexcept nogil:
    """The values of the range's rows that count, in row order, into s.cells; -1: torn, or no memory."""
    cdef const TableView* view = plan.source
    cdef const BlockView* block
    cdef const int64_t* createds
    cdef const uint8_t* row
    cdef int64_t count = 0
    cdef uint32_t at
    cdef uint32_t i
    cdef uint32_t c
    cdef uint32_t first
    cdef uint32_t end
    cdef bint counts
    for at in range(low.segment, high.segment + 1):
        block = segment(t, at)
        if block == NULL:
            return -1
        first = low.row if at == low.segment else 0
        end = min(high.row, block.count) if at == high.segment else block.count
        if end <= first:
            continue
        if not cells_room(s, count + end - first):
            return -1
        createds = block.events + block.capacity
        row = rows_of(block) + <uint64_t>first * view.row_stride
        for i in range(first, end):
            counts = createds[i] <= known_us and not (group.column >= 0 and row_is_null(row, <uint32_t>group.column))
            c = group.conditions_first
            while counts and c < group.conditions_first + group.conditions_count:
                counts = meets(view, plan, &plan.conditions[c], row)
                c += 1
            if counts:
                s.cells[count] = row
                count += 1
            row += view.row_stride
    return count


# --- one entity, and a batch of them ---------------------------------------------------------------------------------

cdef void entity_windows(
    const WindowPlan* plan, WindowScratch* s, Timeline* t, int64_t entity, int64_t event_us, int64_t known_us,
    uint8_t* image, uint8_t* status,
) noexcept nogil:
    """Fill one answer's row."""
    cdef const WindowGroup* group
    cdef const WindowRange* range_
    cdef Place low
    cdef Place high
    cdef int64_t high_us = INT64_MAX
    cdef int64_t count
    cdef uint32_t g
    cdef uint32_t f
    cdef uint32_t known = 0
    cdef uint32_t hint
    cdef bint has_range = False
    for g in range(plan.groups_count):
        group = &plan.groups[g]
        t.unread = arena_end(&t.view.arena)
        if not has_range or group.range != known:
            range_ = &plan.ranges[group.range]
            if reaches_dropped(t, event_us + range_.low_us, event_us + range_.high_us, known_us):
                status[0] = BEFORE_HISTORY
                return
            hint = min(group.range, <uint32_t>HINTS_MAX - 1)
            if not has_range or event_us + range_.high_us != high_us:
                high_us = event_us + range_.high_us
                if not moves_on(t, &t.high[hint], high_us + 1):
                    t.high[hint] = place_of(t, high_us + 1)
                high = t.high[hint]
            if not moves_on(t, &t.low[hint], event_us + range_.low_us):
                t.low[hint] = place_of(t, event_us + range_.low_us)
            low = t.low[hint]
            if range_.high_us < range_.low_us:
                low = high
            known = group.range
            has_range = True
        if group.is_summed:
            group_sum(plan, group, t, low, high, known_us, s, image)
        else:
            count = gather(plan, group, t, low, high, known_us, s)
            if count < 0:
                break
            for f in range(group.functions_first, group.functions_first + group.functions_count):
                function_write(plan, group, &plan.functions[f], f, s, entity, count, image)
    if ff_unlikely(t.is_torn):
        status[0] = TORN


cdef void nothing_written(const WindowPlan* plan, WindowScratch* s, int64_t entity, uint8_t* image) noexcept nogil:
    """The aggregates of no rows."""
    cdef const WindowGroup* group
    cdef uint32_t g
    cdef uint32_t f
    for g in range(plan.groups_count):
        group = &plan.groups[g]
        for f in range(group.functions_first, group.functions_first + group.functions_count):
            function_write(plan, group, &plan.functions[f], f, s, entity, 0, image)


cdef inline bint is_key(const KeyView* keys, int64_t a, int64_t b) noexcept nogil:
    return key_size(keys, a) == key_size(keys, b) and memcmp(key_at(keys, a), key_at(keys, b), key_size(keys, a)) == 0


cdef void windows_read(
    const WindowPlan* plan, WindowScratch* scratch, const KeyView* keys, const uint64_t* hashes,
    int64_t low, int64_t high, const int64_t* event_us, const int64_t* known_us, int64_t step,
    const uint8_t** rows, uint8_t* statuses, int64_t* event_times,
) noexcept nogil:
    cdef const TableView* view = plan.source
    cdef uint64_t blocks_at[GROUP]
    cdef BlockView block
    cdef Timeline timeline
    cdef uint8_t* image
    cdef uint8_t found
    cdef uint8_t opened = NOT_FOUND
    cdef int64_t asked
    cdef int64_t start
    cdef int64_t end
    cdef int64_t i
    for start in range(low, high, 128):   # GROUP
        end = start + GROUP if start + GROUP < high else high
        if end - start > 1:
            prefetch_slots(view, hashes, start, end)
        for i in range(start, end):
            blocks_at[i - start] = first_block(view, hashes[i])
        for i in range(start, end):
            image = scratch.images + i * plan.image_stride
            memset(image, 0, plan.image_stride)
            (<uint64_t*>(image + plan.heap_offset))[0] = scratch.heap_size if plan.heap_offset else 0
            rows[i] = image
            event_times[i] = 0
            if i > low and hashes[i] == hashes[i - 1] and is_key(keys, i, i - 1):
                found = opened            # the entity of before: its timeline is at hand, as it stood then
            else:
                found = NOT_FOUND
                if blocks_at[i - start] != 0:
                    found = PRESENT
                    if ff_unlikely(not block_open(view, blocks_at[i - start], &block)):
                        found = TORN
                    elif not block_has_key(&block, key_at(keys, i), key_size(keys, i)):
                        found = timeline_find(view, hashes[i], key_at(keys, i), key_size(keys, i), &block)
                if found == PRESENT:
                    timeline_open(&timeline, view, &block)
                    asked = max(ASKED_MIN, timeline.tail.count // ROWS_PER_ASKED)
                    if not timeline.is_torn and i + asked < high and hashes[i + asked] == hashes[i]:
                        row_words(&timeline, scratch)
                opened = found
            statuses[i] = found
            if found == PRESENT:
                timeline.unread = arena_end(&view.arena)
                statuses[i] = TORN
                if not timeline.is_torn:
                    statuses[i] = status_at(&timeline, event_us[i * step], known_us[i * step], &event_times[i])
                if statuses[i] < BEFORE_HISTORY:
                    entity_windows(
                        plan, scratch, &timeline, i, event_us[i * step], known_us[i * step], image, &statuses[i]
                    )
            if found == NOT_FOUND:
                nothing_written(plan, scratch, i, image)
    if plan.heap_offset:                  # the heap has come to rest: from places in it to addresses
        for i in range(low, high):
            (<uint64_t*>(rows[i] + plan.heap_offset))[0] += <uint64_t>scratch.heap - 8


# --- how an answer comes about ---------------------------------------------------------------------------------------

cdef list window_spans(
    const WindowPlan* plan, uint32_t feature, uint64_t hash, const uint8_t* key, uint16_t size,
    int64_t event_us, int64_t known_us,
):
    """What one feature's window is made of: per block (rows, first, end, tiles_first, tiles_end, anchor).

    Rows [first, end) of the block lie in the window; of them those of tiles [tiles_first, tiles_end) are taken as one
    difference, the others one by one. No tiles and an anchor of None: all one by one. The caller holds a pin.
    """
    cdef const WindowGroup* group = NULL
    cdef const BlockView* opened
    cdef BlockView block
    cdef Timeline t
    cdef Place low
    cdef Place high
    cdef uint32_t g
    cdef uint32_t f
    cdef uint32_t first
    cdef uint32_t end
    cdef bint is_summed
    out = []
    for g in range(plan.groups_count):
        for f in range(plan.groups[g].functions_first, plan.groups[g].functions_first + plan.groups[g].functions_count):
            if plan.functions[f].field == feature:
                group = &plan.groups[g]
    if group == NULL or timeline_find(plan.source, hash, key, size, &block) != PRESENT:
        return out
    timeline_open(&t, plan.source, &block)
    if t.is_torn:
        return out
    high = place_of(&t, event_us + plan.ranges[group.range].high_us + 1)
    low = place_of(&t, event_us + plan.ranges[group.range].low_us)
    for g in range(low.segment, high.segment + 1):
        opened = segment(&t, g)
        if opened == NULL:
            break
        first = low.row if g == low.segment else 0
        end = min(high.row, opened.count) if g == high.segment else opened.count
        if first >= end:
            continue
        is_summed = group.is_summed and group.sum >= 0 and opened.capacity >= TILE
        is_summed = is_summed and (first + TILE - 1) // TILE < end // TILE
        if is_summed and all_known(plan.source, opened, end, known_us):
            anchor = tiles_anchors(plan.source, opened)[group.sum]
            out.append((opened.count, first, end, (first + TILE - 1) // TILE, end // TILE, anchor))
        else:
            out.append((opened.count, first, end, 0, 0, None))
    return out


# --- memory of a request ---------------------------------------------------------------------------------------------

cdef bint scratch_begin(WindowScratch* s, const WindowPlan* plan, int64_t count) noexcept nogil:
    """Room for the answers of `count` entities. False: no memory."""
    cdef size_t size = plan.image_stride * count
    cdef void* images
    if s.images == NULL:
        exact_init(&s.sum)
        exact_init(&s.squares)
    if size > s.images_size or s.images == NULL:
        images = realloc(s.images, size + 64)
        if images == NULL:
            return False
        s.images = <uint8_t*>images
        s.images_size = size
    s.heap_size = 0
    s.has_failed = False
    deferred_free(s)
    exact_clear(&s.sum)                   # an attempt that met a torn timeline leaves what it had
    exact_clear(&s.squares)
    return True


cdef void deferred_free(WindowScratch* s) noexcept nogil:
    cdef int64_t i
    for i in range(s.deferred_count):
        free(s.deferred[i].values)
    s.deferred_count = 0


cdef void scratch_free(WindowScratch* s) noexcept nogil:
    deferred_free(s)
    free(s.deferred)
    free(s.images)
    free(s.heap)
    free(s.cells)
    free(s.keys)
    free(s.words)
