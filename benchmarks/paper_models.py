"""Writes models at the scale of papers, without weights, for `moirai_compare` and others.

python -m benchmarks.paper_models --output=FOLDER [--models=swin_t,gpt3_175b]
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags

from laboratory.paper_models import MODELS

_OUTPUT = flags.DEFINE_string("output", None, "folder of the models", required=True)
_WANTED = flags.DEFINE_list("models", list(MODELS), "models to write")


def main(_: list[str]) -> None:
    for name in _WANTED.value:
        path = Path(_OUTPUT.value) / name
        if not path.exists():
            MODELS[name].build(path)
        print(f"{path}: {MODELS[name].source}", flush=True)


if __name__ == "__main__":
    app.run(main)
