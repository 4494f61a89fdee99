"""The site profile: written from answers, and read where a command of the far side wants one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airferry.config import SiteProfile, load_config, load_site, parse_site
from airferry.defaults import SITE_FILE
from airferry.errors import ConfigurationError, UsageError
from airferry.host import files
from airferry.host.yaml import render_yaml

PLAN_CONFIG = "airgap.yaml"
HEADER = "# The far side, described for `airferry overlays`, `mirrors` and `check`.\n"


def init_site(path: Path, document: Mapping[str, Any], *, force: bool = False) -> SiteProfile:
    """Write a site profile, once it was checked as any other, and return it. Atomic.

    Raises:
        UsageError: the file is there, and `force` is not given.
        ConfigurationError: the profile would be wrong.
    """
    if path.exists() and not force:
        raise UsageError(f"`{path}` already exists", hint="`--force` replaces it")
    written = {key: value for key, value in document.items() if value not in (None, "", [], {}, ())}
    text = HEADER + render_yaml(written)
    site = parse_site(text.encode(), path)
    files.write_text(path, text)
    return site


def site_trouble(key: str, value: Any) -> str | None:
    """Return what is wrong with a value of one key of a site profile by itself, None if nothing is."""
    try:
        parse_site(render_yaml({key: value}).encode(), Path("answer"))
    except ConfigurationError as error:
        return error.message.partition(f"`{key}")[2].partition(": ")[2] or error.message
    return None


def read_site(path: Path | None) -> SiteProfile:
    """Return the site profile of a file; without one, of `site.yaml` or `airgap.yaml` here; else an empty one.

    Raises:
        ConfigurationError: the file is wrong.
    """
    if path is not None:
        return load_site(path)
    if Path(SITE_FILE).is_file():
        return load_site(Path(SITE_FILE))
    if Path(PLAN_CONFIG).is_file():
        return load_config(Path(PLAN_CONFIG)).site or SiteProfile()
    return SiteProfile()
