"""Throughput and weighted sums: exact where everything can be tried, sound bounds elsewhere."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moirai_tf.errors import MoiraiError
from moirai_tf.placement import (
    STRATEGIES,
    Problem,
    SolveOptions,
    Tensor,
    check,
    read_schedule,
    schedule_from_json,
    schedule_text,
    schedule_to_json,
    simulate,
    solve,
    write_schedule,
)
from moirai_tf.placement.blackboard import Search
from moirai_tf.placement.bound.packing import InfeasibleError, pack
from moirai_tf.placement.bound.paths import Bound
from moirai_tf.placement.bound.relaxation import priced_work, relax_loads
from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.construct import heuristics
from moirai_tf.placement.exact.milp.backends import Limits
from moirai_tf.placement.exact.milp.loads import build_loads, size_estimate
from moirai_tf.placement.improve.local_search import LocalSearch
from moirai_tf.placement.objective import BOTTLENECK, Objective, bottleneck_ns, objective_of
from tests.placement_brute_force import assignments, bottleneck, makespan
from tests.placement_cases import MODES, layered, problem_of, problems, uniform

SOLVERS = ("auto", "milp-highs", "milp-gurobi")

# a -> b, 10 each on two equal devices, over a way of 3. On one device makespan and bottleneck are
# 20. On two the makespan is 10 + 3 + 10 = 23, the loads are 10 and 10, ports carry 3.
PIPE = problem_of({"a": (10, 10), "b": (10, 10)}, [("a", "b", 3)])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("objective", "weight", "makespan_ns", "bottleneck", "value"),
    [
        ("throughput", 0.5, 23, 10, 10),
        # two devices: (23 + 10) / 2 = 16.5; one: 20
        ("weighted", 0.5, 23, 10, Fraction(33, 2)),
        # two devices: 0.7 * 23 + 0.3 * 10 = 19.1; one: 20
        ("weighted", 0.7, 23, 10, Fraction(191, 10)),
        # two devices: 0.8 * 23 + 0.2 * 10 = 20.4; one: 20
        ("weighted", 0.8, 20, 20, 20),
        ("weighted", 1.0, 20, 20, 20),
        ("weighted", 0.0, 23, 10, 10),
    ],
)
def test_a_pipeline_by_hand(
    solver: str,
    objective: str,
    weight: float,
    makespan_ns: int,
    bottleneck: int,
    value: int | Fraction,
) -> None:
    options = SolveOptions(solver=solver, objective=objective, latency_weight=weight, mip_gap=0.0)
    result = solve(PIPE, options)
    assert result.schedule is not None
    assert result.schedule.claim is not None
    assert (result.status, result.makespan_ns) == ("optimal", makespan_ns)
    assert result.schedule.claim.bottleneck_ns == bottleneck
    assert result.objective_ns == result.objective_bound_ns == value
    assert result.objective_gap == 0.0
    assert result.lower_bound_ns <= 20
    assert check(PIPE, result.schedule) == []


@pytest.mark.parametrize(
    ("transfers", "congestion", "value"),
    [
        # a (1) on d0; b and c (2 each) on d1, load 4; d (1) on d2. The tensor takes 5 to either.
        # One way to d1, one to d2: the send port of d0 carries 10, a receive port or link 5.
        ("per_tensor", "port", 10),
        ("per_tensor", "link", 5),
        ("per_tensor", "none", 4),
        # Two ways to d1: the send port carries 15, the receive port of d1 and the link 10.
        ("per_edge", "port", 15),
        ("per_edge", "link", 10),
        ("per_edge", "none", 4),
    ],
)
def test_channels_by_hand(transfers: str, congestion: str, value: int) -> None:
    problem = problem_of(
        {"a": (1, None, None), "b": (None, 2, None), "c": (None, 2, None), "d": (None, None, 1)},
        [("a", "b c d", 5)],
        transfers=transfers,
        congestion=congestion,
    )
    result = solve(problem, SolveOptions(objective="throughput"))
    assert result.status == "optimal"
    assert result.objective_ns == value
    assert bottleneck_ns(problem, simulate(problem, [0, 1, 1, 2])) == value


@settings(max_examples=50, deadline=None)
@given(problems(most_operators=7))
def test_least_bottleneck_over_all_assignments(problem: Problem) -> None:
    values = [bottleneck(problem, chosen) for chosen in assignments(problem)]
    for solver in SOLVERS:
        result = solve(problem, SolveOptions(solver=solver, objective="throughput", mip_gap=0.0))
        if not values:
            assert result.status == "infeasible"
            continue
        assert result.status == "optimal", result.messages
        assert result.objective_ns == result.objective_bound_ns == min(values)
        assert result.schedule is not None
        assert check(problem, result.schedule) == []


@settings(max_examples=25, deadline=None)
@given(problems(most_operators=4), st.sampled_from([0.0, 0.25, 0.3, 0.9]))
def test_least_weighted_sum_over_all_assignments(problem: Problem, weight: float) -> None:
    objective = objective_of("weighted", weight)
    values = [
        objective.value_ns(makespan(problem, chosen), bottleneck(problem, chosen))
        for chosen in assignments(problem)
    ]
    for solver in SOLVERS:
        options = SolveOptions(
            solver=solver, objective="weighted", latency_weight=weight, mip_gap=0.0
        )
        result = solve(problem, options)
        if not values:
            assert result.status == "infeasible"
            continue
        assert result.status == "optimal", result.messages
        assert result.objective_ns == result.objective_bound_ns == min(values)


def search_of(problem: Problem, objective: Objective) -> Search | None:
    """A search that knows a packing only; None where nothing fits."""
    try:
        packing = pack(problem, Limits(10.0))
    except InfeasibleError:
        return None
    assert packing is not None
    first = simulate(problem, [packing[unit] for unit in problem.unit_of])
    return Search(problem, packing, Deadline(60.0), 0.0, 1, 0, first, objective=objective)


@settings(max_examples=50, deadline=None)
@given(problems(most_operators=6))
def test_search_is_feasible_and_its_bounds_are_below_the_least(problem: Problem) -> None:
    search = search_of(problem, BOTTLENECK)
    if search is None:
        return
    least = min(bottleneck(problem, chosen) for chosen in assignments(problem))
    ceiling_ns = bottleneck_ns(problem, search.best)
    assert priced_work(problem).value_ns <= least
    for crossing in (False, True):
        relaxed = relax_loads(problem, ceiling_ns, Limits(10.0), crossing=crossing)
        assert relaxed.bound.value_ns <= least
    heuristics.relax_loads(search)
    LocalSearch().improve(search)
    assert search.faults == []
    assert check(problem, search.best) == []
    assert search.bottleneck_bound.value_ns <= least <= search.value_ns(search.best)


@settings(max_examples=25, deadline=None)
@given(problems(most_operators=6))
def test_search_for_a_sum_is_feasible(problem: Problem) -> None:
    search = search_of(problem, objective_of("weighted", 0.4))
    if search is None:
        return
    LocalSearch().improve(search)
    assert search.faults == []
    assert check(problem, search.best) == []


@pytest.mark.parametrize("objective", [BOTTLENECK, objective_of("weighted", 0.5)])
def test_local_search_moves_what_is_overloaded(objective: Objective) -> None:
    """Six of 10 on one of two devices: 60 by any weight; three on each, a beside f: 30 by any."""
    problem = problem_of(dict.fromkeys("abcdef", (10, 10)), [("a", "f", 1)])
    search = search_of(problem, objective)
    assert search is not None
    search.offer(simulate(problem, [0] * 6), "start")
    assert search.value_ns(search.best) == 60
    LocalSearch().improve(search)
    assert search.value_ns(search.best) == 30
    assert search.history[-1].found_by == "local-search"


def test_large_instance_beats_every_heuristic_within_a_proved_gap() -> None:
    problem = layered(400)
    result = solve(problem, SolveOptions(objective="throughput", time_limit_s=6))
    assert result.schedule is not None
    assert check(problem, result.schedule) == []
    assert result.objective_ns is not None
    assert {"heft", "etf", "m-topo"} <= dict(result.baselines).keys()
    assert result.objective_ns < min(value for _, value in result.baselines)
    assert result.objective_gap is not None
    assert result.objective_gap < 0.05


def test_large_weighted_sum_has_a_bound_of_both_parts() -> None:
    problem = layered(150)
    result = solve(problem, SolveOptions(objective="weighted", time_limit_s=5))
    assert result.schedule is not None
    assert check(problem, result.schedule) == []
    assert result.objective_ns is not None
    assert result.objective_ns <= min(value for _, value in result.baselines)
    assert result.objective_bound_ns is not None
    assert result.objective_bound_ns > Fraction(result.lower_bound_ns, 2)
    assert any("for the makespan" in message for message in result.messages)


def test_prices_balance_unequal_devices() -> None:
    """60 operators of 20 on a slow device or 10 on a fast one: 20 x = 10 (60 - x) at 400."""
    problem = problem_of({f"o{i}": (20, 10) for i in range(60)}, [])
    # at equal prices all run on the fast one and the bound is 600 / 2 = 300; at 1 to 2 it is 400
    assert 395 <= priced_work(problem).value_ns <= 400
    assert solve(problem, SolveOptions(objective="throughput")).objective_ns == 400


def test_equal_seeds_give_equal_answers() -> None:
    problem = layered(40, devices=2, slack=2.5)
    options = SolveOptions(objective="throughput", seed=5, mip_gap=0.01)
    first, second = solve(problem, options), solve(problem, options)
    assert (first.schedule, first.messages) == (second.schedule, second.messages)


@pytest.mark.parametrize("objective", ["throughput", "weighted"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_expired_limit_still_gives_an_answer(objective: str, solver: str) -> None:
    problem = layered(60)
    result = solve(problem, SolveOptions(solver=solver, objective=objective, time_limit_s=1e-6))
    assert result.status == "feasible"
    assert result.schedule is not None
    assert check(problem, result.schedule) == []


@pytest.mark.parametrize("objective", ["throughput", "weighted"])
def test_nothing_to_place(objective: str) -> None:
    result = solve(Problem("empty", PIPE.devices, ()), SolveOptions(objective=objective))
    assert result.status == "optimal"
    assert result.objective_ns == 0


def test_gain_over_one_device_is_measured_by_the_objective() -> None:
    """10 against 20 gains half; the makespan is worse."""
    wanted = SolveOptions(objective="throughput", min_gain=0.5)
    assert solve(PIPE, wanted).objective_ns == 10
    result = solve(PIPE, replace(wanted, min_gain=0.51))
    assert result.objective_ns == 20
    assert result.objective_bound_ns == 10
    assert result.status == "feasible"
    assert any("no placement was found that beats it" in message for message in result.messages)


class _Liar:
    name = "auto"

    def run(self, search: Search) -> None:
        search.prove_bottleneck(Bound(10**9, "nothing at all"))


def test_broken_bound_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "auto", _Liar())
    result = solve(PIPE, SolveOptions(objective="throughput"))
    assert result.status == "error"
    assert any("is above the objective" in message for message in result.messages)


def test_checker_names_false_claims() -> None:
    result = solve(PIPE, SolveOptions(objective="throughput", mip_gap=0.0))
    assert result.schedule is not None
    assert result.schedule.claim is not None
    claim = result.schedule.claim
    for wrong, fault in (
        (replace(claim, bottleneck_ns=9), "bottleneck: claimed 9, the largest load is 10"),
        (replace(claim, lower_bound_ns=Fraction(11)), "bound: 11 is above the objective 10"),
        (replace(claim, lower_bound_ns=Fraction(9)), "status: optimal is claimed, but objective"),
    ):
        found = check(PIPE, replace(result.schedule, claim=wrong))
        assert len(found) == 1
        assert found[0].startswith(fault)


@pytest.mark.parametrize(
    ("transfers", "congestion", "load"),
    [("per_tensor", "port", 8), ("per_tensor", "link", 5), ("per_edge", "port", 13)],
)
def test_checker_counts_ports_and_links_by_itself(
    transfers: str, congestion: str, load: int
) -> None:
    """a on d0 sends 5 to b and c on d1 and 3 to d on d2: 8 together, or 13 with one way each."""
    tables = [((0, 5, 0), (0, 0, 0), (0, 0, 0)), uniform(3, 3)]
    problem = problem_of(
        dict.fromkeys("abcd", (1, 1, 1)), [], transfers=transfers, congestion=congestion
    )
    tensors = (Tensor(0, (1, 2), tables[0]), Tensor(0, (3,), tables[1]))
    problem = replace(problem, tensors=tensors)
    result = solve(problem, SolveOptions(objective="throughput"))
    assert result.schedule is not None
    assert result.schedule.claim is not None
    chosen = replace(
        simulate(problem, [0, 1, 1, 2]), claim=replace(result.schedule.claim, bottleneck_ns=0)
    )
    assert f"bottleneck: claimed 0, the largest load is {load}" in check(problem, chosen)


def test_schedule_files_keep_the_objective(tmp_path: Path) -> None:
    options = SolveOptions(objective="weighted", latency_weight=0.3, mip_gap=0.0)
    schedule = solve(PIPE, options).schedule
    assert schedule is not None
    data = schedule_to_json(PIPE, schedule)
    # 0.3 * 23 + 0.7 * 10 = 13.9
    assert data["objective"] == "weighted"
    assert data["latency_weight"] == 0.3
    assert data["bottleneck"] == 10
    assert data["objective_lower_bound"] == "139/10"
    write_schedule(PIPE, schedule, tmp_path / "schedule.json")
    assert read_schedule(PIPE, tmp_path / "schedule.json") == schedule
    assert "objective weighted=139/10 bound=139/10 bottleneck=10" in schedule_text(PIPE, schedule)


def test_tampered_bottleneck_in_a_file_is_caught() -> None:
    schedule = solve(PIPE, SolveOptions(objective="throughput")).schedule
    assert schedule is not None
    data = schedule_to_json(PIPE, schedule) | {"bottleneck": 7}
    faults = check(PIPE, schedule_from_json(PIPE, data))
    assert "bottleneck: claimed 7, the largest load is 10" in faults


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"objective": "speed"}, "objective: there is no objective 'speed'"),
        ({"bottleneck": None}, "bottleneck: missing"),
        ({"objective_lower_bound": "1/0"}, "'1/0' is not a fraction"),
        ({"objective": "weighted"}, "latency_weight: missing"),
        ({"objective": "weighted", "latency_weight": 2}, "option latency_weight is 2.0"),
    ],
)
def test_unreadable_objectives_are_refused(change: dict[str, object], fault: str) -> None:
    schedule = solve(PIPE, SolveOptions(objective="throughput")).schedule
    assert schedule is not None
    with pytest.raises(MoiraiError) as caught:
        schedule_from_json(PIPE, schedule_to_json(PIPE, schedule) | change)
    assert fault in caught.value.rule


def test_latency_files_have_no_new_fields() -> None:
    schedule = solve(PIPE).schedule
    assert schedule is not None
    assert schedule.claim is None
    assert not {"objective", "bottleneck"} & schedule_to_json(PIPE, schedule).keys()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"objective": "speed"}, "option objective is 'speed'"),
        ({"objective": "weighted", "latency_weight": 1.5}, "option latency_weight is 1.5"),
        ({"objective": "weighted", "latency_weight": -0.1}, "option latency_weight is -0.1"),
        ({"objective": "weighted", "latency_weight": float("nan")}, "option latency_weight is nan"),
        ({"objective": "weighted", "latency_weight": 0.00001}, "option latency_weight is 1e-05"),
        ({"objective": "throughput", "solver": "heft"}, "solver heft does not know the objective"),
        ({"objective": "weighted", "solver": "local-search"}, "solver local-search does not know"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, object], rule: str) -> None:
    with pytest.raises(MoiraiError) as caught:
        SolveOptions(**options)  # type: ignore[arg-type]
    assert caught.value.rule.startswith(rule)


@pytest.mark.parametrize(("transfers", "congestion"), MODES)
def test_size_of_the_load_model_is_known_before_building(transfers: str, congestion: str) -> None:
    problem = replace(layered(50), transfers=transfers, congestion=congestion)
    tensors = (*problem.tensors, Tensor(0, (1, 7, 9), problem.tensors[0].time_ns))
    problem = replace(problem, tensors=tensors)
    ceiling_ns = sum(max(filter(None, o.compute_ns)) for o in problem.operators)
    assert size_estimate(problem) == build_loads(problem, ceiling_ns).linear.columns
