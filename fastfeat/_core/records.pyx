"""Records: a batch of rows as the bytes that a log keeps, and back.

     0  version u32 | fingerprint u32 of the layout | 8 sequence u64 of row 0 | 16 rows u32 | row_stride u32
    24  keys size u64 | 32 heap size u64
    40  event_time i64[rows] | created_time i64[rows]
        | key offsets u32[rows + 1], but not where each key is one integer | keys
        | row images, row_stride bytes each (columns.pyx)
        | heap offsets u64[rows + 1] | heap, only where a field is variable       each part padded to 8 bytes

Promise:     batch_from_bytes(batch_parts(b)) is b, bit for bit; nothing is decoded or copied on either way.
Ownership:   the parts borrow the batch's memory; the batch read back borrows the bytes and keeps them alive.
Errors:      LayoutMismatch for another layout; LogCorrupt for sizes and offsets that do not fit (a checksum is the
             caller's affair).
"""

from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ..errors import LayoutMismatch, LogCorrupt
from .columns cimport RowBatch, RowLayout, batch_new

cdef enum:
    RECORD_VERSION = 1
    HEADER_SIZE = 40

cdef struct RecordHeader:
    uint32_t version
    uint32_t fingerprint
    uint64_t sequence
    uint32_t rows
    uint32_t row_stride
    uint64_t keys_size
    uint64_t heap_size

cdef bytes PADDING = bytes(8)


cdef inline uint64_t padded(uint64_t size) noexcept nogil:
    return (size + 7) & ~<uint64_t>7


cdef int add_part(list parts, const void* data, uint64_t size) except -1:
    """A part over the batch's own memory, and its padding."""
    if size:
        parts.append(PyMemoryView_FromMemory(<char*>data, <Py_ssize_t>size, PyBUF_READ))
    if size & 7:
        parts.append(PADDING[: 8 - (size & 7)])
    return 0


cdef list batch_parts(RowBatch batch, uint64_t sequence):
    """The record of an imaged batch whose row 0 gets this sequence. Valid while the batch lives."""
    cdef RecordHeader header
    cdef int64_t count = batch.view.count
    cdef list parts = []
    header.version = RECORD_VERSION
    header.fingerprint = batch.layout.fingerprint
    header.sequence = sequence
    header.rows = <uint32_t>count
    header.row_stride = batch.view.row_stride
    header.keys_size = 8 * count if batch.view.keys.offsets == NULL else batch.view.keys.offsets[count]
    header.heap_size = batch.view.heap_offsets[count] if batch.layout.heap_offset else 0
    parts.append(PyBytes_FromStringAndSize(<char*>&header, HEADER_SIZE))
    add_part(parts, batch.view.event_times, 8 * count)
    add_part(parts, batch.view.created_times, 8 * count)
    if batch.view.keys.offsets != NULL:
        add_part(parts, batch.view.keys.offsets, 4 * (count + 1))
    add_part(parts, batch.view.keys.data, header.keys_size)
    add_part(parts, batch.view.images, count * batch.view.row_stride)
    if batch.layout.heap_offset:
        add_part(parts, batch.view.heap_offsets, 8 * (count + 1))
        add_part(parts, batch.view.heap, header.heap_size)
    return parts


cdef RowBatch batch_from_bytes(RowLayout layout, object data):
    """The batch of a record; its sequence is the record's. Raises LayoutMismatch, LogCorrupt."""
    cdef Py_buffer buffer
    cdef RecordHeader header
    cdef RowBatch batch
    cdef const uint8_t* at
    cdef const uint8_t* end
    cdef int64_t count
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        if <size_t>buffer.buf & 7:            # a borrowed int64 must be aligned
            return batch_from_bytes(layout, bytes(data))
        at = <const uint8_t*>buffer.buf
        end = at + buffer.len
        if buffer.len < HEADER_SIZE:
            raise LogCorrupt(f"view {layout.view!r}: a record of {buffer.len} B is no batch of rows")
        memcpy(&header, at, HEADER_SIZE)
        if header.version != RECORD_VERSION or header.fingerprint != layout.fingerprint:
            raise LayoutMismatch(
                f"view {layout.view!r}: its rows in the log have record version {header.version} and layout"
                f" {header.fingerprint:#x}, not {RECORD_VERSION} and {layout.fingerprint:#x}; open the directory with"
                " the version of fastfeat that wrote it and take a snapshot"
            )
        count = header.rows
        batch = batch_new(layout, count)
        batch.source = data
        batch.view.sequence = header.sequence
        at += HEADER_SIZE
        batch.view.event_times = <const int64_t*>take(layout, &at, end, 8 * count)
        batch.view.created_times = <const int64_t*>take(layout, &at, end, 8 * count)
        if not layout.key_is_u64:
            batch.view.keys.offsets = <const uint32_t*>take(layout, &at, end, 4 * (count + 1))
        batch.view.keys.data = take(layout, &at, end, header.keys_size)
        batch.view.keys.count = count
        batch.view.images = take(layout, &at, end, count * batch.view.row_stride)
        if layout.heap_offset:
            batch.view.heap_offsets = <const uint64_t*>take(layout, &at, end, 8 * (count + 1))
            batch.view.heap = take(layout, &at, end, header.heap_size)
        check_offsets(batch, &header)
        if at != end or header.row_stride != batch.view.row_stride:
            raise LogCorrupt(f"view {layout.view!r}: a record's parts are {end - at} B short of its size")
        return batch
    finally:
        PyBuffer_Release(&buffer)


cdef const uint8_t* take(RowLayout layout, const uint8_t** at, const uint8_t* end, uint64_t size) except NULL:
    """The next part, and past it. Raises LogCorrupt."""
    cdef const uint8_t* part = at[0]
    if size > <uint64_t>(end - part) or padded(size) > <uint64_t>(end - part):
        raise LogCorrupt(f"view {layout.view!r}: a record ends {padded(size)} B before its rows do")
    at[0] = part + padded(size)
    return part


cdef int check_offsets(RowBatch batch, const RecordHeader* header) except -1:
    cdef int64_t i
    cdef bint is_good = True
    if batch.view.keys.offsets == NULL:
        is_good = header.keys_size == 8 * <uint64_t>batch.view.count
    else:
        for i in range(batch.view.count):
            is_good &= batch.view.keys.offsets[i] <= batch.view.keys.offsets[i + 1]
        is_good &= batch.view.keys.offsets[0] == 0 and batch.view.keys.offsets[batch.view.count] == header.keys_size
    if batch.view.heap_offsets != NULL:
        for i in range(batch.view.count):
            is_good &= batch.view.heap_offsets[i] <= batch.view.heap_offsets[i + 1]
        is_good &= batch.view.heap_offsets[0] == 0 and batch.view.heap_offsets[batch.view.count] == header.heap_size
    if not is_good:
        raise LogCorrupt(f"view {batch.layout.view!r}: a record's keys or variable values lie outside it")
    return 0
