"""Placement: the exact problem, its checker, simulator, heuristics, bounds and solvers.

This room knows integers only: nothing of TensorFlow, graphs or files of models.
"""

from moirai_tf.placement.blackboard import Incumbent, Progress, Search, Strategy
from moirai_tf.placement.bound.paths import Bound
from moirai_tf.placement.check import check
from moirai_tf.placement.constraints import restrict
from moirai_tf.placement.evaluate.events import ready_queue, simulate
from moirai_tf.placement.io import (
    json_text,
    problem_from_json,
    problem_to_json,
    read_problem,
    read_schedule,
    schedule_from_json,
    schedule_to_json,
    write_problem,
    write_schedule,
)
from moirai_tf.placement.listing import problem_text, schedule_text
from moirai_tf.placement.portfolio import STRATEGIES
from moirai_tf.placement.problem import (
    CONGESTION_MODES,
    TRANSFER_MODES,
    Device,
    Operator,
    Problem,
    Tensor,
)
from moirai_tf.placement.schedule import Placed, Schedule, Transfer
from moirai_tf.placement.solve import Result, SolveOptions, solve
from moirai_tf.placement.validation import violations

__all__ = [
    "Bound",
    "CONGESTION_MODES",
    "Device",
    "Incumbent",
    "Operator",
    "Placed",
    "Problem",
    "Progress",
    "Result",
    "STRATEGIES",
    "Schedule",
    "Search",
    "SolveOptions",
    "Strategy",
    "TRANSFER_MODES",
    "Tensor",
    "Transfer",
    "check",
    "json_text",
    "problem_from_json",
    "problem_text",
    "problem_to_json",
    "read_problem",
    "read_schedule",
    "ready_queue",
    "restrict",
    "schedule_from_json",
    "schedule_text",
    "schedule_to_json",
    "simulate",
    "solve",
    "violations",
    "write_problem",
    "write_schedule",
]
