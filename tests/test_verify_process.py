"""The child process of verification: options, errors and deaths."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.saved_model import loader_impl

from moirai_tf.errors import MoiraiError
from moirai_tf.rewrite.plan import Plan, PlanDevice
from moirai_tf.verify import Finding, VerifyOptions, VerifyReport, check_report, verify
from moirai_tf.verify.process import _has_room_for_two
from moirai_tf.verify.run import SessionModel
from moirai_tf.verify.stand_in import stand_ins
from tests.placements import place
from tests.saved_models import save_function

ZooDir = Callable[[str], Path]

REMOTE = "/job:worker/replica:0/task:1/device:CPU:0"


@pytest.fixture(scope="module")
def pair(zoo_dir: ZooDir, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small model and a placed copy."""
    placed = tmp_path_factory.mktemp("pair") / "placed"
    place(zoo_dir("two_signatures"), placed, placement={})
    return zoo_dir("two_signatures"), placed


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (VerifyOptions(grappler="perhaps"), "option grappler is 'perhaps'"),
        (VerifyOptions(loaders=("tf3",)), r"option loaders is \['tf3'\]"),
        (VerifyOptions(loaders=()), r"option loaders is \[\]"),
        (VerifyOptions(verify_timeout_s=0.0), "option verify_timeout_s is 0.0"),
        (VerifyOptions(step_timeout_s=0.0), "option step_timeout_s is 0.0"),
    ],
)
def test_options_that_prove_nothing(
    options: VerifyOptions, rule: str, pair: tuple[Path, Path]
) -> None:
    with pytest.raises(MoiraiError, match=rule):
        verify(*pair, options)


def test_a_model_without_a_plan(pair: tuple[Path, Path]) -> None:
    with pytest.raises(MoiraiError, match=r"moirai_plan\.json"):
        verify(pair[0], pair[0])


def test_an_error_of_the_child_is_an_error_here(pair: tuple[Path, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", wrong=np.zeros(3))
    with pytest.raises(MoiraiError, match=r"inputs.npz: has no 'x'") as caught:
        verify(*pair, VerifyOptions(inputs=str(tmp_path / "inputs.npz")))
    assert caught.value.why
    assert caught.value.fix


def test_giving_up(pair: tuple[Path, Path]) -> None:
    with pytest.raises(MoiraiError, match=r"took longer than 0\.01 s"):
        verify(*pair, VerifyOptions(verify_timeout_s=0.01))


@pytest.mark.parametrize(
    ("end", "rule", "fix"),
    [
        ("kill -SEGV $$", "died of SIGSEGV: last words", "run the original alone"),
        ("kill -KILL $$", "died of SIGKILL: last words", "free memory"),
        ("exit 3", "ended with an error: last words", "a fault of moirai_tf"),
    ],
)
def test_a_child_that_dies(
    end: str,
    rule: str,
    fix: str,
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho last words >&2\n{end}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("LAST_WORDS", end)  # a process that starts children for others is of no use
    with pytest.raises(MoiraiError, match=rule) as caught:
        verify(*pair)
    assert fix in caught.value.fix


def test_devices_that_stand_in() -> None:
    """Devices that are here stand for themselves; one that is not makes all of them CPUs."""

    def plan(client: str, *names: str) -> Plan:
        devices = tuple(PlanDevice(name, name.split(":")[-2], None) for name in names)
        return Plan("serving_default", ("serve",), devices, client, {}, ())

    cpu0, cpu1, gpu0 = "/device:CPU:0", "/device:CPU:1", "/device:GPU:0"
    here = plan(cpu0, cpu0, cpu1)
    assert stand_ins(here, gpus=0) == {cpu0: cpu0, cpu1: cpu1}
    mixed = plan(cpu0, gpu0, cpu0)
    assert stand_ins(mixed, gpus=1) == {gpu0: gpu0, cpu0: cpu0}
    assert stand_ins(mixed, gpus=0) == {gpu0: cpu1, cpu0: cpu0}
    remote = plan(REMOTE, cpu1, REMOTE)
    assert stand_ins(remote, gpus=0) == {REMOTE: cpu0, cpu1: cpu1}
    # Feeds and fetches of a process are on its first CPU, so the client must be there.
    assert stand_ins(plan(cpu1, cpu0, cpu1), gpus=0) == {cpu1: cpu0, cpu0: cpu1}


def test_fusion_is_advised_only_where_it_was_off_and_grappler_on() -> None:
    """Findings without Grappler are not its work, and fusion that was on cannot be put on."""
    cpu, names = PlanDevice("/device:CPU:0", "CPU", None), ("a", "b")
    plan = Plan("s", ("serve",), (cpu,), cpu.name, dict.fromkeys(names, cpu.name), ())
    for coarsen, grappler, fix in (
        (False, True, "with fusion (coarsen)"),
        (True, True, "pin='^(?:a|b)$=/device:CPU:0', which keeps these operators together, or sw"),
        (False, False, "pin='^(?:a|b)$=/device:CPU:0', which keeps these operators together"),
    ):
        finding = Finding("transfer", "text", (*names, "no operator"), cpu.name, "", grappler)
        report = VerifyReport((), (), (), (), (finding,))
        with pytest.raises(MoiraiError, match="text") as caught:
            check_report(report, replace(plan, options={"fuse": {"coarsen": coarsen}}))
        assert fix in caught.value.fix
        assert ("coarsen" in caught.value.fix) == (not coarsen and grappler)
    with pytest.raises(MoiraiError) as caught:
        check_report(VerifyReport((), (), (), (), (Finding("order", "text"),)), plan)
    assert "order=runtime" in caught.value.fix


def test_the_gravest_finding_comes_first() -> None:
    findings = (Finding("transfer", "a transfer", ("a",)), Finding("value", "a value", ("y",)))
    with pytest.raises(MoiraiError, match=r"says:\n  a value\n  a transfer") as caught:
        check_report(VerifyReport((), (), (), (), findings))
    assert "must not change what a model computes" in caught.value.why
    check_report(VerifyReport((), (), (), (), ()))


@pytest.mark.parametrize(("held", "steps"), [("a constant", 1), ("a variable", 2), ("a table", 2)])
def test_a_session_takes_no_step_for_nothing(
    held: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is read once; each step has TensorFlow copy all constants that it holds."""
    weight = tf.constant([0.5, 1.5, 2.5])
    variable = tf.Variable(weight)
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1, 2]), weight), 0.0
    )

    @tf.function(input_signature=[tf.TensorSpec([3], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        if held == "a table":
            return {"y": x * table.lookup(tf.range(3))}
        return {"y": x * (weight if held == "a constant" else variable)}

    objects = {"a variable": {"held": variable}, "a table": {"held": table}}.get(held, {})
    path = save_function(tmp_path / "model", serve, **objects)
    told: list[str] = []

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (told.append(name), real(*a, **k))[1])

    counted(tf.compat.v1.Session, "run")
    counted(loader_impl.SavedModelLoader, "load_graph")
    model = SessionModel(path, ("serve",), "serving_default", ["/device:CPU:0"])
    for grappler in (False, True):
        outputs = model.run({"x": np.ones(3, np.float32)}, grappler=grappler).outputs
        np.testing.assert_array_equal(outputs["y"], [0.5, 1.5, 2.5])
    assert told == ["load_graph", *["run"] * (2 * steps)]


def test_loaders_take_turns_where_a_graph_is_too_large_for_two_processes(tmp_path: Path) -> None:
    devices, two_cores = {"/device:CPU:0": "/device:CPU:0"}, len(os.sched_getaffinity(0)) > 1
    for size, room in ((1 << 40, False), (1, two_cores)):
        with (tmp_path / "saved_model.pb").open("wb") as file:
            file.truncate(size)
        assert _has_room_for_two(tmp_path, devices) == room
