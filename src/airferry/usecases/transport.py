"""Registries as such: log in and out, find out what they do, copy images, put tags back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airferry.errors import RegistryError, UsageError
from airferry.events import Emit, silent
from airferry.oci.platform import parse_platform
from airferry.oci.reference import parse_reference
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.credentials import Credential, remove_credential, store_credential
from airferry.registry.probe import PROBE_REPOSITORY, probe
from airferry.registry.profile import RegistryProfile, write_profile
from airferry.site import activation, copies
from airferry.site.relocation import parse_destination

RollbackResult = activation.RollbackResult


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """What was found out about a registry, and where it is kept."""

    profile: RegistryProfile
    path: Path

    def to_document(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return self.profile.model_dump(mode="json")


def login(registry: str, username: str, password: str, *, options: ClientOptions | None = None) -> Path:
    """Try a user and password at a registry, keep them in Podman's file, and return the file's path.

    Raises:
        UsageError: there is no such host, or the user name cannot be stored.
        RegistryError: the registry does not answer, or refuses them; then nothing is kept.
        HostError: the file cannot be written.
    """
    host = _host(registry)
    credential = Credential(username, password)
    tried = replace(options or ClientOptions(), lookup=lambda _registry, _repository: credential)
    with RegistryClient(host, options=tried) as client:
        response = client.request("GET", "", what=f"log in to `{host}`", expected=(200, 401))
        if response.status_code == 401:
            raise RegistryError(f"`{host}` refuses the user `{username}` with this password", status=401)
    return store_credential(host, username, password=password)


def logout(registry: str) -> list[Path]:
    """Remove what is kept for a registry, and return the files that held it. Idempotent.

    Raises:
        UsageError: there is no such host.
        HostError: a file cannot be written.
    """
    return remove_credential(_host(registry))


def probe_registry(target: str, *, options: ClientOptions | None = None, emit: Emit = silent) -> ProbeOutcome:
    """Find out what a registry does, in `HOST[/REPO]`, and keep it for the next load.

    Raises:
        UsageError: there is no such place.
        RegistryError: the registry does not answer, or does not let this user push there.
    """
    place = parse_destination(target)
    with RegistryClient(place.registry, options=options, emit=emit) as client:
        profile = probe(client, place.prefix or PROBE_REPOSITORY)
    return ProbeOutcome(profile, write_profile(profile))


def copy(
    source: str,
    destination: str,
    *,
    platforms: Sequence[str] = (),
    referrers: bool = True,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> copies.CopyResult:
    """Copy an image, index or artifact between layouts, archives and registries, digests unchanged. Idempotent.

    Raises:
        UsageError: a place is none, or the image has no name there.
        ConfigurationError: the source has no such image.
        BuildError: a wanted platform is missing.
        IntegrityError: something is not what its descriptor says.
        RegistryError: a registry does not answer or refuses.
    """
    return copies.copy(
        copies.parse_place(source),
        copies.parse_place(destination),
        platforms=[parse_platform(text) for text in platforms] or None,
        referrers=referrers,
        options=options,
        emit=emit,
    )


def rollback(receipt: Path, *, options: ClientOptions | None = None, emit: Emit = silent) -> RollbackResult:
    """Put the tags of a load back as they were before it. Images and blobs stay. Idempotent.

    Raises:
        IntegrityError: it is no receipt.
        RegistryError: tags are not as they were before the load; the message says which, and why.
    """
    return activation.rollback(receipt, options=options, emit=emit)


def _host(text: str) -> str:
    host = text.removeprefix("docker://").removeprefix("https://").rstrip("/")
    if "/" in host or not host:
        raise UsageError(f"`{text}` is no registry host", hint="give `HOST:PORT` alone")
    return parse_reference(f"{host}/x").registry if "." in host or ":" in host else host
