"""Images of a layout in an engine's storage, so that tests can run them."""

from __future__ import annotations

from pathlib import Path

from airferry.engine.driver import Engine
from airferry.host import files
from airferry.oci.platform import Platform


def pull_from_layout(engine: Engine, layout: Path, reference: str, *, platform: Platform | None = None) -> str:
    """Pull an image by its name in a layout and return its ID."""
    with files.scratch_directory(engine.storage.temporary) as folder:
        (folder / "layout").symlink_to(layout.resolve(), target_is_directory=True)
        arguments = ["--platform", str(platform)] if platform else []
        done = engine.storage.invoke(["pull", "-q", *arguments, f"oci:layout:{reference}"], timeout_s=600, cwd=folder)
    return done.text.split()[-1].removeprefix("sha256:")
