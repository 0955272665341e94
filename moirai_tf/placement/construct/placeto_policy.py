"""Placeto's policy: messages along a graph, pooling, a layer to devices; and its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.problem import BoolArray, IntArray

_HIDDEN = 8
_ROUNDS = 8
_HALF_LIFE = 0.9, 0.999
_SMALL = 1e-8
Weights = dict[str, FloatArray]


@dataclass(frozen=True)
class Neighbours:
    """Who sends messages to whom in a graph of n nodes, and who is pooled."""

    along: tuple[FloatArray, FloatArray]
    """(n, n) each: mean over parents, mean over children."""
    pools: tuple[FloatArray, FloatArray, FloatArray, FloatArray]
    """(n, n) each: the node, mean over its ancestors, descendants, and all others."""

    @classmethod
    def of(cls, edges: BoolArray) -> Neighbours:
        """Of an acyclic graph whose edges go from lower to higher numbers."""
        count = len(edges)
        before = edges.copy()
        for node in range(count):
            parents = np.flatnonzero(edges[:, node])
            before[:, node] |= before[:, parents].any(axis=1)
        self_ = np.eye(count, dtype=np.bool_)
        others = ~(before | before.T | self_)
        pools = (_mean(self_), _mean(before.T), _mean(before), _mean(others))
        return cls((_mean(edges.T), _mean(edges)), pools)


def _mean(chosen: BoolArray) -> FloatArray:
    """Rows that take the mean of the chosen ones; none give nothing."""
    mean: FloatArray = chosen / np.maximum(1, chosen.sum(axis=1, keepdims=True))
    return mean


class Policy:
    """Probabilities of a node's devices.

    A node's features x become e = relu(x W + b). In each direction, with its own weights M, there
    are eight rounds of `h = relu(mean of neighbours' h M + e)`. What is pooled over a node, its
    ancestors, its descendants and all others goes through a hidden layer to devices.
    """

    def __init__(self, neighbours: Neighbours, features: int, devices: int, seed: int) -> None:
        self.neighbours = neighbours
        lots = np.random.default_rng(seed)
        pooled = 2 * len(neighbours.pools) * _HIDDEN
        shapes = {
            "in": (features, _HIDDEN),
            "down": (_HIDDEN, _HIDDEN),
            "up": (_HIDDEN, _HIDDEN),
            "deep": (pooled, 2 * _HIDDEN),
            "out": (2 * _HIDDEN, devices),
        }
        self.weights: Weights = {
            name: lots.normal(0.0, shape[0] ** -0.5, shape) for name, shape in shapes.items()
        }
        self.weights |= {f"{k}+": np.zeros(shapes[k][1]) for k in ("in", "deep", "out")}

    def forward(self, features: FloatArray, node: int, able: BoolArray) -> Step:
        """The devices' probabilities for a node; those that are not able have none."""
        weights = self.weights
        first = _relu(features @ weights["in"] + weights["in+"])
        layers = []
        for mean, name in zip(self.neighbours.along, ("down", "up"), strict=True):
            states = [first]
            for _ in range(_ROUNDS):
                states.append(_relu(mean @ states[-1] @ weights[name] + first))
            layers.append(states)
        nodes = np.concatenate([states[-1] for states in layers], axis=1)
        pooled = np.concatenate([pool[node] @ nodes for pool in self.neighbours.pools])
        deep = _relu(pooled @ weights["deep"] + weights["deep+"])
        logits = np.where(able, deep @ weights["out"] + weights["out+"], -np.inf)
        odds = np.exp(logits - logits.max())
        return Step(features, node, layers, pooled, deep, odds / odds.sum())

    def gradient(self, step: Step, device: int, advantage: float, entropy: float) -> Weights:
        """Of `advantage * log p[device] + entropy * H(p)`, with p of that step."""
        weights, p = self.weights, step.probability
        log_p = np.log(np.maximum(p, _SMALL))
        at_logits = -p * (advantage + entropy * (log_p - (p * log_p).sum()))
        at_logits[device] += advantage
        found: Weights = {"out": np.outer(step.deep, at_logits), "out+": at_logits}
        at_deep = (weights["out"] @ at_logits) * (step.deep > 0)
        found |= {"deep": np.outer(step.pooled, at_deep), "deep+": at_deep}
        at_nodes = sum(
            np.outer(pool[step.node], part)
            for pool, part in zip(
                self.neighbours.pools,
                np.split(weights["deep"] @ at_deep, len(self.neighbours.pools)),
                strict=True,
            )
        )
        at_first = np.zeros_like(step.layers[0][0])
        for mean, name, states, at_state in zip(
            self.neighbours.along, ("down", "up"), step.layers, np.hsplit(at_nodes, 2), strict=True
        ):
            found[name] = np.zeros_like(weights[name])
            for before, after in zip(states[-2::-1], states[:0:-1], strict=True):
                at_sum = at_state * (after > 0)
                at_first += at_sum
                found[name] += (mean @ before).T @ at_sum
                at_state = mean.T @ at_sum @ weights[name].T
            at_first += at_state
        at_first = at_first * (step.layers[0][0] > 0)
        return found | {"in": step.features.T @ at_first, "in+": at_first.sum(axis=0)}


@dataclass(frozen=True)
class Step:
    """One decision, with what its gradient needs."""

    features: FloatArray
    node: int
    layers: list[list[FloatArray]]
    """For each direction the nodes' states, round by round."""
    pooled: FloatArray
    deep: FloatArray
    probability: FloatArray


class Adam:
    """Gradient ascent with momentum (Kingma and Ba 2015), with the gradient's norm clipped."""

    def __init__(self, clip: float) -> None:
        self._clip = clip
        self._mean: Weights = {}
        self._square: Weights = {}
        self._count = 0

    def ascend(self, weights: Weights, gradient: Weights, rate: float) -> None:
        """Changes the weights in place."""
        norm = float(np.sqrt(sum((part**2).sum() for part in gradient.values())))
        scale = min(1.0, self._clip / max(norm, _SMALL))
        self._count += 1
        first, second = _HALF_LIFE
        for name, part in gradient.items():
            part = part * scale
            mean = first * self._mean.get(name, 0.0) + (1 - first) * part
            square = second * self._square.get(name, 0.0) + (1 - second) * part**2
            self._mean[name], self._square[name] = mean, square
            unbiased = square / (1 - second**self._count)
            step = mean / (1 - first**self._count) / (np.sqrt(unbiased) + _SMALL)
            weights[name] += rate * step


def drawn(probability: FloatArray, lots: np.random.Generator) -> int:
    """A device by its probability."""
    return int(lots.choice(len(probability), p=probability))


def one_hot(devices: IntArray, count: int) -> FloatArray:
    """(nodes, count): 1 where a node is."""
    rows: FloatArray = np.eye(count)[devices]
    return rows


def _relu(values: FloatArray) -> FloatArray:
    positive: FloatArray = np.maximum(values, 0.0)
    return positive
