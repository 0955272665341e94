"""What an entry of the zoo is: how to build it, how to feed it, and how weights are drawn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Feature = Callable[[np.random.Generator, int], np.ndarray]
"""Draws one input tensor for a batch size."""

SEED = 2024
"""Where the weights of every model come from."""


@dataclasses.dataclass(frozen=True)
class ZooEntry:
    """A real model: `build` writes it as a SavedModel directory, `inputs` feeds it."""

    build: Callable[[Path], None]
    """Writes the SavedModel, all weights randomised from a fixed seed; the path must not exist."""
    features: Mapping[str, Feature]
    """By input name of `signature`: the right types, shapes and ranges of values."""
    note: str
    """What the model has that others have not."""
    small: bool = True
    """Built in a few seconds, so that every run of the tests can have it."""
    signature: str = "serving_default"
    tags: tuple[str, ...] = ("serve",)
    servable: bool = True
    """A Session and TensorFlow Serving can run it, not only `tf.saved_model.load`."""
    batch: int = 2
    """A batch size that suits the model."""

    def inputs(self, seed: int = 0, batch: int | None = None) -> dict[str, np.ndarray]:
        """Arrays by input name; the same seed and batch size give the same values."""
        rng = np.random.default_rng(seed)
        size = self.batch if batch is None else batch
        return {name: draw(rng, size) for name, draw in self.features.items()}


def rng() -> np.random.Generator:
    """The generator that a model's weights come from; every build starts it anew."""
    return np.random.default_rng(SEED)


def randomise(variables: Iterable[Any]) -> None:
    """Gives every floating-point variable random values that keep deep activations finite.

    Fresh weights are zeros and ones in many places, and constant folding then removes whole
    operations: a model nobody runs. Counters and random states keep their integers.
    """
    generator = rng()
    for variable in variables:
        if "float" in str(variable.dtype):
            name = getattr(variable, "path", variable.name)
            variable.assign(weight(generator, tuple(variable.shape), name))


def weight(generator: np.random.Generator, shape: Sequence[int], name: str = "") -> np.ndarray:
    """Random float32 values for one weight, by its role.

    Variances and scales lie in [0.5, 1.5]; other vectors are small; matrices and filters have
    variance 2 / fan-in (He et al., 2015). A filter whose last dimension is 1 is depthwise.
    """
    role = name.rpartition("/")[2]
    if "variance" in role or role in {"gamma", "scale"}:
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) < 2:
        return generator.normal(0.0, 0.1, shape).astype(np.float32)
    depthwise = len(shape) == 4 and shape[-1] == 1
    fan_in = math.prod(shape[:2] if depthwise else shape[:-1])
    return generator.normal(0.0, math.sqrt(2.0 / fan_in), shape).astype(np.float32)


def uniform(*shape: int, low: float = -1.0, high: float = 1.0) -> Feature:
    """float32 values in [low, high), shaped [batch, *shape]."""
    return lambda generator, batch: generator.uniform(low, high, (batch, *shape)).astype(np.float32)


def images(size: int, brightest: float = 1.0) -> Feature:
    """float32 patches of random colours under noise, [batch, size, size, 3].

    Noise alone looks alike to a network that averages over the image.
    """
    patch = np.arange(size) * 4 // size

    def draw(generator: np.random.Generator, batch: int) -> np.ndarray:
        colours = generator.uniform(-1.0, 1.0, (batch, 4, 4, 3))[:, patch][:, :, patch]
        noise = generator.uniform(-1.0, 1.0, (batch, size, size, 3))
        return (brightest * (colours + noise) / 2).astype(np.float32)

    return draw


def ids(*shape: int, size: int, dtype: type = np.int32) -> Feature:
    """Integers in [0, size), such as token ids in a vocabulary, shaped [batch, *shape]."""
    return lambda generator, batch: generator.integers(0, size, (batch, *shape)).astype(dtype)


def padding_mask(length: int) -> Feature:
    """int32 ones for at least half of a sequence, then zeros, shaped [batch, length]."""

    def draw(generator: np.random.Generator, batch: int) -> np.ndarray:
        lengths = generator.integers(length // 2, length, (batch, 1), endpoint=True)
        return (np.arange(length) < lengths).astype(np.int32)

    return draw


def words(*shape: int, vocabulary: Sequence[str]) -> Feature:
    """Byte strings of a vocabulary, shaped [batch, *shape]."""
    table = np.array([word.encode() for word in vocabulary], dtype=object)
    return lambda generator, batch: generator.choice(table, (batch, *shape))


def scalar(draw: Callable[[np.random.Generator], Any], dtype: type) -> Feature:
    """One value without a batch dimension, such as the choice of a branch."""
    return lambda generator, batch: np.array(draw(generator), dtype=dtype)
