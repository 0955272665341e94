"""What a user can say about the import."""

from __future__ import annotations

from dataclasses import dataclass

from moirai_tf.model.options import INPUTS_HELP, OpLibraryOptions
from moirai_tf.options import option


@dataclass(frozen=True)
class ImportOptions(OpLibraryOptions):
    """What to read from a SavedModel, and for which input shapes."""

    signature: str = option(
        "",
        "signature to optimise; empty: serving_default, or the only one if the model has no such",
    )
    tags: tuple[str, ...] = option((), "tags of the MetaGraph, if the model has several")
    batch_size: int = option(1, "size of the first dimension of every input where it is unknown")
    input_shapes: tuple[str, ...] = option(
        (), "full shape of an input, as name=8,224,224,3; wins over inputs and batch_size"
    )
    inputs: str = option("", INPUTS_HELP)
