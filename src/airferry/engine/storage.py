"""An engine's own storage under a state folder: how it is called, what isolates its containers, what a kill left.

Processes share it. Each has a folder there for what it starts and what is half done; if it is killed, the next one ends
and removes that. Containers do not tell whose they are: a process that is alone removes them. Touches nothing
outside the state folder and the user's runtime folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from airferry.engine import inside, nowhere
from airferry.engine.home import hidden_home
from airferry.engine.program import SHARED_HINT, Program, engine_error
from airferry.errors import HostError
from airferry.events import Emit, Warned
from airferry.host import clock, files, process
from airferry.host.canonical import canonical_json
from airferry.host.locks import LOCKS, clear_unheld
from airferry.host.parsing import parse_json

QUICK_S = 180.0
ORPHAN_GRACE_S = 10.0
START_ATTEMPTS = 3
# containers/storage (Buildah 1.28, Podman 4.3) re-executes itself from a sealed copy in memory where it cannot
# bind-mount its program (containers/storage#615). The kernel refuses to seal while it moves one of the copy's pages;
# nothing has run then, so the command is started again
NOT_STARTED = "sealing memfd copy: Device or resource busy"
STATIC_PROGRAMS = ("/usr/sbin/ldconfig.real", "/sbin/ldconfig.real", "/usr/sbin/ldconfig", "/sbin/ldconfig")


@dataclass(frozen=True, slots=True)
class Isolation:
    """How a container is kept apart: Buildah's `chroot`, `rootless` or `oci`, the last two with a runtime.

    A runtime separates the processes of containers. For `chroot`, which does not, airferry does, unless `shared`.
    """

    kind: str
    runtime: str | None = None
    shared: bool = False

    @property
    def apart(self) -> bool:
        """Whether the engine itself is to be started apart, as nothing else separates its containers' processes."""
        return self.kind == "chroot" and not self.shared

    @property
    def arguments(self) -> list[str]:
        """What `build` and `run` are told. A runtime's own network is never used: the caller's is."""
        if self.kind == "chroot":
            # with this capability, one more chroot(2) leads out of the first: to all files of the user
            return ["--isolation", "chroot", "--cap-drop", "CAP_SYS_CHROOT"]
        runtime = ["--runtime", self.runtime] if self.runtime else []
        return ["--isolation", self.kind, *runtime, "--network", "host"]

    def __str__(self) -> str:
        if self.shared:
            return f"{self.kind}, sharing this host's processes"
        return f"{self.kind} with {self.runtime}" if self.runtime else self.kind


@dataclass(frozen=True, slots=True)
class StartConditions:
    """What a start of the engine finds around itself, and hands on to code in containers that is not trusted.

    Without `network` there is a loopback interface only; with `watch` there seems to be a network, which leads nowhere,
    and attempts to use it go to that file. `apart`: none of this host's processes, IPC objects and terminals, and of
    the user's home only what the engine works with, `shown` among that.
    """

    network: bool = True
    watch: Path | None = None
    apart: bool = False
    shown: tuple[Path, ...] = ()


AS_ON_HOST = StartConditions()


class Storage:
    """The storage of one engine under one state folder. Safe to use from threads and processes."""

    def __init__(
        self, program: Program, state: Path, *, emit: Emit, own: Path | None = None, may_share_processes: bool = False
    ) -> None:
        """Prepare the folders. `own` is this process's folder in `state`, `state` itself where no other uses that.

        With `may_share_processes`, containers share this host's processes where nothing can separate them.
        """
        self.program = program
        self._may_share = may_share_processes
        self.state = files.resolved(files.ensure_directory(state))
        self.root = self.state / f"{program.kind}-storage"
        self.run_root = self._choose_run_root()
        self._own = files.resolved(own) if own is not None else self.state
        self.temporary = self._own / "tmp"
        self._emit = emit
        self._driver: str | None = None
        self._isolation: Isolation | None = None
        self._runtime: str | None = None
        self._lock = threading.Lock()
        self._choosing = threading.Lock()
        self._sessions = self._own / "sessions"

    def _choose_run_root(self) -> Path:
        # Podman puts sockets under it, whose paths the kernel limits to 108 characters, and refuses a run root of more
        # than 50 (containers/podman#22272, until #22277)
        runtime = process.runtime_directory()
        if self.program.kind == "podman" and runtime is not None and os.access(runtime, os.W_OK):
            mark = hashlib.sha256(os.fsencode(self.state)).hexdigest()[:12]
            return runtime / f"airferry-{mark}"
        return self.state / "run"

    @property
    def environment(self) -> dict[str, str]:
        """What children get beyond the allow-list."""
        return {"TMPDIR": str(self.temporary)}

    @property
    def driver(self) -> str:
        """The storage driver: overlay, or vfs where overlay does not work."""
        with self._lock:
            if self._driver is None:
                self._driver = self._choose_driver()
            return self._driver

    def _choose_driver(self) -> str:
        files.ensure_directory(self.temporary)
        if (self.root / "vfs").is_dir() and not (self.root / "overlay").is_dir():
            return "vfs"
        try:
            self.invoke_with("overlay", ["info"])
        except process.ProcessFailed as failure:
            tail = "\n".join(failure.tail)
            if not re.search(r"overlay|fuse", tail, re.I):
                raise engine_error(failure, doing=f"use `{self.root}` as container storage") from failure
            self._emit(
                Warned(
                    f"overlay storage does not work in `{self.root}`; falling back to "
                    "vfs, which is several times slower",
                    hint="put the cache on a local ext4 or xfs file system with `AIRFERRY_CACHE`",
                )
            )
            return "vfs"
        return "overlay"

    def invoke_with(self, driver: str, arguments: Sequence[str | Path]) -> process.Completed:
        """Run the engine with a given storage driver, once, quickly."""
        return process.run(
            [*self.command(driver=driver), *arguments], timeout_s=QUICK_S, environment=self.environment, emit=self._emit
        )

    def command(self, *, driver: str | None = None) -> list[str]:
        """Return the engine's program and the options that tie it to this storage."""
        argv = [str(self.program.path), "--root", str(self.root), "--runroot", str(self.run_root)]
        argv += ["--storage-driver", driver or self.driver]
        if self.program.kind == "podman":
            argv += ["--cgroup-manager", "cgroupfs", "--events-backend", "none"]
            argv += ["--runtime", self._runtime] if self._runtime else []
        return argv

    def unshared(self, argv: Sequence[str | Path]) -> list[str]:
        """Return `argv` as run by root of the user namespace."""
        return [*self.command(), "unshare", *([] if self.program.kind == "podman" else ["--"]), *map(str, argv)]

    def surrounded(self, argv: Sequence[str | Path], around: StartConditions) -> list[str]:
        """Return `argv` as run in such surroundings."""
        offline = not around.network and around.watch is None
        verb = "-".join(word for word, asked in (("offline", offline), ("apart", around.apart)) if asked)
        if around.apart:
            needed = (self.state, self.run_root, self.program.path, *around.shown)
            hidden = hidden_home(needed, process.child_environment(self.environment))
            argv = [str(len(hidden)), *hidden, *argv]
        if verb:
            argv = [sys.executable, "-I", "-S", inside.__file__, verb, *argv]
        if around.watch is not None:
            # outside of the namespace that `argv` makes for its processes: they can neither see nor end the sink
            argv = [sys.executable, "-I", nowhere.__file__, around.watch, *argv]
        return self.unshared(argv) if verb or around.watch else [*map(str, argv)]

    def invoke(
        self,
        arguments: Sequence[str | Path],
        *,
        around: StartConditions = AS_ON_HOST,
        timeout_s: float = QUICK_S,
        check: bool = True,
        cwd: Path | None = None,
        streams: process.Streams = process.QUIET,
    ) -> process.Completed:
        """Run the engine with this storage. It is terminated when this process dies, however it dies.

        Raises:
            ProcessFailed: as `host.process.run` does.
        """
        argv = self.surrounded([*self.command(), *arguments], around)
        return self.invoke_raw(argv, timeout_s=timeout_s, check=check, cwd=cwd, streams=streams)

    def invoke_raw(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = QUICK_S,
        check: bool = True,
        cwd: Path | None = None,
        streams: process.Streams = process.QUIET,
    ) -> process.Completed:
        """Run a whole command line that `command` or `surrounded` made, again if the engine did not start."""
        files.ensure_directory(self._sessions)
        guard = [sys.executable, "-I", "-S", inside.__file__, "guarded", str(self._sessions)]
        attempt = 0
        while True:
            attempt += 1
            try:
                completed = process.run(
                    [*guard, *argv],
                    timeout_s=timeout_s,
                    environment=self.environment,
                    cwd=cwd,
                    streams=streams,
                    check=check,
                    emit=self._emit,
                )
            except process.ProcessFailed as failure:
                if attempt == START_ATTEMPTS or not _did_not_start(failure.tail):
                    raise
            else:
                if attempt == START_ATTEMPTS or completed.returncode == 0 or not _did_not_start(completed.tail):
                    return completed

    # --- isolation -------------------------------------------------------------------------------------------------

    @property
    def isolation(self) -> Isolation:
        """The first isolation that really starts a container here; `BUILDAH_ISOLATION` is the only one if it is set.

        What an earlier run found is believed until the host starts again, another engine or another choice is asked
        for, or a container fails.

        Raises:
            HostError: none does.
        """
        with self._choosing:
            if self._isolation is None:
                conditions = self._isolation_conditions()
                self._isolation = self._read_isolation(conditions)
                if self._isolation is None:
                    self._isolation = self._choose_isolation()
                    if not self._isolation.shared:  # for one run, which says so: it is not to be found later
                        self._note_isolation(self._isolation, conditions)
            return self._isolation

    def forget_isolation(self) -> None:
        """Let the next run try isolations again. Idempotent."""
        self._isolation_note.unlink(missing_ok=True)

    @property
    def _isolation_note(self) -> Path:
        return self.state / "isolation.json"

    def _isolation_conditions(self) -> list[str]:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        chosen = [os.environ.get(name, "") for name in ("BUILDAH_ISOLATION", "BUILDAH_RUNTIME")]
        return [boot, str(self.program.path), self.program.version_text, *chosen]

    def _note_isolation(self, isolation: Isolation, conditions: list[str]) -> None:
        note = {"conditions": conditions, "kind": isolation.kind, "runtime": isolation.runtime}
        # it saves half a second, and one that is cut off is not believed: it is neither synced nor renamed
        with suppress(OSError):
            self._isolation_note.write_bytes(canonical_json(note))

    def _read_isolation(self, conditions: list[str]) -> Isolation | None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            note = parse_json(self._isolation_note.read_bytes())
            if note["conditions"] == conditions:
                return Isolation(note["kind"], note["runtime"])
        return None

    def _choose_isolation(self) -> Isolation:
        static = static_program()
        wanted = os.environ.get("BUILDAH_ISOLATION", "")
        failures: list[str] = []
        not_apart = ""
        for candidate in isolation_candidates(wanted, os.environ.get("BUILDAH_RUNTIME", ""), may_share=self._may_share):
            failed = self._try_isolation(candidate, static)
            if failed is None:
                if candidate.shared:
                    self._emit(Warned(f"code in containers can see and signal your processes: {not_apart}"))
                return candidate
            not_apart = not_apart or failed.partition(inside.NOT_APART)[2]
            failures.append(f"{candidate}: {failed}")
        if not_apart:
            raise HostError(
                f"containers would share this host's processes, as it does not let an ordinary user separate them: "
                f"{not_apart}",
                hint=SHARED_HINT,
            )
        raise HostError(
            "no isolation mode can start a container here" + "".join(f"\n  | {line}" for line in failures),
            hint="unset `BUILDAH_ISOLATION`; then `airferry doctor`" if wanted else "run `airferry doctor`",
        )

    def _try_isolation(self, candidate: Isolation, static: Path | None) -> str | None:
        """Start a container that does nothing, and return why it did not start, or None; without a program, all do."""
        around = StartConditions(apart=candidate.apart)
        if static is None:
            done = self.invoke_raw(self.surrounded(["true"], around), check=False) if candidate.apart else None
            return None if done is None or done.returncode == 0 else _said_last(done.tail)
        with files.scratch_directory(self.temporary) as folder:
            root = folder / "root"
            # mount points that runtimes expect; a static program needs nothing else, so no image has to be pulled
            for name in ("proc", "sys", "dev", "etc", "run", "tmp"):
                (root / name).mkdir(parents=True)
            shutil.copy(static, root / "probe")
            (root / "probe").chmod(0o755)
            (folder / "Containerfile").write_text('FROM scratch\nCOPY . /\nRUN ["/probe", "-V"]\n', encoding="utf-8")
            argv: list[str | Path] = ["build", *candidate.arguments, "--layers=false", "--quiet", "--pull=never"]
            argv += ["--file", folder / "Containerfile", "--iidfile", folder / "id", root]
            try:
                self.invoke(argv, around=around)
            except process.ProcessFailed as failure:
                return _said_last(failure.tail)
            self.invoke(["rmi", "--force", (folder / "id").read_text(encoding="utf-8").strip()], check=False)
            return None

    def choose_runtime(self) -> None:
        """Let Podman use the first of its default runtime, crun and runc that really starts a container here.

        Raises:
            HostError: none does.
        """
        if self.program.kind != "podman":
            return
        with self._choosing:
            if self._runtime is None:
                self._runtime = self._choose_runtime()

    def _choose_runtime(self) -> str:
        static = static_program()
        failures = []
        # crun first, as Podman prefers it; it refuses hybrid control groups (containers/podman#3439), where runc works
        for runtime in filter(process.find_program, ("crun", "runc")):
            if static is None:
                return runtime
            with files.scratch_directory(self.temporary) as root:
                for name in ("proc", "sys", "dev", "etc", "run", "tmp"):
                    (root / name).mkdir()
                shutil.copy(static, root / "probe")
                argv = ["run", "--rm", "--network", "none", "--rootfs", str(root), "/probe", "-V"]
                completed = self.invoke_raw([*self.command(), "--runtime", runtime, *argv], check=False)
            if completed.returncode == 0:
                return runtime
            failures.append(f"{runtime}: {completed.tail[-1] if completed.tail else 'no message'}")
        raise HostError(
            "Podman cannot start a container here" + "".join(f"\n  | {line}" for line in failures),
            hint="install another runtime: `sudo apt-get install runc`",
        )

    # --- leftovers -------------------------------------------------------------------------------------------------

    def reset_leftovers(self) -> None:
        """Remove what runs left in the storage, for a process that is alone: containers and their mounts."""
        clear_unheld(self.state / LOCKS)
        if (self.root / "overlay-containers").is_dir() or (self.root / "vfs-containers").is_dir():
            for container in self.containers():
                self.invoke(["rm", *(["--force"] if self.program.kind == "podman" else []), container], check=False)

    def prepare(self) -> None:
        """Make the folder for temporary files, which only this user may enter. Idempotent."""
        files.ensure_directory(self.temporary)
        self.temporary.chmod(0o700)

    def remove_leftovers(self, own: Path | None = None) -> None:
        """End what still runs of a process whose folder was `own`, this one's without, and remove its temporary files.

        Raises:
            HostError: a file cannot be removed.
        """
        folder = self._own if own is None else own
        end_orphans(folder / "sessions")
        self.remove_tree(folder / "tmp")

    def remove_run(self, own: Path) -> None:
        """Remove the folder of a process that was killed, what it left running ended."""
        if own.is_dir() and not own.is_symlink():
            self.remove_leftovers(own)
        files.remove_tree(own)

    def remove_all(self) -> None:
        """Remove the whole storage, images included."""
        self.forget_isolation()
        for path in (self.root, self.run_root, self.temporary):
            self.remove_tree(path)

    def containers(self) -> list[str]:
        """Return the names of all containers in the storage, those of a build included."""
        names: list[str] = []
        for kind in ("overlay", "vfs"):
            path = self.root / f"{kind}-containers" / "containers.json"
            if path.is_file():
                for entry in parse_json(path.read_text(encoding="utf-8") or "[]") or []:
                    names.append(entry["id"])
        return names

    def remove_tree(self, path: Path) -> None:
        """Remove a folder that may hold files of subordinate users. Idempotent.

        Raises:
            HostError: it cannot be removed.
        """
        if not path.exists() and not path.is_symlink():
            return
        try:
            files.remove_tree(path)
        except HostError:
            # A driver is named, as choosing one needs the folder that may be the one that goes.
            argv = [*self.command(driver=self._driver or "overlay"), "unshare", "rm", "-rf", "--", str(path)]
            try:
                process.run(argv, timeout_s=QUICK_S)
            except process.ProcessFailed as failure:
                raise engine_error(failure, doing=f"remove `{path}`") from failure


def isolation_candidates(wanted: str, runtime: str = "", *, may_share: bool = False) -> list[Isolation]:
    """Return what to try, best known first. `wanted` is `BUILDAH_ISOLATION`, `runtime` is `BUILDAH_RUNTIME`.

    Only with `may_share`, and as the last resort, containers share the processes of this host.
    """
    runtimes = [runtime] if runtime else [name for name in ("crun", "runc") if process.find_program(name)]
    if wanted and wanted != "chroot":
        return [Isolation(wanted, name) for name in runtimes] or [Isolation(wanted)]
    separate = [Isolation("chroot"), *(Isolation("rootless", name) for name in runtimes if not wanted)]
    return [*separate, *([Isolation("chroot", shared=True)] if may_share else [])]


def _said_last(tail: Sequence[str]) -> str:
    """Return why a start failed: our own word, if there is one, as the engine says something after it."""
    own = [line for line in tail if line.startswith(inside.NOT_APART)]
    return next((line for line in [*own, *reversed(tail)] if line.strip()), "no message")


def _did_not_start(tail: Sequence[str]) -> bool:
    return any(NOT_STARTED in line for line in tail)


def static_program() -> Path | None:
    """Return a statically linked program of the host that does nothing for `-V`, to start in an empty container."""
    for name in STATIC_PROGRAMS:
        path = Path(name)
        with suppress(OSError):
            if path.is_file() and path.read_bytes()[:4] == b"\x7fELF":
                return path
    return None


def end_orphans(sessions: Path) -> None:
    """Terminate, and 10 s later kill, what is left of the sessions that `inside.guarded` noted; forget the notes."""
    if not sessions.is_dir():
        return
    noted = {int(note.name): note.read_text(encoding="utf-8") for note in sessions.iterdir() if note.name.isdecimal()}
    told: set[int] = set()
    deadline = clock.monotonic_s() + ORPHAN_GRACE_S
    while members := _members(noted):
        final = clock.monotonic_s() > deadline
        for pid in members if final else members - told:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL if final else signal.SIGTERM)
        told |= members
        time.sleep(0.1)
        if final:
            break
    files.remove_tree(sessions)


def _members(noted: Mapping[int, str]) -> set[int]:
    """Return the processes of the noted sessions. A number that another session has taken since is left alone."""
    running = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, ValueError, IndexError):
                if entry.stat().st_uid == os.geteuid():
                    running[int(entry.name)] = inside.process_mark(int(entry.name))
    return {
        pid
        for pid, (session, _, state) in running.items()
        if session in noted and state != "Z" and (session not in running or running[session][1] == noted[session])
    }
