"""The classification of what a host lacks: outputs as captured, host facts as they would be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from airferry.engine.preflight import (
    NamespaceFacts,
    check_emulator,
    check_runtime_folder,
    check_space,
    diagnose_user_namespaces,
)
from airferry.oci.platform import parse_platform

WELL = NamespaceFacts(
    user="ann",
    mappers={"newuidmap": "privileged", "newgidmap": "privileged"},
    subordinate_ids=True,
    unprivileged_clone=None,
    most_namespaces="96365",
    apparmor_restricts=None,
)


TWO_ROWS = "         0       1001          1\n         1     100000      65536\n"


ONE_ROW = "         0       1001          1\n"


FORBIDDEN = "Error during unshare(CLONE_NEWUSER): Operation not permitted"


NO_MAPPER = (
    'level=error msg="finding newgidmap: exec: \\"newgidmap\\": executable file not found in $PATH"\n'
    'level=error msg="(Unable to determine exit status)"'
)


NO_RANGE = (
    'level=warning msg="Reading allowed ID mappings: reading subuid mappings for user \\"nobody\\" and subgid mappings '
    'for group \\"nobody\\": no subuid ranges found for user \\"nobody\\" in /etc/subuid"'
)


NOT_SETUID = (
    'level=warning msg="Error running newuidmap: exit status 1: newuidmap: write to uid_map failed: Operation not '
    'permitted\\n"\nlevel=warning msg="/home/ann/newuidmap should be setuid or have filecaps setuid"'
)


@pytest.mark.parametrize(
    ("uid_map", "output", "facts", "status", "hint"),
    [
        (TWO_ROWS, TWO_ROWS, WELL, "ok", None),
        (TWO_ROWS.replace("65536", "  100"), "", WELL, "warn", "--add-subuids"),
        ("", FORBIDDEN, replace(WELL, unprivileged_clone="0"), "fail", "unprivileged_userns_clone=1"),
        ("", FORBIDDEN, replace(WELL, most_namespaces="0"), "fail", "max_user_namespaces=15000"),
        ("", FORBIDDEN, replace(WELL, apparmor_restricts="1"), "fail", "apparmor_restrict_unprivileged_userns=0"),
        ("", FORBIDDEN, WELL, "fail", "seccomp=unconfined"),
        ("", NO_MAPPER, replace(WELL, mappers={"newuidmap": "privileged", "newgidmap": "absent"}), "fail", "uidmap"),
        (ONE_ROW, NO_RANGE, replace(WELL, subordinate_ids=False), "fail", "--add-subuids 100000-165535"),
        (ONE_ROW, NOT_SETUID, replace(WELL, mappers={"newuidmap": "plain", "newgidmap": "plain"}), "fail", "chmod u+s"),
        (ONE_ROW, "strange", WELL, "fail", "podman system migrate"),
    ],
)
def test_user_namespaces(uid_map: str, output: str, facts: NamespaceFacts, status: str, hint: str | None) -> None:
    check = diagnose_user_namespaces(uid_map, output, facts)
    assert check.status == status
    assert check.hint is None if hint is None else check.hint is not None and hint in check.hint


def handler(folder: Path, text: str | None) -> Path:
    (folder / "register").write_text("")
    if text is not None:
        (folder / "qemu-aarch64").write_text(text)
    return folder


READY = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: PF\noffset 0\nmagic 7f454c46\n"


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        (READY, "ok", "aarch64-binfmt-P"),
        (READY.replace("PF", "P"), "fail", "lacks the F flag"),
        (READY.replace("enabled", "disabled"), "fail", "is disabled"),
        (None, "fail", "no handler `qemu-aarch64`"),
    ],
)
def test_emulators(tmp_path: Path, text: str | None, status: str, words: str) -> None:
    check = check_emulator(parse_platform("linux/arm64"), binfmt=handler(tmp_path, text))
    assert (check.status, words in check.detail) == (status, True)
    assert (check.hint is None) == (status == "ok")


def test_binfmt_that_is_not_mounted(tmp_path: Path) -> None:
    check = check_emulator(parse_platform("linux/arm64"), binfmt=tmp_path)
    assert check.status == "fail"
    assert check.hint and "mount -t binfmt_misc" in check.hint


def test_runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_runtime_folder(str(tmp_path)).status == "ok"
    assert check_runtime_folder("").status == "warn"
    assert check_runtime_folder(str(tmp_path / "absent")).status == "fail"
    monkeypatch.setattr("os.geteuid", lambda: tmp_path.stat().st_uid + 1)
    others = check_runtime_folder(str(tmp_path))
    assert (others.status, "belongs to user" in others.detail) == ("fail", True)


def test_space(tmp_path: Path) -> None:
    assert check_space("disk", tmp_path / "not" / "yet", needed_bytes=1).status == "ok"
    check = check_space("disk", tmp_path, needed_bytes=1 << 60)
    assert check.status == "fail"
    assert check.hint and "AIRFERRY_CACHE" in check.hint
