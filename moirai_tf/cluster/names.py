"""Names of devices as people say them."""

from __future__ import annotations

from collections.abc import Iterable


def short_devices(names: Iterable[str]) -> dict[str, str]:
    """`/device:GPU:0` -> `GPU:0`, and of servers' devices what tells them apart: `task:1`."""
    parts = {name: name.removeprefix("/").split("/") for name in names}
    told = {name: [part.removeprefix("device:") for part in split] for name, split in parts.items()}
    if len({len(split) for split in told.values()}) == 1 and len(told) > 1:
        columns = list(zip(*told.values(), strict=True))
        differ = [number for number, column in enumerate(columns) if len(set(column)) > 1]
        return {name: "/".join(split[number] for number in differ) for name, split in told.items()}
    return {name: split[-1] if len(told) == 1 else "/".join(split) for name, split in told.items()}
