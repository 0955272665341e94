"""Every model of the corpus, dealt out to two devices at random: equal values, proved placements,
an import that agrees with TensorFlow's own graphs, and a fusion that Grappler's passes respect.
"""

from __future__ import annotations

import pytest

from tests.corpus import CASES, FEW
from tests.corpus.__main__ import Row, examined

REST = tuple(case for case in CASES if case not in FEW)
_PROVED = {"tf2": ("tf2", "session"), "tf1": ("session",)}
"""All variables of a TF1 model are on one device in the TF2 loader: it proves nothing of them."""


@pytest.fixture(scope="module")
def few() -> dict[tuple[str, str], Row]:
    return {(row.name, row.flavour): row for row in examined(FEW)}


@pytest.fixture(scope="module")
def rest() -> dict[tuple[str, str], Row]:
    return {(row.name, row.flavour): row for row in examined(REST)}


@pytest.fixture(scope="module")
def optimised() -> dict[tuple[str, str], Row]:
    return {(row.name, row.flavour): row for row in examined(CASES, grappler="on")}


def _check(row: Row, grappler: str = "off") -> None:
    assert row.faults == ()
    loaders = _PROVED[row.flavour.split()[0]]
    assert row.proofs == tuple(f"{loader}, Grappler {grappler}" for loader in loaders)


@pytest.mark.parametrize("case", FEW, ids=", ".join)
def test_a_few(case: tuple[str, str], few: dict[tuple[str, str], Row]) -> None:
    _check(few[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", REST, ids=", ".join)
def test_the_rest(case: tuple[str, str], rest: dict[tuple[str, str], Row]) -> None:
    _check(rest[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_grappler_moves_nothing(
    case: tuple[str, str], optimised: dict[tuple[str, str], Row]
) -> None:
    _check(optimised[case], grappler="on")


@pytest.mark.slow
def test_grappler_had_something_to_move(optimised: dict[tuple[str, str], Row]) -> None:
    assert sum(row.devices == 2 for row in optimised.values()) >= 0.5 * len(optimised)


def test_a_few_have_many_operators_on_both_devices(few: dict[tuple[str, str], Row]) -> None:
    assert len({op for row in few.values() for op in row.ops}) >= 200
    assert sum(row.devices == 2 for row in few.values()) >= 0.9 * len(few)


@pytest.mark.slow
def test_all_have_more(few: dict[tuple[str, str], Row], rest: dict[tuple[str, str], Row]) -> None:
    assert len({op for row in (*few.values(), *rest.values()) for op in row.ops}) >= 300
    assert {flavour for _, flavour in CASES} == {"tf1", "tf1 unknown", "tf2", "tf2 unknown"}
