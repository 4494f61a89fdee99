"""What a build says of the bytes that recompressing has gained, or lost."""

from __future__ import annotations

import pytest

from airferry.near.build import Recompressed


@pytest.mark.parametrize(
    ("fetched", "carried", "said"),
    [
        (1000, 924, "7.6% less"),
        (1000, 1010, "1.0% more, `compression: preserve` keeps them"),
        (1000, 1000, "0.0% more, `compression: preserve` keeps them"),
    ],
)
def test_the_gain_is_said_as_a_part_of_what_was_fetched(fetched: int, carried: int, said: str) -> None:
    text = Recompressed(fetched, carried, "zstd 3").text
    assert text == f"layers of bases: {fetched} B fetched, {carried} B carried (zstd 3): {said}"
