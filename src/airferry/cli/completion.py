"""What the shell offers for the values of options.

Runs at every press of TAB: it reads the plan's files alone, prints nothing, and offers nothing where a file is missing
or wrong; that error is for the command to show.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from airferry.config import Config

VARIABLE = "_AIRFERRY_COMPLETE"
COMMON_PLATFORMS = ("linux/amd64", "linux/arm64")

Completer = Callable[[typer.Context, str], list[str]]


def is_asked(environment: Mapping[str, str]) -> bool:
    """Tell whether a shell runs the program for completion."""
    return environment.get(VARIABLE, "").startswith("complete_")


def answer(environment: MutableMapping[str, str], run: Callable[[], int]) -> int:
    """Run the program for a shell, and let nothing through but what it offers."""
    kept = _join_words(environment)
    offered = io.StringIO()
    with contextlib.redirect_stdout(offered), contextlib.redirect_stderr(io.StringIO()):
        run()
    sys.stdout.write("".join(f"{line.removeprefix(kept)}\n" for line in offered.getvalue().splitlines()))
    return 0


def _join_words(environment: MutableMapping[str, str]) -> str:
    """Join the words that bash split at `:` and `=` (`sft/tiny:base`, `--target=x`), as a command would get them.

    Both are in bash's COMP_WORDBREAKS, and Typer passes on what bash says. bash then replaces only what follows the
    last colon, so what is before it is returned, for all that is offered to lose it. zsh and fish split at spaces.
    """
    if environment.get(VARIABLE) != "complete_bash":
        return ""
    try:
        words = shlex.split(environment["COMP_WORDS"])
        current = int(environment["COMP_CWORD"])
    except (KeyError, ValueError):  # an open quote: Typer takes the word as it stands
        return ""
    joined: list[str] = []
    split = after_colon = False
    for index, word in enumerate(words[: current + 1]):
        is_colon = word.strip(":") == ""
        split = bool(joined) and (is_colon or after_colon)
        if split:
            joined[-1] += word
        elif word != "=" or index == current:
            joined.append(word)
        after_colon = is_colon
    at_word = current < len(words)
    environment["COMP_WORDS"] = shlex.join(joined)
    environment["COMP_CWORD"] = str(len(joined) - 1 if at_word else len(joined))
    return joined[-1][: joined[-1].rindex(":") + 1] if at_word and split else ""


def completer(candidates: Callable[[typer.Context], Iterable[str]]) -> Completer:
    """Make a completer of a function that returns all values. It filters them, and completes the last of a list."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        try:
            return [f"{before}{comma}{value}" for value in candidates(context) if value.startswith(last)]
        # a half-typed command line may fail anywhere; a traceback among suggestions would not help
        except Exception:
            return []

    return complete


def fixed(*values: str) -> Completer:
    """Make a completer of values that are always the same."""
    return completer(lambda _context: values)


def _config(context: typer.Context) -> Config:
    from airferry.config import load_config

    return load_config(Path(context.params.get("config") or "airgap.yaml"))


def _stages(_context: typer.Context) -> Iterable[str]:
    from airferry.config.models import STAGES

    return STAGES


def _platforms(context: typer.Context) -> Iterable[str]:
    """Return the platforms that the plan names first, then those that nearly all nodes have."""
    named: list[str] = []
    try:
        config = _config(context)
        images = config.execution_images.values()
        named = [str(one) for one in (*config.platforms, *(one for image in images for one in image.platform_choice))]
    # without a plan, the common ones are still right
    except Exception:
        named = []
    return dict.fromkeys([*named, *COMMON_PLATFORMS])


def _targets(context: typer.Context) -> Iterable[str]:
    """Return `STEP:CONFIG` for all configs of the catalogue, and the bare id of a step without any.

    The shell puts them into the command line as they are: a folder called `$(…)`, which is not a step, is left out.
    """
    from airferry.config.fields import is_target
    from airferry.plan.catalogue import catalogue_at, open_catalogue

    root = context.params.get("source")
    if "config" in context.params:
        catalogue = open_catalogue(_config(context), source_dir=Path(root) if root else None)
    else:  # on the far side, a catalogue is a folder by itself
        catalogue = catalogue_at(Path(root or "."), steps=context.params.get("steps"))
    for step in catalogue.step_ids():
        found = [f"{step}:{name}" for name in catalogue.config_names(step)] or [step]
        yield from (text for text in found if is_target(text))


def _project_targets(context: typer.Context) -> Iterable[str]:
    """Return a target of each step that `init` finds."""
    from airferry.start.survey import survey_catalogue

    root = context.params.get("source") or context.params.get("folder") or "."
    found = survey_catalogue(Path(root).absolute(), steps=context.params.get("steps"))
    return [target.spec for target in found.targets] if found else []


def _executor_kinds(_context: typer.Context) -> Iterable[str]:
    from airferry.config.site import EXECUTOR_KINDS

    return EXECUTOR_KINDS


def _asset_kinds(_context: typer.Context) -> Iterable[str]:
    from airferry.config.assets import ASSET_KINDS

    return ASSET_KINDS


engines = fixed("auto", "buildah", "podman")
probes = fixed("auto", "static", "run")
artifact_choices = fixed("require", "try", "skip")
audit_choices = fixed("head", "read")
stages = completer(_stages)
platforms = completer(_platforms)
targets = completer(_targets)
project_targets = completer(_project_targets)
executor_kinds = completer(_executor_kinds)
asset_kinds = completer(_asset_kinds)
