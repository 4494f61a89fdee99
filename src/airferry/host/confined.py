"""What runs as a child to confine a build script: namespaces without a network, and a root with only what it is shown.

It is executed by path, with `python -I`, so it imports nothing of the project and nothing outside the standard
library. It talks to its parent by its exit code and stderr alone.

Same user inside as outside, so that no capability survives the `exec`: what is mounted here cannot be unmounted again.
See user_namespaces(7), pid_namespaces(7), pivot_root(2).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS = (
    0x00020000,
    0x10000000,
    0x20000000,
    0x40000000,
    0x08000000,
    0x04000000,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MS_NOATIME, MS_NODIRATIME, MS_RELATIME = 1024, 2048, 1 << 21
ST_RELATIME = 4096
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
SETUP_FAILED = 125
DEVICE_NODES = ("full", "null", "random", "urandom", "zero")
# of /etc only what programs need to run at all: names of users, the linker's cache, alternatives, Debian's Python
ETC = (
    "alternatives",
    "group",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "passwd",
    "python3",
    f"python3.{sys.version_info[1]}",
)
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")

_libc = ctypes.CDLL(None, use_errno=True)


class SetupFailed(OSError):
    """The host does not allow what confines."""


def call(what: str, result: int) -> None:
    """Raise for the result of a call of libc that failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise SetupFailed(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Call mount(2)."""
    encoded = [os.fsencode(text) for text in (source, target, kind, data)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    call(f"mount {source} on {target}", result)


def enter_namespaces() -> None:
    """Move this process into namespaces; its children are in the one for processes too."""
    user, group = os.getuid(), os.getgid()
    all_of_them = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    call("unshare", _libc.unshare(all_of_them))
    try:
        # the kernel takes a gid_map from an unprivileged process only after `setgroups` is denied (user_namespaces(7)):
        # otherwise it could drop a group that denies it access to a file
        Path("/proc/self/setgroups").write_text("deny", encoding="utf-8")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="utf-8")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="utf-8")
    except OSError as error:
        raise SetupFailed(error.errno, f"map the user: {error.strerror}") from error


def bind(source: str, target: str, *, writable: bool = False) -> None:
    """Show a file or folder of the host at a path of the new root."""
    if Path(source).is_dir():
        Path(target).mkdir(parents=True, exist_ok=True)
    elif not Path(target).exists():
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).touch()
    mount(source, target, "", MS_BIND | MS_REC)
    if not writable:
        # flags that the mount has on the host are locked, and must be named again
        had = os.statvfs(target).f_flag
        kept = had & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME)
        kept |= MS_RELATIME if had & ST_RELATIME else 0
        mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def build_root(root: str, spec: dict[str, Any]) -> None:
    """Lay out the new root: the host's programs and libraries to read, and what the specification names."""
    # systemd makes `/` shared: without this, mounts made here would show up in the host's namespace
    mount("", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=16m")
    for path in SYSTEM:
        if Path(path).is_symlink():
            Path(root + path).symlink_to(Path(path).readlink())
        elif Path(path).is_dir():
            bind(path, root + path)
    for name in ETC:
        if Path("/etc", name).exists():
            bind(str(Path("/etc", name).resolve()), f"{root}/etc/{name}")
    for name in DEVICE_NODES:
        bind(f"/dev/{name}", f"{root}/dev/{name}", writable=True)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        Path(f"{root}/dev/{name}").symlink_to(f"/proc/self/fd{target}")
    for folder in ("proc", "dev/shm"):
        Path(root, folder).mkdir(parents=True, exist_ok=True)
    # inside containers of others this is forbidden, and few builds miss it
    with suppress(SetupFailed):
        mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", f"{root}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=64m")
    # first, as what is shown may lie below it
    bind(spec["tmp"], f"{root}/tmp", writable=True)
    for source, target in spec["read"]:
        bind(source, root + target)
    for source in spec["hide"]:
        if Path(root + source).is_file():
            bind("/dev/null", root + source, writable=True)
    for source, target in spec["write"]:
        bind(source, root + target, writable=True)
    os.chdir(root)
    # pivot_root(2) with `.` twice stacks the old root on the new one and needs no folder for it; after `chroot` alone
    # the host's root would stay reachable
    call("pivot_root", _libc.pivot_root(b".", b"."))
    call("umount", _libc.umount2(b".", MNT_DETACH))
    os.chdir(spec["cwd"])


def drop_privileges() -> None:
    """Give up every capability for good, so that also root gets none back by `exec`."""
    # the bounding set has one bit a capability; the kernel answers EINVAL past the last that it knows
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    call("no_new_privs", _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def run_and_reap(argv: list[str], environment: dict[str, str]) -> int:
    """Run a program as the child of this process, which is the first of its namespace, and collect orphans."""
    child = os.fork()
    if child == 0:
        drop_privileges()
        os.execvpe(argv[0], argv, environment)
    # the first process of a PID namespace inherits all orphans, and the namespace dies with it
    while True:
        ended, status = os.wait()
        if ended == child:
            return os.waitstatus_to_exitcode(status) & 0xFF


def main(arguments: list[str]) -> int:
    """Run `SPECIFICATION ROOT`: a JSON file that says what to run and to show, and an empty folder for the new root."""
    spec = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        enter_namespaces()
    except OSError as error:
        sys.stderr.write(f"airferry: {error}\n")
        return SETUP_FAILED
    child = os.fork()
    if child == 0:
        code = SETUP_FAILED
        try:
            # nothing inside can end the first process of a PID namespace, so it must not outlive a killed parent
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            build_root(arguments[1], spec)
            code = run_and_reap(spec["argv"], spec["environment"])
        except OSError as error:
            sys.stderr.write(f"airferry: {error}\n")
            sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
