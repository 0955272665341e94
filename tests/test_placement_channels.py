"""What a transfer occupies, by number."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from moirai_tf.placement.evaluate.channels import (
    CONGESTION_MODES,
    NOTHING,
    channels,
    channels_of,
    congestion_code,
    resource_count,
)
from tests.placement_cases import problem_of

THREE = problem_of({"a": (1, 1, 1)}, [])


@pytest.mark.parametrize(
    ("congestion", "resources", "occupied"),
    [
        # devices 0 to 2, send ports 3 to 5, receive ports 6 to 8: d0 sends and d2 receives
        ("port", 9, (3, 8)),
        # devices 0 to 2, links from d0 3 to 5, from d1 6 to 8, from d2 9 to 11
        ("link", 12, (5,)),
        ("none", 3, ()),
    ],
)
def test_a_transfer_from_d0_to_d2(
    congestion: str, resources: int, occupied: tuple[int, ...]
) -> None:
    problem = replace(THREE, congestion=congestion)
    assert resource_count(congestion, 3) == problem.arrays.resources == resources
    assert channels_of(problem, 0, 2) == occupied


@pytest.mark.parametrize("congestion", CONGESTION_MODES)
def test_compiled_code_knows_the_same_channels(congestion: str) -> None:
    problem = replace(THREE, congestion=congestion)
    for source, target in itertools.permutations(range(3), 2):
        both = channels(congestion_code(congestion), 3, source, target)
        assert tuple(channel for channel in both if channel != NOTHING) == channels_of(
            problem, source, target
        )
