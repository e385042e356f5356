"""Codec: msgpack values and length-prefixed frames, in C, from bounded bytes.

    frame   [ size u32 big-endian | payload: one msgpack array ]

    bytes --FrameSplitter--> payload --unpack--> Python values          (messages that are not hot)
    bytes --frame_next-----> Reader  --reader_*--> C values             (GET, see session)

Errors:  bytes that are not what docs/PROTOCOL.md allows raise RemoteProtocolError; values that cannot be packed raise
         LocalProtocolError. Extension types are no part of the protocol and are refused.
Bounds:  frame size, nesting depth and values per message are limited before anything is allocated for them.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.datetime cimport PyDateTime_Check, import_datetime
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memmove

from datetime import UTC, datetime, timedelta

from fastfeat.errors import DataError, LocalProtocolError, RemoteProtocolError

import_datetime()

FRAME_SIZE_MAX = 64 << 20  # bytes; the default of server and client, each may choose less
VALUES_MAX = 4 << 20       # of one message made into Python objects; bounds memory at about 64 B for each wire byte

cdef object INTEGER_MIN = -(1 << 63)
cdef object INTEGER_MAX = (1 << 64) - 1
cdef object EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
cdef object MICROSECOND = timedelta(microseconds=1)
cdef uint32_t KEY_SIZE_MAX = 32     # bytes of a map's key that is remembered
cdef uint32_t KEYS_MAX = 256        # remembered at one time, each in the one place that its bytes say
cdef list KEYS = [""] * KEYS_MAX
cdef uint64_t UINT32_MAX = 0xffffffffU


cdef int writer_grow(Writer* writer, size_t more) noexcept nogil:
    """Doubles the buffer until `more` bytes fit; CODEC_MEMORY leaves it as it was."""
    cdef size_t capacity = writer.capacity if writer.capacity else 256
    cdef uint8_t* data
    while capacity - writer.size < more:
        if capacity > <size_t> 1 << 46:
            return CODEC_MEMORY
        capacity *= 2
    data = <uint8_t*> realloc(writer.data, capacity)
    if data == NULL:
        return CODEC_MEMORY
    writer.data = data
    writer.capacity = capacity
    return CODEC_OK


cdef void writer_free(Writer* writer) noexcept nogil:
    free(writer.data)
    writer.data = NULL
    writer.size = writer.capacity = 0


cdef void writer_drop_until(Writer* writer, const uint8_t* to) noexcept nogil:
    """Drops the bytes before `to`; gives back memory that only a large frame needed."""
    cdef size_t left = <size_t> (writer.data + writer.size - to)
    if left == 0 and writer.capacity > <size_t> 1 << 20:
        writer_free(writer)
        return
    if left:
        memmove(writer.data, to, left)
    writer.size = left


cdef int reader_skip_scalar(Reader* reader) noexcept nogil:
    """Steps over one value that is neither array nor map."""
    cdef const uint8_t* data
    cdef uint32_t size
    cdef uint64_t bits
    cdef double number
    cdef bint flag
    cdef int kind = reader_kind(reader)
    if kind == KIND_INT:
        return reader_integer(reader, &bits, &flag)
    if kind == KIND_FLOAT:
        return reader_float64(reader, &number)
    if kind == KIND_STR:
        return reader_str(reader, &data, &size)
    if kind == KIND_BIN:
        return reader_bin(reader, &data, &size)
    if kind == KIND_NIL or kind == KIND_BOOL:
        reader.at += 1
        return CODEC_OK
    return CODEC_TRUNCATED if kind == KIND_END else CODEC_TYPE


cdef int reader_skip(Reader* reader, uint32_t depth_max) noexcept nogil:
    """Steps over one value of any kind, nested at most depth_max (never more than DEPTH_MAX) deep."""
    cdef uint64_t left[DEPTH_MAX + 1]
    cdef const uint8_t* start = reader.at
    cdef uint32_t depth = 0
    cdef uint32_t count
    cdef int kind
    cdef int code
    left[0] = 1
    while True:
        while left[depth] == 0:
            if depth == 0:
                return CODEC_OK
            depth -= 1
        left[depth] -= 1
        kind = reader_kind(reader)
        if kind == KIND_ARRAY or kind == KIND_MAP:
            code = reader_array(reader, &count) if kind == KIND_ARRAY else reader_map(reader, &count)
            if code == CODEC_OK and (depth >= depth_max or depth >= DEPTH_MAX):
                code = CODEC_DEPTH
            if code == CODEC_OK:
                depth += 1
                left[depth] = count if kind == KIND_ARRAY else 2 * <uint64_t> count
        else:
            code = reader_skip_scalar(reader)
        if code < 0:
            reader.at = start
            return code


cdef int codec_raise(int code, str where) except -1:
    """The exception for a code; `where` opens the message."""
    if code == CODEC_MEMORY:
        raise MemoryError(f"{where}: no memory for the message")
    if code == CODEC_TRUNCATED:
        raise RemoteProtocolError(f"{where}: the bytes end inside a value")
    if code == CODEC_TYPE:
        raise RemoteProtocolError(f"{where}: a value of another type stands there (docs/PROTOCOL.md has the shape)")
    if code == CODEC_RANGE:
        raise RemoteProtocolError(f"{where}: an integer does not fit in 64 bits of its sign")
    if code == CODEC_DEPTH:
        raise RemoteProtocolError(f"{where}: nested more than {DEPTH_MAX} deep")
    if code == CODEC_VALUES:
        raise RemoteProtocolError(f"{where}: more than {VALUES_MAX} values in one message; split it")
    raise RemoteProtocolError(f"{where}: the frame is longer than this side allows; split the message")


# Python objects -----------------------------------------------------------------------------------------------------


cdef inline int check(int code) except -1:
    return codec_raise(code, "message") if code < 0 else 0


cdef object utf8(const uint8_t* data, uint32_t size):
    try:
        return PyUnicode_DecodeUTF8(<const char*> data, size, NULL)
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"message: a str is not UTF-8: {error.reason} at byte {error.start}") from None


cdef object map_key(const uint8_t* data, uint32_t size):
    """A map's key as a str, the same object as the last time where it is short: names of fields come with every row."""
    cdef Py_ssize_t known_size = 0
    cdef const char* known
    cdef uint32_t place = size
    cdef uint32_t i
    if size > KEY_SIZE_MAX:
        return utf8(data, size)
    for i in range(size):
        place = place * 31 + data[i]
    place %= KEYS_MAX
    key = <str> KEYS[place]
    known = PyUnicode_AsUTF8AndSize(key, &known_size)
    if <uint32_t> known_size != size or memcmp(known, data, size) != 0:
        key = KEYS[place] = utf8(data, size)
    return key


cdef object reader_object(Reader* reader, uint64_t* values_left, uint32_t depth_left):
    """The next value as Python objects; at most values_left of them, nested at most depth_left deep."""
    cdef const uint8_t* data
    cdef uint32_t size = 0
    cdef uint64_t bits = 0
    cdef double number = 0
    cdef bint flag = False
    cdef int kind = reader_kind(reader)
    if values_left[0] == 0:
        codec_raise(CODEC_VALUES, "message")
    values_left[0] -= 1
    if kind == KIND_INT:
        check(reader_integer(reader, &bits, &flag))
        return <int64_t> bits if flag else bits
    if kind == KIND_FLOAT:
        check(reader_float64(reader, &number))
        return number
    if kind == KIND_STR:
        check(reader_str(reader, &data, &size))
        return utf8(data, size)
    if kind == KIND_BIN:
        check(reader_bin(reader, &data, &size))
        return PyBytes_FromStringAndSize(<const char*> data, size)
    if kind == KIND_ARRAY or kind == KIND_MAP:
        if depth_left == 0:
            codec_raise(CODEC_DEPTH, "message")
        if kind == KIND_ARRAY:
            return reader_list(reader, values_left, depth_left - 1)
        return reader_dict(reader, values_left, depth_left - 1)
    if kind == KIND_NIL:
        reader.at += 1
        return None
    if kind == KIND_BOOL:
        check(reader_bool(reader, &flag))
        return True if flag else False
    check(CODEC_TRUNCATED if kind == KIND_END else CODEC_TYPE)


cdef list reader_list(Reader* reader, uint64_t* values_left, uint32_t depth_left):
    cdef uint32_t count = 0
    cdef list out = []
    check(reader_array(reader, &count))
    for _ in range(count):
        out.append(reader_object(reader, values_left, depth_left))
    return out


cdef dict reader_dict(Reader* reader, uint64_t* values_left, uint32_t depth_left):
    """A map; its keys are strings, each once."""
    cdef const uint8_t* data
    cdef uint32_t count = 0
    cdef uint32_t size = 0
    cdef dict out = {}
    check(reader_map(reader, &count))
    for _ in range(count):
        if reader_kind(reader) != KIND_STR:
            raise RemoteProtocolError("message: a map's key is not a str")
        if values_left[0] == 0:
            codec_raise(CODEC_VALUES, "message")
        values_left[0] -= 1
        check(reader_str(reader, &data, &size))
        key = map_key(data, size)
        if key in out:
            raise RemoteProtocolError(f"message: a map has the key {key!r} twice")
        out[key] = reader_object(reader, values_left, depth_left)
    return out


def unpack(const uint8_t[::1] payload not None) -> object:
    """The one msgpack value that the payload is.

    Raises RemoteProtocolError: truncated, bytes behind the value, too deep, too many values, extension types, map keys
    that are not str or come twice, str that is not UTF-8.
    """
    cdef Reader reader
    cdef uint64_t values_left = VALUES_MAX
    if payload.shape[0] == 0:
        codec_raise(CODEC_TRUNCATED, "message")
    reader.at = &payload[0]
    reader.end = reader.at + payload.shape[0]
    value = reader_object(&reader, &values_left, DEPTH_MAX)
    if reader.at != reader.end:
        raise RemoteProtocolError(f"message: {reader_left(&reader)} B follow the value in its frame")
    return value


cdef inline int check_count(size_t count) except -1:
    if count > UINT32_MAX:
        raise LocalProtocolError(f"message: {count} B or elements in one value, at most {UINT32_MAX}; split it")
    return 0


cdef int writer_text(Writer* writer, str value) except -1:
    cdef Py_ssize_t size
    cdef const char* data
    try:
        data = PyUnicode_AsUTF8AndSize(value, &size)
    except UnicodeEncodeError:
        raise DataError(f"string {value!r} holds a lone surrogate, which UTF-8 cannot carry; clean it first") from None
    check_count(<size_t> size)
    return check(writer_str(writer, data, <uint32_t> size))


cdef int writer_bytes(Writer* writer, const uint8_t[::1] value) except -1:
    check_count(<size_t> value.shape[0])
    return check(writer_bin(writer, &value[0] if value.shape[0] else NULL, <uint32_t> value.shape[0]))


cdef int writer_number(Writer* writer, object value) except -1:
    if not INTEGER_MIN <= value <= INTEGER_MAX:
        raise DataError(f"integer {value} does not fit in 64 bits")
    if value < 0:
        return check(writer_int(writer, <int64_t> value))
    return check(writer_uint(writer, <uint64_t> value))


cdef int writer_object(Writer* writer, object value, uint32_t depth_left) except -1:
    """Appends a Python value. An aware datetime is its microseconds; NumPy scalars and arrays are their `tolist()`."""
    if value is None:
        return check(writer_nil(writer))
    if value is True or value is False:
        return check(writer_bool(writer, value))
    if isinstance(value, int):
        return writer_number(writer, value)
    if isinstance(value, float):
        return check(writer_float64(writer, value))
    if isinstance(value, str):
        return writer_text(writer, value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return writer_bytes(writer, value)
    if depth_left == 0:
        raise LocalProtocolError(f"message: nested more than {DEPTH_MAX} deep")
    if isinstance(value, (list, tuple)):
        check_count(len(value))
        check(writer_array(writer, <uint32_t> len(value)))
        for item in value:
            writer_object(writer, item, depth_left - 1)
        return 0
    if isinstance(value, dict):
        check_count(len(value))
        check(writer_map(writer, <uint32_t> len(value)))
        for key, item in value.items():
            if not isinstance(key, str):
                raise LocalProtocolError(f"message: a map's key must be a str, not {type(key).__name__}")
            writer_text(writer, key)
            try:
                writer_object(writer, item, depth_left - 1)
            except DataError as error:
                raise DataError(f"{key!r}: {error}") from None
        return 0
    if PyDateTime_Check(value):
        if value.tzinfo is None:
            raise DataError(f"datetime {value!r} has no zone; give it one, for example tzinfo=datetime.UTC")
        return writer_number(writer, (value - EPOCH) // MICROSECOND)
    if hasattr(value, "tolist"):
        return writer_object(writer, value.tolist(), depth_left - 1)
    raise DataError(f"a value of type {type(value).__name__} cannot be sent: {value!r:.80}")


def pack(value: object) -> bytes:
    """The value in msgpack.

    Raises DataError: a type, integer, string or time that the wire cannot carry. LocalProtocolError: nested too deep.
    """
    cdef Writer writer = Writer(NULL, 0, 0)
    try:
        writer_object(&writer, value, DEPTH_MAX)
        return PyBytes_FromStringAndSize(<const char*> writer.data, writer.size)
    finally:
        writer_free(&writer)


def pack_frame(value: object, size_max: int = FRAME_SIZE_MAX) -> bytes:
    """The value as one frame. Raises LocalProtocolError where it is longer than the peer allows, and as pack does."""
    cdef Writer writer = Writer(NULL, 0, 0)
    cdef size_t frame_at = 0
    try:
        check(writer_frame_begin(&writer, &frame_at))
        writer_object(&writer, value, DEPTH_MAX)
        if writer.size - FRAME_HEAD_SIZE > <size_t> size_max:
            raise LocalProtocolError(
                f"message of {writer.size - FRAME_HEAD_SIZE} B, the peer allows frames of {size_max} B; split it"
            )
        writer_frame_end(&writer, frame_at)
        return PyBytes_FromStringAndSize(<const char*> writer.data, writer.size)
    finally:
        writer_free(&writer)


cdef class FrameSplitter:
    """Cuts a stream of bytes into the payloads of its frames.

    Holds at most one unfinished frame: memory grows with the bytes that came, never with the size a head claims.
    """

    cdef Writer held
    cdef readonly size_t frame_size_max

    def __cinit__(self, size_t frame_size_max = FRAME_SIZE_MAX):
        self.frame_size_max = frame_size_max

    def __dealloc__(self):
        writer_free(&self.held)

    @property
    def held_size(self) -> int:
        """Bytes of the unfinished frame; not 0 at the end of a stream means that it was cut."""
        return self.held.size

    def feed(self, const uint8_t[::1] data not None) -> list[bytes]:
        """The payloads that these bytes complete. Raises RemoteProtocolError: a frame longer than frame_size_max."""
        cdef Reader reader
        cdef Reader payload
        cdef list out = []
        cdef int code
        if data.shape[0]:
            if writer_raw(&self.held, &data[0], data.shape[0]) < 0:
                raise MemoryError("no memory for the unfinished frame")
        reader.at = self.held.data
        reader.end = reader.at + self.held.size
        while True:
            code = frame_next(&reader, self.frame_size_max, &payload)
            if code < 0:
                size = load_be(reader.at, FRAME_HEAD_SIZE)
                raise RemoteProtocolError(f"frame of {size} B, at most {self.frame_size_max} B; split the message")
            if code == 0:
                break
            out.append(PyBytes_FromStringAndSize(<const char*> payload.at, reader_left(&payload)))
        if out:
            writer_drop_until(&self.held, reader.at)
        return out
