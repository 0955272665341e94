"""Warm-up requests: what TensorFlow Serving runs when it loads a model, as it records requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import message

from moirai_tf.errors import MoiraiError
from moirai_tf.model.input_files import Array, read_records
from moirai_tf.model.load import all_dense

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MOST_REQUESTS = 1000
"""With more of them TensorFlow Serving refuses the model."""

_CLASSIFY, _REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
_EXAMPLES = "inputs"
"""The only input of both kinds of signatures, a batch of serialized `tf.train.Example`s."""


@dataclass(frozen=True)
class Request:
    """One warm-up request."""

    signature: str
    rows: int | None
    """Size of its batch; None where the signature's inputs have no batch."""
    log: bytes
    """A serialized `PredictionLog`."""


def apis() -> Any:
    """The messages of TensorFlow Serving's requests.

    Raises:
      MoiraiError: the extra `serving` is not installed.
    """
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError as error:
        raise MoiraiError(
            "tensorflow-serving-api is not installed",
            why="requests and configurations of TensorFlow Serving are its messages",
            fix="pip install 'moirai_tf[serving]'",
        ) from error
    return prediction_log_pb2


def request_of(
    model: str,
    signature: str,
    definition: Any,
    inputs: Mapping[str, Array],
    rows: int | None = None,
) -> Request:
    """A request for these inputs, of the kind that the signature is for.

    Args:
      model: the model's name in the server.
      signature: name of the signature.
      definition: its `SignatureDef`.
      inputs: input -> array.
      rows: size of the batch, if there is one.

    Raises:
      MoiraiError: the signature takes `tf.train.Example`s, and the inputs are none; or it takes
        composite tensors.
    """
    log = apis().PredictionLog()
    method = definition.method_name
    if method in (_CLASSIFY, _REGRESS) and set(definition.inputs) == {_EXAMPLES}:
        request = (log.classify_log if method == _CLASSIFY else log.regress_log).request
        for text in inputs[_EXAMPLES].reshape(-1):
            _add_example(request.input.example_list.examples, signature, text)
    else:
        request = log.predict_log.request
        if not all_dense(definition.inputs):
            raise MoiraiError(
                f"signature {signature!r} takes sparse, ragged or other composite tensors",
                why="TensorFlow Serving takes dense tensors only, one for each input",
                fix="export the model with a signature that makes them of dense tensors",
            )
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    return Request(signature, rows, log.SerializeToString(deterministic=True))


def fed_by(log: bytes, signatures: Mapping[str, Any]) -> tuple[str, dict[str, Array]]:
    """What a server feeds for a request.

    Args:
      log: the serialized `PredictionLog`.
      signatures: name -> `SignatureDef`.

    Returns:
      The signature's name, and tensor -> array.

    Raises:
      ValueError: it is no request that a server runs at loading.
    """
    try:
        record = apis().PredictionLog.FromString(log)
    except message.DecodeError as error:
        raise ValueError(f"it is no PredictionLog: {error}") from error
    kind = record.WhichOneof("log_type")
    if kind not in ("predict_log", "classify_log", "regress_log"):
        raise ValueError(f"the server runs no {kind} at loading")
    request = getattr(record, kind).request
    signature = request.model_spec.signature_name or "serving_default"
    if signature not in signatures:
        raise ValueError(f"the model has no signature {signature!r}")
    fed = {key: info.name for key, info in signatures[signature].inputs.items()}
    if kind == "predict_log":
        arrays = {key: tf.make_ndarray(proto) for key, proto in request.inputs.items()}
    else:
        examples = request.input.example_list.examples
        texts = [example.SerializeToString(deterministic=True) for example in examples]
        arrays = {_EXAMPLES: np.array(texts, dtype=object)}
    if arrays.keys() != fed.keys():
        raise ValueError(f"it feeds {sorted(arrays)}, signature {signature!r} takes {sorted(fed)}")
    return signature, {fed[key]: array for key, array in arrays.items()}


def last_rows(inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """The end of a batch: what depends on a row's place in the batch then gives other answers."""
    return {name: array[len(array) - rows :] for name, array in inputs.items()}


def write_requests(logs: Iterable[bytes], file: Path) -> None:
    """Writes records as TensorFlow Serving reads them.

    Raises:
      MoiraiError: there are too many, or they cannot be written.
    """
    records = list(dict.fromkeys(logs))
    if len(records) > MOST_REQUESTS:
        raise MoiraiError(
            f"there are {len(records)} warm-up requests",
            why=f"TensorFlow Serving refuses a model with more than {MOST_REQUESTS}",
            fix=f"shorten the model's own {WARMUP_FILE}",
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)  # it may be a link to the placed model's
    try:
        with tf.io.TFRecordWriter(str(file)) as writer:
            for record in records:
                writer.write(record)
    except tf.errors.OpError as error:
        raise MoiraiError(
            f"{file} cannot be written: {error.message}",
            why="TensorFlow Serving runs these requests before it takes others",
            fix="free space there, or choose a place that you can write",
        ) from error


def read_requests(directory: Path) -> Sequence[bytes]:
    """The records that a model brings along, if any.

    Raises:
      MoiraiError: the file is damaged.
    """
    file = directory / WARMUP_FILE
    try:
        return tuple(read_records(file)) if file.is_file() else ()
    except (tf.errors.OpError, ValueError) as error:
        raise MoiraiError(
            f"{file} cannot be read: {error}",
            why="TensorFlow Serving refuses a model whose warm-up requests are damaged",
            fix="remove the file, or write it again",
        ) from error


def _add_example(examples: Any, signature: str, text: Any) -> None:
    try:
        examples.add().ParseFromString(text)
    except (message.DecodeError, TypeError) as error:
        raise MoiraiError(
            f"signature {signature!r} takes tf.train.Examples, and {text[:40]!r} is none",
            why="its requests consist of Examples, and none can be made up",
            fix="give a TFRecord file of Examples (--inputs)",
        ) from error
