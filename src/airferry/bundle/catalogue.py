"""The artifact that carries the step catalogue: its types, its limits, and which paths it may hold.

One layer, a tar in zstd, whose paths begin at the catalogue's root. Rules only: the near side writes nothing that they
refuse, and the far side unpacks nothing that they refuse. Knows nothing of Git and of disks.
"""

from __future__ import annotations

import unicodedata

from airferry.bundle.tree_paths import encode_path, linked_path, safe_path, too_deep

CATALOGUE_ARTIFACT = "application/vnd.airferry.catalogue.v1"
CATALOGUE_CONTENT = "application/vnd.airferry.catalogue.v1.tar+zstd"
CATALOGUE_FILE = "airferry-catalogue.tar.zst"
CATALOGUE_MARK = ".airferry-catalogue.json"  # what an extracted catalogue is known by
MAX_CATALOGUE_FILES = 200_000
MAX_CATALOGUE_BYTES = 4 << 30
MAX_CATALOGUE_PACKED_BYTES = 1 << 30
_GIT_FOLDERS = (".git", "git~1")


class CataloguePaths:
    """The paths of one catalogue, looked at one by one: none leads out, none takes the place of another."""

    def __init__(self) -> None:
        """Begin with an empty catalogue."""
        self._folded: dict[str, str] = {}

    def trouble(self, raw: bytes, *, link_target: bytes | None = None) -> str | None:
        """Return what is wrong with the next path, or None, and count it as taken then.

        Wrong is: a path that is absolute or goes up; one in a Git folder, whose settings can run programs; one that
        differs from another one only by case or by the form of its letters, as file systems that do not tell them
        apart would let one replace the other; and a link that points outside the catalogue.
        """
        path = encode_path(raw)
        if not safe_path(raw):
            return "points outside the catalogue"
        if reason := too_deep(raw):
            return reason
        folded = fold(raw)
        parts = folded.split("/")
        if any(part.rstrip(". ") in _GIT_FOLDERS for part in parts):
            return "is in a Git folder"
        if folded == CATALOGUE_MARK:
            return "has a name that airferry reserves"
        if link_target is not None and linked_path(path, encode_path(link_target)) is None:
            return f"is a link that points outside the catalogue, to `{encode_path(link_target)[:200]}`"
        if (other := self._folded.get(folded)) is not None:
            return "is listed twice" if other == path else f"differs from `{other}` only by case or form"
        self._folded[folded] = path
        return None


def fold(raw: bytes) -> str:
    """Return a path as file systems compare it that tell neither case nor the form of letters apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", encode_path(raw)).casefold())
