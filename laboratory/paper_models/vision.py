"""Vision: Swin transformers, two convolutional networks of many branches, a U-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import keras
from keras import layers, ops

from laboratory.paper_models.model import PaperModel

_WINDOW = 7
_SWIN = "Liu et al. 2021, arXiv 2103.14030, section 3.3"


def swin(width: int, depths: Sequence[int], heads: int) -> Any:
    """Stages of window attention, every second block with shifted windows."""
    image = keras.Input(batch_shape=(1, 224, 224, 3), name="images")
    x = layers.Conv2D(width, 4, strides=4)(image)
    x = layers.LayerNormalization()(x)
    for stage, depth in enumerate(depths):
        if stage:
            x = _merged(x, width * 2**stage)
        for block in range(depth):
            shift = _WINDOW // 2 if block % 2 and x.shape[1] > _WINDOW else 0
            x = _swin_block(x, heads * 2**stage, shift)
    x = layers.GlobalAveragePooling2D()(layers.LayerNormalization()(x))
    return keras.Model(image, layers.Dense(1000)(x))


def _merged(x: Any, width: int) -> Any:
    """Neighbours of two by two become one of twice the width."""
    _, height, _, channels = x.shape
    x = ops.reshape(x, (1, height // 2, 2, height // 2, 2, channels))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 4, 2, 5)), (1, height // 2, height // 2, -1))
    return layers.Dense(width, use_bias=False)(layers.LayerNormalization()(x))


def _swin_block(x: Any, heads: int, shift: int) -> Any:
    _, height, _, width = x.shape
    count, size = height // _WINDOW, width // heads
    y = layers.LayerNormalization()(x)
    if shift:
        y = ops.roll(y, (-shift, -shift), (1, 2))
    y = ops.reshape(y, (count, _WINDOW, count, _WINDOW, width))
    y = ops.reshape(ops.transpose(y, (0, 2, 1, 3, 4)), (count**2, _WINDOW**2, width))
    query, key, value = (_heads(layers.Dense(width)(y), heads, size) for _ in range(3))
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) * size**-0.5
    y = ops.matmul(ops.softmax(_Bias()(scores)), value)
    y = ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (count, count, _WINDOW, _WINDOW, width))
    y = ops.reshape(ops.transpose(y, (0, 2, 1, 3, 4)), (1, height, height, width))
    if shift:
        y = ops.roll(y, (shift, shift), (1, 2))
    x += layers.Dense(width)(y)
    y = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
    return x + layers.Dense(width)(y)


class _Bias(layers.Layer):  # type: ignore[misc]  # Keras is seen as Any
    """What is added to scores for each pair of positions in a window, as inference keeps it."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.bias = self.add_weight(shape=(1, *shape[1:]))

    def call(self, scores: Any) -> Any:
        return scores + self.bias


def _heads(x: Any, heads: int, size: int) -> Any:
    return ops.transpose(ops.reshape(x, (-1, x.shape[1], heads, size)), (0, 2, 1, 3))


def application(name: str, size: int) -> Any:
    """A network of `keras.applications`."""
    image = keras.Input(batch_shape=(1, size, size, 3), name="images")
    return getattr(keras.applications, name)(weights=None, input_tensor=image)


def unet() -> Any:
    """Down four times and up again, each level joined with its like."""
    image = keras.Input(batch_shape=(1, 512, 512, 1), name="images")
    x, kept = image, []
    for width in (64, 128, 256, 512):
        x = _twice(x, width)
        kept.append(x)
        x = layers.MaxPooling2D()(x)
    x = _twice(x, 1024)
    for width in (512, 256, 128, 64):
        x = layers.Conv2DTranspose(width, 2, strides=2)(x)
        x = _twice(layers.Concatenate()([kept.pop(), x]), width)
    return keras.Model(image, layers.Conv2D(2, 1)(x))


def _twice(x: Any, width: int) -> Any:
    for _ in range(2):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    return x


MODELS: Mapping[str, PaperModel] = {
    "swin_t": PaperModel(partial(swin, 96, (2, 2, 6, 2), 3), _SWIN),
    "swin_s": PaperModel(partial(swin, 96, (2, 2, 18, 2), 3), _SWIN),
    "swin_b": PaperModel(partial(swin, 128, (2, 2, 18, 2), 4), _SWIN),
    "swin_l": PaperModel(partial(swin, 192, (2, 2, 18, 2), 6), _SWIN),
    "inception_v3": PaperModel(
        partial(application, "InceptionV3", 299), "Szegedy et al. 2015, arXiv 1512.00567"
    ),
    "nasnet_large": PaperModel(
        partial(application, "NASNetLarge", 331), "Zoph et al. 2018, arXiv 1707.07012"
    ),
    "unet": PaperModel(unet, "Ronneberger et al. 2015, arXiv 1505.04597, padded"),
}
"""By name."""
