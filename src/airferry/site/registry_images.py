"""Asks a registry which images it holds, and what their configs say. Changes nothing there."""

from __future__ import annotations

from collections.abc import Iterable

from airferry.errors import AirferryError, ConfigurationError, RegistryError
from airferry.events import Emit, silent
from airferry.host.threads import parallel_map
from airferry.oci.copy import select_platforms
from airferry.oci.documents import INDEX_TYPES, MAX_CONFIG_BYTES, parse_image_config, parse_index, parse_manifest
from airferry.oci.platform import Platform
from airferry.oci.ports import blocks
from airferry.oci.reference import parse_reference
from airferry.registry.client import ClientOptions, open_clients
from airferry.registry.source import RegistrySource
from airferry.site.site_rules import RegistryImage

JOBS = 4


def ask_images(
    pinned: Iterable[str], *, platform: Platform | None, options: ClientOptions, emit: Emit = silent
) -> dict[str, RegistryImage]:
    """Return what the registry says of images pinned by digest. A registry that does not answer is a problem of each.

    The variables are those of `platform`, or of the first that the image has.
    """
    names = sorted(set(pinned))
    with open_clients(options, emit=emit) as clients:

        def ask(name: str) -> RegistryImage:
            reference = parse_reference(name)
            source = RegistrySource(clients(reference.registry), reference.repository)
            try:
                if source.find(reference.target) is None:
                    return RegistryImage(False, {})
                return RegistryImage(True, _environment(source, reference.target, platform))
            except (RegistryError, ConfigurationError) as error:
                return RegistryImage(False, {}, error.message)
            except AirferryError as error:
                return RegistryImage(True, {}, f"`{name}` cannot be read: {error.message}")

        return dict(zip(names, parallel_map(ask, names, jobs=JOBS), strict=True))


def _environment(source: RegistrySource, digest: str, platform: Platform | None) -> dict[str, str]:
    top = source.resolve(digest)
    if top.media_type in INDEX_TYPES:
        index = parse_index(source.read_manifest(top).data, what=f"index `{digest}`")
        fitting = [child for child in index.manifests if child.is_runnable]
        if platform is not None:
            fitting = select_platforms(index, [platform], what=f"image `{digest}`")
        top = fitting[0]
    manifest = parse_manifest(source.read_manifest(top).data, what=f"manifest `{top.digest}`")
    if manifest.config.size > MAX_CONFIG_BYTES:
        return {}
    with source.open_blob(manifest.config) as stream:
        config = parse_image_config(b"".join(blocks(stream)))
    entries = (config.config or {}).get("Env") or []
    return dict(entry.split("=", 1) for entry in entries if isinstance(entry, str) and "=" in entry)
