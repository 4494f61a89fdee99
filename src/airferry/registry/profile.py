"""What was learned about a registry: kept in the cache, shown by `airferry registry probe`, used by the next load.

Nothing depends on it: a missing or damaged profile only costs the requests that find things out again. Holds no secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airferry.errors import HostError
from airferry.host import clock, files
from airferry.oci.documents import MAX_SIZE
from airferry.registry.governor import CHUNK_BYTES, CHUNKED_ABOVE_BYTES, SMALLEST_CHUNK_BYTES, Limits

MAX_PROFILE_BYTES = 64 * 1024
LONGEST_TRUSTED_S = 24 * 3600.0
# what keeps loads from doing something
_LIMITS = ("mounts", "chunks", "largest_request_bytes")


class RegistryProfile(BaseModel):
    """What one registry does; None where it is not known.

    `mounts`: a blob goes from one repository to another without being sent. `chunks`: uploads may come in parts.
    `largest_request_bytes`: the most that is known to be taken in one request, only where more was refused.
    `largest_chunk_bytes`, `largest_upload_bytes`: the largest of the tried sizes that was taken as one chunk, and as a
    whole upload; `largest_tried_bytes`: the largest one tried.
    `smallest_chunk_bytes`: the least that it wants in one chunk. `resumes`: an upload session states how much of it
    arrived. `survives_breaks`: it still does after a connection broke within a chunk. `referrers`: it has the
    referrers API. `shows_oci_to_enroot`: an OCI index is found by enroot, whose first requests name no media type.
    `takes_docker_lists`: Docker manifest lists can be stored. `deletes_tags`, `deletes_manifests`, `deletes_blobs`: it
    removes them. `media_types`: the types of manifests, lists, configs and layers that it takes or refuses;
    `artifact_types`: those of artifacts. `deepest_name`: the most parts of a repository's name that it was seen to
    take, of `deepest_tried`. `learned_at`: when a load noted what the registry does not do, in seconds since 1970.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    registry: str
    probed_at: str | None = None
    mounts: bool | None = None
    chunks: bool | None = None
    largest_request_bytes: int | None = Field(default=None, ge=SMALLEST_CHUNK_BYTES)
    smallest_chunk_bytes: int | None = Field(default=None, ge=0, lt=MAX_SIZE)
    largest_chunk_bytes: int | None = Field(default=None, ge=0, lt=MAX_SIZE)
    largest_upload_bytes: int | None = Field(default=None, ge=0, lt=MAX_SIZE)
    largest_tried_bytes: int | None = Field(default=None, ge=0, lt=MAX_SIZE)
    resumes: bool | None = None
    survives_breaks: bool | None = None
    referrers: bool | None = None
    shows_oci_to_enroot: bool | None = None
    takes_docker_lists: bool | None = None
    deletes_tags: bool | None = None
    deletes_manifests: bool | None = None
    deletes_blobs: bool | None = None
    media_types: dict[str, bool | None] = Field(default_factory=dict)
    artifact_types: dict[str, bool | None] = Field(default_factory=dict)
    deepest_name: int | None = Field(default=None, ge=1, le=256)
    deepest_tried: int | None = Field(default=None, ge=1, le=256)
    learned_at: dict[str, float] = Field(default_factory=dict)

    def limits(self) -> Limits:
        """Return what uploads begin with: the usual sizes, less where the registry is known to take less."""
        largest = self.largest_request_bytes or CHUNKED_ABOVE_BYTES
        chunk = max(min(CHUNK_BYTES, largest), self.smallest_chunk_bytes or 0)
        chunks = self.chunks is not False
        return Limits(min(CHUNKED_ABOVE_BYTES, largest), chunk, chunks, remembered=not chunks)

    def advice(self) -> str:
        """Return what an earlier run noted that may make an upload fail, and how to have it found out again."""
        facts = ["it takes no uploads in chunks"] if self.chunks is False else []
        if self.largest_request_bytes is not None:
            facts.append(f"it takes at most {self.largest_request_bytes} bytes in one request")
        if not facts:
            return ""
        return f"noted earlier: {', '.join(facts)}; `airferry registry probe {self.registry}` finds that out again"

    def learned(self, limits: Limits, *, mounts: bool) -> RegistryProfile:
        """Return the profile with what uploads have shown: refused sizes, no chunks, no mounts, or the contrary."""
        changes: dict[str, object] = {}
        if limits.chunked_above_bytes < self.limits().chunked_above_bytes:
            changes["largest_request_bytes"] = limits.chunk_bytes
        if not limits.chunks:
            changes["chunks"] = False
        elif self.chunks is False:
            changes["chunks"] = None
        if not mounts:
            changes["mounts"] = False
        now = {name: clock.now_s() for name, value in changes.items() if value not in (None, getattr(self, name))}
        return self.model_copy(update={**changes, "learned_at": {**self.learned_at, **now}})

    @property
    def limits_names(self) -> bool:
        """Whether the registry is known to refuse names of more than `deepest_name` parts."""
        return self.deepest_name is not None and self.deepest_name < (self.deepest_tried or 0)

    def disproved(self, media_types: Collection[str], artifact_types: Collection[str], depth: int) -> RegistryProfile:
        """Return the profile without refusals that a load has shown not to be, by what the registry took from it."""
        changes: dict[str, object] = {
            "media_types": _without(self.media_types, media_types),
            "artifact_types": _without(self.artifact_types, artifact_types),
        }
        if self.limits_names and depth > (self.deepest_name or 0):
            changes["deepest_name"] = None
        return self.model_copy(update=changes)

    def aged(self) -> RegistryProfile:
        """Return the profile without limits that were noted more than a day ago: registries are repaired and updated.

        What a registry cannot do costs a request to find out again. What an administrator had probed stays as long.
        """
        probed = _seconds(self.probed_at)
        now = clock.now_s()
        limited = [name for name in _LIMITS if getattr(self, name) not in (None, True)]
        old = [name for name in limited if not 0 <= now - self.learned_at.get(name, probed) <= LONGEST_TRUSTED_S]
        changes: dict[str, object] = dict.fromkeys(old)
        if not 0 <= now - probed <= LONGEST_TRUSTED_S:
            changes |= {
                "media_types": _without(self.media_types, self.media_types),
                "artifact_types": _without(self.artifact_types, self.artifact_types),
                "deepest_name": None if self.limits_names else self.deepest_name,
            }
        kept = {name: when for name, when in self.learned_at.items() if name not in old}
        return self.model_copy(update={**changes, "learned_at": kept})


def _without(types: dict[str, bool | None], refused: Collection[str]) -> dict[str, bool | None]:
    """Return which types are taken, with the refusals of some of them forgotten."""
    return {name: None if taken is False and name in refused else taken for name, taken in types.items()}


def profile_path(registry: str) -> Path:
    """Return where the profile of a registry host lies, existing or not."""
    name = hashlib.sha256(registry.encode()).hexdigest()[:16]
    return files.cache_directory() / "registries" / f"{name}.json"


def read_profile(registry: str) -> RegistryProfile:
    """Return what is known about a registry host and not too old; nothing, where the file is missing or damaged."""
    try:
        data = files.read_bounded(profile_path(registry), limit_bytes=MAX_PROFILE_BYTES)
        profile = RegistryProfile.model_validate_json(data)
    except (HostError, ValidationError):
        return RegistryProfile(registry=registry)
    return profile.aged() if profile.registry == registry else RegistryProfile(registry=registry)


def _seconds(moment: str | None) -> float:
    try:
        return datetime.fromisoformat(moment or "").timestamp()
    except (ValueError, OverflowError):
        return 0.0


def write_profile(profile: RegistryProfile) -> Path:
    """Keep a profile, atomically, and return its path.

    Raises:
        HostError: the cache cannot be written.
    """
    path = profile_path(profile.registry)
    files.write_bytes(path, profile.model_dump_json(indent=1).encode())
    return path


def keep_learned(known: RegistryProfile, limits: Limits, *, mounts: bool) -> RegistryProfile:
    """Note what uploads have shown beyond what was known, and return that; written only where they showed something."""
    learned = known.learned(limits, mounts=mounts)
    if learned != known:
        write_profile(learned)
    return learned
