"""Matrix: columns of numbers as rows of floats.

    (valid, data), (valid, data), ... --one column after the other--> float64 or float32 [n, m], NaN where not valid

Promise:     a value is converted once, as a cast of its array would be. No Python object per value.
Concurrency: the GIL is released for batches.
Errors:      TypeError for a column that is not of numbers: the caller knows its columns' types.
"""

from libc.math cimport NAN
from libc.stdint cimport (
    int16_t, int32_t, int64_t, int8_t, uint16_t, uint32_t, uint64_t, uint8_t,
)

cimport numpy as cnp

import numpy as np

cnp.import_array()

cdef enum:
    RELEASE_BYTES = 131_072   # to write, from which releasing the GIL pays, see docs/ARCHITECTURE.md

ctypedef fused Number:
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t
    float
    double

ctypedef fused Real:
    float
    double


cdef struct Shape:
    Py_ssize_t count          # entities
    Py_ssize_t width          # columns of the matrix that this column fills
    Py_ssize_t stride         # of the matrix, in elements


cdef void cells_put(const Number* data, const uint8_t* valid, Real* out, Shape shape) noexcept nogil:
    cdef Py_ssize_t i
    cdef Py_ssize_t j
    for i in range(shape.count):
        for j in range(shape.width):
            out[j] = <Real>data[j] if valid[i] else <Real>NAN
        data += shape.width
        out += shape.stride


cdef bint column_put(int kind, const void* data, const uint8_t* valid, Real* out, Shape shape) noexcept nogil:
    """False: the column is not of numbers.

    Why two kinds of 64 bits: C's long and long long are types of their own to NumPy, also where they are alike.
    """
    if kind == cnp.NPY_FLOAT64:
        cells_put(<const double*>data, valid, out, shape)
    elif kind == cnp.NPY_FLOAT32:
        cells_put(<const float*>data, valid, out, shape)
    elif kind == cnp.NPY_INT64 or kind == cnp.NPY_LONGLONG:
        cells_put(<const int64_t*>data, valid, out, shape)
    elif kind == cnp.NPY_INT32:
        cells_put(<const int32_t*>data, valid, out, shape)
    elif kind == cnp.NPY_UINT8:
        cells_put(<const uint8_t*>data, valid, out, shape)
    elif kind == cnp.NPY_INT8:
        cells_put(<const int8_t*>data, valid, out, shape)
    elif kind == cnp.NPY_INT16:
        cells_put(<const int16_t*>data, valid, out, shape)
    elif kind == cnp.NPY_UINT16:
        cells_put(<const uint16_t*>data, valid, out, shape)
    elif kind == cnp.NPY_UINT32:
        cells_put(<const uint32_t*>data, valid, out, shape)
    elif kind == cnp.NPY_UINT64 or kind == cnp.NPY_ULONGLONG:
        cells_put(<const uint64_t*>data, valid, out, shape)
    else:
        return False
    return True


def matrix_fill(cnp.ndarray out not None, columns, tuple widths not None):
    """Fill `out`, float64 or float32, C-contiguous, [n, sum(widths)] or of so many elements, with these columns.

    widths: columns of the matrix per column, 1 or a vector's size.
    """
    cdef bint is_single = cnp.PyArray_TYPE(out) == cnp.NPY_FLOAT32
    cdef uint8_t* at = <uint8_t*>cnp.PyArray_DATA(out)
    cdef cnp.ndarray valid
    cdef cnp.ndarray data
    cdef bint is_number
    cdef Shape shape
    shape.stride = sum(widths)
    if shape.stride == 0:
        return
    shape.count = cnp.PyArray_SIZE(out) // shape.stride
    for (valid, data, _), width in zip(columns, widths):
        shape.width = width
        valid, data = plain(valid), plain(data)
        if cnp.PyArray_SIZE(valid) != shape.count or cnp.PyArray_SIZE(data) != shape.count * shape.width:
            raise TypeError(f"a column of {cnp.PyArray_SIZE(data)} numbers does not fill {shape.count} x {shape.width}")
        is_number = column_fill(valid, data, at, is_single, shape)
        if not is_number:
            raise TypeError(f"a column of {data.dtype} has no float form")
        at += shape.width * (4 if is_single else 8)


cdef bint column_fill(cnp.ndarray valid, cnp.ndarray data, uint8_t* at, bint is_single, Shape shape):
    cdef const uint8_t* is_there = <const uint8_t*>cnp.PyArray_DATA(valid)
    cdef const void* values = cnp.PyArray_DATA(data)
    cdef int kind = cnp.PyArray_TYPE(data)
    if 8 * shape.count * shape.stride < RELEASE_BYTES:
        if is_single:
            return column_put(kind, values, is_there, <float*>at, shape)
        return column_put(kind, values, is_there, <double*>at, shape)
    with nogil:
        if is_single:
            return column_put(kind, values, is_there, <float*>at, shape)
        return column_put(kind, values, is_there, <double*>at, shape)


cdef cnp.ndarray plain(cnp.ndarray array):
    """The array, or a copy where it does not lie as C has it: a reply's lies at any address."""
    if cnp.PyArray_ISCARRAY_RO(array):
        return array
    return np.require(array, array.dtype.newbyteorder("="), "CA")
