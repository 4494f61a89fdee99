"""The file of a wheel: what its metadata say, held against its name, and bytes that depend on its content only.

Nothing is fetched, built or kept here; `wheels` does that.
"""

from __future__ import annotations

import base64
import csv
import email.parser
import hashlib
import io
import re
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from airferry.errors import BuildError
from airferry.host.archives import archive_faults
from airferry.near.left_behind import open_left
from airferry.near.wheels.pip import WheelTarget

OTHER_VERSION = "set a version that has a wheel for this platform under `requirements:` of the image"
MAX_WHEEL_METADATA_BYTES = 4 * 1024 * 1024
# apache-airflow, with most of all, has a thousand
MAX_WHEEL_REQUIREMENTS = 10_000
MAX_BUILT_BYTES = 16 << 30  # of the files in a wheel that was built here; that of torch with CUDA has 2 GiB


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in the cache. `origin` is `index`, `source` (built here) or a Git address with its commit.

    `note` is what an operator should know of how it was made.
    """

    name: str
    version: str
    filename: str
    sha256: str
    path: Path = field(compare=False)
    requires: tuple[str, ...] = ()
    requires_python: str = ""
    origin: str = "index"
    note: str = ""


def built_wheel(folder: Path, *, what: str) -> Path:
    """Return the one wheel that a build left in a folder: a regular file with a wheel's name.

    Raises:
        BuildError: it left none, several, or something else by such a name.
    """
    made = sorted(path for path in folder.iterdir() if path.suffix == ".whl")
    if len(made) != 1:
        raise BuildError(f"{what} left {len(made)} wheels, expected 1", hint=OTHER_VERSION)
    with open_left(made[0]), _reading(made[0]):
        parse_wheel_filename(made[0].name)
    return made[0]


def read_wheel(path: Path, *, sha256: str) -> Wheel:
    """Read a wheel's metadata and check it against the file name.

    Raises:
        BuildError: it is not a wheel, or its name or version is not what its file name says.
    """
    with _reading(path):
        name, version, _, _ = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as archive:
            inside = [item for item in archive.infolist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", item.filename)]
            if len(inside) != 1 or inside[0].file_size > MAX_WHEEL_METADATA_BYTES:
                raise BuildError(
                    f"`{path.name}` must contain exactly one METADATA file of at most 4 MiB", hint=OTHER_VERSION
                )
            text = archive.read(inside[0]).decode("utf-8", "replace")
        headers = email.parser.HeaderParser().parsestr(text)
        said_name, said_version = str(headers["Name"] or ""), str(headers["Version"] or "")
    try:
        agrees = canonicalize_name(said_name) == name and Version(said_version) == version
    except ValueError:
        agrees = False
    if not agrees:
        raise BuildError(f"`{path.name}` contains metadata of `{said_name}` `{said_version}`", hint=OTHER_VERSION)
    requires = headers.get_all("Requires-Dist", [])
    if len(requires) > MAX_WHEEL_REQUIREMENTS:
        raise BuildError(
            f"`{path.name}` has more than {MAX_WHEEL_REQUIREMENTS} requirements, the limit for a wheel",
            hint=OTHER_VERSION,
        )
    return Wheel(
        name=name,
        version=str(version),
        filename=path.name,
        sha256=sha256,
        path=path,
        requires=tuple(str(value) for value in requires),
        requires_python=str(headers["Requires-Python"] or ""),
    )


def _reading(path: Path) -> AbstractContextManager[None]:
    return archive_faults(lambda reason: BuildError(f"`{path.name}` is not a wheel: {reason}", hint=OTHER_VERSION))


def normalise_wheel(source: Path, path: Path) -> None:
    """Rewrite a wheel so that its bytes depend on nothing but the content of its files.

    Raises:
        BuildError: it is not a wheel, or damaged, or unpacks to more than `MAX_BUILT_BYTES`.
    """
    with _reading(source), zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        members = [item for item in old.infolist() if not item.is_dir()]
        if sum(item.file_size for item in members) > MAX_BUILT_BYTES:
            raise BuildError(f"`{source.name}` unpacks to more than {MAX_BUILT_BYTES >> 30} GiB", hint=OTHER_VERSION)
        for item in sorted(members, key=lambda item: item.filename):
            member = _member(item.filename, executable=bool(item.external_attr >> 16 & 0o111))
            member.file_size = item.file_size  # one of 2 GiB or more gets other headers, which come first
            with old.open(item) as stream, new.open(member, "w") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)


def write_wheel(path: Path, members: Mapping[str, bytes], *, info: str = "") -> Path:
    """Write a wheel of some files, sorted, and return its path; `info` names the folder that gets the RECORD of them.

    See PEP 427, *Binary distribution format*. Without `info` there is no RECORD: nothing but pip itself is run from
    such a file.
    """
    whole = dict(members)
    if info:
        record = io.StringIO()
        rows = csv.writer(record, lineterminator="\n")
        for name, data in sorted(members.items()):
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.writerow([name, f"sha256={digest}", len(data)])
        rows.writerow([f"{info}/RECORD", "", ""])
        whole[f"{info}/RECORD"] = record.getvalue().encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(whole):
            archive.writestr(_member(name), whole[name])
    return path


def _member(name: str, *, executable: bool = False) -> zipfile.ZipInfo:
    # stored, since deflate's output differs between versions of zlib
    item = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    item.external_attr = (0o100755 if executable else 0o100644) << 16
    item.create_system = 3
    return item


def check_target(wheel: Wheel, target: WheelTarget) -> None:
    """Refuse a wheel whose tags, or whose demands on Python, do not suit a target.

    Raises:
        BuildError: they do not.
    """
    tags = parse_wheel_filename(wheel.filename)[3]
    version = ".".join(str(part) for part in target.python_version)
    if tags.isdisjoint(target.tags):
        raise BuildError(f"`{wheel.filename}` is not compatible with {target}", hint="run `airferry lock --update`")
    try:
        suits = SpecifierSet(wheel.requires_python).contains(version, prereleases=True)
    except ValueError as error:
        raise BuildError(
            f"`{wheel.filename}` asks for a Python that cannot be: `{wheel.requires_python}`", hint=OTHER_VERSION
        ) from error
    if not suits:
        raise BuildError(
            f"`{wheel.filename}` needs Python `{wheel.requires_python}`, the base has {version}",
            hint="set another version under `requirements:` of the image",
        )
