"""Kills, full disks, clocks that jump and a second operator, at every boundary of a load and of a direct build.

A boundary is what tests/kill_driver.py marks: each fsync, rename, moved tag, and answer of a registry.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from network import Cargo, Tally, load_once, make_cargo, prepare, running
from registry import WatchedRegistry
from test_kills import KILLED, Yard, drive, in_its_environment, make_yard

from airferry.host import clock, files
from near_side import REFERENCE
from static_bases import write_static_base

FULL_DISK = "ENOSPC"
# what a full disk makes fail
WRITES = ("fsync", "rename")
YEAR_S = 365 * 86_400.0
PROGRAM = (sys.executable, "-c", "from airferry.cli import main; main()")
LOGIN = '{"auths": {"127.0.0.1": {"auth": "dXNlcjpzZWNyZXQ="}}}'


class _Loads:
    """Loads of one bundle, each into a registry of its own, run by the driver that kills."""

    def __init__(self, folder: Path) -> None:
        self.folder = files.ensure_directory(folder)
        self.cargo = make_cargo(folder / "bundle")
        self.receipt = folder / "receipt.yaml"
        auth = folder / "auth.json"
        auth.write_text(LOGIN)
        os.environ["REGISTRY_AUTH_FILE"] = str(auth)

    def run(self, registry: WatchedRegistry, number: int, failure: str = "") -> tuple[int, str, list[str]]:
        """Load and end at a boundary, 0 for none; return the exit code, what was said, and the boundaries."""
        registry_login = LOGIN.replace("127.0.0.1", registry.address)
        (self.folder / "auth.json").write_text(registry_login)
        arguments = ("--quiet", "load", str(self.cargo.path), "--to", f"{registry.address}/x", "-j", "1")
        arguments = (*arguments, "--root", self.cargo.root, "--receipt", str(self.receipt))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AIRFERRY_FAILING_DISK", failure)
            done, seen = drive(number, self.folder / "log", *arguments, folder=self.folder)
        return done.returncode, done.stderr, seen

    def check(self, row: Tally, what: str, registry: WatchedRegistry, *, killed: bool) -> None:
        """Load to the end, and note what is wrong then."""
        code, said, _seen = self.run(registry, 0)
        if code:
            row.wrong.append(f"{what}: the rerun ends with {code}: {said}")
        else:
            row.finished += 1
        if registry.early or registry.incomplete():
            row.wrong.append(f"{what}: tags of what is not there: {registry.early or registry.incomplete()}")
        if registry.sessions:
            row.wrong.append(f"{what}: {len(registry.sessions)} upload sessions are left open")
        if code == 0 and not self.receipt.is_file():
            row.wrong.append(f"{what}: no receipt")
        # a receipt that is killed while it is written leaves one hidden file next to its place, which is the operator's
        found = self.folder.rglob(f"{files.TEMPORARY_PREFIX}*")
        left = [path.name for path in found if path.parent != self.folder or not killed]
        if left:
            row.wrong.append(f"{what}: temporary files are left: {left}")


def _loads(name: str, folder: Path, part: slice, *, failure: str, codes: Sequence[int]) -> Tally:
    row, loads = Tally(name), _Loads(folder / "load")
    with running(WatchedRegistry()) as registry:
        prepare(registry)
        code, said, boundaries = loads.run(registry, 0)
        assert code == 0, said
    for number in range(1, len(boundaries) + 1)[part]:
        what = f"{name}, boundary {number} of {len(boundaries)} (`{boundaries[number - 1]}`)"
        if failure and not boundaries[number - 1].startswith(WRITES):
            continue
        loads.receipt.unlink(missing_ok=True)
        with running(WatchedRegistry()) as registry:
            prepare(registry)
            began = time.monotonic()
            code, said, _seen = loads.run(registry, number, failure)
            row.slowest_s = max(row.slowest_s, time.monotonic() - began)
            row.ended(code)
            if code not in codes or "Traceback" in said or "bug:" in said:
                row.wrong.append(f"{what}: exit code {code}: {said}")
            if code and not failure and registry.incomplete():
                row.wrong.append(f"{what}: tags of what is not there: {registry.incomplete()}")
            # a killed load cannot end a session that it noted nowhere: registries end those by age
            registry.sessions = {key: data for key, data in registry.sessions.items() if failure}
            loads.check(row, what, registry, killed=not failure)
    return row


def _builds(name: str, folder: Path, part: slice, *, failure: str, codes: Sequence[int]) -> Tally:
    row = Tally(name)
    place = files.ensure_directory(folder / f"build{failure}")
    with pytest.MonkeyPatch.context() as patch:
        yard = make_yard(place, write_static_base(place / "base", REFERENCE), builder="direct")
        in_its_environment(yard, patch)
        for number in range(1, len(yard.boundaries) + 1)[part]:
            what = f"{name}, boundary {number} of {len(yard.boundaries)} (`{yard.boundaries[number - 1]}`)"
            yard.clear()
            patch.setenv("AIRFERRY_FAILING_DISK", failure)
            done, _seen = yard.drive(number)
            patch.delenv("AIRFERRY_FAILING_DISK")
            row.ended(done.returncode)
            if done.returncode not in codes or "Traceback" in done.stderr or "bug:" in done.stderr:
                row.wrong.append(f"{what}: exit code {done.returncode}: {done.stderr}")
            _expect_finished(row, what, yard)
    return row


def _expect_finished(row: Tally, what: str, yard: Yard) -> None:
    try:
        yard.check()
    except Exception as error:
        row.wrong.append(f"{what}: the rerun does not end as it should: {error}")
    else:
        row.finished += 1


def _clocks(name: str, folder: Path, part: slice) -> Tally:
    """Load while the clock jumps, back and forth, at each look at it."""
    row, cargo = Tally(name), make_cargo(folder / "clock")
    jumps: list[Callable[[int], float]] = [
        lambda count: YEAR_S * count,
        lambda count: -YEAR_S * count,
        lambda count: YEAR_S * 30 * (-1) ** count,
        lambda count: -clock_start() if count % 2 else 0.0,
        lambda count: 3600.0 * count,
        lambda count: -3600.0 * (count % 3),
    ]
    for (number, jump), suspended in [*itertools.product(enumerate(jumps), (False, True))][part]:
        counter = itertools.count()
        with pytest.MonkeyPatch.context() as patch, running(WatchedRegistry()) as registry:
            prepare(registry)
            patch.setattr(
                clock, "now_s", lambda jump=jump, counter=counter: max(0.0, time.time() + jump(next(counter)))
            )
            if suspended:
                # a machine that slept: tokens have expired, whatever they said
                slept = itertools.count()
                patch.setattr(clock, "monotonic_s", lambda slept=slept: time.monotonic() + 3600.0 * next(slept))
            _expect_loaded(row, f"{name}, {number}", cargo, registry, folder / "receipt.yaml")
    return row


def clock_start() -> float:
    """Return how far the clock is from its beginning."""
    return time.time()


def _expect_loaded(row: Tally, what: str, cargo: Cargo, registry: WatchedRegistry, receipt: Path) -> None:
    receipt.unlink(missing_ok=True)
    code, message = load_once(cargo, registry, receipt)
    row.ended(code)
    if code or registry.early or registry.incomplete() or registry.sessions:
        row.wrong.append(f"{what}: exit code {code}: {message}; {registry.early}; {len(registry.sessions)} sessions")
    code, message = load_once(cargo, registry, receipt)
    row.finished += not code
    if code:
        row.wrong.append(f"{what}: the rerun ends with {code}: {message}")


def _operators(name: str, folder: Path, part: slice) -> Tally:
    """Let two operators load at the same time: the same bundle and another one, from one host and from two."""
    row, loads = Tally(name), _Loads(folder / "two")
    other = make_cargo(folder / "two" / "other")
    for cargo, hosts, delay_s in [*itertools.product((loads.cargo, other), (1, 2), (0.0, 0.1, 0.3))][part]:
        what = f"{name}: {'one bundle' if cargo is loads.cargo else 'two bundles'}, {hosts} hosts, {delay_s} s apart"
        for number in (0, 1):
            # each case has a registry of its own, and a receipt is of one
            (folder / f"receipt{number}.yaml").unlink(missing_ok=True)
        with running(WatchedRegistry()) as registry, ExitStack() as ends:
            prepare(registry)
            (loads.folder / "auth.json").write_text(LOGIN.replace("127.0.0.1", registry.address))
            started = []
            for number, one in enumerate((loads.cargo, cargo)):
                cache = files.ensure_directory(folder / f"cache{number if hosts > 1 else 0}")
                ends.callback(shutil.rmtree, cache / "loads", ignore_errors=True)
                started.append(_start(one, registry, folder / f"receipt{number}.yaml", cache))
                time.sleep(delay_s)
            for child in started:
                _out, said = child.communicate(timeout=600)
                row.ended(child.returncode)
                # the second one on a host is told that the first one runs
                if child.returncode not in ((0, 4) if hosts == 1 else (0,)) or "Traceback" in said:
                    row.wrong.append(f"{what}: exit code {child.returncode}: {said}")
            if registry.early or registry.incomplete() or registry.sessions:
                row.wrong.append(f"{what}: {registry.early}; {len(registry.sessions)} sessions are left open")
            for number, one in enumerate((loads.cargo, cargo)):
                child = _start(one, registry, folder / f"receipt{number}.yaml", folder / "cache0")
                _out, said = child.communicate(timeout=600)
                row.finished += child.returncode == 0
                if child.returncode:
                    row.wrong.append(f"{what}: the rerun ends with {child.returncode}: {said}")
    return row


def _start(cargo: Cargo, registry: WatchedRegistry, receipt: Path, cache: Path) -> subprocess.Popen[str]:
    arguments = ["--quiet", "load", str(cargo.path), "--to", f"{registry.address}/x", "--root", cargo.root]
    return subprocess.Popen(
        [*PROGRAM, *arguments, "--receipt", str(receipt)],
        env={**os.environ, "AIRFERRY_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _killed_load(name: str, folder: Path, part: slice) -> Tally:
    return _loads(name, folder, part, failure="", codes=(KILLED,))


def _full_load(name: str, folder: Path, part: slice) -> Tally:
    return _loads(name, folder, part, failure=FULL_DISK, codes=(0, 4))


def _killed_build(name: str, folder: Path, part: slice) -> Tally:
    return _builds(name, folder, part, failure="", codes=(KILLED,))


def _full_build(name: str, folder: Path, part: slice) -> Tally:
    return _builds(name, folder, part, failure=FULL_DISK, codes=(0, 4))


# `part` says which of their cases are to be run
INTERRUPTIONS: dict[str, Callable[[str, Path, slice], Tally]] = {
    "kill at a boundary of a load": _killed_load,
    "full disk from a boundary of a load on": _full_load,
    "kill at a boundary of a direct build": _killed_build,
    "full disk from a boundary of a direct build on": _full_build,
    "clock that jumps during a load": _clocks,
    "two operators at once": _operators,
}
