"""Hosts as they are met: without a home, with pipes and links for files, with file systems that can do little."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from airferry.api import copy, load, record_asset, report
from airferry.assets.unpack import TreeUnpacker
from airferry.bundle.receipt import write_receipt
from airferry.errors import BuildError, ConfigurationError, HostError, UsageError
from airferry.events import Event, Warned
from airferry.host import files, locks, process
from airferry.host.records import expect_cache
from airferry.oci.archive import ArchiveSource
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_buildable_platform, parse_platform
from airferry.registry.credentials import credential_files, store_credential
from airferry.registry.registries_conf import SYSTEM_FOLDER
from airferry.registry.tls import certificate_folders
from loaded_receipts import loaded_receipt
from oci_images import make_bundle

HOMELESS = 4_000_000_000


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder for temporary files, on a host where no variable says where the cache is."""
    for name in ("AIRFERRY_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@contextmanager
def umask(value: int) -> Iterator[None]:
    """Make files and folders under a umask."""
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# --- home and cache --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [None, "/nonexistent/home", "unwritable"])
def test_without_a_home_the_cache_is_a_private_temporary_folder(
    home: str | None, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(files, "home_directory", lambda: None)
    else:
        # root may write everywhere, so that the answer of the system is what is replaced
        monkeypatch.setenv("HOME", str(temporary.parent) if home == "unwritable" else home)
        monkeypatch.setattr(os, "access", lambda path, how: Path(path) != temporary.parent and real(path, how))
    expected = temporary / f"airferry-{os.getuid()}"
    with umask(0):
        assert files.cache_directory() == expected
    assert mode(expected) == 0o700
    told: list[Event] = []
    expect_cache(told.append)
    [warned] = told
    assert isinstance(warned, Warned) and f"`{expected}` is the cache" in warned.text
    assert "`AIRFERRY_CACHE`" in (warned.hint or "")


def test_a_cache_that_another_user_may_have_filled_is_not_taken(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent/home")
    place = temporary / f"airferry-{os.getuid()}"
    for make in (
        lambda: (place.mkdir(), place.chmod(0o777)),
        lambda: (temporary / "other").mkdir() or place.symlink_to(temporary / "other"),
        lambda: place.write_text("in the way"),
    ):
        make()
        with pytest.raises(HostError, match="only this user can write to") as caught:
            files.cache_directory()
        assert "`AIRFERRY_CACHE`" in (caught.value.hint or "")
        files.remove_tree(place)


def test_a_cache_in_the_home_is_not_talked_about(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    told: list[Event] = []
    expect_cache(told.append)
    assert told == [] and files.cache_directory() == tmp_path / ".cache" / "airferry"
    assert list(temporary.iterdir()) == []


def test_without_a_home_nothing_is_configured_there(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "home_directory", lambda: None)
    assert [path.parts[1] for path in credential_files()] == ["run"]
    assert all(SYSTEM_FOLDER.parent in folder.parents for folder in certificate_folders("r.example.com"))
    with pytest.raises(HostError, match="no place for credentials") as caught:
        store_credential("r.example.com", "a", password="b")
    assert "`REGISTRY_AUTH_FILE`" in (caught.value.hint or "")


def test_no_folder_for_temporary_files_is_an_error_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", fail)
    with pytest.raises(HostError, match="no folder for temporary files") as caught:
        files.temporary_directory()
    assert "`TMPDIR`" in (caught.value.hint or "")
    # a full disk is told all the same
    full = files.translate_os_error(OSError(errno.ENOSPC, "No space left"), doing="write", path=Path("x"))
    assert "free up space" in (full.hint or "")


def test_programs_are_not_told_of_a_temporary_folder_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    assert "TMPDIR" not in process.child_environment()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert process.child_environment()["TMPDIR"] == str(tmp_path)


# --- files that are pipes, devices and links -------------------------------------------------------------------------


def test_a_pipe_or_device_in_the_place_of_a_file_is_refused_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    for name, kind in (("pipe", "a pipe"), ("link", "a pipe"), ("null", "a device")):
        for write in (lambda path: files.write_bytes(path, b"x"), files.output_file):
            with pytest.raises(HostError, match=f"is {kind}") as caught:
                write(tmp_path / name)
            assert caught.value.hint == "name a file, and pass it on when it is there"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and (tmp_path / "null").is_symlink()


def test_an_output_goes_where_its_link_leads(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "new").symlink_to("records/new")
    (tmp_path / "old").symlink_to("records/old")
    (tmp_path / "records" / "old").write_text("old")
    for name in ("new", "old"):
        files.write_bytes(files.output_file(tmp_path / name), b"written")
        assert (tmp_path / name).is_symlink() and (tmp_path / "records" / name).read_bytes() == b"written"
    with pytest.raises(UsageError, match="is a folder, expected a file"):
        files.output_file(tmp_path / "records")


def test_a_name_that_a_file_system_does_not_take_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HostError, match="cannot write"):
        files.output_file(tmp_path / ("x" * 256))
    real = Path.touch

    def touch(path: Path, mode: int = 0o666, exist_ok: bool = True) -> None:
        if "?" in path.name:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
        real(path, mode, exist_ok)

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(HostError, match="Invalid argument") as caught:
        files.output_file(tmp_path / "a?b")
    assert "FAT, exFAT and SMB" in (caught.value.hint or "")
    assert files.output_file(tmp_path / "a") == tmp_path / "a" and list(tmp_path.iterdir()) == []


def test_a_link_of_another_user_in_a_folder_for_all_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("elsewhere")
    tmp_path.chmod(0o1777)
    assert files.output_file(tmp_path / "link") == tmp_path / "elsewhere"
    monkeypatch.setattr(os, "geteuid", lambda: HOMELESS)
    # the folder's owner may do with names in it what they like; who made the link is neither
    real = Path.stat

    def of_root(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = real(path, follow_symlinks=follow_symlinks)
        return os.stat_result((*found[:4], HOMELESS - 1, *found[5:10])) if path == tmp_path else found

    monkeypatch.setattr(Path, "stat", of_root)
    with pytest.raises(HostError, match="a link that another user made"):
        files.output_file(tmp_path / "link")


def test_outputs_are_tried_before_the_work(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    os.mkfifo(tmp_path / "pipe")
    bundle, pipe = tmp_path / "bundle", tmp_path / "pipe"
    events: list[Event] = []
    acts: list[Callable[[], object]] = [
        lambda: load(bundle, to="127.0.0.1:1/x", receipt=pipe, emit=events.append),
        lambda: report(bundle, html=pipe, emit=events.append),
        lambda: report(bundle, text=pipe, emit=events.append),
        lambda: copy("docker://127.0.0.1:1/a/b:c", f"oci-archive:{pipe}:x", emit=events.append),
        lambda: record_asset(bundle, name="a", output=pipe, emit=events.append),
    ]
    for act in acts:
        with pytest.raises(HostError, match="is a pipe"):
            act()
    assert events == []


def test_an_archive_that_is_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path(os.devnull)):
        with pytest.raises(HostError, match="is not a regular file") as caught:
            ArchiveSource(path)
        assert "`oci:DIR`" in (caught.value.hint or "")


# --- file systems ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for lock in (locks.exclusive_lock(tmp_path / "lock", purpose="x"), locks.waiting_lock(tmp_path / "lock")):
        with pytest.raises(HostError, match="cannot lock `") as caught, lock:
            pass
        assert "`AIRFERRY_CACHE`" in (caught.value.hint or "")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_modes_links_and_durable_folders_is_written_to(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    make_bundle(tmp_path / "here")
    here = LayoutStore.open(tmp_path / "here")
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(handle)

    for name in ("chmod", "fchmod", "link"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(os, "fsync", fsync)
    descriptor = here.read_index().manifests[0]
    there = LayoutStore.create(tmp_path / "there")
    there.link_blob(here.blob_path(descriptor.digest), descriptor)
    there.write_index([descriptor])
    assert there.read_bytes(descriptor) == here.read_bytes(descriptor)
    with files.atomic_file(tmp_path / "file", mode=0o600) as stream:
        stream.write(b"x")
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "`root_squash`"),
        (errno.EMFILE, "`ulimit -n 1024`"),
        (errno.EFBIG, "`ulimit -f`"),
        (errno.EROFS, "choose another folder"),
        (errno.ENAMETOOLONG, "FAT, exFAT and SMB"),
        (errno.EINVAL, "FAT, exFAT and SMB"),
    ],
)
def test_what_a_file_system_refuses_is_told_with_the_way_out(
    number: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    error = files.translate_os_error(OSError(number, os.strerror(number)), doing="write", path=Path("x"))
    assert said in (error.hint or "")
    if number == errno.EACCES:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert "root" not in str(files.os_error_hint(OSError(number, "")))


# --- umask -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0o000, 0o022, 0o077])
def test_a_umask_neither_hides_what_is_carried_nor_opens_it_to_all(value: int, tmp_path: Path) -> None:
    with umask(value):
        store = LayoutStore.create(tmp_path / "out" / "bundle")
        digest = store.put_bytes(b"x", "text/plain").digest
        files.write_texts(tmp_path / "overlays", {"slurm/a.yaml": "a"})
        unpacker = TreeUnpacker(tmp_path / "asset", what="it", whole="it", limit_bytes=9, limit_files=9)
        files.ensure_directory(tmp_path / "asset", shared=True)
        unpacker.write(b"deep/run", iter([b"x"]), executable=True)
        write_receipt(loaded_receipt("sft/one:tiny"), tmp_path / "jobs" / "airgap-receipt.yaml")
        own = files.ensure_directory(tmp_path / "cache" / "wheels")
        with locks.exclusive_lock(own / "lock", purpose="x"):
            pass
    shared = [tmp_path / "out", store.path, store.blob_path(digest).parent, tmp_path / "overlays" / "slurm"]
    shared += [tmp_path / "jobs", tmp_path / "asset" / "deep", tmp_path / "asset" / "deep" / "run"]
    assert {mode(path) & ~0o020 for path in shared} == {0o755}
    assert {mode(path) for path in (store.blob_path(digest), tmp_path / "overlays" / "slurm" / "a.yaml")} == {0o644}
    assert mode(own) == 0o775 & ~value and mode(own / "lock") & 0o007 == 0


# --- platforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parse", [parse_platform, parse_buildable_platform])
@pytest.mark.parametrize("text", ["x86_64", "amd64", "linux-amd64", "linux:amd64", "linux/amd64,linux/arm64"])
def test_what_is_no_platform_gets_the_nearest_one(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a platform") as caught:
        parse(text)
    assert "did you mean `linux/amd64`?" in caught.value.message or "," in text
    assert "`linux/arm64`" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("linux/amd46", "has no `linux/amd46`, did you mean `linux/amd64`?"), ("windows/amd64", "has no `windows/amd64`")],
)
def test_a_platform_that_an_image_lacks_fails_the_copy(wanted: str, said: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "here")
    store = LayoutStore.open(tmp_path / "here")
    name = next(entry.digest for entry in store.read_index().manifests if entry.artifact_type is None)
    with pytest.raises(BuildError) as caught:
        copy(f"oci:{store.path}@{name}", f"oci:{tmp_path}/there:x", platforms=[wanted], referrers=False)
    assert said in caught.value.message and "`linux/amd64`" in (caught.value.hint or "")
    assert not (tmp_path / "there").exists()
