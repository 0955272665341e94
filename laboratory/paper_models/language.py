"""Language: GPT-3 from 350 million to 175 billion parameters, BERT, T5."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import keras

from laboratory.paper_models.model import PaperModel

_GPT3 = "Brown et al. 2020, arXiv 2005.14165, table 2.1, with dense attention throughout"
_CONTEXT, _PROMPT = 2048, 512


def gpt3(layers: int, width: int, heads: int) -> Any:
    """A decoder that reads a prompt, as for the first token."""
    from keras_hub.models import GPT2Backbone

    backbone = GPT2Backbone(
        vocabulary_size=50257, num_layers=layers, num_heads=heads, hidden_dim=width,
        intermediate_dim=4 * width, max_sequence_length=_CONTEXT,
    )  # fmt: skip
    inputs = _inputs("token_ids", "padding_mask", length=_PROMPT)
    hidden = backbone(inputs)
    return keras.Model([*inputs.values()], backbone.token_embedding(hidden, reverse=True))


def bert_large() -> Any:
    """The encoder."""
    from keras_hub.models import BertBackbone

    backbone = BertBackbone(
        vocabulary_size=30522, num_layers=24, num_heads=16, hidden_dim=1024, intermediate_dim=4096
    )
    inputs = _inputs("token_ids", "segment_ids", "padding_mask", length=512)
    return keras.Model([*inputs.values()], backbone(inputs)["sequence_output"])


def t5_large() -> Any:
    """Encoder and decoder."""
    from keras_hub.models import T5Backbone

    backbone = T5Backbone(
        vocabulary_size=32128, num_layers=24, num_heads=16, hidden_dim=1024, intermediate_dim=4096,
        use_gated_activation=False, activation="relu",
    )  # fmt: skip
    names = (f"{part}_{what}" for part in ("encoder", "decoder")
             for what in ("token_ids", "padding_mask"))  # fmt: skip
    inputs = _inputs(*names, length=512)
    return keras.Model([*inputs.values()], backbone(inputs)["decoder_sequence_output"])


def _inputs(*names: str, length: int) -> dict[str, Any]:
    return {name: keras.Input(batch_shape=(1, length), dtype="int32", name=name) for name in names}


def _gpt3(layers: int, width: int, heads: int) -> PaperModel:
    return PaperModel(partial(gpt3, layers, width, heads), _GPT3, "float16")


MODELS: Mapping[str, PaperModel] = {
    "gpt3_350m": _gpt3(24, 1024, 16),
    "gpt3_1_3b": _gpt3(24, 2048, 16),  # 24 heads of 128 do not divide 2048; 16 do
    "gpt3_2_7b": _gpt3(32, 2560, 32),
    "gpt3_6_7b": _gpt3(32, 4096, 32),
    "gpt3_13b": _gpt3(40, 5120, 40),  # the table's 5140 is no multiple of its heads of 128
    "gpt3_175b": _gpt3(96, 12288, 96),
    "bert_large": PaperModel(bert_large, "Devlin et al. 2018, arXiv 1810.04805"),
    "t5_large": PaperModel(t5_large, "Raffel et al. 2019, arXiv 1910.10683, section 3.7"),
}
"""By name."""
