"""Options of everything that reads or runs a model."""

from __future__ import annotations

from dataclasses import dataclass

from moirai_tf.options import option

INPUTS_HELP = (
    "file with the inputs to run on, whose shapes win over batch_size: .npz with one array per "
    "input, or TFRecords for a model whose input is a batch of them; empty: generated inputs"
)
"""Help of the option `inputs` of everything that imports or runs a model."""


@dataclass(frozen=True)
class OpLibraryOptions:
    """What defines the ops of a model beyond TensorFlow's own."""

    op_library: tuple[str, ...] = option(
        (), "module to import, or .so file to load, that defines ops which the model uses"
    )
