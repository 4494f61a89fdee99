"""Rules about single values of a config: what reaches outside, what is missing, what should not stand in a file."""

from __future__ import annotations

import re
from collections.abc import Iterator

from airferry.config.fields import parse_overlay
from airferry.config.submit import config_words
from airferry.defaults import OVERLAYS_FOLDER
from airferry.errors import HostError
from airferry.host import files
from airferry.host.parsing import Malformed, parse_json, split_url, url_host
from airferry.host.yaml import render_line
from airferry.jobs.context import AMBIENT, StepContext, has_word, masked
from airferry.jobs.findings import OVERLAYS_WRITE_IT, Finding, Level, Remedy
from airferry.jobs.hub import HUB_URL, LOCAL_DATASETS, is_hub_id
from airferry.jobs.settings import input_path, output_path, override, variable
from airferry.oci.reference import is_loopback
from airferry.plan.step_config import split_mounts
from airferry.plan.step_values import StepValue
from airferry.wording import shell_line

# of a list of datasets and weights: Nemotron's have a few KiB
MAX_BLEND_BYTES = 16 * 1024 * 1024
_URL = re.compile(r"https?://[^\s'\",)}]+")
_REFERENCE = re.compile(r"\$\{\s*\.?[A-Za-z_][\w.\[\]]*\s*\}")
_ENDPOINT_KEYS = frozenset({"url", "api_base", "endpoint"})
_CLOUD_BACKENDS = frozenset({"google", "aws", "azure"})
_PLACEHOLDERS = "resolve_hf_placeholders"
_SECRET_KEY = "token|secret|password|passwd|credential|credentials"
_VARIABLE_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_TRUE = frozenset({"true", "1", "yes", "on"})


def config_findings(context: StepContext) -> Iterator[Finding]:
    """Yield what is to be said about each value of a config by itself."""
    for value in context.values.values:
        yield from _git(context, value)
        yield from _missing(context, value)
        if isinstance(value.raw, str) and ("\n" in value.raw or _REFERENCE.fullmatch(value.raw.strip())):
            continue
        yield from _hub(context, value)
        if "auto_mount" not in str(value.raw):
            yield from _urls(context, value)
        yield from _providers(context, value)
        yield from _tracking(context, value)
        yield from _secret(context, value)
    yield from _variables(context)


def _hub(context: StepContext, value: StepValue) -> Iterator[Finding]:
    text, what = value.text, None
    if is_hub_id(context.values, value) or HUB_URL.search(text):
        what = "is on the Hugging Face Hub"
    elif value.last == "dataset_name" and text and "/" not in text and text not in LOCAL_DATASETS:
        what = "is a dataset that the framework downloads from the Hugging Face Hub"
    elif value.last == _PLACEHOLDERS and value.value is True:
        what = "replaces placeholders in the data by datasets from the Hugging Face Hub"
    elif value.last == "name" and value.key[-3:-1][:1] == ("tasks",) and "evaluation" in value.key and text:
        what = "is a benchmark that downloads its dataset from the Hugging Face Hub"
    if what is None:
        return
    if context.site.mirrors.huggingface:
        yield context.finding(value, "huggingface", "note", f"{what}; the site's mirror must have it")
    elif context.is_off(value):
        yield context.finding(value, "huggingface", "note", f"{what}; this part is switched off")
    else:
        surely = value.last != _PLACEHOLDERS and not (value.last == "name" and "tasks" in value.key)
        level: Level = "block" if surely else "warn"
        fix = _hub_fix(context, value)
        yield context.finding(value, "huggingface", level, f"{what}, which cannot be reached", fix=fix)


def _hub_fix(context: StepContext, value: StepValue) -> str:
    """Return what to type instead of something on the Hub: a path only where the key takes one."""
    cache = f"stage its dataset in a cache of the Hub, and name that: {_hub_cache(context)}"
    if value.last == _PLACEHOLDERS:
        return f"{context.setting(value, 'false')}, with data that already has them replaced"
    if value.last == "name" and "tasks" in value.key:
        return f"{cache}; or leave the task out"
    if value.last == "dataset_name":
        kind = "PreferenceDataset" if has_word(context.name.replace("/", "_").replace(":", "_"), "dpo|rm") else ""
        fix = context.setting(value, kind or "ResponseDataset")
        return f"{fix}, and `data_path={input_path(context, None)}/FILE.jsonl` in its `train` and `validation`"
    if value.last == "repo_id" and len(value.key) > 1 and all(isinstance(part, str) for part in value.key):
        parent = ".".join(str(part) for part in value.key[:-1])
        return f"{override(parent, 'null')}, which downloads nothing; and files on a mount as the input"
    if value.last.endswith("_dataset"):
        return cache
    return context.setting(value, input_path(context, value))


def _hub_cache(context: StepContext) -> str:
    """Return the setting of the Hub's cache: libraries lock files in it, so that it has to be writable."""
    return override("run.env.env_vars.HF_HOME", f"{output_path(context, None)}/HUB-CACHE")


def blend_findings(context: StepContext) -> Iterator[Finding]:
    """Yield the Hub's datasets that a data blend of the catalogue names: the one that the config names, or the
    step's own where it names none."""
    named = next((value for value in context.values.values if value.last == "blend_path"), None)
    path = context.on_this_host(named.text) if named is not None and named.value else context.own_blend
    if path is None or not path.is_file() or context.site.mirrors.huggingface:
        return
    try:
        text = files.read_bounded(path, limit_bytes=MAX_BLEND_BYTES).decode()
        parse_json(text)
    except (HostError, ValueError):
        return
    for number, line in enumerate(text.splitlines(), start=1):
        for match in HUB_URL.finditer(line):
            yield Finding(
                context.name,
                "huggingface",
                "block",
                context.shown_path(files.resolved(path)),
                number,
                "blend_path",
                match[0],
                "the data blend names a dataset on the Hugging Face Hub, which cannot be reached",
                override("blend_path", f"{input_path(context, None)}/{path.name}")
                if named is None
                else context.setting(named, input_path(context, named)),
            )


def _git(context: StepContext, value: StepValue) -> Iterator[Finding]:
    if not isinstance(value.raw, str) or "auto_mount" not in value.raw or "${" not in value.raw:
        return
    fix: str | None = None
    remedy: Remedy = "change"
    if value.key[:3] == ("run", "env", "mounts"):
        fix, remedy = _baked_fix(context, value.raw)
    shown, text = _overlay_name(value.raw), "is cloned when the job starts"
    yield context.finding(value, "git", "block", text, fix=fix, shown=shown, remedy=remedy)


def _baked_fix(context: StepContext, raw: str) -> tuple[str, Remedy]:
    """Return what keeps a baked checkout from being cloned: a config without its mount, or another build.

    No override does: it would come after the profile, and drop the profile's storage as well.
    """
    if context.image is not None:
        try:
            wanted = split_mounts([raw])[0]
        except ValueError as error:
            return f"correct it: {error}", "change"
        held = {(item.url, item.ref, item.target) for item in context.image.overlays}
        if not all((item.url, item.ref, item.target) in held for item in wanted):
            return f"`{context.image.image}` does not contain it: build the bundle again from this catalogue", "build"
    if context.files.target.path is not None:
        return (
            "name this config in the plan's `workflow.stages`, build and load again, and check it by the name that it "
            "has in the receipt: `airferry overlays` writes configs only for what the bundle carries"
        ), "build"
    step, _, config = context.name.partition(":")
    path = str(context.overlays or OVERLAYS_FOLDER) + f"/{context.executor.kind}/{step}/{config or 'CONFIG'}.yaml"
    how = shell_line(config_words(context.submit, config=path))
    return f"{how}, {OVERLAYS_WRITE_IT}; an override of `run.env.mounts` drops the profile's storage", ("change")


def _overlay_name(raw: str) -> str:
    try:
        url, ref, target = parse_overlay(raw.strip().removeprefix("${auto_mount:").removesuffix("}"))
    except ValueError:
        return raw
    return f"{url}@{ref} in {target}"


def _missing(context: StepContext, value: StepValue) -> Iterator[Finding]:
    if value.problem is None:
        return
    unset = [name for name, default in value.variables if not default and name not in context.environment]
    if unset:
        fix = variable(context.values.tree, value, unset[0])
        yield context.finding(
            value, "variable", "block", f"reads `{unset[0]}`, which nothing sets and which has no default", fix=fix
        )
    else:
        yield context.finding(value, "value", "block", value.problem, fix=context.setting(value, "VALUE"))


def _variables(context: StepContext) -> Iterator[Finding]:
    """Yield variables that have a default and are not set, and those that are named for secrets."""
    for value in context.values.values:
        for name, default in value.variables:
            if default and name not in context.environment and name not in context.provided | AMBIENT:
                yield context.finding(
                    value,
                    "variable",
                    "note",
                    f"reads `{name}`, which nothing sets; its default counts",
                    fix=variable(context.values.tree, value, name),
                    shown=f"${name}",
                )
        named = has_word(value.last, "key_env|key_name|token_env|password_env") and _VARIABLE_NAME.fullmatch(value.text)
        if named and value.text not in context.environment and value.text not in context.provided:
            yield context.finding(
                value,
                "variable",
                "warn",
                f"the step reads a key from `{value.text}`, which nothing sets",
                fix=f"name `{value.text}` below `provides` of the site's profile, and let the scheduler inject it",
            )


def known_hosts(context: StepContext) -> set[str]:
    """Return the hosts that the site declares to be inside."""
    mirrors = context.site.mirrors
    urls = [mirrors.huggingface, mirrors.packages, mirrors.wandb, *context.site.endpoints.values()]
    hosts = {url_host(url) for url in urls if url}
    if context.site.registry:
        hosts.add(context.site.registry.partition("/")[0])
    return hosts


def _urls(context: StepContext, value: StepValue) -> Iterator[Finding]:
    endpoint = value.last in _ENDPOINT_KEYS or value.last.endswith("_url")
    if endpoint and not value.text and value.problem is None:
        if any(context.sibling(value, name) for name in ("model_id", "api_key_name", "api_key_env")):
            yield context.finding(
                value,
                "endpoint",
                "block",
                "no endpoint is set",
                fix=context.setting(value, _endpoint(context, "")),
                shown="",
            )
        return
    prose = " " in value.text and not value.text.startswith("http")
    for url in _URL.findall(value.text) if not prose else ():
        host = url_host(url)
        if is_loopback(host) or host in known_hosts(context) or host.startswith("0.0.0.0"):
            continue
        if endpoint:
            yield context.finding(
                value,
                "endpoint",
                "block",
                f"`{host}` is not an endpoint that the site declares",
                fix=context.setting(value, _endpoint(context, url)),
            )
        else:
            fix = context.setting(value, input_path(context, value))
            yield context.finding(value, "url", "block", f"`{host}` is outside", fix=fix)


def _endpoint(context: StepContext, url: str) -> str:
    """Return the site's endpoint for an address outside: the provider's whose name its host has, or the only one."""
    try:
        parts = split_url(url)
    except Malformed:
        parts = split_url("http:")
    endpoints = context.site.endpoints
    for name, inside in endpoints.items():
        if name.lower() in re.split(r"[^a-z0-9]+", (parts.hostname or "").lower()):
            return inside
    if parts.path.rstrip("/") == "/v1" or not url:
        return next(iter(endpoints.values())) if len(endpoints) == 1 else "http://HOST:PORT/v1"
    return f"{parts.scheme}://HOST:PORT{parts.path}"


def _providers(context: StepContext, value: StepValue) -> Iterator[Finding]:
    if value.last == "provider" and value.text and context.sibling(value, "model") is not None:
        if context.sibling(value, "base_url") is not None or value.text in context.site.endpoints:
            return
        declared = {item.text for item in context.values.below("providers") if item.last == "name"}
        if value.text in declared:
            return
        yield context.finding(
            value,
            "endpoint",
            "block",
            f"the model provider `{value.text}` is a public service unless the site declares an endpoint for it",
            fix=f"declare `{value.text}` below `endpoints` of the site, and "
            + override("providers", render_line([{"name": value.text, "endpoint": "http://HOST:PORT/v1"}])),
        )
    if value.last == "backend" and value.text in _CLOUD_BACKENDS:
        yield context.finding(
            value, "endpoint", "block", f"`{value.text}` is a cloud service", fix=context.setting(value, "nmt")
        )


def _tracking(context: StepContext, value: StepValue) -> Iterator[Finding]:
    if context.site.mirrors.wandb:
        return
    on = str(value.value).lower() in _TRUE and value.last in ("wandb_enabled", "use_wandb")
    wrapper = value.last == "enabled" and len(value.key) > 1 and "wandb" in str(value.key[-2]).lower()
    exported = value.text == "wandb" and "destinations" in value.key
    if on or exported or (wrapper and str(value.value).lower() in _TRUE):
        yield context.finding(
            value,
            "offline",
            "warn",
            "Weights & Biases cannot be reached; in offline mode runs stay on disk, and exports fail",
            fix=context.setting(value, "false") if not exported else override(_list_of(value), "[]"),
        )


def _list_of(value: StepValue) -> str:
    return ".".join(str(part) for part in value.key[:-1])


def _secret(context: StepContext, value: StepValue) -> Iterator[Finding]:
    text = value.raw if isinstance(value.raw, str) else ""
    named = has_word(value.last, f"{_SECRET_KEY}|api_key|access_key") and not has_word(
        value.last, "env|name|file|path|id|ids|dir"
    )
    literal = bool(text) and "${" not in text and not _VARIABLE_NAME.fullmatch(text)
    if masked(text) != text or (named and literal and len(text) >= 8):
        yield context.finding(
            value,
            "secret",
            "block",
            "a secret is stored in a file",
            fix=context.setting(value, "${oc.env:NAME}")
            + ", injected by the scheduler; and rotate the secret: it is exposed",
            shown="***",
        )
