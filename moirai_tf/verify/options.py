"""What a user can say about verification."""

from __future__ import annotations

from dataclasses import dataclass

from moirai_tf.errors import MoiraiError
from moirai_tf.options import check_options, option

TF2, SESSION = "tf2", "session"
LOADERS = (TF2, SESSION)


@dataclass(frozen=True)
class VerifyOptions:
    """How a placed model is run and proved."""

    inputs: str = option("", ".npz with one array per input; empty: generated inputs")
    seed: int = option(0, "seed of generated inputs")
    loaders: tuple[str, ...] = option(
        LOADERS,
        "who loads the models: tf2 (tf.saved_model.load), session (a TF1 Session, as in "
        "TensorFlow Serving), or both",
    )
    grappler: str = option(
        "both",
        "prove the graph as it was written (off), as Grappler makes it run (on), or both",
        choices=("off", "on", "both"),
    )
    verify_timeout_s: float = option(1800.0, "seconds after which verification is given up")

    @property
    def grappler_modes(self) -> tuple[bool, ...]:
        """Grappler off first: that is the run that is compared with the plan one to one."""
        return {"off": (False,), "on": (True,), "both": (False, True)}[self.grappler]


def check_verify_options(options: VerifyOptions) -> None:
    """Refuses options that would prove nothing.

    Raises:
      MoiraiError: naming the option and its value.
    """
    check_options(options)
    unknown = [loader for loader in options.loaders if loader not in LOADERS]
    if unknown or not options.loaders:
        raise MoiraiError(
            f"option loaders is {list(options.loaders)}",
            why="the models are run by these loaders, by at least one",
            fix=f"use one or more of {', '.join(LOADERS)}",
        )
    if not options.verify_timeout_s > 0:
        raise MoiraiError(
            f"option verify_timeout_s is {options.verify_timeout_s}",
            why="verification needs time to run the models",
            fix="give a number of seconds above 0",
        )
