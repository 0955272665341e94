"""Flags made from the option fields of passes, and the frame that every command runs in."""

from __future__ import annotations

import logging
import signal
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from absl import app, flags

from moirai_tf.errors import MoiraiError, file_error
from moirai_tf.options import Option, options_of

T = TypeVar("T")


def define(*classes: type) -> None:
    """Defines one flag for every option field of the given dataclasses."""
    seen: set[str] = set()
    for cls in classes:
        for known in options_of(cls):
            if known.name not in seen:
                _define_one(known)
            seen.add(known.name)


def build(cls: type[T]) -> T:
    """An instance of a dataclass whose option fields come from the flags."""
    return cls(**{known.name: _value(known) for known in options_of(cls)})


def run(main: Callable[[], int | None]) -> None:
    """Runs a command: exit status 0 when done, 1 with the error's text when a rule was broken."""

    _describe(sys.modules[main.__module__])

    def guarded(argv: list[str]) -> int:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; every input has a flag")
        _show_progress()
        handle((signal.SIGTERM, signal.SIGHUP), _end)
        try:
            if "op_library" in flags.FLAGS and flags.FLAGS["op_library"].value:
                from moirai_tf.model.op_libraries import load_op_libraries  # TensorFlow with it

                load_op_libraries(flags.FLAGS["op_library"].value)
            return main() or 0
        except MoiraiError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except OSError as error:
            print(f"error: {file_error('a file cannot be used', error)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT

    app.run(guarded)


def handle(numbers: Iterable[int], handler: Callable[[int, Any], object]) -> None:
    """Sets a handler of signals, but of none that is ignored, as nohup has it."""
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _end(number: int, _: object) -> None:
    """Ends the command as an exception does, so that whatever it began is undone."""
    raise SystemExit(128 + number)


def _describe(module: types.ModuleType) -> None:
    """Makes `--help` show a command's docstring and all its flags, installed or not."""
    sys.modules["__main__"].__doc__ = module.__doc__
    for name in (module.__name__, __name__):
        for flag in flags.FLAGS.get_flags_for_module(name):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _show_progress() -> None:
    """Long steps report on a terminal; in a pipe there are warnings only."""
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logger = logging.getLogger("moirai_tf")
    logger.setLevel(logging.INFO if sys.stderr.isatty() else logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate = False


def _define_one(known: Option) -> None:
    if known.choices is not None:
        flags.DEFINE_enum(known.name, known.default, list(known.choices), known.help)
    elif known.kind is bool:
        flags.DEFINE_bool(known.name, known.default, known.help)
    elif known.kind is int:
        flags.DEFINE_integer(known.name, known.default, known.help)
    elif known.kind is float:
        flags.DEFINE_float(known.name, known.default, known.help)
    elif known.kind is tuple:
        flags.DEFINE_multi_string(known.name, list(known.default), f"{known.help} (repeatable)")
    else:
        flags.DEFINE_string(known.name, known.default, known.help)


def _value(known: Option) -> Any:
    value = flags.FLAGS[known.name].value
    return tuple(value or ()) if known.kind is tuple else value
