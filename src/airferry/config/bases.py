"""Base images: what a plan may build on, and how each enters hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from airferry.config.fields import DebianPackage, StrictModel, parse_text, refused_reference
from airferry.errors import AirferryError
from airferry.host import files
from airferry.oci.reference import Reference, parse_reference, split_place


class RegistryBase(BaseModel):
    """A base image in a registry."""

    model_config = ConfigDict(frozen=True)
    reference: str

    @property
    def key(self) -> str:
        """The base as it enters hashes: as written."""
        return self.reference

    @cached_property
    def parsed(self) -> Reference:
        """The reference in full, parsed once.

        Raises:
            UsageError: it is none.
        """
        return parse_reference(self.reference)


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


class BootstrapBase(StrictModel):
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
                raise ValueError(f"`bootstrap` and `{extra[0]}` exclude each other")
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
    written = parse_text(value)
    kind, _, rest = written.partition(":")
    if kind in ("oci", "oci-archive"):
        name, reference = split_place(rest)
        if not name:
            raise ValueError(f"`{written}` has no path after `{kind}:`")
        folder = (info.context or {}).get("folder", Path())
        made: type[LayoutBase] | type[ArchiveBase] = LayoutBase if kind == "oci" else ArchiveBase
        return made(path=folder / files.expand_home(Path(name)), reference=reference or None, written=written)
    base = RegistryBase(reference=written)
    try:
        _ = base.parsed
    except AirferryError as error:
        raise refused_reference(error) from error
    return base


def _base_kind(value: Any) -> str:
    return "bootstrap" if isinstance(value, Mapping | BootstrapBase) else "reference"


_REFERENCE_BASE_SCHEMA = {
    "type": "string",
    "minLength": 1,
    "examples": ["python:3.12-slim", "oci:bases/python:3.12", "oci-archive:base.tar"],
}
BaseSpec = Annotated[
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
