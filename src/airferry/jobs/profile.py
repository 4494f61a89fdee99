"""The site profile: written from answers, and read where a command of the far side wants one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airferry.bundle.receipt import Receipt
from airferry.config import SiteProfile, check_site, load_site, site_in
from airferry.config.document import read_yaml
from airferry.config.site import EXECUTOR_KINDS
from airferry.defaults import PLAN_CONFIG, SITE_FILE
from airferry.errors import ConfigurationError, UsageError
from airferry.events import Emit, Warned, silent
from airferry.host import files
from airferry.host.yaml import render_yaml
from airferry.wording import shell_word

_INIT = "airferry site init --executor KIND"
HEADER = "# The far side, described for `airferry overlays`, `mirrors` and `check`.\n"


def init_site(
    path: Path,
    document: Mapping[str, Any],
    *,
    force: bool = False,
    only_check: bool = False,
    options: Mapping[tuple[str | int, ...], str] | None = None,
) -> SiteProfile:
    """Write a site profile, once it was checked as any other, and return it. Atomic.

    `options` names the option that the value at a path of keys came from. With `only_check`, nothing is written, and
    the executors may still be missing: before somebody is asked for them.

    Raises:
        UsageError: the file is there, and `force` is not given; the document names no executor; or the profile would
            be wrong: all that is, each as `option: reason`.
    """
    place = files.output_file(path)
    if path.exists() and not force:
        raise UsageError(f"`{path}` already exists", hint="`--force` replaces it")
    written = {key: value for key, value in document.items() if value not in (None, "", [], {}, ())}
    if "executors" not in written and not only_check:
        raise UsageError(
            "a site profile needs at least one executor: what runs the jobs",
            hint=f"`--executor KIND[:VERSION]`, KIND one of {', '.join(sorted(EXECUTOR_KINDS))}; nothing was written",
        )
    try:
        site = check_site(written, options)
    except ConfigurationError as error:
        raise UsageError(
            error.message, hint=f"`{path}` was not written; each form is in `airferry site init --help`"
        ) from error
    if not only_check:
        files.write_text(place, HEADER + render_yaml(written))
    return site


@dataclass(frozen=True, slots=True)
class FoundSite:
    """A site profile and the file that it was read from."""

    path: Path
    profile: SiteProfile

    @property
    def ca_file(self) -> Path | None:
        """The CA of the registry on this host; a relative path starts at the profile's folder."""
        if self.profile.ca_file is None:
            return None
        return files.without_dots(self.path.parent / files.expand_home(Path(self.profile.ca_file)))


def known_site(path: Path | None, *, emit: Emit = silent) -> FoundSite | None:
    """Return the site profile as `read_site` finds it, or None where there is none: for what it may say besides.

    An `airgap.yaml` that only lies here may be of anything: only its `site:` is looked at, and where it is not YAML, a
    warning says that nothing is taken from it.

    Raises:
        ConfigurationError: the profile is wrong, or the file that was named cannot be read.
    """
    found = path or _profile_here()
    if found is None:
        return None
    if path is not None or found != Path(PLAN_CONFIG):
        return FoundSite(found, _load(found))
    try:
        document = read_yaml(found)
    except ConfigurationError as error:
        emit(Warned(f"nothing is taken from `{found}` here: {error.message}", hint=error.hint))
        return None
    site = site_in(document)
    return FoundSite(found, site) if site is not None else None


def _load(path: Path) -> SiteProfile:
    if not path.exists():
        raise ConfigurationError(
            f"there is no site profile `{path}`",
            hint=f"write it with `{_INIT} --out {shell_word(path)}`, or name another with `--site`",
            path=str(path),
        )
    return load_site(path)


def _profile_here() -> Path | None:
    return next((Path(name) for name in (SITE_FILE, PLAN_CONFIG) if Path(name).is_file()), None)


def site_trouble(key: str, value: Any) -> str | None:
    """Return what is wrong with a value of one key of a site profile by itself, None if nothing is."""
    try:
        check_site({key: value}, {(key,): key})
    except ConfigurationError as error:
        return error.message.partition("`: ")[2]
    return None


def warn_of_another_site(site: FoundSite | None, receipt: Receipt | None, *, emit: Emit) -> None:
    """Warn of a profile that names another registry than the load went into: CA and executors may be another site's."""
    named = site.profile.registry if site is not None else None
    if site is None or receipt is None or named is None or named.rstrip("/") == receipt.registry:
        return
    emit(
        Warned(
            f"`{site.path}` describes registry `{named}`, but the receipt is from a load into `{receipt.registry}`",
            hint="if it is the profile of another site, name the right one with `--site FILE`; else correct its "
            f"`registry:`, or name the receipt of the load into `{named}`",
        )
    )


def read_site(given: Path | FoundSite | None, *, receipt: Receipt | None = None, emit: Emit = silent) -> SiteProfile:
    """Return the site profile of a file; without one, of `site.yaml` or else of `site:` in `airgap.yaml` here.

    What `known_site` found is not read again. A warning says where it does not fit a `receipt`.

    Raises:
        ConfigurationError: the file is wrong, there is no profile, or it names no executor. What runs the jobs decides
            how images are named and jobs are submitted, so it is never guessed.
    """
    path = given.path if isinstance(given, FoundSite) else given or _profile_here()
    if path is None:
        raise ConfigurationError(
            "there is no site profile: nothing says what runs the jobs",
            hint=f"describe the site with `{_INIT}`, or name its profile with `--site`",
        )
    known = given.profile if isinstance(given, FoundSite) else _load(path)
    if not known.executors:
        raise ConfigurationError(
            f"{path}: the site profile names no executor: nothing says what runs the jobs",
            hint=f"add `executors:`, or replace the profile with `{_INIT} --force`",
            path=str(path),
        )
    warn_of_another_site(FoundSite(path, known), receipt, emit=emit)
    return known
