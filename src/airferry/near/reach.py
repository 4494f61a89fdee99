"""What a build of a plan reaches for, asked before a build starts: bases, Git hosts, the package index.

Each is asked once, side by side, for a limited time, the way that the build would ask. No layer is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from airferry.config import ArchiveBase, BootstrapBase, LayoutBase, RegistryBase
from airferry.engine.preflight import Check
from airferry.errors import AirferryError, IntegrityError, RegistryError
from airferry.events import Emit, Event, Warned
from airferry.host.threads import parallel_map
from airferry.near.assemble import context
from airferry.near.bases.fetch import find_children, open_base
from airferry.near.git import driver as git
from airferry.near.git.addresses import redact
from airferry.near.lock.covered import needed_bases
from airferry.near.wheels.pip import Pip
from airferry.oci.documents import MAX_IMAGE_CONFIG_BYTES, ImageConfig, Manifest, parse_image_config
from airferry.oci.platform import Platform
from airferry.oci.ports import Source
from airferry.plan.locks.catalogue import read_catalogue_lock
from airferry.plan.locks.packages import GitSource
from airferry.plan.models import Plan
from airferry.registry.client import ClientOptions, open_clients
from airferry.registry.pulls import Pulls, PullSource
from airferry.registry.retry import RetryPolicy
from airferry.registry.tls import BY_FILES

QUESTIONS_AT_ONCE = 8
GIT_S = 20.0
INDEX_S = 30.0
_QUICKLY = ClientOptions(connect_timeout_s=5.0, read_timeout_s=15.0, retry=RetryPolicy(attempts=1), told=BY_FILES)


def ask_all(plan: Plan, *, emit: Emit) -> list[Check]:
    """Ask for all that a build of a plan needs from elsewhere, and return a line for each, in a fixed order."""

    def warnings(event: Event) -> None:
        if isinstance(event, Warned):
            emit(event)

    with open_clients(_QUICKLY, emit=emit) as clients:
        pulls = Pulls(clients, emit=warnings)
        index = partial(_check, "package index", partial(Pip(emit=emit).ask_index, timeout_s=INDEX_S))
        questions: list[Callable[[], Check]] = [*_source(plan), *_bases(plan, pulls), *_git(plan), index]
        return parallel_map(lambda ask: ask(), questions, jobs=QUESTIONS_AT_ONCE)


def _source(plan: Plan) -> Iterator[Callable[[], Check]]:
    if plan.launcher is not None:
        yield partial(
            _check,
            "source of the launcher",
            lambda: f"Git tracks {len(context.tracked_files(plan.source_root))} files in `{plan.source_root}`",
        )


def _bases(plan: Plan, pulls: Pulls) -> Iterator[Callable[[], Check]]:
    for key, (base, platforms) in sorted(needed_bases(plan).items()):
        if not isinstance(base, BootstrapBase):
            yield partial(_check, f"base {key}", partial(_find_base, base, platforms, pulls))


def _find_base(base: RegistryBase | LayoutBase | ArchiveBase, platforms: Sequence[Platform], pulls: Pulls) -> str:
    """Return the digest of a base that has an image for each platform, and where it is if its name does not say it."""
    source, wanted, _kind = open_base(base, open_registry=pulls.source)
    if not isinstance(source, PullSource):
        found = source.resolve(wanted)
    else:
        digest = source.find(wanted)
        if digest is None:
            raise RegistryError("there is no such image", hint="check its name and tag")
        found = source.resolve(digest)
    find_children(base.key, source, found, platforms, read_config=partial(_read_config, source))
    if not isinstance(base, RegistryBase) or str(source) == base.parsed.name:
        return found.digest
    return f"{found.digest} from `{source}`"


def _read_config(source: Source, manifest: Manifest) -> ImageConfig:
    if manifest.config.size > MAX_IMAGE_CONFIG_BYTES:
        raise IntegrityError(
            f"the image's config is larger than {MAX_IMAGE_CONFIG_BYTES >> 20} MiB",
            hint="name another base: no image needs such a config",
        )
    with source.open_blob(manifest.config) as stream:
        return parse_image_config(stream.read(manifest.config.size))


def _git(plan: Plan) -> Iterator[Callable[[], Check]]:
    """Yield a question for each ref of an overlay, and each repository of the catalogue's lock."""
    for overlay in plan.overlays:
        name = f"Git {redact(overlay.url)}@{overlay.ref}"
        yield partial(_check, name, partial(_find_ref, overlay.url, overlay.ref))
    asked = {overlay.url for overlay in plan.overlays}
    for url in _locked_repositories(plan):
        if url not in asked:
            yield partial(_check, f"Git {redact(url)}", partial(_find_ref, url, "HEAD"))


def _locked_repositories(plan: Plan) -> list[str]:
    if plan.lock_path is None:
        return []
    packages = read_catalogue_lock(plan.lock_path).packages.values()
    return sorted({one.source.url for several in packages for one in several if isinstance(one.source, GitSource)})


def _find_ref(url: str, ref: str) -> str:
    commit = git.find_ref(url, ref, timeout_s=GIT_S)
    return commit or "the host answers; the commit is checked when it is fetched"


def _check(name: str, ask: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", ask())
    except AirferryError as error:
        return Check(name, "fail", error.message, error.hint)
