"""The pip of this host: where it is, and as a wheel for images that have none."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from airferry.errors import BuildError
from airferry.near.wheels.pack import write_wheel


def own_pip() -> Path:
    """Return the folder of the pip of this host."""
    folder = Path(str(metadata.distribution("pip").locate_file("pip")))
    if not (folder / "__main__.py").is_file():
        raise BuildError("the pip of this host is not where it says", hint="run `scripts/setup` again")
    return folder


def pack_own_pip(into: Path) -> Path:
    """Write the pip of this host as a wheel into a folder and return its path. The same pip gives the same bytes."""
    distribution = metadata.distribution("pip")
    listed = sorted(distribution.files or (), key=str)
    kept = [item for item in listed if item.parts[0] == "pip" and "__pycache__" not in item.parts]
    kept += [item for item in listed if item.name == "METADATA" and item.parts[0].endswith(".dist-info")]
    if not kept:
        raise BuildError("the pip of this host does not list its files", hint="run `scripts/setup` again")
    packed = into / f"pip-{distribution.version}-py3-none-any.whl"
    write_wheel(packed, {str(item): Path(str(item.locate())).read_bytes() for item in kept})
    return packed
