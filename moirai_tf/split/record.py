"""What was divided, as a plan keeps it: enough to take it back exactly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SplitEdit:
    """A signature whose batch is divided into shares."""

    shares: tuple[int, ...]
    """Rows of every share of the planned batch; other batches are divided in the same ratios."""
    function: str
    """The function that now divides, calls and joins."""
    body: str
    """The copy of what it was before, which every share calls."""
    call: str
    """The node of the main graph that calls it."""
    inputs: tuple[str, ...]
    """Inputs of the signature that are divided; the others go to every share."""
    outputs: tuple[str, ...]
    """Outputs that are joined; the others are those of the first share."""
    mirrored: tuple[str, ...] = ()
    """Variables that shares behind the first have copies of, by the names of their handles."""
    nodes: tuple[str, ...] = ()
    """Nodes added to the main graph: the copies and what fills them."""
    functions: tuple[str, ...] = ()
    """Functions added to the library, but for the body."""
    objects: int = 0
    """Objects added at the end of the object graph."""
    init: str = ""
    """The node that fills the copies when a Session loads the model."""
    whole: str = ""
    """The operator that mixes rows, and how: it and what comes behind it is not divided."""
