"""Copies of single images between layouts, archives and registries."""

from __future__ import annotations

from collections.abc import Sequence

from airferry.events import Emit, silent
from airferry.far import copy as copies
from airferry.oci.platform import parse_platform
from airferry.registry.client import ClientOptions

CopyResult = copies.CopyResult


def copy(
    source: str,
    destination: str,
    *,
    platforms: Sequence[str] = (),
    referrers: bool = True,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> CopyResult:
    """Copy an image, index or artifact between layouts, archives and registries, digests unchanged. Idempotent.

    Raises:
        UsageError: a place is none, or the image has no name there.
        ConfigurationError: the source has no such image.
        BuildError: a wanted platform is missing.
        IntegrityError: something is not what its descriptor says.
        RegistryError: a registry does not answer or refuses.
    """
    return copies.copy_between(
        copies.parse_place(source),
        copies.parse_place(destination),
        platforms=[parse_platform(text) for text in platforms] or None,
        referrers=referrers,
        options=options,
        emit=emit,
    )
