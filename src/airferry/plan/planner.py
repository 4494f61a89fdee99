"""Makes the plan of a configuration and a catalogue. Reads files, writes none."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from airferry.config import Config, LauncherImage
from airferry.config.models import STAGES
from airferry.errors import AirferryError, Gathering, UsageError
from airferry.host import files
from airferry.host.yaml import render_yaml
from airferry.oci.platform import Platform
from airferry.plan.catalogue import (
    Catalogue,
    StepFiles,
    WantedTarget,
    expand_targets,
    find_step,
    located,
    open_catalogue,
)
from airferry.plan.code.imports import ImportScanner
from airferry.plan.code.installs import config_installs, editable_folders, install_warnings
from airferry.plan.code.job_path import PathScanner
from airferry.plan.code.warnings import fetch_warnings
from airferry.plan.config_images import image_warnings
from airferry.plan.grouping import check_images, image_of_step, image_platforms, make_groups
from airferry.plan.locks.catalogue import find_catalogue_lock
from airferry.plan.models import GroupPlan, LauncherPlan, Plan, PlanWarning, StepPlan, Target
from airferry.plan.own_configs import OwnConfigs
from airferry.plan.step_config import StepConfigReader
from airferry.plan.step_ids import id_warnings
from airferry.plan.step_values import StepDocuments

_PREREQUISITES = {
    "discover-execution-deps": ("validate",),
    "build-execution-images": ("validate", "discover-execution-deps"),
    "save-images": ("validate", "discover-execution-deps", "build-launcher-image", "build-execution-images"),
}
_NEED_GROUPS = {"discover-execution-deps", "build-execution-images", "save-images"}
_NEED_TARGETS = _NEED_GROUPS | {"validate"}


def make_plan(
    config: Config,
    *,
    source_dir: Path | None = None,
    targets: Iterable[str] = (),
    platforms: Iterable[Platform] = (),
    stages: Iterable[str] = (),
) -> Plan:
    """Work out what a configuration means for a catalogue.

    `targets` and `stages` replace those of the file and may hold several, separated by commas; `platforms` replace
    those of all images. The result depends on the files alone, and on the host's CPU where nothing names a platform.

    Raises:
        ConfigurationError: something is missing or contradicts itself; see the functions of this package.
        UsageError: a stage that was asked for does not exist.
    """
    asked = split_choices(stages)
    chosen_stages = normalise_stages(asked or split_choices(config.effective_stages))
    if config.launcher_image is False:
        if "build-launcher-image" in asked:
            raise config.error(
                "launcher_image",
                reason="`false`: there is no launcher image to build",
                hint="remove `--stage build-launcher-image`, or describe the image",
            )
        chosen_stages = tuple(stage for stage in chosen_stages if stage != "build-launcher-image")
    chosen_platforms = tuple(platforms)
    _ = config.effective_compression  # refuses what the site's executors cannot read, whatever the stages are
    catalogue = open_catalogue(config, source_dir=source_dir)
    wanted = tuple(split_choices(targets))
    steps: tuple[StepPlan, ...] = ()
    groups: tuple[GroupPlan, ...] = ()
    if _NEED_TARGETS.intersection(chosen_stages):
        of_groups = bool(_NEED_GROUPS.intersection(chosen_stages))
        steps = _read_steps(config, catalogue, wanted, of_groups=of_groups)
    if _NEED_GROUPS.intersection(chosen_stages):
        groups = make_groups(config, steps, platforms=chosen_platforms)
    launcher = _launcher(config, chosen_platforms) if "build-launcher-image" in chosen_stages else None
    check_images(config, groups, launcher)
    return Plan(
        config=config,
        source_root=catalogue.root,
        output_dir=_output_dir(config, catalogue),
        lock_path=_lock_path(config, catalogue),
        stages=chosen_stages,
        workflow_name=config.workflow.name,
        workflow_stages=wanted or config.workflow.stages,
        steps=steps,
        groups=groups,
        launcher=launcher,
        workspace=config.source.effective_workspace,
        code_folder=_code_folder(config, catalogue),
        step_images=_step_images(steps, groups),
        warnings=_warnings(config, catalogue, steps, groups),
    )


def normalise_stages(stages: Iterable[str]) -> tuple[str, ...]:
    """Return stages with what each needs before it, in the order in which they run; all of them for none.

    Raises:
        UsageError: one does not exist.
    """
    wanted = set(stages) or set(STAGES)
    if unknown := sorted(wanted.difference(STAGES)):
        raise UsageError(
            f"unknown stage `{unknown[0]}`", hint="choose from " + ", ".join(f"`{name}`" for name in STAGES)
        )
    for stage in tuple(wanted):
        wanted.update(_PREREQUISITES.get(stage, ()))
    return tuple(stage for stage in STAGES if stage in wanted)


def render_plan(document: dict[str, Any]) -> str:
    """Return a plan's document as YAML, keys in the order in which people read them."""
    return render_yaml(document)


def write_plan(document: dict[str, Any], path: Path) -> None:
    """Write a plan's document atomically.

    Raises:
        HostError: the folder is not writable, or the disk is full.
    """
    files.ensure_directory(path.parent, shared=True)
    files.write_text(path, render_plan(document))


def split_choices(values: Iterable[str]) -> tuple[str, ...]:
    """Return what was given several times or separated by commas, each once, in that order."""
    return tuple(dict.fromkeys(item.strip() for value in values for item in value.split(",") if item.strip()))


def _read_steps(
    config: Config, catalogue: Catalogue, targets: tuple[str, ...], *, of_groups: bool
) -> tuple[StepPlan, ...]:
    """Return the steps to plan for; `of_groups`: each is to have an image. All that is wrong with any is told at once.

    Raises:
        ConfigurationError: targets, files of steps, or what configs hold.
    """
    problems = Gathering()
    expanded = expand_targets(config, catalogue, targets, problems=problems)
    if not (targets or config.workflow.stages):
        raise config.error(
            "workflow",
            "stages",
            reason="no steps selected",
            hint="list targets such as `sft/megatron_bridge:tiny`, or pass them with `--target`",
        )
    found: list[tuple[WantedTarget, StepFiles]] = []
    for wanted in expanded:
        with problems.one():
            try:
                found.append((wanted, find_step(catalogue, wanted.target)))
            except AirferryError as error:
                raise located(config, wanted.key, error) from error
            if of_groups:
                image_of_step(config, wanted.target)
    readers = _Readers(catalogue)
    named: list[Target] = []
    with problems.one():
        named = readers.own.name(step.target for _, step in found)
    steps: dict[str, StepPlan] = {}
    for target, (wanted, step) in zip(named, found, strict=False):
        with problems.one():
            # the same config in two places is one target
            written = (*(steps[target.spec].written if target.spec in steps else ()), *wanted.written)
            steps[target.spec] = replace(readers.read(target, step), written=tuple(dict.fromkeys(written)))
    problems.raise_all()
    return tuple(steps.values())


class _Readers:
    """Reads the files of steps, those that several share once."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._configs, self._scanner, self._paths = StepConfigReader(), ImportScanner(catalogue), PathScanner(catalogue)
        self.own = OwnConfigs(catalogue, self._configs)

    def read(self, target: Target, step: StepFiles) -> StepPlan:
        """Return a step as its files have it, under the name that its target got.

        Raises:
            ConfigurationError: what its files hold.
        """
        configs, path = self._configs, step.config_path
        read = configs.read(path) if path else None
        documents = StepDocuments(configs, path, environment={}) if path else None
        job_path = self._paths.job_path(self._scanner.files(step), documents)
        starts = config_installs(documents, self._catalogue)
        return StepPlan(
            target=target,
            folder=step.folder,
            step_py=step.step_py,
            step_toml=step.step_toml,
            config_path=path,
            module=step.module,
            mounts=read.mounts if read else (),
            overlays=read.overlays if read else (),
            candidates=self._scanner.candidates(step),
            container_image=read.container_image if read else None,
            job_path=replace(job_path, folders=(*job_path.folders, *editable_folders(starts))),
            start_installs=starts,
            config_files=self.own.files(target, path) if path else (),
        )


def _warnings(
    config: Config, catalogue: Catalogue, steps: tuple[StepPlan, ...], groups: tuple[GroupPlan, ...]
) -> tuple[PlanWarning, ...]:
    found = list(id_warnings(config, catalogue, steps)) if steps else []
    if groups:
        found += image_warnings(config, catalogue, steps)
        found += install_warnings(catalogue, steps, groups)
        found += fetch_warnings(config, catalogue, steps, groups)
    return tuple(found)


def _launcher(config: Config, platforms: tuple[Platform, ...]) -> LauncherPlan:
    image = config.launcher_image or LauncherImage()
    return LauncherPlan(
        base_image=image.base_image,
        platforms=image_platforms(platforms, image.platform_choice, config),
        tag=image.tag or config.source.image_name("launcher"),
        tar=image.tar,
        packages=image.packages,
        python=image.python,
        containerfile=image.containerfile,
        compression=config.effective_compression,
        env=image.env,
        requirements=image.requirements,
    )


def _code_folder(config: Config, catalogue: Catalogue) -> str:
    """Return the folder that Python finds the catalogue's packages in, where the catalogue lies in the workspace."""
    workspace = config.source.effective_workspace
    return (PurePosixPath(workspace) / catalogue.source_folder.relative_to(catalogue.root).as_posix()).as_posix()


def _output_dir(config: Config, catalogue: Catalogue) -> Path:
    chosen = config.paths.output_dir
    if chosen is None:
        return config.folder / "out"
    path = Path(os.path.normpath(catalogue.root / files.expand_home(chosen)))
    if catalogue.root.is_relative_to(path):
        raise config.error(
            "paths",
            "output_dir",
            reason=f"`{path}` contains the catalogue itself",
            hint="use a separate folder, for example `out`",
        )
    return path


def _lock_path(config: Config, catalogue: Catalogue) -> Path | None:
    if config.source.lock is None:
        return find_catalogue_lock(catalogue.root)
    path = catalogue.root / config.source.lock
    if not path.is_file():
        raise config.error(
            "source", "lock", reason=f"`{path}` is missing", hint="paths are relative to the root of the catalogue"
        )
    return path


def _step_images(steps: tuple[StepPlan, ...], groups: tuple[GroupPlan, ...]) -> dict[str, str]:
    """Return step id to image; where configs of one step differ in their images, `step:config` to image."""
    by_spec = {spec: group.tag for group in groups for spec in group.targets}
    by_step: dict[str, set[str]] = {}
    for step in steps:
        if step.target.spec in by_spec:
            by_step.setdefault(step.target.step_id, set()).add(by_spec[step.target.spec])
    result: dict[str, str] = {}
    for step in steps:
        tags = by_step.get(step.target.step_id)
        if tags:
            result[step.target.step_id if len(tags) == 1 else step.target.spec] = by_spec[step.target.spec]
    return result
