"""Writing the lock and following it: what moves is resolved into `airgap.lock.yaml`, and builds take it from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airferry.errors import ConfigurationError, UsageError
from airferry.events import Emit, Notice, silent
from airferry.host.canonical import plain_data
from airferry.near.bases.attached import pin_attached
from airferry.near.lock.covered import needed_bases, uncovered
from airferry.near.lock.resolve import Locked, Resolver
from airferry.near.planning import Selection, all_run_here, read_plan, warn_of_plan
from airferry.near.session import BuildOptions, Session, open_session
from airferry.oci.platform import parse_platform
from airferry.plan.lockfile import LOCK_FILE, Lockfile, differences, read_lockfile, write_lockfile
from airferry.plan.models import LAUNCHER, Plan, PlanWarning
from airferry.wording import near_names, shell_line


@dataclass(frozen=True, slots=True)
class LockOutcome:
    """Where the lock is, what changed in it, a line each, what the plan warns of, and the lock itself."""

    path: Path
    changes: tuple[str, ...]
    warnings: tuple[PlanWarning, ...] = ()
    lockfile: Lockfile = field(default_factory=Lockfile)

    @property
    def runs_here(self) -> bool:
        """Whether this host runs all execution images as they are, so that a build can rehearse them."""
        groups = self.lockfile.groups.values()
        return all_run_here(parse_platform(platform) for group in groups for platform in group.platforms)

    def to_document(self) -> dict[str, Any]:
        """Return the outcome as plain data, with the notes of every entry of the lock."""
        return {
            "path": str(self.path),
            "changes": list(self.changes),
            "notes": self.lockfile.noted(),
            "warnings": plain_data(self.warnings),
        }


def lock(
    selection: Selection,
    *,
    update: bool = False,
    names: Sequence[str] = (),
    options: BuildOptions | None = None,
    emit: Emit = silent,
) -> LockOutcome:
    """Resolve what moves into `airgap.lock.yaml`.

    Without `update`, what is locked stays and only what the plan has outgrown is resolved; with it, everything or what
    `names` say (bases, overlays as `URL@REF`, groups, `launcher`) is resolved again.

    Raises:
        UsageError: a name that nothing has, or names without `update`.
        AirferryError: of the family of what could not be resolved.
    """
    if names and not update:
        raise UsageError("NAME arguments require `--update`", hint=shell_line(["airferry", "lock", "--update", *names]))
    made = read_plan(selection)
    warn_of_plan(made, emit)
    path = made.output_dir / LOCK_FILE
    with open_session(made, options or BuildOptions(), emit=emit) as session:
        old = read_lockfile(path)
        if update:
            session.bases.ask_again()
        start = drop_entries(old, names, plan=made) if update and old is not None else old or Lockfile()
        new = _pinned(session, made, Resolver(session, made).resolve(start)).lockfile
        write_lockfile(new, path)
        return LockOutcome(path, tuple(differences(old, new)), made.warnings, new)


def follow_lock(session: Session, plan: Plan, *, locked: bool, update: Sequence[str] = ()) -> Locked:
    """Return what moves as the lock pins it; write the lock first if there is none and `locked` does not forbid it.

    What `update` names is resolved again, and the lock written with it.

    Raises:
        UsageError: `update` names what nothing in the lock has.
        ConfigurationError: the plan has outgrown its lock; with `locked`, there is no lock.
    """
    path, resolver = plan.output_dir / LOCK_FILE, Resolver(session, plan)
    existing = read_lockfile(path)
    if existing is None:
        if locked:
            raise ConfigurationError(
                f"there is no `{path}`, and `--locked` forbids writing it", hint="run `airferry lock`"
            )
        resolved = _pinned(session, plan, resolver.resolve(Lockfile()))
        write_lockfile(resolved.lockfile, path)
        session.emit(Notice(f"wrote {path}"))
        return resolved
    if missing := uncovered(plan, existing):
        raise ConfigurationError(
            f"{path}: the lock file does not cover " + "; ".join(missing),
            hint="run `airferry lock` with the same targets (existing pins stay), then this command again",
            missing=missing,
        )
    if not update:
        return resolver.resolve(existing)
    session.bases.ask_again()
    resolved = _pinned(session, plan, resolver.resolve(drop_entries(existing, update, plan=plan)))
    write_lockfile(resolved.lockfile, path)
    for line in differences(existing, resolved.lockfile) or ["nothing changed"]:
        session.emit(Notice(f"lock: {line}"))
    return resolved


def _pinned(session: Session, plan: Plan, resolved: Locked) -> Locked:
    """Return a lock with what belongs to the bases that are carried as they came, for which registries are asked."""
    pinned = pin_attached(plan, resolved.lockfile, session.bases, jobs=session.jobs, emit=session.emit)
    return replace(resolved, lockfile=pinned)


def drop_entries(lockfile: Lockfile, names: Sequence[str], *, plan: Plan) -> Lockfile:
    """Return a lock without what is to be resolved again: the named bases, overlays and groups, or everything.

    A name under `execution_images` stands for the base of that image, as a bootstrapped base has no short name itself.

    Raises:
        UsageError: nothing has such a name.
    """
    if not names:
        return Lockfile()
    known = {*lockfile.bases, *lockfile.overlays, *lockfile.groups, LAUNCHER}
    known |= {*needed_bases(plan), *(overlay.key for overlay in plan.overlays), *(group.name for group in plan.groups)}
    bases = {name: group.base_image.key for group in plan.groups for name in group.image_names}
    choices = sorted({*known, *bases})
    for name in names:
        if name not in choices:
            near = near_names(name, choices, most=3, cutoff=0.3)
            raise UsageError(
                f"the lock file has no entry `{name}`",
                hint="it holds " + ", ".join(f"`{item}`" for item in near or choices[:10]),
            )
    chosen = {name if name in known else bases[name] for name in names}
    return Lockfile(
        bases={key: value for key, value in lockfile.bases.items() if key not in chosen},
        overlays={key: value for key, value in lockfile.overlays.items() if key not in chosen},
        groups={key: value for key, value in lockfile.groups.items() if key not in chosen},
        launcher=None if LAUNCHER in chosen else lockfile.launcher,
    )
