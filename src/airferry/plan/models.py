"""What a plan consists of. Frozen values; nothing here reads or writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from airferry.config import BaseSpec, CompressionChoice, Config, RegistryChoice
from airferry.defaults import PERSISTENT_ASSETS_POLICY
from airferry.host.canonical import plain_data
from airferry.oci.platform import Platform
from airferry.plan.code.commands import StartInstall

PLAN_SCHEMA_VERSION = 1
LAUNCHER = "launcher"  # the name of the launcher image, among those of the groups
Origin = Literal["required", "step", "catalogue", "reported"]
WarningKind = Literal["fetch", "image", "install", "name", "untracked"]


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A step of the catalogue, with one of its configs, with a customer's own one, or with none.

    `path` is where a customer's own config lies. Its `config` is the name that it travels under; until that is chosen,
    the path as written.
    """

    step_id: str
    config: str | None = None
    path: Path | None = field(default=None, compare=False)

    @property
    def spec(self) -> str:
        """`step_id:config`, or a bare `step_id`."""
        return f"{self.step_id}:{self.config}" if self.config else self.step_id


@dataclass(frozen=True, slots=True)
class Overlay:
    """A Git checkout that is baked into an image at `target`."""

    repo: str
    url: str
    ref: str
    target: str

    @property
    def key(self) -> str:
        """The name of the checkout in the lock file: `url@ref`."""
        return f"{self.url}@{self.ref}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A module that steps may need and the base may lack.

    `required` ones are named by the image, `step` ones are imported by a step's own files, `catalogue` ones by
    modules that these load; `reported` ones are imported only under a condition, and are never installed.
    """

    module: str
    origin: Origin
    file: str
    line: int

    @property
    def place(self) -> str:
        """`file:line` of the import or of the key."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file that a step's config consists of: its path from the catalogue's root as it travels, and where it is.

    `data` is there where what travels differs from the source: entries of `defaults:` that a new place asks for.
    """

    name: str
    source: Path
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ConfigText:
    """A text of a step's config, and the file and line that say it."""

    text: str
    file: Path
    line: int


@dataclass(frozen=True, slots=True)
class PlanWarning:
    """Something that will go wrong inside and is cheap to change now.

    `place` is `file:line`, relative to the catalogue where it is in it; `also` are other places that say the same.
    `targets` are the specs of the targets that it concerns, `certain` is False where it depends on a config's values.
    """

    kind: WarningKind
    place: str
    message: str
    hint: str
    targets: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    certain: bool = True


@dataclass(frozen=True, slots=True)
class JobPath:
    """Folders that a job's Python looks into because its step says so.

    `variable` is the `PYTHONPATH` that its config sets, at `variable_place`, which takes the place of the image's;
    None where it sets none. `folders` are absolute ones that its code adds, `unknown` the places, as `file:line`, where
    it adds what only running it would tell.
    """

    variable: str | None = None
    variable_place: str = ""
    folders: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StartKey:
    """A key of a config or profile that installs something when a job starts.

    `place` is `file:line`; `of_job` says whether it is of the very jobs that the config is for.
    """

    key: str
    place: str
    installs: tuple[StartInstall, ...]
    of_job: bool = False


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A target whose files were found and read. `written` are the words that it was asked for with.

    `config_files` are the config and what it inherits; the config is the last.
    """

    target: Target
    folder: Path
    step_py: Path
    step_toml: Path
    config_path: Path | None
    module: str
    mounts: tuple[Any, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    container_image: ConfigText | None = None
    job_path: JobPath = JobPath()
    start_installs: tuple[StartKey, ...] = ()
    config_files: tuple[ConfigFile, ...] = ()
    written: tuple[str, ...] = ()

    @property
    def config_name(self) -> str | None:
        """The config's path from the catalogue's root, as it travels."""
        return self.config_files[-1].name if self.config_files else None


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """The targets that share a base image and overlays, and the execution image that they will run in.

    `steps` are step ids, `targets` are specs, both in the order of the expansion. `tar` is relative to the output
    folder.
    """

    name: str
    image_names: tuple[str, ...]
    base_image: BaseSpec
    platforms: tuple[Platform, ...]
    tag: str
    tar: str
    steps: tuple[str, ...]
    targets: tuple[str, ...]
    pip_no_deps: bool
    required_imports: tuple[str, ...]
    requirements: Mapping[str, str]
    python: str | None
    containerfile: Path | None
    overlays: tuple[Overlay, ...]
    candidates: tuple[Candidate, ...]
    compression: CompressionChoice
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LauncherPlan:
    """The image that carries the catalogue. `tar` is relative to the output folder."""

    base_image: BaseSpec
    platforms: tuple[Platform, ...]
    tag: str
    tar: str
    packages: tuple[str, ...]
    python: str | None
    containerfile: Path | None
    compression: CompressionChoice
    env: Mapping[str, str] = field(default_factory=dict)
    requirements: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is going to be locked, built and sealed.

    `stages` are in the order in which they run. `groups` are empty and `launcher` is None where no stage needs them.
    `workspace` is where the catalogue lies in images, `code_folder` the folder in it that is on Python's path.
    `warnings` keep nothing from being built.
    """

    config: Config
    source_root: Path
    output_dir: Path
    lock_path: Path | None
    stages: tuple[str, ...]
    workflow_name: str | None
    workflow_stages: tuple[str, ...]
    steps: tuple[StepPlan, ...]
    groups: tuple[GroupPlan, ...]
    launcher: LauncherPlan | None
    workspace: str
    code_folder: str
    step_images: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[PlanWarning, ...] = ()

    @property
    def compression(self) -> CompressionChoice:
        """How layers are compressed."""
        return self.config.effective_compression

    @property
    def archives(self) -> bool:
        """Whether an OCI archive an image is written as well."""
        return self.config.archives

    @property
    def registry(self) -> RegistryChoice:
        """The private registry of the far side."""
        return self.config.registry

    @property
    def platforms(self) -> tuple[Platform, ...]:
        """Every platform that any image is built for, sorted."""
        images: list[GroupPlan | LauncherPlan] = [*self.groups, *([self.launcher] if self.launcher else [])]
        return tuple(sorted({platform for image in images for platform in image.platforms}))

    @property
    def overlays(self) -> tuple[Overlay, ...]:
        """Every overlay of every group, once each, in the order of the groups."""
        return tuple(dict.fromkeys(overlay for group in self.groups for overlay in group.overlays))

    @property
    def own_names(self) -> dict[str, str]:
        """The targets with own configs: how they were asked for, with a path, and what they are called."""
        return {text: step.target.spec for step in self.steps if step.target.path is not None for text in step.written}

    @property
    def config_files(self) -> tuple[ConfigFile, ...]:
        """Every file that the steps' configs consist of, once each, by name."""
        found = {item.name: item for step in self.steps for item in step.config_files}
        return tuple(found[name] for name in sorted(found))

    def to_document(self) -> dict[str, Any]:
        """Return the plan in the manifest's shape, without what only a build knows. Paths are relative."""
        names = self.own_names
        document: dict[str, Any] = {
            "schema_version": PLAN_SCHEMA_VERSION,
            "workflow": {"stages": list(dict.fromkeys(names.get(text, text) for text in self.workflow_stages))},
            "build_stages": list(self.stages),
            "output_dir": ".",
            "targets": [self._target_document(step) for step in self.steps],
            "execution_groups": [_group_document(group) for group in self.groups],
            "persistent_assets": {
                "policy": PERSISTENT_ASSETS_POLICY,
                "mounts_from_configs": _distinct(mount for step in self.steps for mount in step.mounts),
                "baked_repo_overlays": plain_data(self.overlays),
            },
            "step_execution_images": dict(self.step_images),
        }
        if self.workflow_name:
            document["workflow"]["name"] = self.workflow_name
        if self.launcher is not None:
            document["launcher_image"] = _launcher_document(self.launcher)
        return document

    def _target_document(self, step: StepPlan) -> dict[str, Any]:
        return {
            "target": step.target.spec,
            "step_py": step.step_py.relative_to(self.source_root).as_posix(),
            "step_toml": step.step_toml.relative_to(self.source_root).as_posix(),
            "config": step.config_name,
            "module": step.module,
        }


def base_document(base: BaseSpec) -> Any:
    """Return a base image as documents hold it: text as written, or the mapping."""
    if base.key.startswith("{"):
        return {"bootstrap": base.model_dump(mode="json", exclude_unset=True)}
    return base.key


def _platform_document(platforms: tuple[Platform, ...]) -> dict[str, Any]:
    return {
        "platform": str(platforms[0]) if len(platforms) == 1 else None,
        "platforms": [str(platform) for platform in platforms],
    }


def _group_document(group: GroupPlan) -> dict[str, Any]:
    wanted = [candidate for candidate in group.candidates if candidate.origin != "reported"]
    reported = [candidate for candidate in group.candidates if candidate.origin == "reported"]
    return {
        "name": group.name,
        "image_names": list(group.image_names),
        "base_image": base_document(group.base_image),
        **_platform_document(group.platforms),
        "tag": group.tag,
        "selected_image": group.tag,
        "tar": group.tar,
        "steps": list(group.steps),
        "targets": list(group.targets),
        "pip_no_deps": group.pip_no_deps,
        "python": group.python,
        "env": dict(sorted(group.env.items())),
        "required_imports": list(group.required_imports),
        "candidate_imports": sorted(candidate.module for candidate in wanted),
        "conditional_imports": sorted(candidate.module for candidate in reported),
        "requirements_by_module": dict(sorted(group.requirements.items())),
        "repo_overlays": plain_data(group.overlays),
    }


def _launcher_document(launcher: LauncherPlan) -> dict[str, Any]:
    return {
        "base_image": base_document(launcher.base_image),
        **_platform_document(launcher.platforms),
        "tag": launcher.tag,
        "tar": launcher.tar,
        "packages": list(launcher.packages),
        "python": launcher.python,
        **({"requirements_by_module": dict(sorted(launcher.requirements.items()))} if launcher.requirements else {}),
        "env": dict(sorted(launcher.env.items())),
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Return values in their order, each once; mounts may be mappings, which no set takes."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
