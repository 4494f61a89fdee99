"""The kinds of values that `airgap.yaml` is made of: checked text, platforms, names, overlays.

Knows no key of the file.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from airferry.errors import AirferryError
from airferry.host import files
from airferry.host.parsing import short_numbers
from airferry.oci.platform import Platform, parse_buildable_platform
from airferry.oci.reference import parse_reference
from airferry.wording import obeyed

if TYPE_CHECKING:
    from packaging.requirements import Requirement

FREE_PREFIX = "x-"
# a step's folder below that of all steps, and a config's below the step's: names that mean nothing to a shell, and that
# lead nowhere else
STEP_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_IMAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(:[a-z0-9-]+)?")


class StrictModel(BaseModel):
    """A frozen model that forbids unknown keys and ignores those that begin with `x-`."""

    # `--debug` shows pydantic's own words, and a password may have been typed where none is taken
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_free_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {key: value for key, value in data.items() if not str(key).startswith(FREE_PREFIX)}
        return data


def parse_text(value: str) -> str:
    """Return one line of text as written.

    Raises:
        ValueError: it is empty, has several lines, spaces around it, or characters that a terminal obeys.
    """
    if not value.strip() or value != value.strip() or "\n" in value:
        raise ValueError("expected one line of text, without spaces around it")
    if found := obeyed(value):
        raise ValueError(f"expected text without control characters, found {found}")
    return value


def is_target(text: str) -> bool:
    """Tell whether a text is `step/id:config` or `step/id`, without blanks."""
    step_id, colon, config = text.partition(":")
    return STEP_ID.fullmatch(step_id) is not None and (not colon or STEP_ID.fullmatch(config) is not None)


def _parse_platform(value: Any) -> Platform:
    if isinstance(value, Platform):
        return value
    if not isinstance(value, str):
        raise ValueError("expected text such as `linux/amd64`")
    try:
        return parse_buildable_platform(value)
    except AirferryError as error:
        raise ValueError(error.message) from error


def parse_tag(value: str) -> str:
    """Return an image reference as written.

    Raises:
        ValueError: it is none.
    """
    try:
        parse_reference(value)
    except AirferryError as error:
        raise refused_reference(error) from error
    return value


def refused_reference(error: AirferryError) -> ValueError:
    """Return what a validator raises where a text is not a reference."""
    return ValueError(error.message + (f" ({error.hint})" if error.hint else ""))


def _archive_name(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError("expected a file name inside the output folder")
    return value


def _module(value: str) -> str:
    if not _MODULE.fullmatch(value):
        raise ValueError(f"`{value}` is not a Python module name")
    return value


def _variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        raise ValueError(f"`{value}` is not the name of an environment variable")
    return value


def _requirement(value: str) -> str:
    # loaded where it is needed: a far side reads few requirements, and short commands none
    from packaging.requirements import Requirement

    try:
        requirement = Requirement(short_numbers(value))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{value}` is not a requirement, expected for example `name==1.2`") from error
    if requirement.url:
        parse_git_requirement(requirement)
    return value


def parse_git_requirement(requirement: Requirement) -> tuple[str, str, str | None]:
    """Return URL, commit and folder of `name @ git+URL@COMMIT`, to which `#subdirectory=FOLDER` may be added.

    Raises:
        ValueError: it is another address; only a full commit id names the same bytes tomorrow.
    """
    address, _, fragment = (requirement.url or "").partition("#")
    url, _, commit = address.removeprefix("git+").rpartition("@")
    if not address.startswith("git+") or not url or url.startswith("-") or not _COMMIT.fullmatch(commit):
        raise ValueError(
            f"`{requirement.name} @ …` has an address that cannot be carried; write `{requirement.name}==VERSION`, or "
            f"`{requirement.name} @ git+URL@COMMIT` with a full commit id"
        )
    settings = dict(part.partition("=")[::2] for part in fragment.split("&") if part)
    return url, commit, settings.get("subdirectory")


def _image_name(value: str) -> str:
    if not _IMAGE_NAME.fullmatch(value):
        raise ValueError(f"`{value}` is not an image name, expected letters, digits, `_`, `.` and `-`")
    return value


def parse_container_path(value: str) -> str:
    """Return an absolute path below `/`, as written.

    Raises:
        ValueError: it is none.
    """
    if not value.startswith("/") or ".." in value.split("/") or posixpath.normpath(value) == "/":
        raise ValueError(f"`{value}` is not an absolute path below `/`")
    return value


def _debian_package(value: str) -> str:
    if not _PACKAGE.fullmatch(value):
        raise ValueError(f"`{value}` is not a Debian package name")
    return value


Text = Annotated[str, AfterValidator(parse_text)]
PlatformField = Annotated[
    Platform,
    BeforeValidator(_parse_platform),
    WithJsonSchema({"type": "string", "pattern": "^[^/]+/[^/]+(/[^/]+)?$", "examples": ["linux/amd64", "linux/arm64"]}),
]
ImageTag = Annotated[Text, AfterValidator(parse_tag)]
ArchiveName = Annotated[Text, AfterValidator(_archive_name)]
ModuleName = Annotated[str, AfterValidator(_module)]
VariableName = Annotated[str, AfterValidator(_variable)]
RequirementText = Annotated[str, AfterValidator(_requirement)]
ImageName = Annotated[str, AfterValidator(_image_name)]
ContainerPath = Annotated[Text, AfterValidator(parse_container_path)]
DebianPackage = Annotated[str, AfterValidator(_debian_package)]


def _beside_file(value: Path, info: ValidationInfo) -> Path:
    folder: Path = (info.context or {}).get("folder", Path())
    return folder / files.expand_home(value)


FileBeside = Annotated[Path, AfterValidator(_beside_file)]


def parse_overlay(text: str) -> tuple[str, str, str]:
    """Return URL, ref and target of `git+URL@REF,TARGET`.

    An `@` in the host part (`user@host`) is not taken for the one before the ref.

    Raises:
        ValueError: the form is another, or a part is missing.
    """
    if found := obeyed(text.strip()):
        raise ValueError(f"an overlay is one line without control characters, found {found}")
    spec, comma, target = text.strip().strip("'\"").partition(",")
    spec, target = spec.strip().strip("'\""), target.strip().strip("'\"")
    if not spec.startswith("git+"):
        raise ValueError(f"`{text}` is not an overlay, expected `git+URL@REF,TARGET`")
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
    return check_git_url(head + path), ref, parse_container_path(target)


def check_git_url(url: str) -> str:
    """Return a Git URL that can be written down: it is not an option, and holds no password, as bundles repeat it.

    Raises:
        ValueError: it is another.
    """
    if url.startswith("-"):
        raise ValueError(f"`{url}` is not a Git URL")
    if re.match(r"https?://[^/@]+@|[a-z+]+://[^/@]*:[^/@]+@", url, re.IGNORECASE):
        raise ValueError(
            "the Git URL contains credentials, which would end up in the bundle; use Git's credential helper"
        )
    return url
