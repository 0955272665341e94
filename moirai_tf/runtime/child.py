"""Calls a function of the package in a process of its own.

TensorFlow fixes its devices when it starts, keeps memory once taken, and crashes with a signal now
and then. What needs other devices, GPUs to itself, or a fresh start runs in a child.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import astuple
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

from moirai_tf.errors import MoiraiError, file_error
from moirai_tf.model.op_libraries import op_libraries
from moirai_tf.progress import Progress, observed, reporter
from moirai_tf.runtime.devices import has_whole_gpus
from moirai_tf.runtime.nursery import nursery

P = ParamSpec("P")
R = TypeVar("R")

_END_TIMEOUT_S = 10.0
"""For a child that is not wanted any more."""
_FILE_FAULT = 128
"""Exit status of a child that cannot write its answer, plus the system's error number."""
_HIDDEN_GPUS = {"CUDA_VISIBLE_DEVICES": "-1", "TF_PLUGGABLE_DEVICE_LIBRARY_PATH": ""}


class Child:
    """How a child process is run.

    Attributes:
      purpose: what it does, as a noun for messages: `verification`.
      timeout_s: when it is given up.
      longer: what to do if that is too short.
      environment: variables of its own, beyond those of this process.
    """

    def __init__(
        self,
        purpose: str,
        *,
        timeout_s: float,
        longer: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.purpose = purpose
        self.timeout_s = timeout_s
        self.longer = longer
        self.environment = dict(environment or {})

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of a module's function, called in a new process.

        It has the same op libraries, and whole GPUs. Arguments and result go through files that
        only these two processes read; the child's own temporary files are beside them, and go with
        them however it ends.

        Raises:
          MoiraiError: the function raised it, took too long, its process died, or this process
            does not have its GPUs whole.
        """
        if not (has_whole_gpus() or self.environment.items() >= _HIDDEN_GPUS.items()):
            raise MoiraiError(
                f"{self.purpose} cannot have the GPUs that tf.config hides or divides here",
                why="it runs in a process of its own, and TensorFlow's Sessions take whole GPUs",
                fix="hide GPUs with CUDA_VISIBLE_DEVICES before Python starts, and set no visible "
                "or logical GPUs in this process",
            )
        try:
            with tempfile.TemporaryDirectory(prefix="moirai_child_") as work:
                job, answer = Path(work) / "job", Path(work) / "answer"
                job.write_bytes(pickle.dumps((op_libraries(), function, args, kwargs)))
                self._run(work, function.__module__)
                raised, result = pickle.loads(answer.read_bytes())
        except OSError as error:
            raise file_error(f"{self.purpose} cannot use a file", error) from error
        if raised is not None:
            raise raised
        returned: R = result
        return returned

    def _run(self, work: str, module: str) -> None:
        with _told() as telling, tempfile.TemporaryFile() as output, nursery() as home:
            wanted, held = os.pipe()  # it ends with this process, and tells the attendant of that
            environment = {**_inherited(), **self.environment}
            preload = module if module.startswith("moirai_tf.") else __name__
            request = {"module": __name__, "work": work, "preload": preload}
            status, process = home.start(environment, request, (wanted, telling, output.fileno()))
            os.close(wanted)
            try:
                said = _read(status, time.monotonic() + self.timeout_s)
            except TimeoutError as error:
                raise MoiraiError(
                    f"{self.purpose} took longer than {self.timeout_s:g} s",
                    why="it runs the model in a process of its own, which is ended then",
                    fix=self.longer,
                ) from error
            finally:
                os.close(held)
                with suppress(TimeoutError):
                    _read(status, time.monotonic() + _END_TIMEOUT_S)
                os.close(status)
            if said:
                output.seek(0)
                self._check(int(said.strip() or -signal.SIGKILL), output.read())
            else:
                self._check(*process.obituary())

    def _check(self, code: int, output: bytes) -> None:
        """Raises what a child's exit code and its last words mean."""
        if code > _FILE_FAULT:
            fault = code - _FILE_FAULT
            raise OSError(fault, f"{os.strerror(fault)}, where its answer should be")
        if code != 0:
            last = output.decode(errors="replace").strip().splitlines()[-3:]
            raise self._death(code, " | ".join(last) or "it said nothing")

    def _death(self, code: int, said: str) -> MoiraiError:
        """What a child's exit code means."""
        if code > 0:
            return MoiraiError(
                f"the process of {self.purpose} ended with an error: {said}",
                why="nothing that it was to find out is known",
                fix="report this as a fault of moirai_tf, with the model if that is possible",
            )
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        killed = code == -signal.SIGKILL
        return MoiraiError(
            f"the process of {self.purpose} died of {name}: {said}",
            why="the system ends a process with SIGKILL when there is too little memory"
            if killed
            else "that is a crash in TensorFlow, or in a library that the model uses",
            fix="free memory, or use smaller inputs (batch_size, --inputs)"
            if killed
            else "run the original alone: if it crashes too, export it otherwise; else report it",
        )


def at_once(calls: Sequence[Callable[[], R]]) -> list[R]:
    """The results of calls that wait for children, made at the same time.

    Raises:
      MoiraiError: what the first of them raised that failed.
    """
    results: list[R | BaseException | None] = [None] * len(calls)

    def call(number: int) -> None:
        try:
            results[number] = calls[number]()
        except BaseException as error:  # raised again in the caller's thread
            results[number] = error

    with nursery():
        threads = [
            threading.Thread(target=copy_context().run, args=(call, number), daemon=True)
            for number in range(len(calls))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[R], results)


@contextmanager
def _told() -> Iterator[int]:
    """A descriptor to which a child writes its stages; the observers of here are told of them."""
    reading, writing = os.pipe()
    report = reporter()

    def pass_on() -> None:
        with open(reading, "rb") as lines:
            for line in lines:
                report(Progress(*json.loads(line)))

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield writing
    finally:
        os.close(writing)
        thread.join()


def without_gpus(names: Iterable[str]) -> dict[str, str]:
    """Variables that hide GPUs from a child unless one of its devices is a GPU.

    Otherwise TensorFlow would run what asks for no device on a GPU.
    """
    return {} if any("GPU:" in name for name in names) else dict(_HIDDEN_GPUS)


def _inherited() -> dict[str, str]:
    """The child finds the same package, is quiet, and leaves GPU memory to others."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
    }


def _read(descriptor: int, deadline: float) -> bytes:
    """All that comes until the other end is closed.

    Raises:
      TimeoutError: that is later than the deadline.
    """
    parts = [b" "]
    while parts[-1]:
        left_s = max(0.0, deadline - time.monotonic())
        if not select.select([descriptor], [], [], left_s)[0]:
            raise TimeoutError
        parts.append(os.read(descriptor, 64))
    return b"".join(parts[1:])


def _serve(work: Path, telling: int) -> None:
    """The child's part."""

    def tell(told: Progress) -> None:
        os.write(telling, json.dumps(astuple(told)).encode() + b"\n")

    with observed(tell):
        _answer(work)


def _answer(work: Path) -> None:
    libraries, function, args, kwargs = pickle.loads((work / "job").read_bytes())
    outcome: tuple[MoiraiError | None, Any]
    try:
        libraries.load()
        outcome = (None, function(*args, **kwargs))
    except MoiraiError as error:
        outcome = (error, None)
    except OSError as error:
        outcome = (file_error("a file cannot be used", error), None)
    text = pickle.dumps(outcome)
    try:
        (work / "answer").write_bytes(text)
    except OSError as error:
        os._exit(_FILE_FAULT + (error.errno or 0))


def main(work: Path, telling: int) -> NoReturn:
    """The child's part, called by its nursery."""
    try:
        _serve(work, telling)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # TensorFlow waits at exit, for ever, for workers that are gone
