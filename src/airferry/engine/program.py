"""Which program builds, what its version is, and what its complaints mean.

Classifies messages and returns typed errors; starts nothing but `--version`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from airferry.engine.inside import NOT_APART
from airferry.errors import AirferryError, BuildError, HostError
from airferry.host import process

EngineKind = Literal["buildah", "podman"]
EngineChoice = Literal["auto", "buildah", "podman"]

MINIMUM_VERSIONS: dict[EngineKind, tuple[int, ...]] = {"buildah": (1, 23), "podman": (3, 4)}
SHOWN_LINES = 12
SHOWN_BY_DEBUG = "the lines above are its output; run the command by hand: `airferry --debug` shows it"
MMDEBSTRAP_HINT = "on Debian and Ubuntu: `sudo apt-get install mmdebstrap uidmap`, or run `scripts/setup`"
SHARED_HINT = (
    "let it: `sysctl user.max_pid_namespaces` must not be 0, and in a container of another engine `/proc` must not be "
    "masked (Docker's `--security-opt systempaths=unconfined`); or have code that is not trusted see and signal your "
    "processes: `--allow-shared-processes`"
)
INSTALL_HINT = "on Debian and Ubuntu: `sudo apt-get install buildah uidmap`, or run `scripts/setup`"


@dataclass(frozen=True, slots=True)
class Program:
    """A container engine that is installed."""

    kind: EngineKind
    path: Path
    version: tuple[int, ...]

    @property
    def version_text(self) -> str:
        """The version as its authors write it."""
        return ".".join(str(part) for part in self.version)


def printed_version(text: str) -> tuple[int, ...]:
    """Return the first dotted number in what `--version` printed, or an empty tuple."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def find_engine(choice: EngineChoice = "auto") -> Program:
    """Return the program to build with: Buildah, or Podman where there is no Buildah and none was asked for.

    Raises:
        HostError: it is not installed, too old, or does not start on this host.
    """
    kinds: tuple[EngineKind, ...] = ("buildah", "podman") if choice == "auto" else (choice,)
    for kind in kinds:
        path = process.find_program(kind)
        if path is None:
            continue
        try:
            version = printed_version(process.run([path, "--version"], timeout_s=30).text)
        except process.ProcessFailed as failure:
            raise engine_error(failure, doing=f"start `{path}`") from failure
        program = Program(kind, path, version)
        minimum = MINIMUM_VERSIONS[kind]
        if version < minimum:
            wanted = ".".join(map(str, minimum))
            raise HostError(
                f"`{path}` is version {program.version_text or 'unknown'}, at least {wanted} is required",
                hint="install a newer one from the distribution's backports",
            )
        return program
    names = " nor ".join(f"`{kind}`" for kind in kinds)
    hint = INSTALL_HINT if choice != "podman" else "on Debian and Ubuntu: `sudo apt-get install podman uidmap`"
    raise HostError(f"no container engine: {'neither ' if len(kinds) > 1 else ''}{names} was found", hint=hint)


@dataclass(frozen=True, slots=True)
class _Complaint:
    pattern: re.Pattern[str]
    meaning: str
    hint: str


_COMPLAINTS = (
    # ours; the words of the kernel that follow are those of other complaints
    _Complaint(
        re.compile(rf"^{re.escape(NOT_APART)}", re.M),
        "containers would share this host's processes, as it does not let an ordinary user separate them",
        SHARED_HINT,
    ),
    # Before others, as a limit on namespaces is reported with the same words as a full disk.
    _Complaint(
        re.compile(r"during unshare\(|CLONE_NEWUSER|cannot set up namespace|cannot clone", re.I),
        "the host does not let this user create a user namespace",
        "run `airferry doctor`, which tells what forbids it",
    ),
    _Complaint(
        process.DISK_FULL,
        "the disk is full",
        "free up space, or choose another cache folder with `AIRFERRY_CACHE`; then rerun",
    ),
    _Complaint(
        re.compile(r"exec format error|exec container process.*no such file or directory.*binfmt", re.I),
        "the host cannot run programs of that CPU architecture",
        "install the emulator: `sudo apt-get install qemu-user-static binfmt-support`; then `airferry doctor`",
    ),
    _Complaint(
        # of mmdebstrap; before the next, as it warns of its mappers as well
        re.compile(r"no entry in /etc/sub[ug]id|failed to parse /etc/subuid", re.I),
        "this user has no range in `/etc/subuid` and `/etc/subgid`",
        "`sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER`; where `/etc/passwd` "
        "has no entry for this user, take the base from a registry, a layout or an archive instead",
    ),
    _Complaint(
        re.compile(r"newuidmap|newgidmap", re.I),
        "`newuidmap` or `newgidmap` is absent or not allowed to map subordinate IDs",
        "`sudo apt-get install uidmap`; then `airferry doctor`",
    ),
    _Complaint(
        re.compile(r"insufficient UIDs or GIDs|potentially insufficient|supplemental groups list", re.I),
        "this user has too few subordinate user and group IDs",
        "`sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER`; then `airferry doctor`",
    ),
    _Complaint(
        re.compile(r"hybrid mode not supported", re.I),
        "crun refuses this host's hybrid control groups",
        "`export BUILDAH_ISOLATION=chroot`, or install runc: `sudo apt-get install runc`",
    ),
    _Complaint(
        re.compile(r"not owned by the current user|XDG_RUNTIME_DIR", re.I),
        "`XDG_RUNTIME_DIR` is not this user's",
        "log out and in again, or `export XDG_RUNTIME_DIR=/run/user/$(id -u)`",
    ),
    _Complaint(
        re.compile(r"fuse-overlayfs: cannot mount|kernel does not support overlay|overlay.*not supported", re.I),
        "overlay storage does not work on this folder's file system",
        "put the cache on a local ext4 or xfs file system with `AIRFERRY_CACHE`",
    ),
)


def explain(lines: Sequence[str], *, in_temporary: bool = False) -> tuple[str, str] | None:
    """Return the meaning and the remedy of what an engine said, when it is the host's fault; else None.

    Engines work in the cache; `in_temporary` is for a program that works in the folder for temporary files.
    """
    text = "\n".join(lines)
    for complaint in _COMPLAINTS:
        if complaint.pattern.search(text):
            full = in_temporary and complaint.pattern is process.DISK_FULL
            return complaint.meaning, process.temporary_full_hint() if full else complaint.hint
    return None


def engine_error(failure: process.ProcessFailed, *, doing: str, hint: str = SHOWN_BY_DEBUG) -> AirferryError:
    """Return the error for an engine's failure: the host's, if its words say so, else the build's.

    The last lines that it wrote are in the message and its `tail`.
    """
    fields = _facts(failure)
    if failure.returncode is None:
        return BuildError(f"cannot {doing}: {failure.message}", hint=failure.hint, **fields)
    lines = [line for line in failure.tail if line.strip()]
    if explained := explain(lines):
        meaning, remedy = explained
        return HostError(f"cannot {doing}: {meaning}{_quoted(lines)}", hint=remedy, **fields)
    return BuildError(f"cannot {doing}{_quoted(lines) or ': no message'}", hint=hint, **fields)


def step_lines(tail: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the last `STEP n/m: …` of a build's output, and what came after it."""
    for position in range(len(tail) - 1, -1, -1):
        if re.match(r"(\[\d+/\d+\] )?STEP \d+", tail[position]):
            return tail[position], [line for line in tail[position + 1 :] if line.strip()]
    return None, [line for line in tail if line.strip()]


def build_error(failure: process.ProcessFailed, *, what: str) -> AirferryError:
    """Return the error of a failed Containerfile: the step and the last lines that it wrote."""
    if failure.returncode is None or explain(failure.tail):
        return engine_error(failure, doing=f"build {what}")
    step, lines = step_lines(failure.tail)
    instruction = re.sub(r"^(\[\d+/\d+\] )?STEP \d+(/\d+)?: ", "", step) if step else "the Containerfile"
    shown = instruction if len(instruction) <= 300 else instruction[:300] + "…"
    return BuildError(f"cannot build {what}: `{shown}` failed{_quoted(lines)}", hint=SHOWN_BY_DEBUG, **_facts(failure))


def _facts(failure: process.ProcessFailed) -> dict[str, Any]:
    return {"tail": failure.tail, "command": failure.command, "returncode": failure.returncode}


def _quoted(lines: Sequence[str]) -> str:
    shown = [line for line in lines if "Failed, retrying in" not in line][-SHOWN_LINES:]
    return "".join(f"\n  | {line}" for line in shown)
