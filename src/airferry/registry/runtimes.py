"""Asks for an image as the container runtimes ask: their requests in their order, with their `Accept`.

enroot's requests are taken from its source (3.4 to 4.1, `src/docker.sh`). Those of containerd 2, of containers/image 5
(Podman and CRI-O) and of moby 28 have not been compared with their sources, and cover the first request only; compare
them with `core/remotes/docker/resolver.go`, `docker/docker_image_src.go` and `distribution/pull_v2.go` before relying
on details. Changes nothing in the registry, and reads no blob.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from airferry.errors import IntegrityError
from airferry.host.parsing import Malformed, parse_json
from airferry.oci.closure import select_platforms
from airferry.oci.documents import (
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    INDEX_TYPES,
    LAYER_ZSTD,
    MAX_MANIFEST_BYTES,
    Index,
    Manifest,
    parse_index,
    parse_manifest,
)
from airferry.oci.platform import Platform
from airferry.registry.auth import parse_challenges
from airferry.registry.connections import Answer, Request
from airferry.registry.source import RegistrySource

Runtime = Literal["enroot", "containerd", "podman", "docker"]

ANYTHING = "*/*"  # what curl sends where no `Accept` is given
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
_UNSIGNED_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+json"
_FIRST_REQUESTS: dict[Runtime, tuple[str, tuple[str, ...]]] = {
    "containerd": ("HEAD", (DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, IMAGE_MANIFEST, IMAGE_INDEX, ANYTHING)),
    "podman": (
        "GET",
        (IMAGE_MANIFEST, DOCKER_MANIFEST, _SCHEMA_1, _UNSIGNED_SCHEMA_1, DOCKER_MANIFEST_LIST, IMAGE_INDEX),
    ),
    "docker": (
        "GET",
        (_SCHEMA_1, "application/json", DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST, DOCKER_MANIFEST),
    ),
}
ENROOT_LISTS = f"{DOCKER_MANIFEST_LIST}, {IMAGE_INDEX}"
ENROOT_MANIFESTS = f"{DOCKER_MANIFEST}, {IMAGE_MANIFEST}"
FIRST_ENROOT_WITH_LISTS = (3, 4, 1)
FIRST_ENROOT_WITH_MIXED_LAYERS = (4, 1, 3)


@dataclass(frozen=True, slots=True)
class PullAnswer:
    """What a runtime gets: the manifest for its platform, or the problem that keeps it from pulling.

    `missing`: the registry does not hold the image. `hidden`: it does, and answers others, but not this runtime.
    """

    manifest: Manifest | None = None
    problem: str | None = None
    missing: bool = False
    hidden: bool = False


def pull_as(
    runtime: Runtime,
    source: RegistrySource,
    reference: str,
    *,
    version: tuple[int, ...] = (),
    platform: Platform | None = None,
) -> PullAnswer:
    """Ask for a tag or digest as a runtime does, up to the manifest of a platform (the first one by default).

    `version` is that of the runtime, empty for its newest.

    Raises:
        RegistryError: the registry does not answer, or refuses this user.
        IntegrityError: what it answers is not an image.
        BuildError: the image is not for the platform.
    """
    if runtime == "enroot":
        return _Enroot(source, version).pull(reference, platform)
    method, accept = _FIRST_REQUESTS[runtime]
    first = _ask(source, method, reference, ", ".join(accept))
    if first.status_code >= 400:
        return _refused(source, runtime, reference, first)
    top = source.resolve(reference)
    if top.media_type in INDEX_TYPES:
        index = source.read_manifest(top).index
        fitting = [child for child in index.manifests if child.is_runnable]
        if platform is not None:
            fitting = select_platforms(index, [platform], what=f"image `{reference}`")
        if not fitting:
            raise IntegrityError(
                f"index `{reference}` lists no image", hint="build the index again, with the images for its platforms"
            )
        top = fitting[0]
    return PullAnswer(source.read_manifest(top).manifest)


def hides_from_enroot(source: RegistrySource, reference: str) -> bool:
    """Tell whether enroot's first requests for a manifest that is there fail.

    Raises:
        RegistryError: the registry does not answer.
    """
    return _Enroot(source, ()).first_requests(reference) is not None


class _Enroot:
    """enroot's requests, as `docker::_authenticate` and `docker::_download` make them."""

    def __init__(self, source: RegistrySource, version: tuple[int, ...]) -> None:
        self._source = source
        self._version = version

    def pull(self, reference: str, platform: Platform | None) -> PullAnswer:
        """Ask for the manifest of a platform, and judge its layers."""
        failed = self.first_requests(reference)
        if failed is not None:
            return _refused(self._source, "enroot", reference, failed, unnamed=True)
        name = reference
        if self._since(FIRST_ENROOT_WITH_LISTS):
            # 401 and 404 are ignored here, and an answer that is not a list as well
            listed = _ask(self._source, "GET", reference, ENROOT_LISTS)
            name = _digest_for(listed, platform) or reference
            answer = _ask(self._source, "GET", name, ENROOT_MANIFESTS)
        else:
            answer = _ask(self._source, "GET", name, DOCKER_MANIFEST)
        if answer.status_code >= 400:
            return _refused(self._source, "enroot", name, answer)
        document = _document(answer.content)
        if not _is_image(document):
            wanted = f"`{platform}`" if platform else "any platform"
            return PullAnswer(problem=f"enroot finds no image for {wanted} in the answer of the registry")
        manifest = parse_manifest(answer.content, what=f"manifest `{name}`")
        return PullAnswer(manifest, problem=self._unreadable(manifest))

    def first_requests(self, reference: str) -> Answer | None:
        """Send what enroot sends before it names a media type; return the answer that ends an import, else None.

        Without a login that is `curl -I`. Where the registry asks for a password, a GET follows with it, and again
        without `Accept`; where it asks for a token, a 401 is all that enroot needs, so nothing is hidden from it.
        """
        answer = _ask(self._source, "HEAD", reference, ANYTHING, anonymous=True)
        challenges = [item.scheme for item in parse_challenges(answer.headers.get("WWW-Authenticate", ""))]
        if answer.status_code == 401 and challenges[:1] == ["basic"]:
            answer = _ask(self._source, "GET", reference, ANYTHING)
        elif answer.status_code == 401:
            return None
        return answer if answer.status_code >= 400 else None

    def _unreadable(self, manifest: Manifest) -> str | None:
        kinds = {layer.media_type for layer in manifest.layers}
        if LAYER_ZSTD in kinds and len(kinds) > 1 and not self._since(FIRST_ENROOT_WITH_MIXED_LAYERS):
            return (
                "the layers differ in compression, and enroot up to 4.1.2 assumes the "
                "compression of the first layer for all"
            )
        return None

    def _since(self, first: tuple[int, ...]) -> bool:
        """Tell whether the version is that one or newer; `3.4` may be any of 3.4.x, so it counts as the last."""
        return not self._version or self._version >= first[: len(self._version)]


def _ask(source: RegistrySource, method: str, reference: str, accept: str, *, anonymous: bool = False) -> Answer:
    return source.client.request(
        Request(
            method,
            f"{source.repository}/manifests/{reference}",
            what=f"look up `{reference}` in `{source}`",
            scopes=source.scopes,
            headers={"Accept": accept},
            anonymous=anonymous,
        ),
        expected=None,
        limit_bytes=MAX_MANIFEST_BYTES,
    )


def _refused(
    source: RegistrySource, runtime: Runtime, reference: str, answer: Answer, *, unnamed: bool = False
) -> PullAnswer:
    """Return what an answer of 400 or more means: the registry lacks the image, or hides it from this runtime."""
    if source.find(reference) is None:
        return PullAnswer(missing=True)
    request = f"`{answer.method} …/manifests/{reference}`"
    why = ", which names no media type" if unnamed else ""
    problem = f"the registry holds the image and answers {answer.status_code} to {request} of {runtime}{why}"
    return PullAnswer(hidden=True, problem=problem)


def _digest_for(answer: Answer, platform: Platform | None) -> str | None:
    """Return the first digest that a list has for an architecture, None for what is not a list."""
    if answer.status_code >= 400:
        return None
    try:
        index: Index = parse_index(answer.content)
    except IntegrityError:
        return None
    for child in index.manifests:
        stated = child.platform_value()
        if (
            stated is not None
            and child.is_runnable
            and (platform is None or stated.architecture == platform.architecture)
        ):
            return child.digest
    return None


def _document(data: bytes) -> Any:
    try:
        return parse_json(data)
    except Malformed:
        return None


def _is_image(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and isinstance(document.get("config"), dict)
        and isinstance(document.get("layers"), list)
        and bool(document["layers"])
    )
