"""The host: what a build of a plan needs of it, checked before a build starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from airferry.config import BootstrapBase, load_config
from airferry.engine.preflight import Check, Status, checks
from airferry.engine.program import EngineChoice
from airferry.errors import ConfigurationError
from airferry.events import Emit, silent
from airferry.host import files
from airferry.near.planning import Selection, read_plan
from airferry.near.predict import ROOM_HINT, Predictor, disk_needs
from airferry.near.reach import ask_all
from airferry.near.session import parse_engine
from airferry.plan.catalogue import open_catalogue
from airferry.plan.lockfile import LOCK_FILE, Lockfile, read_lockfile
from airferry.plan.models import Plan

UNKNOWN_HINT = "run `airferry lock`: it fetches the bases and resolves the rest"
ENGINE_CHECKS = ("engine", "runtime folder", "user namespaces", "storage", "isolation")


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """Every check, in a fixed order. `planned` says whether a plan was read and its needs were among them."""

    checks: tuple[Check, ...]
    planned: bool


def doctor(selection: Selection, *, engine: str = "auto", emit: Emit = silent) -> DoctorReport:
    """Check this host for what a build of the plan needs, or, where there is no plan's file, of any plan.

    A catalogue that is not found is a failed check, next to those of what any plan needs. Failed checks are in the
    report, not raised.

    Raises:
        UsageError: there is no such engine.
        ConfigurationError: there is a plan's file, and it is wrong.
    """
    choice = parse_engine(engine)
    if not selection.config.exists():
        return examine(None, engine=choice, emit=emit)
    config = load_config(selection.config)
    try:
        open_catalogue(config, source_dir=selection.source)
    except ConfigurationError as error:
        report = examine(None, engine=choice, emit=emit)
        return replace(report, checks=(*report.checks, Check("catalogue", "fail", error.message, error.hint or "")))
    return examine(read_plan(selection), engine=choice, emit=emit)


def examine(plan: Plan | None, *, engine: EngineChoice, emit: Emit = silent) -> DoctorReport:
    """Check the host for what a plan needs, or, without one, for what any build needs."""
    bases = [group.base_image for group in plan.groups] if plan else []
    if plan and plan.launcher:
        bases.append(plan.launcher.base_image)
    found = checks(
        state=files.cache_directory() / "engine",
        engine=engine,
        platforms=plan.platforms if plan else (),
        bootstrap=any(isinstance(base, BootstrapBase) for base in bases),
        emit=emit,
    )
    if plan is not None and needs_no_engine(plan):
        bootstraps = any(isinstance(base, BootstrapBase) for base in bases)
        found = [_eased(check, bootstraps=bootstraps) for check in found]
    if plan is not None:
        found += _room(plan)
        found += ask_all(plan, emit=emit)
    return DoctorReport(tuple(found), plan is not None)


def _room(plan: Plan) -> list[Check]:
    """Compare what a direct build of the plan is expected to take with what is free, as far as lock and cache tell."""
    known = read_lockfile(plan.output_dir / LOCK_FILE) or Lockfile()
    prediction = Predictor(plan, known, files.cache_directory()).predict()
    found = []
    for room in disk_needs(prediction, cache=files.cache_directory(), output=plan.output_dir):
        status: Status = "unknown" if prediction.unknown else "ok"
        if room.free_bytes < room.most_bytes:
            status = "fail" if room.free_bytes < room.least_bytes else "warn"
        needs = f"the build needs at most {room.most_bytes / 1e9:.2f} GB there"
        if prediction.unknown:
            least = f"at least {room.least_bytes / 1e9:.2f} GB there, and " if room.least_bytes else ""
            needs = f"the build needs {least}an unknown amount for: {prediction.unknown_text}"
        found.append(
            Check(
                "room for the plan",
                status,
                f"{room.free_bytes / 1e9:.2f} GB free at `{room.folder}`; {needs}",
                ROOM_HINT if status in ("warn", "fail") else UNKNOWN_HINT,
            )
        )
    return found


def needs_no_engine(plan: Plan) -> bool:
    """Tell whether nothing in a plan asks for an engine by itself; what a base is like may still do so."""
    launcher = plan.launcher
    return (
        plan.config.builder != "buildah"
        and all(group.containerfile is None for group in plan.groups)
        and (launcher is None or (launcher.containerfile is None and not launcher.packages))
    )


def _eased(check: Check, *, bootstraps: bool) -> Check:
    """Return a failed check as a warning where images are assembled directly, for which it does not count."""
    needed = bootstraps and check.name == "user namespaces"
    if check.status != "fail" or needed or not (check.name in ENGINE_CHECKS or check.name.startswith("emulator ")):
        return check
    return replace(check, status="warn", detail=f"{check.detail}; images of this plan can be assembled without it")
