"""The models of `airgap.yaml`: frozen, strict, and able to say what an unknown key was meant to be.

A held `Config` is a valid one as far as the file alone can tell; whether its steps exist is the plan's business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PrivateAttr,
    StrictBool,
    StrictInt,
    Tag,
    field_validator,
    model_validator,
)

from airferry.config.assets import AssetChoice, AssetName
from airferry.config.bases import BaseSpec, RegistryBase
from airferry.config.document import YamlDocument
from airferry.config.environment import ImageEnv
from airferry.config.fields import (
    ArchiveName,
    ContainerPath,
    DebianPackage,
    FileBeside,
    ImageName,
    ImageTag,
    ModuleName,
    PlatformField,
    RequirementText,
    StrictModel,
    Text,
    check_git_url,
    parse_overlay,
)
from airferry.config.rehearsal import RehearsalChoice
from airferry.config.site import SiteProfile
from airferry.config.submit import NEMOTRON_SUBMIT, SubmitText
from airferry.defaults import DEFAULT_STEPS
from airferry.errors import ConfigurationError
from airferry.oci.platform import Platform

STAGES = (
    "validate",
    "discover-execution-deps",
    "build-launcher-image",
    "build-execution-images",
    "save-images",
)
NEMOTRON_PACKAGE = "nemotron.steps"
DEFAULT_LAUNCHER_TAR = "launcher-image.tar"
DEFAULT_LAUNCHER_BASE = "python:3.12-slim"


class CompressionChoice(StrictModel):
    """How the layers of all images are compressed."""

    kind: Annotated[
        Literal["zstd", "gzip", "preserve"],
        Field(description="`gzip` for runtimes that cannot read zstd, `preserve` to keep the base's own blobs."),
    ] = "zstd"
    level: Annotated[StrictInt | None, Field(description="zstd 1 to 22, gzip 1 to 9.")] = None
    long: Annotated[
        StrictBool, Field(description="zstd only: find repetitions within 128 MiB; every reader needs that memory.")
    ] = False

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        return {"kind": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _check_level(self) -> CompressionChoice:
        highest = {"zstd": 22, "gzip": 9}.get(self.kind)
        if self.level is not None and highest is None:
            raise ValueError(f"`{self.kind}` takes no level")
        if self.level is not None and highest is not None and not 1 <= self.level <= highest:
            raise ValueError(f"level {self.level} is out of range, {self.kind} takes 1 to {highest}")
        if self.long and self.kind != "zstd":
            raise ValueError(f"`{self.kind}` has no `long`, only zstd has")
        return self


class OverlaySpec(StrictModel):
    """A Git checkout to bake into an image: `{url, ref, target}` or `git+URL@REF,TARGET`."""

    url: Annotated[Text, Field(description="What `git clone` takes.")]
    ref: Annotated[Text, Field(description="Branch, tag or commit; the lock file pins it to a commit.")]
    target: Annotated[ContainerPath, Field(description="Absolute path in the image; what is there is replaced.")]

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        if isinstance(data, str):
            url, ref, target = parse_overlay(data)
            return {"url": url, "ref": ref, "target": target}
        return data

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        return check_git_url(value)


def _one_platform_key(model: LauncherImage | ExecutionImage) -> None:
    if model.platform is not None and model.platforms is not None:
        raise ValueError("`platform` and `platforms` exclude each other")


class LauncherImage(StrictModel):
    """The image that carries the catalogue and submits steps; it does not train."""

    base_image: BaseSpec = RegistryBase(reference=DEFAULT_LAUNCHER_BASE)
    tag: Annotated[ImageTag | None, Field(description="`<prefix>-launcher-airgap:latest` by default.")] = None
    tar: Annotated[ArchiveName, Field(description="Archive name, used with `archives: true`.")] = DEFAULT_LAUNCHER_TAR
    platform: Annotated[PlatformField | None, Field(description="The same as a list of one in `platforms`.")] = None
    platforms: Annotated[
        tuple[PlatformField, ...] | None, Field(min_length=1, description="What the image is built for.")
    ] = None
    packages: Annotated[
        tuple[DebianPackage, ...], Field(description="Debian packages to install where the base lacks them.")
    ] = ("git", "ca-certificates")
    python: Annotated[Text | None, Field(description="Interpreter in the base; `python`, then `python3`.")] = None
    env: ImageEnv = Field(default_factory=dict, description="Variables of the image, over the base's and airferry's.")
    requirements: dict[ModuleName, RequirementText] = Field(
        default_factory=dict, description="Module to requirement, in place of what the catalogue's lock names."
    )
    containerfile: Annotated[
        FileBeside | None,
        Field(description="A Containerfile to use instead of the shipped one, relative to this file."),
    ] = None

    @field_validator("env")
    @classmethod
    def _check_env(cls, value: dict[str, str]) -> dict[str, str]:
        if "PYTHONPATH" in value and "${PYTHONPATH}" not in value["PYTHONPATH"]:
            raise ValueError(
                "`PYTHONPATH` without `${PYTHONPATH}` drops the catalogue; write for example `/opt/x:${PYTHONPATH}`"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> LauncherImage:
        _one_platform_key(self)
        return self

    @property
    def platform_choice(self) -> tuple[Platform, ...]:
        """The platforms that this image asks for, empty where it leaves the choice to others."""
        return self.platforms or ((self.platform,) if self.platform else ())


LauncherChoice = Annotated[
    Annotated[LauncherImage, Tag("image")] | Annotated[Literal[False], Tag("none")],
    Discriminator(lambda value: "none" if isinstance(value, bool) else "image"),
]


class ExecutionImage(StrictModel):
    """An image that steps run in."""

    base_image: BaseSpec
    tag: Annotated[ImageTag | None, Field(description="`<prefix>-execution-<name>:airgap` by default.")] = None
    tar: Annotated[ArchiveName | None, Field(description="Archive name, used with `archives: true`.")] = None
    platform: Annotated[PlatformField | None, Field(description="The same as a list of one in `platforms`.")] = None
    platforms: Annotated[
        tuple[PlatformField, ...] | None, Field(min_length=1, description="What the image is built for.")
    ] = None
    required_imports: Annotated[
        tuple[ModuleName, ...], Field(description="Modules that must be there in any case.")
    ] = ()
    pip_no_deps: Annotated[
        StrictBool, Field(description="Keep what the base has, even where an addition asks for another version.")
    ] = True
    overlays: Annotated[
        tuple[OverlaySpec, ...], Field(description="Git checkouts that steps would otherwise clone at start.")
    ] = ()
    requirements: dict[ModuleName, RequirementText] = Field(
        default_factory=dict, description="Module to requirement, where no lock file names it."
    )
    python: Annotated[Text | None, Field(description="Interpreter in the base, for example in a venv.")] = None
    env: ImageEnv = Field(
        default_factory=dict,
        description="Variables of the image, over the base's, for example `PYTHONPATH: /opt/Curator`.",
    )
    containerfile: Annotated[
        FileBeside | None,
        Field(description="A Containerfile to use instead of the shipped one, relative to this file."),
    ] = None

    @model_validator(mode="after")
    def _check(self) -> ExecutionImage:
        _one_platform_key(self)
        return self

    @property
    def platform_choice(self) -> tuple[Platform, ...]:
        """The platforms that this image asks for, empty where it leaves the choice to others."""
        return self.platforms or ((self.platform,) if self.platform else ())


PythonVersion = Annotated[str, Field(pattern=r"^3\.1[1-9]$")]
Dependencies = dict[str, tuple[Text, ...]]


class Workflow(StrictModel):
    """The steps to carry."""

    name: Annotated[str | None, Field(description="Name of the plan, for people.")] = None
    stages: Annotated[tuple[Text, ...], Field(description="Targets: `step/id:config`, or a bare `step/id`.")] = ()
    dependencies: Annotated[Dependencies | None, Field(description="As the top-level key, which wins.")] = None


class Paths(StrictModel):
    """Where things go."""

    output_dir: Annotated[
        Path | None, Field(description="Relative to the catalogue's root; `out` next to this file by default.")
    ] = None


class SourceSettings(StrictModel):
    """Where the catalogue is, and what it is called: Nemotron's words are defaults for Nemotron's catalogue alone."""

    root: Annotated[Path | None, Field(description="Root of the catalogue's repository, relative to this file.")] = None
    steps: Annotated[Text, Field(description="Folder of the steps, relative to the root.")] = DEFAULT_STEPS
    package: Annotated[ModuleName | None, Field(description="Python package of that folder.")] = None
    lock: Annotated[
        Path | None, Field(description="Lock file: `uv.lock`, `pylock.toml` or a hash-pinned `requirements.txt`.")
    ] = None

    workspace: Annotated[
        ContainerPath | None, Field(description="Where the catalogue lies in the launcher image and in rehearsals.")
    ] = None
    prefix: Annotated[
        str | None,
        Field(
            pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$",
            max_length=60,
            description="What names of images without `tag` begin with; the package's first part by default.",
        ),
    ] = None
    submit: Annotated[
        SubmitText | None,
        Field(description="The command that submits a step, with `{step}`, `{config}`, `{profile}` and `{overrides}`."),
    ] = None

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("expected a folder inside the catalogue's root")
        return value

    @property
    def steps_package(self) -> str:
        """The Python package of the steps folder: as written, else its path below `src`."""
        if self.package:
            return self.package
        parts = PurePosixPath(self.steps).parts
        return ".".join(parts[1:] if parts[0] == "src" and len(parts) > 1 else parts)

    @property
    def is_nemotron(self) -> bool:
        """Whether the catalogue is Nemotron's or a fork of it."""
        return self.steps_package == NEMOTRON_PACKAGE

    @property
    def effective_workspace(self) -> str:
        """Where the catalogue lies in images."""
        return (self.workspace or ("/workspace/Nemotron" if self.is_nemotron else "/workspace/catalogue")).rstrip("/")

    @property
    def carried_submit(self) -> str | None:
        """The command that submits a step, as a bundle says it: None for Nemotron's own, empty if none is known."""
        if self.submit == NEMOTRON_SUBMIT or (self.submit is None and self.is_nemotron):
            return None
        return self.submit or ""

    def image_name(self, kind: Literal["launcher", "execution", "joined"], name: str = "") -> str:
        """Return the name of an image that has no `tag`: the launcher, the image of one name, or that of several."""
        if self.prefix is None and self.is_nemotron:
            prefix = "nemotron" if kind == "execution" else "nemotron-customizer"
        else:
            package = self.steps_package.partition(".")[0].lower()
            prefix = self.prefix or re.sub(r"[^a-z0-9]+", "-", package).strip("-") or "catalogue"
        forms = {
            "launcher": f"{prefix}-launcher-airgap:latest",
            "execution": f"{prefix}-execution-{name}:airgap",
            "joined": f"{prefix}-{name}-airgap:latest",
        }
        return forms[kind]


class StepImage(StrictModel):
    """The mapping form of an entry of `step_execution_images`."""

    execution_image: ImageName

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        return {"execution_image": data} if isinstance(data, str) else data


class LoaderChoice(StrictModel):
    """Airferry itself in the bundle, for a far side that has no way to get it."""

    pythons: Annotated[
        tuple[PythonVersion, ...], Field(min_length=1, description="Python versions of the far side's machines.")
    ] = ("3.11",)
    platforms: Annotated[
        tuple[PlatformField, ...], Field(description="Their platforms; all that images are built for by default.")
    ] = ()


class RegistryChoice(StrictModel):
    """The private registry of the far side."""

    to: Annotated[Text | None, Field(description="`HOST:PORT/PREFIX` that `load` pushes to.")] = None
    plain_http: Annotated[StrictBool, Field(description="Use plain HTTP; not needed for localhost.")] = False


class LimitsChoice(StrictModel):
    """What a layer of a base may be at most. Nothing sane is larger; a decompression bomb is."""

    layer_bytes: Annotated[int, Field(strict=True, ge=1, description="Bytes that a layer unpacks to.")] = 1 << 40
    layer_entries: Annotated[
        int, Field(strict=True, ge=1, description="Files, folders and links that a layer, and an image, has.")
    ] = 2_000_000


def _check_stage(value: str) -> str:
    for item in value.split(","):
        if item.strip() and item.strip() not in STAGES:
            raise ValueError(f"`{item.strip()}` is not a stage; choose " + ", ".join(f"`{name}`" for name in STAGES))
    return value


StageName = Annotated[str, AfterValidator(_check_stage)]


class Config(StrictModel):
    """The whole of `airgap.yaml`."""

    workflow: Annotated[Workflow, Field(description="The steps to carry.")] = Workflow()
    build_stages: Annotated[tuple[StageName, ...], Field(description="What `build` does; all of it by default.")] = ()
    stages: Annotated[tuple[StageName, ...], Field(description="Another name of `build_stages`, which wins.")] = ()
    paths: Paths = Paths()
    launcher_image: Annotated[
        LauncherChoice | None, Field(description="The image that carries the catalogue; `false` for none.")
    ] = None
    dependencies: Dependencies = Field(
        default_factory=dict, description="Step id to the targets that must be carried with it, and come before it."
    )
    step_execution_images: dict[str, StepImage] = Field(
        default_factory=dict, description="Step id to the name of its execution image."
    )
    execution_images: dict[ImageName, ExecutionImage] = Field(
        default_factory=dict, description="Execution images by name; only those needed are built."
    )
    platforms: Annotated[
        tuple[PlatformField, ...], Field(description="What images are built for unless they say it themselves.")
    ] = ()
    source: SourceSettings = SourceSettings()
    compression: CompressionChoice = CompressionChoice()
    docker_twin: Annotated[
        Literal["auto"] | StrictBool,
        Field(
            description="A Docker manifest list next to each image, for enroot and registries that hide OCI indexes "
            "from it (docker-registry 2.x); `auto` makes them where `site` names the executor `slurm-pyxis`."
        ),
    ] = "auto"
    archives: Annotated[StrictBool, Field(description="Write an OCI archive an image as well.")] = False
    bases: Annotated[
        Literal["omit", "include", "platforms"],
        Field(
            description="`include` carries the base images of registries as well, whole and untouched, for mirrors; "
            "`platforms` only what the plan's platforms need of them."
        ),
    ] = "omit"
    builder: Annotated[Literal["auto", "buildah", "direct"], Field(description="How images are assembled.")] = "auto"
    limits: Annotated[LimitsChoice, Field(description="What a layer of a base may be at most.")] = LimitsChoice()
    rehearsal: Annotated[RehearsalChoice, Field(description="How steps are tried before the bundle is sealed.")] = (
        RehearsalChoice()
    )
    assets: dict[AssetName, AssetChoice] = Field(
        default_factory=dict, description="Models and data that stay on persistent storage, by name."
    )
    site: Annotated[
        SiteProfile | None, Field(description="Description of the far side, or the path of a file with it.")
    ] = None
    registry: RegistryChoice = RegistryChoice()
    loader: Annotated[
        LoaderChoice | Literal[False], Field(description="Airferry itself in the bundle; `false` leaves it out.")
    ] = LoaderChoice()

    _document: YamlDocument = PrivateAttr(default=YamlDocument(Path("airgap.yaml"), {}, {}))

    @property
    def path(self) -> Path:
        """The file that this was read from."""
        return self._document.path

    def line(self, *key: str | int) -> int:
        """Return the line of a key, or of the nearest parent that is there."""
        return self._document.line(key)

    def error(self, *key: str | int, reason: str, hint: str | None = None) -> ConfigurationError:
        """Return the error for a key of the file, as `file:line: key: reason`."""
        return self._document.error(key, reason, hint=hint)

    @property
    def effective_compression(self) -> CompressionChoice:
        """The compression that counts: as written, else gzip where the site's executors ask for it.

        Raises:
            ConfigurationError: zstd is written, and an executor of the site cannot read it.
        """
        unable = self.site.without_zstd if self.site else ()
        if not unable or self.compression.kind != "zstd":
            return self.compression
        if "compression" in self.model_fields_set:
            names = ", ".join(f"`{executor}`" for executor in unable)
            raise self.error(
                "compression",
                reason=f"{names} of the site cannot read zstd",
                hint="set `compression: gzip`, or remove the key: gzip is then the default",
            )
        return CompressionChoice(kind="gzip")

    @property
    def effective_docker_twin(self) -> bool:
        """Whether images get a Docker twin: as written, else where the site runs them with enroot."""
        if self.docker_twin == "auto":
            return self.site is not None and any(item.kind == "slurm-pyxis" for item in self.site.executors)
        return self.docker_twin

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the file start from."""
        return self.path.parent

    @property
    def effective_dependencies(self) -> Mapping[str, tuple[str, ...]]:
        """The dependency map that counts: the top-level one, else the workflow's."""
        return self.dependencies or self.workflow.dependencies or {}

    @property
    def effective_stages(self) -> tuple[str, ...]:
        """The stages as written: `build_stages`, else `stages`."""
        return self.build_stages or self.stages
