"""Pins that collide with each other, the client, fusion, colocation or kernels: both are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from moirai_tf import Cluster, Device, Link, MoiraiError, MoiraiItem, default_pipeline
from moirai_tf.passes import Place
from moirai_tf.pipeline import need
from tests.cost_cases import saved, spec

ONE, TWO, GPU = "/device:CPU:0", "/device:CPU:1", "/device:GPU:0"
PROPERTIES = {"frequency_mhz": 2000, "num_cores": 1, "memory_bytes_per_s": 10**10}


def _cluster(*names: str) -> Cluster:
    devices = tuple(
        Device(name, name.split(":")[1], memory_bytes=10**9, architecture="7.0", **PROPERTIES)
        for name in names
    )
    links = tuple(Link(a, b, 1000, 10**10) for a in names for b in names if a != b)
    return Cluster("here", devices, links)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product with a bias, which are fused; a variable; strings, which only CPUs work on."""
    weights = tf.Variable(np.ones([8, 8], np.float32), name="weights")
    bias = tf.Variable(np.ones([8], np.float32), name="bias")

    @tf.function(input_signature=[spec(4, 8, name="x"), spec(4, dtype=tf.string, name="words")])
    def call(x: tf.Tensor, words: tf.Tensor) -> dict[str, tf.Tensor]:
        dense = tf.nn.bias_add(tf.matmul(x, weights, name="product"), bias, name="sum")
        upper = tf.strings.upper(words, name="upper")
        return {"y": tf.tanh(dense, name="tanh"), "w": upper}

    return saved(call, tmp_path_factory.mktemp("wishes") / "m", weights, bias).path


def _item(model: Path, *names: str) -> MoiraiItem:
    pipeline = default_pipeline(source="analytical").until("profile")
    return pipeline.run(MoiraiItem(model, _cluster(*names)))


@pytest.fixture(scope="module")
def item(model: Path) -> MoiraiItem:
    return _item(model, ONE, TWO, GPU)


_COLLISIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "two pins": (
        {"pin": (f"tanh={ONE}", f"tan={TWO}")},
        [f"pin 'tanh={ONE}' holds '", f"pin 'tan={TWO}' holds '", "/tanh'"],
    ),
    "the client's feed": (
        {"pin": (f"^serving_default_x$={TWO}",)},
        ["(Placeholder) is fed or fetched by the client, /device:CPU:0", f"x$={TWO}'"],
    ),
    "the client's fetch": ({"pin": (f"_retval_y={GPU}",)}, ["'_retval_y' (_Retval) is fed or"]),
    "the client is forbidden": ({"forbid": (ONE,)}, [f"{ONE!r} is forbidden", "is fed or fetched"]),
    "fusion": (
        {"pin": (f"product$={ONE}", f"/sum$={TWO}")},
        [
            "/product', which is fused with others (eigen/contraction+bias+activation)",
            "/sum', which is fused into 'StatefulPartitionedCall/StatefulPartitionedCall/product'",
        ],
    ),
    "a variable and its reader": (
        {"pin": (f"^weights$={TWO}", f"MatMul/ReadVariableOp|ReadVariableOp$={GPU}")},
        [
            "holds 'weights', which shares a device with others (resource weights) and is fused",
            "/product/ReadVariableOp', which shares a device with others (resource weights)",
        ],
    ),
    "a kernel": (
        {"pin": (f"upper={GPU}",)},
        ["/upper' (StringUpper) has kernels for CPU only", f"pin 'upper={GPU}' holds"],
    ),
    "a forbidden device": (
        {"pin": (f"tanh={TWO}",), "forbid": (TWO,)},
        [f"pin 'tanh={TWO}'", f"{TWO!r} is forbidden"],
    ),
}


@pytest.mark.parametrize("case", _COLLISIONS)
def test_what_collides_is_named_and_leaving_it_out_helps(case: str, item: MoiraiItem) -> None:
    wishes, sentences = _COLLISIONS[case]
    with pytest.raises(MoiraiError) as caught:
        Place(time_limit_s=5.0, **wishes)(item)
    error = caught.value
    assert "no device is left for" in error.rule
    assert [sentence for sentence in sentences if sentence not in error.rule] == []
    assert "ops[" not in error.rule
    for kind, wish, devices in re.findall(r"(pin|forbidden) '(.*?)' \(then (.*?) can", error.fix):
        option = {"pin": "pin", "forbidden": "forbid"}[kind]
        fewer = {**wishes, option: tuple(w for w in wishes[option] if w != wish)}
        assert len(fewer[option]) == len(wishes[option]) - 1
        placed = Place(time_limit_s=5.0, **fewer)(item)
        used = {placed.problem.devices[p.device].name for p in need(placed.result).schedule.placed}
        assert used & set(devices.split(", "))
    assert error.fix.startswith("leave out ")
    assert "(then" in error.fix


def test_several_collisions_are_told_at_once(item: MoiraiItem) -> None:
    pins = (f"upper={GPU}", f"tanh={ONE}", f"tanh={TWO}")
    with pytest.raises(MoiraiError) as caught:
        Place(pin=pins)(item)
    assert caught.value.rule.count("no device is left for") == 2
    assert caught.value.fix.count("leave out") == 2


def test_model_that_the_cluster_cannot_run(tmp_path: Path) -> None:
    """No wish is to blame: cuDNN needs a GPU; with one there is a placement."""

    @tf.function(input_signature=[spec(2, 3, 4, name="x")])
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        state, weights = tf.zeros([1, 3, 4]), tf.ones([1000])
        rnn = tf.raw_ops.CudnnRNN(
            input=x, input_h=state, input_c=state, params=weights, rnn_mode="gru"
        )
        return {"y": tf.tanh(rnn.output)}

    path = saved(call, tmp_path / "m").path
    with pytest.raises(MoiraiError, match=r"CudnnRNN' \(CudnnRNN\) has kernels for GPU") as caught:
        Place()(_item(path, ONE, TWO))
    assert caught.value.fix == "give the cluster a device that can run all of it"
    assert need(Place()(_item(path, ONE, GPU)).result).schedule is not None


@pytest.mark.parametrize(
    ("pin", "rule", "fix"),
    [
        ("tanh", "it is not regex=device", "moirai_inspect lists"),
        (f"(={ONE}", "its regular expression is broken", "moirai_inspect lists"),
        (f"nothing={ONE}", "it matches no operator", "moirai_inspect lists"),
        ("tanh=/device:CPU:7", "there is no device '/device:CPU:7'", f"{ONE}, {TWO}, {GPU}"),
    ],
)
def test_pins_that_cannot_be_read(pin: str, rule: str, fix: str, item: MoiraiItem) -> None:
    with pytest.raises(MoiraiError, match=re.escape(rule)) as caught:
        Place(pin=(pin,))(item)
    assert repr(pin) in caught.value.rule
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("wishes", "fix"),
    [
        ({"memory_limit": (f"{ONE}=0", f"{TWO}=0", f"{GPU}=0")}, "or leave out memory_limit"),
        (
            {"memory_limit": (f"{TWO}=0",), "pin": (f"product={TWO}",)},
            "or leave out memory_limit or pin",
        ),
    ],
)
def test_memory_that_is_too_small(wishes: dict[str, Any], fix: str, item: MoiraiItem) -> None:
    with pytest.raises(MoiraiError, match="no placement was found") as caught:
        Place(**wishes)(item)
    assert caught.value.fix.endswith(fix)
