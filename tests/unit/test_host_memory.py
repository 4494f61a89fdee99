"""How much memory there is, as host and control groups tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.host import memory
from airferry.near import session

MIB = 1 << 20


def host(tmp_path: Path, *, available_mib: int | None = 4096, groups: dict[str, tuple[str, int]] | None = None) -> int:
    """Return what is available on a host with these groups: path to limit and use."""
    meminfo, own = tmp_path / "meminfo", tmp_path / "cgroup"
    if available_mib is not None:
        meminfo.write_text(f"MemTotal: 9 kB\nMemAvailable:   {available_mib * 1024} kB\n")
    for path, (limit, used) in (groups or {}).items():
        folder = tmp_path / "fs" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
    own.write_text("0::/user/job\n")
    return memory.available_bytes(meminfo=meminfo, own_group=own, groups=tmp_path / "fs")


def test_the_host_alone(tmp_path: Path) -> None:
    assert host(tmp_path) == 4096 * MIB


def test_the_tightest_group_counts(tmp_path: Path) -> None:
    groups = {"user": (str(900 * MIB), 200 * MIB), "user/job": ("max", 100 * MIB)}
    assert host(tmp_path, groups=groups) == 700 * MIB
    assert host(tmp_path, groups={**groups, "user/job": (str(100 * MIB), 200 * MIB)}) == 0


def test_where_nothing_is_told(tmp_path: Path) -> None:
    assert host(tmp_path, available_mib=None) == memory.UNKNOWN_BYTES
    assert memory.available_bytes() > 0


@pytest.mark.parametrize(
    ("cores", "available_mib", "jobs"), [(16, 64_000, 4), (2, 64_000, 2), (16, 700, 2), (16, 9, 1)]
)
def test_images_at_a_time(cores: int, available_mib: int, jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "usable_cores", lambda: cores)
    monkeypatch.setattr(session.memory, "available_bytes", lambda: available_mib * MIB)
    assert session._default_jobs() == jobs
