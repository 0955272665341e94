"""The part of verification that runs models; it needs a process of its own.

TensorFlow fixes its logical devices when it starts, and keeps memory once taken.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moirai_tf.cost.inputs import generate_inputs, load_inputs
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import Graph
from moirai_tf.graph.importer import ImportOptions, import_graph
from moirai_tf.model.load import configure_logical_cpus, logical_cpus
from moirai_tf.model.saved_model import SavedModel, read_saved_model
from moirai_tf.rewrite.directory import unplaced
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.plan_file import read_plan
from moirai_tf.verify.names import Names, session_names, tf2_names
from moirai_tf.verify.options import SESSION, TF2, VerifyOptions
from moirai_tf.verify.parity import Array, compare, difference, tolerance_of
from moirai_tf.verify.partition import PartitionedGraph, local_device
from moirai_tf.verify.placement_proof import Evidence, prove
from moirai_tf.verify.report import MODEL, Finding, OutputParity, RunProof, VerifyReport
from moirai_tf.verify.run import FAILURES, Run, run_session, run_tf2, tensors
from moirai_tf.verify.stand_in import stand_in_original, stand_in_placed


def examine(
    original: Path,
    placed: Path,
    devices: Mapping[str, str],
    options: VerifyOptions,
    work: Path,
) -> VerifyReport:
    """Runs both models in every way that the options ask for, and compares with the plan.

    Args:
      original: the original SavedModel.
      placed: the placed SavedModel.
      devices: device of the plan -> device of this machine (see `stand_ins`).
      options: how to run the models.
      work: an empty directory for copies.

    Raises:
      MoiraiError: the models cannot be run or compared here, or no run can prove a placement.
    """
    subject = _subject(original, placed, devices, options, work)
    configure_logical_cpus(logical_cpus(subject.devices.values()))
    found = _Found()
    for loader in options.loaders:
        reason = subject.unsuited(loader)
        if reason is not None:
            found.notes.append(f"{loader}: not run, {reason}")
            continue
        for grappler in options.grappler_modes:
            try:
                reference = subject.run(subject.original_dir, loader, grappler=grappler)
            except FAILURES as error:
                found.notes.append(f"{loader}: the original itself cannot be run: {_reason(error)}")
                break
            _examine_run(subject, loader, reference, found, grappler=grappler)
    if not found.proofs and not found.findings:
        raise MoiraiError(
            f"no run could prove where operators run: {'; '.join(dict.fromkeys(found.notes))}",
            why="TensorFlow places operators elsewhere without an error",
            fix="allow both loaders, and give inputs that suit the model (--inputs)",
        )
    return VerifyReport(
        tuple(subject.devices.items()), tuple(found.parities), tuple(found.proofs),
        tuple(dict.fromkeys(found.notes)), tuple(found.findings),
    )  # fmt: skip


@dataclass(frozen=True)
class _Subject:
    """What is examined."""

    plan: Plan
    meta_graph: Any
    """Of the placed model."""
    original_dir: Path
    placed_dir: Path
    inputs: Mapping[str, Array]
    devices: Mapping[str, str]
    """Device of the plan -> device of this machine."""
    tolerance: float
    """Allowed error of outputs where kernels differ."""

    @property
    def tf1(self) -> bool:
        """Whether the model has no objects, only a graph."""
        return not self.meta_graph.object_graph_def.nodes

    def unsuited(self, loader: str) -> str | None:
        """Why a loader cannot run the signature at all."""
        known = self.meta_graph.signature_def[self.plan.signature].inputs
        if loader == TF2 and set(tensors(known)) != set(known):
            return "an input is made of several tensors"
        return None

    def names(self, loader: str) -> Names | None:
        """How the loader names operators; None if its run proves nothing about placement."""
        if loader == SESSION:
            return session_names(self.meta_graph, self.plan)
        return None if self.tf1 else tf2_names(self.meta_graph, self.plan)

    def run(self, directory: Path, loader: str, *, grappler: bool) -> Run:
        """One inference."""
        plan = self.plan
        if loader == TF2:
            return run_tf2(directory, plan.tags, plan.signature, self.inputs, grappler=grappler)
        return run_session(
            directory, plan.tags, plan.signature, self.inputs, self.devices.values(),
            grappler=grappler,
        )  # fmt: skip

    def exact(self, *, grappler: bool) -> bool:
        """Whether every operator runs on the same kernel in both models.

        That takes devices of one kind, and no Grappler: it fuses and folds what shares a device.
        """
        kinds = {local_device(name).split(":")[0] for name in self.devices.values()}
        return kinds == {"CPU"} and not grappler


@dataclass
class _Found:
    parities: list[OutputParity] = field(default_factory=list)
    proofs: list[RunProof] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def _subject(
    original: Path,
    placed: Path,
    devices: Mapping[str, str],
    options: VerifyOptions,
    work: Path,
) -> _Subject:
    plan = read_plan(placed)
    models = unplaced(read_saved_model(original)), read_saved_model(placed)
    graph = _graph(models[0], plan)
    return _Subject(
        plan=plan,
        meta_graph=models[1].meta_graph(plan.tags),
        original_dir=stand_in_original(models[0], plan.tags, work / "original"),
        placed_dir=stand_in_placed(models[1], plan, devices, work / "placed"),
        inputs=_inputs(graph, options),
        devices=devices,
        tolerance=tolerance_of(spec.dtype for o in graph.operators for spec in o.outputs),
    )


def _graph(model: SavedModel, plan: Plan) -> Graph:
    """The flat graph, for the input shapes that the plan was made for."""
    recorded = plan.options.get("import", {})
    return import_graph(
        model,
        ImportOptions(
            signature=plan.signature,
            tags=plan.tags,
            batch_size=recorded.get("batch_size", 1),
            input_shapes=tuple(recorded.get("input_shapes", ())),
        ),
    )


def _inputs(graph: Graph, options: VerifyOptions) -> Mapping[str, Array]:
    """The user's inputs, or generated ones."""
    if options.inputs:
        return load_inputs(graph, options.inputs)
    return generate_inputs(graph, options.seed)


def _examine_run(
    subject: _Subject, loader: str, original: Run, found: _Found, *, grappler: bool
) -> None:
    """Runs the placed model as the original was run, and compares."""
    name = f"{loader}, Grappler {'on' if grappler else 'off'}"
    gc.collect()
    try:
        placed = subject.run(subject.placed_dir, loader, grappler=grappler)
    except FAILURES as error:
        text = f"{name}: the original runs, the placed model does not: {_reason(error)}"
        found.findings.append(Finding(MODEL, text))
        return
    tolerance = 0.0 if subject.exact(grappler=grappler) else subject.tolerance
    wrong = list(_compare(name, original, placed, found.parities, tolerance))
    if wrong:
        _check_repeatable(subject, loader, original, grappler=grappler)
    found.findings.extend(wrong)
    _prove(subject, loader, name, placed, found, grappler=grappler)


def _compare(
    run: str, original: Run, placed: Run, parities: list[OutputParity], tolerance: float
) -> Iterator[Finding]:
    for output, value in original.outputs.items():
        parities.append(compare(run, output, value, placed.outputs[output], tolerance))
        finding = difference(parities[-1], placed.outputs[output])
        if finding is not None:
            yield finding


def _check_repeatable(subject: _Subject, loader: str, first: Run, *, grappler: bool) -> None:
    """Refuses to blame a placement for a model that never gives the same answer twice.

    Raises:
      MoiraiError: two runs of the original differ.
    """
    second = subject.run(subject.original_dir, loader, grappler=grappler)
    varying = [
        name
        for name, value in first.outputs.items()
        if not compare("", name, value, second.outputs[name]).bit_equal
    ]
    if varying:
        raise MoiraiError(
            f"two runs of the original differ in {', '.join(map(repr, varying))}",
            why="a model whose answers change by themselves cannot be compared with a placed one; "
            "random operators were seeded, so something else changes (time, Python, threads)",
            fix="export a deterministic model, or go without verification (--noverify)",
        )


def _prove(
    subject: _Subject, loader: str, name: str, run: Run, found: _Found, *, grappler: bool
) -> None:
    names = subject.names(loader)
    if names is None or not run.partitions:
        found.notes.append(f"{loader}: only values are compared, {_unproved(subject)}")
        return
    plan_names = {local_device(local): device for device, local in subject.devices.items()}
    graphs = [PartitionedGraph(graph, names, plan_names) for graph in run.partitions]
    graph = max(graphs, key=lambda g: sum(1 for _ in g.operators()))
    evidence = Evidence(name, graph, run.executed, plan_names)
    proof, findings = prove(evidence, subject.plan, grappler=grappler)
    found.proofs.append(proof)
    found.findings.extend(findings)


def _unproved(subject: _Subject) -> str:
    if subject.tf1:
        return "it puts all variables of a TF1 SavedModel on its default device"
    return "its outputs do not come from one function that TensorFlow divides"


def _reason(error: BaseException) -> str:
    """The line of TensorFlow's message that says what happened."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and line != "Graph execution error:"]
    return said[0][:300] if said else type(error).__name__
