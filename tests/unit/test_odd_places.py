"""Places and archives as people write and pack them, and what is said where they cannot be taken."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from pydantic import TypeAdapter

from airferry.api import copy, load, verify
from airferry.config.bases import BaseSpec, LayoutBase
from airferry.engine.program import engine_error
from airferry.errors import HostError, IntegrityError, UsageError
from airferry.far.copy import FilePlace, parse_place
from airferry.far.relocate import parse_destination
from airferry.host import process
from airferry.host.files import translate_os_error
from airferry.near.bases import debian
from airferry.near.wheels.pip import Pip
from airferry.oci.archive import ArchiveSource
from airferry.oci.documents import Descriptor
from airferry.oci.layout import LayoutStore
from oci_images import make_bundle

DIGEST = "sha256:" + "a" * 64


def test_a_layout_is_asked_for_a_digest_as_registries_are(tmp_path: Path) -> None:
    assert parse_place(f"oci:a/b@{DIGEST}") == FilePlace(Path("a/b"), DIGEST, archive=False)
    assert parse_place(f"oci-archive:a@b.tar:{DIGEST}") == FilePlace(Path("a@b.tar"), DIGEST, archive=True)
    assert parse_place("oci:a@b:c@d") == FilePlace(Path("a@b"), "c@d", archive=False)
    assert parse_place(f"oci:a:name@{DIGEST}") == FilePlace(Path("a"), DIGEST, archive=False)
    base = TypeAdapter(BaseSpec).validate_python(f"oci:a/b@{DIGEST}")
    assert isinstance(base, LayoutBase) and (base.path, base.reference) == (Path("a/b"), DIGEST)
    make_bundle(tmp_path / "here")
    top: Descriptor = LayoutStore.open(tmp_path / "here").read_index().manifests[0]
    made = copy(f"oci:{tmp_path}/here@{top.digest}", f"oci:{tmp_path}/there:x", referrers=False)
    assert made.descriptor.digest == top.digest
    with pytest.raises(UsageError, match="a destination has a name, not a digest"):
        copy(f"oci:{tmp_path}/here@{top.digest}", f"oci:{tmp_path}/there@{top.digest}")


@pytest.mark.parametrize(
    ("pack", "program"),
    [
        (gzip.compress, "gunzip"),
        (zstandard.compress, "unzstd"),
        (lzma.compress, "unxz"),
        (bz2.compress, "bunzip2"),
    ],
)
def test_a_compressed_archive_says_how_to_unpack_it(
    pack: Callable[[bytes], bytes], program: str, tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(pack(bytes(10240)))
    with pytest.raises(IntegrityError, match="is compressed") as caught:
        ArchiveSource(tmp_path / "a.tar")
    assert str(caught.value.hint).startswith(f"run `{program} {tmp_path}/a.tar`")


@pytest.mark.parametrize("name", ["out.tar", "out.tar.gz", "out.tar.zst", "out.tar.xz"])
def test_a_packed_bundle_is_to_be_unpacked_first(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bytes(10240))
    for action in (verify, lambda path: load(path, to="localhost:1/x")):
        with pytest.raises(UsageError, match="contains no bundle") as caught:
            action(tmp_path / name)
        assert f"`tar -xf {tmp_path / name} -C FOLDER`" in str(caught.value.hint)


def test_an_image_in_upper_case_is_told_the_lower_one() -> None:
    with pytest.raises(UsageError, match="`Team/app` is not a repository name") as caught:
        parse_place("docker://host:5000/Team/app:V1")
    assert "as `team/app`" in str(caught.value.hint)


def test_a_destination_in_upper_case_is_told_the_lower_one() -> None:
    with pytest.raises(UsageError, match="`host:5000/Team/NeMo`: registries take no upper-case") as caught:
        parse_destination("host:5000/Team/NeMo")
    assert "`host:5000/team/nemo`" in str(caught.value.hint)
    with pytest.raises(UsageError, match="`host:5000/a_-b`: `a_-b` is not a repository name"):
        parse_destination("host:5000/a_-b")


def test_a_full_folder_for_temporary_files_is_named_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    full = OSError(errno.ENOSPC, "No space left on device")
    assert "`TMPDIR`" in str(translate_os_error(full, doing="write", path=tmp_path / "x").hint)
    assert "`TMPDIR`" not in str(translate_os_error(full, doing="write", path=Path("/elsewhere")).hint)


def test_programs_that_work_in_temporary_folders_find_those_full() -> None:
    """Such as mmdebstrap and pip, but no engine: that is given a folder in the cache."""
    for line in (
        "tar: ./usr/bin/x: Cannot write: No space left on device",
        "E: Write error - write (122: Disk quota exceeded)",
    ):
        failed = process.ProcessFailed("`mmdebstrap` failed", command="mmdebstrap", returncode=1, tail=(line,))
        error = debian._translated(failed, what="cannot bootstrap x")
        assert isinstance(error, HostError) and "`TMPDIR`" in str(error.hint)
        engine = engine_error(failed, doing="pull x")
        assert "`TMPDIR`" not in str(engine.hint) and "`AIRFERRY_CACHE`" in str(engine.hint)
    tail = ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",)
    with pytest.raises(HostError, match="disk full") as caught:
        Pip._not_found(process.Completed(1, b"", tail), ["x==1"])
    assert "`TMPDIR`" in str(caught.value.hint)


def test_a_user_whom_no_file_names_is_told_why_no_base_can_be_bootstrapped() -> None:
    """Such as the random user of a pod: mmdebstrap maps subordinate IDs."""
    tail = (
        "Use of uninitialized value $username in concatenation (.) or string at /usr/bin/mmdebstrap line 431.",
        "W: no entry in /etc/subuid for ",
        "E: failed to parse /etc/subuid and /etc/subgid",
    )
    failed = process.ProcessFailed("`mmdebstrap` failed", command="mmdebstrap", returncode=1, tail=tail)
    error = debian._translated(failed, what="cannot bootstrap x")
    assert isinstance(error, HostError) and "no range in `/etc/subuid`" in error.message
    assert "take the base from a registry, a layout or an archive" in str(error.hint)
