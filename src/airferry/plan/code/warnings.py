"""What the steps of a plan fetch when they start, as warnings with a way out for their images."""

from __future__ import annotations

from collections.abc import Iterable

from airferry.config import Config
from airferry.plan.catalogue import Catalogue, StepFiles
from airferry.plan.code.fetches import StartFetch, StartFetches
from airferry.plan.models import GroupPlan, PlanWarning, StepPlan

_Key = tuple[str, str, bool]


def fetch_warnings(
    config: Config, catalogue: Catalogue, steps: Iterable[StepPlan], groups: Iterable[GroupPlan]
) -> tuple[PlanWarning, ...]:
    """Return a warning for each thing that the steps' code fetches and that their image does not hold.

    One warning stands for all places that say the same, and for all targets that reach them.
    """
    fetches = StartFetches(catalogue)
    baked = {spec: {plain_url(item.url) for item in group.overlays} for group in groups for spec in group.targets}
    found: dict[_Key, tuple[StartFetch, dict[str, None], dict[str, None]]] = {}
    images: dict[_Key, dict[str, None]] = {}
    for step in steps:
        image = config.step_execution_images[step.target.step_id].execution_image
        for item in fetches.of(_files_of(step)):
            if item.kind == "git" and plain_url(item.what) in baked.get(step.target.spec, ()):
                continue
            key = (item.kind, item.text, item.certain)
            _, places, targets = found.setdefault(key, (item, {}, {}))
            places[f"{catalogue.relative(item.file)}:{item.line}"] = targets[step.target.spec] = None
            images.setdefault(key, {})[image] = None
    warnings = [
        _warning(item, tuple(places), targets, images=images[key]) for key, (item, places, targets) in found.items()
    ]
    return tuple(sorted(warnings, key=lambda warning: not warning.certain))


def fetch_fix(fetch: StartFetch, *, image: str) -> str:
    """Return what to change on this side so that the step need not fetch something."""
    if fetch.kind == "git" and fetch.how != "git clone":
        return f"leave it switched off, and bake the commit in that is wanted: `overlays:` of {image}"
    if fetch.kind == "git":
        url = fetch.what or "URL"
        return f"bake it in: `overlays: [git+{url}@REF,/FOLDER]` of {image}, with the folder that the code reads"
    if fetch.kind == "install" and not fetch.certain:
        return f"leave it switched off, and bake in what it would bring: `required_imports:` or `overlays:` of {image}"
    if fetch.kind == "install" and "pip" in fetch.how:
        return f"bake it in: name its modules under `required_imports:` of {image}"
    if fetch.kind == "install":
        return f"bake it in: a `containerfile:` for {image}, or a base that has it"
    if fetch.kind == "download" and not fetch.certain:
        return "see that its config leads to no address outside, and stage what it would bring on storage (`assets:`)"
    return "stage it on storage (`assets:`), and let the config name that folder"


def plain_url(url: str) -> str:
    """Return a Git URL so that its spellings with and without `.git` are equal."""
    return url.removesuffix("/").removesuffix(".git")


def _warning(
    fetch: StartFetch, places: tuple[str, ...], targets: Iterable[str], *, images: Iterable[str]
) -> PlanWarning:
    return PlanWarning(
        kind="fetch",
        place=places[0],
        message=fetch.text,
        hint=fetch_fix(fetch, image=" and ".join(f"`{image}`" for image in images)),
        targets=tuple(targets),
        also=tuple(places[1:]),
        certain=fetch.certain,
    )


def _files_of(step: StepPlan) -> StepFiles:
    return StepFiles(
        target=step.target,
        folder=step.folder,
        step_py=step.step_py,
        step_toml=step.step_toml,
        config_path=step.config_path,
        module=step.module,
    )
