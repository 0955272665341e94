"""Runs warm-up requests as a server will: one Session, the shipped configuration, real requests.

It needs a process of its own, with the logical devices of the plan.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import config_pb2

from moirai_tf.export.warmup import Request, fed_by
from moirai_tf.model.load import SessionGraph, fetched, tensors
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.rewrite.plan import Plan
from moirai_tf.runtime.child import Child, without_gpus
from moirai_tf.runtime.failures import failure_of
from moirai_tf.verify.parity import TOLERANCES, Array, compare
from moirai_tf.verify.stand_in import stand_in_placed, stand_ins_here

_TOLERANCE = 1e-3
"""Kernels choose other orders of summation for other sizes of a batch."""


@dataclass(frozen=True)
class Rehearsal:
    """What the requests came to."""

    failed: Mapping[str, str] = field(default_factory=dict)
    """Signature -> why it cannot be run."""
    mixed: Mapping[str, str] = field(default_factory=dict)
    """Signature -> why its rows must not be merged with those of other requests."""


def rehearse(
    placed: Path, plan: Plan, config: str, requests: Sequence[Request], timeout_s: float
) -> Rehearsal:
    """Runs requests on a placed model.

    Args:
      placed: the placed model.
      plan: its plan.
      config: text of the session configuration that the server will have.
      requests: of every signature first that with the whole batch.
      timeout_s: when it is given up.

    Raises:
      MoiraiError: the model cannot be loaded, or it takes too long.
    """
    devices = stand_ins_here(plan)
    child = Child(
        "running the warm-up requests",
        timeout_s=timeout_s,
        longer="allow more time (--export_timeout_s), or give smaller inputs (--inputs)",
        environment=without_gpus(devices.values()),
    )
    return child.call(_rehearse, placed, plan, config, tuple(requests), devices)


def _rehearse(
    placed: Path,
    plan: Plan,
    config: str,
    requests: Sequence[Request],
    devices: Mapping[str, str],
) -> Rehearsal:
    """What the child does."""
    wanted = text_format.Parse(config, config_pb2.ConfigProto())
    stood_in = any(name != local for name, local in devices.items())
    if stood_in:
        wanted.device_count["CPU"] = max(wanted.device_count["CPU"], len(devices))
    with tempfile.TemporaryDirectory(prefix="moirai_rehearse_") as work:
        model = read_saved_model(placed)
        directory = stand_in_placed(model, plan, devices, Path(work) / "m") if stood_in else placed
        return _run_all(SessionGraph(directory, plan.tags), wanted, requests)


def _run_all(model: SessionGraph, config: Any, requests: Sequence[Request]) -> Rehearsal:
    failed: dict[str, str] = {}
    mixed: dict[str, str] = {}
    whole: dict[str, Mapping[str, Array]] = {}
    try:
        graph = model.graph
        with graph.as_default(), tf.compat.v1.Session(config=config) as session:
            signatures = model.restore(session)
            for request in requests:
                name = request.signature
                if name in failed:
                    continue
                try:
                    outputs = _answers(session, signatures, request.log)
                except Exception as error:  # a model may run any Python code
                    failed[name] = failure_of(error).text
                    continue
                first = whole.setdefault(name, outputs)
                if request.rows is not None and name not in mixed:
                    fault = _fault(first, outputs, request.rows, whole=first is outputs)
                    mixed.update({name: fault} if fault else {})
    except Exception as error:
        text = failure_of(error, loading=True).text
        return Rehearsal({request.signature: text for request in requests})
    return Rehearsal(failed, mixed)


def _answers(session: Any, signatures: Mapping[str, Any], log: bytes) -> dict[str, Array]:
    signature, feeds = fed_by(log, signatures)
    results = session.run(tensors(signatures[signature].outputs), feeds)
    return {key: fetched(value) for key, value in results.items()}


def _fault(
    first: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, *, whole: bool
) -> str:
    """Why a server must not merge requests, judged by the whole batch and the end of it alone."""
    for name, value in outputs.items():
        if not value.ndim or len(value) != rows:
            return f"output {name!r} does not have one row for each row of the inputs"
        if whole:
            continue
        expected = np.ascontiguousarray(first[name][len(first[name]) - rows :])
        tolerance = max(_TOLERANCE, TOLERANCES.get(str(value.dtype), 0.0))
        if not compare("", name, expected, np.ascontiguousarray(value), tolerance).ok:
            return f"a row of output {name!r} depends on the other rows of its batch"
    return ""
