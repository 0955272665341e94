"""What all commands have in common: exit statuses, JSON, progress, silence, and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_commands import INSTANCE
from tools import asked_verbosity
from tools._stderr import is_command

ZooDir = Callable[[str], Path]

ROOT = Path(__file__).parents[1]

PROGRAM = """
import signal, sys, time
from moirai_tf.progress import stage
from tools import _flags

def main():
    with stage("outer"), stage("inner", 3) as steps:
        steps.advance()
        {body}

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["moirai_test", *sys.argv[1:]]
_flags.run(main)
"""
STUBBORN = """
        print("ready", flush=True)
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            time.sleep(600)
"""
"""As a solver that keeps what it has, or a step of TensorFlow's that does not come back."""


def process(
    *arguments: str, stderr: int = subprocess.PIPE, **variables: str
) -> subprocess.Popen[str]:
    """A command as users start it: with no wish about TensorFlow's messages."""
    environment = {name: v for name, v in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env={**environment, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=stderr, preexec_fn=_heeding_ctrl_c,
    )  # fmt: skip


def _heeding_ctrl_c() -> None:
    """Whoever ignores it here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def done(*arguments: str) -> tuple[int, str, str]:
    """Status, output and errors."""
    started = process(*arguments)
    out, err = started.communicate(timeout=600)
    return started.returncode, out, err


def command(name: str, *flags: str) -> tuple[int, str, str]:
    """The same of an installed command."""
    return done("-m", f"tools.moirai_{name}", *flags)


@pytest.fixture
def instance(tmp_path: Path) -> str:
    path = tmp_path / "fork.json"
    path.write_text(INSTANCE)
    return f"--instance={path}"


def test_exit_statuses(instance: str, tmp_path: Path) -> None:
    output = f"--output={tmp_path / 'schedule.json'}"
    assert command("place", "--help")[0] == 0
    assert command("place", instance, output)[0] == 0
    status, out, err = command("place", instance, output, "--mip_gap=2", "--json")
    assert status == 1
    assert err.startswith("error: ")
    assert set(json.loads(out)["error"]) == {"rule", "why", "fix"}
    for wrong in ("--solver=luck", "--no_such_flag", "--threads=many", "stray"):
        status, out, err = command("place", instance, output, wrong)
        assert (status, out) == (2, "")
        assert err.startswith("error: ")
        assert "Traceback" not in err


def test_facts_of_place(instance: str, tmp_path: Path) -> None:
    """As in `test_commands`: 13 ns, and 18 on one device."""
    output = tmp_path / "schedule.json"
    status, out, err = command("place", instance, f"--output={output}", "--json")
    facts = json.loads(out)
    assert (status, err) == (0, "")
    assert (facts["schema_version"], facts["command"]) == (1, "moirai_place")
    assert (facts["makespan_ns"], facts["single_device_ns"], facts["gap"]) == (13, 18, 0.0)
    assert facts["output"] == str(output)


@pytest.mark.parametrize(
    ("arguments", "verbosity"),
    [
        ([], None),
        (["--verbosity=0"], 0),
        (["--x", "--verbosity", "-1"], -1),
        (["-v=1"], 1),
        (["--verbosity"], None),
        (["--verbose"], None),
    ],
)
def test_verbosity_is_known_before_flags_are(arguments: list[str], verbosity: int | None) -> None:
    assert asked_verbosity(arguments) == verbosity


def test_no_line_but_ours_is_on_the_terminal(zoo_dir: ZooDir) -> None:
    model = f"--saved_model_dir={zoo_dir('mlp')}"
    status, out, err = command("inspect", model)
    assert (status, err) == (0, "")
    assert out.startswith("# signature ")
    status, same, err = command("inspect", model, "--verbosity=0")
    assert (status, same) == (0, out)
    assert "port.cc" in err or "cpu_feature_guard" in err, "TensorFlow's lines are back"


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["python", "-m", "tools.moirai_optimize", "--verbose"], True),
        (["python", "/usr/bin/moirai_bench"], True),
        (["python", "-m", "benchmarks.demo"], True),
        (["python", "-m", "pytest", "tests/test_moirai.py"], False),
        (["python", "-c", "import tools"], False),
        (["python", "infer.py", "--model=moirai_placed"], False),
    ],
)
def test_commands_are_known_by_how_they_are_started(words: list[str], command: bool) -> None:
    assert is_command(words) == command


def test_only_noise_is_kept_from_the_terminal() -> None:
    """Errors, what other libraries say, what has no end of line, and a crash's last words stay."""
    program = """
import os, sys
from tools._stderr import filter_descriptor
filter_descriptor()
for text in (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n",
    "I0000 00:00:1796008107.486063   14262 port.cc:153] oneDNN custom operations are on.\\n",
    "W0000 00:00:1796008107.486063   14262 a.cc:1] odd\\nE0000 00:00:1.5   14262 a.cc:1] bad\\n",
    "E0000 00:00:1.5   14262 cuda_dnn.cc:1] Unable to register cuDNN factory: already there\\n",
    "free(): invalid pointer\\nI0000 is no message of TensorFlow\\nthe last words",
):
    os.write(2, text.encode())
print("ours", file=sys.stderr)
os.abort()
"""
    status, _, err = done("-c", program)
    assert status == -signal.SIGABRT
    assert sorted(err.splitlines()) == sorted([
        "ours", "E0000 00:00:1.5   14262 a.cc:1] bad", "free(): invalid pointer",
        "I0000 is no message of TensorFlow", "the last words",
    ])  # fmt: skip


def test_ctrl_c_while_an_object_goes_is_no_traceback() -> None:
    """Python ignores it there, and says so at length; the watching thread ends the command."""
    program = """
from tools._display import Display
from tools._interrupt import Interrupted
class Going:
    def __init__(self, error):
        self.error = error
    def __del__(self):
        raise self.error
Interrupted(Display(), patient=False)
Going(ValueError("a fault is shown"))
Going(KeyboardInterrupt())
print("done", flush=True)
"""
    status, out, err = done("-c", program)
    assert (status, out) == (0, "done\n")
    assert "a fault is shown" in err
    assert "KeyboardInterrupt" not in err


@pytest.mark.slow
def test_every_command_is_silent_and_has_facts(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """Also the processes that they start."""
    model = f"--saved_model_dir={zoo_dir('ensemble')}"
    cluster = f"--cluster={ROOT / 'configs' / 'two_local_cpus.yaml'}"
    costs, placed = tmp_path / "costs.json", tmp_path / "placed"
    trace, page = tmp_path / "trace.json", tmp_path / "report.html"
    swap = ("--device=/device:CPU:0=/device:CPU:1", "--device=/device:CPU:1=/device:CPU:0")
    workers = (f"--output={tmp_path / 'c.yaml'}", "--shares=1", "--shares=1", "--run=true")
    of_placed = f"--placed_dir={placed}"
    small = ("--batch_size=64", "--repeats=2")
    for name, facts, flags in (
        ("inspect", {"operators", "colocation"}, (model,)),
        ("inspect", {"fused_operators", "tensors"}, (model, "--fused")),
        ("inspect", {"explained"}, (model, "--explain=MatMul")),
        ("profile", {"devices"}, (model, cluster, f"--output={costs}", *small)),
        ("optimize", {"verdict", "placed", "report", "times"},
         (model, cluster, f"--costs={costs}", f"--output_dir={placed}", "--batch_size=64")),
        ("verify", {"ok", "report"}, (model, of_placed)),
        ("bench", {"rows", "trace"}, (model, of_placed, f"--trace={trace}", "--repeats=2")),
        ("report", {"verdict"}, (of_placed, f"--bench={trace}", f"--output={page}")),
        ("remap", {"devices"}, (of_placed, f"--output_dir={tmp_path / 'moved'}", *swap)),
        ("strip", {"output"}, (of_placed, f"--output_dir={tmp_path / 'stripped'}")),
        ("cluster", {"workers"}, workers),
        ("cluster", {"links"}, ("--describe", f"--output={tmp_path / 'd.yaml'}")),
    ):  # fmt: skip
        status, out, err = command(name, *flags, "--json", "--quiet")
        assert (status, err) == (0, ""), name
        told = json.loads(out)
        assert told["schema_version"] == 1
        assert facts <= told.keys(), name


def test_ctrl_c_ends_what_does_not_come_back() -> None:
    started = process("-c", PROGRAM.format(body=STUBBORN.strip()))
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert err.startswith("interrupted during outer: inner 2/3, after ")
    assert "nothing was written" in err


def test_ctrl_c_ends_what_heeds_it() -> None:
    started = process("-c", PROGRAM.format(body='print("ready", flush=True); time.sleep(600)'))
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert (started.returncode, err.count("interrupted during outer: inner 2/3")) == (130, 1)


def test_ctrl_c_at_the_start_is_no_traceback(tmp_path: Path) -> None:
    """A module that the command imports waits for ever, as a large library seems to."""
    (tmp_path / "numpy.py").write_text(
        "import sys, time\nprint('ready', flush=True)\ntime.sleep(600)\n"
    )
    program = ["-m", "tools.moirai_inspect", "--saved_model_dir=model"]
    started = process(*program, PYTHONPATH=str(tmp_path))
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert (started.returncode, err) == (130, "interrupted at the start; nothing was written\n")


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_shows_the_stage_that_is_open(quiet: bool) -> None:
    master, slave = pty.openpty()
    program = PROGRAM.format(body='time.sleep(1.5); _flags.tell("the result", {})')
    started = process("-c", program, *(["--quiet"] if quiet else []), stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(master, 4096)
        except OSError:  # the terminal's other end is closed
            break
    os.close(master)
    assert started.communicate()[0] == "the result\n"
    assert started.returncode == 0
    assert (b"outer: inner 2/3" in shown) != quiet
    assert (shown == b"") == quiet


def test_stages_of_children_are_those_of_their_parent() -> None:
    from moirai_tf.progress import Progress, observed, stage
    from moirai_tf.runtime.child import Child

    told: list[Progress] = []
    child = Child("a test", timeout_s=300.0, longer="wait")
    with observed(told.append), stage("outer"):
        child.call(_two_steps)
    inside = [(p.done, p.total) for p in told if p.path == ("outer", "in a child")]
    assert inside == [(0, 2), (1, 2), (2, 2), (2, 2)]


def _two_steps() -> None:
    from moirai_tf.progress import stage

    with stage("in a child", 2) as steps:
        steps.advance()
        steps.advance()
