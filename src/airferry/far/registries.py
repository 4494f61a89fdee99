"""Registries as such: log in and out, find out what they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airferry.assets.manifest import ASSET_ARTIFACT, ASSET_CONTENT, MODELPACK_ARTIFACT, MODELPACK_CONFIG
from airferry.bundle.artifacts import (
    LOCK_ARTIFACT,
    LOCK_CONTENT,
    MANIFEST_ARTIFACT,
    MANIFEST_CONTENT,
    OVERLAYS_ARTIFACT,
    OVERLAYS_CONTENT,
    REHEARSAL_ARTIFACT,
    REHEARSAL_CONTENT,
    REQUIREMENTS_ARTIFACT,
    REQUIREMENTS_CONTENT,
    TOOL_ARTIFACT,
    TOOL_CONTENT,
)
from airferry.bundle.catalogue import CATALOGUE_ARTIFACT, CATALOGUE_CONTENT
from airferry.defaults import PROBE_REPOSITORY
from airferry.errors import UsageError
from airferry.events import Emit, Notice, Warned, silent
from airferry.far.access import login_command
from airferry.far.bundle_facts import facts_for_bundle, has_twins, shipments_of
from airferry.far.foreseen import foresee
from airferry.far.relocate import Destination, parse_destination
from airferry.oci.reference import parse_reference
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.connections import Request
from airferry.registry.credentials import Credential, remove_credential, store_credential
from airferry.registry.failures import Unauthorized
from airferry.registry.governor import CHUNK_BYTES, SMALLEST_CHUNK_BYTES
from airferry.registry.profile import RegistryProfile, write_profile
from airferry.registry.trial import try_registry
from airferry.registry.trials.explained import ProbedFact, explain_profile
from airferry.registry.trials.kinds import ArtifactKind
from airferry.registry.trials.leavings import Leavings
from airferry.registry.uploads import try_upload
from airferry.wording import size_text, some_of

MAX_TRIED_BYTES = 1024 * 1024 * 1024
SHOWN_TYPES = 3
# what bundles hold besides images, with the types of its content
BUNDLE_KINDS = (
    ArtifactKind(MANIFEST_ARTIFACT, MANIFEST_CONTENT),
    ArtifactKind(LOCK_ARTIFACT, LOCK_CONTENT),
    ArtifactKind(REQUIREMENTS_ARTIFACT, REQUIREMENTS_CONTENT),
    ArtifactKind(OVERLAYS_ARTIFACT, OVERLAYS_CONTENT),
    ArtifactKind(CATALOGUE_ARTIFACT, CATALOGUE_CONTENT),
    ArtifactKind(TOOL_ARTIFACT, TOOL_CONTENT),
    ArtifactKind(REHEARSAL_ARTIFACT, REHEARSAL_CONTENT),
    ArtifactKind(ASSET_ARTIFACT, ASSET_CONTENT),
    ArtifactKind(MODELPACK_ARTIFACT, "application/vnd.cncf.model.weight.v1.raw", MODELPACK_CONFIG),
)


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """What was found out about a registry, where that is kept, and what stays in the registry.

    With a bundle, `of_bundle` says by a fact's name what of it the fact is about, `foreseen` what a load of it would
    meet, and `has_twins` whether it has Docker twins for enroot.
    """

    profile: RegistryProfile
    path: Path
    left: Leavings = field(default_factory=Leavings)
    of_bundle: Mapping[str, str] = field(default_factory=dict)
    foreseen: tuple[Warned, ...] | None = None
    has_twins: bool = False

    @property
    def verdict(self) -> str:
        """Whether bundles, or the one that was given, can be loaded there, in one sentence."""
        host = self.profile.registry
        if self.foreseen is not None:
            return f"`{host}` takes all of this bundle" if not self.foreseen else ""
        refused = [name for name, taken in self.profile.media_types.items() if taken is False]
        refused += [name for name, taken in self.profile.artifact_types.items() if taken is False]
        if refused:
            shown = some_of(refused, SHOWN_TYPES)
            return f"`{host}` refuses {shown}; `--bundle BUNDLE` says what that means for a bundle"
        return f"`{host}` takes all types of images and artifacts that bundles have"

    @property
    def advice_for_enroot(self) -> str | None:
        """What to do where enroot cannot import images from the registry as they are, None where it can."""
        if self.profile.shows_oci_to_enroot is not False:
            return None
        if self.profile.takes_docker_lists and self.has_twins:
            return "enroot cannot read OCI indexes from this registry: it gets the Docker twins of this bundle"
        if self.profile.takes_docker_lists:
            return (
                "enroot cannot read OCI indexes from this registry: build with `docker_twin: true`, "
                "so that enroot gets Docker manifests"
            )
        return (
            "enroot cannot read OCI indexes from this registry, which also refuses Docker manifest "
            "lists: use another registry for Slurm"
        )

    def explained(self) -> list[ProbedFact]:
        """Return what was found, each with its value and what that means for loads and pulls."""
        return explain_profile(self.profile)

    def to_document(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        document = {**self.profile.model_dump(mode="json", exclude={"learned_at"}), "left": self.left.to_document()}
        if self.foreseen is not None:
            document["bundle"] = {"facts": dict(self.of_bundle), "foreseen": [item.text for item in self.foreseen]}
        return document


def registry_host(text: str) -> str:
    """Return the host that `HOST[:PORT][/PREFIX]` begins with, which credentials are kept for.

    Raises:
        UsageError: there is no such host.
    """
    host = text.removeprefix("docker://").removeprefix("https://").partition("/")[0]
    if not host:
        raise UsageError(f"`{text}` is not a registry", hint="give `HOST:PORT`")
    return parse_reference(f"{host}/x").registry if "." in host or ":" in host else host


def login(registry: str, username: str, password: str, *, options: ClientOptions | None = None) -> Path:
    """Try a user and password at a registry, keep them in Podman's file, and return the file's path.

    They are kept for the host: what follows it, such as the prefix of a destination, is left out.

    Raises:
        UsageError: there is no such host, or the user name cannot be stored.
        RegistryError: the registry does not answer, or refuses them; then nothing is kept.
        HostError: the file cannot be written.
    """
    host = registry_host(registry)
    credential = Credential(username, password)
    tried = replace(options or ClientOptions(), lookup=lambda _registry, _repository: credential)
    with RegistryClient(host, options=tried) as client:
        response = client.request(Request("GET", "", what=f"log in to `{host}`"), expected=(200, 401))
        if response.status_code == 401:
            raise Unauthorized(
                f"`{host}` rejects user `{username}` with this password",
                status=401,
                hint=f"check both, then run `{login_command(host, '-u', username, options=tried)}` again; some "
                "registries want a token or a robot account instead of a personal password",
            )
    return store_credential(host, username, password=password)


def reach_registry(registry: str, *, options: ClientOptions | None = None) -> None:
    """Do nothing if a registry answers, whatever it says: before somebody is asked for a user and a password.

    Raises:
        UsageError: there is no such host.
        RegistryError: it does not answer, its CA is not trusted, or it is not a registry.
    """
    host = registry_host(registry)
    with RegistryClient(host, options=options) as client:
        client.request(Request("GET", "", what=f"log in to `{host}`", anonymous=True), expected=(200, 401, 403))


def logout(registry: str) -> list[Path]:
    """Remove what is kept for a registry, and return the files that held it. Idempotent.

    Raises:
        UsageError: there is no such host.
        HostError: a file cannot be written.
    """
    return remove_credential(registry_host(registry))


def probe_registry(
    target: str | Destination,
    *,
    largest_bytes: int = CHUNK_BYTES,
    bundle: Path | None = None,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> ProbeOutcome:
    """Find out what a registry does, in `HOST[/REPO]`, and keep it for the next load.

    Where a load would go, a `Destination`, it is tried in a separate repository below the prefix. No request carries
    more than `largest_bytes`. With a `bundle`, the outcome says what the facts mean for its load to that destination.

    Raises:
        UsageError: there is no such place or bundle, or the size is out of range.
        IntegrityError: the bundle is damaged.
        RegistryError: the registry does not answer, or does not let this user push there.
    """
    if not SMALLEST_CHUNK_BYTES <= largest_bytes <= MAX_TRIED_BYTES:
        least, most = size_text(SMALLEST_CHUNK_BYTES), size_text(MAX_TRIED_BYTES)
        raise UsageError(
            f"{size_text(largest_bytes)} is out of range: requests of {least} to {most} can be tried",
            hint="the default, `--largest 64M`, suits most registries",
        )
    if isinstance(target, str):
        place = parse_destination(target)
        repository = place.prefix or PROBE_REPOSITORY
    else:
        place, repository = target, target.repository(PROBE_REPOSITORY)
    shipments = shipments_of(bundle, place) if bundle is not None else None
    left = Leavings()
    with RegistryClient(place.registry, options=options, emit=emit) as client:
        # one that cannot be reached or pushed to keeps nothing of this
        try_upload(client, repository, what=f"push to `{place.registry}/{repository}`", expected=(202,))
        try:
            profile = try_registry(client, repository, artifacts=BUNDLE_KINDS, largest_bytes=largest_bytes, left=left)
        finally:
            if text := left.describe(place.registry):
                emit(Notice(text))
    path = write_profile(profile)
    if shipments is None:
        return ProbeOutcome(profile, path, left)
    return ProbeOutcome(
        profile,
        path,
        left,
        facts_for_bundle(shipments, profile),
        tuple(foresee(shipments, place, profile)),
        has_twins=has_twins(shipments),
    )
