"""Docker twins: a Docker manifest list over the very manifests of an image index, sealed next to it.

enroot asks for an image with `curl -I` first, which names no media type, and docker-registry 2.7 and 2.8 answer 404 for
an OCI index then. They show a Docker list to anyone who asks for it by digest, and enroot takes OCI manifests out of
it: its later requests accept both kinds. So the twin costs a kilobyte, and layers may be of any compression. To be
dropped when no site runs these registries any more; distribution 3 shows OCI indexes as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from airferry.bundle.manifest import ImageEntry, TwinEntry
from airferry.errors import ConfigurationError
from airferry.host.canonical import canonical_json
from airferry.oci.documents import DOCKER_MANIFEST_LIST, Descriptor, Index
from airferry.oci.layout import LayoutStore
from airferry.oci.reference import Reference, parse_reference
from airferry.wording import counted

SUFFIX = "-docker"
MAX_TAG_CHARACTERS = 128


def twin_of(image: Reference) -> Reference:
    """Return the reference of an image's twin: the same repository, the tag with a suffix."""
    tag = (image.tag or "latest")[: MAX_TAG_CHARACTERS - len(SUFFIX)]
    return replace(image, tag=tag + SUFFIX, digest=None)


def put_twin(store: LayoutStore, index: Descriptor) -> Descriptor:
    """Store the Docker manifest list over what an image index lists, and return its descriptor. Idempotent.

    Raises:
        IntegrityError: the store does not hold the index.
    """
    listed = store.read_manifest(index).index.manifests
    children = [
        Descriptor(media_type=child.media_type, digest=child.digest, size=child.size, platform=child.platform)
        for child in listed
    ]
    twin = Index(schema_version=2, media_type=DOCKER_MANIFEST_LIST, manifests=children)
    return store.put_bytes(canonical_json(twin), DOCKER_MANIFEST_LIST)


def with_twins(store: LayoutStore, entries: Iterable[ImageEntry], named: dict[str, Descriptor]) -> list[ImageEntry]:
    """Store the twin of each image, enter it in `named`, and return the entries that say so.

    Raises:
        ConfigurationError: another image has the name of a twin.
        IntegrityError: the store does not hold an image.
    """
    made: list[ImageEntry] = []
    for entry in entries:
        reference = str(twin_of(parse_reference(entry.reference)))
        if reference in named:
            raise ConfigurationError(
                f"`{reference}` is the name of an image, and of the Docker twin of `{entry.reference}`",
                hint="give one of the images a different `tag`, or set `docker_twin: false`",
            )
        named[reference] = put_twin(store, named[entry.reference])
        made.append(
            entry.model_copy(update={"docker_twin": TwinEntry(reference=reference, digest=named[reference].digest)})
        )
    return made


def images_text(images: int, *, twins: int, originals: int) -> str:
    """Return how many images a bundle holds: those built, their Docker twins, and bases as they were."""
    parts = [counted(images, "image")]
    parts += [counted(twins, "Docker twin")] if twins else []
    parts += [counted(originals, "original base image")] if originals else []
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
