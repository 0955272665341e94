"""Published image classifiers from Keras applications, at any input size."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from tests.zoo import entry

_CALIBRATION_PIXELS = 64 * 64 * 64


def application(
    name: str, image_size: int, *, brightest: float = 1.0, small: bool = False
) -> entry.ZooEntry:
    """One of `keras.applications` in its real architecture.

    Args:
      name: the name of its constructor, such as "InceptionV3".
      image_size: height and width of the images; the operators are the same at every size.
      brightest: pixels lie in [-brightest, brightest).
      small: see `ZooEntry.small`.
    """
    images = entry.images(image_size, brightest)

    def build(path: Path) -> None:
        keras.utils.clear_session()
        keras.utils.set_random_seed(entry.SEED)
        tensor = keras.Input((image_size, image_size, 3), name="images")
        model = getattr(keras.applications, name)(weights=None, input_tensor=tensor)
        entry.randomise(model.variables)
        batch = max(8, _CALIBRATION_PIXELS // image_size**2)
        _calibrate(model, images(entry.rng(), batch))
        model.export(path, format="tf_saved_model", verbose=False)

    return entry.ZooEntry(
        build,
        {"images": images},
        note=f"keras.applications.{name} at {image_size} x {image_size}, Keras export",
        small=small,
    )


def _calibrate(model: keras.Model, batch: np.ndarray) -> None:
    """Sets batch norm's moving statistics to those of a batch, as training would.

    With drawn statistics the signal dies or explodes over a hundred layers, and a comparison of
    outputs sees nothing of what happens inside.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model([batch], training=True)


ENTRIES = {
    "inception_v3": application("InceptionV3", 96),
    "resnet50": application("ResNet50", 64),
    "densenet121": application("DenseNet121", 64),
    "efficientnet_b0": application("EfficientNetB0", 64, brightest=255.0),
    "nasnet_mobile": application("NASNetMobile", 64),
}
