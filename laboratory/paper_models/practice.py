"""What services run: recommenders with tables of any size, an ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import layers, ops

from laboratory.paper_models.model import PaperModel

_TABLES = (
    45_833_188, 36_746, 17_245, 7_413, 20_243, 3, 7_114, 1_441, 62, 29_275_261, 1_572_176, 345_138,
    10, 2_209, 11_267, 128, 4, 974, 14, 48_937_457, 11_316_796, 40_094_537, 452_104, 12_606, 104,
    35,
)  # fmt: skip
"""Rows for the features of Criteo's terabyte; with 128 floats each the largest one takes 25 GB."""
_BATCH = 2048


def dlrm() -> Any:
    """Tables beside a dense part; their vectors meet in pairs."""
    dense = keras.Input(batch_shape=(_BATCH, 13), name="numbers")
    x = dense
    for width in (512, 256, 128):
        x = layers.Dense(width, activation="relu")(x)
    vectors, features = [x], [dense]
    for number, rows in enumerate(_TABLES):
        feature = keras.Input(batch_shape=(_BATCH,), dtype="int32", name=f"id_{number}")
        vectors.append(layers.Embedding(rows, 128)(feature))
        features.append(feature)
    together = ops.stack(vectors, axis=1)
    products = ops.matmul(together, ops.transpose(together, (0, 2, 1)))
    count = len(vectors)
    pairs = [i * count + k for i in range(count) for k in range(i)]
    x = layers.Concatenate()([x, ops.take(ops.reshape(products, (_BATCH, -1)), pairs, axis=1)])
    for width in (1024, 1024, 512, 256):
        x = layers.Dense(width, activation="relu")(x)
    return keras.Model(features, layers.Dense(1, activation="sigmoid")(x))


def two_tower() -> Any:
    """Users and items through layers of their own."""
    towers, features = [], []
    for name, rows in (("user", 10_000_000), ("item", 2_000_000)):
        identity = keras.Input(batch_shape=(_BATCH,), dtype="int32", name=f"{name}_id")
        facts = keras.Input(batch_shape=(_BATCH, 256), name=f"{name}_facts")
        x = layers.Concatenate()([layers.Embedding(rows, 256)(identity), facts])
        for width in (2048, 2048, 1024, 256):
            x = layers.Dense(width, activation="relu")(x)
        features += [identity, facts]
        towers.append(x)
    return keras.Model(features, layers.Dot(1)(towers))


def ensemble() -> Any:
    """Eight networks of different make on one image; their mean decides."""
    image = keras.Input(batch_shape=(8, 224, 224, 3), name="images")
    makes = (
        "ResNet50", "ResNet101", "InceptionV3", "DenseNet121", "MobileNetV2", "NASNetMobile",
        "VGG16", "Xception",
    )  # fmt: skip
    votes = []
    for name in makes:
        network = getattr(keras.applications, name)(weights=None, input_shape=(224, 224, 3))
        votes.append(network(image))
    return keras.Model(image, layers.Average()(votes))


MODELS: Mapping[str, PaperModel] = {
    "dlrm": PaperModel(
        dlrm, "Naumov et al. 2019, arXiv 1906.00091, at the sizes of MLPerf inference v1.0"
    ),
    "two_tower": PaperModel(two_tower, "Yi et al. 2019, doi 10.1145/3298689.3346996, own sizes"),
    "ensemble_8": PaperModel(ensemble, "networks of keras.applications, each with its paper"),
}
"""By name."""
