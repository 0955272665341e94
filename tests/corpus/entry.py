"""What an entry of the corpus is: a small function, written into models of TensorFlow 1 and 2.

Every entry becomes up to four models: saved by TensorFlow 2, or as a graph of TensorFlow 1 with its
control flow and variables, each with the shapes of its inputs known or not.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1

Array = np.ndarray[Any, Any]
Draw = Callable[[np.random.Generator], Array]
"""Draws one input."""

KEYS = ("cat", "dog", "owl")
"""Keys of the table that entries may look in; it gives 1.5, 2.5 and 3.5, or -1 for another."""


@dataclass(frozen=True)
class Entry:
    """One function of the corpus."""

    function: Callable[..., Any]
    """From a `Kit` and the inputs, by name, to a tensor or a dictionary of tensors."""
    inputs: Mapping[str, Draw]
    weights: Mapping[str, tuple[int, ...]]
    """Name of a variable -> its shape."""
    table: bool
    """Whether the kit has a table."""
    prepare: Callable[[Any], None] | None
    """Adds to the kit, before TensorFlow 2 traces the function."""
    flavours: tuple[str, ...]
    """Models that can be made of it: `tf2`, `tf2 unknown`, `tf1`, `tf1 unknown`."""

    def arrays(self) -> dict[str, Array]:
        """The inputs."""
        rng = np.random.default_rng(7)
        return {name: draw(rng) for name, draw in self.inputs.items()}

    def build(self, path: Path, flavour: str) -> None:
        """Writes a model; the path must not exist."""
        unknown = flavour.endswith("unknown")
        arrays = self.arrays().items()
        specs = {
            name: tf.TensorSpec([None] * a.ndim if unknown else a.shape, _dtype(a), name)
            for name, a in arrays
        }
        write = _write_tf2 if flavour.startswith("tf2") else _write_tf1
        write(self, path, specs)


ENTRIES: dict[str, Entry] = {}
"""Every function by name."""


def entry(
    weights: Mapping[str, tuple[int, ...]] | None = None,
    *,
    table: bool = False,
    prepare: Callable[[Any], None] | None = None,
    tf1: bool = True,
    unknown: bool = True,
    **inputs: Draw,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function into the corpus under its own name.

    Args:
      weights: variables of the kit.
      table: whether the kit has a table.
      prepare: adds to the kit, before TensorFlow 2 traces the function.
      tf1: whether it can be built as a graph of TensorFlow 1.
      unknown: whether it can be built for inputs whose sizes are not known.
      **inputs: its inputs.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        flavours = [f for f in ("tf2", "tf1") if tf1 or f == "tf2"]
        flavours += [f"{f} unknown" for f in flavours if unknown]
        name = function.__name__
        assert name not in ENTRIES
        ENTRIES[name] = Entry(function, inputs, weights or {}, table, prepare, tuple(flavours))
        return function

    return enter


def floats(*shape: int, low: float = -2.0, high: float = 2.0) -> Draw:
    """float32 in [low, high)."""
    return lambda rng: rng.uniform(low, high, shape).astype(np.float32)


def ints(*shape: int, size: int = 3, dtype: type = np.int32) -> Draw:
    """Integers in [0, size)."""
    return lambda rng: rng.integers(0, size, shape).astype(dtype)


def texts(*shape: int, of: tuple[str, ...] = ("Cat", "dog", "owl", "big cat", "")) -> Draw:
    """Some strings."""
    return lambda rng: rng.choice(np.array(of), shape)


def _write_tf2(entry: Entry, path: Path, specs: Mapping[str, tf.TensorSpec]) -> None:
    module = tf.Module()
    module.kit = {n: tf.Variable(_weight(n, s)) for n, s in entry.weights.items()}
    module.table = _table() if entry.table else None
    kit = SimpleNamespace(**module.kit, table=module.table, module=module)
    if entry.prepare is not None:
        entry.prepare(kit)
    module.serve = tf.function(lambda **inputs: _named(entry.function(kit, **inputs)))
    concrete = module.serve.get_concrete_function(**specs)
    tf.saved_model.save(module, str(path), {"serving_default": concrete})


def _write_tf1(entry: Entry, path: Path, specs: Mapping[str, tf.TensorSpec]) -> None:
    v2 = tf1.control_flow_v2_enabled()
    tf1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), tf1.Session() as session:
            inputs = {n: tf1.placeholder(s.dtype, s.shape, n) for n, s in specs.items()}
            weights = {
                n: tf1.Variable(_weight(n, s), name=n, use_resource=k % 2 == 0)
                for k, (n, s) in enumerate(entry.weights.items())
            }
            table = _table() if entry.table else None
            kit = SimpleNamespace(**weights, table=table)
            outputs = _named(entry.function(kit, **inputs))
            session.run([tf1.global_variables_initializer(), tf1.tables_initializer()])
            _save_session(session, path, inputs, outputs)
    finally:
        if v2:
            tf1.enable_control_flow_v2()


def _save_session(session: Any, path: Path, inputs: Any, outputs: Any) -> None:
    builder = tf1.saved_model.Builder(str(path))
    signature = tf1.saved_model.predict_signature_def(inputs, outputs)
    builder.add_meta_graph_and_variables(
        session,
        ["serve"],
        {"serving_default": signature},
        main_op=tf1.tables_initializer(),
        strip_default_attrs=True,
    )
    builder.save()


def _named(result: Any) -> dict[str, tf.Tensor]:
    named = result if isinstance(result, dict) else {"y": result}
    return {name: tf.identity(tensor) for name, tensor in named.items()}


def _table() -> tf.lookup.StaticHashTable:
    values = [1.5, 2.5, 3.5]
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(KEYS), tf.constant(values)), -1.0
    )


def _weight(name: str, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.normal(0.0, 0.5, shape).astype(np.float32)


def _dtype(array: Array) -> tf.DType:
    return tf.string if array.dtype.kind == "U" else tf.as_dtype(array.dtype)
