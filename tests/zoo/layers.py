"""Small models from Keras layers: chains, branches, recurrence, mixed precision, both savers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf
from keras import layers

from tests.zoo import entry

_USERS = 500
_ITEMS = 800
_VOCABULARY = 200
_LENGTH = 12
_IMAGES = entry.images(32)


def _export(model: keras.Model, path: Path) -> None:
    model.export(path, format="tf_saved_model", verbose=False)


def _build(
    make: Callable[[], keras.Model], save: Callable[[keras.Model, Path], None] = _export
) -> Callable[[Path], None]:
    """A builder that randomises the model that `make` constructs, then saves it."""

    def build(path: Path) -> None:
        keras.utils.clear_session()
        model = make()
        entry.randomise(model.variables)
        save(model, path)

    return build


def _mlp() -> keras.Model:
    features = x = keras.Input((128,), name="features")
    for index in range(6):
        x = layers.Dense(256, activation="relu", name=f"dense_{index}")(x)
    return keras.Model(features, layers.Dense(10, name="logits")(x))


def _lstm() -> keras.Model:
    tokens = keras.Input((_LENGTH,), dtype="int32", name="tokens")
    x = layers.Embedding(_VOCABULARY, 32)(tokens)
    x = layers.Bidirectional(layers.LSTM(32, return_sequences=True))(x)
    x = layers.LSTM(48)(x)
    return keras.Model(tokens, layers.Dense(5, activation="softmax")(x))


def _conv_net() -> keras.Model:
    images = x = keras.Input((32, 32, 3), name="images")
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    skip = x
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Activation("swish")(x)
    x = layers.Conv2D(32, 1)(x)
    x = layers.GlobalAveragePooling2D()(layers.Add()([skip, x]))
    return keras.Model(images, layers.Dense(10, activation="softmax")(x))


def _build_keras_2(path: Path) -> None:
    """Of each LSTM and GRU Keras 2 saves a function for every kind of device."""
    import tf_keras  # Here, so that other models can be built where it is missing.

    tf_keras.backend.clear_session()
    tokens = tf_keras.Input((_LENGTH,), dtype="int32", name="tokens")
    x = tf_keras.layers.Embedding(_VOCABULARY, 16, mask_zero=True)(tokens)
    recurrent = tf_keras.layers.LSTM(12, return_sequences=True)
    x = tf_keras.layers.Bidirectional(recurrent)(x)
    *_, state = tf_keras.layers.LSTM(8, return_sequences=True, return_state=True)(x)
    x = tf_keras.layers.GRU(8)(x, initial_state=state)
    model = tf_keras.Model(tokens, tf_keras.layers.Dense(5, activation="softmax")(x))
    entry.randomise(model.variables)
    model.save(path, save_format="tf")


def _mixed_precision() -> keras.Model:
    policy = "mixed_bfloat16"
    images = x = keras.Input((32, 32, 3), name="images")
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3, strides=2, dtype=policy)(x)
        x = layers.BatchNormalization(dtype=policy)(x)
        x = layers.Activation("gelu", dtype=policy)(x)
    x = layers.Dense(64, activation="relu", dtype=policy)(layers.Flatten(dtype=policy)(x))
    return keras.Model(images, layers.Dense(10, activation="softmax", dtype="float32")(x))


def _two_tower() -> keras.Model:
    user = keras.Input((), dtype="int32", name="user")
    history = keras.Input((_LENGTH,), dtype="int32", name="history")
    item = keras.Input((), dtype="int32", name="item")
    items = layers.Embedding(_ITEMS, 64, name="items")
    watched = layers.GlobalAveragePooling1D()(items(history))
    query = layers.Concatenate()([layers.Embedding(_USERS, 64, name="users")(user), watched])
    candidate = items(item)
    for width in (256, 128, 64):
        query = layers.Dense(width, activation="relu")(query)
        candidate = layers.Dense(width, activation="relu")(candidate)
    score = layers.Dot(axes=1)([query, candidate])
    return keras.Model([user, history, item], {"score": score, "query": query})


def _ensemble() -> keras.Model:
    images = keras.Input((32, 32, 3), name="images")
    shared = layers.Conv2D(16, 3, strides=2, activation="relu")(images)
    votes = []
    for index, size in enumerate((1, 3, 5, 7)):
        x = shared
        for _ in range(3):
            x = layers.Conv2D(32, size, padding="same", activation="relu")(x)
        x = layers.GlobalAveragePooling2D()(x)
        votes.append(layers.Dense(10, activation="softmax", name=f"head_{index}")(x))
    outputs = {f"head_{index}": vote for index, vote in enumerate(votes)}
    return keras.Model(images, {**outputs, "mean": layers.Average()(votes)})


ENTRIES = {
    "mlp": entry.ZooEntry(
        _build(_mlp), {"features": entry.uniform(128)}, note="a chain: nothing to run in parallel"
    ),
    "lstm": entry.ZooEntry(
        _build(_lstm),
        {"tokens": entry.ids(_LENGTH, size=_VOCABULARY)},
        note="three LSTMs, each a While; two of them side by side",
    ),
    "keras_2": entry.ZooEntry(
        _build_keras_2,
        {"tokens": entry.ids(_LENGTH, size=_VOCABULARY)},
        note="recurrent layers of Keras 2: calls with several implementations, which stay calls",
        small=False,
    ),
    "conv_net_export": entry.ZooEntry(
        _build(_conv_net), {"images": _IMAGES}, note="convolutions, saved by Keras export"
    ),
    "conv_net_saved": entry.ZooEntry(
        _build(_conv_net, tf.saved_model.save),
        {"inputs": _IMAGES},
        note="the same network, saved by tf.saved_model.save",
        # It restores copies of the variables that the graph reads: keras-team/keras#19274.
        servable=False,
    ),
    "mixed_precision": entry.ZooEntry(
        _build(_mixed_precision), {"images": _IMAGES}, note="mixed_bfloat16: float32 weights, casts"
    ),
    "two_tower": entry.ZooEntry(
        _build(_two_tower),
        {
            "user": entry.ids(size=_USERS),
            "history": entry.ids(_LENGTH, size=_ITEMS),
            "item": entry.ids(size=_ITEMS),
        },
        note="recommender: two towers that meet at the end and share an embedding; two outputs",
    ),
    "ensemble": entry.ZooEntry(
        _build(_ensemble), {"images": _IMAGES}, note="four wide branches, five outputs"
    ),
}
