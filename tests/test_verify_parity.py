"""Comparing outputs: what counts as the same, and what is said of a difference."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moirai_tf.verify.parity import TOLERANCES, compare, difference, tolerance_of

_BFLOAT16 = tf.bfloat16.as_numpy_dtype


def test_equal_bits_are_equal_in_every_type() -> None:
    for array in (
        np.array([1.5, np.nan, -np.inf], np.float32),
        np.array([[1, 2]], np.int64),
        np.array([True]),
        np.array([b"one", b"two"], dtype=object),
        np.array(b"scalar", dtype=object),
        np.array([1 + 2j], np.complex64),
        np.array([1.5], _BFLOAT16),
    ):
        parity = compare("run", "y", array, array.copy())
        assert parity.bit_equal
        assert parity.ok
        assert parity.error == 0.0
        assert difference(parity, array) is None


def test_an_exact_comparison_sees_the_last_bit() -> None:
    one = np.array([1.0, 2.0], np.float32)
    two = np.nextafter(one, np.float32(3.0))
    parity = compare("session, Grappler off", "y", one, two)
    assert not parity.ok
    # The spacing of float32 is 2^-23 at 1 and 2^-22 at 2; the largest value is 2.
    assert parity.error == 2.0**-22 / 2.0
    finding = difference(parity, two)
    assert finding is not None
    assert finding.names == ("y",)
    assert "session, Grappler off: output 'y' (float32[2]) differs by 1.19e-07" in finding.text


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, _BFLOAT16])
def test_tolerances_are_relative_to_the_largest_value(dtype: type) -> None:
    # 0 against 16 * tolerance beside 64: an error of tolerance / 4. Against 128 * tolerance: twice.
    tolerance = TOLERANCES[str(np.dtype(dtype))]
    one = np.array([0.0, 64.0], dtype)
    near = np.array([16 * tolerance, 64.0], dtype)
    far = np.array([128 * tolerance, 64.0], dtype)
    assert compare("run", "y", one, near, tolerance).ok
    assert not compare("run", "y", one, near).ok
    assert not compare("run", "y", one, far, tolerance).ok


def test_the_coarsest_type_of_a_model_decides() -> None:
    assert tolerance_of(["int32", "float32", "float16", "string"]) == TOLERANCES["float16"]
    assert tolerance_of(["int32", "resource"]) == 0.0
    assert tolerance_of([]) == 0.0


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (np.array([7], np.int32), np.array([8], np.int32)),
        (np.array([True]), np.array([False])),
        (np.array([b"a"], dtype=object), np.array([b"b"], dtype=object)),
        (np.array([np.nan], np.float32), np.array([1.0], np.float32)),
        (np.array([np.inf], np.float32), np.array([-np.inf], np.float32)),
    ],
)
def test_some_differences_have_no_tolerance(one: np.ndarray, two: np.ndarray) -> None:
    parity = compare("run", "y", one, two, tolerance=1.0)
    assert not parity.ok
    assert parity.error == float("inf")


def test_types_and_shapes_must_agree() -> None:
    one = np.zeros((2, 3), np.float32)
    for two in (np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float64)):
        finding = difference(compare("run", "y", one, two, tolerance=1.0), two)
        assert finding is not None
        assert "float32[2, 3] in the original" in finding.text
        assert f"{two.dtype}{list(two.shape)} in the placed model" in finding.text


@settings(max_examples=50)
@given(
    arrays.arrays(np.float32, 5, elements=st.floats(-100, 100, width=32)),
    arrays.arrays(np.float32, 5, elements=st.floats(-100, 100, width=32)),
)
def test_the_error_bounds_every_difference(one: np.ndarray, two: np.ndarray) -> None:
    error = compare("run", "y", one, two, tolerance=1.0).error
    scale = np.max(np.abs(one)).astype(np.float64) or 1.0
    gaps = np.abs(one.astype(np.float64) - two.astype(np.float64))
    assert np.all(gaps <= error * scale * (1 + 1e-12))
    assert np.max(gaps) == pytest.approx(error * scale)
