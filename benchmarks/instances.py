"""Generated placement problems of the shapes that deep networks have, with binding memory.

Devices differ in speed and in what they are good at; moving a tensor costs latency and bytes.
Equal layers are equal operators, as in the models that they stand for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from moirai_tf.placement import Device, Operator, Problem, Tensor

SPEEDS = {
    2: (1.5, 1.0),
    4: (2.5, 1.5, 1.0, 0.6),
    8: (2.5, 2.1, 1.5, 1.3, 1.0, 0.9, 0.6, 0.5),
}
_FASTEST_SHARE = {2: 0.6, 4: 0.3, 8: 0.2}
"""Part of all memory that the fastest device has; the others share the rest evenly."""
_MEAN_WORK_NS = 200_000
_WAY = 0.7
"""Mean time of a transfer, relative to the mean time of an operator; a fifth of it is latency."""


@dataclass
class Network:
    """A graph that grows; kinds of operators decide work, bytes and which devices suit them."""

    seed: int
    works: list[tuple[str, float, float, float]] = field(default_factory=list)
    """Kind, work, weights and output of each operator, relative to an average one."""
    readers: list[list[int]] = field(default_factory=list)

    def add(
        self,
        kind: str,
        inputs: Sequence[int],
        work: float = 1.0,
        weights: float = 0.0,
        output: float = 1.0,
    ) -> int:
        """A new operator that reads the outputs of others."""
        self.works.append((kind, work, weights, output))
        self.readers.append([])
        for producer in dict.fromkeys(inputs):
            self.readers[producer].append(len(self.works) - 1)
        return len(self.works) - 1

    def problem(self, name: str, devices: int, slack: float | None, way: float = _WAY) -> Problem:
        """The placement problem.

        Args:
          name: of the problem.
          devices: 2, 4 or 8.
          slack: all memory over what is needed; None for no limits.
          way: mean time of a transfer over the mean time of an operator.
        """
        speeds = SPEEDS[devices]
        affinity = {
            kind: [random.Random(f"{self.seed} {kind} {k}").uniform(0.8, 1.25) for k in range(8)]
            for kind in sorted({kind for kind, *_ in self.works})
        }
        mean = sum(work for _, work, _, _ in self.works) / len(self.works)
        operators = tuple(
            Operator(
                f"{kind}_{number}",
                tuple(
                    round(_MEAN_WORK_NS * work / mean / speed / affinity[kind][k])
                    for k, speed in enumerate(speeds)
                ),
                round(1_000_000 * (4 * weights + output)),
            )
            for number, (kind, work, weights, output) in enumerate(self.works)
        )
        times = [time for operator in operators for time in operator.compute_ns if time is not None]
        mean_way_ns = way * sum(times) / len(times)
        tables = {
            size: _table(devices, mean_way_ns * (0.2 + 0.8 * size))
            for size in sorted({output for *_, output in self.works})
        }
        return Problem(
            name=name,
            devices=_devices(devices, slack, sum(o.memory_bytes for o in operators)),
            operators=operators,
            tensors=tuple(
                Tensor(producer, tuple(readers), tables[self.works[producer][3]])
                for producer, readers in enumerate(self.readers)
                if readers
            ),
        )


def _devices(count: int, slack: float | None, need_bytes: int) -> tuple[Device, ...]:
    shares = [_FASTEST_SHARE[count], *[(1 - _FASTEST_SHARE[count]) / (count - 1)] * (count - 1)]
    return tuple(
        Device(f"d{k}", None if slack is None else int(slack * share * need_bytes))
        for k, share in enumerate(shares)
    )


def _table(devices: int, way_ns: float) -> tuple[tuple[int, ...], ...]:
    """Links between neighbouring pairs of devices are faster than the others."""
    return tuple(
        tuple(0 if k == m else round(way_ns * (0.7 if k // 2 == m // 2 else 1.1)) for m in devices_)
        for k, devices_ in enumerate([range(devices)] * devices)
    )


def gpt(network: Network, operators: int) -> None:
    """Decoder layers: attention with three projections, then the feed-forward part."""
    last = network.add("embed", [], 0.5, 2.0)
    while len(network.works) + 15 <= operators:
        last = feed_forward(network, attention(network, last, [last]))
    last = network.add("norm", [last], 0.2)
    while len(network.works) < operators:
        last = network.add("head", [last], 1.0, 0.5)


def attention(network: Network, last: int, source: Sequence[int], extra: Sequence[int] = ()) -> int:
    """Normalisation, projections, attention over `source`, and the residual sum."""
    norm = network.add("norm", [last], 0.2)
    other = norm if last in source else source[0]
    query, key, value = (network.add("project", [o], 1.0, 1.0) for o in (norm, other, other))
    scores = network.add("scores", [query, key], 0.8)
    weights = network.add("softmax", [scores, *extra], 0.4)
    mixed = network.add("mix", [weights, value], 0.8)
    projected = network.add("project", [mixed], 1.0, 1.0)
    return network.add("sum", [last, projected], 0.1)


def feed_forward(network: Network, last: int) -> int:
    """Normalisation, two dense layers, and the residual sum."""
    norm = network.add("norm", [last], 0.2)
    wide = network.add("dense", [norm], 4.0, 4.0, 4.0)
    bent = network.add("gelu", [wide], 0.6, 0.0, 4.0)
    narrow = network.add("dense", [bent], 4.0, 4.0)
    dropped = network.add("scale", [narrow], 0.1)
    return network.add("sum", [last, dropped], 0.1)


def masked_gpt(network: Network, operators: int) -> None:
    """As `gpt`, with a mask that every layer reads."""
    mask = network.add("mask", [], 0.1, 0.0, 0.1)
    last = network.add("embed", [mask], 0.5, 2.0)
    while len(network.works) + 14 <= operators:
        last = feed_forward(network, attention(network, last, [last], [mask]))
    while len(network.works) < operators:
        last = network.add("head", [last], 1.0, 0.5)


def encoder_decoder(network: Network, operators: int) -> None:
    """Encoder layers, then decoder layers that all read the encoder's output."""
    last = network.add("embed", [], 0.5, 2.0)
    while len(network.works) + 14 <= operators * 2 // 5:
        last = feed_forward(network, attention(network, last, [last]))
    encoded = network.add("norm", [last], 0.2)
    last = network.add("embed", [encoded], 0.5, 2.0)
    while len(network.works) + 22 <= operators:
        last = attention(network, last, [last])
        last = feed_forward(network, attention(network, last, [encoded]))
    while len(network.works) < operators:
        last = network.add("head", [last], 1.0, 0.5)


def swin(network: Network, operators: int) -> None:
    """Four stages of window attention of falling size, merged in between."""
    last = network.add("patch", [], 0.5, 0.2)
    for stage in range(4):
        size = 1.0 / (1 + stage)
        while len(network.works) + 8 <= operators * (stage + 1) // 4:
            norm = network.add("norm", [last], 0.2, 0.0, size)
            packed = network.add("project", [norm], 3.0, 3.0, 3 * size)
            attended = network.add("window", [packed], 1.6 * size, 0.1, size)
            last = network.add("sum", [last, attended], 0.1, 0.0, size)
            norm = network.add("norm", [last], 0.2, 0.0, size)
            wide = network.add("dense", [norm], 4.0, 4.0, 4 * size)
            narrow = network.add("dense", [wide], 4.0, 4.0, size)
            last = network.add("sum", [last, narrow], 0.1, 0.0, size)
        last = network.add("merge", [last], 0.8, 0.8, size)
    while len(network.works) < operators:
        last = network.add("head", [last], 1.0, 0.5)


def inception(network: Network, operators: int) -> None:
    """Blocks of two to four branches of one to three convolutions, no two alike."""
    lots = random.Random(network.seed)
    last = network.add("conv", [], 1.0, 0.1)
    while len(network.works) + 13 <= operators:
        ends = []
        for _ in range(lots.randint(2, 4)):
            end = last
            for _ in range(lots.randint(1, 3)):
                work = lots.uniform(0.3, 2.0)
                end = network.add("conv", [end], work, work, lots.uniform(0.3, 1.5))
            ends.append(end)
        last = network.add("concat", ends, 0.2)
    while len(network.works) < operators:
        last = network.add("conv", [last], 1.0, 1.0)


def unet(network: Network, operators: int) -> None:
    """Stages going down, each of whose outputs a stage going up reads, again and again."""
    last = network.add("conv", [], 0.5, 0.1)
    depth = 4
    while len(network.works) + 8 * depth + 4 <= operators:
        skips = []
        for level in range(depth):
            last = _residual(network, last, 1.0 / (1 + level))
            skips.append(last)
            last = network.add("pool", [last], 0.2, 0.0, 1.0 / (2 + level))
        for level in reversed(range(depth)):
            up = network.add("up", [last], 0.4, 0.2, 1.0 / (1 + level))
            joined = network.add("concat", [up, skips[level]], 0.1, 0.0, 2.0 / (1 + level))
            last = network.add("conv", [joined], 1.0, 1.0, 1.0 / (1 + level))
    while len(network.works) < operators:
        last = network.add("conv", [last], 1.0, 1.0)


def _residual(network: Network, last: int, size: float) -> int:
    first = network.add("conv", [last], 1.0, 1.0, size)
    second = network.add("conv", [first], 1.0, 1.0, size)
    return network.add("sum", [last, second], 0.1, 0.0, size)


def towers(network: Network, operators: int) -> None:
    """Three towers over different inputs that exchange tensors now and then and end together."""
    lots = random.Random(network.seed)
    source = network.add("input", [], 0.1)
    ends = [network.add("embed", [source], 0.5, 1.0) for _ in range(3)]
    while len(network.works) + 2 <= operators:
        tower = lots.randrange(3)
        other = ends[lots.randrange(3)] if lots.random() < 0.1 else ends[tower]
        ends[tower] = network.add("dense", [ends[tower], other], lots.uniform(0.3, 3.0), 1.0)
    network.add("join", ends, 0.3)


def wide_random(network: Network, operators: int) -> None:
    """Layers of eight operators, each of which reads one to three of the layer before."""
    lots = random.Random(network.seed)
    before: list[int] = []
    while len(network.works) < operators:
        layer = []
        for _ in range(min(8, operators - len(network.works))):
            inputs = lots.sample(before, min(len(before), lots.randint(1, 3)))
            size = lots.uniform(0.2, 1.5)
            layer.append(network.add("op", inputs, lots.uniform(0.3, 2.0), size, round(size, 1)))
        before = layer


FAMILIES: dict[str, Callable[[Network, int], None]] = {
    "gpt": gpt,
    "masked-gpt": masked_gpt,
    "encoder-decoder": encoder_decoder,
    "swin": swin,
    "inception": inception,
    "unet": unet,
    "towers": towers,
    "wide-random": wide_random,
}


def generate(
    family: str, operators: int, devices: int = 4, slack: float | None = 1.25, seed: int = 0
) -> Problem:
    """A problem of a family; equal arguments give equal problems."""
    network = Network(seed)
    FAMILIES[family](network, operators)
    return network.problem(f"{family}-{operators}-{devices}", devices, slack)
