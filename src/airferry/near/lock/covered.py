"""What a plan needs of a lock, and what of that a lock does not cover. Needs no network and no engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from airferry.config import BaseSpec
from airferry.host.canonical import inputs_digest
from airferry.near.lock.job_modules import path_inputs, steps_of
from airferry.oci.platform import Platform
from airferry.plan.lockfile import LockedBase, LockedPlatform, Lockfile, group_digest
from airferry.plan.models import LAUNCHER, GroupPlan, LauncherPlan, Plan

PROBE_VERSION = 3  # part of what a lock entry depends on: raise it when the same base may give another answer


def catalogue_digest(plan: Plan) -> str | None:
    """Return the SHA-256 of the catalogue's own lock, None where it has none."""
    return hashlib.sha256(plan.lock_path.read_bytes()).hexdigest() if plan.lock_path else None


def uncovered(plan: Plan, existing: Lockfile) -> list[str]:
    """Return what of the plan a lock does not cover, a line each. Needs no network and no engine."""
    lines = []
    for base, platforms in needed_bases(plan).values():
        known = existing.bases.get(base.key)
        absent = [str(platform) for platform in platforms if known is None or str(platform) not in known.platforms]
        if absent:
            lines.append(f"base `{base.key}` for {', '.join(absent)}")
    lines += [f"overlay `{overlay.key}`" for overlay in plan.overlays if overlay.key not in existing.overlays]
    if lines:
        return lines
    commits = {key: overlay.commit for key, overlay in existing.overlays.items()}
    for name, platform, known_environment, inputs, _image in wanted_environments(
        plan, existing, existing.bases, commits
    ):
        if known_environment is None or known_environment.inputs != inputs:
            lines.append(f"what `{name}` needs on {platform}")
    return lines


def wanted_environments(
    plan: Plan,
    existing: Lockfile,
    bases: Mapping[str, LockedBase],
    commits: Mapping[str, str],
) -> Iterable[tuple[str, Platform, LockedPlatform | None, str, GroupPlan | LauncherPlan]]:
    """Yield each group and platform, then the launcher's, with what the lock says and what it depends on."""
    catalogue = catalogue_digest(plan)
    for group in plan.groups:
        known = existing.groups.get(group.name)
        for platform in group.platforms:
            inputs = {
                "probe": PROBE_VERSION,
                "base": bases[group.base_image.key].platforms[str(platform)].manifest,
                "group": group_digest(group),
                "catalogue_lock": catalogue,
                "overlays": [[commits[overlay.key], overlay.target] for overlay in group.overlays],
            }
            if paths := path_inputs(steps_of(plan, group)):
                inputs["paths"] = paths
            environment = known.platforms.get(str(platform)) if known else None
            yield group.name, platform, environment, inputs_digest(inputs), group
    launcher = plan.launcher
    for platform in launcher.platforms if launcher else ():
        assert launcher is not None
        inputs = {
            "probe": PROBE_VERSION,
            "base": bases[launcher.base_image.key].platforms[str(platform)].manifest,
            "python": launcher.python,
            "catalogue_lock": catalogue,
            **({"requirements": sorted(launcher.requirements.items())} if launcher.requirements else {}),
        }
        if launcher.env:
            inputs["env"] = dict(launcher.env)
        environment = existing.launcher.platforms.get(str(platform)) if existing.launcher else None
        yield LAUNCHER, platform, environment, inputs_digest(inputs), launcher


def needed_bases(plan: Plan) -> dict[str, tuple[BaseSpec, tuple[Platform, ...]]]:
    """Return every base of a plan under its key, with all platforms that it is needed for, sorted."""
    found: dict[str, tuple[BaseSpec, set[Platform]]] = {}
    images: list[GroupPlan | LauncherPlan] = [*plan.groups, *([plan.launcher] if plan.launcher else [])]
    for image in images:
        _base, platforms = found.setdefault(image.base_image.key, (image.base_image, set()))
        platforms.update(image.platforms)
    return {key: (base, tuple(sorted(platforms))) for key, (base, platforms) in found.items()}
