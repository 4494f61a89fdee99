"""Wheels and probes made on the fly, so that tests need no package index."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from airferry.config import CompressionChoice, RegistryBase
from airferry.near.probe.answers import InstalledDistribution, ProbeResult, PythonFacts
from airferry.oci.platform import parse_platform
from airferry.plan.models import Candidate, GroupPlan
from airferry.rootfs.modules import ModuleAnswer


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    tag: str = "py3-none-any",
    requires: Sequence[str] = (),
    requires_python: str = "",
    said_name: str = "",
    extras: Sequence[str] = (),
) -> Path:
    """Write an installable wheel with one module and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {said_name or name}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {line}" for line in requires]
    lines += [f"Requires-Python: {requires_python}"] if requires_python else []
    content = {
        f"{name.replace('-', '_')}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": "\n".join(lines) + "\n\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = ""
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    content[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    wheel = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in content.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return wheel


WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def record_hash(data: bytes) -> str:
    """Return a file's hash as RECORD has it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def wheel_of(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    *,
    tag: str = "py3-none-any",
    record: str | None = None,
    executable: Sequence[str] = (),
    wheel: str = WHEEL,
) -> Path:
    """Write a wheel of these files, with a RECORD that is right unless another is given, and return its path."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": wheel.encode(),
    }
    rows = "".join(f"{path},{record_hash(data)},{len(data)}\n" for path, data in content.items())
    content[f"{info}/RECORD"] = (rows + f"{info}/RECORD,,\n" if record is None else record).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in content.items():
            item = zipfile.ZipInfo(member)
            item.external_attr = (0o100755 if member in executable else 0o100644) << 16
            archive.writestr(item, data)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_probe(
    *,
    version: str = "3.11.2",
    libc: tuple[str, str] = ("glibc", "2.36"),
    machine: str = "x86_64",
    implementation: str = "cpython",
    installed: dict[str, str] | None = None,
    requires: dict[str, tuple[str, ...]] | None = None,
    modules: dict[str, ModuleAnswer] | None = None,
) -> ProbeResult:
    """Return what a probe of a base might have found."""
    short = ".".join(version.split(".")[:2])
    markers = {
        "implementation_name": implementation,
        "implementation_version": version,
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": version,
        "python_version": short,
        "sys_platform": "linux",
    }
    return ProbeResult(
        schema_version=1,
        modules=modules or {},
        python=PythonFacts.model_validate(
            {
                "executable": "/usr/bin/python3",
                "implementation": implementation,
                "version": version,
                "prefix": "/usr",
                "base_prefix": "/usr",
                "in_venv": False,
                "externally_managed": True,
                "paths": {},
                "libc": libc[0],
                "libc_version": libc[1],
                "machine": machine,
                "byte_order": "little",
                "pointer_bits": 64,
                "abi": "cp" + short.replace(".", ""),
                "extension_suffix": "",
                "markers": markers,
            }
        ),
        distributions=tuple(
            InstalledDistribution(name=name, version=value, requires=(requires or {}).get(name, ()))
            for name, value in (installed or {}).items()
        ),
    )


def source_distribution(folder: Path, *, name: str, tag: str) -> Path:
    """Write a source distribution that builds with a backend of its own, so that nothing has to be downloaded."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for inside, text in project(name, tag).items():
            data = text.encode()
            member = tarfile.TarInfo(f"{name}-1.0/{inside}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def project(name: str, tag: str) -> dict[str, str]:
    """Return the files of a project whose build backend is its own, so that a build needs no index."""
    backend = f"""
import os, zipfile
def build_wheel(directory, config_settings=None, metadata_directory=None):
    name = "{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as archive:
        archive.writestr("{name}.py", "EPOCH = " + os.environ["SOURCE_DATE_EPOCH"])
        archive.writestr("{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: {tag}\\n")
        archive.writestr("{name}-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        archive.writestr("{name}-1.0.dist-info/RECORD", "")
    return name
"""
    return {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": backend,
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
    }


def make_group(candidates: Sequence[Candidate], *, named: Mapping[str, str], pip_no_deps: bool) -> GroupPlan:
    """Return the plan of an image on one platform, with what may have to be added to it."""
    return GroupPlan(
        name="a-12345678",
        image_names=("a",),
        base_image=RegistryBase(reference="registry.example/base:1"),
        platforms=(parse_platform("linux/amd64"),),
        tag="a:1",
        tar="a.tar",
        steps=("a",),
        targets=("a",),
        pip_no_deps=pip_no_deps,
        required_imports=(),
        requirements=named,
        python=None,
        containerfile=None,
        overlays=(),
        candidates=tuple(candidates),
        compression=CompressionChoice(),
    )
