"""Command-line programs of moirai_tf (absl flags); installed as `moirai_*` commands."""
