"""Models without weights: written without any, planned, and not run."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

from laboratory.paper_models import MODELS
from moirai_tf import MoiraiError, default_pipeline, optimize
from moirai_tf.cluster import read_cluster
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.pipeline import MoiraiItem, need
from tests.saved_models import save_function

_CLUSTER = Path(__file__).parents[1] / "configs" / "cpu_two_gpus.yaml"


@pytest.fixture(scope="module")
def two_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tables have 10 and 2 million rows of 256 floats."""
    path = tmp_path_factory.mktemp("models") / "two_tower"
    MODELS["two_tower"].build(path)
    return path


def test_no_weight_is_made(two_tower: Path) -> None:
    """12.3 GB of tables in a directory of one small file, all variables declared."""
    assert [path.name for path in two_tower.iterdir()] == ["saved_model.pb"]
    assert (two_tower / "saved_model.pb").stat().st_size < 100_000
    model = read_saved_model(two_tower)
    assert model.weightless
    shapes = [
        [dim.size for dim in node.attr["shape"].shape.dim]
        for node in model.meta_graph().graph_def.node
        if node.op == "VarHandleOp"
    ]
    assert [10_000_000, 256] in shapes
    assert len(shapes) == 2 + 2 * 2 * 4  # tables; weights and biases of two towers of four layers


def test_optimize_plans_and_says_that_there_is_nothing_to_run(
    two_tower: Path, tmp_path: Path
) -> None:
    """The user's table alone takes 10.24 GB: where it is, there is its memory."""
    summary = optimize(two_tower, tmp_path / "placed", read_cluster(_CLUSTER), time_limit_s=5)
    assert "there is nothing to run" in str(summary)
    assert summary.report is None
    assert (tmp_path / "placed" / "saved_model.pb").is_file()
    placed = need(summary.placed)
    assert set(placed.computed) == set(placed.devices)
    assert max(share.memory_bytes for share in placed.devices.values()) > 10_240_000_000


def test_what_has_no_weights_is_not_measured(two_tower: Path) -> None:
    pipeline = default_pipeline(source="measure").until("profile")
    with pytest.raises(MoiraiError, match="no weights"):
        pipeline.run(MoiraiItem(two_tower, read_cluster(_CLUSTER)))


def test_models_with_weights_are_not_taken_for_such(tmp_path: Path) -> None:
    weight = tf.Variable([1.0, 2.0])
    function = tf.function(lambda x: x * weight, [tf.TensorSpec([2], tf.float32)])
    save_function(tmp_path / "model", function, weight=weight)
    assert not read_saved_model(tmp_path / "model").weightless


def test_every_model_names_its_source() -> None:
    assert len(MODELS) == 23
    assert all(len(model.source) > 20 for model in MODELS.values())
