"""The part of verification that runs models; it needs a process of its own.

TensorFlow fixes its logical devices when it starts, and keeps memory once taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moirai_tf.cluster import Cluster
from moirai_tf.cost.inputs import chosen_inputs
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.importer import import_graph
from moirai_tf.model.load import all_dense, configure_logical_cpus, give_memory_back, logical_cpus
from moirai_tf.model.saved_model import SavedModel, read_saved_model
from moirai_tf.progress import stage
from moirai_tf.rewrite.directory import unplaced
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.plan_file import read_plan
from moirai_tf.runtime.failures import LoadingError, failure_of
from moirai_tf.verify.batches import REVERSED, interference, other_batches
from moirai_tf.verify.cluster_run import ClusterModel
from moirai_tf.verify.names import Names, session_names, tf2_names
from moirai_tf.verify.options import CLUSTER, SESSION, TF2, VerifyOptions
from moirai_tf.verify.parity import Array, compare, differences, tolerance_of
from moirai_tf.verify.partition import PartitionedGraph, device_key, local_device
from moirai_tf.verify.placement_proof import Evidence, prove
from moirai_tf.verify.report import (
    MODEL,
    Examined,
    Finding,
    OutputParity,
    Outputs,
    RunProof,
    VerifyReport,
)
from moirai_tf.verify.run import Run, SessionModel, Tf2Model
from moirai_tf.verify.stand_in import stand_in_original, stand_in_placed


def examined(
    original: Path,
    placed: Path,
    devices: Mapping[str, str],
    options: VerifyOptions,
    work: Path,
    cluster: Cluster | None = None,
    *,
    placed_only: bool = False,
) -> Examined:
    """Runs both models in every way that the options ask for, and compares with the plan.

    Args:
      original: the original SavedModel.
      placed: the placed SavedModel.
      devices: device of the plan -> device of this machine (see `stand_ins`).
      options: how to run the models.
      work: an empty directory for copies.
      cluster: the plan's devices with their addresses, to run the placed model there too.
      placed_only: whether to leave the original, and comparing outputs with it, to others.

    Raises:
      MoiraiError: the models cannot be run or compared here.
    """
    with stage("read both models"):
        subject = _subject(original, placed, devices, options, work, cluster, placed_only)
    configure_logical_cpus(logical_cpus(subject.devices.values()))
    give_memory_back()
    found = _Found()
    for loader in subject.loaders:
        reason = subject.unsuited(loader)
        if reason is not None:
            found.notes.append(f"{loader}: not run, {reason}")
            continue
        with stage(loader):
            _examine_loader(subject, loader, found)
    report = VerifyReport(
        tuple(subject.devices.items()), tuple(found.parities), tuple(found.proofs),
        tuple(found.notes), tuple(found.findings),
    )  # fmt: skip
    outputs = {
        grappler: run.outputs for runs in found.originals.values() for grappler, run in runs.items()
    }
    return Examined(report, tuple(found.fixes), outputs, found.uncompared)


@dataclass(frozen=True)
class _Subject:
    """What is examined."""

    plan: Plan
    meta_graph: Any
    """Of the placed model."""
    original_dir: Path
    placed_dirs: Mapping[str, Path]
    """Loader -> the placed model with the devices that it is to run on."""
    inputs: Mapping[str, Array]
    batches: Mapping[str, Mapping[str, Array]]
    """Other inputs that only values are compared for, by what they are."""
    devices: Mapping[str, str]
    """Device of the plan -> device of this machine."""
    options: VerifyOptions
    cluster: Cluster | None
    tolerance: float
    """Allowed error of outputs where kernels differ."""
    placed_only: bool

    @property
    def tf1(self) -> bool:
        """Whether the model has no objects, only a graph."""
        return not self.meta_graph.object_graph_def.nodes

    def unsuited(self, loader: str) -> str | None:
        """Why a loader cannot run the signature at all."""
        known = self.meta_graph.signature_def[self.plan.signature].inputs
        if loader == TF2 and not all_dense(known):
            return "an input is made of several tensors"
        return None

    def names(self, loader: str) -> Names | None:
        """How the loader names operators; None if its run proves nothing about placement."""
        if loader != TF2:
            return session_names(self.meta_graph, self.plan)
        return None if self.tf1 else tf2_names(self.meta_graph, self.plan)

    @property
    def loaders(self) -> tuple[str, ...]:
        """Those of the options that there is a use for."""
        return tuple(x for x in self.options.loaders if x != CLUSTER or self.cluster is not None)

    def original(self, loader: str) -> Tf2Model | SessionModel:
        """The original on this process's CPU: workers and GPUs may be too small for it."""
        return self._here(self.original_dir, loader, original=True)

    def placed(self, loader: str) -> Tf2Model | SessionModel | ClusterModel:
        """The placed model, with a cluster on its workers."""
        if loader != CLUSTER:
            return self._here(self.placed_dirs[loader], loader)
        assert self.cluster is not None
        return ClusterModel(
            self.placed_dirs[loader], self.plan.tags, self.plan.signature, self.cluster,
            timeout_s=self.options.step_timeout_s,
        )  # fmt: skip

    def _here(
        self, directory: Path, loader: str, *, original: bool = False
    ) -> Tf2Model | SessionModel:
        tags, signature, on_cpu = self.plan.tags, self.plan.signature, original and self.has_gpus
        if loader == TF2:
            return Tf2Model(directory, tags, signature, on_cpu=on_cpu)
        return SessionModel(
            directory, tags, signature, self.devices.values(),
            on_cpu=on_cpu, soft_placement=original,
        )  # fmt: skip

    @property
    def has_gpus(self) -> bool:
        """Whether GPUs of this machine run the placed model."""
        return any(local_device(name).startswith("GPU") for name in self.devices.values())

    def plan_names(self, loader: str) -> dict[str, str]:
        """Device of a run -> device of the plan."""
        if loader == CLUSTER:
            return {device_key(device): device for device in self.devices}
        return {device_key(local): device for device, local in self.devices.items()}

    def exact(self, loader: str, *, grappler: bool) -> bool:
        """Whether every operator runs on the same kernel in both models.

        That takes devices of one kind on one machine (other processors have other kernels), the
        same number of rows, and no Grappler: it fuses and folds what shares a device.
        """
        if loader == CLUSTER or self.plan.edits.split is not None:
            return False
        kinds = {local_device(name).split(":")[0] for name in self.devices.values()}
        return kinds == {"CPU"} and not grappler


@dataclass
class _Found:
    originals: dict[str, Mapping[bool, Run]] = field(default_factory=dict)
    """Loader -> whether Grappler was on -> what the original gave."""
    others: dict[str, Mapping[str, Run]] = field(default_factory=dict)
    """Loader -> what the original gave for each of the other batches."""
    parities: list[OutputParity] = field(default_factory=list)
    proofs: list[RunProof] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fixes: list[str] = field(default_factory=list)
    """What helps where the original itself cannot be loaded or run."""
    findings: list[Finding] = field(default_factory=list)
    uncompared: dict[bool, Outputs] = field(default_factory=dict)
    """Whether Grappler was on -> what the placed model gave, if it alone is run."""

    def fail(self, loader: str, error: Exception) -> None:
        """Notes that the original cannot be loaded or run."""
        verb = "loaded" if isinstance(error, LoadingError) else "run"
        failure = failure_of(error)
        self.notes.append(f"the original itself cannot be {verb} by {loader}: {failure.text}")
        self.fixes.append(failure.fix)


def _subject(
    original: Path,
    placed: Path,
    devices: Mapping[str, str],
    options: VerifyOptions,
    work: Path,
    cluster: Cluster | None,
    placed_only: bool,
) -> _Subject:
    plan = read_plan(placed)
    models = unplaced(read_saved_model(original)), read_saved_model(placed)
    graph = import_graph(models[0], plan.import_options(options.inputs))
    inputs = chosen_inputs(graph, options.inputs, options.seed)
    return _Subject(
        plan=plan,
        meta_graph=models[1].meta_graph(plan.tags),
        original_dir=stand_in_original(models[0], plan.tags, work / "original"),
        placed_dirs=dict(_placed_dirs(models[1], plan, devices, options, cluster, work)),
        inputs=inputs,
        batches=other_batches(plan.edits.split, inputs),
        devices=devices,
        options=options,
        cluster=cluster,
        tolerance=tolerance_of(spec.dtype for o in graph.operators for spec in o.outputs),
        placed_only=placed_only,
    )


def _placed_dirs(
    model: SavedModel,
    plan: Plan,
    devices: Mapping[str, str],
    options: VerifyOptions,
    cluster: Cluster | None,
    work: Path,
) -> Iterator[tuple[str, Path]]:
    here = [loader for loader in options.loaders if loader != CLUSTER]
    if here:
        directory = stand_in_placed(model, plan, devices, work / "placed")
        yield from ((loader, directory) for loader in here)
    if cluster is not None:
        yield CLUSTER, stand_in_placed(model, plan, {}, work / "cluster")


def _examine_loader(subject: _Subject, loader: str, found: _Found) -> None:
    """Runs both models in every mode, one model loaded at a time, and compares."""
    originals: Mapping[bool, Run | None] = dict.fromkeys(subject.options.grappler_modes)
    if not subject.placed_only:
        with stage("run the original"):
            originals = _originals(subject, loader, found)
        give_memory_back()
    placed = subject.placed(loader)
    wrong: list[Finding] = []
    for grappler, original in originals.items():
        with stage(f"run the placed model, Grappler {'on' if grappler else 'off'}"):
            wrong += _examine_run(subject, loader, placed, original, found, grappler=grappler)
    wrong += _compare_batches(subject, loader, placed, found)
    del placed
    give_memory_back()
    if wrong:
        _check_repeatable(subject, loader, found.originals[loader])
    found.findings.extend(wrong)


def _originals(subject: _Subject, loader: str, found: _Found) -> Mapping[bool, Run]:
    """Whether Grappler was on -> what the original gave, up to the first run that fails."""
    if loader == CLUSTER and SESSION in found.originals:
        return found.originals[SESSION]
    runs: dict[bool, Run] = {}
    try:
        model = subject.original(loader)
        runs.update(_runs_of(model, subject.inputs, subject.options.grappler_modes))
        found.originals[loader] = runs
        found.others[loader] = {
            name: model.run(inputs, grappler=True, traced=False)
            for name, inputs in subject.batches.items()
        }
    except MoiraiError:
        raise
    except Exception as error:  # loading may run any Python code
        if loader == CLUSTER:
            raise _unloadable(error) from error
        found.fail(loader, error)
    return runs


def _runs_of(
    model: Tf2Model | SessionModel, inputs: Mapping[str, Array], modes: Iterable[bool]
) -> Iterator[tuple[bool, Run]]:
    for grappler in modes:
        yield grappler, model.run(inputs, grappler=grappler, traced=False)


def _examine_run(
    subject: _Subject,
    loader: str,
    model: Tf2Model | SessionModel | ClusterModel,
    original: Run | None,
    found: _Found,
    *,
    grappler: bool,
) -> list[Finding]:
    """Runs the placed model as the original was run, and proves it; returns what values differ."""
    name = f"{loader}, Grappler {'on' if grappler else 'off'}"
    try:
        placed = model.run(subject.inputs, grappler=grappler)
    except MoiraiError:
        raise
    except Exception as error:
        failure = failure_of(error)
        what = "does not run on the workers" if loader == CLUSTER else "does not"
        text = f"{name}: the original runs, the placed model {what}: {failure.text}"
        found.findings.append(Finding(MODEL, text, fix=failure.fix if failure.known else ""))
        return []
    tolerance = 0.0 if subject.exact(loader, grappler=grappler) else subject.tolerance
    with stage("prove where it ran"):
        _prove(subject, loader, name, placed, found, grappler=grappler)
    if original is None:
        found.uncompared[grappler] = Outputs(name, placed.outputs, tolerance)
        return []
    return list(differences(name, original.outputs, placed.outputs, found.parities, tolerance))


def _compare_batches(
    subject: _Subject,
    loader: str,
    model: Tf2Model | SessionModel | ClusterModel,
    found: _Found,
) -> list[Finding]:
    """Runs a model whose batch is divided with other batches; returns what values differ."""
    edit, tolerance, wrong = subject.plan.edits.split, subject.tolerance, list[Finding]()
    if isinstance(model, ClusterModel):
        return wrong
    for name, original in found.others.get(loader, {}).items():
        placed = model.run(subject.batches[name], grappler=True, traced=False)
        wrong += differences(
            f"{loader}, {name}", original.outputs, placed.outputs, found.parities, tolerance
        )
        planned = next(iter(found.originals[loader].values()))
        if edit is not None and name == REVERSED:
            wrong += interference(
                edit, loader, planned.outputs, original.outputs, subject.tolerance
            )
    return wrong


def _check_repeatable(subject: _Subject, loader: str, originals: Mapping[bool, Run]) -> None:
    """Refuses to blame a placement for a model that never gives the same answer twice.

    Raises:
      MoiraiError: the original gives other answers when it is loaded and run once more.
    """
    varying = dict.fromkeys(
        name
        for grappler, second in _runs_of(subject.original(loader), subject.inputs, originals)
        for name, value in originals[grappler].outputs.items()
        if not compare("", name, value, second.outputs[name]).bit_equal
    )
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
    plan_names = subject.plan_names(loader)
    graphs = [PartitionedGraph(graph, names, plan_names) for graph in run.partitions]
    graph = max(graphs, key=lambda g: sum(1 for _ in g.operators()))
    evidence = Evidence(name, graph, run.executed, plan_names)
    proof, findings = prove(evidence, subject.plan, grappler=grappler)
    found.proofs.append(proof)
    found.findings.extend(replace(finding, grappler=grappler) for finding in findings)


def _unloadable(error: BaseException) -> MoiraiError:
    failure = failure_of(error)
    return MoiraiError(
        f"no Session can run the original: {failure.text}",
        why="a Session is the only way to run a model on the workers of a cluster",
        fix=failure.fix,
    )


def _unproved(subject: _Subject) -> str:
    if subject.tf1:
        return "it puts all variables of a TF1 SavedModel on its default device"
    return "its outputs do not come from one function that TensorFlow divides"
