"""Models whose fused operators are dealt out over two devices by lot, and what verification finds.

One process runs all models of a test session: it keeps TensorFlow's logical devices.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.fusion.merge import DisjointSets
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.graph.graph import CLIENT_OPS, Graph
from moirai_tf.graph.prune import prune
from moirai_tf.verify.examine import examined
from moirai_tf.verify.options import VerifyOptions
from moirai_tf.verify.report import VerifyReport, proved
from tests.placements import CPUS, place
from tests.saved_models import graph_of


class Examiner:
    """Verifies models in a process of its own."""

    def __init__(self) -> None:
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __call__(
        self, model: Path, seed: int = 0, *, coarse: bool = True, **options: Any
    ) -> VerifyReport:
        """Places fused operators, or single ones, by lot and runs the model in every way.

        Args:
          model: the SavedModel.
          seed: of the lot.
          coarse: whether operators are fused; if not, Grappler stays off.
          options: of `VerifyOptions`.
        """
        future = self._process.submit(_examine, model, seed, options, coarse=coarse)
        return future.result(timeout=600)

    def close(self) -> None:
        """Ends the process."""
        self._process.shutdown()


def dealt(graph: Graph, seed: int, *, coarse: bool = True) -> dict[str, str]:
    """What must share a device goes to one of two by lot; the client's is the first."""
    fused, expansion = coarsen(graph, FuseOptions(coarsen=coarse), ["CPU"])
    sets = DisjointSets(len(fused.operators))
    for group in fused.colocation:
        sets.union(group)
    lots = random.Random(seed)
    devices: dict[int, str] = {
        sets.find(expansion.owner[i]): CPUS[0]
        for i, operator in enumerate(graph.operators)
        if operator.op in CLIENT_OPS
    }
    for k in range(len(fused.operators)):
        devices.setdefault(sets.find(k), lots.choice(CPUS))
    return {
        operator.name: devices[sets.find(expansion.owner[i])]
        for i, operator in enumerate(graph.operators)
    }


def _examine(model: Path, seed: int, options: Mapping[str, Any], *, coarse: bool) -> VerifyReport:
    grappler = {} if coarse else {"grappler": "off"}
    with TemporaryDirectory() as folder:
        placed, work = Path(folder) / "placed", Path(folder) / "work"
        work.mkdir()
        place(model, placed, placement=dealt(prune(graph_of(model)), seed, coarse=coarse))
        here = {device: device for device in CPUS}
        wanted = VerifyOptions(**grappler, **options)
        return proved(wanted, [examined(model, placed, here, wanted, work)])
