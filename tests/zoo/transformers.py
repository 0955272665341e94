"""Transformers from KerasHub at reduced sizes, configured directly: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from tests.zoo import entry

_VOCABULARY = 120
_LENGTH = 16
_TEXT = {
    "vocabulary_size": _VOCABULARY,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 32,
    "intermediate_dim": 64,
}
_IMAGE = 32


def builder(make: Callable[[Any], keras.Model]) -> Callable[[Path], None]:
    """A builder for the model that `make` constructs from KerasHub's models."""

    def build(path: Path) -> None:
        import keras_hub  # Here, so that models without it can be built where it is missing.

        keras.utils.clear_session()
        model = make(keras_hub.models)
        entry.randomise(model.variables)
        model.export(path, format="tf_saved_model", verbose=False)

    return build


def _bert(models: Any) -> keras.Model:
    backbone = models.BertBackbone(**_TEXT, max_sequence_length=_LENGTH)
    return models.BertTextClassifier(backbone, num_classes=3)


def _gpt2(models: Any) -> keras.Model:
    return models.GPT2CausalLM(models.GPT2Backbone(**_TEXT, max_sequence_length=_LENGTH))


def _esm2(models: Any) -> keras.Model:
    return models.ESM2Backbone(**_TEXT)


def _t5(models: Any) -> keras.Model:
    return models.T5Backbone(**_TEXT)


def _whisper(models: Any) -> keras.Model:
    return models.WhisperBackbone(
        **_TEXT,
        num_mels=16,
        max_encoder_sequence_length=2 * _LENGTH,
        max_decoder_sequence_length=_LENGTH,
    )


def _vit(models: Any) -> keras.Model:
    backbone = models.ViTBackbone(
        image_shape=(_IMAGE, _IMAGE, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
    )
    return models.ViTImageClassifier(backbone, num_classes=3)


def _swin(models: Any) -> keras.Model:
    backbone = models.SwinTransformerBackbone(
        image_shape=(_IMAGE, _IMAGE, 3),
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
        patch_size=2,
    )
    images = keras.Input((_IMAGE, _IMAGE, 3), name="images")
    classifier = models.SwinTransformerImageClassifier(backbone, num_classes=3)
    return keras.Model(images, classifier(images))


_TOKENS = entry.ids(_LENGTH, size=_VOCABULARY)
_MASK = entry.padding_mask(_LENGTH)
_IMAGES = entry.images(_IMAGE)

ENTRIES = {
    "bert": entry.ZooEntry(
        builder(_bert),
        {"token_ids": _TOKENS, "segment_ids": entry.ids(_LENGTH, size=2), "padding_mask": _MASK},
        note="KerasHub BERT text classifier; sequence length unknown in the signature",
    ),
    "gpt2": entry.ZooEntry(
        builder(_gpt2),
        {"token_ids": _TOKENS, "padding_mask": _MASK},
        note="KerasHub GPT-2 causal language model; output tied to the embedding",
    ),
    "esm2": entry.ZooEntry(
        builder(_esm2), {"token_ids": _TOKENS}, note="KerasHub ESM2 backbone; rotary positions"
    ),
    "t5": entry.ZooEntry(
        builder(_t5),
        {
            "encoder_token_ids": _TOKENS,
            "encoder_padding_mask": _MASK,
            "decoder_token_ids": _TOKENS,
            "decoder_padding_mask": _MASK,
        },
        note="KerasHub T5 backbone; encoder and decoder, relative positions",
    ),
    "whisper": entry.ZooEntry(
        builder(_whisper),
        {
            "encoder_features": entry.uniform(2 * _LENGTH, 16),
            "decoder_token_ids": _TOKENS,
            "decoder_padding_mask": _MASK,
        },
        note="KerasHub Whisper backbone; convolutions, encoder and decoder",
    ),
    "vit": entry.ZooEntry(builder(_vit), {"images": _IMAGES}, note="KerasHub ViT classifier"),
    "swin": entry.ZooEntry(
        builder(_swin), {"images": _IMAGES}, note="KerasHub Swin classifier; shifted windows"
    ),
}
