"""Models written as `tf.Module`: each holds one structure that SavedModels have in the wild."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.zoo import entry

_WORDS = ("cat", "dog", "bird", "fish", "horse", "sheep", "cow", "duck")
_UNKNOWN_WORDS = ("yeti", "kraken")
_WIDTH = 64


class _Model(tf.Module):
    """A module whose weights are drawn in order from the zoo's generator."""

    def __init__(self) -> None:
        super().__init__()
        self._generator = entry.rng()

    def variable(self, *shape: int, role: str = "kernel") -> tf.Variable:
        return tf.Variable(entry.weight(self._generator, shape, role))

    def signatures(self) -> Mapping[str, tf.types.experimental.PolymorphicFunction]:
        return {"serving_default": self.serve}


def _build(make: Callable[[], _Model]) -> Callable[[Path], None]:
    """A builder that saves the module, custom gradients included."""

    def build(path: Path) -> None:
        model = make()
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
        tf.saved_model.save(model, str(path), model.signatures(), options)

    return build


def _floats(*shape: int | None, name: str = "x") -> tf.TensorSpec:
    return tf.TensorSpec([None, *shape], tf.float32, name)


class _Convolutions(_Model):
    """Batch norm as one operator, bias, residual, Gelu: what Keras 3 exports in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = [self.variable(3, 3, 3, 16), self.variable(3, 3, 16, 16)]
        self.scales = [self.variable(16, role="gamma") for _ in self.filters]
        self.offsets = [self.variable(16) for _ in self.filters]
        self.means = [self.variable(16) for _ in self.filters]
        self.variances = [self.variable(16, role="variance") for _ in self.filters]
        self.pointwise, self.bias = self.variable(1, 1, 16, 16), self.variable(16)
        self.dense = self.variable(16, 10)

    @tf.function(input_signature=[_floats(32, 32, 3, name="images")])
    def serve(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        x = images
        parts = (self.filters, self.scales, self.offsets, self.means, self.variances)
        for filters, scale, offset, mean, variance in zip(*parts, strict=True):
            x = tf.nn.conv2d(x, filters, strides=2, padding="SAME")
            x, *_ = tf.compat.v1.nn.fused_batch_norm(
                x, scale, offset, mean, variance, is_training=False
            )
            x = tf.nn.relu(x)
        y = tf.nn.bias_add(tf.nn.conv2d(x, self.pointwise, strides=1, padding="SAME"), self.bias)
        x = tf.nn.gelu(tf.nn.relu(x + y), approximate=True)
        return {"logits": tf.reduce_mean(x, axis=[1, 2]) @ self.dense}


class _Cond(_Model):
    """`tf.cond` whose branches read different variables."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = self.variable(_WIDTH, _WIDTH), self.variable(_WIDTH, _WIDTH)

    @tf.function(input_signature=[_floats(_WIDTH), tf.TensorSpec([], tf.bool, "go_left")])
    def serve(self, x: tf.Tensor, go_left: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.cond(go_left, lambda: tf.nn.relu(x @ self.left), lambda: tf.tanh(x @ self.right))
        return {"y": y + x}


class _SwitchCase(_Model):
    """`tf.switch_case` over three experts, whose answer a head reads.

    The experts are where their inputs are, which are fed; the head can be anywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.experts = [self.variable(_WIDTH, _WIDTH) for _ in range(3)]
        self.head = self.variable(_WIDTH, 10)

    @tf.function(input_signature=[_floats(_WIDTH), tf.TensorSpec([], tf.int32, "expert")])
    def serve(self, x: tf.Tensor, expert: tf.Tensor) -> dict[str, tf.Tensor]:
        branches = [lambda w=w: tf.nn.relu(x @ w) for w in self.experts]
        return {"y": tf.tanh(tf.switch_case(expert, branches) @ self.head)}


class _LookupTable(_Model):
    """Strings to ids through a table that an asset file initialises, then an embedding."""

    def __init__(self, vocabulary: Path) -> None:
        super().__init__()
        source = tf.lookup.TextFileInitializer(
            str(vocabulary),
            key_dtype=tf.string,
            key_index=tf.lookup.TextFileIndex.WHOLE_LINE,
            value_dtype=tf.int64,
            value_index=tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        self.table = tf.lookup.StaticHashTable(source, default_value=len(_WORDS))
        self.embedding = self.variable(len(_WORDS) + 1, _WIDTH)
        self.dense = self.variable(_WIDTH, 4)

    @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.string, "words")])
    def serve(self, words: tf.Tensor) -> dict[str, tf.Tensor]:
        found = self.table.lookup(words)
        mean = tf.reduce_mean(tf.gather(self.embedding, found), axis=1)
        return {"ids": found, "scores": tf.nn.softmax(mean @ self.dense)}


def _build_lookup_table(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocabulary.txt"
        vocabulary.write_text("\n".join(_WORDS) + "\n")
        _build(lambda: _LookupTable(vocabulary))(path)


class _TwoSignatures(_Model):
    """`serving_default` classifies what `encode` alone returns; they share the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = self.variable(_WIDTH, 128), self.variable(128, 10)

    @tf.function(input_signature=[_floats(_WIDTH)])
    def encode(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"code": tf.nn.relu(x @ self.encoder)}

    @tf.function(input_signature=[_floats(_WIDTH)])
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": self.encode(x)["code"] @ self.head}

    def signatures(self) -> Mapping[str, tf.types.experimental.PolymorphicFunction]:
        return {"serving_default": self.serve, "encode": self.encode}


class _CalledTwice(_Model):
    """A Siamese network: one function, two calls, much arithmetic over few weights.

    Each call can have its own device, since the weights are small next to the work.
    """

    def __init__(self) -> None:
        super().__init__()
        self.filters = [self.variable(3, 3, 3, 16), *(self.variable(3, 3, 16, 16) for _ in "123")]

    @tf.function
    def embed(self, images: tf.Tensor) -> tf.Tensor:
        x = images
        for filters in self.filters:
            x = tf.nn.relu(tf.nn.conv2d(x, filters, strides=1, padding="SAME"))
        return tf.reduce_mean(x, axis=[1, 2])

    @tf.function(
        input_signature=[_floats(64, 64, 3, name="left"), _floats(64, 64, 3, name="right")]
    )
    def serve(self, left: tf.Tensor, right: tf.Tensor) -> dict[str, tf.Tensor]:
        difference = self.embed(left) - self.embed(right)
        return {"distance": tf.norm(difference, axis=1)}


class _HostMemory(_Model):
    """int32 and string operators, which stay in host memory on accelerators, around a matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dense = self.variable(50, _WIDTH), self.variable(_WIDTH, 4)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def serve(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        bucket = tf.strings.to_hash_bucket_fast(tf.strings.upper(text), 50)
        scores = tf.gather(self.embedding, bucket) @ self.dense
        best = tf.argmax(scores, axis=1, output_type=tf.int32)
        positions = tf.range(tf.shape(text)[0]) * 2 + tf.strings.length(text)
        labels = tf.strings.join([text, tf.strings.as_string(best + positions)], separator="/")
        return {"scores": scores, "positions": positions, "labels": labels}


class _TiedEmbeddings(_Model):
    """One matrix embeds the tokens and scores the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dense = self.variable(200, _WIDTH), self.variable(_WIDTH, _WIDTH)

    @tf.function(input_signature=[tf.TensorSpec([None, 12], tf.int32, "tokens")])
    def serve(self, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.tanh(tf.tensordot(tf.gather(self.embedding, tokens), self.dense, axes=1))
        logits = tf.matmul(tf.reduce_mean(x, axis=1), self.embedding, transpose_b=True)
        return {"logits": logits}


@tf.custom_gradient
def _clipped_relu(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    return tf.nn.relu(x), lambda upstream: tf.clip_by_value(upstream, -1.0, 1.0)


class _CustomGradient(_Model):
    """A custom gradient, which saving turns into a function of the library."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = self.variable(_WIDTH, 128), self.variable(128, 10)

    @tf.function(input_signature=[_floats(_WIDTH)])
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": _clipped_relu(x @ self.first) @ self.second}


class _JitCompile(_Model):
    """An inner function that XLA must compile whole, between operators outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = self.variable(_WIDTH, _WIDTH), self.variable(_WIDTH, _WIDTH)

    @tf.function(jit_compile=True)
    def compiled(self, x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(tf.nn.relu(x @ self.first) + x)

    @tf.function(input_signature=[_floats(_WIDTH)])
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.softmax(self.compiled(x * 2.0) @ self.second)}


def _build_assets_extra(path: Path) -> None:
    _build(_TwoSignatures)(path)
    notes = path / "assets.extra" / "notes"
    notes.mkdir(parents=True)
    (notes / "owner.txt").write_text("not TensorFlow's file\n")


def _word_inputs(*shape: int) -> entry.Feature:
    return entry.words(*shape, vocabulary=_WORDS + _UNKNOWN_WORDS)


_X = {"x": entry.uniform(_WIDTH)}
_PAIR = {"left": entry.images(64), "right": entry.images(64)}

ENTRIES = {
    "module": entry.ZooEntry(
        _build(_Convolutions),
        {"images": entry.images(32)},
        note="tf.Module with FusedBatchNormV3, BiasAdd, a residual and tanh Gelu",
    ),
    "cond": entry.ZooEntry(
        _build(_Cond),
        {**_X, "go_left": entry.scalar(lambda rng: rng.random() < 0.5, np.bool_)},
        note="tf.cond: If",
    ),
    "switch_case": entry.ZooEntry(
        _build(_SwitchCase),
        {**_X, "expert": entry.scalar(lambda rng: rng.integers(3), np.int32)},
        note="tf.switch_case: Case",
    ),
    "lookup_table": entry.ZooEntry(
        _build_lookup_table,
        {"words": _word_inputs(6)},
        note="string-to-id table with an asset file and an initialiser",
    ),
    "two_signatures": entry.ZooEntry(
        _build(_TwoSignatures), _X, note="two signatures that share variables and a function"
    ),
    "called_twice": entry.ZooEntry(
        _build(_CalledTwice), _PAIR, note="one function called at two places, with weights"
    ),
    "host_memory": entry.ZooEntry(
        _build(_HostMemory), {"text": _word_inputs()}, note="int32 and string operators"
    ),
    "tied_embeddings": entry.ZooEntry(
        _build(_TiedEmbeddings),
        {"tokens": entry.ids(12, size=200)},
        note="one variable read by two distant operators",
    ),
    "custom_gradient": entry.ZooEntry(
        _build(_CustomGradient), _X, note="tf.custom_gradient, saved with its function"
    ),
    "jit_compile": entry.ZooEntry(
        _build(_JitCompile), _X, note="inner function with jit_compile=True"
    ),
    "assets_extra": entry.ZooEntry(_build_assets_extra, _X, note="files of others in assets.extra"),
}
