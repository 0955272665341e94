"""From a SavedModel's signature to ONNX through tf2onnx, in a process of its own.

Names of operators are kept as far as tf2onnx can; a fixed seed of Python's hashes makes equal runs
give equal models.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from moirai_tf.errors import MoiraiError
from moirai_tf.export.onnx_graph import bodies, onnx_module, save_model
from moirai_tf.model.input_files import Array
from moirai_tf.model.load import give_memory_back
from moirai_tf.runtime.child import Child, without_gpus
from moirai_tf.runtime.failures import failure_of
from moirai_tf.verify.parity import compare
from moirai_tf.verify.run import Tf2Model

_LEFT_OUT = "einsum_optimizer"
"""It renames nearly half of an attention model, which then could not be led back to the plan."""

_ABOUT = {"Transpose": 0, "Shape": 0, "Squeeze": 0, "Unsqueeze": 0, "Conv": 1}
"""What optimizers add -> the input after whose maker it is called: a result, or weights."""

_TRIALS = 3
"""How often weights are changed."""
_LARGE_BYTES = 2_000_000_000
"""Weights of a model that TensorFlow cannot freeze into one message, which holds less than 2 GiB:
they stay beside the graph while it is converted."""


@dataclass(frozen=True)
class Job:
    """What to convert."""

    model: Path
    """The original SavedModel."""
    tags: tuple[str, ...]
    signature: str
    outputs: tuple[str, ...]
    """Names of the signature's outputs."""
    opset: int
    inputs: Mapping[str, Array]
    """To run the original on."""


def convert(job: Job, file: Path, timeout_s: float) -> dict[str, Array]:
    """Writes the signature as `file`, its weights beside it; returns the original's outputs.

    Raises:
      MoiraiError: the original cannot be run, an operator has no counterpart in ONNX, tf2onnx
        fails, or it takes too long.
    """
    # The original has a process of its own: TensorFlow does not give back all that a model took.
    expected = _child("running the original", timeout_s).call(_outputs, job)
    _child("conversion to ONNX", timeout_s).call(_convert, job, file, expected)
    return expected


def rounding(job: Job, timeout_s: float) -> dict[str, float]:
    """Output -> how much it changes when all weights and inputs change in their last bit.

    Relative to its largest value. A conversion that is right is the original with such changes: it
    folds factors into weights, and sums in another order.

    Raises:
      MoiraiError: the original cannot be run.
    """
    return _child("trying how the model rounds", timeout_s).call(_rounding, job)


def _child(purpose: str, timeout_s: float) -> Child:
    return Child(
        purpose,
        timeout_s=timeout_s,
        longer="allow more time (--export_timeout_s)",
        environment={**without_gpus(()), "PYTHONHASHSEED": "0"},
    )


def _rounding(job: Job) -> dict[str, float]:
    """What the child does."""
    model = Tf2Model(job.model, job.tags, job.signature, on_cpu=True)
    before = model.run(job.inputs, grappler=True, traced=False).outputs
    found = dict.fromkeys(before, 0.0)
    weights = [(variable, variable.numpy()) for variable in model.variables]
    for seed in range(_TRIALS):
        rng = np.random.default_rng(seed)
        for variable, value in weights:
            variable.assign(_shaken(value, rng))
        inputs = {name: _shaken(array, rng) for name, array in job.inputs.items()}
        after = model.run(inputs, grappler=True, traced=False).outputs
        for name, value in before.items():
            found[name] = max(found[name], compare("", name, value, after[name]).error)
    return found


def _shaken(value: Array, rng: np.random.Generator) -> Array:
    """The same with every number of a wide type one step higher or lower."""
    if value.dtype not in (np.float32, np.float64):
        return value
    ends = np.array([-np.inf, np.inf], value.dtype)
    shaken: Array = np.nextafter(value, ends[rng.integers(0, 2, value.shape)])
    return shaken


def _outputs(job: Job) -> dict[str, Array]:
    """What the first child does."""
    try:
        original = Tf2Model(job.model, job.tags, job.signature, on_cpu=True)
        return dict(original.run(job.inputs, grappler=True, traced=False).outputs)
    except Exception as error:  # loading may run any Python code
        failure = failure_of(error)
        raise MoiraiError(
            f"the original cannot be run: {failure.text}",
            why="its outputs are what those of the ONNX model are compared with",
            fix=failure.fix,
        ) from error


def _convert(job: Job, file: Path, expected: Mapping[str, Array]) -> None:
    """What the second one does; the original's outputs have ranks that the graph may not know."""
    model = _converted(job)
    give_memory_back()
    _name_unsupported(model)
    _produce_outputs(model, job.outputs)
    for output in model.graph.output:
        if not output.type.tensor_type.HasField("shape"):  # of unknown rank, which ONNX has not
            for _ in range(expected[output.name].ndim):
                output.type.tensor_type.shape.dim.add()
            output.type.tensor_type.shape.SetInParent()
    save_model(model, file)
    _check(file)


def _converted(job: Job) -> Any:
    from tf2onnx import optimizer, tf_loader, tf_utils, tfonnx

    _register_erfc()
    _name_by_operators()
    _order_sets()
    _renew_messages()
    weights = sum(file.stat().st_size for file in (job.model / "variables").glob("*.data-*"))
    large = weights > _LARGE_BYTES
    try:
        frozen, inputs, outputs, tables, names = tf_loader.from_saved_model(
            str(job.model), None, None, list(job.tags), [job.signature], large_model=large,
            return_initialized_tables=True, return_tensors_to_rename=True,
        )  # fmt: skip
        beside = None
        if large:
            beside = tf_utils.compress_graph_def(frozen)
            # A message keeps the memory of what was taken out of it; a copy has none of that.
            frozen = type(frozen).FromString(frozen.SerializeToString())
            give_memory_back()
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(frozen, name="")
            converted = tfonnx.process_tf_graph(
                graph, opset=job.opset, input_names=inputs, output_names=outputs,
                tensors_to_rename=names, initialized_tables=tables, const_node_values=beside,
            )  # fmt: skip
        del frozen, beside, graph
        known = optimizer._get_optimizers()
        used = {name: made for name, made in known.items() if name != _LEFT_OUT}
        # What catches errors copies the weights for every optimizer.
        optimized = optimizer.optimize_graph(converted, catch_errors=not large, optimizers=used)
        del converted
        give_memory_back()  # what is left has the weights once; the model is their second copy
        return optimized.make_model("moirai_tf")
    except MoiraiError:
        raise
    except Exception as error:  # tf2onnx asserts, and raises what its handlers do
        raise MoiraiError(
            f"tf2onnx cannot convert signature {job.signature!r}: {failure_of(error).text}",
            why="the ONNX model is what tf2onnx makes of the frozen signature",
            fix="try another opset (--opset), or export the model without that operator",
        ) from error


def _name_by_operators() -> None:
    """Makes tf2onnx name what it makes after the operator that it converts, in this process.

    By itself it calls most of that `Add__80`. What its optimizers add bears the name of the
    operator whose result it reshapes or whose weights it has, and a node that it renames keeps its
    name.
    """
    from tf2onnx import handler, utils
    from tf2onnx.graph import Graph

    converting: list[str] = []
    make_node, rename, mapping = (
        Graph.make_node,
        Graph.change_node_name,
        handler.tf_op.create_mapping,
    )

    def made(graph: Any, op_type: str, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("name") is None:
            about = _ABOUT.get(op_type, len(inputs))
            maker = graph.get_node_by_output(inputs[about]) if about < len(inputs) else None
            scope = converting[-1] if converting else maker.name if maker is not None else ""
            if scope:
                kwargs.pop("op_name_scope", None)
                kwargs["name"] = utils.make_name(f"{scope}/{op_type}")
        return make_node(graph, op_type, inputs, *args, **kwargs)

    def renamed(graph: Any, node: Any, _: str) -> Any:
        return rename(graph, node, utils.make_name(node.name))

    def followed(function: Any) -> Any:
        def convert(graph: Any, node: Any, **kwargs: Any) -> Any:
            converting.append(node.name)
            try:
                return function(graph, node, **kwargs)
            finally:
                converting.pop()

        return convert

    def mapped(*args: Any) -> Any:
        return {op: (followed(function), kw) for op, (function, kw) in mapping(*args).items()}

    Graph.make_node, Graph.change_node_name = made, renamed
    handler.tf_op.create_mapping = staticmethod(mapped)


def _order_sets() -> None:
    """Makes sets of tf2onnx's nodes have the same order in every process: that of their making.

    An object's hash is its address otherwise, and of two equal nodes any would be kept.
    """
    from tf2onnx.graph import Node

    numbers = itertools.count()

    def numbered(node: Any) -> int:
        number: int = node.__dict__.setdefault("moirai_number", next(numbers))
        return number

    Node.__hash__ = numbered


def _renew_messages() -> None:
    """Makes tf2onnx write every node into a new message after each of its optimizers.

    A message keeps the memory of what is deleted from it, so each optimizer would leave a copy of
    all weights behind.
    """
    from tf2onnx.graph import Node

    update = Node.update_proto

    def updated(node: Any, *args: Any, **kwargs: Any) -> None:
        old = node._op
        node._op = type(old)(name=old.name, op_type=old.op_type, domain=old.domain)
        update(node, *args, **kwargs)

    Node.update_proto = updated


def _register_erfc() -> None:
    """Erfc(x) = 1 - Erf(x): Keras' exact gelu has it, and tf2onnx does not."""
    from tf2onnx import utils
    from tf2onnx.handler import tf_op

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
            dtypes, shapes = [ctx.get_dtype(node.output[0])], [ctx.get_shape(node.output[0])]
            outputs, name = node.output, node.name
            erf = ctx.make_node("Erf", node.input, name=utils.make_name(name), dtypes=dtypes)
            kind = utils.map_onnx_to_numpy_type(dtypes[0])
            one = ctx.make_const(utils.make_name(name), np.array(1, dtype=kind))
            ctx.remove_node(name)
            ctx.make_node(
                "Sub", [one.output[0], erf.output[0]], name=name, outputs=outputs,
                dtypes=dtypes, shapes=shapes,
            )  # fmt: skip


def _name_unsupported(model: Any) -> None:
    """Refuses operators that ONNX does not define: tf2onnx leaves what it does not know."""
    onnx = onnx_module()
    known = {entry.domain for entry in model.opset_import}
    unknown = {
        node.op_type
        for graph in bodies(model.graph)
        for node in graph.node
        if node.domain not in known or not onnx.defs.has(node.op_type, node.domain)
    }
    if unknown:
        raise MoiraiError(
            f"these operators have no counterpart in ONNX: {', '.join(sorted(unknown))}",
            why="ONNX Runtime could not load a model that has them",
            fix="export a signature without them, with what they compute as an input; or serve the "
            "model with TensorFlow Serving (moirai_export_serving)",
        )


def _produce_outputs(model: Any, outputs: Sequence[str]) -> None:
    """Makes a node produce every output, even a constant or an input.

    Raises:
      MoiraiError: an output is missing.
    """
    names = [output.name for output in model.graph.output]
    missing = sorted(set(outputs) - set(names))
    if missing:
        raise MoiraiError(
            f"output {missing[0]!r} got lost: it is the same tensor as another output",
            why="tf2onnx gives every tensor one name",
            fix="export the model with tf.identity around that output",
        )
    produced = {name for node in model.graph.node for name in node.output}
    for output in model.graph.output:
        if output.name not in produced:
            source = next((t for t in model.graph.initializer if t.name == output.name), None)
            assert source is not None, output.name
            source.name = f"{output.name}__constant"
            model.graph.node.add(
                op_type="Identity", name=f"{output.name}__output",
                input=[source.name], output=[output.name],
            )  # fmt: skip


def _check(file: Path) -> None:
    onnx = onnx_module()
    try:
        onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as error:
        raise MoiraiError(
            f"tf2onnx made an invalid model: {str(error).splitlines()[0]}",
            why="ONNX Runtime would refuse it, or run something else",
            fix="try another opset (--opset), or report the model to tf2onnx",
        ) from error
