"""`assets:` of `airgap.yaml`: models, datasets, checkpoints and tokenizers that stay on persistent storage."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, StrictBool, model_validator

from airferry.config.fields import ContainerPath, FileBeside, StrictModel, Text

AssetKind = Literal["model", "dataset", "checkpoint", "tokenizer", "other"]
ASSET_KINDS: tuple[AssetKind, ...] = get_args(AssetKind)
ASSET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


def _asset_name(value: str) -> str:
    if not ASSET_NAME.fullmatch(value):
        raise ValueError(f"`{value}` is not a valid asset name, expected lower-case letters, digits, `.`, `_` and `-`")
    return value


AssetName = Annotated[str, AfterValidator(_asset_name)]


class AssetChoice(StrictModel):
    """One asset: where it is on this side, or the manifest that was recorded where it is."""

    kind: Annotated[AssetKind, Field(description="What it is; a ModelPack artifact's layers are named after it.")] = (
        "other"
    )
    path: Annotated[
        FileBeside | None, Field(description="Folder or file on this side, relative to this file; recorded by `build`.")
    ] = None
    manifest: Annotated[
        FileBeside | None, Field(description="What `airferry assets record` wrote elsewhere, relative to this file.")
    ] = None
    steps: Annotated[
        tuple[Text, ...], Field(description="Steps or targets that read it; all where none is named.")
    ] = ()
    target: Annotated[ContainerPath | None, Field(description="Where steps find it on the far side.")] = None
    pack: Annotated[
        StrictBool, Field(description="Carry the content too, as a CNCF ModelPack artifact of the bundle.")
    ] = False

    @model_validator(mode="after")
    def _check(self) -> AssetChoice:
        if (self.path is None) == (self.manifest is None):
            raise ValueError("expected either `path` or `manifest`")
        if self.pack and self.path is None:
            raise ValueError("`pack` needs `path`: without the files there is nothing to pack")
        return self
