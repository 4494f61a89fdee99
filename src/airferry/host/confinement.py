"""Runs programs that are not trusted with this host: no network, no other process, no file that is not shown to them.

What a build script of a distribution does is up to its authors. It gets the host's programs and libraries to read,
its own folders to write, and neither the user's home nor credentials, sockets or environment.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from airferry.errors import HostError
from airferry.events import Emit, Warned, silent
from airferry.host import confined, files, process

UNCONFINED = "AIRFERRY_UNCONFINED_BUILDS"
NAMESPACES_HINT = (
    "allow unprivileged user namespaces (`sysctl user.max_user_namespaces`, "
    "`kernel.apparmor_restrict_unprivileged_userns=0`, a container's seccomp profile)"
)
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def host_python() -> str:
    """Return the interpreter that virtual environments of this process are made of."""
    # without links, which may lead through folders that are not shown
    return str(Path(getattr(sys, "_base_executable", None) or sys.executable).resolve())


@dataclass(frozen=True, slots=True)
class HostView:
    """What a confined program sees of the host: folders and files to read, and to write, with where it finds them."""

    read: Mapping[Path, str] = field(default_factory=dict)
    write: Mapping[Path, str] = field(default_factory=dict)


def run_confined(
    argv: Sequence[str | Path],
    *,
    scratch: Path,
    view: HostView,
    cwd: str,
    environment: Mapping[str, str],
    timeout_s: float,
    emit: Emit = silent,
) -> process.Completed:
    """Run a program in separate user, PID, mount, network, IPC and UTS namespaces, and return what it left.

    `view` is what it finds of the host, where `argv` and `cwd` are as it finds them.
    Its environment is `environment` alone. `scratch` is a folder that nothing else uses; the program has a part of it
    as `/tmp`. It ends with this process.

    With `AIRFERRY_UNCONFINED_BUILDS=1` it is run without namespaces where the host forbids them, after a warning.

    Raises:
        HostError: the host forbids these namespaces.
    """
    temporary = files.ensure_directory(scratch / "tmp")
    root = files.ensure_directory(scratch / "root")
    home = files.ensure_directory(temporary / "home")
    base = [Path(folder).resolve() for folder in {sys.base_prefix, sys.base_exec_prefix}]
    shown = {folder: str(folder) for folder in base if not folder.is_relative_to("/usr")}
    spec = {
        "argv": [str(item) for item in argv],
        "cwd": cwd,
        "environment": {"HOME": "/tmp/home", "LC_ALL": "C.UTF-8", "PATH": _PATH, "TMPDIR": "/tmp", **environment},
        "read": [[str(source), target] for source, target in {**shown, **view.read}.items()],
        "write": [[str(source), target] for source, target in view.write.items()],
        "tmp": str(temporary),
        "hide": [str(folder / "pip.conf") for folder in base],
    }
    note = scratch / "confined.json"
    files.write_text(note, json.dumps(spec))
    command: list[str | Path] = [sys.executable, "-I", confined.__file__, note, root]
    done = process.run(command, timeout_s=timeout_s, check=False, emit=emit)
    if done.returncode != confined.SETUP_FAILED or not any(line.startswith("airferry: ") for line in done.tail):
        return done
    said = next(line for line in done.tail if line.startswith("airferry: ")).removeprefix("airferry: ")
    if os.environ.get(UNCONFINED) != "1":
        raise HostError(
            f"build scripts cannot be confined on this host: {said}",
            hint=f"{NAMESPACES_HINT}, set a version that has a wheel under `requirements:`, or let the "
            f"scripts use your account and network: `{UNCONFINED}=1`",
        )
    emit(Warned(f"build scripts run with your account's rights and network, as `{UNCONFINED}` says: {said}"))
    places = {
        **{target: source for source, target in view.read.items()},
        **{target: source for source, target in view.write.items()},
    }
    places["/tmp"] = temporary
    return process.run(
        [_on_host(str(item), places) for item in argv],
        timeout_s=timeout_s,
        environment={**environment, "HOME": str(home), "TMPDIR": str(temporary)},
        cwd=Path(_on_host(cwd, places)),
        check=False,
        emit=emit,
    )


def _on_host(path: str, places: Mapping[str, Path]) -> str:
    """Return a path of the program's view as this host has it; other words stay as they are."""
    for target, source in sorted(places.items(), key=lambda item: -len(item[0])):
        if path == target or path.startswith(target + "/"):
            return str(source) + path[len(target) :]
    return path
