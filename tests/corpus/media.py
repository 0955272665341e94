"""Layers of networks, and images."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tests.corpus.entry import entry, floats

IMAGE = floats(1, 8, 8, 3, low=0.0, high=1.0)


@entry({"filter": (3, 3, 3, 4), "depth": (3, 3, 4, 1), "up": (3, 3, 3, 4), "bias": (4,)}, x=IMAGE)
def convolutions(kit: Any, x: Any) -> Any:
    y = tf.nn.bias_add(tf.nn.conv2d(x, kit.filter, 2, "SAME"), kit.bias)
    deep = tf.nn.depthwise_conv2d(y, kit.depth, [1, 1, 1, 1], "SAME")
    wide = tf.nn.conv2d_transpose(deep, kit.up, [1, 8, 8, 3], 2)
    return {"y": tf.nn.relu(y), "wide": wide, "grown": tf.nn.dilation2d(
            x, kit.up[..., 0], [1, 1, 1, 1], "SAME", "NHWC", [1, 1, 1, 1])}  # fmt: skip


@entry({"filter": (2, 2, 2, 1, 3)}, x=floats(1, 4, 4, 4, 1))
def volumes(kit: Any, x: Any) -> Any:
    y = tf.nn.conv3d(x, kit.filter, [1, 1, 1, 1, 1], "SAME")
    return {"top": tf.nn.max_pool3d(y, 2, 2, "VALID"), "mean": tf.nn.avg_pool3d(y, 2, 2, "SAME")}


@entry(x=IMAGE)
def pools(kit: Any, x: Any) -> Any:
    top, places = tf.nn.max_pool_with_argmax(x, 2, 2, "SAME")
    local = tf.nn.local_response_normalization(x)
    mean = tf.nn.avg_pool2d(local, 2, 2, "SAME")
    return {"y": top + tf.nn.max_pool2d(x, 2, 2, "SAME") * mean, "places": places}


@entry({"scale": (3,), "offset": (3,)}, x=IMAGE)
def norms(kit: Any, x: Any) -> Any:
    mean, variance = tf.nn.moments(x, [0, 1, 2])
    fused, _, _ = tf.compat.v1.nn.fused_batch_norm(
        x, kit.scale, kit.offset, mean, variance, is_training=False
    )
    plain = tf.nn.batch_normalization(x, mean, variance, kit.offset, kit.scale, 1e-3)
    return {"fused": tf.nn.relu(fused), "plain": plain, "unit": tf.math.l2_normalize(x, -1)}


@entry(x=IMAGE)
def resizes(kit: Any, x: Any) -> Any:
    soft = tf.image.resize(x, [5, 6]) + tf.image.resize(x, [5, 6], "nearest")
    sharp = tf.image.resize(x, [5, 6], "bicubic") + tf.image.resize(x, [5, 6], "area")
    exact = tf.image.resize(x, [5, 6], "lanczos3", antialias=True)
    return {"y": soft * sharp + exact, "crop": tf.image.crop_and_resize(
            x, [[0.1, 0.2, 0.8, 0.9]], [0], [4, 4])}  # fmt: skip


@entry(x=IMAGE)
def colours(kit: Any, x: Any) -> Any:
    turned = tf.image.hsv_to_rgb(tf.image.rgb_to_hsv(x) * 0.9)
    strong = tf.image.adjust_contrast(tf.image.adjust_hue(x, 0.1), 1.5)
    grey = tf.image.rgb_to_grayscale(tf.image.adjust_saturation(x, 0.4))
    return {"y": turned + strong, "grey": grey, "flip": tf.image.flip_left_right(x),
            "whitened": tf.image.per_image_standardization(x)}  # fmt: skip


@entry(x=IMAGE)
def patches(kit: Any, x: Any) -> Any:
    cut = tf.image.extract_patches(x, [1, 2, 2, 1], [1, 2, 2, 1], [1, 1, 1, 1], "VALID")
    drawn = tf.image.draw_bounding_boxes(x, [[[0.1, 0.1, 0.7, 0.7]]], [[1.0, 0.0, 0.0]])
    edges = tf.image.sobel_edges(x)
    return {"cut": cut, "drawn": drawn, "edges": edges}


@entry(x=floats(6, 4, low=0.0, high=1.0), score=floats(6, low=0.0, high=1.0))
def suppression(kit: Any, x: Any, score: Any) -> Any:
    boxes = tf.concat([x[:, :2], x[:, :2] + x[:, 2:]], 1)
    kept = tf.image.non_max_suppression(boxes, score, 4, 0.5)
    padded, count = tf.raw_ops.NonMaxSuppressionV4(
        boxes=boxes, scores=score, max_output_size=5, iou_threshold=0.4, score_threshold=0.1,
        pad_to_max_output_size=True,
    )  # fmt: skip
    return {"kept": tf.gather(boxes, kept), "padded": padded, "count": count}


@entry(x=IMAGE)
def files(kit: Any, x: Any) -> Any:
    pixels = tf.cast(tf.clip_by_value(x[0], 0.0, 1.0) * 255.0, tf.uint8)
    png = tf.io.decode_png(tf.io.encode_png(pixels), 3)
    jpeg = tf.io.decode_jpeg(tf.io.encode_jpeg(pixels), channels=3)
    return {"png": tf.image.convert_image_dtype(png, tf.float32), "jpeg": jpeg}


@entry(x=floats(4, 2, 5))
def beams(kit: Any, x: Any) -> Any:
    (greedy,), score = tf.nn.ctc_greedy_decoder(x, [4, 4])
    return {"values": greedy.values, "score": score}


@entry(x=floats(16))
def sounds(kit: Any, x: Any) -> Any:
    frames = tf.signal.frame(x, 8, 4) * tf.signal.hann_window(8)
    power = tf.abs(tf.signal.stft(x, 8, 4))
    return {"frames": frames, "power": power, "cosines": tf.signal.dct(frames)}
