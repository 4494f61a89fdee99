"""Rules about Python's path of a job: what its image puts there, and what takes that away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from airferry.jobs.context import StepContext
from airferry.jobs.findings import Finding, Level
from airferry.jobs.settings import override
from airferry.plan.code.job_path import PYTHONPATH, PYTHONPATH_KEY


def python_path_findings(context: StepContext, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield that a profile sets `PYTHONPATH` in place of the image's, and what of that is lost.

    `environment` are the image's variables. A config that sets it was judged on the near side, by the lock. Executors
    give a job the variables of its profile whatever its image sets (for Slurm by pyxis' `--container-env`).
    """
    if context.image is None or context.values.get(*PYTHONPATH_KEY) is not None:
        return
    written = context.environment.get(PYTHONPATH)
    if written is None:
        return
    kept = _folders(written)
    lost = [folder for folder in _folders(environment.get(PYTHONPATH, "")) if folder not in kept]
    if not lost:
        return
    named = ", ".join(f"`{folder}`" for folder in lost)
    text = f"takes the place of the image's, which has {named} as well"
    fix = override(f"run.env.env_vars.{PYTHONPATH}", ":".join([*lost, *kept]))
    level: Level = "block" if any(_is_baked(context, folder) for folder in lost) else "warn"
    if context.profile is not None and PYTHONPATH in (context.profile.values.get("env_vars") or {}):
        key = ("env_vars", PYTHONPATH)
        yield context.in_profile("variable", level, text, key=key, value=written, fix=fix)
    else:
        text = f"`{PYTHONPATH}` of the site's profile {text}"
        yield context.general("variable", level, text, key=".".join(PYTHONPATH_KEY), fix=fix)


def _folders(text: str) -> list[str]:
    return [part.rstrip("/") for part in text.split(":") if part.strip("/") and "${" not in part]


def _is_baked(context: StepContext, folder: str) -> bool:
    """Tell whether a folder is in a Git checkout of the image."""
    overlays = context.image.overlays if context.image is not None else ()
    targets = [overlay.target.rstrip("/") for overlay in overlays]
    return any(folder == target or folder.startswith(f"{target}/") for target in targets)
