"""The tree of what a new layer adds to a base, and the layer as a tar stream made from it.

Every path goes through the links of the base and of the layer itself, so that an entry below a linked folder lands
where the link leads and never takes the link's place. Contents are read while the tar is written: none is held here,
and nothing is unpacked to disk. This module knows nothing of wheels and Git; see the image-spec, *layer.md*.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from airferry.errors import BuildError
from airferry.host.files import MAX_PATH_BYTES
from airferry.oci.tar import DIRECTORY, END_OF_ARCHIVE, REGULAR, SYMLINK, TarEntry, entry_blocks
from airferry.rootfs.layers import MAX_LAYER_ENTRIES, OPAQUE
from airferry.rootfs.view import MAX_LINKS, WHITEOUT_PREFIX

_OTHER_PATH = "bake the checkout at another path, or use a base whose links lead to folders"
FOLDER_MODE = 0o755
SETGID = 0o2000


class BaseEntry(Protocol):
    """What a base says of one path. `type` is that of a tar entry."""

    @property
    def type(self) -> bytes:
        """The type as tar writes it."""
        ...

    @property
    def mode(self) -> int:
        """Permission bits."""
        ...

    @property
    def uid(self) -> int:
        """The owner."""
        ...

    @property
    def gid(self) -> int:
        """The group."""
        ...

    @property
    def mtime_s(self) -> int:
        """When it changed last, in seconds."""
        ...

    @property
    def link_name(self) -> str:
        """Where a symlink leads."""
        ...

    @property
    def has_xattrs(self) -> bool:
        """Whether there are extended attributes."""
        ...


class BaseTree(Protocol):
    """The merged view of a base. Paths are relative to the root, without `./`; the root is an empty path."""

    def lookup(self, path: str) -> BaseEntry | None:
        """Return the entry at exactly this path, no link followed, or None."""
        ...

    def resolve(self, path: str) -> str:
        """Return where a path leads, every link followed, relative to the root."""
        ...

    def listdir(self, path: str) -> list[str]:
        """Return the names in a folder, links followed; none where there is no folder."""
        ...

    def read_text(self, path: str) -> str | None:
        """Return the content of a file that was remembered, links followed, else None."""
        ...


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a new file: their count, a digest to tell equal ones by, and how to read them, in blocks."""

    size: int
    digest: str
    blocks: Callable[[], Iterable[bytes]]

    @classmethod
    def of(cls, data: bytes, *, digest: str) -> Content:
        """Return small content that is at hand."""
        return cls(len(data), digest, lambda: (data,))


@dataclass(frozen=True, slots=True)
class Node:
    """An entry of the new layer. `owner` names who put it there, for messages."""

    type: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_s: int = 0
    link_name: str = ""
    content: Content | None = None
    owner: str = ""


class LayerTree:
    """What is added to a base. Use it from one thread; `blocks` may run in another one, once, when all is in."""

    def __init__(self, base: BaseTree, *, epoch_s: int) -> None:
        """Begin with nothing. All that is new gets the time `epoch_s`."""
        self._base = base
        self._epoch_s = epoch_s
        self._nodes: dict[str, Node] = {}
        self._opaque: set[str] = set()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is added and nothing replaced."""
        return not self._nodes

    def lookup(self, path: str) -> Node | BaseEntry | None:
        """Return what is at exactly this path once the layer is on the base, no link followed, or None."""
        if (node := self._nodes.get(path)) is not None:
            return node
        return None if self._is_hidden(path) else self._base.lookup(path)

    def resolve(self, path: str) -> str:
        """Return where an absolute path leads, every link in it followed, the last one too.

        Folders that do not exist are taken as they are written.

        Raises:
            BuildError: links go round in circles, or a file is used as a folder.
        """
        rest = [part for part in path.split("/") if part and part != "."][::-1]
        if len(path.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
            raise BuildError(
                f"a path of the new layer is longer than {MAX_PATH_BYTES} bytes: `{path[:80]}…`",
                hint="bake the checkout at a shorter path",
            )
        done: list[str] = []
        links = 0
        while rest:
            part = rest.pop()
            if part == "..":
                done = done[:-1]
                continue
            here = "/".join((*done, part))
            entry = self.lookup(here)
            if entry is not None and entry.type == SYMLINK:
                links += 1
                if links > MAX_LINKS:
                    raise BuildError(f"the links to `{path}` form a loop", hint=_OTHER_PATH)
                if entry.link_name.startswith("/"):
                    done = []
                rest += [item for item in entry.link_name.split("/") if item and item != "."][::-1]
                continue
            if entry is not None and entry.type != DIRECTORY and rest:
                raise BuildError(f"`/{here}`, on the path to `{path}`, is not a folder", hint=_OTHER_PATH)
            done.append(part)
        return "/".join(done)

    def place(self, path: str) -> str:
        """Return where an entry of this absolute path belongs: every link followed but for the last part itself."""
        folder, name = posixpath.split(path.rstrip("/"))
        parent = self.resolve(folder)
        return f"{parent}/{name}" if parent else name

    def add_file(self, path: str, content: Content, *, executable: bool = False, owner: str = "") -> str:
        """Add a file at an absolute path, with the folders that lead there, and return where it landed.

        What is there in the base is replaced. A file that the layer has there already must have the same content.

        Raises:
            BuildError: a folder is there, or two owners bring different files to one place.
        """
        place = self.place(path)
        found = self._nodes.get(place)
        if found is not None and (found.content is None or found.content.digest != content.digest):
            raise BuildError(
                f"`{owner}` and `{found.owner}` both contain `/{place}`, with different content",
                hint="remove one of them, or set `builder: buildah`, where the last one wins",
                path=place,
            )
        if self._leads_to_folder(place):
            raise BuildError(
                f"`{owner}` contains the file `/{place}`, but the base has a folder there",
                path=place,
                hint="bake it at another path, or set `builder: buildah`",
            )
        _mode, gid = self._inherited(self._ensure_folders(posixpath.dirname(place)))
        mode = 0o755 if executable else 0o644
        self._put(place, Node(REGULAR, mode, gid=gid, mtime_s=self._epoch_s, content=content, owner=owner))
        return place

    def add_link(self, path: str, target: str, *, owner: str = "") -> str:
        """Add a symlink at an absolute path, with the folders that lead there, and return where it landed.

        Raises:
            BuildError: a folder is there.
        """
        place = self.place(path)
        if self._leads_to_folder(place):
            raise BuildError(
                f"`{owner}` contains the link `/{place}`, but the base has a folder there",
                path=place,
                hint="bake it at another path, or set `builder: buildah`",
            )
        _mode, gid = self._inherited(self._ensure_folders(posixpath.dirname(place)))
        node = Node(SYMLINK, 0o777, gid=gid, mtime_s=self._epoch_s, link_name=target, owner=owner)
        self._put(place, node)
        return place

    def add_folder(self, path: str) -> str:
        """Make sure that an absolute path is a folder, and return where it is."""
        place = self.resolve(path)
        self._ensure_folders(place)
        return place

    def replace_with_folder(self, path: str, *, owner: str = "") -> str:
        """Put an empty folder at an absolute path in place of whatever is there, and return where it landed.

        A link there is replaced itself; what it leads to stays. The folder has the mode that a copy of a checkout has,
        whatever its parent hands down.
        """
        place = self.place(path)
        if not place:
            raise BuildError(
                f"`{path}` is the root of the image, which cannot be replaced",
                hint="bake the checkout at a folder below it",
            )
        if self.lookup(place) is not None:
            for inside in [name for name in self._nodes if name.startswith(place + "/")]:
                del self._nodes[inside]
            self._opaque = {name for name in self._opaque if not name.startswith(place + "/")}
            if not self._is_hidden(place) and self._base.lookup(place) is not None:
                self._opaque.add(place)
        self._ensure_folders(posixpath.dirname(place))
        self._put(place, Node(DIRECTORY, FOLDER_MODE, mtime_s=self._epoch_s, owner=owner))
        return place

    def put_in(self, folder: str, name: str, node: Node) -> None:
        """Put an entry into a folder that `replace_with_folder` made, under its relative name, as it is.

        Raises:
            BuildError: the name leads elsewhere.
        """
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") for part in parts):
            raise BuildError(
                f"`{name}` is not a name inside `/{folder}`",
                hint="the checkout cannot be baked as it is: rename the file in its repository",
            )
        self._put(f"{folder}/{name}", node)

    def blocks(self) -> Generator[bytes, None, None]:
        """Yield the layer: entries sorted, folders before what is in them, opaque marks before their siblings.

        Raises:
            BuildError: a content is not what was said of it.
        """
        for place in sorted(self._nodes, key=lambda name: name.split("/")):
            node = self._nodes[place]
            content = node.content.blocks() if node.content is not None else ()
            yield from entry_blocks(_tar_entry(place, node), content, what=f"/{place}")
            if place in self._opaque:
                yield from entry_blocks(TarEntry(f"{place}/{OPAQUE}", mode=0o644, mtime_s=self._epoch_s))
        yield END_OF_ARCHIVE

    def sizes(self) -> Iterator[int]:
        """Yield the size of each new file, for a prediction of the layer's."""
        for node in self._nodes.values():
            if node.content is not None:
                yield node.content.size

    # --- inside ------------------------------------------------------------------------------------------------------

    def _leads_to_folder(self, place: str) -> bool:
        entry = self.lookup(place)
        if entry is not None and entry.type == SYMLINK:
            entry = self.lookup(self.resolve(place))
        return entry is not None and entry.type == DIRECTORY

    def _is_hidden(self, path: str) -> bool:
        """Tell whether the layer hides what the base has at a path, since a folder above it is replaced."""
        folder = posixpath.dirname(path) if self._opaque else ""
        while folder:
            if folder in self._opaque:
                return True
            folder = posixpath.dirname(folder)
        return False

    def _put(self, place: str, node: Node) -> None:
        if posixpath.basename(place).startswith(WHITEOUT_PREFIX):
            raise BuildError(
                f"`/{place}` cannot be stored: in layers, names that begin with `.wh.` mean deletions",
                hint="rename the file in its repository",
            )
        if len(self._nodes) >= MAX_LAYER_ENTRIES:
            raise BuildError(
                f"the new layer has more than {MAX_LAYER_ENTRIES} entries",
                hint="bake fewer or smaller checkouts into one image",
            )
        self._nodes[place] = node

    def _ensure_folders(self, place: str) -> str:
        """Enter a folder and those above it into the layer: the base's own as they are, new ones where it has none."""
        missing = []
        folder = place
        while folder and folder not in self._nodes:
            missing.append(folder)
            folder = posixpath.dirname(folder)
        for folder in reversed(missing):
            entry = self.lookup(folder)
            if entry is None:
                mode, gid = self._inherited(posixpath.dirname(folder))
                self._put(folder, Node(DIRECTORY, mode, gid=gid, mtime_s=self._epoch_s))
                self._touch(posixpath.dirname(folder))
            elif entry.type == DIRECTORY:
                if not isinstance(entry, Node) and entry.has_xattrs:
                    raise BuildError(
                        f"the base's folder `/{folder}` has extended attributes, which a new entry would drop",
                        hint="set `builder: buildah`",
                        path=folder,
                    )
                mtime_s = min(entry.mtime_s, self._epoch_s)
                self._put(folder, Node(DIRECTORY, entry.mode, entry.uid, entry.gid, mtime_s))
            else:
                raise BuildError(f"`/{folder}` is not a folder", path=folder, hint=_OTHER_PATH)
        self._touch(place)
        return place

    def _touch(self, folder: str) -> None:
        """Give a folder that gets a new entry the time of the layer."""
        node = self._nodes.get(folder)
        if node is not None and node.mtime_s != self._epoch_s:
            self._nodes[folder] = Node(node.type, node.mode, node.uid, node.gid, self._epoch_s)

    def _inherited(self, parent: str) -> tuple[int, int]:
        """Return mode and group of a new folder: a parent with the setgid bit hands both down."""
        entry = self.lookup(parent)
        if entry is not None and entry.mode & SETGID:
            return FOLDER_MODE | SETGID, entry.gid
        return FOLDER_MODE, 0


def _tar_entry(place: str, node: Node) -> TarEntry:
    return TarEntry(
        name=place + "/" if node.type == DIRECTORY else place,
        type=node.type,
        size=node.content.size if node.content is not None else 0,
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime_s=node.mtime_s,
        link_name=node.link_name,
    )
