"""What the jobs of a group can import: of what its base and its `env:` offer, and of what only a baked checkout holds.

A checkout is importable only if something leads there: the base (`.pth` files, editable installs), `PYTHONPATH` of the
image or of a step's config, or a step's own code. Nothing here puts one on the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from airferry.config.environment import expanded
from airferry.errors import BuildError
from airferry.host import files
from airferry.host.yaml import render_line
from airferry.near.bases.fetch import BaseImage
from airferry.near.lock.additions import modules_to_probe
from airferry.near.probe.answers import ProbeResult
from airferry.plan.code.job_path import PYTHONPATH
from airferry.plan.code.modules import parents
from airferry.plan.models import Candidate, GroupPlan, JobPath, LauncherPlan, Overlay, Plan, StepPlan
from airferry.rootfs.modules import ModuleAnswer
from airferry.wording import counted

_ROOTS = ("", "src", "python", "lib")
_FROM_BEST_TO_WORST = ("present", "incomplete", "unknown", "missing")

Probe = Callable[[Sequence[str], Mapping[str, str], Mapping[str, Path]], ProbeResult]
"""Asks the base for modules, with variables over its own, and with folders of this host at some of its paths."""


@dataclass(frozen=True, slots=True)
class Unreached:
    """An import of a step that only a checkout satisfies, and nothing leads there. `root` is its folder inside."""

    step: StepPlan
    candidate: Candidate
    overlay: Overlay
    root: str


@dataclass(frozen=True, slots=True)
class JobModules:
    """What a group's jobs can import on one platform: the probe's result as the worst-off job sees it."""

    probe: ProbeResult
    unreached: tuple[Unreached, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RefusedImports:
    """The unreached imports of an image on one base; a launcher has none."""

    image: GroupPlan | LauncherPlan
    base: BaseImage
    unreached: tuple[Unreached, ...]

    @property
    def name(self) -> str:
        """The image's name for people."""
        return self.image.name if isinstance(self.image, GroupPlan) else "launcher"

    @property
    def keys(self) -> str:
        """Where the image is defined in the plan's file."""
        if isinstance(self.image, LauncherPlan):
            return "`launcher_image`"
        return " and ".join(f"`execution_images.{name}`" for name in self.image.image_names)


def image_variables(image: GroupPlan | LauncherPlan, base: BaseImage) -> dict[str, str]:
    """Return the variables that an image's `env:` sets over those of its base."""
    return expanded(image.env, _variables_of(base))


def _variables_of(base: BaseImage) -> dict[str, str]:
    lines = (base.config.config or {}).get("Env") or ()
    return dict(str(line).partition("=")[::2] for line in lines)


def _job_variables(image: Mapping[str, str], base: BaseImage, path: JobPath) -> dict[str, str]:
    """Return what a step's job sets over the base's variables; folders that its code adds go on the path, too."""
    python_path = path.variable if path.variable is not None else image.get(PYTHONPATH)
    if path.folders:
        known = _variables_of(base).get(PYTHONPATH) if python_path is None else python_path
        python_path = ":".join([*path.folders, *([known] if known else [])])
    return {**image, PYTHONPATH: python_path} if python_path is not None else dict(image)


def path_inputs(steps: Iterable[StepPlan]) -> list[list[object]]:
    """Return what the answer depends on, apart from group and base: what steps put on the path."""
    paths = {step.job_path for step in steps} - {JobPath()}
    return sorted(([path.variable or "", *path.folders, bool(path.unknown)] for path in paths), key=str)


def steps_of(plan: Plan, group: GroupPlan) -> tuple[StepPlan, ...]:
    """Return the steps of a group."""
    return tuple(step for step in plan.steps if step.target.spec in group.targets)


def job_modules(
    group: GroupPlan, steps: Sequence[StepPlan], *, base: BaseImage, trees: Mapping[str, Path], probe: Probe
) -> JobModules:
    """Probe a base once for each path that jobs of a group get, and judge each step by its own.

    `trees` are the checkouts on this host by their target.

    Raises:
        AirferryError: a probe failed.
    """
    own = image_variables(group, base)
    modules = modules_to_probe(group.candidates)
    results: dict[tuple[tuple[str, str], ...], ProbeResult] = {}
    answers_of: list[tuple[StepPlan, Mapping[str, ModuleAnswer]]] = []
    for step in steps:
        variables = _job_variables(own, base, step.job_path)
        key = tuple(sorted(variables.items()))
        if key not in results:
            results[key] = probe(modules, variables, trees)
        answers_of.append((step, results[key].modules))
    first = next(iter(results.values())) if results else probe(modules, own, trees)
    worst: dict[str, ModuleAnswer] = {}
    unreached: list[Unreached] = []
    notes: list[str] = []
    required = [item for item in group.candidates if item.origin == "required"]
    for step, answers in answers_of:
        for candidate in dict.fromkeys((*required, *step.candidates)):
            answer = answers.get(candidate.module)
            if answer is None or candidate.origin == "reported":
                continue
            # what is in doubt may be led there by what is not understood: it stays open
            if answer.status != "present" and not answer.doubt and not _named(group, candidate.module):
                wanted = answer.missing if answer.status == "incomplete" else candidate.module
                held = _holding(group.overlays, trees, wanted)
                if held is not None:
                    found = _judge(step, candidate, *held, wanted=wanted)
                    if isinstance(found, Unreached):
                        unreached.append(found)
                    else:
                        notes.append(found)
                    answer = ModuleAnswer(status="present")
            known = worst.get(candidate.module)
            if known is None or _severity(answer) > _severity(known):
                worst[candidate.module] = answer
    seen = first.model_copy(update={"modules": {**first.modules, **worst}})
    if not unreached:
        notes += _passed_over(group, answers_of, base=base, trees=trees, probe=probe)
    return JobModules(seen, tuple(unreached), tuple(dict.fromkeys(notes)))


def _passed_over(
    group: GroupPlan,
    answers_of: Sequence[tuple[StepPlan, Mapping[str, ModuleAnswer]]],
    *,
    base: BaseImage,
    trees: Mapping[str, Path],
    probe: Probe,
) -> Iterator[str]:
    """Yield notes on checkouts that jobs pass over, as the base has what they hold in another place.

    Such a base answers the same where the checkouts are empty. `PYTHONPATH` goes before the base's folders.
    """
    own = image_variables(group, base)
    said: set[tuple[Overlay, str]] = set()
    for step, answers in answers_of:
        variables = _job_variables(own, base, step.job_path)
        ahead = {
            folder.rstrip("/")
            for folder in variables.get(PYTHONPATH, _variables_of(base).get(PYTHONPATH, "")).split(":")
        }
        held = {}
        for candidate in step.candidates:
            answer = answers.get(candidate.module)
            if answer is not None and answer.status == "present" and candidate.origin != "reported":
                found = _holding(group.overlays, trees, candidate.module)
                if found is not None and found[1] not in ahead and not step.job_path.unknown:
                    held[candidate] = found
        if not held:
            continue
        with files.scratch_directory(files.temporary_directory()) as empty:
            modules = sorted({candidate.module for candidate in held})
            hidden = probe(modules, variables, dict.fromkeys(trees, empty))
        for candidate, (overlay, root) in held.items():
            top = candidate.module.partition(".")[0]
            if hidden.modules[candidate.module].status == "present" and (overlay, top) not in said:
                said.add((overlay, top))
                yield (
                    f"{candidate.place}: `{top}` comes from the base and not from the checkout at `{overlay.target}`; "
                    f"to use the checkout, put `{root}` on `{PYTHONPATH}` (`env:` of the image)"
                )


def _severity(answer: ModuleAnswer) -> int:
    return _FROM_BEST_TO_WORST.index(answer.status)


def _named(group: GroupPlan, module: str) -> bool:
    """Tell whether the image itself names the distribution of a module, and so wants that and not a checkout."""
    return any(name in group.requirements for name in parents(module))


def _judge(step: StepPlan, candidate: Candidate, overlay: Overlay, root: str, *, wanted: str) -> Unreached | str:
    """Return that nothing leads to a checkout, or a note where only running the step's code would tell."""
    if step.job_path.unknown:
        places = ", ".join(step.job_path.unknown)
        return (
            f"{candidate.place}: `{wanted}` is in the checkout at `{overlay.target}`; whether {places} "
            "puts it on Python's path is unknown: `airferry rehearse` tells"
        )
    return Unreached(step, candidate, overlay, root)


def _holding(overlays: Iterable[Overlay], trees: Mapping[str, Path], module: str) -> tuple[Overlay, str] | None:
    """Return the checkout that holds a module, and the folder inside from which it would be imported."""
    for overlay in overlays:
        for part in _ROOTS:
            if _holds(trees[overlay.target] / part, module):
                return overlay, str(PurePosixPath(overlay.target, part))
    return None


def _holds(folder: Path, module: str) -> bool:
    """Tell whether a module can be imported from a folder, as a file or as a package, with or without `__init__`."""
    place = folder.joinpath(*module.split("."))
    if place.with_name(f"{place.name}.py").is_file() or (place / "__init__.py").is_file():
        return True
    return place.is_dir() and next(place.rglob("*.py"), None) is not None


def refuse_unreached(refused: Sequence[RefusedImports], place: Callable[[Overlay], str]) -> None:
    """Do nothing if every import is led to what satisfies it. `place` tells where an overlay is asked for.

    Raises:
        BuildError: some are not; all of them are named, each checkout once for each image, with what to write.
    """
    if not any(item.unreached for item in refused):
        return
    lines: dict[str, None] = {}
    ways: dict[str, None] = {}
    for item in refused:
        lines |= dict.fromkeys(_lines(item, place))
        ways |= dict.fromkeys(_ways(item))
    raise BuildError(
        "baked checkouts are not on Python's path, so these imports would fail in the job:"
        + "".join(f"\n  {line}" for line in lines),
        hint="; ".join(ways),
        modules=sorted({one.candidate.module for item in refused for one in item.unreached}),
    )


def _lines(item: RefusedImports, place: Callable[[Overlay], str]) -> Iterator[str]:
    for overlay in dict.fromkeys(one.overlay for one in item.unreached):
        found = {one.candidate.module: one.candidate for one in item.unreached if one.overlay == overlay}
        first = min(found.values(), key=lambda candidate: (candidate.file, candidate.line))
        more = f" and {counted(len(found) - 1, 'other module')}" if len(found) > 1 else ""
        yield (
            f"{first.place}: `{first.module}`{more}: only in the checkout at `{overlay.target}` ({place(overlay)}), "
            f"image `{item.name}`"
        )


def _ways(item: RefusedImports) -> Iterator[str]:
    """Yield what to write so that the imports of a group are led to their checkouts."""
    images: dict[str, None] = {}
    configs: dict[tuple[str, str], dict[str, None]] = {}
    for one in item.unreached:
        path = one.step.job_path
        if path.variable is None:
            images[one.root] = None
        else:
            configs.setdefault((path.variable_place, path.variable), {})[one.root] = None
    if images:
        known = item.image.env.get(PYTHONPATH) or ("${PYTHONPATH}" if _variables_of(item.base).get(PYTHONPATH) else "")
        value = ":".join([*images, *([known] if known else [])])
        yield f"write below {item.keys}: `env: {render_line({**item.image.env, PYTHONPATH: value})}`"
    for (place, written), roots in configs.items():
        yield f"put `{':'.join(roots)}{':' if written else ''}` in front of the `PYTHONPATH` that {place} sets"
