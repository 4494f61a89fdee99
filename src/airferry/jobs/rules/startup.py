"""Rules about what a job installs or downloads when it starts: named, and compared with what its image holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from airferry.jobs.context import StepContext
from airferry.jobs.findings import Finding, Level
from airferry.oci.platform import parse_platform
from airferry.plan.code.commands import BOOTSTRAP, StartInstall
from airferry.plan.code.installs import COMMANDS, KEYS, PIP_EXTRAS, RUN, bake_lines, table_installs
from airferry.plan.inventory import is_held, parse_inventory
from airferry.wording import shell_word

DOWNLOADS = "downloads when the job starts"
_EXTRAS = "is installed by pip when the job starts; without an index this takes minutes and fails silently"
_UPGRADING = frozenset({"-U", "--upgrade", "--force-reinstall", "-I", "--ignore-installed", "--reinstall", "--refresh"})


@dataclass(frozen=True, slots=True)
class _Judgement:
    """What is to be said about one thing that a job does at start. `fix` goes in front of switching it off."""

    level: Level
    text: str
    fix: str = ""


def startup_findings(context: StepContext) -> Iterator[Finding]:
    """Yield what is to be said about what a config, and the profile, install and download when a job starts."""
    held = held_by(context)
    for value in context.values.values:
        place = next((index for index, part in enumerate(value.key) if part in KEYS), None)
        if place is None or not value.text:
            continue
        key = str(value.key[place])
        parent = ".".join(str(part) for part in value.key[: place + 1])
        # what a config says of other profiles is for steps in other images
        of_job = held if value.key[:2] == ("run", "env") else None
        for item in table_installs(key, [value.text]):
            if found := _judge(context, key, item, of_job):
                fix = _fix(found, f"{shell_word(parent)}=[]" if key != RUN else _run_fix(parent, item))
                yield context.finding(value, "startup", found.level, found.text, fix=fix)
    yield from _of_profile(context, held)


def _of_profile(context: StepContext, held: Mapping[str, str] | None) -> Iterator[Finding]:
    if context.profile is None:
        return
    for key in sorted(KEYS):
        written = context.profile.values.get(key)
        texts = [str(item) for item in (written if isinstance(written, list) else [written]) if item]
        # the packages of `pip_extras` are one install, each command is a separate one
        groups = [texts] if key == PIP_EXTRAS and texts else [[text] for text in texts]
        for index, items in enumerate(groups):
            for item in table_installs(key, items):
                if found := _judge(context, key, item, held):
                    yield context.in_profile(
                        "startup",
                        found.level,
                        found.text,
                        key=(key, index) if key == COMMANDS and isinstance(written, list) else (key,),
                        value=" ".join(items),
                        fix=_fix(
                            found,
                            f"run.env.{key}=[]" if key != RUN else _run_fix("run.env.run_command", item),
                        ),
                    )


def held_by(context: StepContext) -> dict[str, str] | None:
    """Return the distributions that a step's image holds on all platforms of the site, None where that is unknown."""
    if context.image is None or not context.image.distributions:
        return None
    wanted = context.site.platform
    listed = [
        parse_inventory(text)
        for name, text in context.image.distributions.items()
        if wanted is None or wanted.accepts(parse_platform(name))
    ]
    if not listed:
        return None
    return {name: version for name, version in listed[0].items() if all(name in other for other in listed[1:])}


def _judge(context: StepContext, key: str, item: StartInstall, held: Mapping[str, str] | None) -> _Judgement | None:
    """Return what is to be said about one install, None where it needs nothing from outside."""
    if item.manager == "pip":
        return None if context.site.mirrors.packages else _judge_pip(context, key, item, held)
    if item.manager == "unknown":
        return _Judgement("note", f"cannot tell what it installs when the job starts: {item.unknown}")
    if item.manager == "download":
        return _Judgement("block", DOWNLOADS)
    named = ", ".join(f"`{name}`" for name in item.names) or "packages"
    return _Judgement(
        "block",
        f"installs {named} by {item.manager} when the job starts",
        fix="have it in the base, or install it in a `containerfile:` of the image; then ",
    )


def _judge_pip(context: StepContext, key: str, item: StartInstall, held: Mapping[str, str] | None) -> _Judgement | None:
    level: Level = "warn" if key == PIP_EXTRAS else "block"
    if item.folders and not (item.names or item.others or item.unknown):
        if "--no-build-isolation" in item.command and "--no-deps" in item.command:
            return None
        named = ", ".join(f"`{folder}`" for folder in item.folders)
        fix = "an image with `env: {PYTHONPATH: FOLDER}`; then "
        return _Judgement(level, f"installs {named} when the job starts, and pip fetches what builds it", fix=fix)
    if held is None or item.unknown or item.others or item.folders:
        return _Judgement(level, _EXTRAS if key == PIP_EXTRAS else DOWNLOADS)
    other = [text for name in item.names if (text := _other_version(name, held))]
    lacking = [name for name in item.names if not (is_held(name, held) or _other_version(name, held))]
    if other and not lacking:
        text = f"the image has {', '.join(other)} when the job starts"
        return _Judgement(
            level, text, fix="run the step with the versions in the image, or choose a base that has the others: "
        )
    if lacking:
        assert context.image is not None
        named = ", ".join(f"`{name}`" for name in lacking)
        verb, object_ = ("is", "it") if len(lacking) == 1 else ("are", "them")
        text = f"{named} {verb} not in the image, and pip installs {object_} when the job starts"
        return _Judgement(level, text, fix=f"build `{context.image.name}` with {bake_lines(lacking)}; then ")
    if _UPGRADING & set(item.command.split()):
        return _Judgement(level, "is in the image, but pip still asks an index for a newer version")
    return _Judgement("note", "is in the image, so pip does not ask an index")


def _other_version(requirement: str, held: Mapping[str, str]) -> str:
    """Return that an image holds a distribution in a version that is not compatible with, or an empty text."""
    version = held.get(canonicalize_name(Requirement(requirement).name))
    if version is None or is_held(requirement, held):
        return ""
    return f"`{Requirement(requirement).name}` {version}, and pip installs `{requirement}`"


def _fix(found: _Judgement, switch: str) -> str:
    return found.fix + switch


def _run_fix(key: str, item: StartInstall) -> str:
    """Return how to start a step without what makes its environment."""
    bootstrap, dashes, command = item.command.replace("'{config}'", "{config}").partition(" -- ")
    step: Sequence[str] = command.split() if BOOTSTRAP in bootstrap and dashes else ()
    return f"{shell_word(key)}={shell_word(' '.join(step) if step else 'python -m MODULE --config {config}')}"
