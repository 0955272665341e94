"""Proof that a placed model computes the same and runs where its plan says."""

from moirai_tf.verify.options import VerifyOptions
from moirai_tf.verify.process import inspect_placed, verify
from moirai_tf.verify.report import Finding, OutputParity, RunProof, VerifyReport, check_report

__all__ = [
    "Finding",
    "OutputParity",
    "RunProof",
    "VerifyOptions",
    "VerifyReport",
    "check_report",
    "inspect_placed",
    "verify",
]
