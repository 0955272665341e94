"""What a process with the GPUs of `configs/emulated_four_gpus.yaml` sees: `python -m` prints JSON.

A plugin is loaded when TensorFlow is imported, so this is a process of its own.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.client import device_lib

tf1 = tf.compat.v1

MIB = 2**20


def main() -> None:
    """Prints all facts as one line of JSON."""
    facts = {
        "devices": _devices(),
        "memory": _memory(),
        "fake_work": _fake_work(),
        "kernel": _kernel(),
        "copies": _copies(),
        "port": _port(),
        "later_steps": _later_steps(),
        "channels_first": _channels_first(),
        "references": _references(),
        "refused": _refused(),
        "recurrent": {mode: _recurrent(mode) for mode in ("lstm", "gru")},
    }
    print(json.dumps(facts))


def _devices() -> dict[str, Any]:
    gpus = tf.config.list_physical_devices("GPU")
    return {
        "details": [tf.config.experimental.get_device_details(gpu) for gpu in gpus],
        "local": [
            [device.memory_limit, device.physical_device_desc]
            for device in device_lib.list_local_devices()
            if device.device_type == "GPU"
        ],
    }


def _memory() -> dict[str, bool]:
    """Whether 200 and 280 MB can be allocated on the GPU that has 256 MB."""

    def fits(megabytes: int) -> bool:
        with tf.device("/GPU:3"):
            try:
                tf.fill([megabytes, 250_000], 1.0)
            except tf.errors.ResourceExhaustedError:
                return False
        return True

    return {"200 MB": fits(200), "280 MB": fits(280)}


def _fake_work() -> Any:
    """Two operators of 200 ms on two GPUs."""
    with tf.Graph().as_default() as graph:
        outputs = []
        for number in range(2):
            with tf.device(f"/GPU:{number}"):
                x = tf1.placeholder(tf.float32, [2], f"x{number}")
                outputs.append(_work(x, 200_000, f"work{number}"))
        with tf.device("/CPU:0"):
            outputs.append(_work(tf.constant([1.0]), 1_000, "work_cpu"))
        feeds = {"x0:0": [1.0, 2.0], "x1:0": [3.0, 4.0]}
        values, records = _traced(graph, outputs, feeds)
    return {"values": [value.tolist() for value in values], "records": records}


def _kernel() -> Any:
    """A product of 512 x 512 matrices on two unequal GPUs."""
    with tf.Graph().as_default() as graph:
        outputs = []
        for number in (0, 3):
            with tf.device(f"/GPU:{number}"):
                x = tf1.placeholder(tf.float32, [512, 512], f"x{number}")
                outputs.append(tf.matmul(x, x, name=f"product{number}"))
        feed = np.ones([512, 512], np.float32)
        return _traced(graph, outputs, {"x0:0": feed, "x3:0": feed})[1]


def _copies() -> Any:
    """6 MB from the host to GPU:0, on to GPU:1 and back to the host."""
    with tf.Graph().as_default() as graph:
        with tf.device("/CPU:0"):
            x = tf1.placeholder(tf.float32, [1_500_000], "x")
        with tf.device("/GPU:0"):
            y = tf.tanh(x)
        with tf.device("/GPU:1"):
            z = tf.sin(y)
        with tf.device("/CPU:0"):
            z = tf.reduce_sum(z)
        feed = np.ones(1_500_000, np.float32)
        return _traced(graph, [z], {"x:0": feed})[1]


def _port() -> Any:
    """12 MB from each of two GPUs to the host, ready at nearly the same time."""
    with tf.Graph().as_default() as graph:
        sums = []
        scalar = tf1.placeholder(tf.float32, [], "x")
        for number in range(2):
            with tf.device(f"/GPU:{number}"):
                # Work first, so that both copies are on their streams before either is ready.
                x = _work(tf.fill([3_000_000], scalar), 100_000, f"work{number}")
            with tf.device("/CPU:0"):
                sums.append(tf.reduce_sum(x))
        return _traced(graph, sums, {"x:0": 1.0})[1]


def _later_steps() -> list[list[float]]:
    """A counting loop and what decides its end, in more steps than kernels compute."""
    with tf.Graph().as_default() as graph, tf.device("/GPU:0"):
        x = tf1.placeholder(tf.float32, [3], "x")
        first = tf.argmax(x, output_type=tf.int32)
        count = tf.while_loop(lambda i: i < 5, lambda i: i + 1, [first])
        with tf1.Session(graph=graph) as session:
            feeds = [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]] * 3
            fetches = [tf.argmax(x), count[0] if isinstance(count, list) else count]
            return [[float(v) for v in session.run(fetches, {x: feed})] for feed in feeds]


def _channels_first() -> float:
    """The largest difference between NCHW on a GPU and NHWC on the CPU."""
    generator = np.random.default_rng(1)
    x = generator.normal(size=[2, 9, 8, 3]).astype(np.float32)
    w = generator.normal(size=[3, 3, 3, 5]).astype(np.float32)
    with tf.device("/GPU:0"):
        first = tf.nn.conv2d(x.transpose(0, 3, 1, 2), w, [1, 1, 2, 1], "SAME", "NCHW")
        first = tf.nn.max_pool2d(first, [1, 1, 2, 3], [1, 1, 2, 1], "VALID", "NCHW")
    with tf.device("/CPU:0"):
        last = tf.nn.max_pool2d(
            tf.nn.conv2d(x, w, [1, 2, 1, 1], "SAME"), [1, 2, 3, 1], [1, 2, 1, 1], "VALID"
        )
    return float(np.abs(first.numpy().transpose(0, 2, 3, 1) - last.numpy()).max())


def _references() -> list[Any]:
    """A product with a variable that is a reference, before and after it is assigned anew."""
    with tf.Graph().as_default() as graph, tf.device("/GPU:0"):
        variable = tf1.get_variable(
            "v", [2, 2], initializer=tf1.constant_initializer(3.0), use_resource=False
        )
        product = tf.matmul(np.eye(2, dtype=np.float32), variable)
        assigned = tf1.assign(variable, [[1.0, 2.0], [3.0, 4.0]])
        config = tf1.ConfigProto(allow_soft_placement=False)
        with tf1.Session(graph=graph, config=config) as session:
            session.run(variable.initializer)
            before = session.run(product).tolist()
            session.run(assigned)
            return [before, session.run(product).tolist()]


def _refused() -> str:
    """What an operator says that is not emulated."""
    with tf.device("/GPU:0"):
        variable = tf.Variable([1.0])
        try:
            variable.assign_add([2.0])
        except tf.errors.UnimplementedError as error:
            return error.message
    return ""


def _recurrent(mode: str) -> float:
    """The largest difference between cuDNN's layer on a GPU and its equations.

    Batch 2, of 3 and 1 steps; 4 inputs, 5 units. Weights come gate by gate, of inputs before those
    of states, then biases in the same order.
    """
    generator = np.random.default_rng(2)
    gates = {"lstm": 4, "gru": 3}[mode]
    x = generator.normal(size=[2, 3, 4]).astype(np.float32)
    w, r = (generator.normal(size=[gates, 5, size]).astype(np.float32) for size in (4, 5))
    bw, br = (generator.normal(size=[gates, 5]).astype(np.float32) for _ in range(2))
    with tf.device("/GPU:0"):
        output = tf.raw_ops.CudnnRNNV3(
            input=x,
            input_h=tf.zeros([1, 2, 5]),
            input_c=tf.zeros([1, 2, 5]),
            params=np.concatenate([part.ravel() for part in (w, r, bw, br)]),
            sequence_lengths=[3, 1],
            rnn_mode=mode,
            time_major=False,
            is_training=False,
        ).output.numpy()
    expected = np.zeros([2, 3, 5])
    for row, length in enumerate((3, 1)):
        h, c = np.zeros(5), np.zeros(5)
        for step in range(length):
            a = w @ x[row, step] + bw
            b = r @ h + br
            if mode == "lstm":
                c = _sigmoid(a[1] + b[1]) * c + _sigmoid(a[0] + b[0]) * np.tanh(a[2] + b[2])
                h = _sigmoid(a[3] + b[3]) * np.tanh(c)
            else:
                new = np.tanh(a[2] + _sigmoid(a[0] + b[0]) * b[2])
                h = _sigmoid(a[1] + b[1]) * (h - new) + new
            expected[row, step] = h
    return float(np.abs(output - expected).max())


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _work(x: Any, duration_us: int, name: str) -> Any:
    """The plugin's own operator, which has no function in Python."""
    attribute = tf1.AttrValue(i=duration_us)
    graph = tf1.get_default_graph()
    return graph.create_op(
        "FakeWork", [x], [tf.float32], name=name, attrs={"duration_us": attribute}
    ).outputs[0]


def _traced(graph: Any, fetches: Any, feeds: Any) -> tuple[Any, dict[str, list[list[Any]]]]:
    """Values, and [name, start_us, duration_us] of the GPUs' records by TensorFlow's device."""
    config = tf1.ConfigProto(allow_soft_placement=False)
    metadata = tf1.RunMetadata()
    with tf1.Session(graph=graph, config=config) as session:
        session.run(fetches, feeds)
        options = tf1.RunOptions(trace_level=tf1.RunOptions.FULL_TRACE)
        values = session.run(fetches, feeds, options=options, run_metadata=metadata)
    records = {
        stats.device: [
            [node.node_name, node.all_start_micros, node.all_end_rel_micros]
            for node in stats.node_stats
        ]
        for stats in metadata.step_stats.dev_stats
        if stats.device.endswith(("/stream:all", "/memcpy"))
    }
    return values, records


if __name__ == "__main__":
    main()
