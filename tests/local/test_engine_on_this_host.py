"""What of engines and confinement this host has."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from airferry.engine import nowhere as sink
from airferry.engine.preflight import (
    check_confinement,
)
from airferry.engine.program import find_engine
from airferry.errors import HostError
from airferry.host import confined, confinement


def test_build_scripts_that_can_be_confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(confinement.UNCONFINED, raising=False)
    check = check_confinement(tmp_path)
    assert (check.status, check.hint) == ("ok", None), check.detail
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "words", "hint"),
    [
        ("", "cannot be confined on this host: [Errno 1] unshare", f"{confinement.UNCONFINED}=1"),
        ("1", "run with your account's rights and network", f"then unset `{confinement.UNCONFINED}`"),
    ],
)
def test_build_scripts_that_cannot_be_confined_are_a_warning_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, words: str, hint: str
) -> None:
    refusing = tmp_path / "refusing.py"
    refusing.write_text(
        'import sys\nsys.stderr.write("airferry: [Errno 1] unshare: Operation not permitted\\n")\n'
        f"sys.exit({confined.SETUP_FAILED})\n"
    )
    monkeypatch.setattr(confined, "__file__", str(refusing))
    monkeypatch.setenv(confinement.UNCONFINED, setting)
    check = check_confinement(tmp_path / "state")
    assert check.status == "warn" and words in check.detail
    assert check.hint is not None and hint in check.hint and "user.max_user_namespaces" in check.hint


def test_a_confined_program_that_does_not_start_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "failing.py"
    failing.write_text("import sys\nsys.stderr.write('no interpreter\\n')\nsys.exit(127)\n")
    monkeypatch.setattr(confined, "__file__", str(failing))
    check = check_confinement(tmp_path / "state")
    assert (check.status, check.detail) == ("warn", "a confined program does not start: no interpreter")


def engine_stub(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)


def test_auto_prefers_buildah_and_falls_back_to_podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "airferry.host.process.find_program", lambda name: found if (found := tmp_path / name).exists() else None
    )
    with pytest.raises(HostError, match="neither `buildah` nor `podman`") as caught:
        find_engine()
    assert caught.value.hint and "apt-get install" in caught.value.hint
    engine_stub(tmp_path, "podman", "podman version 4.3.1")
    assert find_engine().kind == "podman"
    engine_stub(tmp_path, "buildah", "buildah version 1.28.2")
    assert find_engine().kind == "buildah"
    assert find_engine("podman").version == (4, 3, 1)


def test_a_version_that_is_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_stub(tmp_path, "buildah", "buildah version 1.19.6")
    monkeypatch.setattr("airferry.host.process.find_program", lambda name: tmp_path / name)
    with pytest.raises(HostError, match=r"is version 1\.19\.6, at least 1\.23 is required"):
        find_engine("buildah")


def test_who_holds_a_socket_is_found_with_command_and_ancestors() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        inode = sink.socket_inode("udp", held.getsockname()[1])
        assert inode is not None
        code = "import sys; sys.stdin.read()"
        child = subprocess.Popen(
            [sys.executable, "-c", code, "a-mark"], stdin=subprocess.PIPE, pass_fds=[held.fileno()]
        )
        try:
            assert sink.owner(inode) == child.pid, "not this process, and the youngest of the rest"
            said = sink.process_facts(child.pid)
        finally:
            child.communicate()
    assert said["pid"] == child.pid and str(said["command"]).endswith("a-mark")
    assert said["ancestors"][0] == os.getpid()  # type: ignore[index]
    assert sink.process_facts(None) == {"pid": None, "command": "", "ancestors": []}
