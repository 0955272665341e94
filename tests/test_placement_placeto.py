"""Placeto: its gradient, its groups, and that it learns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moirai_tf.placement import Result, SolveOptions, check, solve
from moirai_tf.placement.construct.placeto import groups_of
from moirai_tf.placement.construct.placeto_policy import Neighbours, Policy
from tests.placement_cases import layered, problem_of


def _policy() -> Policy:
    """a -> b -> d and a -> c, four nodes, three features, two devices."""
    edges = np.zeros((4, 4), dtype=np.bool_)
    edges[0, 1] = edges[0, 2] = edges[1, 3] = True
    return Policy(Neighbours.of(edges), 3, 2, seed=3)


def test_neighbours_and_pools() -> None:
    """b: parent a, child d; ancestors a, descendants d, beside it c."""
    known = _policy().neighbours
    parents, children = known.along
    assert parents[1].tolist() == [1, 0, 0, 0]
    assert children[0].tolist() == [0, 0.5, 0.5, 0]
    itself, ancestors, descendants, others = (pool[1].tolist() for pool in known.pools)
    assert (itself, ancestors) == ([0, 1, 0, 0], [1, 0, 0, 0])
    assert (descendants, others) == ([0, 0, 0, 1], [0, 0, 1, 0])
    assert known.pools[2][0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])


def test_gradient_is_that_of_the_objective() -> None:
    """Against central differences of `1.7 log p[1] + 0.3 H(p)`, for every weight."""
    policy = _policy()
    features = np.random.default_rng(1).normal(size=(4, 3))
    able = np.ones(2, dtype=np.bool_)

    def objective() -> float:
        p = policy.forward(features, 1, able).probability
        return float(1.7 * np.log(p[1]) - 0.3 * (p * np.log(p)).sum())

    found = policy.gradient(policy.forward(features, 1, able), 1, 1.7, 0.3)
    assert found.keys() == policy.weights.keys()
    for name, weight in policy.weights.items():
        for at in np.ndindex(weight.shape):
            kept = weight[at]
            weight[at] = kept + 1e-6
            above = objective()
            weight[at] = kept - 1e-6
            below = objective()
            weight[at] = kept
            assert found[name][at] == pytest.approx((above - below) / 2e-6, abs=1e-6)
        assert np.abs(found[name]).sum() > 0


def test_devices_that_are_not_able_are_never_drawn() -> None:
    able = np.array([True, False])
    assert _policy().forward(np.ones((4, 3)), 0, able).probability.tolist() == [1, 0]


def test_groups_are_runs_of_equal_work() -> None:
    """480 operators of work 1 in a chain: 48 groups of 10, in order."""
    names = [f"o{i:03}" for i in range(480)]
    problem = problem_of(
        dict.fromkeys(names, (1, 1)), [(a, b, 1) for a, b in itertools.pairwise(names)]
    )
    assert groups_of(problem) == [list(range(i, i + 10)) for i in range(0, 480, 10)]


def _learn(seed: int, episodes: int) -> Result:
    problem = layered(60, slack=1.3)
    options = SolveOptions(solver="placeto", seed=seed, episodes=episodes, time_limit_s=60)
    result = solve(problem, options)
    assert result.schedule is not None
    assert check(problem, result.schedule) == []
    assert "placeto" in dict(result.baselines)
    return result


def test_it_learns_and_repeats_itself() -> None:
    result = _learn(0, 120)
    curve = [episode.makespan_ns for episode in result.learned]
    assert len(curve) == 120
    assert np.mean(curve[-30:]) < np.mean(curve[:30])
    bests = [episode.best_ns for episode in result.learned]
    assert bests == sorted(bests, reverse=True)
    assert [episode.makespan_ns for episode in _learn(0, 120).learned] == curve
    assert [episode.makespan_ns for episode in _learn(1, 10).learned] != curve[:10]
