"""What the user wrote: `airgap.yaml`, read once into frozen, valid models, with errors at file and line.

Knows the file's keys and nothing of the catalogue, of Buildah or of a registry. It reads that file, and the one of the
site profile if `site:` names one, and no other.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airferry.config.bases import ArchiveBase, BaseSpec, BootstrapBase, LayoutBase, RegistryBase
    from airferry.config.load import check_site, load_config, load_site, site_in
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

_HOMES = {
    "airferry.config.bases": ("ArchiveBase", "BaseSpec", "BootstrapBase", "LayoutBase", "RegistryBase"),
    "airferry.config.load": ("check_site", "load_config", "load_site", "site_in"),
    "airferry.config.models": (
        *("CompressionChoice", "Config", "ExecutionImage", "LauncherImage"),
        *("OverlaySpec", "Paths", "RegistryChoice", "SourceSettings", "Workflow"),
    ),
    "airferry.config.schema": ("json_schema", "render_schema"),
    "airferry.config.site": ("EnvironmentProfile", "Executor", "Gpu", "Mirrors", "SiteProfile", "StorageMount"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

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
    "check_site",
    "json_schema",
    "load_config",
    "load_site",
    "render_schema",
    "site_in",
]

# When they are first used: a bundle's manifest takes two types of fields from here, and `verify`, which reads nothing
# else of the user's, would wait for all models of airgap.yaml. Not for type checkers, which would take any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
        value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
        return value
