"""Units convert exactly both ways."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moirai_tf.cluster import units


@pytest.mark.parametrize(
    ("text", "known", "value"),
    [
        ("16 GB", units.BYTES, 16_000_000_000),
        ("8 GiB", units.BYTES, 8 * 1024**3),
        ("0 B", units.BYTES, 0),
        ("1.5KiB", units.BYTES, 1536),
        ("20 us", units.NANOSECONDS, 20_000),
        ("0.25 ms", units.NANOSECONDS, 250_000),
        ("12 GB/s", units.BYTES_PER_S, 12_000_000_000),
        ("25 Gbit/s", units.BYTES_PER_S, 3_125_000_000),
    ],
)
def test_parse(text, known, value):
    assert units.parse(text, known) == value


@pytest.mark.parametrize("text", ["", "16", "-4 GB", "4 gb", "GB", "1e3 B", "4 GB/s", "nan B"])
def test_parse_refuses(text):
    with pytest.raises(ValueError, match="is not a number of 0 or more and one of"):
        units.parse(text, units.BYTES)


@settings(max_examples=50)
@given(st.integers(0, 10**18), st.sampled_from([units.BYTES, units.NANOSECONDS, units.BYTES_PER_S]))
def test_show_is_exact(value, known):
    assert units.parse(units.show(value, known), known) == value


def test_show_uses_the_largest_whole_unit():
    assert units.show(8 * 1024**3, units.BYTES) == "8 GiB"
    assert units.show(1_500_000, units.BYTES) == "1500 KB"
    assert units.show(20_000, units.NANOSECONDS) == "20 us"
