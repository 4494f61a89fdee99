"""What was found out about a registry, in words: each fact with what it means for loads and pulls."""

from __future__ import annotations

from dataclasses import dataclass

from airferry.oci.documents import (
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    EMPTY_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_GZIP,
    LAYER_ZSTD,
)
from airferry.registry.profile import RegistryProfile
from airferry.registry.trials.kinds import PROBE_ARTIFACT
from airferry.wording import counted, size_text

# what it means where a registry does a thing, and where it does not
_MEANING = {
    "mounts": (
        "a blob that another repository holds is not sent again",
        "each repository is sent its own copy of a blob",
    ),
    "chunks": (
        "large blobs go in parts, and past limits of requests",
        "a blob goes in one request, whatever its size",
    ),
    "resumes": (
        "an interrupted load goes on with what arrived",
        "an interrupted blob is sent from its start",
    ),
    "survives_breaks": (
        "so does one whose connection broke within a chunk",
        "after a connection that broke within a chunk, the blob is sent from its start",
    ),
    "referrers": (
        "artifacts of an image are listed by the registry",
        "artifacts of an image are listed under the tag `sha256-…`, which airferry keeps",
    ),
    "shows_oci_to_enroot": (
        "Slurm with enroot imports images as they are",
        "Slurm with enroot needs Docker twins: `docker_twin: true`",
    ),
    "takes_docker_lists": (
        "Docker twins can be stored",
        "Docker twins are left out",
    ),
    "deletes_tags": (
        "`load --rollback` removes tags that were not there before",
        "`load --rollback` cannot remove tags that were not there before",
    ),
    "deletes_manifests": (
        "old images can be removed by digest",
        "old images cannot be removed by its API",
    ),
    "deletes_blobs": (
        "blobs can be removed by digest",
        "blobs go with the registry's own garbage collection only",
    ),
}
_TYPES = {
    IMAGE_MANIFEST: "OCI images",
    IMAGE_INDEX: "OCI images of several platforms, as all of a bundle are",
    DOCKER_MANIFEST: "Docker images (schema 2)",
    DOCKER_MANIFEST_LIST: "Docker images of several platforms",
    LAYER_GZIP: "layers in gzip",
    LAYER_ZSTD: "layers in zstd, the default of a build; else `compression: gzip`",
    EMPTY_CONFIG: "artifacts with the empty config",
    PROBE_ARTIFACT: "artifacts of a type that it cannot know, so of any",
}


@dataclass(frozen=True, slots=True)
class ProbedFact:
    """One thing about a registry: its name, its value as text, and what that means."""

    name: str
    value: str
    meaning: str


def explain_profile(profile: RegistryProfile) -> list[ProbedFact]:
    """Return all facts in a fixed order: abilities, sizes, names, then types."""
    facts = []
    for name, (done, missing) in _MEANING.items():
        value = getattr(profile, name)
        facts.append(ProbedFact(name, _answer(value), "" if value is None else done if value else missing))
    facts += [*_sizes(profile), _depth(profile)]
    types = {**profile.media_types, **profile.artifact_types}
    facts += [
        ProbedFact(name, _answer(taken), _TYPES.get(name, "artifacts of bundles")) for name, taken in types.items()
    ]
    return facts


def _answer(value: object) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _sizes(profile: RegistryProfile) -> list[ProbedFact]:
    limit, tried = profile.largest_request_bytes, profile.largest_tried_bytes
    beyond = "the largest that was tried" if limit is None else "a larger one was refused (413)"
    facts = []
    for name, value, what in (
        ("largest_chunk_bytes", profile.largest_chunk_bytes, "taken as one chunk"),
        ("largest_upload_bytes", profile.largest_upload_bytes, "taken as one whole upload"),
    ):
        none = f"nothing was {what}" if profile.largest_chunk_bytes is None else "not tried, as a chunk came through"
        meaning = f"{what}; {beyond}" if value is not None else none
        facts.append(ProbedFact(name, "unknown" if value is None else size_text(value), meaning))
    meaning = "no request was refused for its size" if limit is None else "what loads send in one request, at most"
    facts.append(ProbedFact("largest_request_bytes", "no limit seen" if limit is None else size_text(limit), meaning))
    if tried is not None:
        facts.append(ProbedFact("largest_tried_bytes", size_text(tried), "nothing larger was tried (`--largest`)"))
    least = profile.smallest_chunk_bytes
    meaning = "chunks may have any size" if not least else "smaller chunks are refused, but for the last one"
    facts.append(ProbedFact("smallest_chunk_bytes", "no limit seen" if least is None else size_text(least), meaning))
    return facts


def _depth(profile: RegistryProfile) -> ProbedFact:
    deepest, tried = profile.deepest_name, profile.deepest_tried
    if deepest is None:
        return ProbedFact("deepest_name", "unknown", "")
    beyond = (
        f"names of more parts are refused; {tried} were tried" if profile.limits_names else "no deeper one was tried"
    )
    return ProbedFact("deepest_name", counted(deepest, "part"), f"of a repository's name; {beyond}")
