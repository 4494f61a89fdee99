"""The root digest as a person gives it: what it looks like, and where it has to come from."""

from __future__ import annotations

import re

from airferry.errors import IntegrityError, UsageError
from airferry.oci.digest import parse_digest
from airferry.wording import printable

EXAMPLE = "sha256:8adad7aa…"
# anyone who can change the bundle can change what lies next to it: no hint may send anyone there for the root
FROM_THE_BUILDER = "take it from the person who built the bundle, over a channel other than the medium that carries it"
MAX_ROOT_SHOWN = 100


def parse_root(text: str) -> str:
    """Return a root that a person typed or pasted; blanks around it and upper case do not matter.

    Raises:
        UsageError: it is not a digest; the hint says what is wrong with it, and where the right one comes from.
    """
    typed = text.strip().lower()
    try:
        return parse_digest(typed)
    except IntegrityError as error:
        raise UsageError(
            f"`{printable(text, most=MAX_ROOT_SHOWN)}` is not a root digest, expected `sha256:` and 64 hex digits"
            f"{_fault(typed)}",
            hint=f"a root looks like `{EXAMPLE}`; {FROM_THE_BUILDER}",
        ) from error


def _fault(typed: str) -> str:
    if not typed:
        return ": it is empty"
    if not typed.startswith("sha256:"):
        return ": it does not begin with `sha256:`"
    digits = typed.removeprefix("sha256:")
    if odd := re.search(r"[^0-9a-f]", digits):
        return f": `{printable(odd[0], most=1)}` is not a hex digit"
    return f": it has {len(digits)} digits"
