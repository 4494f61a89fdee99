"""What an image that an engine builds is called in the engine's storage."""

from __future__ import annotations

import re
from pathlib import Path

from airferry.near.assemble.container import ImageRecipe, local_tag
from airferry.oci.platform import Platform


def recipe(name: str) -> ImageRecipe:
    return ImageRecipe(
        name=name,
        platform=Platform("linux", "arm64"),
        containerfile=Path("Containerfile"),
        context=Path("context"),
        arguments={},
        labels={},
    )


def test_long_names_that_begin_alike_get_tags_of_their_own_that_a_storage_accepts() -> None:
    joined = "-".join(f"nemo-image-{number}" for number in range(20))
    tags = {local_tag(recipe(f"{joined}-{suffix}"), Path("/out")) for suffix in ("0a1b2c3d", "4e5f6a7b")}
    assert len(tags) == 2
    for tag in tags:
        assert re.fullmatch(r"localhost/airferry/linux-arm64:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", tag)
