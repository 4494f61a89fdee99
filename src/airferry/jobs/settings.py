"""What a person types so that a value of a config becomes another one: overrides that Nemotron's loader takes.

Words in capitals are for the person to fill in. Only makes text.
"""

from __future__ import annotations

import copy
import json
import posixpath
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airferry.plan.step_values import StepValue
from airferry.wording import shell_word

if TYPE_CHECKING:
    from airferry.jobs.context import StepContext

ON_A_MOUNT = "/PATH/ON/A/MOUNT"
ON_A_WRITABLE_MOUNT = "/PATH/ON/A/READ-WRITE/MOUNT"
MAX_TYPED = 240
_GLOB = re.compile(r"[*?\[]")
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET)_KEY)$")


def override(key: str, text: str) -> str:
    """Return an override, quoted for a shell where that is needed."""
    return shell_word(f"{key}={text}")


def setting(tree: Mapping[str, Any], value: StepValue, text: str) -> str:
    """Return what to type so that a value becomes `text`.

    An override cannot reach into a list (OmegaConf refuses to merge a mapping into it), so that such a list is typed
    whole, or, where that would be long, written into a config that inherits this one.
    """
    place = next((number for number, part in enumerate(value.key) if isinstance(part, int)), None)
    if place is None:
        return override(value.name, text)
    name = ".".join(str(part) for part in value.key[:place])
    whole = changed_list(tree, value.key, text)
    typed = override(name, json.dumps(whole, ensure_ascii=False))
    if len(typed) <= MAX_TYPED:
        return typed
    inner = value.name.removeprefix(name)
    return f"in a config that inherits this one: `{name}`, the whole list, with `{text}` in `{inner}`"


def changed_list(tree: Mapping[str, Any], key: tuple[str | int, ...], text: str) -> Any:
    """Return a copy of the outermost list on the way to a key, as it is written, with the value of the key changed."""
    place = next(number for number, part in enumerate(key) if isinstance(part, int))
    node: Any = tree
    for part in key[:place]:
        node = node[part]
    whole = copy.deepcopy(node)
    inner: Any = whole
    for part in key[place:-1]:
        inner = inner[part]
    inner[key[-1]] = text
    return whole


def input_path(context: StepContext, value: StepValue | None) -> str:
    """Return a path on storage that steps read, with what the value says of its name: a file, a pattern, a model."""
    mounts = sorted(context.site.mounts, key=lambda mount: mount.mode != "ro")
    return _below(mounts[0].inside, value) if mounts else ON_A_MOUNT


def output_path(context: StepContext, value: StepValue | None) -> str:
    """Return a path on storage that steps write, with the last part of what the value says."""
    mount = next((mount for mount in context.site.mounts if mount.mode != "ro"), None)
    return _below(mount.inside, value) if mount else ON_A_WRITABLE_MOUNT


def _below(folder: str, value: StepValue | None) -> str:
    parts = [part for part in (value.text if value is not None else "").rstrip("/").split("/") if part]
    pattern = next((number for number, part in enumerate(parts) if _GLOB.search(part)), len(parts) - 1)
    tail = "/".join(parts[pattern:]) if parts else ""
    return posixpath.join(folder, "PATH", "" if tail in (".", "..") else tail).rstrip("/")


def variable(tree: Mapping[str, Any], value: StepValue, name: str) -> str:
    """Return how a variable gets a value that a config reads.

    Below `run`, and in the sections of an `env.toml` to be made, variables are read where jobs are submitted, all
    others in the job. What is named for a secret is never typed.
    """
    early = value.key[0] in ("sections", "run")
    if _SECRET_NAME.search(name):
        if early:
            return f"have `{name}` in the environment that submits jobs, out of a secret store"
        return f"name `{name}` below `provides` of the site's profile, and let the scheduler inject it"
    if value.key[0] == "sections":
        return f"export {name}=VALUE, where jobs are submitted"
    return setting(tree, value, "VALUE") if early else override(f"run.env.env_vars.{name}", "VALUE")
