"""Functions that call functions, which TensorFlow inlines or not."""

from __future__ import annotations

import tempfile
from typing import Any

import tensorflow as tf

from tests.corpus.entry import entry, floats, texts

X = floats(3, 4)
WORDS = texts(3)
tf1 = tf.compat.v1


def _implementation(name: str) -> Any:
    """Marks a function as one of several implementations, as Keras 2 marks its layers."""
    return tf.function(
        autograph=False,
        experimental_attributes={"api_implements": name, "api_preferred_device": "CPU"},
    )


@entry(x=X)
def inlined_twice(kit: Any, x: Any) -> Any:
    @tf.function
    def f(a: Any) -> Any:
        return tf.nn.relu(a) + 1.0

    return {"y": f(tf.sin(x)) * 2.0, "z": f(tf.cos(x)) - 1.0}


@entry({"k": (4, 8), "r": (8, 8)}, x=floats(2, 3, 4), tf1=False)
def recurrent_layer(kit: Any, x: Any) -> Any:
    """What Keras 2 makes of an LSTM or GRU with default arguments."""

    @_implementation("lstm_1")
    def layer(x: Any, h: Any, k: Any, r: Any) -> Any:
        def turn(t: Any, h: Any) -> Any:
            return t + 1, tf.tanh(x[:, t] @ k + h @ r)

        return tf.while_loop(lambda t, h: t < 3, turn, [0, h])[1], tf.constant(1.0)

    h, _ = layer(tf.sin(x), tf.zeros([2, 8]), kit.k, kit.r)
    return {"y": tf.exp(h), "last": h * 2.0}


@entry({"k": (4, 4)}, x=X, tf1=False)
def layer_with_its_weight(kit: Any, x: Any) -> Any:
    @_implementation("gru_1")
    def layer(x: Any) -> Any:
        return tf.tanh(x @ kit.k)

    return {"y": layer(tf.sin(x)) * 3.0, "z": layer(tf.cos(x)) - 1.0}


@entry(x=X)
def constants_of_a_call(kit: Any, x: Any) -> Any:
    @_implementation("scale_1")
    def scale(a: Any, b: Any, c: Any, unread: Any) -> Any:
        return a * b + c, tf.exp(a)

    row = tf.constant([0.5, 1.5, 2.5, 3.5])
    return {"y": scale(x, tf.constant(2.0), row, tf.tanh(x))[0], "z": tf.sin(x) * row}


@entry(x=X)
def never_inlined(kit: Any, x: Any) -> Any:
    @tf.function(experimental_attributes={"_noinline": True})
    def f(a: Any) -> Any:
        return tf.cond(tf.reduce_sum(a) > 0.0, lambda: tf.sin(a), lambda: tf.cos(a))

    return f(tf.exp(x)) + tf.tanh(x)


@entry(x=X)
def compiled(kit: Any, x: Any) -> Any:
    @tf.function(jit_compile=True)
    def f(a: Any) -> Any:
        return tf.tanh(a) * 2.0 + a

    return f(tf.sin(x)) - 1.0


@entry(k=WORDS, table=True)
def stateful_function(kit: Any, k: Any) -> Any:
    """In a graph of TensorFlow 1 nobody awaits it, so that a Session does not inline it."""

    @tf.function
    def look(keys: Any) -> Any:
        return kit.table.lookup(tf.strings.lower(keys)), tf.strings.length(keys)

    found, length = look(k)
    return {"y": tf.tanh(found) * 2.0, "z": tf.cast(length, tf.float32) + found}


@entry(k=WORDS, x=X, table=True)
def some_awaited_some_not(kit: Any, k: Any, x: Any) -> Any:
    @tf.function
    def look(keys: Any) -> Any:
        return kit.table.lookup(keys)

    one = look(k)
    with tf.control_dependencies([one.op]):
        two = look(tf.strings.lower(k))
    return {"y": one + two, "z": tf.sin(x)}


def _with_a_saved_model(kit: Any) -> None:
    """A loaded model: a call makes its table."""
    inner = tf.Module()
    inner.table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(["cat"]), tf.constant([1.5])), -1.0
    )
    inner.serve = tf.function(
        lambda k: inner.table.lookup(k), input_signature=[tf.TensorSpec([None], tf.string)]
    )
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(inner, folder)
        kit.module.loaded = tf.saved_model.load(folder)


@entry(k=WORDS, x=X, tf1=False, prepare=_with_a_saved_model)
def table_of_a_saved_model(kit: Any, k: Any, x: Any) -> Any:
    return tf.reduce_sum(kit.module.loaded.serve(tf.strings.lower(k))) * tf.cos(x)


def _with_a_wrapped_graph(kit: Any) -> None:
    """A graph of TensorFlow 1 as a function: its loop and branch in pieces."""

    def graph(x: Any) -> Any:
        turned = tf1.while_loop(
            lambda i, *_: i < 3, lambda i, a, b: (i + 1, tf.tanh(a), b + 1.0), [0, x, tf.exp(x)]
        )
        return turned[1] * tf1.cond(tf.reduce_sum(x) > 0.0, lambda: x + 1.0, lambda: x * 2.0)

    tf1.disable_control_flow_v2()
    kit.module.graph = tf1.wrap_function(graph, [tf.TensorSpec([3, 4], tf.float32)])
    tf1.enable_control_flow_v2()


@entry(x=X, tf1=False, prepare=_with_a_wrapped_graph)
def wrapped_graph(kit: Any, x: Any) -> Any:
    return tf.sin(kit.module.graph(tf.cos(x)))


def _with_a_stateful_graph(kit: Any) -> None:
    """Nobody awaits the lookups in a wrapped graph, so that a Session does not inline it."""
    spec = tf.TensorSpec([None], tf.string)
    kit.module.graph = tf1.wrap_function(lambda k: kit.table.lookup(k), [spec])


@entry(k=WORDS, tf1=False, table=True, prepare=_with_a_stateful_graph)
def wrapped_lookup(kit: Any, k: Any) -> Any:
    return tf.sin(kit.module.graph(tf.strings.lower(k))) + 1.0


@entry(x=X, tf1=False)
def custom_gradient(kit: Any, x: Any) -> Any:
    @tf.custom_gradient
    def f(a: Any) -> Any:
        return tf.math.log1p(tf.exp(a)), lambda d: d * 2.0

    return f(tf.sin(x)) * tf.cos(x)


@entry(x=X, tf1=False)
def python_loop_of_calls(kit: Any, x: Any) -> Any:
    @tf.function
    def step(a: Any, n: Any) -> Any:
        return tf.tanh(a) * tf.cast(n, tf.float32), n + 1

    n = tf.constant(1)
    for _ in range(3):
        x, n = step(x, n)
    return {"y": x, "n": n}
