"""What operators and transfers cost, and the placement problem that follows."""

from moirai_tf.cost.files import read_table, write_table
from moirai_tf.cost.inputs import generate_inputs, load_inputs
from moirai_tf.cost.problem import build_problem
from moirai_tf.cost.profile import ProfileOptions, profile
from moirai_tf.cost.table import CostTable, DeviceProfile, Measurement, OperatorCost

__all__ = [
    "CostTable",
    "DeviceProfile",
    "Measurement",
    "OperatorCost",
    "ProfileOptions",
    "build_problem",
    "generate_inputs",
    "load_inputs",
    "profile",
    "read_table",
    "write_table",
]
