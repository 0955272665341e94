"""Names of operators as people read them."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable

_CALLS = re.compile(r"^((Stateful)?PartitionedCall(_\d+)?/)+")


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Names without calls that TensorFlow inlined, and without what all scopes begin with.

    Names that would be equal then stay as they are.
    """
    known = list(names)
    called = {name: _CALLS.sub("", name) for name in known}
    scopes = [posixpath.dirname(name) for name in called.values() if "/" in name]
    prefix = f"{posixpath.commonpath(scopes)}/" if scopes else ""
    short = {name: called[name].removeprefix(prefix) for name in known}
    often = Counter(short.values())
    return {name: name if often[other] > 1 else other for name, other in short.items()}
