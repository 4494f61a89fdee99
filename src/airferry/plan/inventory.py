"""The Python distributions that an image holds, as one text: `name==version`, sorted, with blanks between them.

A text and not a mapping, as it is for programs: hundreds of lines in a lock or receipt would hide what people read.
"""

from __future__ import annotations

from collections.abc import Mapping

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from airferry.wording import obeyed


def render_inventory(distributions: Mapping[str, str]) -> str:
    """Return distributions, name to version, as text."""
    named = {canonicalize_name(name): version for name, version in distributions.items()}
    return " ".join(f"{name}=={version}" for name, version in sorted(named.items()) if _is_word(name, version))


def _is_word(*texts: str) -> bool:
    # metadata in a base is text of others: a version with a blank in it would name one more distribution
    return all(len(text.split()) == 1 and obeyed(text) is None for text in texts)


def parse_inventory(text: str) -> dict[str, str]:
    """Return the distributions that `render_inventory` wrote: normalised name to version."""
    return {name: version for name, _, version in (item.partition("==") for item in text.split())}


def is_held(requirement: str, held: Mapping[str, str]) -> bool:
    """Tell whether an image holds a distribution in a version that suits a requirement of pip."""
    try:
        wanted = Requirement(requirement)
        version = held.get(canonicalize_name(wanted.name))
        return version is not None and not wanted.url and wanted.specifier.contains(version, prereleases=True)
    except (ValueError, RecursionError):
        return False
