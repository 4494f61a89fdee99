"""Userlands composed from packages that are made here, byte by byte."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from airferry.config import BootstrapBase
from airferry.errors import BuildError
from airferry.near.bases.debian import PackageCache, bootstrap, mmdebstrap_mirrors
from airferry.near.bases.userland import compose, read_package
from airferry.oci.platform import parse_platform
from examples import examples

EPOCH_S = 1_700_000_000
COMPRESSORS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
Files = dict[str, bytes | str | None]


def tar(files: Files, *, mtime: int = 0) -> bytes:
    """A tar of files (bytes), symbolic links (text) and folders (None)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            item = tarfile.TarInfo(f"./{name}")
            item.mtime = mtime
            if content is None:
                item.type, item.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(content, str):
                item.type, item.linkname = tarfile.SYMTYPE, content
            else:
                item.size = len(content)
            archive.addfile(item, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def deb(folder: Path, name: str, files: Files, *, version: str = "1.0-1", kind: str = ".xz", mtime: int = 0) -> Path:
    control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nDescription: made here\n more\n"
    sums = "".join(f"{0:032x}  {path}\n" for path, content in files.items() if isinstance(content, bytes))
    members = {
        "debian-binary": b"2.0\n",
        f"control.tar{kind}": COMPRESSORS[kind](tar({"control": control.encode(), "md5sums": sums.encode()})),
        f"data.tar{kind}": COMPRESSORS[kind](tar(files, mtime=mtime)),
    }
    path = folder / f"{name}_{version.replace(':', '%3a')}_amd64.deb"
    with path.open("wb") as stream:
        stream.write(b"!<arch>\n")
        for member, data in members.items():
            stream.write(f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
            stream.write(data + b"\n" * (len(data) % 2))
    return path


def composed(paths: list[Path]) -> tuple[bytes, dict[str, tarfile.TarInfo]]:
    data = b"".join(compose(paths, epoch_s=EPOCH_S))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        items = archive.getmembers()
    assert len({item.name for item in items}) == len(items)
    return data, {item.name: item for item in items}


def content(data: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        stream = archive.extractfile(name)
        assert stream is not None
        return stream.read()


@pytest.mark.parametrize("kind", list(COMPRESSORS))
def test_every_compression_of_packages_is_read(tmp_path: Path, kind: str) -> None:
    path = deb(tmp_path, "one", {"usr": None, "usr/one": b"1"}, kind=kind)
    package = read_package(path)
    assert (package.name, package.version, package.architecture) == ("one", "1.0-1", "amd64")
    data, _ = composed([path])
    assert content(data, "usr/one") == b"1"


def test_folders_at_the_top_are_merged_into_usr(tmp_path: Path) -> None:
    path = deb(tmp_path, "dash", {"bin": None, "bin/dash": b"sh", "lib64": None, "lib64/ld.so": "/lib/ld.so"})
    _, items = composed([path])
    assert items["bin"].linkname == "usr/bin"
    assert items["lib64"].linkname == "usr/lib64"
    assert items["usr/bin/dash"].isreg()
    assert items["usr/bin/sh"].linkname == "dash"
    assert items["usr/lib64/ld.so"].linkname == "/lib/ld.so"


def test_what_scripts_would_have_written_is_there(tmp_path: Path) -> None:
    paths = [
        deb(tmp_path, "base-passwd", {"usr/share/base-passwd/passwd.master": b"root:*:0:0:root:/root:/bin/bash\n"}),
        deb(tmp_path, "python3-minimal", {"usr/bin/python3": "python3.11", "usr/bin/python3.11": b"elf"}),
        deb(
            tmp_path,
            "ca-certificates",
            {"usr/share/ca-certificates/m/b.crt": b"B\n", "usr/share/ca-certificates/m/a.crt": b"A"},
        ),
    ]
    data, items = composed(paths)
    assert content(data, "etc/passwd").startswith(b"root:*:0:0:")
    assert items["usr/bin/python"].linkname == "python3"
    assert content(data, "etc/ssl/certs/ca-certificates.crt") == b"A\nB\n"
    assert items["tmp"].mode == 0o1777
    assert items["root"].mode == 0o700
    status = content(data, "var/lib/dpkg/status").decode()
    assert status.count("Status: install ok installed") == 3
    assert "Package: base-passwd\nStatus: install ok installed\nVersion: 1.0-1\n" in status
    assert b"/usr/bin/python3.11\n" in content(data, "var/lib/dpkg/info/python3-minimal.list")


def test_documentation_goes_and_copyright_stays(tmp_path: Path) -> None:
    files: Files = {
        "usr/share/doc/one/copyright": b"c",
        "usr/share/doc/one/changelog.gz": b"x",
        "usr/share/man/man1/one.1.gz": b"x",
        "usr/share/locale/de/LC_MESSAGES/one.mo": b"x",
    }
    _, items = composed([deb(tmp_path, "one", files)])
    assert "usr/share/doc/one/copyright" in items
    assert not {"usr/share/doc/one/changelog.gz", "usr/share/man/man1/one.1.gz"} & set(items)
    assert not any(name.endswith(".mo") for name in items)


def test_times_after_the_epoch_become_the_epoch(tmp_path: Path) -> None:
    _, items = composed([deb(tmp_path, "one", {"usr/new": b"1"}, mtime=EPOCH_S + 99)])
    _, older = composed([deb(tmp_path, "one", {"usr/old": b"1"}, mtime=17)])
    assert items["usr/new"].mtime == EPOCH_S
    assert older["usr/old"].mtime == 17


@given(seed=st.integers(), count=st.integers(1, 6))
@examples(50)
def test_the_order_of_packages_does_not_matter(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int) -> None:
    folder = tmp_path_factory.mktemp("debs")
    paths = [deb(folder, f"p{n}", {"usr/share": None, f"usr/share/f{n}": bytes(n)}, kind="") for n in range(count)]
    first, items = composed(paths)
    random.Random(seed).shuffle(paths)
    assert composed(paths)[0] == first
    seen: set[str] = set()
    for name in items:
        parent = name.rpartition("/")[0]
        assert not parent or parent in seen
        seen.add(name)


@pytest.mark.parametrize("data", [b"", b"not a package", b"!<arch>\n"])
def test_what_is_no_package_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.deb").write_bytes(data)
    with pytest.raises(BuildError, match=r"`x\.deb` is not a Debian package"):
        read_package(tmp_path / "x.deb")


# --- the cache of packages, pins, mirrors ---


def test_pinned_packages_come_from_the_cache_without_any_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airferry.host.process.find_program", lambda name: None)
    cache = PackageCache(tmp_path / "cache" / "debs" / "bookworm-amd64")
    for name, version in (("one", "1:2.0"), ("two", "3")):
        cache.add(deb(tmp_path, name, {f"usr/{name}": b"x"}, version=version))
    base = BootstrapBase(suite="bookworm", packages=("one",))
    pins = {"one": "1:2.0", "two": "3"}
    result = bootstrap(
        base,
        platform=parse_platform("linux/amd64"),
        into=tmp_path / "out.tar",
        cache=tmp_path / "cache",
        epoch_s=EPOCH_S,
        pins=pins,
    )
    assert (result.packages, result.reused) == (pins, True)
    assert content(result.tar.read_bytes(), "usr/two") == b"x"


def test_a_damaged_package_in_the_cache_is_not_used(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path / "cache")
    stored = cache.add(deb(tmp_path, "one", {"usr/one": b"x"}))
    assert cache.find({"one": "1.0-1"}) == [stored]
    assert cache.find({"one": "1.0-2"}) is None
    stored.write_bytes(stored.read_bytes()[:-1] + b"\0")
    assert cache.find({"one": "1.0-1"}) is None


DEB822 = """\
Types: deb
# kept here
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates trixie
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb-src
URIs: http://mirror.test/debian
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: bookworm
Components: main
"""


def test_the_hosts_own_mirrors_serve_their_suite(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    (tmp_path / "sources.list").write_text(
        "deb [trusted=yes] http://old.test/debian bookworm-security main non-free # note\n"
        "deb-src http://x.test/d bookworm main\n"
    )
    base = BootstrapBase(suite="bookworm")
    platform = parse_platform("linux/amd64")
    signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert mmdebstrap_mirrors(base, platform=platform, apt=tmp_path) == [
        "deb [trusted=yes] http://old.test/debian bookworm-security main",
        f"deb {signed} http://mirror.test/debian bookworm main",
        f"deb {signed} http://mirror.test/debian bookworm-updates main",
    ]
    assert mmdebstrap_mirrors(BootstrapBase(suite="noble"), platform=platform, apt=tmp_path) == []
    own = BootstrapBase(suite="bookworm", mirror="http://named.test/debian")
    assert mmdebstrap_mirrors(own, platform=platform, apt=tmp_path) == ["http://named.test/debian"]
