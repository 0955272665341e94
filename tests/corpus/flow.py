"""Loops and branches, with what nobody reads of them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tests.corpus.entry import entry, floats, ints

X = floats(3, 4)


@entry(x=X)
def plain_while(kit: Any, x: Any) -> Any:
    return tf.while_loop(lambda i, v: i < 5, lambda i, v: (i + 1, v * 0.5 + tf.sin(v)), [0, x])[1]


@entry(x=X)
def unread_variable(kit: Any, x: Any) -> Any:
    unread = tf.exp(tf.cos(x))
    return tf.while_loop(
        lambda i, v, u: i < 3, lambda i, v, u: (i + 1, tf.tanh(v), u + 1.0), [0, tf.sin(x), unread]
    )[1]


@entry(x=X)
def limited_while(kit: Any, x: Any) -> Any:
    return tf.while_loop(
        lambda v: tf.reduce_sum(v) < 100.0, lambda v: [v * v + 1.0], [x], maximum_iterations=4
    )[0]


@entry({"w": (4, 4)}, x=X)
def while_with_a_weight(kit: Any, x: Any) -> Any:
    first = [0, tf.tanh(x)]
    return tf.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, tf.tanh(v @ kit.w)), first)[1]


@entry(x=X)
def nested_whiles(kit: Any, x: Any) -> Any:
    def outer(i: Any, v: Any, u: Any) -> Any:
        inner = tf.while_loop(lambda j, _: j < i, lambda j, w: (j + 1, tf.sin(w) + v), [0, v])
        return i + 1, inner[1], u + inner[1]

    return tf.while_loop(lambda i, *_: i < 3, outer, [0, x, tf.exp(x)])[1]


@entry(x=X)
def two_branches(kit: Any, x: Any) -> Any:
    y, z = tf.exp(tf.tanh(x)), tf.sin(x)
    kept, other = tf.cond(tf.reduce_sum(x) > 0.0, lambda: (x + z, y * 2.0), lambda: (z, y))
    return {"kept": kept * 2.0, "both": other + kept}


@entry(x=X)
def unread_branch(kit: Any, x: Any) -> Any:
    y, z = tf.exp(tf.tanh(x)), tf.sin(x)
    return tf.cond(tf.reduce_sum(x) > 0.0, lambda: (x + z, y * 2.0), lambda: (z, y))[0] * 3.0


@entry(x=X, n=ints(size=3))
def many_branches(kit: Any, x: Any, n: Any) -> Any:
    one, two = tf.exp(x), tf.cos(x)
    kept = tf.switch_case(n, [lambda: (x, one), lambda: (two, one), lambda: (x * two, x)])
    return kept[0] - 1.0


@entry(x=X)
def loop_in_a_branch(kit: Any, x: Any) -> Any:
    def turn() -> Any:
        return tf.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v + tf.cos(v)), [0, x])[1]

    return tf.cond(tf.reduce_max(x) > 0.0, turn, lambda: tf.sin(x)) + 1.0


@entry(x=X)
def mapped(kit: Any, x: Any) -> Any:
    rows = tf.map_fn(lambda row: tf.cumsum(row) * 2.0, x)
    return {"rows": rows, "sums": tf.scan(lambda a, row: a + row, x),
            "last": tf.foldl(lambda a, row: tf.tanh(a + row), x)}  # fmt: skip


@entry(x=X, tf1=False)
def autograph(kit: Any, x: Any) -> Any:
    i, s = tf.constant(0), tf.sin(x)
    while i < 3:
        s = tf.tanh(s) + 1.0
        i += 1
    for j in tf.range(3):
        s = s + tf.cast(j, tf.float32)
        if tf.reduce_sum(s) > 10.0:
            s = s * 0.5
    for row in x:
        s = s + row
    return s


@entry({"v": ()}, x=X, tf1=False)
def counter(kit: Any, x: Any) -> Any:
    before = kit.v.read_value()
    for _ in tf.range(2):
        kit.v.assign_add(1.0)
    after = kit.v.read_value()
    kit.v.assign(before)
    return {"y": x * (after - before), "z": tf.cos(x)}


@entry(x=X)
def gradients(kit: Any, x: Any) -> Any:
    y = tf.tanh(x) * tf.sin(x) + tf.nn.softmax(x)
    (slope,) = tf.gradients(y, x)
    return {"y": y, "slope": slope}


@entry(x=floats(2, 3, 4))
def recurrent(kit: Any, x: Any) -> Any:
    steps = tf.transpose(x, [1, 0, 2])
    array = tf.TensorArray(tf.float32, 3, element_shape=[2, 4]).unstack(steps)
    out = tf.TensorArray(tf.float32, 3, element_shape=[2, 4])

    def body(t: Any, h: Any, out: Any) -> Any:
        h = tf.tanh(array.read(t) + h * 0.5)
        return t + 1, h, out.write(t, h)

    _, h, out = tf.while_loop(lambda t, *_: t < 3, body, [0, tf.zeros([2, 4]), out])
    return {"last": h * 2.0, "all": tf.transpose(out.stack(), [1, 0, 2])}
