"""The rehearsal: each step's image is run as the far side would run it, in a network that leads nowhere.

First all modules that the plan found are imported, then the step is started with its config, until it ends or its time
is up. Python's attempts to reach outside are seen by audit hooks, those of everything else by the sink of the engine.
Nothing is written into the bundle here; a journal keeps what was found for the same image, code and command.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from airferry.bundle.manifest import AttemptEntry, RehearsalEntry
from airferry.config.rehearsal import is_allowed
from airferry.engine.driver import Engine
from airferry.engine.nowhere import OWN_NAME
from airferry.engine.transient import REHEARSED
from airferry.errors import ConfigurationError, FindingsError
from airferry.events import StageFinished, StageStarted
from airferry.host import clock, files
from airferry.host.canonical import canonical_json
from airferry.host.journal import Journal
from airferry.host.records import as_noted
from airferry.host.threads import parallel_map
from airferry.near.assemble import context
from airferry.near.assemble.writer import BuiltImage
from airferry.near.probe.answers import ProbeResult
from airferry.near.rehearse.judge import (
    MAX_SHOWN,
    REHEARSAL_LEVELS,
    Attempt,
    Ending,
    find_attempts,
    in_order,
    judge_ending,
)
from airferry.near.rehearse.stage import PHASES, REHEARSE, RehearsalFolders, Scene
from airferry.near.session import Session
from airferry.oci.documents import MAX_IMAGE_CONFIG_BYTES, parse_image_config
from airferry.oci.layout import LayoutStore
from airferry.plan.lockfile import Lockfile
from airferry.plan.models import GroupPlan, Plan, StepPlan
from airferry.wording import counted, printable, some_of

VERSION = 4  # part of every rehearsal's inputs: raise it when the same step would be judged otherwise
REPORT_FILE = "airgap-rehearsal.json"
MAX_OUTPUT = 4000
SHOWN_ATTEMPTS = 8


_FAR_ENOUGH: Mapping[str, str] = {
    "finished": "ran to its end",
    "time limit": "ran until its time was up",
    "gpu": "started, stopped where it needs a GPU",
    "data": "started, stopped where it needs data",
    "weights": "started, stopped where it needs weights",
}


def how_far(entry: RehearsalEntry) -> str:
    """Return in words how far a step came: one that stopped for want of data did not run to its end."""
    if entry.reached == "started" and entry.stopped_by in _FAR_ENOUGH:
        return _FAR_ENOUGH[entry.stopped_by]
    return f"reached `{entry.reached}`, stopped by `{entry.stopped_by}`"


@dataclass(frozen=True, slots=True)
class StepResult:
    """How one target fared on one platform. `output` is what it said last; `findings` are what should not be."""

    entry: RehearsalEntry
    elapsed_s: float
    output: str
    findings: tuple[str, ...]
    reused: bool = False

    def to_document(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            **self.entry.model_dump(mode="json"),
            "elapsed_s": round(self.elapsed_s, 1),
            "output": self.output,
            "findings": list(self.findings),
        }


@dataclass(frozen=True, slots=True)
class RehearsalReport:
    """How all targets fared."""

    results: tuple[StepResult, ...]

    @property
    def entries(self) -> tuple[RehearsalEntry, ...]:
        """What the bundle's manifest says of them."""
        return tuple(result.entry for result in self.results)

    @property
    def findings(self) -> tuple[str, ...]:
        """Everything that should not be, in the order of the targets."""
        return tuple(finding for result in self.results for finding in result.findings)

    def to_document(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "schema_version": 1,
            "ok": not self.findings,
            "findings": list(self.findings),
            "rehearsals": [result.to_document() for result in self.results],
        }

    def raise_if_wrong(self) -> None:
        """Do nothing if no target did what it should not.

        Raises:
            FindingsError: one did; `report` of it is this report.
        """
        if not self.findings:
            return
        shown = some_of([str(finding) for finding in self.findings], SHOWN_ATTEMPTS, separator="\n  ")
        raise FindingsError(
            f"the rehearsal has {counted(len(self.findings), 'finding')}:\n  {shown}",
            hint="; ".join(self._ways_out()),
            report=self,
        )

    def _ways_out(self) -> Iterator[str]:
        """Yield what to do about the kinds of findings that there are."""
        wrong = [result.entry for result in self.results if result.findings]
        short = {entry.stopped_by for entry in wrong if entry.reached != "started"}
        if any(not attempt.allowed for entry in wrong for attempt in entry.attempts) or "network" in short:
            yield "bake in what steps download (`overlays:`), stage it (`assets:`), or declare it under `rehearsal:`"
        if "module" in short or any(entry.missing for entry in wrong):
            yield "add missing modules to `required_imports` of the image, or choose another base"
        if "program" in short:
            yield "install missing programs in a `containerfile:` of the image, or choose another base"
        if short - {"network", "module", "program"}:
            yield f"see the last output of each step in `{REPORT_FILE}`; change the config, or `rehearsal.steps`"


@dataclass(frozen=True, slots=True)
class Earlier:
    """What earlier runs found: the report of what still fits, and the actions of what does not.

    `changed` was tried with another image, code or command, `never` was not tried at all.
    """

    report: RehearsalReport
    changed: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

    @property
    def trouble(self) -> str:
        """Why a bundle cannot carry it; empty where it fits whole, and found nothing."""
        if self.changed:
            shown = some_of([f"`{stage}`" for stage in self.changed], SHOWN_ATTEMPTS)
            return f"image, code or command changed since {shown}"
        if self.never:
            return f"never run: {some_of([f'`{stage}`' for stage in self.never], SHOWN_ATTEMPTS)}"
        return f"it has {counted(len(self.report.findings), 'finding')}" if self.report.findings else ""


def check_rehearsal(plan: Plan) -> None:
    """Do nothing if what the plan says of its rehearsal is about steps that there are, and Git tracks their files.

    Raises:
        ConfigurationError: an exception of `rehearsal.steps` is for nothing in the catalogue (one for a step that is
            not selected may stay), or Git does not track a step's files.
    """
    own = {name for step in plan.steps for name in (step.target.spec, *step.written)}
    for name in plan.config.rehearsal.steps if plan.steps else ():
        if name in own:
            continue
        step_id, _, config = name.partition(":")
        wanted = f"{step_id}/config/{config}.yaml" if config else f"{step_id}/step.py"
        catalogue = plan.steps[0].folder.parents[plan.steps[0].target.step_id.count("/")]
        if not (catalogue / wanted).is_file():
            raise plan.config.error(
                "rehearsal",
                "steps",
                name,
                reason=f"the catalogue does not contain `{wanted}`",
                hint="write it as `STEP` or `STEP:CONFIG`; `airferry plan` lists them",
            )
    for path in context.untracked_steps(plan):
        raise ConfigurationError(
            f"`{path}` is not tracked by Git; only tracked files reach the far side", hint="`git add` it"
        )


class Rehearsal:
    """Tries the targets of a plan in the images that were built for them."""

    def __init__(self, session: Session, plan: Plan, lock: Lockfile, *, store: LayoutStore, journal: Journal) -> None:
        """Take what all targets share. The store is the bundle that holds the images."""
        self._session = session
        self._plan = plan
        self._lock = lock
        self._store = store
        self._journal = journal
        self._guard = threading.Lock()
        self._kept: ExitStack | None = None

    def run(self, images: Mapping[str, Sequence[BuiltImage]], *, targets: Sequence[str] = ()) -> RehearsalReport:
        """Try every target, or those that are named by step id or target, on each of its platforms.

        What the journal knows of the same image, code and command is not tried again.

        Raises:
            BuildError: an image cannot be run at all.
        """
        scenes = self._scenes(images, targets)
        with self._source() as (source, digest):
            try:
                results = parallel_map(
                    lambda scene: self._rehearse(scene, source, digest), scenes, jobs=self._session.jobs
                )
            finally:
                if self._kept is not None:
                    self._kept.close()
                    self._kept = None
        return RehearsalReport(tuple(results))

    def earlier(self, images: Mapping[str, Sequence[BuiltImage]]) -> Earlier | None:
        """Return what the journal knows of all targets, which are not tried here; None if none was ever tried."""
        noted = self._journal.results(REHEARSE)
        if not noted and not (self._plan.output_dir / REPORT_FILE).is_file():
            return None
        scenes = self._scenes(images, ())
        configs = context.plan_configs(self._plan, self._session.cache)
        try:
            digest = context.tracked_digest(self._plan.source_root, excluded=[self._plan.output_dir], configs=configs)
        except ConfigurationError:
            digest = None  # nothing tells if the code is the same
        found = {scene.stage: self._noted(scene, digest) for scene in scenes}
        changed = [stage for stage, result in found.items() if result is None and (stage in noted or digest is None)]
        never = [stage for stage, result in found.items() if result is None and stage not in changed]
        results = tuple(result for result in found.values() if result is not None)
        return Earlier(RehearsalReport(results), tuple(changed), tuple(never))

    def _keep_images(self, engine: Engine) -> None:
        """Keep what rehearsals bring into the engine's storage until all steps were tried, which share images."""
        with self._guard:
            if self._kept is None:
                self._kept = ExitStack()
                self._kept.enter_context(engine.transient.kept())

    def _scenes(self, images: Mapping[str, Sequence[BuiltImage]], targets: Sequence[str]) -> list[Scene]:
        steps = {step.target.spec: step for step in self._plan.steps}
        scenes = []
        for group in self._plan.groups:
            for spec in group.targets:
                step = steps[spec]
                if targets and not {spec, step.target.step_id, *step.written} & set(targets):
                    continue
                for image in sorted(images[group.name], key=lambda image: image.platform):
                    scenes.append(self._scene(step, group, image))
        return scenes

    def _scene(self, step: StepPlan, group: GroupPlan, image: BuiltImage) -> Scene:
        choice = self._plan.config.rehearsal.for_target(step.target.step_id, step.target.spec, *step.written)
        python = self._lock.groups[group.name].platforms[str(image.platform)].python
        workspace = self._plan.workspace
        config = f"{workspace}/{step.config_name}" if step.config_name else ""
        words = {"python": python, "step": self._inside(step.step_py), "config": config, "workspace": workspace}
        command = choice.command or ("{python}", "{step}", *(("--config", "{config}") if config else ()))
        for name, value in words.items():
            command = tuple(word.replace("{" + name + "}", value) for word in command)
        wanted = {item.module for item in step.candidates if item.origin != "reported"} | set(group.required_imports)
        return Scene(
            step=step,
            group=group,
            platform=image.platform,
            image=image,
            python=python,
            choice=choice,
            command=command,
            config=config,
            workspace=workspace,
            path=self._inside(_package_root(step)),
            modules=tuple(sorted(wanted)),
        )

    def _inside(self, path: Path) -> str:
        name = path.relative_to(self._plan.source_root).as_posix()
        return (PurePosixPath(self._plan.workspace) / name).as_posix()

    @contextmanager
    def _source(self) -> Iterator[tuple[Path, str | None]]:
        """Give the code as the launcher carries it, and its digest; as it lies, with none, outside of a repository."""
        root, excluded = self._plan.source_root, [self._plan.output_dir]
        configs = context.plan_configs(self._plan, self._session.cache)
        digest = None
        with files.scratch_directory(self._session.scratch) as folder:
            source = folder / "source"
            try:
                digest = context.tracked_digest(root, excluded=excluded, configs=configs)
                context.copy_tracked(root, source, excluded=excluded, configs=configs)
            except ConfigurationError:
                if all((root / name).is_file() for name in configs):
                    source = root
                else:
                    shutil.copytree(root, source, symlinks=True, ignore=self._left_out)
                    context.copy_files(configs.items(), source)
            yield source, digest

    def _left_out(self, folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder, name) == self._plan.output_dir]

    # --- one target --------------------------------------------------------------------------------------------------

    def _inputs(self, scene: Scene, digest: str | None) -> dict[str, Any]:
        return {
            "version": VERSION,
            "image": scene.image.manifest.digest,
            "source": digest,
            "command": list(scene.command),
            "env": dict(scene.choice.env),
            "path": asdict(scene.step.job_path),
            "modules": list(scene.modules),
            "limit_s": scene.limit_s,
        }

    def _noted(self, scene: Scene, digest: str | None) -> StepResult | None:
        """Return what the journal knows of the same image, code and command."""
        note = self._journal.result(scene.stage, self._inputs(scene, digest)) if digest else None
        return as_noted(note, lambda note: _judge(scene, note, reused=True))

    def _rehearse(self, scene: Scene, source: Path, digest: str | None) -> StepResult:
        known = self._noted(scene, digest)
        if known is not None:
            self._session.emit(StageFinished(scene.stage, 0.0, reused=True))
            return known
        started_s = clock.monotonic_s()
        self._session.emit(StageStarted(scene.stage))
        found = self._try(scene, source)
        found["elapsed_s"] = clock.monotonic_s() - started_s
        if digest:
            self._journal.record(scene.stage, self._inputs(scene, digest), found)
        result = _judge(scene, found)
        self._session.emit(StageFinished(scene.stage, found["elapsed_s"], detail=how_far(result.entry)))
        return result

    def _try(self, scene: Scene, source: Path) -> dict[str, Any]:
        """Import the modules, start the step, and return what was found as plain data for the journal."""
        engine = self._session.engine()
        digest = scene.image.manifest.digest
        self._keep_images(engine)
        image = engine.import_base(self._store.path, digest, platform=scene.platform, name=REHEARSED)
        # the engine's own folder: users of containers write there, whose files only the engine can remove after a kill
        folder = Path(tempfile.mkdtemp(prefix=files.TEMPORARY_PREFIX, dir=engine.storage.temporary))
        try:
            stage = RehearsalFolders(folder, source, scene, self._image_path(scene.image))
            answer = stage.import_modules(engine, image)
            stage.start_step(engine, image)
            phases = [stage.logs(phase) for phase in PHASES]
        finally:
            engine.remove_tree(folder)
        hook = phases[-1][0]
        ending = judge_ending(hook, root=scene.workspace, has_config=bool(scene.config))
        end: dict[str, Any] = next((item for item in reversed(hook) if item["event"] == "end"), {})
        attempts = {item for logs in phases for item in find_attempts(*logs, root=scene.workspace, own=OWN_NAME)}
        return {
            "ending": asdict(ending),
            "attempts": [asdict(item) for item in in_order(attempts)],
            "missing": _missing(scene, answer),
            "output": str(end.get("output", ""))[-MAX_OUTPUT:].encode("utf-8", "replace").decode(),
        }

    def _image_path(self, image: BuiltImage) -> str:
        """Return the `PYTHONPATH` that the image's config sets."""
        manifest = self._store.read_manifest(image.manifest).manifest
        config = parse_image_config(self._store.read_bytes(manifest.config, limit_bytes=MAX_IMAGE_CONFIG_BYTES))
        for line in (config.config or {}).get("Env") or ():
            name, _, value = str(line).partition("=")
            if name == "PYTHONPATH":
                return value
        return ""


def _package_root(step: StepPlan) -> Path:
    """Return the folder that is on Python's path when the step runs: where its module's name begins."""
    depth = len(step.module.split("."))
    return step.step_py.parents[min(depth - 1, len(step.step_py.parents) - 1)]


def _missing(scene: Scene, answer: ProbeResult | None) -> list[list[str]]:
    """Return the modules that cannot be imported: each with what is missing and where it is asked for.

    Empty where the step puts on the path what only its run tells: that is for its start to show.
    """
    if answer is None or (scene.step.job_path.unknown and scene.group.overlays):
        return []
    places = {item.module: item.place for item in reversed(scene.step.candidates)}
    found = []
    for module, said in sorted(answer.modules.items()):
        if said.status != "present":
            found.append(
                [module, printable(said.missing, most=MAX_SHOWN) or module, places.get(module, "required_imports")]
            )
    return found


def _judge(scene: Scene, found: Mapping[str, Any], *, reused: bool = False) -> StepResult:
    """Say of what was found what should not be, by the plan's own words."""
    ending = Ending(**found["ending"])
    attempts = [Attempt(**item) for item in found["attempts"]]
    attempts = [replace(item, allowed=is_allowed(item.host, item.port, scene.choice.allow)) for item in attempts]
    where = f"`{scene.step.target.spec}` on {scene.platform}"
    findings = [f"{where} tries to reach {item}" for item in attempts if not item.allowed]
    for module, missing, place in found["missing"]:
        lacks = "" if missing == module else f", as `{missing}` is missing"
        findings.append(f"{where} cannot import `{module}` ({place}){lacks}")
    least = scene.choice.least or "started"
    if REHEARSAL_LEVELS.index(ending.reached) < REHEARSAL_LEVELS.index(least):
        at = f" at {ending.place}" if ending.place else ""
        findings.append(
            f"{where} reached `{ending.reached}`, expected `{least}`: {ending.stopped_by}{at}: {ending.text}"
        )
    entry = RehearsalEntry(
        target=scene.step.target.spec,
        group=scene.group.name,
        platform=str(scene.platform),
        image=scene.image.manifest.digest,
        command=scene.command,
        reached=ending.reached,
        stopped_by=ending.stopped_by,
        text=ending.text,
        place=ending.place,
        modules=len(scene.modules),
        missing=tuple(item[0] for item in found["missing"]),
        attempts=tuple(AttemptEntry(**asdict(item)) for item in attempts),
    )
    return StepResult(entry, float(found["elapsed_s"]), str(found["output"]), tuple(findings), reused)


def entries_json(report: RehearsalReport) -> bytes:
    """Return what the bundle carries of a report: without times and output, which differ from run to run."""
    rehearsals = [entry.model_dump(mode="json") for entry in report.entries]
    return canonical_json({"schema_version": 1, "rehearsals": rehearsals})


def report_json(report: RehearsalReport) -> bytes:
    """Return the whole report, as it lies next to the bundle."""
    return (json.dumps(report.to_document(), indent=2, ensure_ascii=False) + "\n").encode()
