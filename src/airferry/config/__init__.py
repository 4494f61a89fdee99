"""What the user wrote: `airgap.yaml`, read once into frozen, valid models, with errors at file and line.

Knows the file's keys and nothing of the catalogue, of Buildah or of a registry: it reads one file and no other.
"""

from airferry.config.bases import ArchiveBase, BaseImage, BootstrapBase, LayoutBase, RegistryBase
from airferry.config.load import load_config
from airferry.config.models import (
    CompressionChoice,
    Config,
    ExecutionImage,
    LauncherImage,
    OverlaySpec,
    Paths,
    RegistryChoice,
    Source,
    Workflow,
)
from airferry.config.schema import json_schema, render_schema

__all__ = [
    "ArchiveBase",
    "BaseImage",
    "BootstrapBase",
    "CompressionChoice",
    "Config",
    "ExecutionImage",
    "LauncherImage",
    "LayoutBase",
    "OverlaySpec",
    "Paths",
    "RegistryBase",
    "RegistryChoice",
    "Source",
    "Workflow",
    "json_schema",
    "load_config",
    "render_schema",
]
