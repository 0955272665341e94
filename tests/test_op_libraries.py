"""Models with ops that TensorFlow lacks: told with what has them, run where that is loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from moirai_tf.errors import MoiraiError
from moirai_tf.model.op_libraries import advice, load_op_libraries
from moirai_tf.model.saved_model import read_saved_model
from tests.cost_cases import saved, spec
from tests.saved_models import edited
from tests.test_commands import COMMANDS, run

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "configs" / "two_local_cpus.yaml"

_FAST = "repeats=1, warmup=1, grappler='off', loaders=('session',)"


def _compiled(path: Path, *flags: str) -> Path:
    """A shared object that defines MoiraiTwice."""
    home = Path(tf.__file__).parent
    subprocess.run(
        ["g++", "-std=c++17", "-shared", "-fPIC", *flags, f"-I{home / 'include'}",
         str(ROOT / "tests" / "op_library.cc"), "-o", str(path), f"-L{home}",
         "-l:libtensorflow_framework.so.2"],
        check=True,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that this process does not load."""
    return _compiled(tmp_path_factory.mktemp("library") / "twice.so")


def _renamed(op: str) -> Callable[[Any], None]:
    def rename(meta_graph: Any) -> None:
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "Tanh":
                    node.op = op
                    node.attr.clear()

    return rename


@pytest.fixture(scope="module")
def tanh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    call = tf.function(
        lambda x: {"y": tf.sin(tf.tanh(x)) + x}, input_signature=[spec(2, 3, name="x")]
    )
    return saved(call, tmp_path_factory.mktemp("tanh") / "m").path


@pytest.fixture(scope="module")
def model(tanh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = sin(twice(x)) + x."""
    return edited(tanh, tmp_path_factory.mktemp("twice") / "m", _renamed("MoiraiTwice"))


def _python(script: str, *arguments: object) -> str:
    """What a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


KNOWN_OPS = (
    ("TFText>NgramsStringJoin", "tensorflow_text", "tensorflow-text"),
    ("SentencepieceTokenizeOp", "tensorflow_text", "tensorflow-text"),
    ("Addons>Resampler", "tensorflow_addons", "tensorflow-addons"),
    ("SimpleMLInferenceOpWithHandle", "tensorflow_decision_forests", "decision-forests"),
    ("IO>DecodeJSON", "tensorflow_io", "tensorflow-io"),
    ("SentencepieceEncodeSparse", "tf_sentencepiece", "tf-sentencepiece"),
)
"""Op, module and package."""


def _refusals(*paths: Path) -> list[str]:
    """Why models are refused by a process that has loaded nothing, as other tests here may have."""
    script = """
import sys
from moirai_tf.errors import MoiraiError
from moirai_tf.model.saved_model import read_saved_model
for path in sys.argv[1:]:
    try:
        print(repr(str(read_saved_model(path))))
    except MoiraiError as error:
        print(repr(str(error)))
"""
    return _python(script, *paths).splitlines()


def test_well_known_ops_are_told_with_their_package(tanh: Path, tmp_path: Path) -> None:
    paths = [
        edited(tanh, tmp_path / f"m{number}", _renamed(op))
        for number, (op, _, _) in enumerate(KNOWN_OPS)
    ]
    for (op, module, package), refusal in zip(KNOWN_OPS, _refusals(*paths), strict=True):
        assert f"does not know: {op}\\n" in refusal
        assert f"import {module} first" in refusal
        assert f"--op_library={module}" in refusal
        assert package in refusal


def test_every_op_of_tensorflow_text_is_known() -> None:
    """The table against the registry of a process that has imported it."""
    script = """
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.client import pywrap_tf_session as session
def ops():
    text = session.TF_GetBuffer(session.TF_GetAllOpList())
    return {op.name for op in op_def_pb2.OpList.FromString(text).op}
before = ops()
import tensorflow_text
print(*sorted(ops() - before))
"""
    names = _python(script).split()
    assert len(names) > 20
    assert [name for name in names if "tensorflow_text" not in advice([name])] == []


def test_other_ops_are_all_named(tanh: Path, tmp_path: Path) -> None:
    def rename(meta_graph: Any) -> None:
        _renamed("NobodysOp")(meta_graph)
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "Sin":
                    node.op = "NobodysOther"

    with pytest.raises(MoiraiError, match="does not know: NobodysOp, NobodysOther") as caught:
        read_saved_model(edited(tanh, tmp_path / "m", rename))
    assert "--op_library=path/to/ops.so" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "rule", "fix"),
    [
        ("no_such_module", "No module named 'no_such_module'", "pip install no_such_module"),
        ("tensorflow_addons", "No module named", "pip install tensorflow-addons"),
        ("/no/such/ops.so", "No such file", "give the path"),
        (str(CLUSTER), "invalid ELF header|file too short", "a build of it for this TensorFlow"),
    ],
)
def test_libraries_that_cannot_be_loaded(name: str, rule: str, fix: str) -> None:
    with pytest.raises(MoiraiError, match=rule) as caught:
        load_op_libraries([name])
    assert repr(name) in caught.value.rule
    assert fix in caught.value.fix


def test_advice_is_followed_in_the_same_process(model: Path, library: Path, tmp_path: Path) -> None:
    """Refused, then placed with the file as an option; x = 1 gives sin(2) + 1."""
    script = f"""
import sys, numpy as np, tensorflow as tf, moirai_tf
source, library, output = sys.argv[1:]
try:
    moirai_tf.optimize(source, output)
except moirai_tf.MoiraiError as error:
    print(error)
summary = moirai_tf.optimize(
    source, output, {str(CLUSTER)!r}, op_library=(library,), pin=("Sin=/device:CPU:1",), {_FAST}
)
print("verified" if summary.report.ok else "not verified", summary.used)
loaded = tf.saved_model.load(output).signatures["serving_default"]
print(loaded(x=tf.ones([2, 3]))["y"].numpy()[0, 0])
"""
    text = _python(script, model, library, tmp_path / "placed")
    assert "does not know: MoiraiTwice" in text
    assert "verified" in text
    assert text.splitlines()[-1] == str(np.float32(np.sin(np.float32(2.0)) + np.float32(1.0)))


def test_imported_package_is_enough(tmp_path: Path) -> None:
    """`import tensorflow_text` alone: verification's process has it too. "a b c" is three words."""
    script = f"""
import sys, tensorflow as tf, tensorflow_text as text, moirai_tf
path, output = sys.argv[1:]
tokenizer = text.WhitespaceTokenizer()
@tf.function(input_signature=[tf.TensorSpec([2], tf.string, "x")])
def call(x):
    return {{"y": tokenizer.tokenize(x).row_lengths()}}
module = tf.Module()
module.call = call
tf.saved_model.save(module, path, signatures=call)
summary = moirai_tf.optimize(path, output, {str(CLUSTER)!r}, {_FAST})
print("verified" if summary.report.ok else "not verified")
lengths = tf.saved_model.load(output).signatures["serving_default"](tf.constant(["a b c", "d"]))
print(lengths["y"].numpy().tolist())
"""
    text = _python(script, tmp_path / "m", tmp_path / "placed")
    assert text.split("\n")[-3:-1] == ["verified", "[3, 1]"]
    (refusal,) = _refusals(tmp_path / "m")
    assert "WhitespaceTokenizeWithOffsetsV2" in refusal
    assert "--op_library=tensorflow_text" in refusal
    script = "import sys; sys.argv[0] = 'i'; from tools.moirai_inspect import entry; entry()"
    flags = (f"--saved_model_dir={tmp_path / 'm'}", "--op_library=tensorflow_text")
    assert "WhitespaceTokenizeWithOffsetsV2" in _python(script, *flags)


def test_file_that_needs_its_package_comes_with_it(model: Path, tmp_path: Path) -> None:
    """A package of the user's loads a library that the one with the op needs."""
    package = tmp_path / "twice_package"
    package.mkdir()
    _compiled(package / "twice.so", "-DNEEDS_HELPER")
    (package / "helper.c").write_text("int moirai_helper(void) { return 0; }")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", package / "helper.c", "-o", package / "helper.so"], check=True
    )
    (package / "__init__.py").write_text(
        "import ctypes, os, tensorflow as tf\n"
        "here = os.path.dirname(__file__)\n"
        "ctypes.CDLL(os.path.join(here, 'helper.so'), ctypes.RTLD_GLOBAL)\n"
        "tf.load_op_library(os.path.join(here, 'twice.so'))\n"
    )
    script = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
import twice_package
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.runtime.child import Child
print(Child("a test", timeout_s=600, longer="").call(read_saved_model, Path(sys.argv[2])).path)
"""
    assert _python(script, tmp_path, model).strip() == str(model)


@pytest.mark.parametrize("command", [*COMMANDS, "cluster"])
def test_every_command_that_meets_a_model_has_the_option(command: str) -> None:
    done = run(command, "--help")
    assert "--op_library: module to import, or .so file to load" in done.stdout


@pytest.mark.slow
def test_workers_without_the_library_are_told(model: Path, library: Path, tmp_path: Path) -> None:
    """First they lack it, then they have what the process has that starts them."""
    script = """
import sys, moirai_tf
from moirai_tf.model.op_libraries import load_op_libraries
from moirai_tf.bench.local_cluster import local_cluster
source, library, output = sys.argv[1:]
with local_cluster([1.0, 1.0]) as workers:
    load_op_libraries([library])
    for options in ({}, {"source": "measure", "links": "cluster"}):
        try:
            moirai_tf.optimize(source, output, workers.cluster, verify=False, **options)
        except moirai_tf.MoiraiError as error:
            print(error)
with local_cluster([1.0, 1.0]) as workers:
    options = {"loaders": ("cluster",), "grappler": "off", "repeats": 2, "warmup": 1}
    summary = moirai_tf.optimize(source, output, workers.cluster, **options)
    print("verified" if summary.report.ok else "not verified")
"""
    text = _python(script, model, library, tmp_path / "placed")
    assert text.count("Op type not registered 'MoiraiTwice'") == 2
    assert "does not have MoiraiTwice" in text
    assert "moirai_cluster --op_library" in text
    assert text.splitlines()[-1] == "verified"


def test_servers_that_lack_an_op(model: Path, library: Path, tmp_path: Path) -> None:
    """The model's only call needs it: nothing runs when a model without variables is loaded."""
    script = """
import sys
from pathlib import Path
import numpy as np
import moirai_tf
from moirai_tf.model.op_libraries import load_op_libraries
from moirai_tf.bench.local_cluster import local_cluster
from tests.placements import place
source, library, output = sys.argv[1:]
with local_cluster([1.0, 1.0]) as workers:
    load_op_libraries([library])
    devices = tuple(device.name for device in workers.cluster.devices)
    place(Path(source), Path(output), placement={}, devices=devices)
    try:
        with moirai_tf.connect(output, workers.cluster) as connected:
            connected(x=np.ones([2, 3]))
    except moirai_tf.MoiraiError as error:
        print(error)
"""
    text = _python(script, model, library, tmp_path / "placed")
    assert "the model cannot be run on cluster 'local': Op type not registered 'Moirai" in text
    assert "does not have MoiraiTwice" in text
    assert "moirai_cluster --op_library" in text
