"""Flags made from the option fields of passes, and the frame that every command runs in."""

from __future__ import annotations

import json
import logging
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import app, flags

from moirai_tf.errors import MoiraiError, file_error
from moirai_tf.options import Option, options_of
from moirai_tf.progress import Stopwatch, observed, time_table

from . import VERBOSITY, end_at_start
from ._display import Display, DisplayHandler
from ._interrupt import Interrupted

T = TypeVar("T")
DONE, REFUSED, WRONG = 0, 1, 2
"""Exit statuses; a signal's is 128 and its number."""
SCHEMA_VERSION = 1
"""Of what --json prints; it changes when a fact is renamed or goes."""

_displays: list[Display] = []
"""Of the command that runs: one, or none yet."""
_stopwatch = Stopwatch()
VERBOSE = flags.DEFINE_bool("verbose", False, "also say how the answer came about")
QUIET = flags.DEFINE_bool("quiet", False, "show no progress")
JSON = flags.DEFINE_bool("json", False, "print facts for programs (JSON) instead of text")


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


def run(main: Callable[[], int | None], *, patient: bool = False) -> None:
    """Runs a command; docs/commands.md says with what exit status it ends.

    Args:
      main: the command; it ends with `tell`.
      patient: whether Ctrl-C may take more than two seconds, since the command handles it itself.
    """
    _describe(sys.modules[main.__module__])
    display = Display(quiet=_asked_for("quiet"))
    _displays.append(display)

    def guarded(argv: list[str]) -> int:
        if len(argv) > 1:
            return _wrong(f"unexpected argument {argv[1]!r}", "every input has a flag")
        _log_to(display)
        if signal.getsignal(signal.SIGINT) is end_at_start:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        handle((signal.SIGTERM, signal.SIGHUP), _end)
        interrupted = Interrupted(display, patient=patient)
        try:
            with display, observed(display), observed(_stopwatch):
                status = _with_libraries(main)
            return interrupted.kept(status)
        except MoiraiError as error:
            return _refused(display, error)
        except OSError as error:
            return _refused(display, file_error("a file cannot be used", error))
        except KeyboardInterrupt:
            return interrupted.told()

    app.run(guarded, flags_parser=_parsed)


def tell(text: str, facts: Mapping[str, object]) -> None:
    """What a command has to say: as text, or with --json the same facts for programs.

    Args:
      text: for people.
      facts: name -> value; dataclasses, paths and mappings may be in them.
    """
    for display in _displays:
        display.stop()
    if not JSON.value:
        times = ["", *time_table(_stopwatch.times)] if VERBOSE.value and _stopwatch.times else []
        print("\n".join([text, *times]), flush=True)
        return
    from pydantic_core import to_jsonable_python

    told = {"schema_version": SCHEMA_VERSION, "command": _command(), **facts}
    print(json.dumps(to_jsonable_python(told, inf_nan_mode="strings"), indent=2), flush=True)


def _with_libraries(main: Callable[[], int | None]) -> int:
    """Runs the command with the op libraries that were asked for."""
    if "op_library" in flags.FLAGS and flags.FLAGS["op_library"].value:
        from moirai_tf.model.op_libraries import load_op_libraries  # TensorFlow with it

        load_op_libraries(flags.FLAGS["op_library"].value)
    return main() or DONE


def _refused(display: Display, error: MoiraiError) -> int:
    display.stop()
    print(f"error: {error}", file=sys.stderr)
    if JSON.value:
        tell("", {"error": {"rule": error.rule, "why": error.why, "fix": error.fix}})
    return REFUSED


def _parsed(argv: Sequence[str]) -> list[str]:
    """Arguments without flags; ends the process where they are wrong, or ask for help."""
    try:
        return list(flags.FLAGS(argv))
    except flags.Error as error:
        raise SystemExit(_wrong(str(error), "--help lists the flags")) from error
    except SystemExit:  # absl's status after --help is 1
        raise SystemExit(DONE) from None


def _wrong(what: str, fix: str) -> int:
    print(f"error: {what}\n  fix: {fix}", file=sys.stderr)
    return WRONG


def _asked_for(name: str) -> bool:
    """Whether a switch is on the command line; before flags are parsed."""
    return f"--{name}" in sys.argv or f"--{name}=true" in sys.argv


def _command() -> str:
    return Path(sys.argv[0]).stem


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


def _log_to(display: Display) -> None:
    """What moirai_tf warns of is shown; what others do only with --verbosity."""
    if VERBOSITY is None:
        warnings.simplefilter("ignore")
        for name in ("absl", "tensorflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
    logger = logging.getLogger("moirai_tf")
    logger.setLevel(logging.WARNING)
    logger.addHandler(DisplayHandler(display))
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
