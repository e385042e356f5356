"""Server side of one connection, without a socket: bytes in, bytes out.

    received --held--> frames --+-- GET on a plan --> Plan.answer --> out      no Python object per value
                                +-- a method to pass on --> forward(id, frame)   not decoded
                                +-- anything else --> handle(id, method, params) --> reply, fail --> out
    a GET that memory can't answer goes to `handle` too; answer_frame makes its reply in a thread --> send --> out
    out --take--> transport

Promises: frames are handled in the order of the stream. All replies of one `receive` leave as one buffer. Parsing
          stops while paused and at OUT_SIZE_MAX of unsent replies, so a peer that does not read cannot fill memory.
Errors:   a request that cannot be answered gets an error reply and the stream goes on; bytes that break the protocol
          get one and then `is_closing` is set: write what `take` gives, then close.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from fastfeat._core.codec cimport (
    CODEC_TYPE, DEPTH_MAX, FRAME_HEAD_SIZE, KIND_ARRAY, KIND_BIN, Reader, Writer, codec_raise,
    frame_next, load_be, reader_array, reader_bin, reader_int64, reader_kind, reader_left, reader_object, reader_skip,
    reader_str, reader_take_nil, reader_uint64, writer_array, writer_drop_until, writer_frame_begin, writer_frame_end,
    writer_free, writer_nil, writer_object, writer_raw, writer_uint,
)
from fastfeat._core.plan cimport Plan

from fastfeat._core.codec import VALUES_MAX
from fastfeat.errors import BeforeHistory, DataError, FastFeatError, RemoteProtocolError, UnknownPlan, code_of

FORMAT_ARROW = 4
REPLY = 1
REPLY_STALE = 3  # the same shape: answered while the writer is gone
cdef int64_t FORMAT_ARROW_NUMBER = FORMAT_ARROW
cdef uint64_t REPLY_NUMBER = REPLY
cdef uint64_t REPLY_STALE_NUMBER = REPLY_STALE
cdef size_t OUT_SIZE_MAX = 1 << 20   # unsent replies at which parsing stops; one reply may go beyond it
cdef size_t COPY_SIZE_MAX = 1 << 16  # up to here a copy into bytes costs less than giving the buffer away
cdef uint64_t VALUES = VALUES_MAX


cdef class OutBuffer:
    """Bytes given away by a session: owned here, freed with the last memoryview."""

    cdef Writer writer

    def __dealloc__(self):
        writer_free(&self.writer)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.writer.data, self.writer.size, 1, flags)


cdef class ServerSession:
    """One connection's protocol state.

    handle:          called as handle(request_id, method, params) for every message that is not a plain GET, in order;
                     it answers through `reply` or `fail`, now or later. What it raises becomes the error reply.
    frame_size_max:  bytes of a frame, received or sent.
    entities_max:    entities of one GET.
    passed_on:       methods whose requests go whole to forward(request_id, frame) instead, in the same order.
    reply_type:      the type of the next replies: REPLY, or REPLY_STALE to a client that asked to be told.
    """

    cdef Writer held
    cdef Writer out
    cdef list plans
    cdef list row_sizes
    cdef object handle
    cdef object forward
    cdef frozenset passed_on
    cdef public uint64_t reply_type
    cdef size_t frame_size_max
    cdef readonly size_t reply_size_max
    cdef uint64_t entities_max
    cdef readonly bint is_greeted
    cdef readonly bint is_closing
    cdef readonly bint is_paused
    cdef readonly bint has_more
    cdef readonly uint64_t gets

    def __init__(
        self, handle, size_t frame_size_max, uint64_t entities_max, frozenset passed_on = frozenset(), forward = None
    ):
        self.handle = handle
        self.forward = forward
        self.passed_on = passed_on
        self.reply_type = REPLY_NUMBER
        self.plans = []
        self.row_sizes = []
        self.frame_size_max = frame_size_max
        self.reply_size_max = frame_size_max
        self.entities_max = entities_max

    def __dealloc__(self):
        writer_free(&self.held)
        writer_free(&self.out)

    @property
    def held_size(self) -> int:
        """Received bytes not handled yet; not 0 at the end of a stream means that it was cut or that we are paused."""
        return self.held.size

    @property
    def plans_count(self) -> int:
        return len(self.plans)

    def greet(self, size_t peer_frame_size_max) -> None:
        """HELLO was answered: other messages may come; replies stay within what the peer takes."""
        self.is_greeted = True
        self.reply_size_max = min(self.frame_size_max, peer_frame_size_max)

    def add_plan(self, plan) -> int:
        """The plan's number on this connection. One that is no Plan is for `handle`: it computes in Python."""
        self.plans.append(plan)
        self.row_sizes.append(max(8 * plan.matrix_columns, sum(dtype.width for dtype in plan.dtypes)))
        return len(self.plans) - 1

    def replace_plans(self, make) -> None:
        """Puts make(plan) in the place of each plan; where that fails or answers in another shape the old one stays,
        as the client decodes by what PREPARE told it."""
        for number, old in enumerate(self.plans):
            try:
                new = make(old)
            except FastFeatError:
                continue
            if shape_of(new) == shape_of(old):
                self.plans[number] = new

    def plan(self, size_t number):
        """Raises UnknownPlan."""
        if number >= <size_t> len(self.plans):
            raise UnknownPlan(f"plan {number} is not one of the {len(self.plans)} of this connection; PREPARE it")
        return self.plans[number]

    # Stream ---------------------------------------------------------------------------------------------------------

    def receive(self, bytes data not None):
        """Handles the frames that these bytes complete; what is to be sent now, or None."""
        cdef Reader reader
        if self.is_closing:
            return None
        if self.is_paused or self.held.size:
            if writer_raw(&self.held, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)) < 0:
                raise MemoryError("no memory for received bytes")
            return None if self.is_paused else self.resume()
        reader.at = <const uint8_t*> PyBytes_AS_STRING(data)
        reader.end = reader.at + PyBytes_GET_SIZE(data)
        self.handle_frames(&reader)
        if writer_raw(&self.held, reader.at, reader_left(&reader)) < 0:
            raise MemoryError("no memory for received bytes")
        return self.take()

    def pause(self) -> None:
        """Handle no frame until `resume`."""
        self.is_paused = True

    def resume(self):
        """Handles held frames; what is to be sent now, or None. `has_more` says that it stopped at OUT_SIZE_MAX."""
        cdef Reader reader
        self.is_paused = False
        self.has_more = False
        if self.held.size:
            reader.at = self.held.data
            reader.end = reader.at + self.held.size
            self.handle_frames(&reader)
            writer_drop_until(&self.held, reader.at)
        return self.take()

    def take(self):
        """The replies written since the last time, or None."""
        cdef OutBuffer given
        if self.out.size == 0:
            return None
        if self.out.size <= COPY_SIZE_MAX:
            data = PyBytes_FromStringAndSize(<const char*> self.out.data, self.out.size)
            self.out.size = 0
            return data
        given = OutBuffer()
        given.writer = self.out
        self.out = Writer(NULL, 0, 0)
        return memoryview(given)

    # Replies --------------------------------------------------------------------------------------------------------

    def reply(self, object request_id, object result) -> None:
        """Appends a result; one that cannot be sent becomes an error reply."""
        cdef size_t frame_at = self.out.size
        try:
            self.reply_begin(&frame_at)
            writer_object(&self.out, request_id, 0)
            check(writer_nil(&self.out))
            writer_object(&self.out, result, DEPTH_MAX - 1)
            self.reply_end(frame_at)
        except Exception as error:            # whatever it is, half a frame must not stay before the next reply
            self.out.size = frame_at
            self.fail(request_id, error)

    def fail(self, object request_id, object error) -> None:
        """Appends an error; RemoteProtocolError ends the connection, request_id may be None where it is unknown."""
        cdef size_t frame_at = self.out.size
        text = str(error) if isinstance(error, FastFeatError) else f"internal error: {type(error).__name__}: {error}"
        self.reply_begin(&frame_at)
        writer_object(&self.out, request_id, 0)
        writer_object(&self.out, [code_of(error), text.encode("utf-8", "replace").decode()], 1)
        check(writer_nil(&self.out))
        writer_frame_end(&self.out, frame_at)
        if isinstance(error, RemoteProtocolError):
            self.is_closing = True

    def send(self, bytes frame not None) -> None:
        """Appends a whole reply that was made elsewhere."""
        check(writer_raw(&self.out, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame)))

    cdef int reply_begin(self, size_t* frame_at) except -1:
        return reply_begin(&self.out, frame_at, self.reply_type)

    cdef int reply_end(self, size_t frame_at) except -1:
        return reply_end(&self.out, frame_at, self.reply_size_max)

    # Requests -------------------------------------------------------------------------------------------------------

    cdef int handle_frames(self, Reader* reader) except -1:
        cdef Reader payload
        cdef int code
        while not self.is_paused and not self.is_closing:
            if self.out.size >= OUT_SIZE_MAX:
                self.has_more = True
                break
            code = frame_next(reader, self.frame_size_max, &payload)
            if code == 0:
                break
            if code < 0:
                size = load_be(reader.at, FRAME_HEAD_SIZE)
                self.fail(None, RemoteProtocolError(f"frame of {size} B, at most {self.frame_size_max} B; split it"))
                break
            self.handle_frame(&payload)
        if self.is_closing:
            reader.at = reader.end
        return 0

    cdef int handle_frame(self, Reader* payload) except -1:
        cdef uint64_t request_id = 0
        cdef uint32_t size = 0
        cdef const uint8_t* method = NULL
        cdef size_t frame_at = self.out.size
        cdef bint knows_id = False
        cdef Reader whole = payload[0]
        try:
            request_head(payload, &request_id, &method, &size)
            knows_id = True
            if self.is_greeted and size == 3 and memcmp(method, b"GET", 3) == 0:
                if self.answer_get(payload, request_id):
                    return 0
            self.dispatch(payload, request_id, method, size, whole)
        except Exception as error:
            self.out.size = frame_at
            self.fail(request_id if knows_id else None, error)
        return 0

    cdef int dispatch(
        self, Reader* payload, uint64_t request_id, const uint8_t* method, uint32_t size, Reader whole
    ) except -1:
        """Hands a message to the Python side: its params, or its frame where it is to be passed on."""
        cdef uint64_t values_left = VALUES
        cdef const char* frame_at
        name = (<const char*> method)[:size].decode("ascii", "replace")
        if not self.is_greeted and name != "HELLO":
            raise RemoteProtocolError(f"{name:.20} before HELLO; say HELLO first")
        if name in self.passed_on:
            frame_at = <const char*> whole.at - FRAME_HEAD_SIZE  # the frame's head stands before its payload
            self.forward(request_id, PyBytes_FromStringAndSize(frame_at, FRAME_HEAD_SIZE + reader_left(&whole)))
            return 0
        params = reader_object(payload, &values_left, DEPTH_MAX - 1)
        check_end(payload)
        self.handle(request_id, name, params)
        return 0

    cdef bint answer_get(self, Reader* payload, uint64_t request_id) except -1:
        """Answers a GET in native code; False, and nothing consumed, where Python must: Arrow, computed features, and
        rows that memory no longer has."""
        cdef Reader params = payload[0]
        cdef uint32_t count = 0
        cdef uint64_t number = 0
        cdef size_t frame_at = 0
        cdef Plan plan
        check(reader_array(&params, &count))
        if count < 2 or count > 5:
            raise RemoteProtocolError(f"GET takes 2 to 5 params (plan, keys, format, as_of, known_at), not {count}")
        check(reader_uint64(&params, &number))
        found = self.plans[number] if number < <uint64_t> len(self.plans) else self.plan(number)
        if type(found) is not Plan:
            return False
        plan = <Plan> found
        if self.check_get(params, count - 1, number) == FORMAT_ARROW_NUMBER:
            return False
        self.reply_begin(&frame_at)
        check(writer_uint(&self.out, request_id))
        check(writer_nil(&self.out))
        try:
            plan.answer(&params, count - 1, &self.out, self.reply_size_max)
        except BeforeHistory:
            self.out.size = frame_at
            return False
        check_end(&params)
        self.reply_end(frame_at)
        self.gets += 1
        return True

    cdef int64_t check_get(self, Reader params, uint32_t remaining, uint64_t number) except -1:
        """Holds a GET to its limits before any work; returns its format."""
        cdef uint64_t entities = 0
        cdef int64_t wanted = 0
        check(request_entities(params, &entities))
        if entities > self.entities_max:
            raise DataError(f"{entities} entities in one GET, at most {self.entities_max}; split the request")
        if entities * <uint64_t> self.row_sizes[number] > self.reply_size_max:
            raise DataError(
                f"{entities} entities need {entities * <uint64_t> self.row_sizes[number]} B in the reply, a frame takes"
                f" {self.reply_size_max} B; split the request"
            )
        if remaining >= 2:
            check(reader_skip(&params, 2))
            if not reader_take_nil(&params):
                check(reader_int64(&params, &wanted))
            if wanted < 0 or wanted > FORMAT_ARROW_NUMBER:
                raise RemoteProtocolError(f"GET has format {wanted}; formats are 0 to {FORMAT_ARROW_NUMBER}")
        return wanted


cdef tuple shape_of(plan):
    """What a client knows of a plan: it encodes keys and decodes answers by it."""
    fields = tuple((field.name, field.dtype) for field in getattr(plan, "request_fields", ()))
    return plan.features, plan.dtypes, plan.key_names, plan.key_types, plan.views, fields


def reply_head(bytes payload not None) -> tuple:
    """(id or None, code or 0) of a reply, the rest of it unread. Raises RemoteProtocolError: not a reply."""
    cdef Reader reader
    cdef uint32_t count = 0
    cdef uint64_t number = 0
    cdef uint64_t code = 0
    reader.at = <const uint8_t*> PyBytes_AS_STRING(payload)
    reader.end = reader.at + PyBytes_GET_SIZE(payload)
    check(reader_array(&reader, &count))
    check(reader_uint64(&reader, &number))
    if count != 4 or number not in (REPLY_NUMBER, REPLY_STALE_NUMBER):
        raise RemoteProtocolError("reply: not [1, id, error, result]")
    request_id = None
    if not reader_take_nil(&reader):
        check(reader_uint64(&reader, &number))
        request_id = number
    if not reader_take_nil(&reader):
        check(reader_array(&reader, &count))
        check(reader_uint64(&reader, &code))
    return request_id, code


def answer_frame(
    Plan plan not None, uint64_t request_id, list params not None, size_t reply_size_max, uint64_t reply_type = REPLY
) -> bytes:
    """The reply to a GET in a native format, made in any thread. params: as `handle` was given them: checked.

    Raises BeforeHistory, DataError.
    """
    cdef Writer asked = Writer(NULL, 0, 0)
    cdef Writer out = Writer(NULL, 0, 0)
    cdef Reader reader
    cdef uint32_t count = 0
    cdef size_t frame_at = 0
    try:
        writer_object(&asked, params, DEPTH_MAX)
        reader.at = asked.data
        reader.end = asked.data + asked.size
        check(reader_array(&reader, &count))
        check(reader_skip(&reader, 1))
        reply_begin(&out, &frame_at, reply_type)
        check(writer_uint(&out, request_id))
        check(writer_nil(&out))
        plan.answer(&reader, count - 1, &out, reply_size_max)
        reply_end(&out, frame_at, reply_size_max)
        return PyBytes_FromStringAndSize(<const char*> out.data, out.size)
    finally:
        writer_free(&asked)
        writer_free(&out)


cdef int reply_begin(Writer* out, size_t* frame_at, uint64_t reply_type) except -1:
    check(writer_frame_begin(out, frame_at))
    check(writer_array(out, 4))
    return check(writer_uint(out, reply_type))


cdef int reply_end(Writer* out, size_t frame_at, size_t size_max) except -1:
    cdef size_t size = out.size - frame_at - FRAME_HEAD_SIZE
    if size > size_max:
        raise DataError(f"the reply needs {size} B, a frame takes {size_max} B; ask for fewer entities")
    writer_frame_end(out, frame_at)
    return 0


cdef inline int check(int code) except -1:
    return codec_raise(code, "request") if code < 0 else 0


cdef inline int check_end(const Reader* reader) except -1:
    if reader.at != reader.end:
        raise RemoteProtocolError(f"request: {reader_left(reader)} B follow the message in its frame")
    return 0


cdef int request_head(Reader* reader, uint64_t* request_id, const uint8_t** method, uint32_t* size) except -1:
    """Reads `[0, id, method,` of a request and stops before its params."""
    cdef uint32_t count = 0
    cdef uint64_t kind = 0
    check(reader_array(reader, &count))
    if count != 4:
        raise RemoteProtocolError(f"request: an array of {count}, not [0, id, method, params]")
    check(reader_uint64(reader, &kind))
    if kind != 0:
        raise RemoteProtocolError(f"request: message type {kind}; a client sends type 0")
    check(reader_uint64(reader, request_id))
    return check(reader_str(reader, method, size))


cdef int request_entities(Reader params, uint64_t* entities) noexcept nogil:
    """The number of entities of the keys `[[k, ...], ...]` or `[bin, ...]`: the length of their first column."""
    cdef uint32_t count = 0
    cdef const uint8_t* data
    cdef int code = reader_array(&params, &count)
    if code < 0 or count == 0:
        return code
    if reader_kind(&params) == KIND_BIN:
        code = reader_bin(&params, &data, &count)
        count //= 8
    elif reader_kind(&params) == KIND_ARRAY:
        code = reader_array(&params, &count)
    else:
        return CODEC_TYPE
    entities[0] = count
    return code
