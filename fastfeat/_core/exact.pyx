"""Exact: sums of floating-point numbers as the real numbers they are, rounded once.

    value --> significand * 2**exponent --> digits of 2**32 --> sum, mean, variance, its root --round to even--> float64

    An exact sum does not depend on the order of its terms, on how they are grouped or on what was summed before: any
    two ways to compute it give the same bits. So windows may be summed from whatever is at hand: rows, tiles, blocks.

    Exact has a digit for every power of 2**32 that a double or the square of one can reach. A digit takes 2**30 terms
    before carries must run.

Promise:     the value returned is the double nearest to the real number, the even one of two; beyond the greatest
             double an infinity; an exact zero is +0.0.
Concurrency: plain functions of their arguments.
Errors:      none. NaN and infinities are not numbers: the caller keeps them apart.
Source:      the accumulator of many small chunks: R. Neal, "Fast exact summation using small and large
             superaccumulators", 2015, https://arxiv.org/abs/1505.05571.
"""

from libc.math cimport HUGE_VAL, ldexp, sqrt
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memset

cdef extern from *:
    int __builtin_clzll(unsigned long long x) noexcept nogil
    int __builtin_ctzll(unsigned long long x) noexcept nogil

cdef enum:
    FIRST_BIT = 2208          # digit 0 counts 2**-2208s
    ADDED_MAX = 1 << 30
    NUMBER = 432              # digits of a numerator: 6 below 2 * -2208 bits, for the quotient, and all above
    NUMBER_FIRST_BIT = 4608   # = 2 * FIRST_BIT + 32 * 6
    BELOW = 6


cdef void exact_init(Exact* x) noexcept nogil:
    memset(x.chunk, 0, sizeof(x.chunk))
    x.low = CHUNKS
    x.high = -1
    x.added = 0


cdef void exact_clear(Exact* x) noexcept nogil:
    """Back to zero; touches only what was used."""
    cdef int32_t i
    for i in range(x.low, x.high + 1):
        x.chunk[i] = 0
    x.low = CHUNKS
    x.high = -1
    x.added = 0


cdef inline void digits_add(Exact* x, uint128 value, bint negative, int32_t at) noexcept nogil:
    """Add value * 2**(32 * at); value below 2**96."""
    cdef int64_t sign = -1 if negative else 1
    x.chunk[at] += sign * <int64_t><uint32_t>value
    x.chunk[at + 1] += sign * <int64_t><uint32_t>(value >> 32)
    x.chunk[at + 2] += sign * <int64_t><uint32_t>(value >> 64)
    if at < x.low:
        x.low = at
    if at + 2 > x.high:
        x.high = at + 2
    x.added += 1
    if x.added >= ADDED_MAX:
        carry(x)


cdef void carry(Exact* x) noexcept nogil:
    """Bring every digit but the highest into [0, 2**32)."""
    cdef int64_t over = 0
    cdef int64_t digit
    cdef int32_t i = x.low
    while i <= x.high or (over != 0 and over != -1):
        digit = x.chunk[i] + over
        over = digit >> 32
        x.chunk[i] = digit & <int64_t>0xFFFFFFFF
        i += 1
    if over == -1:                        # negative: the sign stays in the highest digit
        x.chunk[i - 1] -= <int64_t>1 << 32
    if i - 1 > x.high:
        x.high = i - 1
    x.added = 1


cdef void exact_add(Exact* x, uint64_t magnitude, bint negative, int32_t exponent) noexcept nogil:
    cdef int32_t bit = exponent + FIRST_BIT
    digits_add(x, <uint128>magnitude << (bit & 31), negative, bit >> 5)


cdef void exact_add_int128(Exact* x, int128 value, int32_t exponent) noexcept nogil:
    cdef bint negative = value < 0
    cdef uint128 magnitude = <uint128>(-value) if negative else <uint128>value
    exact_add(x, <uint64_t>magnitude, negative, exponent)
    exact_add(x, <uint64_t>(magnitude >> 64), negative, exponent + 64)


cdef void exact_add_square(Exact* x, uint64_t magnitude, int32_t exponent) noexcept nogil:
    cdef uint128 square = <uint128>magnitude * <uint128>magnitude
    exact_add(x, <uint64_t>square, False, 2 * exponent)
    exact_add(x, <uint64_t>(square >> 64), False, 2 * exponent + 64)


# --- rounding --------------------------------------------------------------------------------------------------------

cdef double rounded(bint negative, uint64_t top, bint has_more, int32_t exponent) noexcept nogil:
    """The double nearest to +-1.f * 2**exponent: `top` holds its first 64 bits, the highest one set; has_more: further
    bits below are not all zero."""
    cdef int32_t bits = 53 if exponent >= -1022 else 53 + 1022 + exponent
    cdef uint64_t kept
    cdef uint64_t rest
    cdef double value
    if bits < 0:
        return -0.0 if negative else 0.0
    if exponent > 1023:
        return -HUGE_VAL if negative else HUGE_VAL
    kept = top >> (64 - bits) if bits else 0
    rest = top << bits
    if rest > <uint64_t>1 << 63 or (rest == <uint64_t>1 << 63 and (has_more or kept & 1)):
        kept += 1
    value = ldexp(<double>kept, exponent - bits + 1)
    return -value if negative else value


cdef double int128_rounded(bint negative, uint128 magnitude, bint has_more, int32_t exponent) noexcept nogil:
    """The double nearest to +-magnitude * 2**exponent and a little more where has_more."""
    cdef uint64_t high = <uint64_t>(magnitude >> 64)
    cdef int zeros
    if magnitude == 0:
        return 0.0
    zeros = __builtin_clzll(high) if high else 64 + __builtin_clzll(<uint64_t>magnitude)
    magnitude <<= zeros
    return rounded(negative, <uint64_t>(magnitude >> 64), has_more or <uint64_t>magnitude != 0, exponent + 127 - zeros)


cdef double int128_mean(int128 value, int32_t exponent, uint64_t count) noexcept nogil:
    """value * 2**exponent / count. count below 2**32."""
    cdef bint negative = value < 0
    cdef uint128 magnitude = <uint128>(-value) if negative else <uint128>value
    cdef uint128 quotient
    cdef uint64_t high
    cdef int zeros
    cdef int bits
    if magnitude == 0:
        return 0.0
    if count == 1:
        return int128_rounded(negative, magnitude, False, exponent)
    if <uint64_t>magnitude:               # what tiles shifted up is shifted down: then most dividends are short
        zeros = __builtin_ctzll(<uint64_t>magnitude)
        magnitude >>= zeros
        exponent += zeros
    high = <uint64_t>(magnitude >> 64)
    zeros = __builtin_clzll(high) if high else 64 + __builtin_clzll(<uint64_t>magnitude)
    bits = 64 - __builtin_clzll(count)
    if zeros >= 65 - bits:                # the dividend's upper word below the divisor: one instruction divides
        zeros -= 65 - bits
    magnitude <<= zeros                   # the quotient has at least 62 bits
    quotient = magnitude // <uint128>count
    return int128_rounded(negative, quotient, quotient * <uint128>count != magnitude, exponent - zeros)


# --- numbers of many digits ------------------------------------------------------------------------------------------

cdef struct Number:           # a magnitude: digits of 2**32, digit 0 counts 2**-4608s
    uint32_t digit[NUMBER]
    int32_t low
    int32_t high              # digits outside of [low, high] are zero, and not set
    bint negative
    bint has_more


cdef void number_of(Exact* x, Number* out, int32_t offset) noexcept nogil:
    """The magnitude and sign of a sum; digit i of it becomes digit i + offset."""
    cdef int32_t i
    out.has_more = False
    out.negative = False
    if x.high < 0:
        out.low = 0
        out.high = -1
        return
    carry(x)
    if x.chunk[x.high] < 0:
        out.negative = True
        for i in range(x.low, x.high + 1):
            x.chunk[i] = -x.chunk[i]
        carry(x)
    out.low = x.low + offset
    out.high = x.high + offset
    for i in range(x.low, x.high + 1):
        out.digit[i + offset] = <uint32_t>x.chunk[i]
    if out.negative:                      # the sum stays what it was
        for i in range(x.low, x.high + 1):
            x.chunk[i] = -x.chunk[i]


cdef void number_divide(Number* x, uint64_t divisor) noexcept nogil:
    """x / divisor, BELOW digits more than x has; what is left over is in has_more."""
    cdef uint128 rest = 0
    cdef int32_t low = x.low - BELOW
    cdef int32_t i = x.high
    if x.high < x.low:
        return
    while i >= low:
        rest = (rest << 32) | <uint128>(x.digit[i] if i >= x.low else 0)
        x.digit[i] = <uint32_t>(rest // <uint128>divisor)
        rest = rest % <uint128>divisor
        i -= 1
    x.low = low
    x.has_more = rest != 0


cdef int32_t number_top(Number* x) noexcept nogil:
    """The place of its highest bit that is set, -1 where there is none."""
    cdef int32_t i = x.high
    while i >= x.low and x.digit[i] == 0:
        i -= 1
    if i < x.low:
        return -1
    return 32 * i + 63 - __builtin_clzll(<uint64_t>x.digit[i])


cdef uint128 number_bits(const Number* x, int32_t bit, bint* has_more) noexcept nogil:
    """The 128 bits from `bit` on; has_more: set where some bit below is set."""
    cdef uint128 value = 0
    cdef int32_t i = bit >> 5
    cdef int32_t j
    cdef uint64_t digit
    for j in range(5):
        digit = x.digit[i + j] if x.low <= i + j <= x.high else 0
        if j == 0:
            value = <uint128>(digit >> (bit & 31))
            if digit & ((<uint64_t>1 << (bit & 31)) - 1):
                has_more[0] = True
        else:
            value |= <uint128>digit << (32 * j - (bit & 31))
    for j in range(x.low, i if i < x.high + 1 else x.high + 1):
        if x.digit[j]:
            has_more[0] = True
            break
    return value


cdef double number_rounded(Number* x) noexcept nogil:
    cdef int32_t top = number_top(x)
    cdef bint has_more = x.has_more
    cdef uint128 bits
    if top < 0:
        return 0.0
    bits = number_bits(x, top - 127, &has_more)
    return int128_rounded(x.negative, bits, has_more, top - 127 - NUMBER_FIRST_BIT)


cdef double exact_mean(Exact* x, uint64_t count) noexcept nogil:
    """The sum divided by count, which is below 2**32."""
    cdef Number number
    number_of(x, &number, (NUMBER_FIRST_BIT - FIRST_BIT) // 32)
    if count > 1:
        number_divide(&number, count)
    return number_rounded(&number)


cdef double exact_variance(Exact* sum, Exact* squares, uint64_t count, bint is_root) noexcept nogil:
    """(n * squares - sum**2) / (n * (n - 1)), or its root. count from 2 to 2**32 - 1."""
    cdef Number square
    cdef Number mean
    cdef uint64_t over
    cdef int64_t taken
    cdef uint64_t digit
    cdef int32_t i
    cdef int32_t j
    cdef int32_t low
    cdef int32_t high
    number_of(squares, &square, (NUMBER_FIRST_BIT - FIRST_BIT) // 32)
    if square.high < square.low:
        return 0.0
    over = 0                              # n * squares
    for i in range(square.low, square.high + 1):
        over += <uint64_t>square.digit[i] * count
        square.digit[i] = <uint32_t>over
        over >>= 32
    square.digit[square.high + 1] = <uint32_t>over
    square.high += 1
    number_of(sum, &mean, 0)
    # - sum**2: the place of digit i times digit j is i + j in 2**-4416s, BELOW further up in a Number
    low = 2 * mean.low + BELOW
    high = 2 * mean.high + 1 + BELOW
    if mean.high >= mean.low:
        for i in range(low, square.low):
            square.digit[i] = 0
        for i in range(square.high + 1, high + 2):
            square.digit[i] = 0
        square.low = min(square.low, low)
        square.high = max(square.high, high + 1)
        for i in range(mean.low, mean.high + 1):
            over = 0
            for j in range(mean.low, mean.high + 1):
                digit = <uint64_t>mean.digit[i] * mean.digit[j] + over
                taken = <int64_t>square.digit[i + j + BELOW] - <int64_t>(digit & <uint64_t>0xFFFFFFFF)
                over = (digit >> 32) + (1 if taken < 0 else 0)
                square.digit[i + j + BELOW] = <uint32_t>taken
            j = i + mean.high + 1 + BELOW
            while over:
                taken = <int64_t>square.digit[j] - <int64_t>(over & <uint64_t>0xFFFFFFFF)
                over = (over >> 32) + (1 if taken < 0 else 0)
                square.digit[j] = <uint32_t>taken
                j += 1
    number_divide(&square, count * (count - 1))
    return number_root(&square) if is_root else number_rounded(&square)


cdef double number_root(Number* x) noexcept nogil:
    """The root of x, of x itself and not of x rounded."""
    cdef int32_t top = number_top(x)
    cdef int32_t bit = top - 127
    cdef bint has_more = x.has_more
    cdef uint128 value
    cdef uint128 root
    if top < 0:
        return 0.0
    if (bit - NUMBER_FIRST_BIT) & 1:      # an even power of two is left outside
        bit += 1
    value = number_bits(x, bit, &has_more)      # 127 or 128 bits
    root = <uint128>sqrt(<double>value)
    root = (root + value // root) >> 1
    if root > <uint128>0xFFFFFFFFFFFFFFFF:
        root = <uint128>0xFFFFFFFFFFFFFFFF
    while root * root > value:
        root -= 1
    while root < <uint128>0xFFFFFFFFFFFFFFFF and (root + 1) * (root + 1) <= value:
        root += 1
    has_more = has_more or root * root != value
    return int128_rounded(False, root, has_more, (bit - NUMBER_FIRST_BIT) // 2)


# --- for tests -------------------------------------------------------------------------------------------------------

def sum_of(values):
    """The exact sum of floats, rounded once."""
    return moments_of(values)[0]


def moments_of(values):
    """(sum, mean, variance, its root) of finite floats, each rounded once; the last two 0.0 of fewer than two."""
    cdef Exact x
    cdef Exact y
    cdef uint64_t significand
    cdef int32_t exponent
    cdef bint negative
    cdef uint64_t count = len(values)
    exact_init(&x)
    exact_init(&y)
    for value in values:
        if double_split(value, &significand, &exponent, &negative) != FINITE:
            raise ValueError(f"{value} is not a finite number")
        exact_add(&x, significand, negative, exponent)
        exact_add_square(&y, significand, exponent)
    mean = exact_mean(&x, max(count, 1))
    if count < 2:
        return exact_mean(&x, 1), mean, 0.0, 0.0
    variance = exact_variance(&x, &y, count, False)
    return exact_mean(&x, 1), mean, variance, exact_variance(&x, &y, count, True)
