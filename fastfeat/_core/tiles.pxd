from libc.stdint cimport INT64_MIN, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .atomics cimport ff_unlikely, load_once_u16, load_once_u64
from .columns cimport (
    BOOL, FLOAT32, FLOAT64, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64,
)
from .exact cimport FINITE, INFINITE, Finite, double_split, int128, uint128
from .layout cimport BlockHeader
from .timeline cimport TILE, BlockView, TableView

cdef enum:
    COUNT_BITS = 16           # of a tile's word: values counted; the bits above are their sum
    SHIFT_MAX = 48            # of a significand: with the sum of 2**16 such and the count, 128 bits are enough

cdef struct Tile:             # sum * 2**COUNT_BITS + count of a block's first rows, to the end of this tile; 128 bits
    uint64_t low
    int64_t high              # INT64_MIN: some value of them does not fit, read the rows


cdef inline bint tile_fits(const Tile* tile, int128* word) noexcept nogil:
    cdef int64_t high = <int64_t>load_once_u64(&tile.high)
    if ff_unlikely(high == INT64_MIN):
        return False
    word[0] = (<int128>high << 64) | <int128>load_once_u64(&tile.low)
    return True


cdef inline const int64_t* tiles_created(const TableView* view, const BlockView* block) noexcept nogil:
    """The greatest created time of the block's first rows, to the end of each tile."""
    return <const int64_t*>(
        <const uint8_t*>(block.events + 3 * <uint64_t>block.capacity) + <uint64_t>block.capacity * view.row_stride
    )


cdef inline const int16_t* tiles_anchors(const TableView* view, const BlockView* block) noexcept nogil:
    """Per summed column: its tiles count 2**anchor."""
    return <const int16_t*>(tiles_created(view, block) + block.capacity // TILE)


cdef inline const Tile* tiles_of(const TableView* view, const BlockView* block, uint32_t sum) noexcept nogil:
    """The tiles of a summed column; there are capacity // TILE."""
    cdef const uint8_t* at = <const uint8_t*>tiles_anchors(view, block)
    return <const Tile*>(at + ((2 * view.sums_count + 7) & ~<uint32_t>7)) + <uint64_t>sum * (block.capacity // TILE)


cdef inline Finite cell_split(
    uint8_t kind, const uint8_t* cell, uint64_t* magnitude, int32_t* exponent, bint* negative,
) noexcept nogil:
    """A number's cell as +-magnitude * 2**exponent."""
    cdef int64_t value
    if kind == FLOAT64:
        return double_split((<const double*>cell)[0], magnitude, exponent, negative)
    if kind == FLOAT32:
        return double_split(<double>(<const float*>cell)[0], magnitude, exponent, negative)
    exponent[0] = 0
    negative[0] = False
    if kind == UINT64:
        magnitude[0] = (<const uint64_t*>cell)[0]
        return FINITE
    if kind == INT64:
        value = (<const int64_t*>cell)[0]
    elif kind == INT32:
        value = (<const int32_t*>cell)[0]
    elif kind == UINT32:
        value = (<const uint32_t*>cell)[0]
    elif kind == INT16:
        value = (<const int16_t*>cell)[0]
    elif kind == UINT16:
        value = (<const uint16_t*>cell)[0]
    elif kind == INT8:
        value = (<const int8_t*>cell)[0]
    else:                                 # UINT8, BOOL
        value = cell[0]
    negative[0] = value < 0
    magnitude[0] = <uint64_t>0 - <uint64_t>value if value < 0 else <uint64_t>value
    return FINITE


cdef inline bint cell_term(uint8_t kind, const uint8_t* cell, int32_t anchor, int128* term) noexcept nogil:
    """The cell as a multiple of 2**anchor, if it is one that tiles hold."""
    cdef uint64_t magnitude
    cdef int32_t exponent
    cdef int32_t shift
    cdef bint negative
    if cell_split(kind, cell, &magnitude, &exponent, &negative) != FINITE:
        return False
    if magnitude == 0:
        term[0] = 0
        return True
    shift = exponent - anchor
    if shift < 0:
        if shift < -63 or magnitude & ((<uint64_t>1 << -shift) - 1):
            return False
        magnitude >>= -shift
        shift = 0
    elif shift > SHIFT_MAX:
        return False
    term[0] = <int128>(<uint128>magnitude << shift)
    if negative:
        term[0] = -term[0]
    return True


# A block that was just built, its rows in their places: choose anchors and sum its whole tiles.
cdef void tiles_build(const TableView* view, BlockHeader* block) noexcept nogil
# Sum the tiles that rows [low, high), just written behind those published, make whole.
cdef void tiles_extend(const TableView* view, BlockHeader* block, uint32_t low, uint32_t high) noexcept nogil
