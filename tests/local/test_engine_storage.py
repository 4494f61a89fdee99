"""What a killed run left, what isolates, and what the child-side helper does: with real processes, no engine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from airferry.engine import inside, storage
from airferry.engine.driver import ContainerBuild, Engine, Volume
from airferry.engine.program import Program
from airferry.engine.storage import Isolation, Storage, end_orphans, isolation_candidates, static_program
from airferry.errors import AirferryError, HostError
from airferry.events import silent
from airferry.host.process import ProcessFailed
from airferry.oci.platform import parse_platform

SLEEP = "import time; time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); {SLEEP}"


def guarded(sessions: Path, code: str) -> subprocess.Popen[bytes]:
    sessions.mkdir(exist_ok=True)
    argv = [sys.executable, "-I", "-S", inside.__file__, "guarded", str(sessions), sys.executable, "-c", code]
    child = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not (sessions / str(child.pid)).exists() or not (sessions / str(child.pid)).read_text():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return child


@pytest.mark.parametrize(("refusals", "code"), [(0, 0), (2, 0), (3, 1)])
@pytest.mark.parametrize("check", [True, False])
def test_an_engine_that_the_kernel_did_not_let_start_is_started_again(
    tmp_path: Path, refusals: int, code: int, check: bool
) -> None:
    count = tmp_path / "count"
    script = (
        f'echo >>{count}; [ "$(wc -l <{count})" -gt {refusals} ] && exit 0; '
        "echo 'Close_Fd sealing memfd copy: Device or resource busy' >&2; exit 1"
    )
    storage = Storage(Program("buildah", Path("/bin/false"), (1,)), tmp_path / "state", emit=silent)
    if check and code:
        with pytest.raises(ProcessFailed, match="resource busy"):
            storage.invoke_raw(["sh", "-c", script])
    else:
        assert storage.invoke_raw(["sh", "-c", script], check=check).returncode == code
    assert len(count.read_text()) == min(refusals + 1, 3)


def test_what_fails_by_itself_is_not_run_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    storage = Storage(Program("buildah", Path("/bin/false"), (1,)), tmp_path / "state", emit=silent)
    assert storage.invoke_raw(["sh", "-c", f"echo >>{count}; exit 7"], check=False).returncode == 7
    assert len(count.read_text()) == 1


def test_what_a_noted_session_left_is_ended(tmp_path: Path) -> None:
    child = guarded(tmp_path / "sessions", SLEEP)
    end_orphans(tmp_path / "sessions")
    assert child.wait(timeout=10) == -15
    assert not (tmp_path / "sessions").exists()
    end_orphans(tmp_path / "sessions")


def test_what_ignores_the_request_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airferry.engine.storage.ORPHAN_GRACE_S", 0.5)
    child = guarded(tmp_path / "sessions", STUBBORN)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    end_orphans(tmp_path / "sessions")
    assert child.wait(timeout=10) == -9


def test_a_number_that_another_session_took_is_left_alone(tmp_path: Path) -> None:
    child = guarded(tmp_path / "sessions", SLEEP)
    try:
        note = tmp_path / "sessions" / str(child.pid)
        note.write_text("another-boot 12345")
        end_orphans(tmp_path / "sessions")
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_guarded_child_ends_with_its_parent(tmp_path: Path) -> None:
    sessions = tmp_path / "sessions"
    sessions.mkdir()
    argv = [sys.executable, "-I", "-S", inside.__file__, "guarded", str(sessions), "sleep", "600"]
    code = f"import subprocess, time; subprocess.Popen({argv!r}, start_new_session=True); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not (notes := list(sessions.iterdir())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    process = Path("/proc", notes[0].name, "stat")
    while process.exists() and process.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_isolation_that_works_is_tried_again_only_where_it_may_work_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(Storage, "_try_isolation", lambda _self, candidate, _static: tried.append(candidate))
    monkeypatch.setattr(storage, "static_program", lambda: Path("/bin/true"))

    def trials(*version: int) -> int:
        opened = Storage(Program("buildah", Path("/bin/false"), version), tmp_path / "state", emit=silent)
        before = len(tried)
        assert opened.isolation == opened.isolation == Isolation("chroot")
        return len(tried) - before

    assert [trials(1, 28), trials(1, 28)] == [1, 0]
    assert [trials(1, 39), trials(1, 39)] == [1, 0], "another engine"
    monkeypatch.setenv("BUILDAH_ISOLATION", "chroot")
    assert [trials(1, 39), trials(1, 39)] == [1, 0], "another choice"
    for half in (b"", b"[]", b'{"conditions": ['):
        (tmp_path / "state" / "isolation.json").write_bytes(half)
        assert [trials(1, 39), trials(1, 39)] == [1, 0], "a note that is none"
    Storage(Program("buildah", Path("/bin/false"), (1, 39)), tmp_path / "state", emit=silent).forget_isolation()
    assert [trials(1, 39), trials(1, 39)] == [1, 0], "a container failed"


@pytest.mark.parametrize(("verb", "check"), [("run", True), ("run", False), ("build", True)])
def test_a_container_that_fails_lets_isolations_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, check: bool
) -> None:
    monkeypatch.setattr(Storage, "_try_isolation", lambda *_: None)
    program = tmp_path / "buildah"
    program.write_text('#!/bin/sh\ncase "$*" in *" run --isolation "*|*" build --pull=never "*) exit 3 ;; esac\n')
    program.chmod(0o755)
    engine = Engine(Storage(Program("buildah", program, (1, 28)), tmp_path / "state", emit=silent), emit=silent)
    note = tmp_path / "state" / "isolation.json"
    assert engine.storage.isolation == Isolation("chroot") and note.exists()
    platform = parse_platform("linux/amd64")
    if verb == "build":
        with pytest.raises(AirferryError):
            engine.build(ContainerBuild(tmp_path / "x", tmp_path), platform=platform, tag="x", epoch_s=0)
    elif check:
        with pytest.raises(AirferryError):
            engine.run("x", ["false"], platform=platform)
    else:
        assert engine.run("x", ["false"], platform=platform, check=False).returncode == 3
    assert not note.exists()


def test_isolations_in_the_order_of_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airferry.host.process.find_program", lambda name: Path("/x") if name == "runc" else None)
    assert isolation_candidates("") == [Isolation("chroot"), Isolation("rootless", "runc")]
    assert isolation_candidates("chroot") == [Isolation("chroot")]
    assert isolation_candidates("rootless", "crun") == [Isolation("rootless", "crun")]
    assert isolation_candidates("chroot", may_share=True) == [Isolation("chroot"), Isolation("chroot", shared=True)]
    assert isolation_candidates("", may_share=True)[1:] == [
        Isolation("rootless", "runc"), Isolation("chroot", shared=True),
    ]  # fmt: skip
    assert isolation_candidates("rootless", may_share=True) == [Isolation("rootless", "runc")]
    assert Isolation("chroot").arguments == ["--isolation", "chroot", "--cap-drop", "CAP_SYS_CHROOT"]
    assert Isolation("rootless", "runc").arguments == [
        "--isolation", "rootless", "--runtime", "runc", "--network", "host",
    ]  # fmt: skip


def test_a_static_program_of_the_host_is_found() -> None:
    path = static_program()
    assert path is not None
    assert path.read_bytes()[:4] == b"\x7fELF"


def test_volumes_whose_path_cannot_be_said_are_refused(tmp_path: Path) -> None:
    assert str(Volume(tmp_path, "/x")) == f"{tmp_path}:/x:ro"
    assert str(Volume(tmp_path, "/x", writable=True)).endswith(":rw")
    with pytest.raises(HostError, match="contains a `:`"):
        str(Volume(tmp_path / "a:b", "/x"))


def test_copies_stay_inside_the_image(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "tree").mkdir(parents=True)
    (root / "tree" / "file").write_text("1")
    (root / "tree" / "link").symlink_to("/etc/passwd")
    (root / "out").symlink_to("../..")
    inside.copy_out(root, "/tree", tmp_path / "copy")
    assert (tmp_path / "copy" / "file").read_text() == "1"
    assert (tmp_path / "copy" / "link").readlink() == Path("/etc/passwd")
    inside.copy_out(root, "tree/file", tmp_path / "one")
    assert (tmp_path / "one").read_text() == "1"
    for path in ("/out", "../..", "/tree/../../.."):
        with pytest.raises(OSError, match="points outside the image"):
            inside.copy_out(root, path, tmp_path / "never")
