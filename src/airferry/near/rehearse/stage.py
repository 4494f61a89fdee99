"""The stage of a rehearsal: what the containers of one target see, and the logs that they leave there.

Starts them in the engine it is given. What the logs mean is for `rehearsal_report`, whether it is right for
`rehearsal`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airferry.config.rehearsal import StepRehearsal
from airferry.engine.driver import ContainerOptions, Engine, Volume
from airferry.errors import BuildError
from airferry.host import files, process
from airferry.host.process import Completed
from airferry.near.assemble.writer import BuiltImage
from airferry.near.left_behind import open_left
from airferry.near.probe.answers import DEFAULT_MODULE_TIMEOUT_S, ProbeResult, parse_probe, probe_argv, probe_input
from airferry.near.rehearse.judge import read_hook_log, read_sink_log
from airferry.oci.platform import Platform
from airferry.plan.models import GroupPlan, StepPlan

HOOK, LOGS, JOB = "/airferry/hook", "/airferry/log", "/airferry/job"
HOOK_FILE = "sitecustomize.py"
LOG_FILE, SINK_FILE = "hook.log", "sink.log"
IMPORT, START = PHASES = ("import", "start")  # each in a separate container, with separate logs
MAX_LOG_BYTES = 8 * 1024 * 1024
EMULATION_FACTOR = 4
START_S = 180.0
REHEARSE = "rehearse "  # how the actions of all rehearsals begin


@dataclass(frozen=True, slots=True)
class Scene:
    """A target with all that its run needs."""

    step: StepPlan
    group: GroupPlan
    platform: Platform
    image: BuiltImage
    python: str
    choice: StepRehearsal
    command: tuple[str, ...]
    config: str
    workspace: str
    path: str
    modules: tuple[str, ...]

    @property
    def stage(self) -> str:
        """The action in the journal."""
        return rehearsal_action(self.step.target.spec, self.platform)

    @property
    def factor(self) -> int:
        """How much more time everything gets."""
        return 1 if self.platform.matches_host() else EMULATION_FACTOR

    @property
    def limit_s(self) -> float:
        """How long the step may run, in seconds."""
        return float((self.choice.time_limit_s or 1) * self.factor)


class RehearsalFolders:
    """The folders that a target's containers see, and what they leave there."""

    def __init__(self, folder: Path, source: Path, scene: Scene, image_path: str) -> None:
        """Write the hook and the empty logs into `folder`. `image_path`: the `PYTHONPATH` that the image sets."""
        self._scene = scene
        self._folder = folder
        hook, job = (files.ensure_directory(folder / name) for name in ("hook", "job"))
        (hook / HOOK_FILE).write_bytes(Path(__file__).with_name("hook.py").read_bytes())
        # any user that the image names must be able to read and write
        for path, mode in ((folder, 0o755), (hook, 0o755), (hook / HOOK_FILE, 0o644), (job, 0o777)):
            path.chmod(mode)
        for phase in PHASES:
            logs = files.ensure_directory(folder / phase / "log")
            (logs / LOG_FILE).touch()
            for path, mode in ((folder / phase, 0o755), (logs, 0o777), (logs / LOG_FILE, 0o666)):
                path.chmod(mode)
        self._volumes = [Volume(source, scene.workspace), Volume(hook, HOOK), Volume(job, JOB, writable=True)]
        self._env = {
            "PYTHONDONTWRITEBYTECODE": "1",
            "PWD": JOB,  # as a shell sets it, and as configs read it
            **scene.choice.env,
            "PYTHONPATH": ":".join(filter(None, [HOOK, scene.path, _job_path(scene, image_path)])),
            "AIRFERRY_REHEARSAL_LOG": f"{LOGS}/{LOG_FILE}",
            "AIRFERRY_REHEARSAL_CONFIG": scene.config,
            "AIRFERRY_REHEARSAL_ROOT": scene.workspace + "/",
        }

    def import_modules(self, engine: Engine, image: str) -> ProbeResult | None:
        """Import the scene's modules in the image and return how that went, or None where there are none."""
        if not self._scene.modules:
            return None
        patience_s = DEFAULT_MODULE_TIMEOUT_S * self._scene.factor
        added = [self._scene.path, *self._scene.step.job_path.folders]
        request = probe_input(self._scene.modules, path=added, module_timeout_s=patience_s)
        all_s = patience_s * len(self._scene.modules)
        argv = probe_argv(self._scene.python)
        done = self._run(engine, image, argv, phase=IMPORT, stdin=request, limit_s=all_s)
        return parse_probe(done.stdout)

    def start_step(self, engine: Engine, image: str) -> None:
        """Run the step in the image until it ends or its time is up. What it did is in the logs."""
        scene = self._scene
        argv = [scene.python, "-I", "-S", f"{HOOK}/{HOOK_FILE}", f"{scene.limit_s:g}", *scene.command]
        self._run(engine, image, argv, phase=START, limit_s=scene.limit_s)

    def _run(
        self,
        engine: Engine,
        image: str,
        argv: Sequence[str],
        *,
        phase: str,
        limit_s: float,
        stdin: bytes | None = None,
    ) -> Completed:
        return engine.run(
            image,
            argv,
            platform=self._scene.platform,
            options=ContainerOptions(
                volumes=[*self._volumes, Volume(self._folder / phase / "log", LOGS, writable=True)],
                env=self._env,
                workdir=JOB,
                watch=self._folder / phase / SINK_FILE,
            ),
            streams=process.Streams(stdin=stdin),
            timeout_s=START_S + limit_s,
        )

    def logs(self, phase: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return what the hook and the engine's sink logged in a phase.

        Raises:
            BuildError: code in the container put something else in place of the hook's log.
        """
        try:
            hook = _read(self._folder / phase / "log" / LOG_FILE)
        except BuildError as error:
            place = f"the rehearsal of `{self._scene.step.target.spec}` on {self._scene.platform} has lost its log"
            hint = "code of the step, or of its image, changes what the rehearsal writes; find out why before you build"
            raise error.at(place, hint=hint) from error
        sink = self._folder / phase / SINK_FILE
        return read_hook_log(hook), read_sink_log(_read(sink) if sink.exists() else b"")


def _job_path(scene: Scene, image_path: str) -> str:
    """Return the `PYTHONPATH` of a step's job: what the plan or the step's config sets, in place of the image's."""
    for chosen in (scene.choice.env.get("PYTHONPATH"), scene.step.job_path.variable):
        if chosen is not None:
            return chosen.strip(":")
    return image_path


def _read(path: Path) -> bytes:
    """Read the log's end, as a step may write more than anybody wants to read."""
    with open_left(path) as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - MAX_LOG_BYTES))
        return stream.read(MAX_LOG_BYTES)


def rehearsal_action(spec: str, platform: Platform) -> str:
    """Return the name of the action in the journal that tries a target on a platform."""
    return f"{REHEARSE}{spec} {platform}"
