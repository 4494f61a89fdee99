"""Code in containers is kept from processes, shared memory and network of this host; hosts that forbid it say so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from airferry.engine import inside
from airferry.engine.home import ENGINE_FILES
from airferry.engine.program import Program
from airferry.engine.storage import AS_ON_HOST, Isolation, StartConditions, Storage
from airferry.errors import HostError
from airferry.events import Emit, Event, Warned, silent

# what `buildah unshare` does, but for the subordinate IDs
AS_ROOT = """
import ctypes, os, sys
from pathlib import Path
def become_root():
    user, group = os.getuid(), os.getgid()
    assert ctypes.CDLL(None).unshare(0x10000000 | 0x00020000) == 0
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)
become_root()
exec(sys.argv[1])
os.execv(sys.argv[2], sys.argv[2:])
"""
# as in a container of Docker; only what a namespace further out has mounted counts
MASK = 'assert ctypes.CDLL(None).mount(b"tmpfs", b"/proc/irq", b"tmpfs", 0, b"") == 0; become_root()'
NO_NAMESPACES = 'Path("/proc/sys/user/max_pid_namespaces").write_text("0")'


def command(verb: str, code: str, *arguments: str, before: str = "pass") -> list[str]:
    none = ["0"] if "apart" in verb else []
    apart = [sys.executable, "-I", "-S", inside.__file__, verb, *none]
    return [
        sys.executable,
        "-I",
        "-S",
        "-c",
        AS_ROOT,
        before,
        *apart,
        sys.executable,
        "-I",
        "-S",
        "-c",
        code,
        *arguments,
    ]


def run(verb: str, code: str, *arguments: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    argv = command(verb, code, *arguments, before=before)
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user that has nothing to do with it."""
    child = subprocess.Popen(["sleep", "600"])
    yield child
    child.kill()
    child.wait()


def test_what_runs_apart_neither_sees_nor_signals_processes_of_the_host(bystander: subprocess.Popen[bytes]) -> None:
    code = (
        "import os, sys\n"
        "seen = sorted(int(name) for name in os.listdir('/proc') if name.isdigit())\n"
        "print(seen, [os.readlink(f'/proc/self/ns/{kind}') for kind in ('pid', 'ipc', 'uts', 'mnt')])\n"
        "sys.stdout.flush()\n"
        "for pid in (1, int(sys.argv[1]), int(sys.argv[2]), -1):\n"
        "    try:\n"
        "        os.kill(pid, 9)\n"
        "    except OSError:\n"
        "        pass\n"
    )
    done = run("apart", code, str(bystander.pid), str(os.getpid()))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("[1, 2] ")
    for kind in ("pid", "ipc", "uts", "mnt"):
        assert str(Path("/proc/self/ns", kind).readlink()) not in done.stdout
    assert bystander.poll() is None


def test_what_runs_apart_finds_no_shared_memory_and_no_terminal_of_the_host() -> None:
    mark = f"airferry-{os.getpid()}"
    shared = Path("/dev/shm", mark)
    shared.touch()
    try:
        code = "import os; print(os.listdir('/dev/shm'), os.listdir('/dev/pts'))"
        assert run("apart", code).stdout == "[] ['ptmx']\n"
        assert run("apart", f"open('/dev/shm/{mark}-inside', 'w')").returncode == 0
        assert not Path("/dev/shm", f"{mark}-inside").exists()
    finally:
        shared.unlink()


def test_only_what_is_offline_too_has_another_network() -> None:
    code = "import os; print(os.readlink('/proc/self/ns/net'))"
    ours = str(Path("/proc/self/ns/net").readlink())
    assert run("apart", code).stdout.strip() == ours
    for verb in ("offline", "offline-apart"):
        found = run(verb, f"import socket; print([name for _, name in socket.if_nameindex()]); {code}")
        assert found.stdout.startswith("['lo']\n")
        assert ours not in found.stdout


@pytest.mark.parametrize(
    ("code", "expected"), [("pass", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_exit_code_is_the_programs(code: str, expected: int) -> None:
    assert run("apart", code).returncode == expected


def hasty_command(folder: Path, watch_s: float, code: str) -> list[str]:
    """As `command("apart", …)`, but the parent is looked at more often and the program has half a second to end."""
    hasty = folder / "inside.py"
    text, pauses = Path(inside.__file__).read_text(encoding="utf-8"), "WATCH_S, END_GRACE_S = 0.5, 4.0"
    assert text.count(pauses) == 1
    hasty.write_text(text.replace(pauses, f"WATCH_S, END_GRACE_S = {watch_s}, 0.5"), encoding="utf-8")
    return [str(hasty) if part == inside.__file__ else part for part in command("apart", code)]


def test_the_watch_for_the_parent_ends_before_the_interpreter_does(tmp_path: Path) -> None:
    argv = hasty_command(tmp_path, 0.0005, "pass")
    for _ in range(3):
        assert subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0


def test_a_program_that_is_not_there_is_named() -> None:
    apart = [sys.executable, "-I", "-S", inside.__file__, "apart", "0", "/no/such/program"]
    argv = [sys.executable, "-I", "-S", "-c", AS_ROOT, "pass", *apart]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 127
    assert done.stderr.startswith("airferry: /no/such/program: ")


def test_a_request_to_end_reaches_the_program() -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    child = subprocess.Popen(command("apart", code), stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.terminate()
    assert child.wait(timeout=30) == 9
    child.stdout.close()


def test_everything_apart_ends_when_its_starter_is_killed_and_when_its_program_ends() -> None:
    daemon = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    time.sleep(600)\n"
        "print('ready', flush=True)\n"
        "time.sleep(float(sys.argv[1]))\n"
    )
    for lasts, number in (("600", signal.SIGKILL), ("0", None)):
        child = subprocess.Popen(command("apart", daemon, lasts), stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        if number is not None:
            child.send_signal(number)
        child.wait(timeout=30)
        # the pipe is closed when the last process that holds it is gone
        assert child.stdout.read() == b""
        child.stdout.close()


def test_everything_apart_ends_when_what_started_its_starter_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import os, signal, time\n"
        # it is asked again and again, also while it prints
        "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'asked\\n'))\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    time.sleep(600)\n"
    )
    # as `buildah unshare` is ended, which hands no signal on
    starter = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    argv = [sys.executable, "-c", starter, *hasty_command(tmp_path, 0.1, stubborn)]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.kill()
    child.wait()
    assert child.stdout.read().startswith(b"asked\n")
    child.stdout.close()


@pytest.mark.parametrize("before", [MASK, NO_NAMESPACES], ids=["masked /proc", "no namespaces"])
def test_a_host_that_does_not_separate_processes_is_told_from_a_failed_program(before: str) -> None:
    done = run("offline-apart", "print('never')", before=before)
    assert done.returncode == inside.NOT_APART_CODE
    assert done.stderr.startswith(inside.NOT_APART)
    assert done.stdout == ""


# --- the choice of an isolation --------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an engine, on a host that does not separate processes; runc is there, and works if `runc` is."""
    (tmp_path / "state" / "buildah-storage" / "vfs").mkdir(parents=True)
    engine = tmp_path / "engine"
    engine.write_text(
        f"""#!/bin/sh
case "$*" in
  *" unshare "*" apart "*) echo "{inside.NOT_APART}mount /proc: refused" >&2
    echo "Error: exit status 125" >&2
    exit 125;;
  *rootless*) [ -e {tmp_path}/runc ] || exit 1;;
esac
while [ $# -gt 0 ]; do case "$1" in --iidfile) echo 1234 >"$2";; esac; shift; done
"""
    )
    engine.chmod(0o755)
    monkeypatch.delenv("BUILDAH_ISOLATION", raising=False)
    monkeypatch.delenv("BUILDAH_RUNTIME", raising=False)
    monkeypatch.setattr("airferry.host.process.find_program", lambda name: Path("/x") if name == "runc" else None)
    return tmp_path


def storage(state: Path, *, may_share: bool = False, emit: Emit = silent) -> Storage:
    program = Program("buildah", state / "engine", (1,))
    return Storage(program, state / "state", emit=emit, may_share_processes=may_share)


@pytest.mark.parametrize(("wanted", "static"), [("", True), ("chroot", True), ("chroot", False)])
def test_containers_share_processes_only_if_the_operator_says_so(
    state: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, static: bool
) -> None:
    if not static:
        monkeypatch.setattr("airferry.engine.storage.static_program", lambda: None)
    monkeypatch.setenv("BUILDAH_ISOLATION", wanted)
    with pytest.raises(HostError, match=r"share this host's processes.*: mount /proc: refused") as caught:
        _ = storage(state).isolation
    assert "`--allow-shared-processes`" in (caught.value.hint or "")
    assert caught.value.exit_code == 4

    events: list[Event] = []
    isolation = storage(state, may_share=True, emit=events.append).isolation
    assert isolation == Isolation("chroot", shared=True)
    assert not isolation.apart
    warnings = [event.text for event in events if isinstance(event, Warned)]
    assert warnings == ["code in containers can see and signal your processes: mount /proc: refused"]
    # it is for one run: the next one is asked again
    with pytest.raises(HostError, match="share this host's processes"):
        _ = storage(state).isolation


@pytest.mark.parametrize("may_share", [True, False])
def test_a_runtime_that_separates_processes_comes_before_none_that_does(state: Path, may_share: bool) -> None:
    (state / "runc").touch()
    isolation = storage(state, may_share=may_share).isolation
    assert isolation == Isolation("rootless", "runc")
    assert not isolation.apart  # the runtime does it


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Storage in the cache of a user, whose home is the only one of its kind here."""
    home = tmp_path / "home"
    state = home / ".cache" / "airferry" / "engine"
    (state / "buildah-storage" / "vfs").mkdir(parents=True)  # so that no engine is asked which driver works
    for name in ENGINE_FILES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    # a user's PATH may name folders of others
    monkeypatch.setenv("PATH", f"{home}/bin:{home}/absent:{'x' * 300}:/usr/bin")
    (home / "bin").mkdir()
    return Storage(Program("buildah", Path("/x/buildah"), (1,)), state, emit=silent)


def test_what_an_engine_is_started_in(made: Storage, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert made.surrounded(["x"], AS_ON_HOST) == ["x"]
    assert made.surrounded(["x"], StartConditions(network=False))[-2:] == ["offline", "x"]
    paths = ["3", str(home), str(home / ".cache/airferry/engine"), str(home / "bin")]
    for network, verb in ((True, "apart"), (False, "offline-apart")):
        argv = made.surrounded(["x"], StartConditions(network=network, apart=True))
        assert argv[-6:] == [verb, *paths, "x"]
    argv = made.surrounded(["x"], StartConditions(network=False, watch=tmp_path / "log", apart=True))
    assert argv[-11:-5] == [str(tmp_path / "log"), sys.executable, "-I", "-S", inside.__file__, "apart"]
    assert argv[-5:] == [*paths, "x"]
    assert "CAP_SYS_CHROOT" in Isolation("chroot").arguments


def test_of_the_home_an_engine_is_shown_what_it_works_with(
    made: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    for name in (".config/containers", ".ssh", "catalogue/src", "conf"):
        (home / name).mkdir(parents=True)
    (home / "conf" / "storage.conf").touch()
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(home / "conf" / "storage.conf"))

    def shown(*paths: Path) -> list[str]:
        argv = made.surrounded(["x"], StartConditions(apart=True, shown=paths))
        taken = argv[argv.index("apart") + 1 :]
        return taken[1 : 1 + int(taken[0])]

    always = {".cache/airferry/engine", ".config/containers", "bin", "conf/storage.conf"}
    assert shown() == [str(home), *sorted(str(home / name) for name in always)]
    more = {*always, "catalogue"}
    # what lies in a folder that is shown comes with it; what lies elsewhere is there anyway
    found = shown(home / "catalogue", home / "catalogue/src", tmp_path / "elsewhere", home / "absent")
    assert found == [str(home), *sorted(str(home / name) for name in more)]
    # a name that is a link stays, and so does what it leads to
    (home / "files" / "conf").mkdir(parents=True)
    (home / "linked").symlink_to(home / "files")
    links = {*always, "files/conf", "linked/conf"}
    assert shown(home / "linked" / "conf") == [str(home), *sorted(str(home / name) for name in links)]
    # nothing can be hidden of a home that a container is to have
    assert shown(home) == shown(tmp_path) == []


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder that is not in `/dev/shm`, as `tmp_path` may be: what runs apart has its own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_of_a_folder_only_what_is_named_is_found(on_disk: Path) -> None:
    home = on_disk / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "key").touch()
    (home / "deep" / "state").mkdir(parents=True)
    (home / "deep" / "state" / "file").write_text("kept")
    (home / "deep" / "other").touch()
    (home / "one.conf").write_text("conf")
    code = (
        f"import os; home = {str(home)!r}\n"
        "found = [os.path.join(at, name) for at, _, names in os.walk(home) for name in names]\n"
        "print(sorted(os.path.relpath(path, home) for path in found))\n"
        "print(open(home + '/one.conf').read(), open(home + '/deep/state/file').read())\n"
        "open(home + '/deep/state/made', 'w'); open(home + '/lost', 'w')\n"
    )
    apart = [
        sys.executable,
        "-I",
        "-S",
        inside.__file__,
        "apart",
        "3",
        home,
        home / "deep" / "state",
        home / "one.conf",
    ]
    argv = [sys.executable, "-c", AS_ROOT, "pass", *apart, sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("['deep/state/file', 'one.conf']\nconf kept\n", "")
    assert (home / "deep" / "state" / "made").exists()
    assert not (home / "lost").exists()
    assert (home / ".ssh" / "key").exists()
