"""Small userlands with a Python, for tests of the probe that runs nothing."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from airferry.near.probe.answers import ProbeResult
from airferry.near.probe.static import static_probe
from airferry.oci.documents import REF_NAME, ImageConfig
from airferry.oci.layers import Compression, compress_layer
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_platform
from layer_tars import Item, folder, link, tar_of, view_of
from oci_images import put_manifest

MACHINES = {"linux/amd64": 62, "linux/arm64": 183}
SITE = "usr/local/lib/python3.12/site-packages"


def elf(*marks: str, platform: str = "linux/amd64") -> bytes:
    """Return what looks like a binary that holds some texts."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + MACHINES[platform].to_bytes(2, "little")
    return head + bytes(3000) + b"".join(b"\0" + mark.encode() + b"\0" for mark in marks)


def python_of(
    prefix: str = "usr/local",
    *,
    version: str = "3.12.4",
    folder_name: str = "python3.12",
    platform: str = "linux/amd64",
    marks: list[str] | None = None,
    libc: tuple[str, str] = ("lib/x86_64-linux-gnu/libc.so.6", "GNU C Library stable release version 2.39."),
) -> list[Item]:
    """Return an interpreter as a build from source leaves it, and a C library."""
    marks = [*([version] if marks is None else marks), "PyInit_posix", "PyInit__struct", "PyInit_time", "3.40.1"]
    return [
        Item(f"{prefix}/bin/{folder_name}", value=elf(*marks, platform=platform), mode=0o755),
        link(f"{prefix}/bin/python3", folder_name),
        link(f"{prefix}/bin/python", "python3"),
        Item(f"{prefix}/lib/{folder_name}/os.py", value="import posix\n"),
        Item(f"{prefix}/lib/{folder_name}/site.py", value="# site-packages\n"),
        Item(f"{prefix}/lib/{folder_name}/json/__init__.py", value="from .decoder import JSONDecoder\n"),
        Item(f"{prefix}/lib/{folder_name}/json/decoder.py", value="import _json\n"),
        folder(f"{prefix}/lib/{folder_name}/lib-dynload"),
        Item(libc[0], value=elf(libc[1], platform=platform)),
    ]


def write_static_base(path: Path, reference: str, *, filler_bytes: int = 0) -> Path:
    """Write a layout with an image of one small layer that holds a Python at `/usr/bin/python3`. A filler is a file of
    noise in a second layer, without compression."""
    store = LayoutStore.create(path)
    layers = [compress_layer(io.BytesIO(tar_of(python_of("usr"))), compression=Compression("gzip", 1), into=store)]
    if filler_bytes:
        noise = io.BytesIO(tar_of([Item("opt/noise", value=os.urandom(filler_bytes))]))
        layers.append(compress_layer(noise, compression=Compression("none"), into=store))
    store.write_index([put_manifest(store, layers).annotated(annotations={REF_NAME: reference})])
    return path


def probe(
    *layers: Iterable[Item],
    modules: Iterable[str] = (),
    python: str | None = None,
    platform: str = "linux/amd64",
    env: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    variables: Mapping[str, str] | None = None,
) -> ProbeResult:
    settings = {"Env": [f"{key}={value}" for key, value in (env or {}).items()], **(config or {})}
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    return static_probe(
        view_of(*layers),
        ImageConfig.model_validate(document),
        modules=modules,
        python=python,
        platform=parse_platform(platform),
        variables=variables,
    )


def statuses(result: ProbeResult) -> dict[str, str]:
    return {name: " ".join(filter(None, (found.status, found.missing))) for name, found in result.modules.items()}


def site(*items: Item, base: list[Item] | None = None) -> list[Item]:
    """Return a Python with files in its site-packages."""
    placed = [Item(f"{SITE}/{item.path}", item.kind, item.value, item.mode) for item in items]
    return [*(python_of() if base is None else base), folder(SITE), *placed]
