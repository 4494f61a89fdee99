"""Asking a base for its modules: its files first, and the base itself for what they leave open.

A base whose interpreter its files do not tell of is run for everything; one that leaves single wanted modules open is
run for these alone, if there is an engine. What stays open is answered as unknown: what follows is for the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from airferry.engine.driver import ContainerOptions, Engine, Volume, base_tag
from airferry.errors import HostError
from airferry.events import Emit, Notice
from airferry.host import process
from airferry.near.bases.fetch import BaseImage
from airferry.near.probe.answers import ProbeResult, ask_again, probe_argv, probe_input
from airferry.near.probe.knowledge import Knowledge
from airferry.oci.platform import Platform
from airferry.rootfs.python import StaticallyUnknown

PROBE_S = 3600.0
ProbeChoice = Literal["auto", "static", "run"]
_PYTHONS = (
    'for p in python python3; do command -v "$p" >/dev/null 2>&1 && exec "$p" "$@"; done; '
    'echo "there is no python or python3 on PATH" >&2; exit 127'
)


@dataclass(frozen=True, slots=True)
class BaseProbe:
    """Asks bases. `engine` opens the engine; it is called only where files do not suffice."""

    knowledge: Knowledge
    engine: Callable[[], Engine]
    store: Path
    choice: ProbeChoice
    emit: Emit = field(repr=False)

    def ask(
        self,
        base: BaseImage,
        platform: Platform,
        *,
        python: str | None,
        modules: Sequence[str],
        needed: Collection[str] = (),
        variables: Mapping[str, str] | None = None,
        mounts: Mapping[str, Path] | None = None,
    ) -> ProbeResult:
        """Find out what a base can import, with folders of this host mounted over some of its folders, and variables.

        `needed` are those of the modules that are worth a container if files leave them open. Without an engine, and
        with the choice `static`, they stay unknown.

        Raises:
            StaticallyUnknown: its files do not tell what its interpreter is, and the choice is `static`.
            AirferryError: of the family of what failed.
        """
        folders, settings = mounts or {}, variables or {}
        if self.choice != "run":
            try:
                known = self.knowledge.probe(
                    base, platform, python=python, modules=modules, variables=settings, mounts=folders
                )
            except StaticallyUnknown as unknown:
                if self.choice == "static":
                    raise
                self.emit(Notice(f"base `{base.name}` for {platform} must be run to probe it: {unknown.reason}"))
            else:
                left = [name for name in needed if name in known.modules and known.modules[name].status == "unknown"]
                if not left or self.choice == "static" or not self._has_engine(base, platform, left):
                    return known
                found = self._run(base, platform, python, left, settings, folders)
                return known.model_copy(update={"modules": {**known.modules, **found.modules}})
        return self._run(base, platform, python, modules, settings, folders)

    def _has_engine(self, base: BaseImage, platform: Platform, modules: Sequence[str]) -> bool:
        """Open the engine to ask for modules that files leave open, or say why there is none."""
        names = f"`{'`, `'.join(modules)}`"
        try:
            self.engine()
        except HostError as error:
            self.emit(Notice(f"base `{base.name}` for {platform} cannot be run to check {names}: {error.message}"))
            return False
        self.emit(Notice(f"base `{base.name}` for {platform} is run to check {names}"))
        return True

    def _run(
        self,
        base: BaseImage,
        platform: Platform,
        python: str | None,
        modules: Sequence[str],
        variables: Mapping[str, str],
        mounts: Mapping[str, Path],
    ) -> ProbeResult:
        """Ask the base itself: all modules in one container run."""
        engine = self.engine()
        engine.import_base(self.store, base.manifest.digest, platform=platform)
        argv = probe_argv(python or "python")
        if python is None:
            argv = ["sh", "-c", _PYTHONS, "sh", *argv[1:]]

        def run() -> bytes:
            return engine.run(
                base_tag(base.manifest.digest),
                argv,
                platform=platform,
                options=ContainerOptions([Volume(folder, target) for target, folder in mounts.items()], variables),
                streams=process.Streams(stdin=probe_input(modules)),
                timeout_s=PROBE_S,
            ).stdout

        return ask_again(run)
