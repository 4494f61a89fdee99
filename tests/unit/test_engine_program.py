"""What engines say, and what becomes of it: texts as captured from Buildah 1.28 and Podman 4.3."""

from __future__ import annotations

import pytest

from airferry.engine.program import build_error, engine_error, explain, printed_version, step_lines
from airferry.errors import BuildError, HostError
from airferry.host.process import ProcessFailed

FAILED_STEP = (
    "STEP 1/3: FROM localhost/base:6208012a2f47",
    "STEP 2/3: RUN echo one",
    "one",
    "STEP 3/3: RUN echo failing >&2; echo two; false",
    "failing",
    "two",
    "subprocess exited with status 1",
    'Error: building at STEP "RUN echo failing >&2; echo two; false": exit status 1',
)


def failure(*tail: str, returncode: int | None = 1) -> ProcessFailed:
    return ProcessFailed("`x` did not finish", command="x", returncode=returncode, tail=tail, hint="rerun")


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("Error: writing blob: write /s/tmp: no space left on device", "disk is full"),
        ("Error during unshare(CLONE_NEWUSER): No space left on device", "user namespace"),
        ("airferry: processes cannot be separated: [Errno 28] unshare: No space left on device", "share this host's"),
        ("Error during unshare(CLONE_NEWUSER): Operation not permitted", "user namespace"),
        ('finding newgidmap: exec: "newgidmap": executable file not found in $PATH', "newuidmap"),
        ("error setting supplemental groups list: operation not permitted", "too few subordinate"),
        ("/bin/sh: exec format error", "CPU architecture"),
        ("crun: cgroups in hybrid mode not supported, drop all controllers from cgroupv2", "hybrid control groups"),
        ("fuse-overlayfs: cannot mount: Operation not permitted", "overlay storage"),
        ("XDG_RUNTIME_DIR=/run/user/0 is not owned by the current user", "XDG_RUNTIME_DIR"),
    ],
)
def test_what_is_the_hosts_fault_says_so_with_a_remedy(line: str, meaning: str) -> None:
    error = engine_error(failure("warning", line), doing="pull `x`")
    assert isinstance(error, HostError)
    assert meaning in error.message
    assert line in error.message
    assert error.hint


def test_what_is_not_the_hosts_fault_is_the_builds() -> None:
    assert explain(["Error: localhost/x: image not known"]) is None
    error = engine_error(failure("Error: localhost/x: image not known"), doing="pull `x`", hint="look")
    assert isinstance(error, BuildError)
    assert (error.exit_code, error.hint) == (5, "look")
    assert "image not known" in error.message


def test_the_failing_step_is_found_and_its_lines_shown() -> None:
    step, lines = step_lines(FAILED_STEP)
    assert step == "STEP 3/3: RUN echo failing >&2; echo two; false"
    assert lines[:2] == ["failing", "two"]
    error = build_error(failure(*FAILED_STEP), what="`x:1` for `linux/amd64`")
    assert error.message.startswith(
        "cannot build `x:1` for `linux/amd64`: `RUN echo failing >&2; echo two; false` failed\n"
    )
    assert "| failing\n  | two" in error.message
    assert "| one" not in error.message
    assert error.fields["tail"] == FAILED_STEP


def test_a_step_of_several_stages_is_found() -> None:
    assert step_lines(["[1/2] STEP 1/1: FROM x AS s", "--> df41", "[2/2] STEP 2/2: COPY a b", "no such file"]) == (
        "[2/2] STEP 2/2: COPY a b",
        ["no such file"],
    )
    assert step_lines(["plain"]) == (None, ["plain"])


def test_time_out_keeps_its_own_message() -> None:
    error = build_error(failure(*FAILED_STEP, returncode=None), what="`x`")
    assert "did not finish" in error.message
    assert error.hint == "rerun"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("buildah version 1.28.2 (image-spec 1.1.0-rc2, runtime-spec 1.0.2-dev)", (1, 28, 2)),
        ("podman version 4.3.1", (4, 3, 1)),
        ("nothing", ()),
    ],
)
def test_versions(text: str, version: tuple[int, ...]) -> None:
    assert printed_version(text) == version
