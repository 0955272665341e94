"""What a user can say about exports."""

from __future__ import annotations

from dataclasses import dataclass

from moirai_tf.errors import MoiraiError
from moirai_tf.model.options import INPUTS_HELP
from moirai_tf.options import check_seconds, option

_HIGHEST_VERSION = 2**63 - 1


@dataclass(frozen=True)
class ServingOptions:
    """How a placed model is laid out for TensorFlow Serving."""

    version: int = option(0, "version to write; 0: the next free one")
    model_root: str = option(
        "/models",
        "the folder that holds base_path, as the server sees it: /models in the server's image, "
        "the real path for a server on this machine",
    )
    copy: bool = option(False, "copy the weights, which are linked otherwise where that works")
    batching: bool = option(
        True, "let the server merge requests up to the planned batch, if that changes no answer"
    )
    inputs: str = option("", INPUTS_HELP)
    seed: int = option(0, "seed of generated inputs")
    intra_op_threads: int = option(
        0, "threads of one operator, for all models of the server; 0: what is configured already"
    )
    inter_op_threads: int = option(
        0, "operators at once, for all models of the server; 0: what is configured already"
    )
    gpu_memory_fraction: float = option(
        0.0, "share of a GPU's memory that the server takes; 0: what is configured already"
    )
    export_timeout_s: float = option(
        1800.0, "seconds after which running the warm-up requests is given up"
    )


@dataclass(frozen=True)
class OnnxOptions:
    """How a placed model becomes ONNX."""

    signature: str = option("", "signature to export; empty: the one that was placed, no other is")
    opset: int = option(18, "version of ONNX's operators; tf2onnx knows none above 18")
    coarse_parts: bool = option(
        False, "fewer and larger parts, which send only when they end, so devices overlap less"
    )
    inputs: str = option("", INPUTS_HELP)
    seed: int = option(0, "seed of generated inputs")
    tolerance: float = option(
        1e-5, "largest difference of a float32 output, relative to its largest value"
    )
    export_timeout_s: float = option(1800.0, "seconds after which conversion is given up")


def check_onnx_options(options: OnnxOptions) -> None:
    """Refuses options that give no model.

    Raises:
      MoiraiError: naming the option and its value.
    """
    check_seconds("export_timeout_s", options.export_timeout_s)
    if not 13 <= options.opset <= 18:
        raise MoiraiError(
            f"option opset is {options.opset}",
            why="tf2onnx converts to 18 at most, and before 13 weights were attributes",
            fix="give a number from 13 to 18",
        )
    if not 0 <= options.tolerance < 1:
        raise MoiraiError(
            f"option tolerance is {options.tolerance!r}",
            why="it is a share of an output's largest value",
            fix="give a number from 0 to 1, such as 1e-5",
        )


def check_serving_options(options: ServingOptions) -> None:
    """Refuses options that no server would take.

    Raises:
      MoiraiError: naming the option and its value.
    """
    check_seconds("export_timeout_s", options.export_timeout_s)
    ranges: dict[str, tuple[float, float]] = {
        "version": (0, _HIGHEST_VERSION),
        "intra_op_threads": (0, 2**31 - 1),
        "inter_op_threads": (0, 2**31 - 1),
        "gpu_memory_fraction": (0, 1),
    }
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if not least <= value <= most:
            raise MoiraiError(
                f"option {name} is {value!r}",
                why="TensorFlow Serving would not start with it, or overlook the version",
                fix=f"give a number from {least} to {most}",
            )
    if not options.model_root.startswith("/"):
        raise MoiraiError(
            f"option model_root is {options.model_root!r}",
            why="TensorFlow Serving takes only absolute paths in its configuration",
            fix="give the absolute path of the folder as the server sees it, such as /models",
        )
