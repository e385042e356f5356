"""Tiles: running sums inside a block of an event view, from which a window's sum is a difference.

    rows       | 0 .. 7 | 8 .. 15 | 16 .. 23 | 24 ..        a block, TILE = 8 rows each
    created    |  max0  |  max1   |  max2    |              the greatest created time up to the tile's end
    anchor     one per summed column: its tiles count 2**anchor
    tiles      |  T0    |  T1     |  T2      |              per summed column: exact sum and count up to the tile's end

    sum of rows [3, 21) = rows 3..7 + (T1 - T0) + rows 16..20

A tile is one integer of 128 bits, sum * 2**16 + number of values, so that one subtraction gives both. Sums are exact:
a block's tiles, another block's and single rows add up to the same bits, however they were cut.

The anchor is chosen from the values that a block is built with: what comes later may be 2**9 times as large as the
largest of them or far smaller and still fits. What does not fit (or is NaN or infinite) makes its tile and those after
it say so, and their rows are read one by one: slower, never wrong. A rebuilt block chooses again.

Invariant:  tile k is written before the count that makes its last row visible; it never changes after.
Ordering:   the writer's release store of count publishes rows and tiles alike.
Errors:     none.
"""

from libc.stdint cimport INT64_MIN, int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t

from .columns cimport FLOAT32, FLOAT64, row_is_null
from .exact cimport FINITE, int128
from .timeline cimport (
    SumColumn, block_capacity, block_count, block_createds, block_events, block_key_size, block_row,
)

cdef enum:
    ROOM_ABOVE = 24           # the largest significand is shifted by 24 to 39 bits: 9 to 24 are left above
    ANCHOR_STEP = 16          # anchors are multiples, so that most blocks of a timeline have the same
    EXPONENT_OF_ONE = -52


cdef inline void block_view(BlockHeader* block, BlockView* view) noexcept nogil:
    view.header = block
    view.count = block_count(block)
    view.capacity = block_capacity(block)
    view.key_size = block_key_size(block)
    view.events = block_events(block)


cdef int32_t anchor_of(
    const TableView* view, BlockHeader* block, const SumColumn* column, uint32_t count,
) noexcept nogil:
    """2**anchor divides what rows [0, count) of the column hold, where their magnitudes are not too far apart."""
    cdef uint64_t magnitude
    cdef int32_t exponent
    cdef int32_t highest = EXPONENT_OF_ONE
    cdef bint negative
    cdef bint is_found = False
    cdef const uint8_t* row
    cdef uint32_t i
    if column.kind != FLOAT64 and column.kind != FLOAT32:
        return 0
    for i in range(count):
        row = block_row(view, block, i)
        if row_is_null(row, column.field):
            continue
        if cell_split(column.kind, row + column.offset, &magnitude, &exponent, &negative) == FINITE and magnitude:
            if not is_found or exponent > highest:
                highest = exponent
                is_found = True
    return ((highest - ROOM_ABOVE) >> 4) << 4       # ANCHOR_STEP


cdef void tiles_build(const TableView* view, BlockHeader* block) noexcept nogil:
    cdef BlockView opened
    cdef int16_t* anchors
    cdef uint32_t c
    if view.sums_count == 0 or block_capacity(block) < TILE:
        return
    block_view(block, &opened)
    anchors = <int16_t*>tiles_anchors(view, &opened)
    for c in range(view.sums_count):
        anchors[c] = <int16_t>anchor_of(view, block, &view.sums[c], block_count(block))
    tiles_extend(view, block, 0, block_count(block))


cdef void tiles_extend(const TableView* view, BlockHeader* block, uint32_t low, uint32_t high) noexcept nogil:
    cdef BlockView opened
    cdef int64_t* created
    cdef const int64_t* createds = block_createds(block)
    cdef int64_t latest
    cdef uint32_t first = low // TILE
    cdef uint32_t end = high // TILE
    cdef uint32_t k
    cdef uint32_t i
    cdef uint32_t c
    if view.sums_count == 0 or block_capacity(block) < TILE or first == end:
        return
    block_view(block, &opened)
    created = <int64_t*>tiles_created(view, &opened)
    for k in range(first, end):
        latest = created[k - 1] if k else INT64_MIN
        for i in range(k * TILE, k * TILE + TILE):
            latest = max(latest, createds[i])
        created[k] = latest
    for c in range(view.sums_count):
        column_extend(view, block, &opened, c, first, end)


cdef void column_extend(
    const TableView* view, BlockHeader* block, const BlockView* opened, uint32_t c, uint32_t first, uint32_t end,
) noexcept nogil:
    cdef const SumColumn* column = &view.sums[c]
    cdef Tile* tiles = <Tile*>tiles_of(view, opened, c)
    cdef int32_t anchor = tiles_anchors(view, opened)[c]
    cdef int128 word = 0
    cdef int128 term
    cdef bint fits = True
    cdef const uint8_t* row
    cdef uint32_t k
    cdef uint32_t i
    if first:
        fits = tile_fits(&tiles[first - 1], &word)
    for k in range(first, end):
        i = k * TILE
        while fits and i < k * TILE + TILE:
            row = block_row(view, block, i)
            if not row_is_null(row, column.field):
                fits = cell_term(column.kind, row + column.offset, anchor, &term)
                if fits:
                    word += (term << COUNT_BITS) + 1
            i += 1
        tiles[k].low = <uint64_t>word
        tiles[k].high = <int64_t>(word >> 64) if fits else INT64_MIN
