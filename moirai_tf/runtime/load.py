"""Loading a placed model into this process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moirai_tf.model.load import load_with_devices
from moirai_tf.rewrite.directory import has_plan
from moirai_tf.rewrite.plan_file import read_plan
from moirai_tf.runtime.devices import check_plan_here


def load(directory: str | Path, tags: Iterable[str] | None = None) -> Any:
    """Loads a placed SavedModel so that its operators and variables go where the plan puts them.

    The same as `tf.saved_model.load` with `experimental_variable_policy="save_variable_devices"`,
    once it is sure that this process has the plan's devices: TensorFlow would run everything
    elsewhere without a word. A model that was never placed is loaded as it is.

    Raises:
      MoiraiError: a device of the plan is not in this process, a GPU is of another model than the
        plan was made for, or soft placement is off.
    """
    if has_plan(directory):
        check_plan_here(read_plan(directory))
    return load_with_devices(directory, tags)
