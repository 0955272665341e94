"""moirai_tf: places the operators of a SavedModel on heterogeneous devices.

    import moirai_tf
    summary = moirai_tf.optimize("model", "placed", "cluster.yaml")
    print(summary)
    placed = moirai_tf.load("placed")

The method is Moirai's (arXiv 2312.04025); docs/architecture.md shows how the parts fit.
"""

from moirai_tf.cluster import Cluster, Device, Link, read_cluster
from moirai_tf.cost import CostTable
from moirai_tf.errors import MoiraiError
from moirai_tf.model.input_files import save_inputs
from moirai_tf.model.load import configure_logical_cpus
from moirai_tf.optimize import default_pipeline, optimize
from moirai_tf.passes import Fuse, Import, Place, Profile, Prune, Publish, Rewrite, Verify
from moirai_tf.pipeline import MoiraiItem, Pass, Pipeline
from moirai_tf.rewrite.directory import remap, strip
from moirai_tf.rewrite.plan_file import read_plan
from moirai_tf.runtime.connect import ConnectedModel, connect
from moirai_tf.runtime.load import load
from moirai_tf.summary import Summary
from moirai_tf.verify import VerifyReport, verify

__version__ = "0.1.0"

__all__ = [
    "Cluster",
    "ConnectedModel",
    "CostTable",
    "Device",
    "Fuse",
    "Import",
    "Link",
    "MoiraiError",
    "MoiraiItem",
    "Pass",
    "Pipeline",
    "Place",
    "Profile",
    "Prune",
    "Publish",
    "Rewrite",
    "Summary",
    "Verify",
    "VerifyReport",
    "configure_logical_cpus",
    "connect",
    "default_pipeline",
    "load",
    "optimize",
    "read_cluster",
    "read_plan",
    "remap",
    "save_inputs",
    "strip",
    "verify",
]
