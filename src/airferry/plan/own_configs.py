"""Customers' own configs, from outside of the catalogue: what each is called, and how it travels with the catalogue.

A config goes to the step's own `config` folder, what it inherits from outside to a folder next to that; entries of
`defaults:` are changed where the new place asks for it. No path of this host enters a name or a file. Only reads.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from airferry.config.document import MAX_CONFIG_BYTES
from airferry.config.environment import SECRET_TEXT
from airferry.config.yaml_edit import replace_texts
from airferry.host import files
from airferry.plan.catalogue import CONFIG_ENDINGS, Catalogue, real_path
from airferry.plan.models import ConfigFile, Target
from airferry.plan.step_config import StepConfigReader, strings

INHERITED_FOLDER = "inherited"
_DIGITS = (8, 16, 32, 64)


class OwnConfigs:
    """Names configs and lays out the files that they consist of, for the targets of one plan."""

    def __init__(self, catalogue: Catalogue, reader: StepConfigReader) -> None:
        """Take the catalogue, and the reader that has read the configs."""
        self._catalogue = catalogue
        self._reader = reader
        self._digests: dict[Path, str] = {}

    def name(self, targets: Iterable[Target]) -> list[Target]:
        """Return targets with the name of each own config in the place of its path, in the same order.

        A name is the file's without its ending, and 8 digits of the content's digest after it where the step has such a
        config already, or where two own configs of a step would share it. It is the same wherever the file lies.

        Raises:
            ConfigurationError: a file that a config consists of is missing, or is not YAML.
        """
        wanted = list(targets)
        rivals: dict[tuple[str, str], set[str]] = {}
        for target in wanted:
            if target.path is not None:
                rivals.setdefault((target.step_id, _stem(target.path)), set()).add(self._digest(target.path))
        return [self._named(target, rivals) for target in wanted]

    def _named(self, target: Target, rivals: Mapping[tuple[str, str], set[str]]) -> Target:
        if target.path is None:
            return target
        stem, digest = _stem(target.path), self._digest(target.path)
        if len(rivals[target.step_id, stem]) == 1 and self._is_free(target.step_id, stem):
            return replace(target, config=stem)
        names = (f"{stem}-{digest[:digits]}" for digits in _DIGITS)
        free = (name for name in names if (target.step_id, name) not in rivals and self._is_free(target.step_id, name))
        return replace(target, config=next(free))

    def _is_free(self, step_id: str, name: str) -> bool:
        folder = self._catalogue.steps_folder / step_id
        taken = [folder / "config" / f"{name}{ending}" for ending in ("", *CONFIG_ENDINGS)]
        return not any(path.exists() for path in (*taken, folder / INHERITED_FOLDER / name))

    def files(self, target: Target, path: Path) -> tuple[ConfigFile, ...]:
        """Return the files that a target's config at a path consists of, as they travel, the config last.

        Raises:
            ConfigurationError: a file is missing, or is not YAML.
        """
        chain = list(dict.fromkeys(document.path for document in self._reader.documents(path)))
        places = self._places(target, chain)
        return tuple(self._file(source, places) for source in chain)

    def _places(self, target: Target, chain: list[Path]) -> dict[Path, str]:
        """Return each file's path from the catalogue's root, as it travels."""
        steps = self._catalogue.name_of(self._catalogue.steps_folder)
        folder = f"{steps}/{target.step_id}"
        places: dict[Path, str] = {}
        for source in chain[:-1]:
            name = self._catalogue.name_of(source)
            if name is None:
                below = f"{folder}/{INHERITED_FOLDER}/{target.config}"
                ending = source.suffix
                names = (f"{below}/{_stem(source)}{mark}{ending}" for mark in ("", *(f"-{n}" for n in range(2, 999))))
                name = next(name for name in names if name not in places.values())
            places[source] = name
        own = chain[-1]
        inside = self._catalogue.name_of(own) if target.path is None else None
        places[own] = inside or f"{folder}/config/{target.config}{own.suffix if target.path is None else '.yaml'}"
        return places

    def _file(self, source: Path, places: Mapping[Path, str]) -> ConfigFile:
        name = places[source]
        if self._catalogue.name_of(source) == name:
            return ConfigFile(name, source)
        self._refuse_secrets(source)
        data = files.read_bounded(source, limit_bytes=MAX_CONFIG_BYTES)
        changes = {}
        for base in self._reader.bases(source):
            leads = posixpath.normpath(posixpath.join(posixpath.dirname(name), _with_ending(base.written)))
            if base.written.startswith("/") or leads != places[base.path]:
                changes[base.key] = posixpath.relpath(places[base.path], posixpath.dirname(name))
        return ConfigFile(name, source, replace_texts(data, changes, source) if changes else data)

    def _refuse_secrets(self, source: Path) -> None:
        document = self._reader.documents(source)[-1]
        for key, text in strings(document.value):
            if "${" not in text and SECRET_TEXT.search(text):
                raise document.error(
                    key,
                    "looks like a secret, and would end up in the bundle",
                    hint="let the config read it when the job runs, with `${oc.env:NAME}`",
                )

    def _digest(self, path: Path) -> str:
        """Return the digest of what a config outside of the catalogue says, the same wherever it lies."""
        path = real_path(path)
        known = self._digests.get(path)
        if known is None:
            self._reader.documents(path)  # refuses what is missing, and circles
            data = files.read_bounded(path, limit_bytes=MAX_CONFIG_BYTES)
            tokens = {base.key: self._token(base.path) for base in self._reader.bases(path)}
            known = hashlib.sha256(replace_texts(data, tokens, path) if tokens else data).hexdigest()
            self._digests[path] = known
        return known

    def _token(self, path: Path) -> str:
        name = self._catalogue.name_of(path)
        return f"catalogue:{name}" if name is not None else f"sha256:{self._digest(path)}"


def _stem(path: Path) -> str:
    """Return a file's name without its ending, in characters that every name of a config may have."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.name.removesuffix(path.suffix)).lstrip("-.")
    while stem.endswith((".", "-", *CONFIG_ENDINGS)):
        stem = stem.rstrip(".-")
        stem = next((stem.removesuffix(ending) for ending in CONFIG_ENDINGS if stem.endswith(ending)), stem)
    return stem or "config"


def _with_ending(name: str) -> str:
    return name if PurePosixPath(name).suffix else f"{name}.yaml"
