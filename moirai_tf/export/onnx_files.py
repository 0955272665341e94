"""The models of an export: the whole with its annotations, and one for each part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moirai_tf.cluster.cluster import within_task
from moirai_tf.export.onnx_devices import Assignment
from moirai_tf.export.onnx_graph import bodies, onnx_module, reads, save_model, subgraphs
from moirai_tf.export.onnx_manifest import ManifestPart, TensorType
from moirai_tf.export.onnx_parts import Part

_CONFIGURATION = "moirai"
_IR_WITH_DEVICES = 11
_LAYER = "layer_ann"
"""Metadata of nodes that ONNX Runtime reads by `session.layer_assignment_settings`."""
SESSION_OPTIONS = "session_options.json"


def annotate(model: Any, assignment: Assignment) -> None:
    """Says of every node of a model, bodies included, which device it is for.

    A configuration of ONNX IR 11 lists the devices; a node's `pipeline_stage` is its device's place
    in that list.
    """
    devices = sorted(set(assignment.devices))
    model.ir_version = max(model.ir_version, _IR_WITH_DEVICES)
    model.configuration.add(name=_CONFIGURATION, num_devices=len(devices), device=devices)
    for node, device in zip(model.graph.node, assignment.devices, strict=True):
        for inner in (node, *_inside(node)):
            inner.metadata_props.add(key=_LAYER, value=layer(device))
            inner.device_configurations.add(
                configuration_id=_CONFIGURATION, pipeline_stage=devices.index(device)
            )


def layer(device: str) -> str:
    """A device as an annotation: `/device:GPU:0` is `GPU_0`."""
    return within_task(device).replace(":", "_")


def session_options_text(devices: Sequence[str]) -> str:
    """Options of one ONNX Runtime session for the whole model; empty with more than one GPU.

    A session has one instance of a provider, so it never spans several GPUs.
    """
    gpus = [d for d in devices if ":GPU:" in d]
    if len(gpus) > 1:
        return ""
    layers: dict[str, list[str]] = {}
    for device in sorted(devices):
        layers.setdefault("gpu" if device in gpus else "cpu", []).append(f"={layer(device)}")
    settings = ";".join(f"{kind}({','.join(found)})" for kind, found in sorted(layers.items()))
    cuda = [["CUDAExecutionProvider", {"device_id": int(d.rpartition(":")[2])}] for d in gpus]
    options = {
        "providers": [*cuda, ["CPUExecutionProvider", {}]],
        "config": {
            "session.layer_assignment_settings": settings,
            "session.record_ep_graph_assignment_info": "1",
        },
    }
    return json.dumps(options, indent=1) + "\n"


def tensor_types(model: Any, names: Sequence[str], feeds: Mapping[str, Any], file: Path) -> Any:
    """The types of tensors inside a model, and their values on given inputs.

    Args:
      model: a model whose weights are in a file of their own, beside `file`.
      names: which tensors.
      feeds: input -> array.
      file: where a copy of the model with these outputs may be for a moment.

    Returns:
      tensor -> `TensorType`, tensor -> array.

    Raises:
      Exception: what ONNX Runtime raises if it cannot load or run the model.
    """
    import onnxruntime

    onnx = onnx_module()
    probe = type(model)()
    probe.CopyFrom(model)
    there = {value.name for value in probe.graph.output}
    for name in names:
        if name not in there:
            probe.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    file.write_bytes(probe.SerializeToString())
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
    finally:
        file.unlink()
    wanted = [output.name for output in session.get_outputs()]
    values = dict(zip(wanted, session.run(wanted, dict(feeds)), strict=True))
    described = [*session.get_outputs(), *session.get_inputs()]
    arrays = {**values, **feeds}
    return {d.name: _type(d, arrays[d.name]) for d in described}, values


def write_parts(
    model: Any, parts: Sequence[Part], types: Mapping[str, TensorType], directory: Path
) -> tuple[ManifestPart, ...]:
    """Writes every part, with the weights that it needs alone.

    Args:
      model: the whole, with its weights.
      parts: which nodes they have.
      types: of everything that flows between parts.
      directory: of the export.
    """
    onnx = onnx_module()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    (directory / "parts").mkdir()
    found = []
    for k, part in enumerate(parts):
        nodes = [model.graph.node[i] for i in part.nodes]
        used = [t for t in dict.fromkeys(t for n in nodes for t in reads(n)) if t in weights]
        graph = onnx.helper.make_graph(
            nodes, f"part_{k:03}",
            [_value_info(name, types[name]) for name in part.inputs],
            [_value_info(name, types[name]) for name in part.outputs],
            [weights[name] for name in used],
        )  # fmt: skip
        whole = onnx.helper.make_model(
            graph, opset_imports=model.opset_import, ir_version=model.ir_version,
            producer_name="moirai_tf",
        )  # fmt: skip
        whole.configuration.extend(model.configuration)
        file = Path("parts") / f"part_{k:03}.onnx"
        save_model(whole, directory / file)
        onnx.checker.check_model(str(directory / file))
        found.append(ManifestPart(str(file), part.device, part.inputs, part.outputs))
    return tuple(found)


def _inside(node: Any) -> list[Any]:
    return [found for graph in subgraphs(node) for body in bodies(graph) for found in body.node]


def _type(described: Any, value: Any) -> TensorType:
    """A tensor's type, as ONNX Runtime found it before a run; its rank from the run."""
    kind = described.type.removeprefix("tensor(").removesuffix(")")
    known = [size if isinstance(size, int) else None for size in described.shape]
    rank = getattr(value, "ndim", len(known))
    return TensorType(kind, tuple(known if len(known) == rank else [None] * rank))


def _value_info(name: str, found: TensorType) -> Any:
    onnx = onnx_module()
    kinds = {"float": "FLOAT", "float16": "FLOAT16", "double": "DOUBLE", "bool": "BOOL"}
    element = onnx.TensorProto.DataType.Value(kinds.get(found.dtype, found.dtype.upper()))
    return onnx.helper.make_tensor_value_info(name, element, list(found.shape))
