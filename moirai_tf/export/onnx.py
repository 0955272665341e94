"""Exports a placed model to ONNX: the whole, and parts of one device each, verified first."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moirai_tf.cost.inputs import chosen_inputs
from moirai_tf.errors import MoiraiError, file_errors
from moirai_tf.export.onnx_convert import Job, convert, rounding
from moirai_tf.export.onnx_devices import assign
from moirai_tf.export.onnx_files import (
    SESSION_OPTIONS,
    annotate,
    session_options_text,
    tensor_types,
    write_parts,
)
from moirai_tf.export.onnx_graph import onnx_module
from moirai_tf.export.onnx_manifest import (
    MANIFEST,
    WHOLE,
    Manifest,
    TensorType,
    manifest_of,
    manifest_text,
)
from moirai_tf.export.onnx_parts import parts_of
from moirai_tf.export.onnx_runner import OnnxRunner, onnx_array
from moirai_tf.export.options import OnnxOptions, check_onnx_options
from moirai_tf.export.triton import write_repository
from moirai_tf.graph.importer import import_graph
from moirai_tf.model.input_files import Array
from moirai_tf.model.load import all_dense
from moirai_tf.model.output import (
    check_apart,
    discard,
    publish,
    real_path,
    stage,
    written,
)
from moirai_tf.model.saved_model import SavedModel, read_saved_model
from moirai_tf.rewrite.directory import unplaced
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.plan_file import (
    PLAN_FILE,
    SCHEDULE_FILE,
    read_plan,
    read_planned_schedule,
)
from moirai_tf.verify.parity import TOLERANCES, compare

_NARROW = ("float16", "bfloat16")
_ROUNDINGS = 4.0
"""What an output may differ by, in changes by rounding: of the original, of the ONNX model, and of
the folded weights, each of which may be larger than in the trials."""


@dataclass(frozen=True)
class OnnxExport:
    """What was written, and how it compares."""

    directory: Path
    manifest: Manifest
    nodes: int
    """Of the main graph."""
    named: int
    """Nodes whose device comes from the plan by name; that of the others was inferred."""
    error_whole: float
    """Largest difference of TensorFlow and the whole, relative to an output's largest value."""
    error_parts: float
    """The same between the whole and the parts."""
    rounding: float
    """How much an output of the original changes if its weights do in their last bit; 0 where the
    errors were so small that this was not tried."""

    @property
    def _rounded(self) -> str:
        told = f"; weights changed in their last bit change it by {self.rounding:.1e}"
        return told if self.rounding else ""

    def __str__(self) -> str:
        parts = {d: sum(p.device == d for p in self.manifest.parts) for d in self.manifest.devices}
        share = self.named / max(1, self.nodes)
        return "\n".join(
            [
                f"signature   {self.manifest.signature}, opset {self.manifest.opset}",
                f"devices     of {self.named} of {self.nodes} nodes by name ({share:.0%}), "
                f"{self.nodes - self.named} inferred from neighbours",
                *(f"parts       {count} on {device}" for device, count in parts.items()),
                f"verified    TensorFlow against whole {self.error_whole:.1e}, whole against parts "
                f"{self.error_parts:.1e}{self._rounded}",
                f"output      {self.directory}",
            ]
        )


class _Original:
    """What the original gives, and how much of a difference is rounding."""

    def __init__(self, job: Job, outputs: Mapping[str, Array], options: OnnxOptions) -> None:
        self.job = job
        self.outputs = outputs
        self.options = options
        self._rounding: Mapping[str, float] = {}

    @property
    def rounded(self) -> float:
        """The largest of what an output was found to change by rounding; 0 if it was not tried."""
        return max(self._rounding.values(), default=0.0)

    def compared(
        self, what: str, expected: Mapping[str, Array], found: Mapping[str, Array]
    ) -> float:
        """The largest error of any output, relative to its largest value.

        Raises:
          MoiraiError: an output differs by more than is allowed.
        """
        worst = 0.0
        for name, value in expected.items():
            value = onnx_array(value)
            kind = str(value.dtype)
            allowed = TOLERANCES[kind] if kind in _NARROW else self.options.tolerance
            error = compare(what, name, value, onnx_array(found[name]), allowed).error
            if 0 < allowed < error < np.inf and kind not in _NARROW:
                self._rounding = self._rounding or rounding(self.job, self.options.export_timeout_s)
                changed = min(_ROUNDINGS * self._rounding[name], TOLERANCES[kind])
                allowed = max(allowed, changed)
            if error > allowed:
                raise MoiraiError(
                    f"output {name!r} of the {what} differs by {error:.2g} of its largest value; "
                    f"allowed is {allowed:.2g}",
                    why="an ONNX model that computes something else must not be served",
                    fix="report the model to tf2onnx; or allow more (--tolerance)",
                )
            worst = max(worst, error)
        return worst


@file_errors("the model cannot be exported")
def export_onnx(
    placed_dir: str | Path,
    output_dir: str | Path,
    options: OnnxOptions | None = None,
    **more: Any,
) -> OnnxExport:
    """Writes a placed signature as ONNX: the whole, and parts that run on one device each.

    Args:
      placed_dir: the placed model; only read.
      output_dir: the directory to make.
      options: how to export it.
      **more: fields of the options instead.

    Raises:
      MoiraiError: an operator has no counterpart in ONNX or no kernel in ONNX Runtime, an output
        differs, the output exists, or a file cannot be read or written.
    """
    options = replace(options or OnnxOptions(), **more)
    check_onnx_options(options)
    onnx_module()
    plan, model = read_plan(placed_dir), read_saved_model(placed_dir)
    check_apart(model.path, Path(output_dir))
    source = unplaced(model)
    definition = _definition(source, plan, options)
    calls = bool(source.meta_graph(plan.tags).object_graph_def.nodes)
    graph = import_graph(source, plan.import_options(options.inputs))
    inputs = chosen_inputs(graph, options.inputs, options.seed)
    starts_ns = _starts_ns(real_path(model.path))
    staged = stage(Path(output_dir), overwrite=False)
    try:
        with tempfile.TemporaryDirectory(prefix="moirai_onnx_") as work:
            copy = written(source, Path(work), {PLAN_FILE: "", SCHEDULE_FILE: ""})
            job = Job(
                copy, plan.tags, plan.signature, tuple(definition.outputs), options.opset, inputs
            )
            original = _Original(
                job, convert(job, staged.directory / WHOLE, options.export_timeout_s), options
            )
            found = _export(staged.directory, plan, original, starts_ns, calls=calls)
        write_repository(found.manifest, staged.directory, real_path(Path(output_dir)).name)
        publish(staged)
    finally:
        discard(staged)
    return replace(found, directory=staged.output)


def _definition(original: SavedModel, plan: Plan, options: OnnxOptions) -> Any:
    if options.signature not in ("", plan.signature):
        raise MoiraiError(
            f"signature {options.signature!r} was not placed, but {plan.signature!r}",
            why="the parts are cut where the plan says, and it speaks of one signature",
            fix=f"optimise the original with --signature={options.signature}, and export that",
        )
    if plan.edits.split is not None:
        raise MoiraiError(
            f"the batch of signature {plan.signature!r} is divided over devices",
            why="tf2onnx cannot convert how a batch of any size is divided and joined",
            fix="optimise the original with --split=off, and export that",
        )
    definition = original.meta_graph(plan.tags).signature_def[plan.signature]
    for infos in (definition.inputs, definition.outputs):
        if not all_dense(infos):
            raise MoiraiError(
                f"signature {plan.signature!r} has sparse, ragged or other composite tensors",
                why="inputs and outputs of an ONNX model are dense",
                fix="export the model with a signature that makes them of dense tensors",
            )
    return definition


def _starts_ns(placed: Path) -> dict[str, int]:
    """Fused operator -> when the schedule starts it; nothing without a schedule."""
    if not (placed / SCHEDULE_FILE).is_file():
        return {}
    return {o.name: o.start_ns for o in read_planned_schedule(placed).operators}


def _export(
    directory: Path,
    plan: Plan,
    original: _Original,
    starts_ns: Mapping[str, int],
    *,
    calls: bool,
) -> OnnxExport:
    """Everything that is made of the converted model, and its proof."""
    onnx, options = onnx_module(), original.options
    model = onnx.load_model(str(directory / WHOLE), load_external_data=False)
    assignment = assign(model.graph, plan, calls=calls)
    parts = parts_of(
        model.graph, assignment.devices, assignment.operators, starts_ns,
        coarse=options.coarse_parts,
    )  # fmt: skip
    annotate(model, assignment)
    (directory / WHOLE).write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(directory / WHOLE))
    outputs = tuple(value.name for value in model.graph.output)
    cut = [name for part in parts for name in part.outputs]
    feeds = {name: onnx_array(array) for name, array in original.job.inputs.items()}
    feeds = {value.name: feeds[value.name] for value in model.graph.input}
    types, values = _probed(model, cut, feeds, directory)
    error_whole = original.compared("whole", original.outputs, values)
    model = onnx.load_model(str(directory / WHOLE))
    listed = write_parts(model, parts, types, directory)
    manifest = manifest_of(plan.signature, options.opset, tuple(feeds), outputs, listed, types)
    (directory / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
    if text := session_options_text(manifest.devices):
        (directory / SESSION_OPTIONS).write_text(text, encoding="utf-8")
    error_parts = _played(directory, manifest, feeds, values, original)
    return OnnxExport(
        directory, manifest, len(assignment.devices), assignment.named, error_whole, error_parts,
        original.rounded,
    )  # fmt: skip


def _probed(
    model: Any, cut: Sequence[str], feeds: Mapping[str, Array], directory: Path
) -> tuple[dict[str, TensorType], dict[str, Array]]:
    try:
        types, values = tensor_types(model, cut, feeds, directory / "probe.onnx")
    except OSError:
        raise
    except Exception as error:  # exceptions of ONNX Runtime have no class in common
        raise MoiraiError(
            f"ONNX Runtime cannot run the converted model: {str(error).splitlines()[0]}",
            why="what cannot be run cannot be proved",
            fix="export a signature without that operator, or try another opset (--opset)",
        ) from error
    for name in cut:
        if not isinstance(values[name], np.ndarray):
            raise MoiraiError(
                f"{name!r}, which passes from one device to another, is {types[name].dtype}",
                why="only tensors can be passed between sessions",
                fix="optimise the original again with its maker and reader on one device (--pin)",
            )
    return types, values


def _played(
    directory: Path,
    manifest: Manifest,
    feeds: Mapping[str, Array],
    values: Mapping[str, Array],
    original: _Original,
) -> float:
    """Runs the parts on this machine's CPU, whatever devices they are for."""
    providers = {device: ["CPUExecutionProvider"] for device in manifest.devices}
    with OnnxRunner(directory, providers=providers) as runner:
        outputs = runner(feeds)
        for file, names in runner.placed().items():
            if names not in ((), ("CPUExecutionProvider",)):
                raise MoiraiError(
                    f"{file} ran on {', '.join(names)}",
                    why="a part is for one device",
                    fix="report this model; nothing was written",
                )
    return original.compared("parts", {n: values[n] for n in manifest.outputs}, outputs)
