"""The models of `airgap.yaml`: frozen, strict, and able to say what an unknown key was meant to be.

A held `Config` is a valid one as far as the file alone can tell; whether its steps exist is the plan's business.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    StrictBool,
    StrictInt,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from airferry.config.document import Document
from airferry.errors import AirferryError, ConfigurationError
from airferry.oci.platform import KNOWN_ARCHITECTURES, Platform, parse_platform
from airferry.oci.reference import parse_reference

STAGES = (
    "validate",
    "discover-execution-deps",
    "build-launcher-image",
    "build-execution-images",
    "save-images",
)
DEFAULT_STEPS = "src/nemotron/steps"
DEFAULT_LAUNCHER_TAG = "nemotron-customizer-launcher-airgap:latest"
DEFAULT_LAUNCHER_TAR = "launcher-image.tar"
DEFAULT_LAUNCHER_BASE = "python:3.12-slim"
FREE_PREFIX = "x-"

_IMAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(:[a-z0-9-]+)?")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_free_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {key: value for key, value in data.items() if not str(key).startswith(FREE_PREFIX)}
        return data


def _text(value: str) -> str:
    if not value.strip() or value != value.strip() or "\n" in value:
        raise ValueError("expected one line of text, without spaces around it")
    return value


def _parse_platform(value: Any) -> Platform:
    if isinstance(value, Platform):
        return value
    if not isinstance(value, str):
        raise ValueError("expected text such as `linux/amd64`")
    try:
        platform = parse_platform(value)
    except AirferryError as error:
        raise ValueError(error.message) from error
    if platform.os != "linux" or platform.architecture not in KNOWN_ARCHITECTURES:
        known = ", ".join(f"`linux/{name}`" for name in sorted(KNOWN_ARCHITECTURES))
        raise ValueError(f"nobody can build for `{platform}`; known are {known}")
    return platform


def _parse_tag(value: str) -> str:
    try:
        parse_reference(value)
    except AirferryError as error:
        raise ValueError(error.message + (f" ({error.hint})" if error.hint else "")) from error
    return value


def _archive_name(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError("expected a file name inside the output folder")
    return value


def _module(value: str) -> str:
    if not _MODULE.fullmatch(value):
        raise ValueError(f"`{value}` is no name of a Python module")
    return value


def _requirement(value: str) -> str:
    try:
        Requirement(value)
    except InvalidRequirement as error:
        raise ValueError(f"`{value}` is no requirement, expected for example `name==1.2`") from error
    return value


def _image_name(value: str) -> str:
    if not _IMAGE_NAME.fullmatch(value):
        raise ValueError(f"`{value}` is no image name, expected letters, digits, `_`, `.` and `-`")
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/") or ".." in value.split("/") or posixpath.normpath(value) == "/":
        raise ValueError(f"`{value}` is no absolute path below `/`")
    return value


def _debian_package(value: str) -> str:
    if not _PACKAGE.fullmatch(value):
        raise ValueError(f"`{value}` is no name of a Debian package")
    return value


Text = Annotated[str, AfterValidator(_text)]
PlatformField = Annotated[
    Platform,
    BeforeValidator(_parse_platform),
    WithJsonSchema({"type": "string", "pattern": "^[^/]+/[^/]+(/[^/]+)?$", "examples": ["linux/amd64", "linux/arm64"]}),
]
ImageTag = Annotated[Text, AfterValidator(_parse_tag)]
ArchiveName = Annotated[Text, AfterValidator(_archive_name)]
Module = Annotated[str, AfterValidator(_module)]
RequirementText = Annotated[str, AfterValidator(_requirement)]
ImageName = Annotated[str, AfterValidator(_image_name)]
ContainerPath = Annotated[Text, AfterValidator(_absolute)]
DebianPackage = Annotated[str, AfterValidator(_debian_package)]


class RegistryBase(BaseModel):
    """A base image in a registry."""

    model_config = ConfigDict(frozen=True)
    reference: str

    @property
    def key(self) -> str:
        """The base as it enters hashes: as written."""
        return self.reference


class LayoutBase(BaseModel):
    """A base image in an OCI layout folder: `oci:DIR[:REF]`."""

    model_config = ConfigDict(frozen=True)
    path: Path
    reference: str | None = None
    written: str

    @property
    def key(self) -> str:
        """The base as it enters hashes: as written."""
        return self.written


class ArchiveBase(BaseModel):
    """A base image in an OCI archive: `oci-archive:FILE[:REF]`."""

    model_config = ConfigDict(frozen=True)
    path: Path
    reference: str | None = None
    written: str

    @property
    def key(self) -> str:
        """The base as it enters hashes: as written."""
        return self.written


class BootstrapBase(_Model):
    """A Debian userland that mmdebstrap makes of packages; no image registry is needed."""

    suite: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", description="Debian suite, for example `bookworm`.")]
    packages: Annotated[
        tuple[DebianPackage, ...], Field(description="Packages to install on top of the variant's own.")
    ] = ()
    variant: Annotated[
        Literal["extract", "minbase"],
        Field(
            description="`extract` unpacks packages without running their scripts: fast for every CPU. `minbase` "
            "configures them."
        ),
    ] = "extract"
    components: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9/-]*$")], ...], Field(description="Archive areas.")
    ] = ("main",)
    mirror: Annotated[
        str | None,
        Field(pattern=r"^(https?|file|copy)://\S+$", description="Package mirror; the host's own one by default."),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _unwrap(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "bootstrap" in data:
            extra = sorted(set(data) - {"bootstrap"})
            if extra:
                raise ValueError(f"beside `bootstrap` there is `{extra[0]}`; a base is of one kind")
            return data["bootstrap"]
        return data

    @property
    def key(self) -> str:
        """The base as it enters hashes: the mapping as written, as compact JSON with sorted keys."""
        written = {"bootstrap": self.model_dump(mode="json", exclude_unset=True)}
        return json.dumps(written, sort_keys=True, separators=(",", ":"))


def _parse_base(value: Any, info: ValidationInfo) -> RegistryBase | LayoutBase | ArchiveBase:
    if isinstance(value, RegistryBase | LayoutBase | ArchiveBase):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected an image reference, `oci:DIR[:REF]`, `oci-archive:FILE[:REF]` or `bootstrap: {…}`")
    written = _text(value)
    kind, _, rest = written.partition(":")
    if kind in ("oci", "oci-archive"):
        name, _, reference = rest.partition(":")
        if not name:
            raise ValueError(f"`{written}` names no path after `{kind}:`")
        folder = (info.context or {}).get("folder", Path())
        made: type[LayoutBase] | type[ArchiveBase] = LayoutBase if kind == "oci" else ArchiveBase
        return made(path=folder / Path(name).expanduser(), reference=reference or None, written=written)
    _parse_tag(written)
    return RegistryBase(reference=written)


def _base_kind(value: Any) -> str:
    return "bootstrap" if isinstance(value, Mapping | BootstrapBase) else "reference"


_REFERENCE_BASE_SCHEMA = {
    "type": "string",
    "minLength": 1,
    "examples": ["python:3.12-slim", "oci:bases/python:3.12", "oci-archive:base.tar"],
}
BaseImage = Annotated[
    Annotated[
        RegistryBase | LayoutBase | ArchiveBase,
        BeforeValidator(_parse_base),
        WithJsonSchema(_REFERENCE_BASE_SCHEMA),
        Tag("reference"),
    ]
    | Annotated[BootstrapBase, Tag("bootstrap")],
    Discriminator(_base_kind),
    Field(description="What the image is built on: an image reference, an OCI layout or archive, or `bootstrap`."),
]


class CompressionChoice(_Model):
    """How the layers of all images are compressed."""

    kind: Annotated[
        Literal["zstd", "gzip", "preserve"],
        Field(description="`gzip` for runtimes that cannot read zstd, `preserve` to keep the base's own blobs."),
    ] = "zstd"
    level: Annotated[StrictInt | None, Field(description="zstd 1 to 22, gzip 1 to 9.")] = None

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
        return self


class OverlaySpec(_Model):
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
        if value.startswith("-"):
            raise ValueError(f"`{value}` is no Git URL")
        return value


def parse_overlay(text: str) -> tuple[str, str, str]:
    """Return URL, ref and target of `git+URL@REF,TARGET`.

    An `@` in the host part (`user@host`) is not taken for the one before the ref.

    Raises:
        ValueError: the form is another, or a part is missing.
    """
    spec, comma, target = text.strip().strip("'\"").partition(",")
    spec, target = spec.strip().strip("'\""), target.strip().strip("'\"")
    if not spec.startswith("git+"):
        raise ValueError(f"`{text}` is no overlay, expected `git+URL@REF,TARGET`")
    rest = spec.removeprefix("git+")
    scheme, separator, after = rest.partition("://")
    head, path = (scheme + separator, after) if separator else ("", rest)
    authority = re.match(r"[^/]*/" if separator else r"(?:[^/@:]+@)?[^/@:]+:(?!$)", path)
    if authority is not None:
        head, path = head + authority.group(), path[authority.end() :]
    path, at, ref = path.rpartition("@")
    if not at or not ref or not path:
        raise ValueError(f"`{text}` has no `@REF` after the URL, expected `git+URL@REF,TARGET`")
    if not comma or not target:
        raise ValueError(f"`{text}` has no target, expected `git+URL@REF,TARGET`")
    return head + path, ref, _absolute(target)


def _beside_file(value: Path, info: ValidationInfo) -> Path:
    folder: Path = (info.context or {}).get("folder", Path())
    return folder / value.expanduser()


FileBeside = Annotated[Path, AfterValidator(_beside_file)]


def _one_platform_key(model: LauncherImage | ExecutionImage) -> None:
    if model.platform is not None and model.platforms is not None:
        raise ValueError("`platform` and `platforms` are both there; `platform` is a list of one")


class LauncherImage(_Model):
    """The image that carries the catalogue and submits steps; it does not train."""

    base_image: BaseImage = RegistryBase(reference=DEFAULT_LAUNCHER_BASE)
    tag: Annotated[ImageTag, Field(description="Name of the image.")] = DEFAULT_LAUNCHER_TAG
    tar: Annotated[ArchiveName, Field(description="Archive name, used with `archives: true`.")] = DEFAULT_LAUNCHER_TAR
    platform: Annotated[PlatformField | None, Field(description="The same as a list of one in `platforms`.")] = None
    platforms: Annotated[
        tuple[PlatformField, ...] | None, Field(min_length=1, description="What the image is built for.")
    ] = None
    packages: Annotated[
        tuple[DebianPackage, ...], Field(description="Debian packages to install where the base lacks them.")
    ] = ("git", "ca-certificates")
    python: Annotated[Text | None, Field(description="Interpreter in the base; `python`, then `python3`.")] = None
    containerfile: Annotated[
        FileBeside | None,
        Field(description="A Containerfile to use instead of the shipped one, relative to this file."),
    ] = None

    @model_validator(mode="after")
    def _check(self) -> LauncherImage:
        _one_platform_key(self)
        return self

    @property
    def platform_choice(self) -> tuple[Platform, ...]:
        """The platforms that this image asks for, empty where it leaves the choice to others."""
        return self.platforms or ((self.platform,) if self.platform else ())


class ExecutionImage(_Model):
    """An image that steps run in."""

    base_image: BaseImage
    tag: Annotated[ImageTag | None, Field(description="`nemotron-execution-<name>:airgap` by default.")] = None
    tar: Annotated[ArchiveName | None, Field(description="Archive name, used with `archives: true`.")] = None
    platform: Annotated[PlatformField | None, Field(description="The same as a list of one in `platforms`.")] = None
    platforms: Annotated[
        tuple[PlatformField, ...] | None, Field(min_length=1, description="What the image is built for.")
    ] = None
    required_imports: Annotated[tuple[Module, ...], Field(description="Modules that must be there in any case.")] = ()
    pip_no_deps: Annotated[
        StrictBool, Field(description="Keep what the base has, even where an addition asks for another version.")
    ] = True
    overlays: Annotated[
        tuple[OverlaySpec, ...], Field(description="Git checkouts that steps would otherwise clone at start.")
    ] = ()
    requirements: Annotated[
        dict[Module, RequirementText], Field(description="Module to requirement, where no lock file names it.")
    ] = {}
    python: Annotated[Text | None, Field(description="Interpreter in the base, for example in a venv.")] = None
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


Dependencies = dict[str, tuple[Text, ...]]


class Workflow(_Model):
    """The steps to carry."""

    name: Annotated[str | None, Field(description="Name of the plan, for people.")] = None
    stages: Annotated[tuple[Text, ...], Field(description="Targets: `step/id:config`, or a bare `step/id`.")] = ()
    dependencies: Annotated[Dependencies | None, Field(description="As the top-level key, which wins.")] = None


class Paths(_Model):
    """Where things go."""

    output_dir: Annotated[
        Path | None, Field(description="Relative to the catalogue's root; `out` beside this file by default.")
    ] = None


class Source(_Model):
    """Where the catalogue is."""

    root: Annotated[Path | None, Field(description="Root of the catalogue's repository, relative to this file.")] = None
    steps: Annotated[Text, Field(description="Folder of the steps, relative to the root.")] = DEFAULT_STEPS
    package: Annotated[Module | None, Field(description="Python package of that folder.")] = None
    lock: Annotated[
        Path | None, Field(description="Lock file: `uv.lock`, `pylock.toml` or a hash-pinned `requirements.txt`.")
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


class StepImage(_Model):
    """The mapping form of an entry of `step_execution_images`."""

    execution_image: ImageName

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        return {"execution_image": data} if isinstance(data, str) else data


class RegistryChoice(_Model):
    """The private registry of the far side."""

    to: Annotated[Text | None, Field(description="`HOST:PORT/PREFIX` that `load` pushes to.")] = None
    plain_http: Annotated[StrictBool, Field(description="Without TLS; loopback needs no such word.")] = False


def _check_stage(value: str) -> str:
    for item in value.split(","):
        if item.strip() and item.strip() not in STAGES:
            raise ValueError(f"`{item.strip()}` is no stage; there are " + ", ".join(f"`{name}`" for name in STAGES))
    return value


Stage = Annotated[str, AfterValidator(_check_stage)]


class Config(_Model):
    """The whole of `airgap.yaml`."""

    workflow: Annotated[Workflow, Field(description="The steps to carry.")] = Workflow()
    build_stages: Annotated[tuple[Stage, ...], Field(description="What `build` does; all of it by default.")] = ()
    stages: Annotated[tuple[Stage, ...], Field(description="Another name of `build_stages`, which wins.")] = ()
    paths: Paths = Paths()
    launcher_image: LauncherImage | None = None
    dependencies: Annotated[
        Dependencies, Field(description="Step id to the targets that must be carried with it, and come before it.")
    ] = {}
    step_execution_images: Annotated[
        dict[str, StepImage], Field(description="Step id to the name of its execution image.")
    ] = {}
    execution_images: Annotated[
        dict[ImageName, ExecutionImage], Field(description="Execution images by name; only those needed are built.")
    ] = {}
    platforms: Annotated[
        tuple[PlatformField, ...], Field(description="What images are built for unless they say it themselves.")
    ] = ()
    source: Source = Source()
    compression: CompressionChoice = CompressionChoice()
    archives: Annotated[StrictBool, Field(description="Write an OCI archive an image as well.")] = False
    builder: Annotated[Literal["auto", "buildah", "direct"], Field(description="How images are assembled.")] = "auto"
    assets: Annotated[dict[str, Any], Field(description="Models and data that travel with the images.")] = {}
    site: Annotated[dict[str, Any], Field(description="What is known of the far side.")] = {}
    registry: RegistryChoice = RegistryChoice()

    _document: Document = PrivateAttr(default=Document(Path("airgap.yaml"), {}, {}))

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
