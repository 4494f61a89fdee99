"""The JSON Schema of `airgap.yaml`, for editors and for finding what an unknown key was meant to be."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from airferry.config.fields import FREE_PREFIX
from airferry.config.models import Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT_FORMS = ("CompressionChoice", "OverlaySpec", "StepImage", "Executor", "StorageMount", "SiteProfile")


@cache
def _schema() -> dict[str, Any]:
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    for name in _TEXT_FORMS:
        definition = definitions[name]
        text = dict(definition["properties"]["kind"]) if name == "CompressionChoice" else {"type": "string"}
        text.pop("default", None)
        text.pop("title", None)
        definitions[name] = {"description": definition.get("description", ""), "anyOf": [text, definition]}
    definitions["BootstrapBase"] = {
        "type": "object",
        "properties": {"bootstrap": definitions["BootstrapBase"]},
        "required": ["bootstrap"],
        "additionalProperties": False,
    }
    _loosen(schema)
    for definition in definitions.values():
        _loosen(definition)
    return {"$schema": DIALECT, **schema, "title": "airgap.yaml of airferry"}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of `airgap.yaml`, of which `load_config` accepts the structure."""
    return copy.deepcopy(_schema())


def render_schema() -> str:
    """Return the JSON Schema as text, as the shipped file holds it."""
    return json.dumps(_schema(), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def allowed_keys(location: tuple[str | int, ...]) -> tuple[str, ...]:
    """Return the keys that the mapping at a location of the file may hold, sorted."""
    root = _schema()
    nodes: list[Mapping[str, Any]] = [root]
    for part in location:
        nodes = [child for node in nodes for child in _children(root, node, part)]
    found: set[str] = set()
    for node in nodes:
        for form in _forms(root, node):
            found.update(form.get("properties", {}))
    return tuple(sorted(found))


def _forms(root: Mapping[str, Any], node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a schema and everything it refers to or chooses from."""
    found = [node]
    if "$ref" in node:
        found += _forms(root, root["$defs"][node["$ref"].rpartition("/")[2]])
    for choice in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        found += _forms(root, choice)
    return found


def _children(root: Mapping[str, Any], node: Mapping[str, Any], part: str | int) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for form in _forms(root, node):
        child = form.get("items") if isinstance(part, int) else form.get("properties", {}).get(part)
        if child is None and isinstance(form.get("additionalProperties"), Mapping):
            child = form["additionalProperties"]
        if isinstance(child, Mapping):
            found.append(child)
    return found


def _loosen(node: dict[str, Any]) -> None:
    """Let an object hold free keys, and let a key without value mean that it is not there, as the reader does."""
    for form in node.get("anyOf", ()):
        _loosen(form)
    properties = node.get("properties")
    if properties is None:
        additional = node.get("additionalProperties")
        if isinstance(additional, dict):
            node["additionalProperties"] = {"anyOf": [additional, {"type": "null"}]}
        return
    if set(properties) != {"bootstrap"}:
        node.setdefault("patternProperties", {})[f"^{FREE_PREFIX}"] = {}
    required = node.get("required", ())
    for name, child in properties.items():
        if name == "bootstrap":
            _loosen(child)
        child.pop("title", None)
        child.pop("default", None)
        if name not in required:
            if isinstance(child.get("additionalProperties"), dict):
                _loosen(child)
            keep = {key: child.pop(key) for key in ("description",) if key in child}
            properties[name] = {**keep, "anyOf": [child, {"type": "null"}]}
