"""Reads `airgap.yaml`, and tells all its problems at once, each at file and line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from airferry.config.bases import BaseSpec
from airferry.config.document import Answers, KeyPath, YamlDocument, read_yaml
from airferry.config.models import Config
from airferry.config.schema import allowed_keys
from airferry.config.site import SiteProfile
from airferry.errors import ConfigurationError
from airferry.wording import near_names

MAX_PROBLEMS = 50
# below these, `env` is a name that the user chose, and not the key for variables
_NAMED_BY_USERS = (("execution_images",), ("profiles",), ("steps",))
_REASONS = {
    "string_type": "expected text",
    "bool_type": "expected `true` or `false`",
    "int_type": "expected a whole number",
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping",
    "path_type": "expected a path",
    "missing": "is missing",
    "too_short": "expected at least one entry",
}


class _SiteAlone(BaseModel):
    """An `airgap.yaml` as the far side reads it: nothing but its `site:`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    site: SiteProfile | None = None


def load_config(path: Path) -> Config:
    """Read and check an `airgap.yaml`.

    Relative `oci:` and `oci-archive:` bases and `containerfile` are made relative to the file's folder. A `site:` that
    is text names a separate file, relative to that folder, which is read as well.

    Raises:
        ConfigurationError: all problems of the file, each as `file:line: key: reason`.
    """
    if not path.exists():
        raise ConfigurationError(
            f"there is no `{path}`",
            hint="run airferry in the folder of the file, or give the file with `--config`",
            path=str(path),
        )
    document = read_yaml(path)
    if document.value is None:
        raise ConfigurationError(
            f"{path}:1: the file is empty",
            hint="it requires at least `workflow`, `step_execution_images` and `execution_images`",
            path=str(path),
        )
    if not isinstance(document.value, dict):
        raise ConfigurationError(
            f"{path}:1: expected a mapping of keys at the top level",
            path=str(path),
            hint="begin with `workflow:`; `airferry schema` prints what each key takes",
        )
    folder = path.absolute().parent
    value = _without_nulls(document.value)
    if isinstance(value.get("site"), str):
        value["site"] = _site_of_its_own(read_yaml(folder / value["site"]))
    try:
        config = Config.model_validate(value, context={"folder": folder})
    except ValidationError as error:
        raise _configuration_error(document, error) from error
    config._document = YamlDocument(path.absolute(), document.value, document.lines)
    return config


def load_site(path: Path) -> SiteProfile:
    """Read and check a site profile: a separate file, or an `airgap.yaml` with `site:`, of which all else is ignored.

    Raises:
        ConfigurationError: all problems of the profile, each as `file:line: key: reason`; or the file holds none.
    """
    document = read_yaml(path)
    if not (isinstance(document.value, dict) and document.value.keys() & {"site", "workflow", "execution_images"}):
        return _site_of_its_own(document)
    site = site_in(document)
    if site is None:
        raise document.error((), "it has no `site`", hint="describe the site with `airferry site init --executor KIND`")
    return site


def site_in(document: YamlDocument) -> SiteProfile | None:
    """Return the profile under `site:` of an `airgap.yaml`, None without that key. All else in it is ignored.

    Raises:
        ConfigurationError: the profile is wrong, or the file that it is in cannot be read.
    """
    value = document.value.get("site") if isinstance(document.value, dict) else None
    if isinstance(value, str):
        return _site_of_its_own(read_yaml(document.path.absolute().parent / value))
    try:
        return _SiteAlone.model_validate(_without_nulls({"site": value})).site
    except ValidationError as error:
        raise _configuration_error(document, error) from error


def check_site(value: Any, options: Mapping[KeyPath, str] | None = None) -> SiteProfile:
    """Check a site profile that stands in no file yet. `options` names what each value came from.

    Raises:
        ConfigurationError: all its problems, each as `option: reason`.
    """
    return _site_of_its_own(Answers(Path(), value, {}, options or {}))


def base_trouble(text: str) -> str | None:
    """Return what is wrong with a base that stands in no file yet, None if nothing is."""
    try:
        TypeAdapter(BaseSpec).validate_python(text)
    except ValidationError as error:
        return error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
    return None


def _site_of_its_own(document: YamlDocument) -> SiteProfile:
    if not isinstance(document.value, dict):
        raise document.error((), "expected a mapping of keys at the top level", hint="`airferry site init` writes one")
    try:
        return SiteProfile.model_validate(_without_nulls(document.value))
    except ValidationError as error:
        raise _configuration_error(document, error, below=("site",)) from error


def _without_nulls(value: Any, key: KeyPath = ()) -> Any:
    """Drop keys without a value: `required_imports:` with nothing after it is the same as no key.

    A variable without a value stays, to be refused: nothing tells whether an empty one or none was meant.
    """
    if isinstance(value, dict):
        variables = key[-1:] == ("env",) and (key[-2:-1] not in _NAMED_BY_USERS)
        return {
            name: _without_nulls(item, (*key, name)) for name, item in value.items() if item is not None or variables
        }
    if isinstance(value, list):
        return [_without_nulls(item, (*key, index)) for index, item in enumerate(value)]
    return value


def _configuration_error(document: YamlDocument, error: ValidationError, *, below: KeyPath = ()) -> ConfigurationError:
    found: dict[str, int] = {}
    items = error.errors(include_url=False)
    for item in items:
        if item["type"] == "too_short" and any(item["loc"] == other["loc"][:-1] for other in items):
            continue
        key = _key_path(document.value, item["loc"], missing=item["type"] == "missing")
        reason = _reason(item["type"], item["msg"], item["input"], (*below, *key))
        found.setdefault(document.problem(key, reason), document.line(key))
    problems = sorted(found, key=lambda text: found[text])
    shown = problems[:MAX_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"… and {len(problems) - len(shown)} more")
    return ConfigurationError(
        "\n".join(shown),
        hint="`airferry schema` prints what each key takes",
        path=str(document.path),
        problems=tuple(problems),
    )


def _key_path(value: Any, location: tuple[str | int, ...], *, missing: bool) -> KeyPath:
    """Return the path in the file for a validator's location, which also holds names of union members."""
    key: list[str | int] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        inside = (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        )
        if inside:
            value = value[part]
            key.append(part)
        elif last and missing:
            key.append(part)
    return tuple(key)


def _reason(kind: str, message: str, value: Any, key: KeyPath) -> str:
    if kind == "extra_forbidden":
        known = allowed_keys(key[:-1])
        near = near_names(str(key[-1]), known)
        if near:
            return f"unknown key, did you mean `{near[0]}`?"
        return "unknown key; allowed here: " + ", ".join(f"`{name}`" for name in known)
    if value is None and key[-2:-1] == ("env",):
        return 'the variable has no value; write `""` for an empty one, or leave it out'
    if kind == "literal_error" and message.endswith(" False"):
        return "expected `false`, or a mapping"
    reason = _REASONS.get(kind) or message.removeprefix("Value error, ")
    if kind.endswith("_type") and isinstance(value, str | int | float | bool):
        reason += f", found `{value!r}`" if isinstance(value, str) else f", found `{str(value).lower()}`"
    return reason
