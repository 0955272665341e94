"""What a user can say about verification."""

from __future__ import annotations

from dataclasses import dataclass

from moirai_tf.errors import MoiraiError
from moirai_tf.model.options import INPUTS_HELP
from moirai_tf.options import check_options, check_seconds, option

TF2, SESSION, CLUSTER = "tf2", "session", "cluster"
LOADERS = (TF2, SESSION, CLUSTER)


@dataclass(frozen=True)
class VerifyOptions:
    """How a placed model is run and proved."""

    inputs: str = option("", INPUTS_HELP)
    seed: int = option(0, "seed of generated inputs")
    loaders: tuple[str, ...] = option(
        LOADERS,
        "who loads the models: tf2 (tf.saved_model.load), session (a TF1 Session, as in "
        "TensorFlow Serving), cluster (a Session on the workers themselves, if the cluster file "
        "has their addresses), or several",
    )
    grappler: str = option(
        "both",
        "prove the graph as it was written (off), as Grappler makes it run (on), or both",
        choices=("off", "on", "both"),
    )
    step_timeout_s: float = option(
        120.0, "seconds that one step on the workers may take, restoring variables included"
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
    for name in ("verify_timeout_s", "step_timeout_s"):
        check_seconds(name, getattr(options, name))
