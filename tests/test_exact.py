"""Exact sums: what exact.pyx computes is the double nearest to the true number, for doubles of every size."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastfeat._core.exact import moments_of, sum_of

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NEAR = st.floats(-1e6, 1e6).map(lambda value: round(value, 2))
EDGES = st.sampled_from([5e-324, -5e-324, 2.0**-1022, 1.7976931348623157e308, 2.0**53, 1.0, -1.0, 0.1, 2.0**-1074 * 3])
VALUES = st.lists(FINITE | EDGES, max_size=20) | st.lists(NEAR, max_size=60)


def nearest(value: Fraction) -> float:
    """The double nearest to a fraction; Python's int / int is so, but raises where the result is too large."""
    try:
        return value.numerator / value.denominator
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def nearest_root(value: Fraction) -> float:
    """The double nearest to the root of a fraction, by comparing squares of the midpoints between doubles."""
    if value == 0:
        return 0.0
    shift = max(0, 2200 - 2 * (value.numerator.bit_length() - value.denominator.bit_length()))
    shift += shift & 1
    scaled = (value.numerator << shift) // value.denominator
    root = math.isqrt(scaled)
    exact = root * root == scaled and scaled * value.denominator == value.numerator << shift
    return nearest(Fraction(2 * root + (0 if exact else 1), 1 << (shift // 2 + 1)))


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


@given(VALUES)
@example([1e308, 1e308])
@example([-1e308, -1e308, 1e308])
@example([0.1] * 10)
@example([5e-324] * 3)
@example([-0.0])
def test_moments_are_the_nearest_doubles(values: list[float]) -> None:
    exact = [Fraction(value) for value in values]
    total, mean, variance, root = moments_of(values)
    n = len(values)
    true_sum = sum(exact, Fraction(0))
    assert bits(total) == bits(nearest(true_sum))
    if n:
        assert bits(mean) == bits(nearest(true_sum / n))
    if n > 1:
        true = (n * sum((x * x for x in exact), Fraction(0)) - true_sum**2) / (n * (n - 1))
        assert bits(variance) == bits(nearest(true))
        assert bits(root) == bits(nearest_root(true))


@given(st.permutations([1e100, 1.0, -1e100, 1e-100, 3.5, -1.0]))
def test_the_order_of_the_terms_changes_no_bit(values: list[float]) -> None:
    assert sum_of(values) == 3.5 + 1e-100


def test_sums_agree_with_fsum() -> None:
    values = [math.sin(i) * 10.0 ** (i % 40 - 20) for i in range(5000)]
    assert sum_of(values) == math.fsum(values)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="inf is not a finite number"):
        sum_of([math.inf])
