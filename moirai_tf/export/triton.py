"""The same parts as a model repository of Triton: one model each, pinned, and an ensemble."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from moirai_tf.cluster.cluster import within_task
from moirai_tf.export.onnx_manifest import Manifest, ManifestPart, TensorType

_KINDS = {
    "float": "FP32", "double": "FP64", "float16": "FP16", "bfloat16": "BF16", "string": "STRING",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in
       (8, 16, 32, 64)},
    "bool": "BOOL",
}  # fmt: skip


def write_repository(manifest: Manifest, directory: Path, name: str) -> None:
    """Writes `triton/` of an export.

    Args:
      manifest: what was exported.
      directory: of the export.
      name: of the ensemble.
    """
    root = directory / "triton"
    for part in manifest.parts:
        model = f"{name}_{Path(part.file).stem}"
        (root / model / "1").mkdir(parents=True)
        source = directory / part.file
        shutil.copyfile(source, root / model / "1" / "model.onnx")
        weights = source.with_suffix(".weights")
        if weights.exists():  # copied too: onnx takes weights that have a second link for an attack
            shutil.copyfile(weights, root / model / "1" / weights.name)
        (root / model / "config.pbtxt").write_text(_part_config(model, part, manifest.tensors))
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(_ensemble_config(name, manifest))


def _part_config(model: str, part: ManifestPart, types: Mapping[str, TensorType]) -> str:
    kind, index = within_task(part.device).split(":")
    pinned = f"count: 1 kind: KIND_{kind}" + (f" gpus: [ {index} ]" if kind == "GPU" else "")
    return (
        f'name: {_quoted(model)}\nbackend: "onnxruntime"\nmax_batch_size: 0\n'
        f"{_tensors('input', part.inputs, types)}{_tensors('output', part.outputs, types)}"
        f"instance_group [ {{ {pinned} }} ]\n"
    )


def _ensemble_config(name: str, manifest: Manifest) -> str:
    types = manifest.tensors
    steps = ",\n".join(_step(f"{name}_{Path(p.file).stem}", p) for p in manifest.parts)
    return (
        f'name: {_quoted(name)}\nplatform: "ensemble"\nmax_batch_size: 0\n'
        f"{_tensors('input', manifest.inputs, types)}{_tensors('output', manifest.outputs, types)}"
        f"ensemble_scheduling {{\n step [\n{steps}\n ]\n}}\n"
    )


def _step(model: str, part: ManifestPart) -> str:
    maps = [
        f"   {kind}_map {{ key: {_quoted(tensor)} value: {_quoted(tensor)} }}"
        for kind, tensors in (("input", part.inputs), ("output", part.outputs))
        for tensor in tensors
    ]
    return "  {\n" + "\n".join([f"   model_name: {_quoted(model)} model_version: -1", *maps]) + " }"


def _tensors(kind: str, names: Iterable[str], types: Mapping[str, TensorType]) -> str:
    found = []
    for name in names:
        sizes = [-1 if size is None else size for size in types[name].shape]
        shape = f"dims: [ {', '.join(map(str, sizes))} ]" if sizes else (
            "dims: [ 1 ] reshape { shape: [ ] }"
        )  # fmt: skip
        data = f"data_type: TYPE_{_KINDS[types[name].dtype]}"
        found.append(f"  {{ name: {_quoted(name)} {data} {shape} }}")
    return f"{kind} [\n" + ",\n".join(found) + "\n]\n" if found else ""


def _quoted(text: str) -> str:
    return json.dumps(text)
