"""Command-line programs of moirai_tf (absl flags); installed as `moirai_*` commands."""

import os

# Before TensorFlow is imported: its start-up notes would drown what a command has to say.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
