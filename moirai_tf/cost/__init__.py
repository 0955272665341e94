"""What operators and transfers cost, and the placement problem that follows."""

from moirai_tf.cost.files import read_table, write_table
from moirai_tf.cost.inputs import generate_inputs, load_inputs
from moirai_tf.cost.merge import merged
from moirai_tf.cost.predict import Prediction, predict, with_handling
from moirai_tf.cost.problem import build_problem
from moirai_tf.cost.profile import ProfileOptions, profile
from moirai_tf.cost.table import (
    CostTable,
    DeviceProfile,
    Handling,
    MeasuredLink,
    Measurement,
    OperatorCost,
    StepCost,
)
from moirai_tf.cost.text import table_text
from moirai_tf.cost.transfers import measured_links

__all__ = [
    "CostTable",
    "DeviceProfile",
    "Handling",
    "MeasuredLink",
    "Measurement",
    "OperatorCost",
    "Prediction",
    "ProfileOptions",
    "StepCost",
    "build_problem",
    "generate_inputs",
    "load_inputs",
    "measured_links",
    "merged",
    "predict",
    "profile",
    "read_table",
    "table_text",
    "with_handling",
    "write_table",
]
