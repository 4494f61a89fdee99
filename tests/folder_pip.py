"""pip's answers from a folder of files, given in this process: for tests of what is made of them.

`tests/integration/test_pip_door.py` holds them against those of the real pip.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

from airferry.errors import BuildError, IntegrityError
from airferry.events import CommandRun
from airferry.near.wheels.pack import read_wheel
from airferry.near.wheels.pip import NoDistribution, Pip, WheelTarget
from wheel_factory import sha256


@dataclass(frozen=True, slots=True)
class FolderPip(Pip):
    """A pip whose index is a folder. Builds nothing: what needs a build is tested with the real one."""

    folder: Path = field(default=Path("/nonexistent"))

    def download(
        self, requirements: Mapping[str, Collection[str]], target: WheelTarget, *, into: Path
    ) -> list[NoDistribution]:
        self.emit(CommandRun(f"download {' '.join(requirements)}"))
        missing = []
        for text, hashes in requirements.items():
            wanted = Requirement(text)
            if wanted.url:
                self._check([_path(wanted.url)], text, hashes)
                shutil.copy(_path(wanted.url), into)
                continue
            there = self._wheels(wanted.name)
            suiting = {path: version for path, version, tags in there if not tags.isdisjoint(target.tags)}
            suiting = {path: version for path, version in suiting.items() if _runs(path, target)}
            accepted = set(wanted.specifier.filter(suiting.values()))
            chosen = [path for path, version in suiting.items() if version in accepted]
            if hashes:
                self._check([path for path in chosen if sha256(path) in hashes] or chosen, text, hashes)
                chosen = [path for path in chosen if sha256(path) in hashes]
            if chosen:
                best = max(chosen, key=lambda path: (suiting[path], _rank(path, target)))
                shutil.copy(best, into)
            else:
                versions = tuple(str(version) for version in sorted(set(suiting.values())))
                missing.append(NoDistribution(text, versions, tuple(sorted(path.name for path, _, _ in there))))
        return missing

    def unpack_sources(
        self, requirements: Mapping[str, Collection[str]], *, into: Path
    ) -> dict[str, Path | NoDistribution | BuildError]:
        self.emit(CommandRun(f"unpack {' '.join(requirements)}"))
        found: dict[str, Path | NoDistribution | BuildError] = {}
        for text, hashes in requirements.items():
            wanted = Requirement(text)
            there = [(path, *parse_sdist_filename(path.name)) for path in sorted(self.folder.glob("*.tar.gz"))]
            there = [item for item in there if item[1] == canonicalize_name(wanted.name)]
            chosen = [path for path, _, version in there if wanted.specifier.contains(version)]
            if not chosen:
                found[text] = NoDistribution(text, tuple(str(version) for _, _, version in there))
                continue
            self._check(chosen, text, hashes)
            folder = into / canonicalize_name(wanted.name)
            with tarfile.open(chosen[-1]) as archive:
                archive.extractall(folder)
            (found[text],) = folder.iterdir()
        return found

    @staticmethod
    def _check(paths: list[Path], requirement: str, hashes: Collection[str]) -> None:
        got = [sha256(path) for path in paths]
        if hashes and got and not set(got) & set(hashes):
            raise IntegrityError(f"`{requirement}` has SHA-256 `{got[0]}`, which is not a locked hash")

    def _wheels(self, name: str) -> list[tuple[Path, Version, frozenset[Tag]]]:
        found = []
        for path in sorted(self.folder.glob("*.whl")):
            try:
                said, version, _, tags = parse_wheel_filename(path.name)
            except InvalidWheelFilename:
                continue
            if said == canonicalize_name(name):
                found.append((path, version, tags))
        return found


def _path(url: str) -> Path:
    return Path(url2pathname(urlsplit(url).path))


def _runs(path: Path, target: WheelTarget) -> bool:
    version = ".".join(str(part) for part in target.python_version)
    return SpecifierSet(read_wheel(path, sha256="").requires_python).contains(version)


def _rank(path: Path, target: WheelTarget) -> int:
    """Return how well a wheel suits: the longer its platform's place in the list of the target, the worse."""
    tags = parse_wheel_filename(path.name)[3]
    places = [len(target.platforms) - target.platforms.index(tag.platform) for tag in tags if tag.platform != "any"]
    return max(places, default=0)
