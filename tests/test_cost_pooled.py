"""Equal processors share one measurement; others keep their own."""

from __future__ import annotations

from moirai_tf.cost.pooled import pooled

A, B, C = (f"/job:worker/replica:0/task:{i}/device:CPU:0" for i in range(3))
ONE = {"processor": "x", "cores": "0"}


def test_equals_have_their_shares_in_common():
    # Shares 0.3 and 0.7 on A (sum 100), 0.5 and 0.5 on B (sum 200): 0.4 and 0.6 on both.
    found = pooled({A: [30, 70], B: [100, 100]}, {A: ONE, B: {**ONE, "cores": "1"}})
    assert found == {A: [40, 60], B: [80, 120]}


def test_others_keep_their_own():
    times = {A: [30, 70], B: [100, 100], C: [1, 2]}
    other = {A: ONE, B: {"processor": "y", "cores": "1"}, C: {**ONE, "cores": "0-1,4"}}
    assert pooled(times, other) == times
    assert pooled(times, {}) == times


def test_devices_that_ran_nothing():
    assert pooled({A: [0, 0], B: [1, 3]}, {A: ONE, B: ONE}) == {A: [0, 0], B: [1, 3]}
    assert pooled({A: [0, 0]}, {A: ONE}) == {A: [0, 0]}
