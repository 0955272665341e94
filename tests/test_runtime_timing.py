"""How often steps are repeated."""

from __future__ import annotations

import pytest

from moirai_tf.runtime import timing


def test_what_takes_long_is_repeated_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(timing.enough(20)) == [*range(20)]
    monkeypatch.setattr(timing, "_LONG_S", -1.0)  # already over
    assert [len(list(timing.enough(n))) for n in (20, 5)] == [7, 5]
    assert len(list(timing.enough(20, 2))) == 2


@pytest.mark.parametrize(("least", "calls"), [(2, 10), (5, 10), (8, 13)])
def test_warming_up_ends_when_steps_are_as_fast_as_before(least: int, calls: int) -> None:
    """Two rounds of five, the first of which counts towards the least; more are made before it."""
    made: list[int] = []

    def step() -> None:
        made.append(0)
        end_ns = timing.time.perf_counter_ns() + 200_000 * len(made)  # slower and slower
        while timing.time.perf_counter_ns() < end_ns:
            pass

    last = timing.warm_up(step, least)
    assert len(made) == calls
    assert len(last) == 5
    assert min(last) >= 200_000 * (calls - 4)  # the last five calls
