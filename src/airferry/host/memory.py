"""How much memory this process may still take: what the host has available, and what its control group allows."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
OWN_GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
UNKNOWN_BYTES = 1 << 30


def available_bytes(*, meminfo: Path = MEMINFO, own_group: Path = OWN_GROUP, groups: Path = GROUPS) -> int:
    """Return the bytes that can be had without swapping: the least of what host and control groups (v2) say.

    Where neither says anything, that is 1 GiB.
    """
    found = []
    for line in _read(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    path = next((line[3:] for line in _read(own_group).splitlines() if line.startswith("0::")), "")
    folder = groups / path.lstrip("/")
    while path and folder.is_relative_to(groups):
        limit, used = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
        if limit.isdigit() and used.isdigit():
            found.append(max(0, int(limit) - int(used)))
        folder = folder.parent
    return min(found, default=UNKNOWN_BYTES)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
