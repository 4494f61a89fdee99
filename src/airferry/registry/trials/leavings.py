"""What a trial has put into a registry: removed again, and what the registry does not remove is named."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from airferry.errors import RegistryError
from airferry.registry.auth import repository_scope
from airferry.registry.connections import Request
from airferry.registry.sink import RegistrySink
from airferry.wording import counted, some_of

DONE = frozenset({200, 202, 204})
SHOWN_REPOSITORIES = 5


@dataclass(slots=True)
class Leavings:
    """What a trial has put into a registry and not removed: in which repositories, which manifests, blobs and tags.

    Each is noted before it is sent, so that what a trial leaves that ends early is known, too. Repositories stay where
    a registry does not drop empty ones: the distribution-spec has no request that removes them.
    """

    repositories: list[str] = field(default_factory=list)
    manifests: list[str] = field(default_factory=list)
    blobs: list[tuple[str, str]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    def clear(self, sink: RegistrySink) -> Cleared:
        """Remove what was put into a repository, what names something before that; say what the registry removes.

        Raises:
            RegistryError: the registry does not answer.
        """
        tags = [tag for tag in self.tags if sink.delete_tag(tag)]
        manifests = [digest for digest in reversed(self.manifests) if sink.delete_manifest(digest)]
        done = Cleared(
            tags=bool(tags) if self.tags else None,
            manifests=len(manifests) == len(self.manifests) if self.manifests else None,
        )
        self.manifests = [digest for digest in self.manifests if digest not in manifests]
        # with its manifest, a tag goes where it cannot be removed itself
        self.tags = [tag for tag in self.tags if tag not in tags and sink.source.find(tag) is not None]
        for repository, digest in list(reversed(self.blobs)):
            done.blobs = delete_blob(RegistrySink(sink.client, repository), digest)
            if not done.blobs:
                # it says so of all of them
                break
            self.blobs.remove((repository, digest))
        return done

    def clear_what_can_be(self, sink: RegistrySink) -> None:
        """Remove what was put into a repository after a trial that failed, as far as the registry still answers."""
        with suppress(RegistryError):
            self.clear(sink)

    def describe(self, registry: str) -> str:
        """Return in words what stays in a registry and how to remove it; empty where nothing was put there."""
        if not self.repositories:
            return ""
        shown = some_of([f"`{name}`" for name in self.repositories], SHOWN_REPOSITORIES)
        counts = {"manifest": len(self.manifests), "blob": len(self.blobs), "tag": len(self.tags)}
        held = [counted(number, noun) for noun, number in counts.items() if number]
        what = f"with {', '.join(held)} that it does not remove" if held else "empty"
        return (
            f"`{registry}` may keep the repositories of this trial, {what}: {shown}; remove them there, as no client "
            f"can: in its web interface or, of docker-registry and Distribution, as folders of `repositories/` in its "
            "storage, then run its garbage collection"
        )

    def to_document(self) -> dict[str, list[str]]:
        """Return what stays as plain data."""
        return {
            "repositories": list(self.repositories),
            "manifests": list(self.manifests),
            "blobs": [f"{repository}@{digest}" for repository, digest in self.blobs],
            "tags": list(self.tags),
        }


@dataclass(slots=True)
class Cleared:
    """Whether a registry removes tags, manifests and blobs; None where there was none to remove."""

    tags: bool | None = None
    manifests: bool | None = None
    blobs: bool | None = None


def delete_blob(sink: RegistrySink, digest: str) -> bool:
    """Remove a blob from a repository; False if the registry does not do that.

    Raises:
        RegistryError: the registry does not answer.
    """
    response = sink.client.request(
        Request(
            "DELETE",
            f"{sink.repository}/blobs/{digest}",
            what=f"remove blob `{digest}` of `{sink}`",
            scopes=(repository_scope(sink.repository, "delete", "pull", "push"),),
        ),
        expected=None,
    )
    return response.status_code in DONE
