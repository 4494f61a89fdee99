"""What a host must have before anything is built, checked for real and quickly; each failing line says what to type.

Changes nothing on the host: what it starts, it starts in a scratch folder that it removes.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from airferry.engine.program import MMDEBSTRAP_HINT, EngineChoice, Program, find_engine, printed_version
from airferry.engine.storage import Storage
from airferry.errors import AirferryError, HostError
from airferry.events import Emit, Event, Warned, silent
from airferry.host import files, process
from airferry.host.confinement import NAMESPACES_HINT, UNCONFINED, HostView, host_python, run_confined
from airferry.oci.platform import Platform

Status = Literal["ok", "warn", "fail", "unknown"]
ENGINE_LEAST_FREE_BYTES = 5 * 10**9
LEAST_TEMPORARY_BYTES = 10**9
LEAST_SUBORDINATE_IDS = 65536
BINFMT = Path("/proc/sys/fs/binfmt_misc")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report: what was looked at, how it is, and, unless it is well, what to type."""

    name: str
    status: Status
    detail: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    """What decides whether an ordinary user can have a user namespace with subordinate IDs."""

    user: str
    mappers: dict[str, Literal["absent", "plain", "privileged"]]
    subordinate_ids: bool
    unprivileged_clone: str | None = None
    most_namespaces: str | None = None
    apparmor_restricts: str | None = None


def checks(
    *,
    state: Path,
    engine: EngineChoice = "auto",
    platforms: Sequence[Platform] = (),
    bootstrap: bool = False,
    needed_bytes: int = ENGINE_LEAST_FREE_BYTES,
    emit: Emit = silent,
) -> list[Check]:
    """Check the host and return every line, those that are well included, in a fixed order. Takes about a second.

    `state` is the folder that will hold container storage; `bootstrap` says that a base is made by mmdebstrap.
    """
    program, line = _engine(engine)
    found = [_user(), line]
    found.append(check_runtime_folder(os.environ.get("XDG_RUNTIME_DIR", "")))
    if program is not None:
        namespaces = _user_namespaces(program)
        found.append(namespaces)
        if namespaces.status != "fail":
            found += _containers(program, state, emit=emit)
    found += [
        check_space("disk", state, needed_bytes=needed_bytes),
        check_space("temporary files", files.temporary_directory(), needed_bytes=LEAST_TEMPORARY_BYTES),
    ]
    found += [check_emulator(platform) for platform in platforms if not platform.matches_host()]
    found.append(_tool("git", "--version", hint="`sudo apt-get install git`"))
    found.append(check_confinement(state))
    if bootstrap:
        found.append(_tool("mmdebstrap", "--version", hint=MMDEBSTRAP_HINT))
    return found


def _user() -> Check:
    if os.geteuid() == 0:
        return Check("user", "warn", "running as root; airferry needs no root", "run as an ordinary user")
    return Check("user", "ok", f"ordinary user {os.geteuid()}")


def _engine(engine: EngineChoice) -> tuple[Program | None, Check]:
    try:
        program = find_engine(engine)
    except AirferryError as error:
        return None, Check("engine", "fail", error.message.partition("\n")[0], error.hint)
    return program, Check("engine", "ok", f"{program.kind} {program.version_text} (`{program.path}`)")


def _tool(name: str, argument: str, *, hint: str) -> Check:
    path = process.find_program(name)
    if path is None:
        return Check(name, "fail", f"`{name}` was not found", hint)
    completed = process.run([path, argument], timeout_s=20, check=False)
    version = ".".join(map(str, printed_version(completed.text)))
    if completed.returncode != 0 or not version:
        return Check(name, "fail", f"`{path}` does not start", hint)
    return Check(name, "ok", f"{version} (`{path}`)")


def check_runtime_folder(value: str) -> Check:
    """Check `XDG_RUNTIME_DIR`, whose value is given: set, a folder, this user's."""
    name = "runtime folder"
    hint = "log out and in again, or `export XDG_RUNTIME_DIR=/run/user/$(id -u)` if you own that folder"
    if not value:
        return Check(name, "warn", "`XDG_RUNTIME_DIR` is not set; engines then fall back to `/tmp`", hint)
    try:
        owner = Path(value).stat().st_uid
    except OSError as error:
        return Check(name, "fail", f"`XDG_RUNTIME_DIR` is `{value}`: {error.strerror}", hint)
    if owner != os.geteuid():
        return Check(name, "fail", f"`XDG_RUNTIME_DIR` is `{value}`, which belongs to user {owner}", hint)
    if not os.access(value, os.W_OK | os.X_OK):
        return Check(name, "fail", f"`XDG_RUNTIME_DIR` is `{value}`, which is not writable", hint)
    return Check(name, "ok", f"`{value}`")


# --- user namespaces -------------------------------------------------------------------------------------------------


def _user_namespaces(program: Program) -> Check:
    completed = process.run([program.path, "unshare", "cat", "/proc/self/uid_map"], timeout_s=30, check=False)
    if os.geteuid() == 0:
        return Check("user namespaces", "ok", "not needed by root")
    output = completed.text + "\n".join(completed.tail)
    return diagnose_user_namespaces(completed.text, output, namespace_facts())


def namespace_facts() -> NamespaceFacts:
    """Return what this host and user have."""
    user = process.child_environment().get("USER") or str(os.geteuid())
    return NamespaceFacts(
        user=user,
        mappers={name: _mapper(process.find_program(name)) for name in ("newuidmap", "newgidmap")},
        subordinate_ids=all(
            _has_range(Path(f"/etc/{name}"), (user, str(os.geteuid()))) for name in ("subuid", "subgid")
        ),
        unprivileged_clone=_sysctl("kernel/unprivileged_userns_clone"),
        most_namespaces=_sysctl("user/max_user_namespaces"),
        apparmor_restricts=_sysctl("kernel/apparmor_restrict_unprivileged_userns"),
    )


def _mapper(path: Path | None) -> Literal["absent", "plain", "privileged"]:
    if path is None:
        return "absent"
    if path.stat().st_mode & stat.S_ISUID:
        return "privileged"
    try:
        return "privileged" if os.getxattr(path, "security.capability") else "plain"
    except OSError:
        return "plain"


def _has_range(path: Path, users: Sequence[str]) -> bool:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(len(parts := line.split(":")) == 3 and parts[0] in users and parts[2] != "0" for line in lines)


def _sysctl(name: str) -> str | None:
    try:
        return Path("/proc/sys", name).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def diagnose_user_namespaces(uid_map: str, output: str, facts: NamespaceFacts) -> Check:
    """Tell from an engine's `unshare cat /proc/self/uid_map` what is wrong with user namespaces, if anything.

    `uid_map` is its stdout, `output` all that it said.
    """
    name = "user namespaces"
    rows = [line.split() for line in uid_map.splitlines() if re.fullmatch(r"\s*\d+\s+\d+\s+\d+\s*", line)]
    mapped = sum(int(row[2]) for row in rows)
    if len(rows) >= 2 and mapped > LEAST_SUBORDINATE_IDS:
        return Check(name, "ok", f"{mapped} IDs")
    if len(rows) >= 2:
        hint = f"`sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {facts.user}`"
        return Check(name, "warn", f"{mapped} IDs; packages may need {LEAST_SUBORDINATE_IDS + 1}", hint)
    if not rows and re.search(r"unshare\(|CLONE_NEWUSER|cannot clone|fork/exec.*(permitted|space left)", output):
        return Check(name, "fail", *_who_forbids(facts))
    if absent := [tool for tool, kind in facts.mappers.items() if kind == "absent"]:
        return Check(name, "fail", f"`{absent[0]}` was not found", "`sudo apt-get install uidmap`")
    if not facts.subordinate_ids:
        return Check(
            name,
            "fail",
            f"user `{facts.user}` has no range in `/etc/subuid` and `/etc/subgid`",
            f"`sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {facts.user}`",
        )
    if plain := [tool for tool, kind in facts.mappers.items() if kind == "plain"]:
        return Check(
            name,
            "fail",
            f"`{plain[0]}` is not setuid, so it cannot map subordinate IDs",
            "`sudo apt-get install --reinstall uidmap`, or `sudo chmod u+s $(which newuidmap newgidmap)`",
        )
    lines = [line for line in output.splitlines() if line.strip()]
    return Check(
        name,
        "fail",
        f"the engine cannot enter one: {lines[-1] if lines else 'no message'}",
        "`podman system migrate` after a change of `/etc/subuid`; inside a container, run airferry outside it",
    )


def _who_forbids(facts: NamespaceFacts) -> tuple[str, str]:
    if facts.unprivileged_clone == "0":
        return (
            "the kernel forbids them for ordinary users (`kernel.unprivileged_userns_clone`)",
            "`sudo sysctl -w kernel.unprivileged_userns_clone=1`, and the same line in `/etc/sysctl.d/`",
        )
    if facts.most_namespaces == "0":
        return (
            "the kernel allows none (`user.max_user_namespaces` is 0)",
            "`sudo sysctl -w user.max_user_namespaces=15000`, and the same line in `/etc/sysctl.d/`",
        )
    if facts.apparmor_restricts == "1":
        return (
            "AppArmor forbids them for programs without a profile (Ubuntu 23.10 and later)",
            "`sudo apt-get install --reinstall apparmor buildah` brings Buildah's profile; or "
            "`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`",
        )
    return (
        "something forbids them: usually the seccomp profile of the container that this runs in",
        "run airferry outside the container, or start the container with `--security-opt seccomp=unconfined`",
    )


# --- storage, isolation, disk, emulators -----------------------------------------------------------------------------


def _containers(program: Program, state: Path, *, emit: Emit) -> list[Check]:
    """Start a real container in scratch storage next to the real one, so on the same file system."""
    warnings: list[Warned] = []

    def note(event: Event) -> None:
        if isinstance(event, Warned):
            warnings.append(event)
        else:
            emit(event)

    found: list[Check] = []
    storage: Storage | None = None
    try:
        with files.scratch_directory(state) as scratch:
            storage = Storage(program, scratch, emit=note)
            try:
                driver = storage.driver
                hint = warnings[0].hint if warnings else None
                found.append(Check("storage", "warn" if driver == "vfs" else "ok", f"{driver} in `{state}`", hint))
                isolation = storage.isolation
                storage.choose_runtime()
                found.append(Check("isolation", "ok", f"{isolation} starts containers, apart from your processes"))
            finally:
                storage.remove_all()
    except HostError as error:
        found.append(Check("isolation" if found else "storage", "fail", error.message, error.hint))
    return found


def check_space(name: str, folder: Path, *, needed_bytes: int) -> Check:
    """Check the free space where `folder` is or will be."""
    free = files.free_bytes(folder)
    detail = f"{free / 1e9:.1f} GB free at `{folder}`"
    if free >= needed_bytes:
        return Check(name, "ok", detail)
    hint = "free up space, or choose another folder with `AIRFERRY_CACHE` (storage) or `TMPDIR` (temporary files)"
    return Check(name, "fail", f"{detail}, about {needed_bytes / 1e9:.1f} GB are needed", hint)


def check_confinement(state: Path) -> Check:
    """Check that build scripts of distributions can be confined, by running a program that does nothing that way.

    It never fails: only distributions without a wheel, and those from Git, have build scripts that run here.
    """
    name = "build scripts"
    events: list[Event] = []
    try:
        with files.scratch_directory(state) as scratch:
            done = run_confined(
                [host_python(), "-c", ""],
                scratch=scratch,
                view=HostView(),
                cwd="/tmp",
                environment={},
                timeout_s=30,
                emit=events.append,
            )
    except HostError as error:
        detail = f"{error.message}; a build stops (exit code 4) at a distribution that must be built from source"
        return Check(name, "warn", detail, error.hint)
    for event in events:
        if isinstance(event, Warned):
            return Check(name, "warn", event.text, f"{NAMESPACES_HINT}, then unset `{UNCONFINED}`")
    if done.returncode != 0:
        said = done.tail[-1] if done.tail else f"exit code {done.returncode}"
        return Check(name, "warn", f"a confined program does not start: {said}", NAMESPACES_HINT)
    return Check(name, "ok", "confined: no network, no other processes, none of your files")


def check_emulator(platform: Platform, *, binfmt: Path = BINFMT) -> Check:
    """Check that the kernel starts programs of a foreign platform, inside containers too (the F flag)."""
    name = f"emulator {platform}"
    install = "`sudo apt-get install qemu-user-static binfmt-support`"
    if not (binfmt / "register").exists() and not (binfmt / "status").exists():
        return Check(name, "fail", f"`{binfmt}` is not mounted", f"`sudo mount -t binfmt_misc binfmt_misc {binfmt}`")
    handler = binfmt / f"qemu-{platform.qemu}"
    try:
        text = handler.read_text(encoding="utf-8")
    except OSError:
        return Check(name, "fail", f"no handler `qemu-{platform.qemu}` is registered", install)
    lines = dict(line.partition(" ")[::2] for line in text.splitlines())
    if not text.startswith("enabled"):
        hint = f"`sudo update-binfmts --enable qemu-{platform.qemu}`"
        return Check(name, "fail", f"the handler `qemu-{platform.qemu}` is disabled", hint)
    if "F" not in lines.get("flags:", ""):
        return Check(
            name,
            "fail",
            f"the handler `qemu-{platform.qemu}` lacks the F flag, so that containers cannot use it",
            f"{install}, then `sudo update-binfmts --disable qemu-{platform.qemu}` and `--enable` again",
        )
    return Check(name, "ok", f"`{lines.get('interpreter', 'unknown')}`")
