"""Files, folders, locks and journals of this host: whole or not there, for one process at a time, with a way out."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from airferry.errors import ConfigurationError, HostError
from airferry.host import files, locks, process
from airferry.host.canonical import canonical_json, inputs_digest
from airferry.host.journal import WHOLE, Journal
from airferry.host.records import Records
from airferry.host.yaml import MAX_DOCUMENT_BYTES
from airferry.oci import streams
from airferry.oci.documents import LAYER_TAR, descriptor_of


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(files.TEMPORARY_PREFIX)]


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSPC, "free up space on the file system of `/a/b`"),
        (errno.EDQUOT, "free up space on the file system of `/a/b`"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EACCES, "check the owner and mode of `/a/b`"),
        (errno.EPERM, "check the owner and mode of `/a/b`"),
        (errno.EROFS, "`/a/b` is on a read-only file system"),
        (errno.EIO, "dmesg"),
        (errno.ENOENT, "check the path"),
    ],
)
def test_an_error_of_the_system_says_what_failed_and_the_way_out(code: int, hint: str) -> None:
    error = files.translate_os_error(OSError(code, os.strerror(code)), doing="write", path=Path("/a/b"))
    assert error.message == f"cannot write `/a/b`: {os.strerror(code)}"
    assert hint in (error.hint or "")
    assert error.exit_code == 4 and error.fields["path"] == "/a/b"
    assert "odd" in files.translate_os_error(OSError("odd"), doing="write", path=Path("/a/b")).message


def in_the_way(path: Path) -> Path:
    path.write_text("in the way")
    return path


@pytest.mark.parametrize(
    "act",
    [
        lambda path: files.ensure_directory(path / "below"),
        lambda path: files.write_bytes(path / "below" / "file", b"x"),
        lambda path: files.expect_writable(path),
        lambda path: files.expect_writable(path / "below" / "deeper"),
        lambda path: files.scratch_directory(path).__enter__(),
        lambda path: files.read_bounded(path / "below", limit_bytes=1),
        lambda path: locks.exclusive_lock(path / "lock", purpose="x").__enter__(),
        lambda path: locks.waiting_lock(path / "lock").__enter__(),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_an_error_of_the_host(act: Callable[[Path], Any], tmp_path: Path) -> None:
    path = in_the_way(tmp_path / "file")
    with pytest.raises(HostError) as caught:
        act(path)
    assert "file" in caught.value.message
    assert path.read_text() == "in the way" and leftovers(tmp_path) == []


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_file_appears_whole_with_its_mode_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with files.atomic_file(path, mode=0o600) as stream:
        stream.write(b"half")
        assert not path.exists()
        assert len(leftovers(path.parent)) == 1, "beside it, so that a rename is enough"
    assert path.read_bytes() == b"half" and path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyError), files.atomic_file(path) as stream:
        stream.write(b"other")
        raise KeyError
    assert path.read_bytes() == b"half" and leftovers(path.parent) == []
    files.write_bytes(path, b"other")
    assert path.read_bytes() == b"other" and path.stat().st_mode & 0o777 == 0o644
    files.write_text(path, "ä")
    assert path.read_bytes() == "ä".encode()


def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match=r"cannot write .*No space left") as caught:
        files.write_bytes(path, b"new")
    assert "free up space" in (caught.value.hint or "")
    assert path.read_bytes() == b"old" and leftovers(tmp_path) == []


def test_tests_can_stop_a_write_at_each_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(files, "boundary", seen.append)
    files.write_bytes(tmp_path / "file", b"x")
    assert seen == ["fsync file", "rename file", "fsync folder of file"]


def test_large_files_begin_to_be_written_before_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _handle, *rest: advised.append(rest))
    with (tmp_path / "file").open("wb") as stream:
        stream.write(b"x")
        assert streams.begin_writeback(stream, 0, streams.WRITEBACK_BYTES - 1) == 0 and advised == []
        assert streams.begin_writeback(stream, 5, streams.WRITEBACK_BYTES + 5) == streams.WRITEBACK_BYTES + 5
        assert (tmp_path / "file").stat().st_size == 1, "what Python held back is with the kernel"
    assert advised == [(5, streams.WRITEBACK_BYTES, os.POSIX_FADV_DONTNEED)]


def test_whether_files_can_be_written_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    files.expect_writable(tmp_path / "not" / "yet" / "there")
    files.expect_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(HostError, match="is not a folder") as caught:
        files.expect_writable(tmp_path / "dangling" / "below")
    assert caught.value.hint == "choose another folder"


def test_dots_go_from_a_path_and_links_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.without_dots(Path("a/b")) == Path("a/b")
    assert files.without_dots(Path("a/../b")) == tmp_path / "b"
    assert files.without_dots(Path("/a/../b")) == Path("/b")


def test_a_file_is_read_up_to_its_limit_and_hashed_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert files.read_bounded(path, limit_bytes=5) == b"12345"
    with pytest.raises(HostError, match=r"file` is larger than the limit of 4 bytes") as caught:
        files.read_bounded(path, limit_bytes=4)
    assert caught.value.fields["path"] == str(path)
    with pytest.raises(HostError, match="cannot read"):
        files.read_bounded(tmp_path / "gone", limit_bytes=4)
    assert "sha256:" + files.file_sha256(path) == descriptor_of(b"12345", LAYER_TAR).digest


# --- removing --------------------------------------------------------------------------------------------------------


def test_trees_go_whatever_their_modes_and_links_are_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    tree = tmp_path / "tree"
    (tree / "locked" / "deep").mkdir(parents=True)
    (tree / "locked" / "deep" / "file").write_text("x")
    (tree / "link").symlink_to(kept)
    (tree / "locked" / "deep").chmod(0o500)
    (tree / "locked").chmod(0o000)
    files.remove_tree(tree)
    assert not tree.exists() and (kept / "file").read_text() == "x"
    (tmp_path / "link").symlink_to(kept)
    files.remove_tree(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink() and kept.is_dir()
    files.remove_tree(kept / "file")
    files.remove_tree(tmp_path / "never")
    assert list(kept.iterdir()) == []


def test_what_is_refused_is_unlocked_and_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals as in folders that may not be entered or written, which root never meets."""
    stuck = {"open": "folder", "unlink": "file", "rmdir": "emptied"}
    refused: list[str] = []
    for tree in ("one", "two"):
        (tmp_path / tree / "emptied").mkdir(parents=True)
        (tmp_path / tree / "folder").mkdir()
        (tmp_path / tree / "folder" / "file").write_text("x")

    def refusing(function: str, real: Callable[..., Any], times: int) -> Callable[..., Any]:
        def call(name: Any, *arguments: Any, **more: Any) -> Any:
            if Path(name).name == stuck[function] and refused.count(function) < times:
                refused.append(function)
                raise PermissionError(errno.EACCES, "Permission denied", name)
            return real(name, *arguments, **more)

        return call

    for tree, times in (("one", 1), ("two", 2)):
        refused.clear()
        with monkeypatch.context() as replaced:
            for function in stuck:
                replaced.setattr(os, function, refusing(function, getattr(os, function), times))
            if times == 1:
                files.remove_tree(tmp_path / tree)
                assert sorted(refused) == ["open", "rmdir", "unlink"]
            else:
                with pytest.raises(HostError, match=r"cannot remove .*Permission denied"):
                    files.remove_tree(tmp_path / tree)
        assert (tmp_path / tree).exists() is (times == 2)


def test_what_killed_writers_left_goes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / f"{files.TEMPORARY_PREFIX}file").write_text("x")
    (tmp_path / f"{files.TEMPORARY_PREFIX}folder" / "deep").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / f"{files.TEMPORARY_PREFIX}kept").write_text("x")
    assert files.remove_stale_temporaries(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == [f"{files.TEMPORARY_PREFIX}kept", "below", "file"]
    assert files.remove_stale_temporaries(tmp_path / "gone") == files.remove_stale_temporaries(tmp_path) == 0


def test_a_scratch_folder_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), files.scratch_directory(tmp_path / "new") as scratch:
        assert scratch.parent == tmp_path / "new" and scratch.name.startswith(files.TEMPORARY_PREFIX)
        (scratch / "file").write_text("x")
        raise KeyError
    assert list((tmp_path / "new").iterdir()) == []


# --- locks -----------------------------------------------------------------------------------------------------------


def test_one_process_works_where_another_does(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with locks.exclusive_lock(path, purpose="build"):
        with pytest.raises(HostError, match=r"lock` is locked") as caught:
            locks.exclusive_lock(path, purpose="load into `x`").__enter__()
        assert caught.value.hint == "wait until it finishes, or use another folder to load into `x`"
        assert caught.value.fields["path"] == str(path)
    path.write_bytes(b"kept")
    for lock in (locks.exclusive_lock(path, purpose="x"), locks.waiting_lock(path)):
        with lock, path.open("ab") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with path.open("ab") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert path.read_bytes() == b"kept"


def test_a_lock_that_is_taken_is_waited_for_and_that_is_said_once(tmp_path: Path) -> None:
    path, said = tmp_path / "lock", []
    holder = path.open("ab")
    fcntl.flock(holder, fcntl.LOCK_EX)

    def on_wait() -> None:
        said.append("waiting")
        holder.close()

    with locks.waiting_lock(path, on_wait=on_wait):
        assert said == ["waiting"]
    with locks.waiting_lock(path, on_wait=on_wait):
        assert said == ["waiting"], "a free lock is not waited for"


# --- places ----------------------------------------------------------------------------------------------------------


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "a" / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_directory() == tmp_path / "a" / "cache"
    monkeypatch.setenv("AIRFERRY_CACHE", "")
    assert files.cache_directory() == tmp_path / "xdg" / "airferry"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_directory() == tmp_path / ".cache" / "airferry"


def test_the_cache_is_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "a" / "cache"))
    assert files.cache_directory().stat().st_mode & 0o777 == 0o700
    given = tmp_path / "given"
    given.mkdir(mode=0o750)
    monkeypatch.setenv("AIRFERRY_CACHE", str(given))
    assert files.cache_directory().stat().st_mode & 0o777 == 0o750, "what someone made has the mode that they chose"
    if os.getuid() == 0:
        os.chown(given, 4_242, -1)
        assert files.cache_directory() == given
    monkeypatch.setattr(os, "geteuid", lambda: 4_243)
    with pytest.raises(HostError, match="belongs to another user") as caught:
        files.cache_directory()
    assert "AIRFERRY_CACHE" in (caught.value.hint or "")
    monkeypatch.setenv("AIRFERRY_CACHE", "/proc/no/such/folder")
    assert files.cache_directory() == Path("/proc/no/such/folder"), "what writes to it says what is wrong"


def test_a_cache_that_is_only_looked_for_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    assert files.cache_directory(make=False) == tmp_path / "cache" and not (tmp_path / "cache").exists()


def test_a_runtime_folder_in_which_others_can_plant_files_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert process.runtime_directory() == folder, "what is missing is made"
    folder.mkdir(mode=0o700)
    assert process.runtime_directory() == folder
    folder.chmod(0o1777)
    assert process.runtime_directory() is None
    folder.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4_243)
    assert process.runtime_directory() is None
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert process.runtime_directory() is None


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o600), (0o077, 0o600), (0o002, 0o660), (0o000, 0o660)])
def test_a_lock_cannot_be_held_by_users_who_may_only_read_the_folder(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "lock"
    before = os.umask(umask)
    try:
        for lock in (locks.exclusive_lock(path, purpose="test"), locks.waiting_lock(path)):
            with lock:
                assert path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError, match="open lock"), locks.exclusive_lock(path, purpose="test"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_free_space_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    # other processes write to the same disk
    assert files.free_bytes(tmp_path / "not" / "yet") == pytest.approx(files.free_bytes(tmp_path), rel=0.2)


def test_nothing_is_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, there, a_file in (
        (tmp_path, True, False),
        (tmp_path / "file", True, True),
        (tmp_path / "file" / "below", False, False),
        (tmp_path / ("x" * 300), False, False),
    ):
        assert (files.exists(path), files.is_file(path)) == (there, a_file)


def test_links_in_a_circle_are_an_error_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for path in (tmp_path / "a" / "x", tmp_path / "a\0b"):
        with pytest.raises(HostError) as caught:
            files.resolved(path)
        assert caught.value.fields["path"] == str(path)
        assert not files.lies_within(path, tmp_path)
    assert files.lies_within(tmp_path / "c", tmp_path) and not files.lies_within(tmp_path.parent, tmp_path)


def test_a_home_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.expand_home(Path("~no-such-user/x")) == Path("~no-such-user/x")
    monkeypatch.setenv("HOME", "/home/x")
    assert files.home_directory() == Path("/home/x") and files.expand_home(Path("~/y")) == Path("/home/x/y")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert files.home_directory() is None


# --- what was done before --------------------------------------------------------------------------------------------


def test_a_journal_gives_back_what_was_done_with_the_same_inputs(tmp_path: Path) -> None:
    path = tmp_path / "journal.yaml"
    journal = Journal(path)
    assert journal.result("build", {}) is None and not path.exists()
    journal.record("build", {"a": 1, "b": [2]}, {"image": "ä"})
    journal.record("probe/x", {}, {"n": 1})
    for same in (journal, Journal(path)):
        assert same.path == path
        assert same.result("build", {"b": [2], "a": 1}) == {"image": "ä"}
        assert same.result("build", {"a": 1, "b": [3]}) is None
        assert same.result("other", {"a": 1, "b": [2]}) is None
        assert same.results("probe/") == {"probe/x": {"n": 1}} and same.results("none") == {}
        assert list(same.results("")) == ["build", "probe/x"]
    journal.record("build", {"a": 2}, {"image": "new"})
    assert Journal(path).result("build", {"a": 2}) == {"image": "new"}
    assert Journal(path).result("build", {"a": 1, "b": [2]}) is None, "the newer one takes its place"
    journal.forget_except({"probe/x"})
    assert journal.result("build", {"a": 2}) is None
    journal.record("last", {}, {})
    assert list(Journal(path).results("")) == ["last", "probe/x"]
    document = yaml.safe_load(path.read_text())
    assert (document["schema_version"], document["written_by"]) == (1, "airferry")
    assert document["actions"]["last"] == {"inputs": inputs_digest({}), "result": {}}


@given(entries=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=120)), max_size=6, unique_by=lambda it: it[0]))
@example(entries=[("a", "x\n\ny\n"), ("b\n# noted\n", "\n# noted\n"), ("c", "\u2028 # noted\n\x85"), ("", " \n z")])
def test_whatever_entries_hold_comes_back_however_they_were_written(entries: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.yaml"
        journal = Journal(path)
        for name, value in entries:
            journal.record(name, {}, {"value": value, "list": [value, {value: 1}]})
        wanted = {name: {"value": value, "list": [value, {value: 1}]} for name, value in entries}
        assert Journal(path).results("") == dict(sorted(wanted.items()))


def test_a_new_entry_is_appended_and_only_what_replaces_or_drops_one_writes_all(tmp_path: Path) -> None:
    path = tmp_path / "journal.yaml"
    journal = Journal(path)
    journal.record("a", {}, {"n": 1})
    first, inode = path.read_bytes(), path.stat().st_ino
    journal.record("b", {}, {"n": 2})
    Journal(path).record("c", {}, {"n": 3})
    assert path.stat().st_ino == inode and path.read_bytes().startswith(first)
    journal = Journal(path)
    journal.record("a", {}, {"n": 4})
    assert path.stat().st_ino != inode
    journal.forget_except({"a", "c"})
    journal.record("b", {}, {"n": 5})
    assert Journal(path).results("") == {"a": {"n": 4}, "b": {"n": 5}, "c": {"n": 3}}
    assert path.read_bytes().count(b"  b:") == 1
    path.write_bytes(first)
    journal.record("d", {}, {})
    assert list(Journal(path).results("")) == ["a", "b", "c", "d"], "a file that is another by now is written whole"
    path.unlink()
    journal.record("e", {}, {})
    assert list(Journal(path).results("")) == ["a", "b", "c", "d", "e"]


def test_an_entry_that_was_cut_off_does_not_count_and_those_before_it_do(tmp_path: Path) -> None:
    path = tmp_path / "journal.yaml"
    journal = Journal(path)
    journal.record("a", {}, {"n": 1})
    whole = len(path.read_bytes())
    journal.record("b", {}, {"digest": "sha256:" + "1" * 64, "text": "x\n" * 9})
    data = path.read_bytes()
    for cut in range(whole, len(data)):
        for tail in (b"", b"\0" * (len(data) - cut)):
            path.write_bytes(data[:cut] + tail)
            found = Journal(path)
            assert found.results("") == {"a": {"n": 1}}, (cut, tail)
        # what was appended reached the disk in part, and the mark behind it whole
        path.write_bytes(data[:cut] + b"\0" * (len(data) - len(WHOLE) - cut) + WHOLE)
        assert set(Journal(path).results("")) in ({"a"}, {"a", "b"}), cut
    found.record("c", {}, {})
    assert list(Journal(path).results("")) == ["a", "c"]


def test_a_part_of_a_journal_is_not_taken_for_one_from_before_there_were_marks(tmp_path: Path) -> None:
    path = tmp_path / "journal.yaml"
    Journal(path).record("a", {}, {"size": 1234567, "list": [1, 2]})
    data = path.read_bytes()
    for cut in range(len(WHOLE), len(data)):
        path.write_bytes(data[:cut])
        found = Journal(path)
        assert (found.path, found.results("")) == (path, {}), cut
    found.record("b", {}, {})
    assert list(Journal(path).results("")) == ["b"]


@pytest.mark.parametrize("content", ["written_by: nemotron\nactions: {build: {}}\n", "[1, 2]\n", "a: [", "text"])
def test_a_file_of_another_tool_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.yaml"
    path.write_text(content)
    journal = Journal(path)
    assert journal.path == tmp_path / "airferry-state.yaml"
    journal.record("build", {}, {"a": 1})
    assert path.read_text() == content
    assert Journal(path).result("build", {}) == {"a": 1}


@pytest.mark.parametrize(
    "trouble",
    [
        "actions: {build: &a [*a]}\n",
        "actions: {build: *a}\n",
        "actions: !!python/object/apply:os.system [ls]\n",
        "actions: " + "[" * 100_000,
        "a: &a [" + "x, " * 2_000 + "x]\nb: [" + "*a, " * 2_000 + "*a]\n",
        "\xff",
    ],
)
def test_a_journal_that_cannot_be_read_costs_the_work_and_nothing_else(tmp_path: Path, trouble: str) -> None:
    path = tmp_path / "journal.yaml"
    path.write_bytes(f"schema_version: 1\nwritten_by: airferry\n{trouble}".encode("latin-1"))
    journal = Journal(path)
    assert journal.results("") == {}
    journal.record("build", {}, {"a": 1})
    assert Journal(path).result("build", {}) == {"a": 1}


def test_a_journal_of_a_strange_version_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "journal.yaml"
    path.write_text("schema_version: many\nwritten_by: airferry\nactions: {a: {result: {n: 1}}}\n")
    assert Journal(path).results("") == {"a": {"n": 1}}


def test_an_older_journal_with_aliases_is_read_and_written_without(tmp_path: Path) -> None:
    path = tmp_path / "journal.yaml"
    shared = {"layers": ["sha256:1"], "n": 1}
    result = {"amd64": shared, "arm64": shared}
    actions = {"build": {"inputs": inputs_digest({}), "result": result}}
    text = yaml.safe_dump({"schema_version": 1, "written_by": "airferry", "actions": actions}, sort_keys=False)
    assert "&id001" in text and "*id001" in text
    path.write_text(text)
    journal = Journal(path)
    assert journal.path == path and journal.result("build", {}) == result
    journal.record("next", {}, {})
    assert b"id001" not in path.read_bytes()
    assert Journal(path).result("build", {}) == result


def test_a_journal_may_be_larger_than_other_documents(tmp_path: Path) -> None:
    path = tmp_path / "journal.yaml"
    Journal(path).record("build", {}, {"a": 1})
    with path.open("ab") as stream:
        stream.write(b"# " + b"x" * MAX_DOCUMENT_BYTES + b"\n")
    journal = Journal(path)
    assert journal.path == path and journal.result("build", {}) == {"a": 1}


def test_a_journal_of_a_newer_airferry_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.yaml"
    path.write_text("schema_version: 2\nwritten_by: airferry\n")
    with pytest.raises(ConfigurationError, match="has schema_version 2, this version of airferry supports 1") as caught:
        Journal(path)
    assert "another output folder" in (caught.value.hint or "")


@pytest.mark.parametrize("actions", ["[]", "{build: 5}", "{build: {inputs: DIGEST, result: 5}}", "{build: {}}"])
def test_entries_of_another_shape_count_for_nothing(tmp_path: Path, actions: str) -> None:
    path = tmp_path / "journal.yaml"
    text = f"schema_version: 1\nwritten_by: airferry\nactions: {actions}\n"
    path.write_text(text.replace("DIGEST", f"'{inputs_digest({})}'"))
    assert Journal(path).result("build", {}) is None and Journal(path).results("") == {}


def test_records_are_kept_by_all_of_their_key(tmp_path: Path) -> None:
    records = Records(tmp_path / "new")
    assert records.recall({"a": 1}) is None and not (tmp_path / "new").exists()
    records.remember({"a": 1, "b": 2}, {"x": "ä"})
    records.remember({"a": 1, "b": 3}, {"x": 2})
    assert records.recall({"b": 2, "a": 1}) == {"x": "ä"} and records.recall({"a": 1}) is None
    records.remember({"a": 1, "b": 2}, {"x": 3})
    assert Records(tmp_path / "new").recall({"a": 1, "b": 2}) == {"x": 3}
    for path in (tmp_path / "new").iterdir():
        path.write_text("[]")
    assert records.recall({"a": 1, "b": 2}) is None


def test_documents_of_ours_have_one_form() -> None:
    assert canonical_json({"b": [1, None], "a": "ä\n"}) == '{"a":"ä\\n","b":[1,null]}'.encode()
    described = descriptor_of(b"x", LAYER_TAR)
    assert canonical_json(described) == (
        f'{{"digest":"{described.digest}","mediaType":"{LAYER_TAR}","size":1}}'.encode()
    )
    assert inputs_digest({"a": 1}) == "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_modes_names_and_folders_are_those_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_bytes(tmp_path / "secret", b"x", mode=0o600)
    files.write_text(tmp_path / "text", "x")
    files.write_text(tmp_path / "own", "x", mode=0o640)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"secret": 0o600, "text": 0o644, "own": 0o640}
    files.write_texts(tmp_path / "new", {"a": "1", "b/c": "2"})
    assert (tmp_path / "new" / "a").read_text() == "1" and (tmp_path / "new" / "b" / "c").read_text() == "2"
    records = Records(tmp_path / "records")
    records.remember({"a": 1}, {})
    assert [path.name for path in (tmp_path / "records").iterdir()] == [f"{inputs_digest({'a': 1})[7:]}.json"]
    asked: list[Path] = []
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or real(path))
    files.free_bytes(tmp_path / "not" / "yet")
    assert asked == [tmp_path]


def test_only_what_is_needed_is_read_and_only_folders_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(size)
            return b"x" * (size if size is not None and 0 <= size < 5000 else 5000)

    with monkeypatch.context() as replaced:
        replaced.setattr(Path, "open", lambda *_: Endless())
        with pytest.raises(HostError, match="larger than the limit of 1000 bytes"):
            files.read_bounded(tmp_path / "endless", limit_bytes=1000)
    assert asked == [1001]
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        files.fsync_directory(tmp_path / "file")
    with (tmp_path / "file").open("wb") as stream:
        assert (
            streams.begin_writeback(stream, streams.WRITEBACK_BYTES, streams.WRITEBACK_BYTES + 9)
            == streams.WRITEBACK_BYTES
        )


def test_the_folder_itself_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def refuse(*, dir: object) -> None:  # noqa: A002 (the name that tempfile has)
        tried.append(dir)
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(HostError, match="Permission denied"):
        files.expect_writable(tmp_path / "new")
    assert tried == [tmp_path]
