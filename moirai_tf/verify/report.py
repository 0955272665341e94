"""What verification found: frozen values, and their text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moirai_tf.errors import MoiraiError
from moirai_tf.rewrite.plan import Plan
from moirai_tf.verify.options import SESSION, TF2, VerifyOptions

VALUE, PLACEMENT, TRANSFER, WEIGHTS, MODEL = "value", "placement", "transfer", "weights", "model"
ORDER = "order"

_WHY = {
    VALUE: "a placement must not change what a model computes",
    PLACEMENT: "TensorFlow places operators elsewhere without an error, and the plan's times and "
    "memory no longer hold",
    TRANSFER: "a transfer that the plan does not know of costs time at every inference",
    WEIGHTS: "weights that cross devices at every inference cost more than the placement gains",
    MODEL: "the placed model must be the original but for its devices",
    ORDER: "TensorFlow runs what is ready in its own order, and the plan's times no longer hold",
}
_FIX = {
    VALUE: "do not use the placed model; optimise the original again",
    MODEL: "do not use the placed model; optimise the original again",
    ORDER: "optimise the original again with order=runtime, which promises no order",
}
_FIX_COARSEN = (
    "optimise the original again with fusion (coarsen): Grappler merges what it can fuse onto one "
    "device, wherever the plan puts it"
)
_MOST_PINNED = 4
"""Operators in the example of a pin."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    kind: str
    """`value`, `placement`, `transfer`, `weights`, `model` or `order`."""
    text: str
    """A sentence that names everything concerned."""
    names: tuple[str, ...] = ()
    """The operators or outputs concerned."""
    device: str = ""
    """Where TensorFlow runs these operators, or what they give comes from."""
    fix: str = ""
    """What helps, if that is known."""
    grappler: bool = False
    """It was found in a run with Grappler, which may have caused it."""


@dataclass(frozen=True, slots=True)
class OutputParity:
    """One signature output of original and placed model, compared in one run."""

    run: str
    output: str
    dtype: str
    shape: tuple[int, ...]
    bit_equal: bool
    error: float
    """Largest difference, relative to the original's largest magnitude; inf if not comparable."""
    tolerance: float
    """What the error may be; 0 demands equal bits."""

    @property
    def ok(self) -> bool:
        """Whether the output is the same within the tolerance."""
        return self.bit_equal or self.error <= self.tolerance > 0


@dataclass(frozen=True, slots=True)
class RunProof:
    """What one run of the placed model proved of its placement."""

    run: str
    """Loader and whether Grappler was on, such as `session, Grappler off`."""
    operators: int
    """Operators seen on the device of the plan, in partition graphs."""
    executed: int
    """Of these, operators that step statistics show to have run there (0: no statistics)."""
    planned: int
    """Transfers of the plan."""
    transfers: int
    """Data transfers that happened."""
    captured: int
    """Transfers of constants of the main graph, which the TF2 loader keeps with the client."""
    replicated: int
    """Planned transfers that TensorFlow saves by copying a small constant to each device."""
    kept: int
    """Planned transfers that this loader needs not make: results stay where they are."""
    unused: int
    """Transfers to operators that no output needs; Grappler removes them."""
    control: int
    """Transfers of control dependencies: they carry no data."""
    planned_weights: int
    """Weights that move because the plan says so."""
    ordered: int = 0
    """Precedences of the plan's order that the partition graphs enforce."""
    within: int = 0
    """Tensors sent within a GPU, or to it once more, because a kernel wants them in host memory."""
    repeated: int = 0
    """Further transfers of a tensor that several inlined calls pass on; Grappler removes them."""


@dataclass(frozen=True)
class VerifyReport:
    """Everything that was compared and proved."""

    devices: tuple[tuple[str, str], ...]
    """Device of the plan -> device of this machine that stood for it."""
    outputs: tuple[OutputParity, ...]
    proofs: tuple[RunProof, ...]
    notes: tuple[str, ...]
    """What could not be run or compared, and why."""
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def short(self) -> str:
        """What was compared and proved in a line, and what could not be."""
        proved = "; operators and transfers are where the plan says" if self.proofs else ""
        lines = [f"{_compared(self)}{proved if self.ok else ''}"]
        return _INDENT.join([*lines, *(f"note: {note}" for note in self.notes)])

    def __str__(self) -> str:
        return _INDENT.join(_lines(self))


@dataclass(frozen=True)
class Outputs:
    """What a run of the placed model gave, still to be compared with the original's."""

    run: str
    values: Mapping[str, Any]
    """Output -> array."""
    tolerance: float


@dataclass(frozen=True)
class Examined:
    """What some loaders found."""

    report: VerifyReport
    fixes: tuple[str, ...]
    """What helps where the original itself cannot be loaded or run."""
    originals: Mapping[bool, Mapping[str, Any]]
    """Whether Grappler was on -> the original's outputs, as far as it ran."""
    uncompared: Mapping[bool, Outputs]
    """The same of the placed model, if it alone was run."""


def proved(options: VerifyOptions, parts: Sequence[Examined]) -> VerifyReport:
    """What all loaders found together.

    Args:
      options: how the models were to be run.
      parts: what the loaders found.

    Raises:
      MoiraiError: no run proved where operators run.
    """
    reports = [part.report for part in parts]
    report = VerifyReport(
        reports[0].devices,
        tuple(parity for found in reports for parity in found.outputs),
        tuple(proof for found in reports for proof in found.proofs),
        tuple(dict.fromkeys(note for found in reports for note in found.notes)),
        tuple(finding for found in reports for finding in found.findings),
    )
    if not report.proofs and not report.findings:
        fixes = [fix for part in parts for fix in part.fixes]
        raise MoiraiError(
            f"no run could prove where operators run: {'; '.join(report.notes)}",
            why="TensorFlow places operators elsewhere without an error",
            fix="; ".join(_ways_out(options, fixes)),
        )
    return report


def _ways_out(options: VerifyOptions, fixes: Iterable[str]) -> list[str]:
    """What can be done when no run proved anything."""
    ways = list(dict.fromkeys(fixes))
    if not {TF2, SESSION} <= set(options.loaders):
        ways.append("allow both loaders (--loaders=tf2 --loaders=session)")
    return ways or ["export the model so that each signature is one function (tf.function)"]


def check_report(report: VerifyReport, plan: Plan | None = None) -> None:
    """Refuses a report with findings.

    Args:
      report: what was found.
      plan: the plan of the placed model; its operators and options shape the advice.

    Raises:
      MoiraiError: naming the operators and outputs concerned, the gravest kind first.
    """
    if report.ok:
        return
    kinds = list(_WHY)
    findings = sorted(report.findings, key=lambda finding: kinds.index(finding.kind))
    first = findings[0]
    shown = [f.text for f in findings[:5]]
    more = f"\n  and {len(findings) - len(shown)} more" if len(findings) > len(shown) else ""
    raise MoiraiError(
        "the placed model is not what its plan says:\n  " + "\n  ".join(shown) + more,
        why=_WHY[first.kind],
        fix=first.fix or _FIX.get(first.kind) or _advice(findings, plan),
    )


def _advice(findings: Sequence[Finding], plan: Plan | None) -> str:
    """What helps against a placement that did not happen."""
    written = [finding for finding in findings if not finding.grappler]
    fused = plan is None or plan.options.get("fuse", {}).get("coarsen", True)
    if not written and not fused:
        return _FIX_COARSEN
    first = next((f for f in (*written, *findings) if f.device), findings[0])
    known = [n for n in first.names if plan is None or n in plan.placement][:_MOST_PINNED]
    if not known or not first.device:
        return "optimise the original again with these operators pinned to one device (--pin)"
    pin = f"^(?:{'|'.join(map(re.escape, known))})$={first.device}"
    wish = f"optimise the original again with pin={pin!r}, which keeps these operators together"
    return wish if written else f"{wish}, or switch Grappler off where the model runs"


_INDENT = "\n            "


def _compared(report: VerifyReport) -> str:
    if not report.outputs and report.ok:
        return "ok: nothing was placed, and the model is the original, node by node"
    names = {parity.output for parity in report.outputs}
    equal = sum(parity.bit_equal for parity in report.outputs)
    worst = max((parity.error for parity in report.outputs), default=0.0)
    difference = "" if equal == len(report.outputs) else f", largest relative error {worst:.1e}"
    return (
        f"{'ok' if report.ok else 'FAILED'}: {_count(len(names), 'output')}, "
        f"{equal} of {_count(len(report.outputs), 'comparison')} equal to the bit{difference}"
    )


def _lines(report: VerifyReport) -> list[str]:
    lines = [_compared(report)]
    lines += [_proof_line(proof) for proof in report.proofs]
    if any(plan != local for plan, local in report.devices):
        lines.append("devices: " + ", ".join(f"{p} as {d}" for p, d in report.devices))
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"{finding.kind}: {finding.text}" for finding in report.findings]
    return lines


def _proof_line(proof: RunProof) -> str:
    executed = f" ({proof.executed} seen running)" if proof.executed else ""
    counts = (
        (proof.replicated, "saved by copies of constants"),
        (proof.kept, "left in place"),
        (proof.repeated, "once more, for another call"),
        (proof.captured, "of captured constants"),
        (proof.unused, "to unused operators"),
        (proof.control, "for control only"),
        (proof.planned_weights, "of weights, as planned"),
        (proof.within, "more for the host memory of GPUs"),
    )
    parts = [
        f"{_count(proof.operators, 'operator')} on their devices{executed}",
        *([f"{_count(proof.ordered, 'precedence')} kept"] if proof.ordered else []),
        f"{proof.transfers} of {_count(proof.planned, 'planned transfer')}",
        *(f"{count} {what}" for count, what in counts if count),
    ]
    return f"{proof.run}: {', '.join(parts)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
