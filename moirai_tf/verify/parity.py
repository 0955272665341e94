"""Compares the outputs of two runs: values, shapes and types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from moirai_tf.verify.report import VALUE, Finding, OutputParity

Array = npt.NDArray[Any]

TOLERANCES = {
    "float64": 1e-10,
    "complex128": 1e-10,
    "float32": 1e-3,
    "complex64": 1e-3,
    "float16": 1e-2,
    "bfloat16": 5e-2,
}
"""Largest difference, relative to the largest magnitude in the tensor, where bits may differ.

The rounding of some thousand operators in the wider types, and of some ten in the half types. Every
other type (integers, booleans, strings) must be equal everywhere.
"""


def tolerance_of(dtypes: Iterable[str]) -> float:
    """The tolerance for a model that computes in these types: that of the coarsest."""
    return max((TOLERANCES.get(dtype, 0.0) for dtype in dtypes), default=0.0)


def compare(
    run: str, output: str, original: Array, placed: Array, tolerance: float = 0.0
) -> OutputParity:
    """Compares one output.

    Args:
      run: which run it comes from.
      output: its name in the signature.
      original: its value in the original model.
      placed: its value in the placed model.
      tolerance: allowed error of floating-point values; 0 demands equal bits.
    """
    dtype = str(original.dtype)
    same_kind = original.dtype == placed.dtype and original.shape == placed.shape
    bit_equal = same_kind and _bits(original) == _bits(placed)
    error = 0.0 if bit_equal else _error(original, placed) if same_kind else float("inf")
    allowed = tolerance if dtype in TOLERANCES else 0.0
    return OutputParity(run, output, dtype, original.shape, bit_equal, error, allowed)


def differences(
    run: str,
    original: Mapping[str, Array],
    placed: Mapping[str, Array],
    parities: list[OutputParity],
    tolerance: float,
) -> Iterator[Finding]:
    """Compares all outputs, keeps how each compares, and gives what is wrong."""
    for output, value in original.items():
        parities.append(compare(run, output, value, placed[output], tolerance))
        finding = difference(parities[-1], placed[output])
        if finding is not None:
            yield finding


def difference(parity: OutputParity, placed: Array) -> Finding | None:
    """What is wrong with an output, or None."""
    if parity.ok:
        return None
    if (str(placed.dtype), placed.shape) != (parity.dtype, parity.shape):
        what = (
            f"is {parity.dtype}{list(parity.shape)} in the original, "
            f"but {placed.dtype}{list(placed.shape)} in the placed model"
        )
    else:
        what = (
            f"({parity.dtype}{list(parity.shape)}) differs by {parity.error:.3g} of the original's "
            f"largest value; allowed is {parity.tolerance:g}"
        )
    return Finding(VALUE, f"{parity.run}: output {parity.output!r} {what}", (parity.output,))


def _bits(array: Array) -> object:
    return array.tolist() if array.dtype == object else array.tobytes()


def _error(original: Array, placed: Array) -> float:
    """Largest difference relative to the original's largest finite magnitude."""
    if str(original.dtype) not in TOLERANCES:
        return float("inf")
    wide = np.complex128 if original.dtype.kind == "c" else np.float64
    a, b = original.astype(wide), placed.astype(wide)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return float("inf")
    scale = float(np.max(np.abs(a[finite]), initial=0.0))
    largest = float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))
    return largest / scale if scale > 0 else largest
