"""A placed model on the servers of its cluster, ready to be called.

with moirai_tf.connect("placed", "cluster.yaml") as model:
    outputs = model(image=array)
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf

from moirai_tf.cluster import Cluster, read_cluster
from moirai_tf.errors import MoiraiError
from moirai_tf.model.load import fetched, load_in_session, load_with_devices, tensors
from moirai_tf.options import check_seconds
from moirai_tf.rewrite.directory import has_plan
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.plan_file import read_plan
from moirai_tf.runtime.devices import FoundDevice, check_plan_devices, check_plan_here
from moirai_tf.runtime.failures import explained, failure_of
from moirai_tf.runtime.identity import check_identity, worker_devices
from moirai_tf.runtime.session import CLOSE_S, ClusterSession, start_session

Array = Any

_NO_FILE = re.compile(r"No such file|[Ff]ailed to find any matching files")
"""What TensorFlow says of a file, and not of an op, an operator or a variable, that it lacks."""


def connect(
    placed: str | Path,
    cluster: Cluster | str | Path,
    *,
    timeout_s: float = 120.0,
    load_timeout_s: float = 600.0,
) -> ConnectedModel:
    """Loads a placed model on the TensorFlow servers of its cluster.

    Args:
      placed: directory of the placed SavedModel, which all servers read at the same path.
      cluster: the cluster that it was placed for, or its file, with the servers' addresses. Servers
        that the plan does not use need not be there.
      timeout_s: the longest that one call may take, once the model is loaded.
      load_timeout_s: the longest that connecting, or restoring the variables, may take.

    Returns:
      The loaded model. Close it, or use it in a `with` block.

    Raises:
      MoiraiError: the plan does not belong to the cluster; a server does not answer, is another
        one than the cluster says, lacks a device, or has another model of GPU; loading takes too
        long; or the servers cannot read the model.
    """
    if not isinstance(cluster, Cluster):
        cluster = read_cluster(cluster)
    for name, value in (("timeout_s", timeout_s), ("load_timeout_s", load_timeout_s)):
        check_seconds(name, value)
    plan = read_plan(placed)
    used = _used(cluster_of_plan(cluster, plan), plan)
    if not used.remote:
        raise MoiraiError(
            f"cluster {cluster.name!r} gives no addresses of servers",
            why="there is nothing to connect to: its devices are those of one process",
            fix="load the model into this process with moirai_tf.load, or add the addresses",
        )
    model = ConnectedModel(Path(placed), plan, used, timeout_s, load_timeout_s)
    model.reload()
    return model


class ConnectedModel:
    """The signature of a plan on the servers of a cluster; made by `connect`.

    A call while a server is away raises an error that names it, within seconds if its connection
    breaks and else after the time limit. A server that comes back has lost its variables, so the
    next call loads the model anew before it runs: calls work again once all servers are there. What
    the model itself had changed in its variables and tables is then as it was saved. Several
    threads may call at once.

    Attributes:
      plan: where operators run.
      cluster: the devices that the plan uses.
    """

    def __init__(
        self, directory: Path, plan: Plan, cluster: Cluster, timeout_s: float, load_timeout_s: float
    ) -> None:
        self.plan = plan
        self.cluster = cluster
        self._directory = directory
        self._timeout_s = timeout_s
        self._load_timeout_s = load_timeout_s
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._closed = False

    @property
    def inputs(self) -> Mapping[str, tf.TensorSpec]:
        """What a call takes; the parts of a composite tensor are `name/0`, `name/1`, ..."""
        return dict(self._ready().inputs)

    def __call__(
        self, inputs: Mapping[str, Any] | None = None, /, **named: Any
    ) -> dict[str, Array]:
        """Runs the signature once.

        Args:
          inputs: input -> value; for names that are none in Python.
          **named: the same as keywords.

        Returns:
          Output -> NumPy array.

        Raises:
          MoiraiError: an input is missing, unknown or of another type or shape; a server is away,
            was restarted, is another one, or lacks an op, a kernel or memory that the model needs;
            or the call took too long.
          tf.errors.OpError: the model itself fails.
        """
        loaded = self._ready()
        values = _fed(loaded.inputs, {**(inputs or {}), **named})
        with loaded.session.named_failures():
            try:
                results = loaded.step(*values)
            except tf.errors.OpError as error:
                self._check_servers(loaded)
                if (failure := failure_of(error)).known:
                    raise MoiraiError(
                        f"the model cannot be run on cluster {self.cluster.name!r}: {failure.text}",
                        why="its operators run on the servers, with what these have",
                        fix=failure.fix,
                    ) from error
                raise
        return dict(zip(loaded.outputs, map(fetched, results), strict=True))

    def reload(self) -> None:
        """Loads the model anew; raises as `connect`. Calls do so by themselves when they must."""
        with self._lock:
            self._check_open()
            self._unload()
            self._load()

    def close(self) -> None:
        """Lets go of the servers, within seconds even if one is gone.

        If another thread is just loading the model, that lets go of it when it is loaded.
        """
        self._closed = True
        if self._lock.acquire(timeout=CLOSE_S):
            try:
                self._unload()
            finally:
                self._lock.release()

    def __enter__(self) -> ConnectedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ready(self) -> _Loaded:
        with self._lock:
            self._check_open()
            return self._loaded or self._load()

    def _load(self) -> _Loaded:
        session = start_session(self.cluster, timeout_s=self._load_timeout_s)
        try:
            devices = check_identity(session)
            check_plan_devices(self.plan, devices, f"cluster {self.cluster.name!r}")
            loaded = self._restored(session, devices)
            self._check_open()  # it may have been closed meanwhile
        except BaseException:
            session.close()
            raise
        self._loaded = loaded
        return loaded

    def _check_open(self) -> None:
        if self._closed:
            raise MoiraiError(
                "the model is closed",
                why="it has let go of its servers",
                fix="connect again, or call it inside the `with` block",
            )

    def _restored(self, session: ClusterSession, devices: tuple[FoundDevice, ...]) -> _Loaded:
        what = f"{self._directory} cannot be loaded"
        why = "a Session on the servers restores and initialises the model as it was saved"
        with explained(what, why, loading=True):
            signatures = load_on_servers(self._directory, self.plan.tags, session)
        return _loaded(session, devices, signatures[self.plan.signature], self._timeout_s)

    def _unload(self) -> None:
        if self._loaded is not None:
            self._loaded.session.close()
            self._loaded = None

    def _check_servers(self, failed: _Loaded) -> None:
        """After a failure: makes the next call load anew if a server is not the same any more.

        Raises:
          MoiraiError: naming it.
        """
        known = {device.name: device.incarnation for device in failed.devices}
        try:
            for task, devices in worker_devices(self.cluster).items():
                if any(known.get(d.name) != d.incarnation for d in devices):
                    raise MoiraiError(
                        f"worker {task} at {self.cluster.addresses[task]} was restarted",
                        why="its variables are gone, and calls that were under way are lost",
                        fix="call again, which loads the model anew; a worker that was killed may "
                        "have had too little memory",
                    )
        except MoiraiError:
            with self._lock:
                if self._loaded is failed:
                    self._unload()
            raise


def cluster_of_plan(cluster: Cluster, plan: Plan) -> Cluster:
    """The cluster with the plan's client, whose task is the master.

    Raises:
      MoiraiError: a device that the plan uses is not in the cluster.
    """
    known = {device.name for device in cluster.devices}
    for device in plan.used:
        if device.name not in known:
            raise MoiraiError(
                f"cluster {cluster.name!r} has no {device.name!r}, which is in the plan",
                why="an operator on a device that does not exist silently runs elsewhere",
                fix="give the cluster file that the plan was made for",
            )
    return replace(cluster, client=plan.client)


def _used(cluster: Cluster, plan: Plan) -> Cluster:
    """The devices that a plan uses alone."""
    used = {device.name for device in plan.used}
    return replace(
        cluster,
        devices=tuple(device for device in cluster.devices if device.name in used),
        links=tuple(link for link in cluster.links if {link.source, link.target} <= used),
    )


def load_on_servers(
    directory: Path, tags: Iterable[str], opened: ClusterSession
) -> Mapping[str, Any]:
    """Loads a SavedModel into a Session on servers; returns its signatures.

    Raises:
      MoiraiError: a server is gone or does not find the model, or it takes too long.
      tf.errors.OpError: the model cannot be loaded.
    """
    try:
        with opened.named_failures():
            return load_in_session(directory, opened.session, tags)
    except tf.errors.NotFoundError as error:
        if not _NO_FILE.search(str(error)):
            raise
        raise MoiraiError(
            f"the workers cannot read {directory}: {str(error).splitlines()[0]}",
            why="the servers restore the variables, each from its own file system",
            fix="put the models where all workers see them at the same path",
        ) from error


@dataclass(frozen=True)
class _Loaded:
    """A model in a Session."""

    session: ClusterSession
    devices: tuple[FoundDevice, ...]
    """Of all servers, as they were when it was loaded."""
    inputs: Mapping[str, tf.TensorSpec]
    outputs: Sequence[str]
    step: Callable[..., Sequence[Any]]
    """The outputs, from the inputs' values."""


def _loaded(
    session: ClusterSession,
    devices: tuple[FoundDevice, ...],
    definition: Any,
    timeout_s: float,
) -> _Loaded:
    feeds, fetches = tensors(definition.inputs), tensors(definition.outputs)
    fed = {name: session.graph.get_tensor_by_name(tensor) for name, tensor in feeds.items()}
    specs = {name: tf.TensorSpec(tensor.shape, tensor.dtype) for name, tensor in fed.items()}
    session = session.with_timeout(timeout_s)
    call = session.session.make_callable(
        [*fetches.values()], [*feeds.values()], accept_options=True
    )
    step = partial(call, options=session.run_options())
    return _Loaded(session, devices, specs, tuple(fetches), step)


def _fed(specs: Mapping[str, tf.TensorSpec], given: Mapping[str, Any]) -> list[Array]:
    """The values of all inputs, in order.

    Raises:
      MoiraiError: naming an input that is missing or unknown, or whose value does not fit.
    """
    for name in sorted(given.keys() ^ specs.keys()):
        what = "is missing" if name in specs else "is unknown"
        raise _unfit(name, what, f"give exactly {', '.join(specs) or 'no inputs'}")
    return [_converted(name, spec, given[name]) for name, spec in specs.items()]


def _converted(name: str, spec: tf.TensorSpec, value: Any) -> Array:
    array = _array(name, spec.dtype, value)
    if not spec.shape.is_compatible_with(array.shape):
        shapes = f"has shape {list(array.shape)}, not {spec.shape}"
        raise _unfit(name, shapes, "give an array of the signature's shape, batch included")
    return array


def _array(name: str, dtype: tf.DType, value: Any) -> Array:
    """A value as an array of the type, if nothing is lost."""
    try:
        given = np.asarray(value, dtype=object if dtype == tf.string else None)
    except ValueError as error:
        raise _unfit(name, f"is no array: {error}", "give lists of equal lengths") from error
    fix = f"give values that {dtype.name} can hold"
    if dtype == tf.string:
        if not all(isinstance(text, str | bytes) for text in given.flat):
            raise _unfit(name, "holds values that are no strings", fix)
        return given
    wanted, untyped = dtype.as_numpy_dtype, not given.size and not hasattr(value, "dtype")
    number = dtype.is_floating and given.dtype.kind in "fiu"
    whole = dtype.is_integer and given.dtype.kind in "iu"
    if not (number or whole or untyped or np.can_cast(given.dtype, wanted, "same_kind")):
        raise _unfit(name, f"is of type {given.dtype}, not {dtype.name}", fix)
    array = given.astype(wanted, copy=False)
    if whole and not np.array_equal(array, given):
        raise _unfit(name, f"has values beyond {dtype.name}", fix)
    return array


def _unfit(name: str, what: str, fix: str) -> MoiraiError:
    return MoiraiError(
        f"input {name!r} {what}",
        why="the signature takes its inputs by name, each with a type and a shape",
        fix=fix,
    )


def load(directory: str | Path, tags: Iterable[str] | None = None) -> Any:
    """Loads a placed SavedModel so that its operators and variables go where the plan puts them.

    The same as `tf.saved_model.load` with `experimental_variable_policy="save_variable_devices"`,
    once it is sure that this process has the plan's devices: TensorFlow would run everything
    elsewhere without a word. A model that was never placed is loaded as it is.

    Raises:
      MoiraiError: a device of the plan is not in this process, a GPU is of another model than the
        plan was made for, or soft placement is off.
    """
    if has_plan(directory):
        check_plan_here(read_plan(directory))
    return load_with_devices(directory, tags)
