"""Times operators on this machine's CPU with TensorFlow's own profiler.

The model runs in a Session with one inter-op thread: kernels then run one after the other, so that
their times add up to the latency of a device that runs one operator at a time, while each kernel
has all intra-op threads. Names are those of the flat graph, for TF1 and TF2 models alike.

The profiler records a kernel only while TensorFlow's executor takes it for expensive, and cheap
ones lose that mark after some ninety untraced runs. So the profiler is on from the first run, and
what comes before the first step marker is the warm-up.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.python.saved_model import loader_impl

from moirai_tf.cluster import Cluster
from moirai_tf.cost.inputs import Array
from moirai_tf.cost.step_stats import KernelNames
from moirai_tf.cost.table import Measurement
from moirai_tf.cost.xplane import STEP, UNKNOWN, Step, read_trace, steps
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import Graph
from moirai_tf.model.load import holds_nothing, load_in_session
from moirai_tf.model.output import written
from moirai_tf.model.saved_model import SavedModel
from moirai_tf.model.validate import tensor_names
from moirai_tf.progress import stage
from moirai_tf.rewrite.restored import restored
from moirai_tf.runtime.failures import explained
from moirai_tf.runtime.session import ClusterSession, open_session

_WHY = "operators are timed by running the signature"
_OF_STEPS = (tf.errors.OpError,)
"""What steps raise; a fault in what is made of them must not be taken for the model's."""
_OTHERWISE = "compute the costs (--source=analytical, without verification: --noverify)"


def measure(
    model: SavedModel,
    graph: Graph,
    inputs: Mapping[str, Array],
    *,
    repeats: int,
    warmup: int,
) -> tuple[list[int], Measurement]:
    """Runs a signature on this machine's CPU under the profiler.

    Args:
      model: the SavedModel that the graph was imported from.
      graph: its flat graph.
      inputs: one array per signature input.
      repeats: steps that count.
      warmup: steps before them.

    Returns:
      Nanoseconds of each operator of the graph, and what the profile says of itself.

    Raises:
      MoiraiError: the model cannot be loaded or run on the inputs, or another profiler is running.
    """
    with _runnable(model, graph, inputs) as run, tempfile.TemporaryDirectory() as directory:
        with stage("run traced"):
            _profile(run, directory, repeats=repeats, warmup=warmup)
        with stage("run"):
            latencies = [_seconds(run) for _ in range(repeats)]
        traced = steps(read_trace(directory), KernelNames(graph).owner)
    return _operator_times(len(graph), traced), _measurement(traced, latencies)


@contextmanager
def loaded(cluster: Cluster, placed: Path, graph: Graph) -> Iterator[ClusterSession]:
    """A Session on a cluster with a placed model in it.

    Raises:
      MoiraiError: a worker is missing or dies, or the model cannot be loaded or run.
    """
    where = "the workers" if cluster.remote else "the devices of this machine"
    with open_session(cluster) as opened:
        with (
            stage("load the model"),
            explained(f"the model cannot be loaded on {where}", _WHY, loading=True),
            opened.named_failures(),
        ):
            load_in_session(placed, opened.session, graph.tags)
        with explained(f"the model cannot be run on {where}", _WHY, failures=_OF_STEPS):
            with opened.named_failures():
                fill_variables(opened.session, graph, placed)
            yield opened


def runs_of(
    model: SavedModel, graph: Graph, inputs: Mapping[str, Array]
) -> tuple[list[str], list[str]]:
    """Names of the tensors that a Session feeds, in the order of the inputs, and fetches."""
    signature = model.meta_graph(graph.tags).signature_def[graph.signature]
    fetches = [name for info in signature.outputs.values() for name in tensor_names(info)]
    return [f"{graph.operators[graph.inputs[name]].name}:0" for name in inputs], fetches


@contextmanager
def _runnable(
    model: SavedModel, graph: Graph, inputs: Mapping[str, Array]
) -> Iterator[Callable[[], object]]:
    """A call that runs the signature once, in a Session of its own."""
    config = tf.compat.v1.ConfigProto(
        device_count={"CPU": 1, "GPU": 0},
        inter_op_parallelism_threads=1,
        use_per_session_threads=True,
        allow_soft_placement=True,
    )
    feeds, fetches = runs_of(model, graph, inputs)
    with (
        tf.Graph().as_default(),
        tf.compat.v1.Session(config=config) as session,
        _on_disk(model) as directory,
    ):
        with stage("load the model"), explained(
            "the model cannot be loaded to be measured", _WHY, loading=True, otherwise=_OTHERWISE
        ):  # fmt: skip
            load_in_session(directory, session, graph.tags)
        with explained("the model cannot be run to be measured", _WHY, otherwise=_OTHERWISE,
                       failures=_OF_STEPS):  # fmt: skip
            fill_variables(session, graph, directory)
            step = session.make_callable(fetches, feeds)
            yield lambda: step(*inputs.values())


@contextmanager
def _on_disk(model: SavedModel) -> Iterator[Path]:
    """A directory that holds the model as it is: its own, or a temporary one if it was edited."""
    if not model.edited:
        yield model.path
        return
    with tempfile.TemporaryDirectory(prefix="moirai_model_") as work:
        yield written(model, Path(work))


def fill_variables(session: tf.compat.v1.Session, graph: Graph, directory: Path) -> None:
    """Gives random values to variables that the model's own restore leaves out.

    `tf.saved_model.save` of a Keras 3 model saves copies of the variables under other names, which
    only the TF2 loader finds. Times do not depend on the values. A Session is asked for no others:
    an answer takes it as long as a step, since it plans the whole graph for it.
    """
    handles = {
        session.graph.get_tensor_by_name(f"{operator.name}:0"): operator.attr("dtype").type
        for operator in graph.operators
        if operator.op == "VarHandleOp"
    }
    known = _restored_variables(directory, graph) if handles else set()
    handles = {handle: dtype for handle, dtype in handles.items() if handle.op.name not in known}
    if not handles:
        return
    ready = session.run([tf.raw_ops.VarIsInitializedOp(resource=handle) for handle in handles])
    for (handle, dtype), is_ready in zip(handles.items(), ready, strict=True):
        if is_ready:
            continue
        shape = [dim.size for dim in handle.op.get_attr("shape").dim]
        values = np.random.default_rng(0).normal(0.0, 0.05, shape)
        value = tf.constant(values.astype(tf.as_dtype(dtype).as_numpy_dtype))
        session.run(tf.raw_ops.AssignVariableOp(resource=handle, value=value))


def _restored_variables(directory: Path, graph: Graph) -> set[str]:
    """Variables that loading the model has surely filled."""
    loader = loader_impl.SavedModelLoader(str(directory))
    if holds_nothing(loader.variables_path):
        return set()
    meta_graph = loader.get_meta_graph_def_from_tags(graph.tags)
    return set(restored(meta_graph, meta_graph.saver_def.restore_op_name) or ())


def _profile(run: Callable[[], object], directory: str, *, repeats: int, warmup: int) -> None:
    options = tf.profiler.experimental.ProfilerOptions(device_tracer_level=0)
    try:
        tf.profiler.experimental.start(directory, options)
    except tf.errors.AlreadyExistsError as error:
        raise MoiraiError(
            "another profiler is running in this process",
            why="TensorFlow has one profiler per process",
            fix="stop it (tf.profiler.experimental.stop()) before profiling a model",
        ) from error
    try:
        for _ in range(warmup):
            run()
        for number in range(repeats):
            with tf.profiler.experimental.Trace(STEP, step_num=number):
                run()
    finally:
        tf.profiler.experimental.stop()


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _operator_times(count: int, traced: Sequence[Step]) -> list[int]:
    """Median over the steps of each operator's time in kernels, in nanoseconds."""
    times = np.zeros((len(traced), count), dtype=np.int64)
    for number, step in enumerate(traced):
        for owner, kernel_ns in step.kernel_ns.items():
            if owner != UNKNOWN:
                times[number, owner] = kernel_ns
    return [round(median) for median in np.median(times, axis=0)]


def _measurement(traced: Sequence[Step], latencies: Sequence[float]) -> Measurement:
    durations = [step.duration_ns for step in traced]
    unknown = [step.kernel_ns.get(UNKNOWN, 0) for step in traced]
    kernels = [sum(step.kernel_ns.values()) for step in traced]
    low, middle, high = np.percentile(durations, (25, 50, 75))
    return Measurement(
        repeats=len(traced),
        latency_ns=round(float(np.median(latencies)) * 1e9),
        step_ns=round(middle),
        attributed_ns=round(np.median(np.subtract(kernels, unknown))),
        unknown_ns=round(np.median(unknown)),
        spread=round(float((high - low) / middle), 4),
    )
