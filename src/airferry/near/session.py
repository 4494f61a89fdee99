"""What the near side works with, opened once for a run: cache, engine, bases, wheels and checkouts. The only bag.

A function takes the session and what else it needs, the plan first of all. What lies below this module takes what it
uses, one by one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from airferry.engine.driver import Engine, open_engine
from airferry.engine.preflight import check_emulator, check_space
from airferry.engine.program import EngineChoice, find_engine
from airferry.errors import HostError, UsageError
from airferry.events import Emit
from airferry.host import files, locks, memory
from airferry.host.records import expect_cache
from airferry.host.threads import usable_cores
from airferry.host.workers.processes import open_workers
from airferry.near.bases.fetch import BaseCache
from airferry.near.bases.layers import BaseLayers, compression_of
from airferry.near.git.checkouts import Checkouts
from airferry.near.probe.ask import ProbeChoice
from airferry.near.probe.knowledge import Knowledge
from airferry.near.wheels.pip import Pip
from airferry.near.wheels.store import WheelStore
from airferry.plan.models import Plan
from airferry.registry.client import ClientOptions, open_clients
from airferry.registry.pulls import Pulls
from airferry.registry.tls import BY_FILES

MAX_JOBS = 4
LEAST_FREE_BYTES = 2 * 10**9
# the folders of the cache, as patterns, in which killed runs leave temporary files: cleared by one that is alone
CLEARED_WHEN_ALONE = (
    "bases",
    "bases/blobs/sha256",
    "bootstrap",
    "bootstrap/debs/*",
    "bootstrap/made",
    "compiled",
    "configs",
    "facts",
    "git-wheels",
    "layers",
    "layers/blobs/sha256",
    "layers/records",
    "loader",
    "wheels",
)
JOB_BYTES = 300 << 20  # what a build of one image needs of memory, measured
ENGINES: tuple[EngineChoice, ...] = ("auto", "buildah", "podman")
PROBES: tuple[ProbeChoice, ...] = ("auto", "static", "run")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How a near side works: which engine, how bases are probed, and how many images are made at a time.

    `engine` is `auto`, `buildah` or `podman`; `probe` is `auto`, `static` or `run`. Without `jobs`, cores and memory
    decide. `memory_bytes` is what the processes that read layers may take together, 2 GiB without it.
    `may_share_processes` lets code in containers see and signal this user's processes where the host does not let an
    ordinary user separate them; elsewhere it changes nothing.
    """

    engine: str = "auto"
    probe: str = "auto"
    jobs: int | None = None
    memory_bytes: int | None = None
    may_share_processes: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """What all work on a plan shares.

    `engine` opens the engine, and its storage, when it is first needed: a run with nothing to build never does.
    `engine_version` tells what it would be without opening it.
    """

    cache: Path
    scratch: Path
    engine: Callable[[], Engine]
    engine_version: Callable[[], str]
    bases: BaseCache
    knowledge: Knowledge
    wheels: WheelStore
    checkouts: Checkouts
    probe: ProbeChoice
    jobs: int
    emit: Emit = field(repr=False)


@contextmanager
def open_session(plan: Plan, options: BuildOptions, *, emit: Emit) -> Iterator[Session]:
    """Lock the plan's output folder, join those who use the cache, and give what works on both.

    Sessions on different outputs run side by side: what both need is locked while it is made, thing by thing
    (`host.locks`), and lies in the cache whole or not at all.

    Raises:
        UsageError: an option is none of its choices.
        HostError: another build of the same output is under way, or a folder is not writable.
    """
    choice, probing = parse_engine(options.engine), parse_probe_choice(options.probe)
    expect_cache(emit)
    cache = files.cache_directory()
    files.ensure_directory(plan.output_dir, shared=True)
    with ExitStack() as stack:
        stack.enter_context(locks.exclusive_lock(plan.output_dir / ".airferry.lock", purpose="build"))
        stack.enter_context(locks.sharing(cache / "lock", clear=partial(_clear, cache), emit=emit))
        scratch = stack.enter_context(locks.own_scratch(cache / "scratch"))
        clients = stack.enter_context(open_clients(ClientOptions(told=BY_FILES), emit=emit))
        opened: list[Engine] = []

        def lend_engine() -> Engine:
            if not opened:
                check_for_build(plan, cache=cache)
                lent = open_engine(
                    cache / "engine", engine=choice, may_share_processes=options.may_share_processes, emit=emit
                )
                opened.append(stack.enter_context(lent))
            return opened[0]

        bases = BaseCache(cache, open_registry=Pulls(clients, emit=emit).source, emit=emit)
        limits = plan.config.limits
        workers = stack.enter_context(open_workers(jobs=options.jobs, memory_bytes=options.memory_bytes))
        layers = BaseLayers(
            bases.store,
            cache,
            compression=compression_of(plan.compression),
            output=plan.output_dir,
            limit_bytes=limits.layer_bytes,
            workers=workers,
            emit=emit,
        )
        yield Session(
            cache=cache,
            scratch=scratch,
            engine=_once(lend_engine),
            engine_version=lambda: _version_of(choice),
            bases=bases,
            knowledge=Knowledge(layers, cache, max_entries=limits.layer_entries),
            wheels=WheelStore(cache, Pip(emit=emit), emit),
            checkouts=Checkouts(stack.enter_context(files.scratch_directory(scratch)), cache=cache, emit=emit),
            probe=probing,
            jobs=options.jobs or _default_jobs(),
            emit=emit,
        )


def _default_jobs() -> int:
    """Return how many images are made in parallel by default: what cores and memory allow."""
    return max(1, min(usable_cores(), MAX_JOBS, memory.available_bytes() // JOB_BYTES))


def _version_of(choice: EngineChoice) -> str:
    program = find_engine(choice)
    return f"{program.kind} {program.version_text}"


def _clear(cache: Path) -> None:
    """Remove the temporary files that killed runs left in the cache, which no other process uses now."""
    for pattern in CLEARED_WHEN_ALONE:
        for folder in cache.glob(pattern):
            files.remove_stale_temporaries(folder)
    locks.clear_unheld(cache / locks.LOCKS)


def parse_engine(text: str) -> EngineChoice:
    """Return the choice of an engine.

    Raises:
        UsageError: it is none of `auto`, `buildah` and `podman`.
    """
    for choice in ENGINES:
        if choice == text:
            return choice
    raise UsageError(f"unknown engine `{text}`", hint="choose `auto`, `buildah` or `podman`")


def parse_probe_choice(text: str) -> ProbeChoice:
    """Return how bases are probed.

    Raises:
        UsageError: it is none of `auto`, `static` and `run`.
    """
    for choice in PROBES:
        if choice == text:
            return choice
    raise UsageError(f"unknown probe mode `{text}`", hint="choose `auto`, `static` or `run`")


def _once(make: Callable[[], Engine]) -> Callable[[], Engine]:
    """Return the function so that threads which ask at the same time get one engine."""
    guard = threading.Lock()

    def lend() -> Engine:
        with guard:
            return make()

    return lend


def check_for_build(plan: Plan, *, cache: Path) -> None:
    """Check what would end a build late: emulators for foreign CPUs, and room in cache and output folder.

    Raises:
        HostError: something is missing; the message says what, the hint what to type.
    """
    found = [check_emulator(platform) for platform in plan.platforms if not platform.matches_host()]
    found += [
        check_space("cache", cache, needed_bytes=LEAST_FREE_BYTES),
        check_space("output", plan.output_dir, needed_bytes=LEAST_FREE_BYTES),
    ]
    failed = [check for check in found if check.status == "fail"]
    if failed:
        raise HostError(
            "; ".join(f"{check.name}: {check.detail}" for check in failed),
            hint=failed[0].hint,
            checks=[check.name for check in failed],
        )
