"""Rules about paths: what feeds a step is there, what it writes is kept, and storage is read-only or read-write as it
should be. Looks at files where they can be seen from this host; changes none."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from airferry.jobs.context import FEEDS, StepContext, has_word
from airferry.jobs.findings import Finding, Level
from airferry.jobs.hub import is_hub_id
from airferry.jobs.settings import input_path, output_path, override, variable
from airferry.plan.step_values import StepValue

PRODUCED = {"checkpoint_megatron": ("megatron_path",), "checkpoint_hf": ("hf_path",)}
UNSET_PATH = "/path/to/"
_OUTPUT = re.compile(
    r"outputs?|output_(dir|path|file|folder|hf_path|megatron_path)|save|\w*_save_path|(checkpoint|log|save|results|local|index_mapping)_dir"
    r"|hf_export_path|data_path_to_cache|\w*_cache_dir|caching_dir"
)
_FORMATS = frozenset(
    ("bin", "csv", "data", "dir", "file", "hf", "json", "jsonl", "parquet", "path", "raw", "text", "txt", "yaml")
)
# where images keep what is theirs, and the first part of a service's paths; other absolute paths are of storage
_OF_IMAGES = re.compile(
    r"/(bin|boot|dev|etc|lib\w*|opt|proc|root|run|sbin|srv|sys|usr|var|app|workspace|code|nemo_run|tmp|v\d+)(/|$)"
)
_RELATIVE_FILE = re.compile(r"[\w.+-]+(/[\w.+*-]+)+\.\w{1,8}")
_NO_STORAGE = (
    "url|uri|urls|endpoint|endpoints|route|api|prefix|regex|pattern|suffix|command|args|mounts|image|env|vars"
    "|adapter_config|health"
)
_PATH = re.compile(r"(/|\./|\.\./|~/)\S*")
_MODEL_FILE = re.compile(r"\.(bin|pt|pth|safetensors|nemo|gguf|onnx|model|ckpt)$")
_GLOB = re.compile(r"[*?\[]")


def path_findings(context: StepContext) -> Iterator[Finding]:
    """Yield what is to be said about the paths that feed a step and those that it writes."""
    inputs = _inputs(context)
    guessed = _named_for(context, {item.kind for item in context.consumes})
    made = _named_for(context, set(context.produces) - {item.kind for item in context.consumes})
    yield from _unfed(context)
    for value in context.values.values:
        if (isinstance(value.raw, str) and "\n" in value.raw) or not value.text:
            continue
        if _is_replaced(context, value):
            continue
        if UNSET_PATH in value.text or value.text.startswith("/path/to"):
            yield context.finding(value, "input", "block", "is a placeholder", fix=_input_fix(context, value))
        elif value in inputs:
            yield from _input(context, value)
        elif _is_output(context, value) or value in made:
            yield from _output(context, value)
        elif value in guessed:
            # the key only has the name of what is consumed: what it says may be meant otherwise
            for item in _input(context, value):
                yield replace(item, level="warn") if item.level == "block" else item
        elif _is_elsewhere(context, value):
            text = "is not on a mount: containers cannot see it, unless the image holds it"
            yield context.finding(value, "input", "warn", text, fix=_input_fix(context, value))


def _named_for(context: StepContext, kinds: set[str]) -> list[StepValue]:
    """Return the values that are paths, and whose key has a word of a type of the catalogue's own: `table` for `table`,
    `packed` for `packed_json`. The keys that feed Nemotron's types are known."""
    known = FEEDS.keys() | PRODUCED.keys()
    words = {word for kind in kinds - known for word in kind.lower().split("_")} - _FORMATS
    if not words:
        return []
    pattern = "|".join(sorted(map(re.escape, words)))
    return [
        value
        for value in context.values.values
        if has_word(value.last, pattern)
        and (_PATH.fullmatch(value.text) or _RELATIVE_FILE.fullmatch(value.text))
        and not _is_no_storage(value)
    ]


def _is_elsewhere(context: StepContext, value: StepValue) -> bool:
    """Tell whether a value is an absolute path that is on no mount, and in no folder that images have."""
    return (
        re.fullmatch(r"(/[^\s/*?\[\](){}|\\^$:,;]+){2,}/?", value.text) is not None
        and context.place_of(value.text)[0] == "image"
        and not _OF_IMAGES.match(value.text)
        and not _is_no_storage(value)
    )


def _is_no_storage(value: StepValue) -> bool:
    """Tell whether a value is about something else than storage that containers see; sections are of the host."""
    parts = [part for part in value.key if isinstance(part, str)]
    return parts[0] == "sections" or any(has_word(part, _NO_STORAGE) for part in parts)


def _is_replaced(context: StepContext, value: StepValue) -> bool:
    """Tell whether the manifest of an earlier step, named next to the splits, takes the place of a split's path."""
    if value.last != "data_path" or len(value.key) < 2:
        return False
    manifest = context.values.get(*value.key[:-2], "manifest_path")
    return manifest is not None and bool(manifest.text)


def _inputs(context: StepContext) -> list[StepValue]:
    names = {name for consumed in context.consumes for name in FEEDS.get(consumed.kind, ())}
    return [
        value
        for value in context.values.values
        if (value.last in names or _MODEL_FILE.search(value.text))
        and value.text
        and not is_hub_id(context.values, value)
        and not _is_output(context, value)
    ]


def _unfed(context: StepContext) -> Iterator[Finding]:
    """Yield what the step says that it must have and no key of the config feeds.

    A config without such a key that feeds something else of the step runs another part of it: that is only noted.
    """
    fed = {
        consumed.kind
        for consumed in context.consumes
        if any(value.text and value.last in FEEDS.get(consumed.kind, ()) for value in context.values.values)
    }
    for consumed in context.consumes:
        names = FEEDS.get(consumed.kind)
        if not consumed.required or not names:
            continue
        found = [value for value in context.values.values if value.last in names]
        if any(value.value is not None or value.problem for value in found):
            continue
        what = f"the step needs `{consumed.kind}`"
        if not found and "blend_path" in names and context.own_blend is not None:
            continue
        if found:
            fix = _input_fix(context, found[0])
            yield context.finding(found[0], "input", "block", f"{what}, and this key is empty", fix=fix, shown="")
        else:
            text = f"{what}, and no key of the config feeds it: a default of the step may"
            if fed:
                yield context.general("input", "note", text, key=names[0])
            else:
                fix = override(names[0], input_path(context, None))
                yield context.general("input", "warn", text, key=names[0], fix=fix)


def _input_fix(context: StepContext, value: StepValue) -> str:
    """Return what to type for a value that feeds a step; in a section of an `env.toml`, the variable that it reads."""
    if value.key[0] == "sections" and (names := [name for name, _default in value.variables]):
        return variable(context.values.tree, value, names[0])
    return context.setting(value, input_path(context, value))


def _is_output(context: StepContext, value: StepValue) -> bool:
    consumed = {item.kind for item in context.consumes}
    produced = {name for kind in context.produces if kind not in consumed for name in PRODUCED.get(kind, ())}
    evaluators_own = "adapter_config" in value.key
    return value.last in produced or bool(_OUTPUT.fullmatch(value.last) and "/" in value.text and not evaluators_own)


def _input(context: StepContext, value: StepValue) -> Iterator[Finding]:
    if not _PATH.fullmatch(value.text) and not _RELATIVE_FILE.fullmatch(value.text):
        return
    place, mount = context.place_of(value.text)
    fix = _input_fix(context, value)
    if place in ("relative", "temporary"):
        yield context.finding(value, "input", "block", "is local to the job, not on shared storage", fix=fix)
        return
    if place == "image":
        level: Level = "block" if context.mounts else "warn"
        yield context.finding(value, "input", level, "is not on a mount: containers cannot see it", fix=fix)
        return
    if mount is not None and not mount.read_only and not has_word(value.last, "cache"):
        text = f"is read from `{mount.inside}`, which is mounted read-write; read-only is enough"
        yield context.finding(value, "mount", "note", text)
    here = context.on_this_host(value.text)
    if here is None:
        return
    if place == "mount" and mount is not None and not Path(mount.host).exists():
        yield context.finding(value, "input", "note", f"`{mount.host}` is not visible from this host; not checked")
        return
    if trouble := path_problem(here):
        yield context.finding(value, "input", "block", f"{trouble} (`{context.shown_path(here)}` here)", fix=fix)


def path_problem(path: Path) -> str | None:
    """Return what is wrong with a path, or a pattern of paths, that a step is to read: None if nothing is."""
    text = str(path)
    if _GLOB.search(text):
        matches = list(islice(glob.iglob(text, recursive=True), 1))  # noqa: PTH207 (takes absolute patterns)
        if not matches:
            return "matches nothing"
        path = Path(matches[0])
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                return None if next(entries, None) is not None else "is an empty folder"
        if not path.exists():
            return "is not there"
        if path.stat().st_size == 0:
            return "is an empty file"
        with path.open("rb"):
            return None
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"


def _output(context: StepContext, value: StepValue) -> Iterator[Finding]:
    place, mount = context.place_of(value.text)
    fix = context.setting(value, output_path(context, value))
    if mount is not None:
        if mount.read_only:
            text = f"is written, and `{mount.inside}` is mounted read-only"
            yield context.finding(value, "mount", "block", text, fix=fix)
        return
    if place in ("job", "code") and context.executor.kind == "slurm-pyxis":
        return
    yield context.finding(value, "output", "warn", "is not on a mount: its content is lost when the job ends", fix=fix)
