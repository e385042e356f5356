from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    ctypedef long long int128 "__int128"
    ctypedef unsigned long long uint128 "unsigned __int128"

cdef enum:
    CHUNKS = 140              # 32 bits each, from 2**-2208: squares of the least and the greatest double, and room

cdef struct Exact:            # the exact sum of any number of doubles, integers or squares of them
    int64_t chunk[CHUNKS]     # signed digits of 2**32, not carried
    int32_t low               # the chunks that are not zero lie in [low, high]
    int32_t high
    uint32_t added            # since the last carry

cdef struct Specials:         # values that have no place in a sum
    bint has_nan
    bint has_plus
    bint has_minus


cdef enum Finite:
    FINITE = 0
    INFINITE = 1
    IS_NAN = 2


cdef inline uint64_t double_bits(double value) noexcept nogil:
    return (<uint64_t*>&value)[0]


cdef inline Finite double_split(double value, uint64_t* significand, int32_t* exponent, bint* negative) noexcept nogil:
    """value = +-significand * 2**exponent, significand below 2**53."""
    cdef uint64_t bits = double_bits(value)
    cdef uint32_t biased = <uint32_t>(bits >> 52) & 0x7FF
    significand[0] = bits & <uint64_t>0xFFFFFFFFFFFFF
    negative[0] = bits >> 63
    if biased == 0x7FF:
        return IS_NAN if significand[0] else INFINITE
    if biased == 0:
        exponent[0] = -1074
    else:
        significand[0] |= <uint64_t>1 << 52
        exponent[0] = <int32_t>biased - 1075
    return FINITE


cdef void exact_init(Exact* x) noexcept nogil
cdef void exact_clear(Exact* x) noexcept nogil
cdef void exact_add(Exact* x, uint64_t magnitude, bint negative, int32_t exponent) noexcept nogil
cdef void exact_add_int128(Exact* x, int128 value, int32_t exponent) noexcept nogil
cdef void exact_add_square(Exact* x, uint64_t magnitude, int32_t exponent) noexcept nogil

# Rounded once, to nearest even.
cdef double exact_mean(Exact* x, uint64_t count) noexcept nogil
cdef double exact_variance(Exact* sum, Exact* squares, uint64_t count, bint is_root) noexcept nogil
cdef double int128_mean(int128 value, int32_t exponent, uint64_t count) noexcept nogil
