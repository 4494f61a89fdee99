"""The site profile: written from answers, and read where a command of the far side wants one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airferry.config import SiteProfile, check_site, load_config, load_site
from airferry.config.site import EXECUTOR_KINDS
from airferry.defaults import SITE_FILE
from airferry.errors import ConfigurationError, UsageError
from airferry.host import files
from airferry.host.yaml import render_yaml

PLAN_CONFIG = "airgap.yaml"
_INIT = "airferry site init --executor KIND"
HEADER = "# The far side, described for `airferry overlays`, `mirrors` and `check`.\n"


def init_site(
    path: Path,
    document: Mapping[str, Any],
    *,
    force: bool = False,
    options: Mapping[tuple[str | int, ...], str] | None = None,
) -> SiteProfile:
    """Write a site profile, once it was checked as any other, and return it. Atomic.

    `options` names the option that the value at a path of keys came from.

    Raises:
        UsageError: the file is there, and `force` is not given; the document names no executor; or the profile would
            be wrong: all that is, each as `option: reason`.
    """
    place = files.output_file(path)
    if path.exists() and not force:
        raise UsageError(f"`{path}` already exists", hint="`--force` replaces it")
    written = {key: value for key, value in document.items() if value not in (None, "", [], {}, ())}
    if "executors" not in written:
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
    files.write_text(place, HEADER + render_yaml(written))
    return site


def known_site(path: Path | None) -> SiteProfile | None:
    """Return the site profile as `read_site` finds it, or None where there is none: for what it may say besides.

    Raises:
        ConfigurationError: the file is wrong.
    """
    found = path or _profile_here()
    if path is None and found == Path(PLAN_CONFIG):
        return load_config(found).site
    return None if found is None else load_site(found)


def _profile_here() -> Path | None:
    return next((Path(name) for name in (SITE_FILE, PLAN_CONFIG) if Path(name).is_file()), None)


def site_trouble(key: str, value: Any) -> str | None:
    """Return what is wrong with a value of one key of a site profile by itself, None if nothing is."""
    try:
        check_site({key: value}, {(key,): key})
    except ConfigurationError as error:
        return error.message.partition("`: ")[2]
    return None


def read_site(path: Path | None) -> SiteProfile:
    """Return the site profile of a file; without one, of `site.yaml` or else of `site:` in `airgap.yaml` here.

    Raises:
        ConfigurationError: the file is wrong, there is no profile, or it names no executor. What runs the jobs decides
            how images are named and jobs are submitted, so it is never guessed.
    """
    path = path or _profile_here()
    if path is None:
        raise ConfigurationError(
            "there is no site profile: nothing says what runs the jobs",
            hint=f"describe the site with `{_INIT}`, or name its profile with `--site`",
        )
    known = load_site(path)
    if not known.executors:
        raise ConfigurationError(
            f"{path}: the site profile names no executor: nothing says what runs the jobs",
            hint=f"add `executors:`, or replace the profile with `{_INIT} --force`",
            path=str(path),
        )
    return known
