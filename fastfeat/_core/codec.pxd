"""C face of the codec: msgpack values read from borrowed bytes and written to a growing buffer.

    Reader  at ---> [ value | value | ... ] <--- end      borrows; `at` moves past a value only with CODEC_OK
    Writer  data -> [ written: size | spare ] capacity    owns; freed with writer_free

Errors:  every reader_ and writer_ function returns CODEC_OK or a negative code. A failed read leaves the Reader where
         it was; a failed write leaves the Writer's bytes before its old `size` as they were. `codec_raise` makes an
         exception of a code at the border.
Promise: an array or map header claims no more elements than bytes are left, so a count may be trusted for allocating
         that many small things.
"""

from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef extern from "endian.h" nogil:
    uint16_t be16toh(uint16_t value)
    uint32_t be32toh(uint32_t value)
    uint64_t be64toh(uint64_t value)
    uint16_t htobe16(uint16_t value)
    uint32_t htobe32(uint32_t value)
    uint64_t htobe64(uint64_t value)


cdef enum:
    CODEC_OK = 0
    CODEC_TRUNCATED = -1   # the bytes end inside the value
    CODEC_TYPE = -2        # the next value has another type
    CODEC_RANGE = -3       # an integer that the target cannot hold
    CODEC_DEPTH = -4       # nested deeper than allowed
    CODEC_VALUES = -5      # more values in one message than allowed
    CODEC_MEMORY = -6      # no memory for the writer
    CODEC_TOO_LARGE = -7   # a frame longer than allowed

    FRAME_HEAD_SIZE = 4    # u32 big-endian payload size
    DEPTH_MAX = 16         # of any message; ours need 6


cdef enum:
    KIND_END = 0           # no bytes left
    KIND_NIL = 1
    KIND_BOOL = 2
    KIND_INT = 3
    KIND_FLOAT = 4
    KIND_STR = 5
    KIND_BIN = 6
    KIND_ARRAY = 7
    KIND_MAP = 8
    KIND_OTHER = 9         # extension types and the unused byte 0xc1: never part of a message


cdef struct Reader:
    const uint8_t* at
    const uint8_t* end


cdef struct Writer:
    uint8_t* data
    size_t size
    size_t capacity


cdef int writer_grow(Writer* writer, size_t more) noexcept nogil
cdef void writer_free(Writer* writer) noexcept nogil
cdef void writer_drop_until(Writer* writer, const uint8_t* to) noexcept nogil
cdef int reader_skip(Reader* reader, uint32_t depth_max) noexcept nogil
cdef int codec_raise(int code, str where) except -1
cdef object reader_object(Reader* reader, uint64_t* values_left, uint32_t depth_left)
cdef int writer_object(Writer* writer, object value, uint32_t depth_left) except -1


cdef inline uint64_t load_be(const uint8_t* at, size_t width) noexcept nogil:
    cdef uint16_t two
    cdef uint32_t four
    cdef uint64_t eight
    if width == 1:
        return at[0]
    if width == 2:
        memcpy(&two, at, 2)
        return be16toh(two)
    if width == 4:
        memcpy(&four, at, 4)
        return be32toh(four)
    memcpy(&eight, at, 8)
    return be64toh(eight)


cdef inline void store_be32(uint8_t* at, uint32_t value) noexcept nogil:
    cdef uint32_t four = htobe32(value)
    memcpy(at, &four, 4)


# Reading ------------------------------------------------------------------------------------------------------------


cdef inline size_t reader_left(const Reader* reader) noexcept nogil:
    return <size_t> (reader.end - reader.at)


cdef inline int reader_kind(const Reader* reader) noexcept nogil:
    """The kind of the next value; consumes nothing."""
    cdef uint8_t tag
    if reader.at >= reader.end:
        return KIND_END
    tag = reader.at[0]
    if tag < 0x80 or tag >= 0xe0 or 0xcc <= tag <= 0xd3:
        return KIND_INT
    if tag < 0x90 or tag >= 0xde:
        return KIND_MAP
    if tag < 0xa0 or tag >= 0xdc:
        return KIND_ARRAY
    if tag < 0xc0 or tag >= 0xd9:
        return KIND_STR
    if tag == 0xc0:
        return KIND_NIL
    if tag == 0xc2 or tag == 0xc3:
        return KIND_BOOL
    if 0xc4 <= tag <= 0xc6:
        return KIND_BIN
    if tag == 0xca or tag == 0xcb:
        return KIND_FLOAT
    return KIND_OTHER


cdef inline bint reader_take_nil(Reader* reader) noexcept nogil:
    """True, and nil consumed, where the next value is nil."""
    if reader.at < reader.end and reader.at[0] == 0xc0:
        reader.at += 1
        return True
    return False


cdef inline int reader_bool(Reader* reader, bint* value) noexcept nogil:
    if reader.at >= reader.end:
        return CODEC_TRUNCATED
    if reader.at[0] != 0xc2 and reader.at[0] != 0xc3:
        return CODEC_TYPE
    value[0] = reader.at[0] == 0xc3
    reader.at += 1
    return CODEC_OK


cdef inline int reader_integer(Reader* reader, uint64_t* bits, bint* is_negative) noexcept nogil:
    """Any integer form: its 64 bits, and whether they are a negative int64."""
    cdef const uint8_t* at = reader.at
    cdef uint8_t tag
    cdef size_t width
    cdef int shift
    if at >= reader.end:
        return CODEC_TRUNCATED
    tag = at[0]
    if tag < 0x80 or tag >= 0xe0:
        bits[0] = <uint64_t> <int64_t> <int8_t> tag
        is_negative[0] = tag >= 0xe0
        reader.at = at + 1
        return CODEC_OK
    if tag < 0xcc or tag > 0xd3:
        return CODEC_TYPE
    width = <size_t> 1 << (tag & 3)
    if <size_t> (reader.end - at) <= width:
        return CODEC_TRUNCATED
    bits[0] = load_be(at + 1, width)
    is_negative[0] = False
    if tag >= 0xd0:
        shift = 64 - 8 * <int> width
        bits[0] = <uint64_t> (<int64_t> (bits[0] << shift) >> shift)
        is_negative[0] = <int64_t> bits[0] < 0
    reader.at = at + 1 + width
    return CODEC_OK


cdef inline int reader_int64(Reader* reader, int64_t* value) noexcept nogil:
    cdef const uint8_t* start = reader.at
    cdef uint64_t bits
    cdef bint is_negative
    cdef int code = reader_integer(reader, &bits, &is_negative)
    if code < 0:
        return code
    if not is_negative and bits > 0x7fffffffffffffffULL:
        reader.at = start
        return CODEC_RANGE
    value[0] = <int64_t> bits
    return CODEC_OK


cdef inline int reader_uint64(Reader* reader, uint64_t* value) noexcept nogil:
    cdef const uint8_t* start = reader.at
    cdef bint is_negative
    cdef int code = reader_integer(reader, value, &is_negative)
    if code == CODEC_OK and is_negative:
        reader.at = start
        return CODEC_RANGE
    return code


cdef inline int reader_float64(Reader* reader, double* value) noexcept nogil:
    """A float 32 or float 64; the bits of a NaN are kept."""
    cdef uint32_t four
    cdef uint64_t eight
    cdef float single
    cdef size_t left = reader_left(reader)
    if left == 0:
        return CODEC_TRUNCATED
    if reader.at[0] == 0xcb:
        if left < 9:
            return CODEC_TRUNCATED
        eight = load_be(reader.at + 1, 8)
        memcpy(value, &eight, 8)
        reader.at += 9
        return CODEC_OK
    if reader.at[0] == 0xca:
        if left < 5:
            return CODEC_TRUNCATED
        four = <uint32_t> load_be(reader.at + 1, 4)
        memcpy(&single, &four, 4)
        value[0] = single
        reader.at += 5
        return CODEC_OK
    return CODEC_TYPE


cdef inline int reader_length(Reader* reader, uint8_t tag_first, uint32_t* length) noexcept nogil:
    """The length behind a tag; tag_first has a one- or two-byte length (by its family), the next tags twice as much."""
    cdef uint8_t step = reader.at[0] - tag_first
    cdef size_t width = <size_t> 1 << step
    if reader_left(reader) <= width:
        return CODEC_TRUNCATED
    length[0] = <uint32_t> load_be(reader.at + 1, width)
    reader.at += 1 + width
    return CODEC_OK


cdef inline int reader_span(Reader* reader, const uint8_t* start, const uint8_t** data, uint32_t size) noexcept nogil:
    if reader_left(reader) < size:
        reader.at = start
        return CODEC_TRUNCATED
    data[0] = reader.at
    reader.at += size
    return CODEC_OK


cdef inline int reader_str(Reader* reader, const uint8_t** data, uint32_t* size) noexcept nogil:
    """A str's bytes, borrowed; whether they are UTF-8 is the caller's question."""
    cdef const uint8_t* start = reader.at
    cdef uint8_t tag
    cdef int code
    if start >= reader.end:
        return CODEC_TRUNCATED
    tag = start[0]
    if 0xa0 <= tag <= 0xbf:
        size[0] = tag & 0x1f
        reader.at += 1
    elif 0xd9 <= tag <= 0xdb:
        code = reader_length(reader, 0xd9, size)
        if code < 0:
            return code
    else:
        return CODEC_TYPE
    return reader_span(reader, start, data, size[0])


cdef inline int reader_bin(Reader* reader, const uint8_t** data, uint32_t* size) noexcept nogil:
    """A bin's bytes, borrowed."""
    cdef const uint8_t* start = reader.at
    cdef int code
    if start >= reader.end:
        return CODEC_TRUNCATED
    if not 0xc4 <= start[0] <= 0xc6:
        return CODEC_TYPE
    code = reader_length(reader, 0xc4, size)
    if code < 0:
        return code
    return reader_span(reader, start, data, size[0])


cdef inline int reader_count(Reader* reader, uint8_t fix, uint8_t tag_16, uint32_t* count) noexcept nogil:
    """The count of an array (fix 0x90, tag_16 0xdc) or map (0x80, 0xde); no more than the bytes left."""
    cdef const uint8_t* start = reader.at
    cdef int code
    if start >= reader.end:
        return CODEC_TRUNCATED
    if start[0] & 0xf0 == fix:
        count[0] = start[0] & 0x0f
        reader.at += 1
    elif start[0] == tag_16 or start[0] == tag_16 + 1:
        code = reader_length(reader, tag_16 - 1, count)
        if code < 0:
            return code
    else:
        return CODEC_TYPE
    if count[0] > reader_left(reader):
        reader.at = start
        return CODEC_TRUNCATED
    return CODEC_OK


cdef inline int reader_array(Reader* reader, uint32_t* count) noexcept nogil:
    return reader_count(reader, 0x90, 0xdc, count)


cdef inline int reader_map(Reader* reader, uint32_t* count) noexcept nogil:
    """The number of pairs."""
    return reader_count(reader, 0x80, 0xde, count)


cdef inline int frame_next(Reader* reader, size_t frame_size_max, Reader* payload) noexcept nogil:
    """1 and the payload of the next frame, 0 where its bytes have not all come, CODEC_TOO_LARGE."""
    cdef size_t size
    if reader_left(reader) < FRAME_HEAD_SIZE:
        return 0
    size = <size_t> load_be(reader.at, FRAME_HEAD_SIZE)
    if size > frame_size_max:
        return CODEC_TOO_LARGE
    if reader_left(reader) - FRAME_HEAD_SIZE < size:
        return 0
    payload.at = reader.at + FRAME_HEAD_SIZE
    payload.end = payload.at + size
    reader.at = payload.end
    return 1


# Writing ------------------------------------------------------------------------------------------------------------


cdef inline int writer_reserve(Writer* writer, size_t more) noexcept nogil:
    """Room for `more` bytes behind `size`; pointers into `data` are invalid afterwards."""
    if writer.capacity - writer.size >= more:
        return CODEC_OK
    return writer_grow(writer, more)


cdef inline int writer_raw(Writer* writer, const void* data, size_t size) noexcept nogil:
    if writer_reserve(writer, size) < 0:
        return CODEC_MEMORY
    if size:
        memcpy(writer.data + writer.size, data, size)
        writer.size += size
    return CODEC_OK


cdef inline int writer_byte(Writer* writer, uint8_t value) noexcept nogil:
    if writer_reserve(writer, 1) < 0:
        return CODEC_MEMORY
    writer.data[writer.size] = value
    writer.size += 1
    return CODEC_OK


cdef inline int writer_tagged(Writer* writer, uint8_t tag, uint64_t bits, size_t width) noexcept nogil:
    """A tag, then the low `width` bytes of `bits`, big-endian."""
    cdef uint64_t eight = htobe64(bits << (64 - 8 * width))
    if writer_reserve(writer, 9) < 0:
        return CODEC_MEMORY
    writer.data[writer.size] = tag
    memcpy(writer.data + writer.size + 1, &eight, 8)  # 9 are reserved: one store for every width
    writer.size += 1 + width
    return CODEC_OK


cdef inline int writer_nil(Writer* writer) noexcept nogil:
    return writer_byte(writer, 0xc0)


cdef inline int writer_bool(Writer* writer, bint value) noexcept nogil:
    return writer_byte(writer, 0xc3 if value else 0xc2)


cdef inline int writer_uint(Writer* writer, uint64_t value) noexcept nogil:
    if value < 0x80:
        return writer_byte(writer, <uint8_t> value)
    if value <= 0xff:
        return writer_tagged(writer, 0xcc, value, 1)
    if value <= 0xffff:
        return writer_tagged(writer, 0xcd, value, 2)
    if value <= 0xffffffffU:
        return writer_tagged(writer, 0xce, value, 4)
    return writer_tagged(writer, 0xcf, value, 8)


cdef inline int writer_int(Writer* writer, int64_t value) noexcept nogil:
    if value >= 0:
        return writer_uint(writer, <uint64_t> value)
    if value >= -32:
        return writer_byte(writer, <uint8_t> value)
    if value >= -128:
        return writer_tagged(writer, 0xd0, <uint64_t> value, 1)
    if value >= -32768:
        return writer_tagged(writer, 0xd1, <uint64_t> value, 2)
    if value >= -2147483648LL:
        return writer_tagged(writer, 0xd2, <uint64_t> value, 4)
    return writer_tagged(writer, 0xd3, <uint64_t> value, 8)


cdef inline int writer_float32(Writer* writer, float value) noexcept nogil:
    cdef uint32_t bits
    memcpy(&bits, &value, 4)
    return writer_tagged(writer, 0xca, bits, 4)


cdef inline int writer_float64(Writer* writer, double value) noexcept nogil:
    cdef uint64_t bits
    memcpy(&bits, &value, 8)
    return writer_tagged(writer, 0xcb, bits, 8)


cdef inline int writer_array(Writer* writer, uint32_t count) noexcept nogil:
    if count < 16:
        return writer_byte(writer, <uint8_t> (0x90 | count))
    if count <= 0xffff:
        return writer_tagged(writer, 0xdc, count, 2)
    return writer_tagged(writer, 0xdd, count, 4)


cdef inline int writer_map(Writer* writer, uint32_t count) noexcept nogil:
    if count < 16:
        return writer_byte(writer, <uint8_t> (0x80 | count))
    if count <= 0xffff:
        return writer_tagged(writer, 0xde, count, 2)
    return writer_tagged(writer, 0xdf, count, 4)


cdef inline int writer_str(Writer* writer, const void* data, uint32_t size) noexcept nogil:
    """A str of `size` bytes, which must be UTF-8."""
    cdef int code
    if size < 32:
        code = writer_byte(writer, <uint8_t> (0xa0 | size))
    elif size <= 0xff:
        code = writer_tagged(writer, 0xd9, size, 1)
    elif size <= 0xffff:
        code = writer_tagged(writer, 0xda, size, 2)
    else:
        code = writer_tagged(writer, 0xdb, size, 4)
    return writer_raw(writer, data, size) if code == CODEC_OK else code


cdef inline int writer_bin_head(Writer* writer, uint32_t size) noexcept nogil:
    if size <= 0xff:
        return writer_tagged(writer, 0xc4, size, 1)
    if size <= 0xffff:
        return writer_tagged(writer, 0xc5, size, 2)
    return writer_tagged(writer, 0xc6, size, 4)


cdef inline uint8_t* writer_bin_begin(Writer* writer, uint32_t size) noexcept nogil:
    """A bin whose `size` bytes the caller fills in place, before any other write; NULL without memory."""
    if writer_reserve(writer, <size_t> size + 9) < 0:
        return NULL
    writer_bin_head(writer, size)
    writer.size += size
    return writer.data + writer.size - size


cdef inline int writer_bin(Writer* writer, const void* data, uint32_t size) noexcept nogil:
    if writer_bin_head(writer, size) < 0:
        return CODEC_MEMORY
    return writer_raw(writer, data, size)


cdef inline int writer_frame_begin(Writer* writer, size_t* frame_at) noexcept nogil:
    """Space for a frame's head; frame_at says where, for writer_frame_end."""
    if writer_reserve(writer, FRAME_HEAD_SIZE) < 0:
        return CODEC_MEMORY
    frame_at[0] = writer.size
    writer.size += FRAME_HEAD_SIZE
    return CODEC_OK


cdef inline void writer_frame_end(Writer* writer, size_t frame_at) noexcept nogil:
    store_be32(writer.data + frame_at, <uint32_t> (writer.size - frame_at - FRAME_HEAD_SIZE))
