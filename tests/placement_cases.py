"""Problems for the placement tests: hand-made, random, and generated at size."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from moirai_tf.placement import Device, Operator, Problem, Tensor

MODES = [(t, c) for t in ("per_tensor", "per_edge") for c in ("port", "link", "none")]


def uniform(time_ns: int, devices: int) -> tuple[tuple[int, ...], ...]:
    """The same time between any two different devices."""
    return tuple(tuple(0 if k == m else time_ns for m in range(devices)) for k in range(devices))


def problem_of(
    compute: dict[str, tuple[int | None, ...]],
    edges: list[tuple[str, str, int]],
    *,
    memory: dict[str, int] | None = None,
    capacity: tuple[int | None, ...] | None = None,
    **fields: object,
) -> Problem:
    """A problem from names; `edges` are (producers, consumers, time), consumers by spaces."""
    names = list(compute)
    devices = len(next(iter(compute.values())))
    limits = capacity or (None,) * devices
    memory = memory or {}
    return Problem(
        name="hand-made",
        devices=tuple(Device(f"d{k}", limits[k]) for k in range(devices)),
        operators=tuple(Operator(n, compute[n], memory.get(n, 0)) for n in names),
        tensors=tuple(
            Tensor(
                names.index(producer),
                tuple(names.index(consumer) for consumer in consumers.split()),
                uniform(time_ns, devices),
            )
            for producer, consumers, time_ns in edges
        ),
        **fields,  # type: ignore[arg-type]
    )


@st.composite
def problems(draw: st.DrawFn, most_operators: int = 5, most_devices: int = 3) -> Problem:
    """Small problems in all modes: bans, memory, colocation, zero times, several consumers."""
    transfers, congestion = draw(st.sampled_from(MODES))
    devices = draw(st.integers(1, most_devices))
    count = draw(st.integers(1, most_operators))
    operators = [draw(_operators(index, devices)) for index in range(count)]
    tensors = draw(st.lists(_tensors(count, devices), max_size=5)) if count > 1 else []
    group = tuple(sorted(draw(st.sets(st.integers(0, count - 1), max_size=2))))
    rows = [operators[i].compute_ns for i in group]
    common = [k for k in range(devices) if all(row[k] is not None for row in rows)]
    total = sum(operator.memory_bytes for operator in operators)
    capacity = st.none() | st.integers(total // devices, total + 1)
    return Problem(
        name="random",
        devices=tuple(Device(f"d{k}", draw(capacity)) for k in range(devices)),
        operators=tuple(operators),
        tensors=tuple(tensors),
        colocation=(group,) if len(group) > 1 and common else (),
        transfers=transfers,
        congestion=congestion,
    )


@st.composite
def _operators(draw: st.DrawFn, index: int, devices: int) -> Operator:
    time = st.integers(0, 6)
    row = draw(st.lists(time | st.none(), min_size=devices, max_size=devices))
    if all(entry is None for entry in row):
        row[draw(st.integers(0, devices - 1))] = draw(time)
    return Operator(f"o{index}", tuple(row), draw(st.integers(0, 4)))


@st.composite
def _tensors(draw: st.DrawFn, count: int, devices: int) -> Tensor:
    producer = draw(st.integers(0, count - 2))
    consumers = draw(st.sets(st.integers(producer + 1, count - 1), min_size=1, max_size=3))
    times = iter(draw(st.lists(st.integers(0, 6), min_size=devices**2, max_size=devices**2)))
    table = tuple(tuple(next(times) * (k != m) for m in range(devices)) for k in range(devices))
    return Tensor(producer, tuple(sorted(consumers)), table)


def layered(operators: int, devices: int = 4, seed: int = 0, slack: float = 1.25) -> Problem:
    """A stack of blocks of four branches of two operators, with binding memory."""
    generator = random.Random(seed)
    speeds = [0.6 + 0.6 * k for k in range(devices)]
    tables = [uniform(time, devices) for time in (2_000, 8_000, 20_000)]
    built: list[Operator] = []
    tensors: list[Tensor] = []

    def add(inputs: list[int]) -> int:
        work = generator.randint(5_000, 50_000)
        times = tuple(int(work / speed * generator.uniform(0.8, 1.25)) for speed in speeds)
        built.append(Operator(f"o{len(built)}", times, generator.randint(1_000, 9_000)))
        for producer in inputs:
            tensors.append(Tensor(producer, (len(built) - 1,), generator.choice(tables)))
        return len(built) - 1

    last = add([])
    while len(built) + 9 <= operators:
        ends = [add([add([last])]) for _ in range(4)]
        last = add(ends)
    while len(built) < operators:
        last = add([last])
    need = sum(operator.memory_bytes for operator in built)
    share = int(need * slack / devices)
    return Problem(
        name=f"layered-{operators}",
        devices=tuple(Device(f"d{k}", share) for k in range(devices)),
        operators=tuple(built),
        tensors=tuple(tensors),
    )
