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

from airferry.api import copy
from airferry.config.bases import BaseSpec, LayoutBase
from airferry.errors import IntegrityError, UsageError
from airferry.events import Event, Warned
from airferry.far.copy import FilePlace, parse_place
from airferry.far.relocate import parse_destination
from airferry.host.files import translate_os_error
from airferry.near.git.driver import LFS_POINTER
from airferry.oci.archive import ArchiveSource
from airferry.oci.documents import Descriptor
from airferry.oci.layout import LayoutStore
from oci_images import make_bundle
from travelling_catalogue import carry, write_catalogue

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


def test_lfs_pointers_of_the_catalogue_are_named(tmp_path: Path) -> None:
    root = write_catalogue(tmp_path / "catalogue", tracked=False)
    events: list[Event] = []
    carry(root, tmp_path / "one", emit=events.append)
    assert not [event for event in events if isinstance(event, Warned) and "LFS" in event.text]
    place = next(path.parent for path in root.rglob("step.py"))
    (place / "weights.bin").write_bytes(LFS_POINTER + b"\noid sha256:1\nsize 9\n")
    carry(root, tmp_path / "two", emit=events.append)
    [warned] = [event for event in events if isinstance(event, Warned) and "LFS" in event.text]
    assert "1 Git LFS pointer," in warned.text and "weights.bin`" in warned.text
