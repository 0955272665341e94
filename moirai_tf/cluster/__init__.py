"""What exists to place on: devices, the links between them, and the file that describes both."""

from moirai_tf.cluster.cluster import DEVICE_TYPES, Cluster, Device, Link
from moirai_tf.cluster.files import cluster_from_yaml, cluster_to_yaml, read_cluster, write_cluster

__all__ = [
    "Cluster",
    "DEVICE_TYPES",
    "Device",
    "Link",
    "cluster_from_yaml",
    "cluster_to_yaml",
    "read_cluster",
    "write_cluster",
]
