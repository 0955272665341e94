"""Biology: AlphaFold2's Evoformer and structure module, and ESM-2.

Widths and heads are those of the supplement of Jumper et al. 2021, algorithms 6 to 15 and 20 to 23,
without dropout and templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import keras
from keras import layers, ops

from laboratory.paper_models.model import PaperModel

_AF2 = "Jumper et al. 2021, doi 10.1038/s41586-021-03819-2, supplement"
_MSA, _PAIR, _SINGLE = 256, 128, 384


def evoformer(sequences: int, residues: int, blocks: int = 48) -> Any:
    """The stack of blocks over an alignment and pairs of residues."""
    first = keras.Input(batch_shape=(sequences, residues, _MSA), name="msa")
    second = keras.Input(batch_shape=(residues, residues, _PAIR), name="pair")
    msa, pair = first, second
    for _ in range(blocks):
        msa = msa + _attention(msa, 8, _norm(pair))
        msa = msa + _turned(_attention(_turned(msa), 8))
        msa = msa + _transition(msa)
        pair = pair + _outer_product_mean(msa)
        pair = pair + _triangle_product(pair, "ikc,jkc->ijc")
        pair = pair + _triangle_product(pair, "kic,kjc->ijc")
        pair = pair + _attention(pair, 4, _norm(pair))
        turned = _turned(pair)
        pair = pair + _turned(_attention(turned, 4, _norm(turned)))
        pair = pair + _transition(pair)
    single = layers.Dense(_SINGLE)(msa[0])
    return keras.Model([first, second], [msa, pair, single])


def _norm(x: Any) -> Any:
    return layers.LayerNormalization()(x)


def _dense(x: Any, width: int, **more: Any) -> Any:
    return layers.Dense(width, **more)(x)


def _turned(x: Any) -> Any:
    return ops.transpose(x, (1, 0, 2))


def _attention(x: Any, heads: int, biased: Any = None) -> Any:
    """Gated attention along rows, with a bias from pairs."""
    x = _norm(x)
    rows, length, width = x.shape
    query, key, value = (
        ops.reshape(_dense(x, heads * 32, use_bias=False), (rows, length, heads, 32))
        for _ in range(3)
    )
    scores = ops.einsum("rqhc,rkhc->rhqk", query * 32**-0.5, key)
    if biased is not None:
        bias = _dense(biased, heads, use_bias=False)
        scores += ops.expand_dims(ops.transpose(bias, (2, 0, 1)), 0)
    mixed = ops.einsum("rhqk,rkhc->rqhc", ops.softmax(scores), value)
    gate = _dense(x, heads * 32, activation="sigmoid")
    return _dense(ops.reshape(mixed, (rows, length, heads * 32)) * gate, width)


def _transition(x: Any) -> Any:
    return _dense(_dense(_norm(x), 4 * x.shape[-1], activation="relu"), x.shape[-1])


def _outer_product_mean(msa: Any) -> Any:
    sequences, residues, _ = msa.shape
    x = _norm(msa)
    product = ops.einsum("sic,sjd->ijcd", _dense(x, 32), _dense(x, 32)) / sequences
    return _dense(ops.reshape(product, (residues, residues, 1024)), _PAIR)


def _triangle_product(pair: Any, along: str) -> Any:
    x = _norm(pair)
    sides = [_dense(x, _PAIR, activation="sigmoid") * _dense(x, _PAIR) for _ in range(2)]
    product = _norm(ops.einsum(along, *sides))
    return _dense(x, _PAIR, activation="sigmoid") * _dense(product, _PAIR)


def structure_module(residues: int, iterations: int = 8) -> Any:
    """Invariant point attention, and frames that move, with the same weights every time."""
    first = keras.Input(batch_shape=(residues, _SINGLE), name="single")
    second = keras.Input(batch_shape=(residues, residues, _PAIR), name="pair")
    frames = keras.Input(batch_shape=(residues, 3, 3), name="rotations")
    origins = keras.Input(batch_shape=(residues, 3), name="origins")
    point = _PointAttention()
    parts = [layers.Dense(_SINGLE, activation=a) for a in ("relu", "relu", None)]
    norms = [layers.LayerNormalization() for _ in range(2)]
    update, angles = layers.Dense(6), layers.Dense(14)
    single, pair, rotation, origin = _dense(_norm(first), _SINGLE), _norm(second), frames, origins
    for _ in range(iterations):
        single = norms[0](single + point(single, pair, rotation, origin))
        moved = single
        for part in parts:
            moved = part(moved)
        single = norms[1](single + moved)
        rotation, origin = _moved(rotation, origin, update(single))
    return keras.Model([first, second, frames, origins], [rotation, origin, angles(single)])


class _PointAttention:
    """Attention over scalars, pairs and points that do not depend on the global frame."""

    heads, scalars, query_points, value_points = 12, 16, 4, 8

    def __init__(self) -> None:
        h, s, q, v = self.heads, self.scalars, self.query_points, self.value_points
        self.dense = {
            "query": layers.Dense(h * s, use_bias=False),
            "key": layers.Dense(h * s, use_bias=False),
            "value": layers.Dense(h * s, use_bias=False),
            "query_points": layers.Dense(h * q * 3, use_bias=False),
            "key_points": layers.Dense(h * q * 3, use_bias=False),
            "value_points": layers.Dense(h * v * 3, use_bias=False),
            "bias": layers.Dense(h, use_bias=False),
            "out": layers.Dense(_SINGLE),
        }

    def __call__(self, single: Any, pair: Any, rotation: Any, origin: Any) -> Any:
        count, heads = single.shape[0], self.heads

        def scalars(name: str) -> Any:
            return ops.reshape(self.dense[name](single), (count, heads, self.scalars))

        def points(name: str) -> Any:
            local = ops.reshape(self.dense[name](single), (count, -1, 3))
            moved = ops.einsum("nij,npj->npi", rotation, local) + ops.expand_dims(origin, 1)
            return ops.reshape(moved, (count, heads, -1, 3))

        scores = ops.einsum("qhc,khc->hqk", scalars("query"), scalars("key")) * 0.25
        scores += ops.transpose(self.dense["bias"](pair), (2, 0, 1))
        apart = ops.expand_dims(points("query_points"), 1) - ops.expand_dims(
            points("key_points"), 0
        )
        scores -= ops.transpose(ops.sum(ops.square(apart), (3, 4)), (2, 0, 1)) * 0.0833
        weights = ops.softmax(scores * 3**-0.5)
        values = ops.reshape(ops.einsum("hqk,khc->qhc", weights, scalars("value")), (count, -1))
        seen = ops.reshape(
            ops.einsum("hqk,khpi->qhpi", weights, points("value_points")), (count, -1, 3)
        )
        local = ops.einsum("nji,npj->npi", rotation, seen - ops.expand_dims(origin, 1))
        norms = ops.sqrt(ops.sum(ops.square(local), -1) + 1e-8)
        pairs = ops.reshape(ops.einsum("hqk,qkc->qhc", weights, pair), (count, -1))
        flat = ops.reshape(local, (count, -1))
        return self.dense["out"](ops.concatenate([values, flat, norms, pairs], -1))


def _moved(rotation: Any, origin: Any, change: Any) -> tuple[Any, Any]:
    """Frames after a small rotation, a quaternion whose real part is 1, and a shift."""
    b, c, d = (change[:, i] for i in range(3))
    norm = 1 + b * b + c * c + d * d
    rows = (
        (1 + b * b - c * c - d * d, 2 * (b * c - d), 2 * (b * d + c)),
        (2 * (b * c + d), 1 - b * b + c * c - d * d, 2 * (c * d - b)),
        (2 * (b * d - c), 2 * (c * d + b), 1 - b * b - c * c + d * d),
    )
    turn = ops.stack([ops.stack(row, -1) for row in rows], 1) / ops.reshape(norm, (-1, 1, 1))
    shift = ops.einsum("nij,nj->ni", rotation, change[:, 3:])
    return ops.matmul(rotation, turn), origin + shift


def esm2(depth: int, width: int, heads: int, length: int = 512) -> Any:
    """An encoder of protein sequences with rotary positions."""
    from keras_hub.models import ESMBackbone

    backbone = ESMBackbone(
        vocabulary_size=33, num_layers=depth, num_heads=heads, hidden_dim=width,
        intermediate_dim=4 * width, use_pre_layer_norm=False, position_embedding_type="rotary",
    )  # fmt: skip
    tokens = keras.Input(batch_shape=(1, length), dtype="int32", name="token_ids")
    return keras.Model(tokens, backbone({"token_ids": tokens}))


MODELS: Mapping[str, PaperModel] = {
    "evoformer_256": PaperModel(partial(evoformer, 128, 256), _AF2),
    "evoformer_384": PaperModel(partial(evoformer, 512, 384), _AF2),
    "structure_256": PaperModel(partial(structure_module, 256), _AF2),
    "structure_384": PaperModel(partial(structure_module, 384), _AF2),
    "esm2_650m": PaperModel(
        partial(esm2, 33, 1280, 20), "Lin et al. 2023, doi 10.1126/science.ade2574"
    ),
}
"""By name."""
