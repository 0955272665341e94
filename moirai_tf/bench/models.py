"""Placed models made ready to run side by side: the same graph, the same inputs, one cluster."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moirai_tf.cluster import Cluster, Device, Link
from moirai_tf.cost.inputs import Array
from moirai_tf.cost.measure import fill_variables, runs_of
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.graph.graph import Graph
from moirai_tf.graph.importer import import_graph
from moirai_tf.graph.prune import prune
from moirai_tf.model.load import load_in_session
from moirai_tf.model.output import real_path
from moirai_tf.model.saved_model import SavedModel, read_saved_model
from moirai_tf.options import recorded
from moirai_tf.rewrite.directory import before_placement, unplaced
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.plan_file import read_plan
from moirai_tf.runtime.devices import full_name
from moirai_tf.runtime.identity import check_identity
from moirai_tf.runtime.session import ClusterSession, open_session


@dataclass(frozen=True)
class Signature:
    """A signature of the original model, as its plans saw it."""

    model: SavedModel
    """Without a placement."""
    graph: Graph


@dataclass(frozen=True)
class PlacedModel:
    """A placed model."""

    name: str
    directory: Path
    plan: Plan


def read_placed(directories: Sequence[str | Path]) -> tuple[PlacedModel, ...]:
    """Placed models, called by their directories' names, or by their paths if names repeat.

    Raises:
      MoiraiError: there is none, one is given twice or has no plan, or plans differ in signature
        or input shapes.
    """
    if not directories:
        raise _unfit("no placed model is given", "give the output directory of moirai_tf.optimize")
    paths = [Path(directory) for directory in directories]
    short = [real_path(path).name for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    if len({real_path(path) for path in paths}) < len(paths):
        raise _unfit("a placed model is given twice", "give every directory once")
    placed = tuple(
        PlacedModel(name, path, read_plan(path)) for name, path in zip(names, paths, strict=True)
    )
    first = placed[0]
    for known in placed:
        if not known.plan.placement:
            raise _unfit(
                f"nothing was placed in {known.directory}: one device alone can run it, and "
                "nothing was measured",
                "optimise the original with profile_anyway (--profile_anyway)",
            )
    for other in placed[1:]:
        if other.plan.import_options() != first.plan.import_options():
            raise _unfit(
                f"{other.directory} was placed for another signature, or for other input shapes, "
                f"than {first.directory}",
                "place both with the same signature, batch_size and input_shapes",
            )
    return placed


def read_signature(original: str | Path, placed: Sequence[PlacedModel]) -> Signature:
    """The signature that was placed, from the original model.

    Raises:
      MoiraiError: the original is not the model that a plan was made for.
    """
    model = unplaced(read_saved_model(original))
    graph = _graph_of(model, placed[0].plan)
    for known in placed:
        strangers = graph.index.keys() - _original_names(known)
        if strangers:
            raise _unfit(
                f"the plan of {known.directory} knows nothing of operator {min(strangers)!r} of "
                f"{original}",
                "give the model that was placed, or place this one",
            )
    return Signature(model, graph)


def _original_names(placed: PlacedModel) -> Set[str]:
    """The operators of the model that was placed, before its batch was divided."""
    plan = placed.plan
    if plan.edits.split is None:
        return plan.placement.keys()
    return _graph_of(unplaced(read_saved_model(placed.directory)), plan).index.keys()


def planned_graph(placed: PlacedModel, graph: Graph) -> Graph:
    """What a plan placed: the graph of the original, or the one that divides its batch."""
    plan = placed.plan
    if plan.edits.split is None:
        return graph
    return _graph_of(before_placement(read_saved_model(placed.directory), plan), plan)


def _graph_of(model: SavedModel, plan: Plan) -> Graph:
    return prune(import_graph(model, plan.import_options()))


def fused(graph: Graph, plan: Plan) -> CoarseGraph:
    """The fused operators of the graph that a plan placed."""
    types = sorted({device.type for device in plan.devices})
    return coarsen(graph, fuse_options(plan), types)[0]


def fuse_options(plan: Plan) -> FuseOptions:
    """How the operators of a plan were fused."""
    return FuseOptions(**recorded(FuseOptions, plan.options.get("fuse", {})))


def check_devices(cluster: Cluster, placed: Sequence[PlacedModel]) -> None:
    """Refuses a cluster that is not the one of the plans.

    Raises:
      MoiraiError: naming a device that a plan uses and the cluster lacks, or another client.
    """
    known = {device.name for device in cluster.devices}
    for one in placed:
        missing = sorted({one.plan.client, *one.plan.placement.values()} - known)
        if missing:
            raise MoiraiError(
                f"cluster {cluster.name!r} has no {missing[0]!r}, which the plan of "
                f"{one.directory} uses",
                why="TensorFlow runs an operator on a missing device elsewhere, without an error",
                fix="rename the plan's devices with moirai_remap, or give the cluster that the "
                f"model was placed for; this one has {', '.join(sorted(known))}",
            )
        if one.plan.client != cluster.client:
            raise MoiraiError(
                f"the client of cluster {cluster.name!r} is {cluster.client!r}, that of the plan "
                f"of {one.directory} is {one.plan.client!r}",
                why="feeds and fetches live with the client, so other tensors would be moved",
                fix="give the cluster file the plan's client",
            )


def logical_cpus(plan: Plan) -> Cluster:
    """The devices of a plan as a cluster without addresses; nobody looks at its links."""
    devices = tuple(Device(d.name, d.type, d.memory_bytes) for d in plan.devices)
    names = [device.name for device in devices]
    links = tuple(Link(a, b, 0, 10**9) for a, b in itertools.permutations(names, 2))
    return Cluster("this process", devices, links, plan.client)


@contextmanager
def opened(
    directory: Path,
    signature: Signature,
    inputs: Mapping[str, Array],
    cluster: Cluster,
    timeout_s: float,
) -> Iterator[Loaded]:
    """A placed model in a Session of its own on the cluster.

    Raises:
      MoiraiError: a worker or a device is missing.
      tf.errors.OpError: the model cannot be loaded; see `failures.explained`.
    """
    feeds, fetches = runs_of(signature.model, signature.graph, inputs)
    with open_session(cluster, timeout_s=timeout_s) as session:
        _check_present(session)
        check_identity(session)
        with session.named_failures():
            load_in_session(directory, session.session, signature.graph.tags)
            fill_variables(session.session, signature.graph, directory)
        yield Loaded(session, tuple(fetches), dict(zip(feeds, inputs.values(), strict=True)))


@dataclass(frozen=True)
class Loaded:
    """A model that can be run at once."""

    session: ClusterSession
    fetches: tuple[str, ...]
    feeds: Mapping[str, Array]

    def step(self) -> Callable[[], object]:
        """A call that runs the signature once."""
        values = list(self.feeds.values())
        call = self.session.callable(list(self.fetches), list(self.feeds))
        return lambda: call(*values)

    def trace(self) -> Any:
        """The `RunMetadata` of one step with step statistics and partition graphs."""
        return self.session.run(list(self.fetches), self.feeds, trace=True)[1]


def _check_present(session: ClusterSession) -> None:
    """Refuses devices without an address that are not in this process."""
    if session.cluster.remote:
        return
    here = {full_name(device.name) for device in session.session.list_devices()}
    for device in session.cluster.devices:
        if full_name(device.name) not in here:
            raise MoiraiError(
                f"this process has no device {device.name!r}, and cluster "
                f"{session.cluster.name!r} gives no address for it",
                why="TensorFlow runs an operator on a missing device elsewhere, without an error",
                fix="give the devices of the cluster file the addresses of their servers",
            )


def _unfit(what: str, fix: str) -> MoiraiError:
    return MoiraiError(
        what,
        why="latencies are compared on one signature, one set of inputs and one cluster",
        fix=fix,
    )
