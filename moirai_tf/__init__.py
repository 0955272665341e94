"""moirai_tf: places the operators of a SavedModel on heterogeneous devices.

    import moirai_tf
    summary = moirai_tf.optimize("model", "placed", "cluster.yaml")
    print(summary)
    placed = moirai_tf.load("placed")

The method is Moirai's (arXiv 2312.04025); docs/architecture.md shows how the parts fit.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moirai_tf.cluster import Cluster as Cluster
    from moirai_tf.cluster import Device as Device
    from moirai_tf.cluster import Link as Link
    from moirai_tf.cluster import read_cluster as read_cluster
    from moirai_tf.cost.table import CostTable as CostTable
    from moirai_tf.errors import MoiraiError as MoiraiError
    from moirai_tf.export.onnx import OnnxExport as OnnxExport
    from moirai_tf.export.onnx import export_onnx as export_onnx
    from moirai_tf.export.onnx_runner import OnnxRunner as OnnxRunner
    from moirai_tf.export.serving import ServingExport as ServingExport
    from moirai_tf.export.serving import export_serving as export_serving
    from moirai_tf.model.input_files import save_inputs as save_inputs
    from moirai_tf.model.load import configure_logical_cpus as configure_logical_cpus
    from moirai_tf.optimize import default_pipeline as default_pipeline
    from moirai_tf.optimize import optimize as optimize
    from moirai_tf.passes import Fuse as Fuse
    from moirai_tf.passes import Import as Import
    from moirai_tf.passes import Place as Place
    from moirai_tf.passes import Profile as Profile
    from moirai_tf.passes import Prune as Prune
    from moirai_tf.passes import Publish as Publish
    from moirai_tf.passes import Rewrite as Rewrite
    from moirai_tf.passes import Verify as Verify
    from moirai_tf.pipeline import MoiraiItem as MoiraiItem
    from moirai_tf.pipeline import Pass as Pass
    from moirai_tf.pipeline import Pipeline as Pipeline
    from moirai_tf.rewrite.directory import remap as remap
    from moirai_tf.rewrite.directory import strip as strip
    from moirai_tf.rewrite.plan_file import read_plan as read_plan
    from moirai_tf.runtime.connect import ConnectedModel as ConnectedModel
    from moirai_tf.runtime.connect import connect as connect
    from moirai_tf.runtime.connect import load as load
    from moirai_tf.summary import Summary as Summary
    from moirai_tf.verify import VerifyReport as VerifyReport
    from moirai_tf.verify import verify as verify

__version__ = "0.1.0"

_MODULE_OF = {
    name: module
    for module, names in {
        "moirai_tf.cluster": "Cluster Device Link read_cluster",
        "moirai_tf.cost.table": "CostTable",
        "moirai_tf.errors": "MoiraiError",
        "moirai_tf.export.onnx": "OnnxExport export_onnx",
        "moirai_tf.export.onnx_runner": "OnnxRunner",
        "moirai_tf.export.serving": "ServingExport export_serving",
        "moirai_tf.model.input_files": "save_inputs",
        "moirai_tf.model.load": "configure_logical_cpus",
        "moirai_tf.optimize": "default_pipeline optimize",
        "moirai_tf.passes": "Fuse Import Place Profile Prune Publish Rewrite Verify",
        "moirai_tf.pipeline": "MoiraiItem Pass Pipeline",
        "moirai_tf.rewrite.directory": "remap strip",
        "moirai_tf.rewrite.plan_file": "read_plan",
        "moirai_tf.runtime.connect": "ConnectedModel connect load",
        "moirai_tf.summary": "Summary",
        "moirai_tf.verify": "VerifyReport verify",
    }.items()
    for name in names.split()
}
"""Imported when a name is first used, and TensorFlow with it: placement alone does without."""

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _Package(ModuleType):
    """`verify` and `optimize` stay functions when the modules of these names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _MODULE_OF or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
