"""The merged root of an image, as a container of it would see it, made from the facts of its layers.

Each layer is taken as an engine unpacks it into a separate folder, and the folders are laid over each other
(image-spec, *layer.md*; Linux's overlay file system): a link within a layer is followed by later entries of the same
layer, and a folder of an upper layer takes the place of a lower layer's link. Nothing is read from disk here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from airferry.errors import IntegrityError
from airferry.oci.tar import DIRECTORY, HARD_LINK, REGULAR, SYMLINK
from airferry.rootfs.layers import MAX_LAYER_ENTRIES, OPAQUE, Entry, LayerFacts, folder_facts

MAX_LINKS = 40
# of paths, links in them followed, on the way to the folders and hard links of one layer: two million entries ten
# folders deep take as many; hard links through forty links of a thousand parts each would take a thousand times that
MAX_WALKED_PARTS = 20_000_000
WHITEOUT_PREFIX = ".wh."
WHITEOUT_META_PREFIX = ".wh..wh."
_IMPLICIT = Entry(DIRECTORY, 0o755, 0, 0, 0, 0, "", False)


class _Folder:
    """A folder of a tree; `entry` is None where no layer names it."""

    __slots__ = ("children", "entry", "opaque", "whiteouts")

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self.children: dict[str, _Folder | Entry] = {}
        self.opaque = False
        self.whiteouts: set[str] = set()


class RootView:
    """A merged root. Paths may begin with `/` or not; the root is `/` or an empty path.

    `lookup` takes a path as it is; all other questions follow links, absolute ones from the image's own root.
    """

    def __init__(self, layers: Iterable[LayerFacts] = (), *, max_entries: int = MAX_LAYER_ENTRIES) -> None:
        """Merge layers, bottom first.

        Raises:
            IntegrityError: a layer has what no engine could unpack, or there are more entries than `max_entries`.
        """
        self._root = _Folder()
        left = max_entries
        for number, facts in enumerate(layers):
            left -= len(facts.entries)
            if left < 0:
                raise IntegrityError(
                    f"the image has more than {max_entries} entries",
                    hint="if it is expected to be that large, raise `limits.layer_entries` in airgap.yaml",
                )
            self._merge(_LayerTree(self, f"layer {number + 1}").build(facts))

    def lookup(self, path: str) -> Entry | None:
        """Return the entry at exactly this path, no link followed, or None."""
        node: _Folder | Entry | None = self._root
        for part in path.split("/"):
            if not part:
                continue
            if not isinstance(node, _Folder):
                return None
            node = node.children.get(part)
        return _entry(node)

    def resolve(self, path: str) -> str:
        """Return where a path leads, every link followed, relative to the root. What does not exist stays as written.

        Raises:
            IntegrityError: links go round in circles, or a file is used as a folder.
        """
        place, _node, problem = self._walk(path)
        if problem:
            raise IntegrityError(f"`{path}` in the base {problem}", path=path)
        return place

    def stat(self, path: str) -> Entry | None:
        """Return the entry that a path leads to, or None where there is none."""
        _place, node, problem = self._walk(path)
        return None if problem else _entry(node)

    def is_dir(self, path: str) -> bool:
        """Tell whether a path leads to a folder."""
        entry = self.stat(path)
        return entry is not None and entry.type == DIRECTORY

    def is_file(self, path: str) -> bool:
        """Tell whether a path leads to a regular file."""
        entry = self.stat(path)
        return entry is not None and entry.type == REGULAR

    def listdir(self, path: str) -> list[str]:
        """Return the names in a folder, sorted; none where there is no folder."""
        _place, node, problem = self._walk(path)
        return sorted(node.children) if isinstance(node, _Folder) and not problem else []

    def read_bytes(self, path: str) -> bytes | None:
        """Return the content of a file whose content is remembered (see `file_facts`), else None."""
        entry = self.stat(path)
        if entry is None or entry.type != REGULAR:
            return None
        if entry.size == 0:
            return b""
        return entry.facts.content if entry.facts is not None else None

    def read_text(self, path: str) -> str | None:
        """Return the content of a remembered file as text, bytes that are no UTF-8 replaced, else None."""
        data = self.read_bytes(path)
        return None if data is None else data.decode("utf-8", "replace")

    def mounted(self, folders: Mapping[str, Path]) -> RootView:
        """Return this root with folders of this machine in place of what is at some absolute paths, as mounts are.

        Owners on this machine do not count; all is root's.
        """
        view = RootView()
        view._root = self._root
        for path, folder in sorted(folders.items()):
            facts = folder_facts(folder, at=self.resolve(path))
            view._root = _laid_over(view._root, _LayerTree(view, f"`{path}`").build(facts))
        return view

    def walk(self) -> Iterable[tuple[str, Entry]]:
        """Yield every path, relative to the root, with its entry, folders before what is in them."""
        stack = [("", self._root)]
        while stack:
            place, folder = stack.pop()
            for name in sorted(folder.children):
                node = folder.children[name]
                path = f"{place}/{name}" if place else name
                yield path, node if isinstance(node, Entry) else node.entry or _IMPLICIT
                if isinstance(node, _Folder):
                    stack.append((path, node))

    def _walk(self, path: str) -> tuple[str, _Folder | Entry | None, str]:
        """Return where a path leads, what is there, and what is wrong with the way, if anything."""
        rest = [part for part in path.split("/") if part and part != "."][::-1]
        names: list[str] = []
        nodes: list[_Folder | Entry | None] = [self._root]
        links = 0
        while rest:
            part = rest.pop()
            if part == "..":
                if names:
                    names.pop()
                    nodes.pop()
                continue
            here = nodes[-1]
            if here is not None and not isinstance(here, _Folder):
                return "", None, f"goes through `/{'/'.join(names)}`, which is not a folder"
            node = here.children.get(part) if here is not None else None
            if isinstance(node, Entry) and node.type == SYMLINK:
                links += 1
                if links > MAX_LINKS:
                    return "", None, "forms a loop"
                if node.link_name.startswith("/"):
                    del names[:], nodes[1:]
                rest += [item for item in node.link_name.split("/") if item and item != "."][::-1]
                continue
            names.append(part)
            nodes.append(node)
        return "/".join(names), nodes[-1], ""

    def _merge(self, upper: _Folder) -> None:
        stack = [(self._root, upper)]
        while stack:
            lower, upper = stack.pop()
            if upper.opaque:
                lower.children.clear()
            for name in upper.whiteouts:
                lower.children.pop(name, None)
            lower.entry = upper.entry or lower.entry
            for name, node in upper.children.items():
                old = lower.children.get(name)
                if isinstance(node, _Folder) and isinstance(old, _Folder):
                    stack.append((old, node))
                else:
                    lower.children[name] = node


def _laid_over(lower: _Folder, upper: _Folder) -> _Folder:
    """Return a tree with another one over it. Neither is changed; what they do not share is not copied."""
    made = _Folder()
    made.entry = upper.entry or lower.entry
    made.children = {} if upper.opaque else dict(lower.children)
    for name in upper.whiteouts:
        made.children.pop(name, None)
    for name, node in upper.children.items():
        old = made.children.get(name)
        if isinstance(node, _Folder) and isinstance(old, _Folder):
            node = _laid_over(old, node)
        made.children[name] = node
    return made


class _LayerTree:
    """One layer, unpacked into its own tree."""

    def __init__(self, below: RootView, what: str) -> None:
        self._below = below
        self._what = what
        self._root = _Folder()
        self._known: dict[str, _Folder] = {"": self._root}
        self._left = MAX_WALKED_PARTS

    def build(self, facts: LayerFacts) -> _Folder:
        """Return the tree of a layer."""
        folders = facts.folders
        for number, name, entry in facts.entries:
            folder = self._known.get(folders[number])
            if folder is None:
                folder = self._enter(folders[number])
            if not name:
                if entry.type == DIRECTORY:
                    self._root.entry = entry
            elif name.startswith(WHITEOUT_PREFIX):
                self._white_out(folder, name, folders[number])
            else:
                self._put(folder, name, entry, folders[number])
        return self._root

    def _put(self, folder: _Folder, name: str, entry: Entry, place: str) -> None:
        if entry.type == HARD_LINK:
            entry = self._linked(entry.link_name, f"{place}/{name}")
        old = folder.children.get(name)
        if entry.type == DIRECTORY:
            if isinstance(old, _Folder):
                old.entry = entry
                return
            node = _Folder()
            node.entry = entry
            folder.children[name] = node
        else:
            folder.children[name] = entry
        if old is not None and (isinstance(old, _Folder) or old.type == SYMLINK):
            self._known = {"": self._root}

    def _white_out(self, folder: _Folder, name: str, place: str) -> None:
        if name == OPAQUE:
            folder.opaque = True
        elif not name.startswith(WHITEOUT_META_PREFIX):
            hidden = name.removeprefix(WHITEOUT_PREFIX)
            if hidden in ("", ".", ".."):
                raise IntegrityError(f"{self._what}: the whiteout `{place}/{name}` has no name")
            folder.whiteouts.add(hidden)

    def _enter(self, path: str) -> _Folder:
        """Return the folder at a path, links of this layer followed, made where it is missing."""
        folder = self._find(path, make=True)
        if folder is None:
            raise IntegrityError(
                f"{self._what}: `/{path}` is used as a folder, but is not one",
                hint="no image builder writes such a layer; get the base from another source",
            )
        self._known[path] = folder
        return folder

    def _find(self, path: str, *, make: bool) -> _Folder | None:
        rest = [part for part in path.split("/") if part and part != "."][::-1]
        trail = [self._root]
        links = 0
        while rest:
            part = rest.pop()
            self._left -= 1
            if self._left < 0:
                raise IntegrityError(
                    f"{self._what}: its paths and links lead through more than {MAX_WALKED_PARTS} folders, the limit",
                    hint="no image builder writes such a layer; get the base from another source",
                )
            if part == "..":
                del trail[max(1, len(trail) - 1) :]
                continue
            node = trail[-1].children.get(part)
            if node is None:
                if not make:
                    return None
                node = trail[-1].children[part] = _Folder()
            if isinstance(node, _Folder):
                trail.append(node)
                continue
            links += 1
            if node.type != SYMLINK or links > MAX_LINKS:
                return None
            if node.link_name.startswith("/"):
                del trail[1:]
            rest += [item for item in node.link_name.split("/") if item and item != "."][::-1]
        return trail[-1]

    def _linked(self, target: str, path: str) -> Entry:
        """Return the entry that a hard link names: in this layer, or in those below."""
        parts = [part for part in target.split("/") if part and part != "."]
        if parts and ".." not in parts:
            folder = self._find("/".join(parts[:-1]), make=False)
            node = folder.children.get(parts[-1]) if folder is not None else None
            if node is None:
                node = self._below.lookup("/".join(parts))
            if isinstance(node, Entry) and node.type != DIRECTORY:
                return node
        why = "leads upwards" if ".." in parts else "is not a file of the image"
        raise IntegrityError(
            f"{self._what}: the hard link `{path}` points to `{target}`, which {why}",
            hint="no image builder writes such a layer; get the base from another source",
        )


def _entry(node: _Folder | Entry | None) -> Entry | None:
    if isinstance(node, _Folder):
        return node.entry or _IMPLICIT
    return node
