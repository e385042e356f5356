"""Client side of the hot path: a GET from Python columns to bytes, and a matrix from bytes into NumPy memory.

    entity_rows --Request--> key columns --PreparedPlan.encode--> frame
    socket --> Inbox [ frame head | statuses, times, n, m | data ... ]
                          `matrix` reads the head ------------+   +--> copied into the caller's array; what has not
                                                                      come yet is received straight into it

Promises: no Python object per value; one request is one `bytes`. The same Request reads entity rows as in the core, so
          what is refused is refused alike on both sides.
Errors:   DataError for entity rows, the server's own error for an error reply, RemoteProtocolError for malformed bytes.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from fastfeat._core.codec cimport (
    CODEC_TRUNCATED, CODEC_TYPE, DEPTH_MAX, FRAME_HEAD_SIZE, Reader, Writer, codec_raise, load_be, reader_array,
    reader_bin, reader_left, reader_length, reader_take_nil, reader_uint64, writer_array, writer_bin,
    writer_frame_begin, writer_frame_end, writer_free, writer_int, writer_nil, writer_object, writer_reserve,
    writer_str, writer_uint,
)
from fastfeat._core.columns cimport STRING
from fastfeat._core.request cimport Request

from fastfeat._core.codec import unpack
from fastfeat.dtypes import DType
from fastfeat.errors import LocalProtocolError, RemoteProtocolError, error_of


cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<sys/socket.h>" nogil:
    const int MSG_DONTWAIT
    ssize_t recv(int socket, void* data, size_t size, int flags)


cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


def receive_soon(int socket, buffer, int64_t patience_ns):
    """Bytes that came within `patience_ns`, without sleeping; -1: none, or an error that a blocking receive will tell.

    Waking a thread that sleeps on another core costs more than most answers take. Whoever else wants this core gets
    it at each turn, and the GIL is free meanwhile.
    """
    cdef Py_buffer view
    cdef ssize_t size
    cdef int64_t deadline
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    with nogil:
        deadline = monotonic_ns() + patience_ns
        while True:
            size = recv(socket, view.buf, view.len, MSG_DONTWAIT)
            if size >= 0 or monotonic_ns() >= deadline:
                break
            sched_yield()
    PyBuffer_Release(&view)
    return size


cdef class PreparedPlan:
    """A plan as PREPARE describes it, and the entities of the request that is being made with it.

    One thread at a time: `entities` or `entity` fills it, `encode` reads it.
    request_fields: (name, type) of what goes with the keys; more_columns(start, stop) gives them as `encode` writes
    them, None where there are none (client/prepared.py).
    """

    cdef readonly uint64_t number
    cdef readonly tuple key_names
    cdef readonly tuple key_types
    cdef readonly tuple features
    cdef readonly tuple dtypes
    cdef readonly tuple views
    cdef readonly tuple view_of
    cdef readonly uint32_t matrix_columns
    cdef readonly tuple request_fields
    cdef public object more_columns
    cdef Request request

    def __init__(self, described):
        try:
            self.number = described["plan"]
            self.key_names = tuple(name for name, _ in described["keys"])
            self.key_types = tuple(kind for _, kind in described["keys"])
            self.features = tuple(name for name, _ in described["features"])
            self.dtypes = tuple(DType.parse(kind) for _, kind in described["features"])
            self.views = tuple(described["views"])
            self.view_of = tuple(described["view_of"])
            self.matrix_columns = described["matrix_columns"]
            self.request_fields = tuple((name, DType.parse(kind)) for name, kind in described.get("request", ()))
            self.request = Request(self.key_names, self.key_types)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise RemoteProtocolError(f"reply to PREPARE is not a plan: {error!r}") from None

    def entities(self, entity_rows) -> int:
        """Takes the entities of a request: a list of dicts or a dict of columns; how many they are. DataError."""
        self.request.set_rows(entity_rows)
        return self.request.count

    def entity(self, entity_row) -> None:
        """Takes one entity, a dict. DataError."""
        self.request.set_one(entity_row)

    def encode(self, uint64_t request_id, int64_t start, int64_t stop, int wanted, as_of, known_at) -> bytes:
        """The frame of a GET for the entities [start, stop) in the wanted format."""
        cdef Writer out = Writer(NULL, 0, 0)
        cdef size_t frame_at = 0
        try:
            check(writer_reserve(&out, 64 + 16 * (stop - start)))
            check(writer_frame_begin(&out, &frame_at))
            check(writer_array(&out, 4))
            check(writer_uint(&out, 0))
            check(writer_uint(&out, request_id))
            check(writer_str(&out, b"GET", 3))
            check(writer_array(&out, 3 if as_of is None and known_at is None else 5))
            check(writer_uint(&out, self.number))
            self.write_keys(&out, start, stop)
            check(writer_uint(&out, <uint64_t> wanted))
            if as_of is not None or known_at is not None:
                write_time(&out, as_of)
                write_time(&out, known_at)
            if out.size > <size_t> 0xffffffffU:
                raise LocalProtocolError("the request's keys take more than 4 GiB; ask for fewer entities at once")
            writer_frame_end(&out, frame_at)
            return PyBytes_FromStringAndSize(<const char*> out.data, out.size)
        finally:
            writer_free(&out)

    cdef int write_keys(self, Writer* out, int64_t start, int64_t stop) except -1:
        cdef Py_ssize_t column
        cdef int64_t i
        cdef list more = None if self.more_columns is None else self.more_columns(start, stop)
        check(writer_array(out, <uint32_t> (self.request.columns_count + (0 if more is None else len(more)))))
        for column in range(self.request.columns_count):
            if self.request.kinds[column] != STRING:
                check(writer_bin(out, self.request.columns[column].ints + start, <uint32_t> (8 * (stop - start))))
                continue
            check(writer_array(out, <uint32_t> (stop - start)))
            for i in range(start, stop):
                check(writer_str(out, self.request.columns[column].texts[i], self.request.columns[column].sizes[i]))
        if more is not None:
            for values in more:
                writer_object(out, values, DEPTH_MAX)
        return 0


cdef int write_time(Writer* out, object time_us) except -1:
    return check(writer_nil(out) if time_us is None else writer_int(out, time_us))


cdef inline int check(int code) except -1:
    return codec_raise(code, "reply") if code < 0 else 0


cdef enum:
    REPLY = 1
    REPLY_STALE = 3
REPLIES = (REPLY, REPLY_STALE)


def is_stale(bytes payload not None) -> bool:
    """Whether a reply is of the last state of a writer that is gone."""
    return len(payload) > 1 and payload[1] == REPLY_STALE


cdef class Inbox:
    """Received bytes of one connection that is read in order.

    Receive into `space()`, tell `filled(size)`, then ask for `matrix` or `frame` until there is one.
    """

    cdef Writer held           # size: end of the received bytes
    cdef size_t start          # begin of those not read yet
    cdef readonly size_t frame_size_max
    cdef readonly bint is_stale        # the last reply was of the last state of a writer that is gone
    cdef Py_ssize_t exports

    def __cinit__(self, size_t frame_size_max, size_t capacity = 1 << 16):
        self.frame_size_max = frame_size_max
        check(writer_reserve(&self.held, capacity))

    def __dealloc__(self):
        writer_free(&self.held)

    def __getbuffer__(self, Py_buffer* view, int flags):
        """The free space behind the received bytes; while it is borrowed, the inbox does not move."""
        PyBuffer_FillInfo(view, self, self.held.data + self.held.size, self.held.capacity - self.held.size, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1

    def make_room(self) -> None:
        """Free space for the next receive: all of it where nothing is held, else at least as much as is held."""
        if self.exports:
            raise LocalProtocolError("the inbox is being received into by another thread; a connection is for one")
        if self.start == self.held.size:
            self.start = self.held.size = 0
        elif self.start:
            memmove(self.held.data, self.held.data + self.start, self.held.size - self.start)
            self.held.size -= self.start
            self.start = 0
        if 2 * self.held.size >= self.held.capacity:
            check(writer_reserve(&self.held, self.held.capacity))

    def filled(self, size_t size) -> None:
        self.held.size += size

    def frame(self):
        """The payload of the next frame, or None until all of it has come."""
        cdef Reader payload
        if self.next_payload(&payload) != 1:
            return None
        self.start = payload.end - self.held.data
        self.is_stale = reader_left(&payload) > 1 and payload.at[1] == REPLY_STALE
        return PyBytes_FromStringAndSize(<const char*> payload.at, reader_left(&payload))

    cdef int next_payload(self, Reader* payload) except -1:
        """2 where not even the head has come; else the payload as far as it has come: 1 if whole, 0 if not."""
        cdef const uint8_t* at = self.held.data + self.start
        cdef size_t left = self.held.size - self.start
        cdef size_t size
        if left < FRAME_HEAD_SIZE:
            return 2
        size = <size_t> load_be(at, FRAME_HEAD_SIZE)
        if size > self.frame_size_max:
            raise RemoteProtocolError(f"reply: frame of {size} B, at most {self.frame_size_max} B")
        payload.at = at + FRAME_HEAD_SIZE
        payload.end = payload.at + min(size, left - FRAME_HEAD_SIZE)
        return 1 if left - FRAME_HEAD_SIZE >= size else 0

    def matrix(self, uint64_t request_id, uint32_t rows, uint32_t columns, out) -> int:
        """Moves what has come of the next frame's matrix into `out`, C-contiguous memory of rows x columns values.

        Returns how many of its bytes are there (receive the rest straight into it), or -1: receive more and ask again.
        Raises the error of an error reply; RemoteProtocolError where the reply is no matrix of that shape.
        """
        cdef Reader payload
        cdef Py_buffer view
        cdef size_t frame_size
        cdef size_t come
        cdef int state = self.next_payload(&payload)
        if state == 2:
            return -1
        frame_size = <size_t> load_be(self.held.data + self.start, FRAME_HEAD_SIZE)
        PyObject_GetBuffer(out, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        try:
            state = self.matrix_head(&payload, state == 1, request_id, rows, columns, <size_t> view.len)
            if state == 0:
                return -1
            if frame_size != <size_t> (payload.at - self.held.data) - self.start - FRAME_HEAD_SIZE + <size_t> view.len:
                raise RemoteProtocolError("reply: a matrix's data must be the last bytes of its frame")
            come = reader_left(&payload)
            memcpy(view.buf, payload.at, come)
            self.start = payload.end - self.held.data
            return <Py_ssize_t> come
        finally:
            PyBuffer_Release(&view)

    cdef int matrix_head(
        self, Reader* payload, bint is_whole, uint64_t request_id, uint32_t rows, uint32_t columns, size_t size
    ) except -1:
        """Moves payload to the matrix's data. 0 where the head has not all come."""
        cdef Reader start = payload[0]
        cdef bint is_error = False
        cdef int code = matrix_reply(payload, request_id, rows, columns, size, &is_error)
        self.is_stale = reader_left(&start) > 1 and start.at[1] == REPLY_STALE
        if not is_whole and (is_error or code == CODEC_TRUNCATED):
            return 0
        if is_error:
            self.start = payload.end - self.held.data
            raise_reply(PyBytes_FromStringAndSize(<const char*> start.at, reader_left(&start)), request_id)
        if code == CODEC_TYPE:
            raise RemoteProtocolError(f"reply: not the {rows} x {columns} matrix of request {request_id}")
        check(code)
        return 1


cdef int matrix_reply(
    Reader* reader, uint64_t request_id, uint32_t rows, uint32_t columns, size_t size, bint* is_error
) noexcept nogil:
    """Reads `[1, id, nil, [statuses, event_times, n, m, ` and the bin head. CODEC_TYPE: another shape or number."""
    cdef uint32_t count = 0
    cdef uint64_t kind = 0
    cdef const uint8_t* data
    cdef int code = reader_array(reader, &count)
    if code == 0 and count != 4:
        code = CODEC_TYPE
    if code == 0:
        code = reader_uint64(reader, &kind)
    if code == 0 and kind != REPLY and kind != REPLY_STALE:
        code = CODEC_TYPE
    code = read_expected(reader, code, request_id)
    if code < 0:
        return code
    if reader_left(reader) == 0:
        return CODEC_TRUNCATED
    is_error[0] = not reader_take_nil(reader)
    if is_error[0]:
        return 0
    code = reader_array(reader, &count)
    if code == 0 and count != 5:
        code = CODEC_TYPE
    for _ in range(2):
        code = reader_bin(reader, &data, &count) if code == 0 else code
    code = read_expected(reader, code, rows)
    code = read_expected(reader, code, columns)
    if code < 0:
        return code
    if reader_left(reader) == 0:
        return CODEC_TRUNCATED
    if not 0xc4 <= reader.at[0] <= 0xc6:
        return CODEC_TYPE
    code = reader_length(reader, 0xc4, &count)
    if code == 0 and count != size:
        return CODEC_TYPE
    return code


cdef inline int read_expected(Reader* reader, int code, uint64_t expected) noexcept nogil:
    """Steps over a number that must be `expected`; does nothing after an earlier failure."""
    cdef uint64_t number = 0
    if code < 0:
        return code
    code = reader_uint64(reader, &number)
    return CODEC_TYPE if code == 0 and number != expected else code


def reply_of(payload: bytes) -> tuple[int | None, Exception | None, object]:
    """A reply `[1 or 3, id, error, result]` as (id, error to raise or None, result). else RemoteProtocolError."""
    reply = unpack(payload)
    if not isinstance(reply, list) or len(reply) != 4 or reply[0] not in REPLIES or isinstance(reply[0], bool):
        raise RemoteProtocolError("reply: not [1 or 3, id, error, result]")
    _, request_id, error, result = reply
    if not (request_id is None or (isinstance(request_id, int) and not isinstance(request_id, bool))):
        raise RemoteProtocolError("reply: its id is neither an integer nor nil")
    if error is None:
        return request_id, None, result
    if not (isinstance(error, list) and len(error) == 2 and isinstance(error[0], int) and isinstance(error[1], str)):
        raise RemoteProtocolError("reply: its error is not [code, message]")
    return request_id, error_of(error[0], error[1]), None


cdef int raise_reply(bytes payload, uint64_t request_id) except -1:
    got, error, _ = reply_of(payload)
    if error is None or (got is not None and got != request_id):
        raise RemoteProtocolError(f"reply: answers request {got}, not {request_id}")
    raise error
