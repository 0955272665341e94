"""Failures of loading or running a model: what TensorFlow says, in one line, and what helps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tensorflow as tf

from moirai_tf.errors import MoiraiError
from moirai_tf.model.op_libraries import advice

FAILURES = (tf.errors.OpError, ValueError, TypeError, OSError)
"""What TensorFlow raises for a graph that cannot be loaded or run."""

_MOST = 300
"""Characters of a message that are passed on."""

_FRAME = re.compile(
    r"Graph execution error:|=+|(\w+: )?From /job:\S+:|Detected at node .*|Node: '.*'"
    r"|<stack traces unavailable>|Restoring from checkpoint failed\..*|Original stack trace for .*"
    r"|Traceback \(most recent call last\):.*|During handling of the above exception.*"
    r"|\d+ root error\(s\) found\.|\d+ (successful operations|derived errors ignored)\."
    r"|Hint: .*|\[Op:.*"
)
"""Lines that TensorFlow and Python write around the message of an operator."""

_NODE = re.compile(r"\[\[\{\{node (\S+?)\}\}|\[\[(\S+?)\]\]|Detected at node '?([^\s']+)")
_ROOT = re.compile(r"\s+\(\d+\) ")
"""Start of one of several errors; other indented lines are code and lists."""
_MARKS = re.compile(r"^(\(\d+\) \w+( \w+)*: +)?(\{\{\w+ \S+\}\} )*")

_UNKNOWN_OP = re.compile(
    r"Op type not registered '(?P<op>[^']+)' in binary running on (?P<host>\S+?)\.? "
)
_SERVERS = (
    "TensorFlow servers need it too: import it before tf.distribute.Server, or start them with "
    "moirai_cluster --op_library"
)
_INPUTS = "give inputs that the model accepts (--inputs)"
_AGAIN = "TensorFlow itself cannot do it either"
_CAUSES = (
    (
        r"OOM when allocating|out of memory|Dst tensor is not initialized",
        "use a smaller batch_size or inputs, free memory, or give the device less memory in the "
        "cluster file: TensorFlow's allocator may take twice what a tensor needs",
    ),
    (
        r"No OpKernel was registered to support Op '(?P<op>\w+)'",
        "this machine has no kernel of {op} for a device that is used: use a machine and a "
        "TensorFlow that have one",
    ),
    (
        r"unknown node '(?P<node>[^']*)'",
        f"{_AGAIN}: the model names the operator '{{node}}', which it does not have, in a "
        "colocation (_class); export it again",
    ),
    (
        r"(?:incompatible device '|explicitly assigned to )(?P<device>/\S+?)(?:'| but|$)",
        "the model itself asks for {device}, which is not here: export it without devices "
        "(clear_devices=True, or outside tf.device)",
    ),
    (
        r"sstable|Read less bytes|not found in checkpoint|variables\.data|variables\.index|"
        r"[Cc]hecksum does not match|DataLoss",
        "the files in variables/ are damaged or missing: copy the whole model directory again",
    ),
    (
        r"assets?/\S*; No such file",
        "a file in assets/ is missing: copy the whole model directory again",
    ),
    (
        r"Could not find variable|uninitialized value|not initialized|Failed to read resource",
        f"{_AGAIN}: the model holds no value for it; initialise and save all variables and tables "
        "when exporting (Keras 3: model.export)",
    ),
    (
        r"No space left on device|File too large|[Dd]isk quota exceeded",
        "free space there (TMPDIR says where temporary files go), or raise the limit (ulimit -f)",
    ),
    (r"Permission denied|Read-only file system", "make that file or place readable and writable"),
    (
        r"[Cc]ould not find callback|callback \S+ is not found",
        "a SavedModel does not hold the Python code of numpy_function and py_function: export the "
        "model without it",
    ),
)  # fmt: skip
"""Pattern in TensorFlow's message -> what helps; the first that is found counts."""


class LoadingError(Exception):
    """A model could not be loaded; the cause may be any exception of its Python code."""


@contextmanager
def loading() -> Iterator[None]:
    """Tells failures of loading from those of running.

    Raises:
      LoadingError: anything but a `MoiraiError` was raised.
    """
    try:
        yield
    except MoiraiError:
        raise
    except Exception as error:
        raise LoadingError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a model did not load or run."""

    text: str
    """What was said, in one line, with the operator that said it."""
    fix: str
    known: bool = False
    """The cause is known, so the advice is about it."""


def failure_of(error: BaseException, *, loading: bool = False) -> Failure:
    """Reads an exception.

    Args:
      error: what was raised; any exception, as loading may run Python code of the user's.
      loading: whether the model was being loaded, so that its inputs are not to blame.
    """
    if isinstance(error, LoadingError) and error.__cause__ is not None:
        error, loading = error.__cause__, True
    whole, text = str(error), reason(error)
    if found := _UNKNOWN_OP.search(whole):
        where = f"the process on {found['host']} does not have {found['op']}: "
        return Failure(text, f"{where}{advice([found['op']])}; {_SERVERS}", known=True)
    for pattern, fix in _CAUSES:
        if found := re.search(pattern, whole):
            return Failure(text, fix.format(**found.groupdict()), known=True)
    if loading or not (isinstance(error, tf.errors.OpError) or "annot feed value" in whole):
        return Failure(text, f"{_AGAIN}: export the model again, so that it loads and runs")
    return Failure(text, _INPUTS)


def reason(error: BaseException) -> str:
    """The line of a message that says what happened, and the operator that it happened to."""
    whole = str(error)
    own = (line for line in whole.splitlines() if not line[:1].isspace() or _ROOT.match(line))
    lines = [_MARKS.sub("", line.strip()) for line in own]
    said = [line for line in lines if line and not _FRAME.fullmatch(line)]
    text = said[0][:_MOST] if said else whole.strip().partition("\n")[0][:_MOST]
    text = text or type(error).__name__
    if not isinstance(error, tf.errors.OpError) and said:
        text = f"{type(error).__name__}: {text}"
    node = next((name for found in _NODE.finditer(whole) for name in found.groups() if name), "")
    named = not node or re.search(rf"(?<![\w/]){re.escape(node)}(?![\w/])", text)
    return text if named else f"{text} (operator {node!r})"


@contextmanager
def explained(
    what: str,
    why: str,
    *,
    loading: bool = False,
    otherwise: str = "",
    failures: tuple[type[Exception], ...] = FAILURES,
) -> Iterator[None]:
    """Turns what TensorFlow raises into an error for users.

    Args:
      what: what could not be done.
      why: why it must be.
      loading: whether the model is being loaded, so that its inputs are not to blame.
      otherwise: what can be done instead of mending the model.
      failures: what counts as one; `OpError` alone where more is done than load or run a model.

    Raises:
      MoiraiError: with the cause, and what helps against it.
    """
    try:
        yield
    except failures as error:
        failure = failure_of(error, loading=loading)
        fix = f"{failure.fix}{f'; or {otherwise}' if otherwise else ''}"
        raise MoiraiError(f"{what}: {failure.text}", why=why, fix=fix) from error
