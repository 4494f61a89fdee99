"""How deep the names of a registry's repositories may be. Begins uploads there, and ends each at once."""

from __future__ import annotations

from airferry.errors import RegistryError
from airferry.registry.client import RegistryClient
from airferry.registry.sink import REFUSALS
from airferry.registry.trials.kinds import TRIAL_ATTEMPTS
from airferry.registry.uploads import try_upload

# deepest first, as a registry that takes that needs no more; Docker Hub takes 2, as Quay did for long
TRIED_DEPTHS = (8, 6, 5, 4, 3, 2)


def depth_of(repository: str) -> int:
    """Return how many parts a repository's name has."""
    return repository.count("/") + 1


def deep_name(repository: str, depth: int | None) -> str:
    """Return the name below a repository that has this many parts."""
    parts = range(depth_of(repository) + 1, (depth or 0) + 1)
    return "/".join([repository, *(f"d{part}" for part in parts)])


def deepest_name(client: RegistryClient, repository: str) -> int | None:
    """Return how many parts a name may have, as far as it was tried; None where the registry gives no answer.

    `repository` is one that takes pushes; the names tried are below it.
    """
    known = depth_of(repository)
    for depth in TRIED_DEPTHS:
        if depth <= known:
            break
        try:
            taken = takes_uploads(client, deep_name(repository, depth))
        except RegistryError:
            return None
        if taken is None:
            return None
        if taken:
            return depth
    return known


def takes_uploads(client: RegistryClient, repository: str) -> bool | None:
    """Tell whether a repository may be pushed to, as far as an upload can be begun there; None without an answer.

    Raises:
        RegistryError: the registry does not answer.
    """
    what = f"begin an upload in `{client.registry}/{repository}`"
    answer = try_upload(client, repository, what=what, expected=None, attempts=TRIAL_ATTEMPTS)
    if answer.status_code == 202 and answer.headers.get("Location"):
        return True
    return False if answer.status_code in REFUSALS else None
