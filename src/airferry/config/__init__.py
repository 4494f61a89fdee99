"""What the user wrote: `airgap.yaml`, read once into frozen, valid models, with errors at file and line.

Knows the file's keys and nothing of the catalogue, of Buildah or of a registry. It reads that file, and the one of the
site profile if `site:` names one, and no other.
"""

from airferry.config.bases import ArchiveBase, BaseSpec, BootstrapBase, LayoutBase, RegistryBase
from airferry.config.load import load_config, load_site, parse_site
from airferry.config.models import (
    CompressionChoice,
    Config,
    ExecutionImage,
    LauncherImage,
    OverlaySpec,
    Paths,
    RegistryChoice,
    SourceSettings,
    Workflow,
)
from airferry.config.schema import json_schema, render_schema
from airferry.config.site import EnvironmentProfile, Executor, Gpu, Mirrors, SiteProfile, StorageMount

__all__ = [
    "ArchiveBase",
    "BaseSpec",
    "BootstrapBase",
    "CompressionChoice",
    "Config",
    "EnvironmentProfile",
    "ExecutionImage",
    "Executor",
    "Gpu",
    "LauncherImage",
    "LayoutBase",
    "Mirrors",
    "OverlaySpec",
    "Paths",
    "RegistryBase",
    "RegistryChoice",
    "SiteProfile",
    "SourceSettings",
    "StorageMount",
    "Workflow",
    "json_schema",
    "load_config",
    "load_site",
    "parse_site",
    "render_schema",
]
