"""Making the image of a task: taken from the journal where that has it, else assembled directly, else by an engine.

The engine is opened when the first image needs it, so that a run in which none does needs no user namespaces.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from airferry.events import Notice, StageFinished, StageStarted
from airferry.host import clock, files
from airferry.host.journal import Journal
from airferry.host.records import as_noted
from airferry.host.threads import RoomBudget
from airferry.near.assemble.container import Assembler, ImageRecipe
from airferry.near.assemble.direct import DirectAssembler, refuse
from airferry.near.assemble.recipes import Task
from airferry.near.assemble.writer import BuiltImage, ImageWriter
from airferry.near.session import Session
from airferry.wording import some_of

Builder = Literal["auto", "buildah", "direct"]


@dataclass(frozen=True, slots=True)
class Made:
    """An image of the bundle, whether an earlier run made it, and whether an engine did."""

    image: BuiltImage
    reused: bool
    by_engine: bool


class Maker:
    """Makes images into one bundle. Safe to use from threads."""

    def __init__(self, session: Session, *, builder: Builder, writer: ImageWriter, journal: Journal) -> None:
        """Take what all images share; `writer` writes into the bundle, whose journal `journal` is."""
        self._session = session
        self._builder = builder
        self._writer = writer
        self._journal = journal
        scratch, look = session.scratch, session.knowledge.look
        self._direct = DirectAssembler(writer=writer, look=look, scratch=scratch, emit=session.emit)
        self._room = RoomBudget(lambda: files.free_bytes(scratch))
        self._guard = threading.Lock()
        self._assembler: Assembler | None = None

    def make(self, task: Task) -> Made:
        """Return the image of a task, made now if the journal or the bundle lacks it.

        Raises:
            BuildError: it cannot be built, or, with `builder: direct`, not that way.
            AirferryError: of the family of what failed.
        """
        if task.direct is not None and (image := self._known(task, task.direct.inputs)) is not None:
            return Made(image, True, False)
        started = clock.monotonic_s()
        reason = self._against(task)
        if task.direct is not None and reason is None:
            self._session.emit(StageStarted(task.title))
            by_engine, inputs = False, task.direct.inputs
            with self._room.holding(task.room_bytes()):
                image = self._direct.build(task.direct.recipe, task.base)
        else:
            by_engine, inputs = True, task.container.inputs()
            if (known := self._known(task, inputs)) is not None:
                return Made(known, True, True)
            if reason and self._builder == "auto":
                self._session.emit(Notice(f"{task.title} is built with a container engine: {reason}"))
            self._session.emit(StageStarted(task.title))
            with self._room.holding(task.room_bytes()):
                image = self._build(task)
        self._journal.record(task.action, inputs, image.to_json())
        self._session.emit(StageFinished(task.title, clock.monotonic_s() - started, detail=_added(task)))
        return Made(image, False, by_engine)

    def _known(self, task: Task, inputs: Mapping[str, Any]) -> BuiltImage | None:
        image = as_noted(self._journal.result(task.action, inputs), BuiltImage.from_json)
        if image is None or not image.is_whole(self._writer.bundle):
            return None
        self._session.emit(StageFinished(task.title, 0.0, reused=True))
        return image

    def _against(self, task: Task) -> str | None:
        """Return why an image is not assembled directly, or None where it can be."""
        reason: str | None = task.against
        if task.direct is not None:
            reason = self._direct.obstacle(task.direct.recipe, task.base)
        if reason is not None and self._builder == "direct":
            raise refuse(task.title, reason)
        return reason

    def _build(self, task: Task) -> BuiltImage:
        with files.scratch_directory(self._session.scratch) as folder:
            context = folder / "context"
            task.container.lay_out(context)
            recipe = ImageRecipe(
                name=task.name,
                platform=task.platform,
                containerfile=task.container.containerfile,
                context=context,
                arguments=task.container.arguments,
                labels=task.labels,
                python=task.python,
                additions=task.additions,
                network=task.container.network,
                env=task.container.env,
            )
            return self._ensure_assembler().build(recipe, task.base)

    def _ensure_assembler(self) -> Assembler:
        with self._guard:
            if self._assembler is None:
                self._assembler = Assembler(
                    engine=self._session.engine(),
                    writer=self._writer,
                    cache=self._session.bases.store,
                    scratch=self._session.scratch,
                    emit=self._session.emit,
                )
            return self._assembler


def _added(task: Task) -> str:
    names = [f"{item.name} {item.version}" for item in task.additions]
    return f"added {some_of(names, 5)}" if names else ""
