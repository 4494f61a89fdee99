"""Where the images of a bundle go in a private registry: a rule, and exceptions to it. Talks to no registry.

The rule: the host of the name in the bundle is dropped, as is `library/` of `docker.io`; the rest of the path is kept
under the prefix, or only its last part with `flatten`; the tag stays. `nvcr.io/nvidia/nemo:25.09` goes to
`HOST/PREFIX/nvidia/nemo:25.09`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

from airferry.errors import AirferryError, UsageError
from airferry.oci.reference import DEFAULT_REGISTRY, Reference, expect_no_login, parse_reference
from airferry.wording import shell_word

ArtifactChoice = Literal["require", "try", "skip"]
ARTIFACT_CHOICES: tuple[str, ...] = get_args(ArtifactChoice)
AuditChoice = Literal["head", "read"]
AUDIT_CHOICES: tuple[str, ...] = get_args(AuditChoice)


@dataclass(frozen=True, slots=True)
class Destination:
    """A registry host, the path under which everything goes (empty for none), and how names change on the way.

    `maps` are exceptions to the rule: a name in the bundle, or what it begins with up to a `/` or the tag, and what
    takes its place under the prefix. With `flatten` only the last part of each path is kept. `artifacts` says whether a
    load needs the bundle's artifacts there, goes on without those that are refused, or leaves all of them out. `audit`
    says whether a load asks for the sizes of blobs in the end, or reads all of them back. With `verify_first` a load
    reads all blobs before it sends one, and so twice.
    """

    registry: str
    prefix: str
    maps: Mapping[str, str] = field(default_factory=dict)
    flatten: bool = False
    artifacts: ArtifactChoice = "try"
    audit: AuditChoice = "head"
    verify_first: bool = False

    def __str__(self) -> str:
        return f"{self.registry}/{self.prefix}" if self.prefix else self.registry

    def repository(self, path: str) -> str:
        """Return the repository for a path under the prefix."""
        return f"{self.prefix}/{path}" if self.prefix else path


def parse_destination(
    text: str,
    *,
    maps: Mapping[str, str] | None = None,
    flatten: bool = False,
    artifacts: str = "try",
    audit: str = "head",
    verify_first: bool = False,
) -> Destination:
    """Return the destination that `HOST[:PORT][/PREFIX]` names, with the exceptions to how names change.

    Raises:
        UsageError: it names none, or the choice about artifacts or the audit is none.
    """
    if artifacts not in ARTIFACT_CHOICES:
        raise UsageError(
            f"`--artifacts {artifacts}`: expected require, try or skip",
            hint="`try` is the default: it loads without the artifacts that the registry refuses",
        )
    if audit not in AUDIT_CHOICES:
        raise UsageError(
            f"`--audit {audit}`: expected head or read", hint="`head` is the default; `read` reads back every byte"
        )
    expect_no_login(text)
    trimmed = text.removeprefix("docker://").strip().rstrip("/")
    host, _, prefix = trimmed.partition("/")
    if not ("." in host or ":" in host or host == "localhost" or host.startswith("[")):
        raise UsageError(
            f"`{text}` is not a registry, expected `HOST:PORT/PREFIX`",
            hint=f"add the port, for example `{host or 'registry'}:443`",
        )
    try:
        parsed = parse_reference(f"{trimmed}/image")
    except UsageError as error:
        lower = f"{host}/{prefix.lower()}"
        if prefix == prefix.lower():
            raise error.reworded(error.message.replace(f"{trimmed}/image", text).replace("/image`", "`")) from error
        raise UsageError(
            f"`{text}`: registries take no upper-case letters in names, and `{prefix}` has some",
            hint=f"give the name that the registry has for it, such as `{lower}`",
        ) from error
    return Destination(
        parsed.registry,
        prefix,
        maps or {},
        flatten,
        cast(ArtifactChoice, artifacts),
        cast(AuditChoice, audit),
        verify_first,
    )


def relocate(names: Iterable[str], destination: Destination, *, whole: Collection[str] = ()) -> dict[str, Reference]:
    """Return where each image goes, in the order of the names. Of the destination's maps the longest key wins.

    Those in `whole` are asked for by their own names through a mirror: they keep `library/`.

    Raises:
        UsageError: two images would take one name, a map fits nothing, or a result is not a reference.
    """
    used: set[str] = set()
    placed: dict[str, Reference] = {}
    taken: dict[tuple[str, str], str] = {}
    for name in names:
        target = _place(name, destination, used, keep_library=name in whole)
        tag = target.tag or target.digest or ""
        other = taken.setdefault((target.repository, tag), name)
        if other != name:
            raise UsageError(
                f"`{other}` and `{name}` would both become `{target}`",
                hint=f"give one another name: `--map {shell_word(f'{name}=OTHER/NAME')}`",
            )
        placed[name] = target
    unused = sorted(destination.maps.keys() - used)
    if unused:
        raise UsageError(
            f"`--map {unused[0]}=…` matches no image in the bundle",
            hint="it holds " + ", ".join(f"`{name}`" for name in placed),
        )
    return placed


def _place(name: str, destination: Destination, used: set[str], *, keep_library: bool) -> Reference:
    given = parse_reference(name)
    rules = destination.maps
    matching = [key for key in rules if _fits(key, name)]
    if matching:
        key = max(matching, key=len)
        used.add(key)
        path, tag = rules[key].strip("/") + ("/" if key.endswith("/") else "") + name[len(key) :], None
    else:
        path, tag = given.repository, given.tag
        if given.registry == DEFAULT_REGISTRY and not keep_library:
            path = path.removeprefix("library/")
        if destination.flatten:
            path = path.rpartition("/")[2]
    text = f"{destination.registry}/{destination.repository(path)}" + (f":{tag}" if tag else "")
    try:
        target = parse_reference(text.partition("@")[0])
    except AirferryError as error:
        raise UsageError(f"`{name}` cannot go to `{text}`: {error.message}", hint="map it with `--map`") from error
    if given.digest and not given.tag and ":" not in path:
        target = replace(target, tag=None, digest=given.digest)
    elif not tag and given.tag and ":" not in text.rpartition("/")[2]:
        target = replace(target, tag=given.tag)
    return target


def _fits(key: str, name: str) -> bool:
    """Tell whether a map's key is the whole name, or ends in it at a `/` or before the tag."""
    if not name.startswith(key) or not key:
        return False
    rest = name[len(key) :]
    return not rest or key.endswith("/") or rest[0] in "/:@"
