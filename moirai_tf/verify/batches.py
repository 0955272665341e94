"""What a divided batch must keep: other numbers of rows, and rows that do not touch each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from moirai_tf.split.record import SplitEdit
from moirai_tf.verify.parity import Array, compare
from moirai_tf.verify.report import VALUE, Finding

REVERSED = "rows in reverse"


def other_batches(
    edit: SplitEdit | None, inputs: Mapping[str, Array]
) -> dict[str, dict[str, Array]]:
    """Batches besides the planned one that a divided model is run with, by what they are.

    Args:
      edit: how the batch is divided; None if it is not.
      inputs: the planned batch.
    """
    if edit is None:
        return {}

    def with_rows(rows: np.ndarray[tuple[int], np.dtype[np.intp]]) -> dict[str, Array]:
        return {k: v[rows] if k in edit.inputs else v for k, v in inputs.items()}

    every = np.arange(len(inputs[edit.inputs[0]]))
    return {
        "1 row": with_rows(every[:1]),
        f"{len(every) + 1} rows": with_rows(np.append(every, 0)),
        REVERSED: with_rows(every[::-1]),
    }


def interference(
    edit: SplitEdit,
    run: str,
    outputs: Mapping[str, Array],
    in_reverse: Mapping[str, Array],
    tolerance: float,
) -> Iterator[Finding]:
    """Outputs of the original that depend on where a row is, or what stands beside it.

    Args:
      edit: how the batch is divided.
      run: which run the outputs come from.
      outputs: of the planned batch.
      in_reverse: of the same rows in reverse.
      tolerance: what two kernels may differ by.
    """
    for name in edit.outputs:
        found = compare(run, name, outputs[name], in_reverse[name][::-1], tolerance)
        if not found.ok:
            yield Finding(
                VALUE,
                f"{run}: output {name!r} of the original is another one for the same rows in "
                f"reverse, by {found.error:.3g} of its largest value",
                (name,),
                fix="optimise the original again with split=off",
            )
