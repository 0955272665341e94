"""The models of the benchmarks: chains, branches, towers, transformers, tables.

Sizes are chosen so that one inference takes some tenths of a second on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from tests.zoo import application, entry
from tests.zoo.transformers import builder

_TEXT = {"vocabulary_size": 1000, "num_heads": 4, "hidden_dim": 256, "intermediate_dim": 1024}
_LENGTH = 128
_VECTOR = 64
"""Elements of a row of an embedding table."""


@dataclass(frozen=True)
class ClusterModel:
    """A model and the inputs that it is placed for."""

    build: Callable[[Path], None]
    batch_size: int
    """On workers."""
    gpu_batch_size: int
    """On emulated GPUs, some ten times as fast as a core."""
    sequences: tuple[str, ...] = ()
    """Inputs whose second dimension is a length."""
    wide: bool = False
    """Whether it has branches that can run side by side all the way."""
    gpu_memory_bytes: int | None = None
    """Capacity of emulated GPUs instead of their own: some models are to fit on none."""

    def input_shapes(self, batch_size: int) -> tuple[str, ...]:
        """Shapes of the inputs that have a length."""
        return tuple(f"{name}={batch_size},{_LENGTH}" for name in self.sequences)


def _image_model(
    name: str, size: int, batch: int, gpu_batch: int, *, wide: bool = False
) -> ClusterModel:
    return ClusterModel(application(name, size).build, batch, gpu_batch, wide=wide)


def _text_model(
    make: Callable[[Any], keras.Model], batch: int, gpu_batch: int, *inputs: str
) -> ClusterModel:
    return ClusterModel(builder(make), batch, gpu_batch, inputs)


def _keras_model(
    make: Callable[[], keras.Model],
    batch: int,
    gpu_batch: int,
    *,
    wide: bool = False,
    gpu_memory_bytes: int | None = None,
) -> ClusterModel:
    def build(path: Path) -> None:
        keras.utils.clear_session()
        model = make()
        entry.randomise(model.variables)
        model.export(path, format="tf_saved_model", verbose=False)

    return ClusterModel(build, batch, gpu_batch, wide=wide, gpu_memory_bytes=gpu_memory_bytes)


def _two_tower() -> keras.Model:
    """A recommender: users and items through wide layers of their own, then a score."""
    towers, features = [], []
    for name in ("user", "item"):
        feature = keras.Input((512,), name=name)
        tensor = feature
        for width in (2048, 2048, 1024, 256):
            tensor = keras.layers.Dense(width, activation="relu")(tensor)
        features.append(feature)
        towers.append(tensor)
    return keras.Model(features, keras.layers.Dot(1)(towers))


def _dlrm() -> keras.Model:
    """A recommender whose largest table fits on none of the GPUs it is measured on."""
    dense = keras.Input((64,), name="numbers")
    vectors, features = [keras.layers.Dense(_VECTOR, activation="relu")(dense)], [dense]
    for number, rows in enumerate((1_600_000, 100_000, 100_000, 50_000, 50_000, 10_000)):
        feature = keras.Input((16,), dtype="int32", name=f"ids_{number}")
        looked_up = keras.layers.Embedding(rows, _VECTOR)(feature)
        vectors.append(keras.layers.GlobalAveragePooling1D()(looked_up))
        features.append(feature)
    pairs = [
        keras.layers.Dot(1)([one, other]) for i, one in enumerate(vectors) for other in vectors[:i]
    ]
    tensor = keras.layers.Concatenate()([*vectors, *pairs])
    for width in (2048, 2048, 1024):
        tensor = keras.layers.Dense(width, activation="relu")(tensor)
    return keras.Model(features, keras.layers.Dense(1, activation="sigmoid")(tensor))


def ensemble(nets: int) -> Callable[[Path], None]:
    """Builds so many convolutional nets on one image; their mean decides."""
    return _keras_model(lambda: _ensemble(nets), 8, 64, wide=True).build


def _ensemble(nets: int = 4) -> keras.Model:
    image = keras.Input((96, 96, 3), name="images")
    heads = []
    for _ in range(nets):
        tensor = image
        for filters in (32, 64, 128, 128):
            tensor = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(tensor)
            tensor = keras.layers.MaxPooling2D()(tensor)
        tensor = keras.layers.GlobalAveragePooling2D()(tensor)
        heads.append(keras.layers.Dense(100, activation="softmax")(tensor))
    return keras.Model(image, keras.layers.Average()(heads))


def _bert(models: Any) -> keras.Model:
    backbone = models.BertBackbone(**_TEXT, num_layers=4, max_sequence_length=_LENGTH)
    return models.BertTextClassifier(backbone, num_classes=3)


def _gpt2(models: Any) -> keras.Model:
    backbone = models.GPT2Backbone(**_TEXT, num_layers=4, max_sequence_length=_LENGTH)
    return models.GPT2CausalLM(backbone)


MODELS: Mapping[str, ClusterModel] = {
    "two_tower": _keras_model(_two_tower, 512, 4096, wide=True),
    "ensemble": _keras_model(_ensemble, 8, 64, wide=True),
    "inception_v3": _image_model("InceptionV3", 299, 8, 8, wide=True),
    "nasnet_mobile": _image_model("NASNetMobile", 224, 2, 16),
    "resnet50": _image_model("ResNet50", 224, 2, 16),
    "densenet121": _image_model("DenseNet121", 224, 2, 16),
    "mobilenet_v2": _image_model("MobileNetV2", 224, 8, 64),
    "efficientnet_b0": _image_model("EfficientNetB0", 224, 4, 32),
    "vgg16": _image_model("VGG16", 128, 2, 16),
    "bert": _text_model(_bert, 8, 64, "token_ids", "padding_mask", "segment_ids"),
    "gpt2": _text_model(_gpt2, 8, 64, "token_ids", "padding_mask"),
    # The largest table has 1,600,000 x 64 x 4 = 410 MB; the rest leaves the allocator some room.
    "dlrm": _keras_model(_dlrm, 512, 4096, gpu_memory_bytes=400_000_000),
}
"""By name."""
