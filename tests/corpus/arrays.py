"""Functions that move elements: shapes, slices, gathers, segments, ragged and sparse tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tests.corpus.entry import entry, floats, ints

X = floats(3, 4)


@entry(x=X)
def shapes(kit: Any, x: Any) -> Any:
    flat = tf.reshape(x, [-1])
    tall = tf.squeeze(tf.expand_dims(x, 0), [0])
    sizes = tf.shape(x) + tf.stack(tf.shape_n([x, x])[1])
    return {"flat": tf.reshape(flat, tf.shape(x)) + tall, "sizes": sizes,
            "rank": tf.rank(x) + tf.size(x)}  # fmt: skip


@entry(x=X)
def joins_and_splits(kit: Any, x: Any) -> Any:
    left, right = tf.split(x, 2, 1)
    one, two = tf.split(x, [1, 3], 1)
    rows = tf.unstack(tf.ensure_shape(x, [3, 4]), axis=0)
    whole = tf.concat([right, left, one, two], 1)
    return {"whole": whole, "rows": tf.stack(rows[::-1]), "tiled": tf.tile(x, [2, 1])}


@entry(x=X)
def slices(kit: Any, x: Any) -> Any:
    inner = tf.slice(x, [0, 1], [2, 3]) + x[1:, :-1]
    padded = tf.pad(inner, [[1, 0], [0, 1]]) + tf.pad(inner, [[0, 1], [1, 0]], constant_values=2.0)
    mirrored = tf.pad(x, [[1, 1], [1, 1]], "REFLECT")
    return {"padded": padded, "mirrored": mirrored, "turned": tf.reverse(x, [1]) + tf.roll(x, 1, 0)}


@entry(x=X, n=ints(size=4))
def made_up(kit: Any, x: Any, n: Any) -> Any:
    line = tf.linspace(0.0, 1.0, 4) + tf.cast(tf.range(0, 8, 2), tf.float32)
    filled = tf.fill(tf.shape(x), 2.5) + tf.zeros_like(x) + tf.ones_like(x)
    hot = tf.one_hot(tf.range(3), 4, on_value=2.0)
    spread = tf.broadcast_to(line, [3, 4])
    shape = tf.broadcast_dynamic_shape(tf.shape(x), tf.shape(line))
    return {"a": filled + hot + spread, "b": shape, "c": tf.range(n), "d": tf.eye(3, 4) * x}


@entry({"w": (6, 4)}, x=X, i=ints(5, size=3))
def gathers(kit: Any, x: Any, i: Any) -> Any:
    rows = tf.gather(x, i)
    points = tf.gather_nd(x, tf.stack([i, i], 1))
    found = tf.nn.embedding_lookup(kit.w, i)
    return {"rows": rows + found, "points": points, "batch": tf.gather(x, [[0], [1], [2]],
            batch_dims=1)}  # fmt: skip


@entry(x=X, i=ints(3, 1, size=3))
def scatters(kit: Any, x: Any, i: Any) -> Any:
    new = tf.scatter_nd(i, x, [5, 4])
    kept = tf.tensor_scatter_nd_add(new, i, x) + tf.tensor_scatter_nd_sub(new, i, x * 2.0)
    ends = tf.tensor_scatter_nd_max(new, i, x) - tf.tensor_scatter_nd_min(new, i, x)
    order = tf.math.invert_permutation(tf.constant([2, 0, 1]))
    changed = tf.tensor_scatter_nd_update(x, [[0]], x[1:2])
    return {"kept": kept + ends, "changed": tf.gather(changed, order)}


@entry(x=X, ids=ints(6, size=3))
def segments(kit: Any, x: Any, ids: Any) -> Any:
    data = tf.gather(x, ids)
    line = tf.constant([0, 0, 1, 1, 1, 2])
    near = tf.math.segment_sum(data, line) + tf.math.segment_mean(data, line)
    far = tf.math.segment_max(data, line) - tf.math.segment_min(data, line)
    loose = tf.math.unsorted_segment_sum(data, ids, 3) + tf.math.unsorted_segment_max(data, ids, 3)
    more = tf.math.unsorted_segment_prod(data, ids, 3) - tf.math.unsorted_segment_min(data, ids, 3)
    some = tf.sparse.segment_sum(x, [0, 1, 2], [0, 0, 1]) + tf.sparse.segment_mean(
        x, [0, 1, 2], [0, 0, 1]
    )
    return {"a": near * far, "b": loose + more, "c": some + tf.math.segment_prod(x, [0, 0, 1]),
            "d": tf.sparse.segment_sqrt_n(x, [0, 1], [0, 1])}  # fmt: skip


@entry(i=ints(9, size=5))
def sets(kit: Any, i: Any) -> Any:
    values, places = tf.unique(i)
    same, _, counts = tf.unique_with_counts(i)
    rest, _ = tf.raw_ops.ListDiff(x=tf.range(8), y=i)
    sorted_ = tf.sort(values)
    return {
        "places": places,
        "counts": counts * same,
        "rest": rest,
        "where": tf.where(i > 2),
        "bins": tf.math.bincount(i, minlength=5),
        "low": tf.searchsorted(sorted_, i) + tf.searchsorted(sorted_, i, side="right"),
    }


@entry(x=X, i=ints(3, size=2))
def partitions(kit: Any, x: Any, i: Any) -> Any:
    one, two = tf.dynamic_partition(x, i, 2)
    back = tf.dynamic_partition(tf.range(3), i, 2)
    return {"y": tf.dynamic_stitch(back, [tf.exp(one), tf.sin(two)]),
            "n": tf.raw_ops.ParallelDynamicStitch(indices=back, data=[one, two])}  # fmt: skip


@entry(x=floats(2, 4, 4, 4))
def blocks(kit: Any, x: Any) -> Any:
    deep = tf.nn.space_to_depth(x, 2)
    batch = tf.space_to_batch(x, [2, 2], [[0, 0], [0, 0]])
    return {"deep": tf.nn.depth_to_space(deep * 2.0, 2),
            "batch": tf.batch_to_space(tf.tanh(batch), [2, 2], [[0, 0], [0, 0]]),
            "late": tf.reverse_sequence(x, [2, 3], seq_axis=1, batch_axis=0)}  # fmt: skip


@entry(x=floats(6), lengths=ints(3, size=3))
def ragged(kit: Any, x: Any, lengths: Any) -> Any:
    splits = tf.concat([[0], tf.cumsum(lengths)], 0)
    rows = tf.RaggedTensor.from_row_splits(tf.gather(x, tf.range(splits[-1])), splits)
    doubled = tf.concat([rows, rows * 2.0], 1)
    picked = tf.gather(doubled, [1, 0])
    return {"dense": doubled.to_tensor(-1.0), "sum": tf.reduce_sum(doubled, 1),
            "picked": picked.values, "ranges": tf.ragged.range(lengths).values,
            "sparse": tf.sparse.reduce_sum(rows.to_sparse(), 1)}  # fmt: skip


@entry(x=floats(4), rows=ints(4, size=3, dtype=np.int64), y=X)
def sparse(kit: Any, x: Any, rows: Any, y: Any) -> Any:
    places = tf.stack([rows, tf.range(4, dtype=tf.int64) % 3], 1)
    a = tf.sparse.reorder(tf.SparseTensor(places, x, [3, 3]))
    filled, empty = tf.sparse.fill_empty_rows(a, 7.0)
    both = tf.sparse.concat(1, [a, filled])
    part = tf.sparse.slice(both, [0, 1], [3, 4])
    return {
        "product": tf.sparse.sparse_dense_matmul(a, y),
        "dense": tf.sparse.to_dense(filled, validate_indices=False) * 2.0,
        "empty": empty,
        "part": tf.sparse.reduce_sum(part, 1),
        "rest": tf.sparse.reduce_max(tf.sparse.transpose(a), 0),
        "soft": tf.sparse.softmax(filled).values,
    }


@entry(x=floats(2, 3), y=floats(2, 3))
def checks(kit: Any, x: Any, y: Any) -> Any:
    with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(x), tf.shape(y))]):
        sum_ = tf.identity(x + y)
    numbers = tf.debugging.check_numerics(sum_, "not a number")
    return {"y": numbers, "z": tf.stop_gradient(x) * tf.grad_pass_through(tf.round)(y)}


@entry(x=X)
def lists(kit: Any, x: Any) -> Any:
    array = tf.TensorArray(tf.float32, 3, element_shape=[4], clear_after_read=False).unstack(x)
    other = tf.TensorArray(tf.float32, 2, element_shape=[4]).write(1, tf.exp(array.read(0)))
    other = other.write(0, tf.sin(array.read(2)))
    return {"y": other.stack(), "z": array.gather([2, 1]), "n": array.size()}
