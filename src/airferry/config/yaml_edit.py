"""Replaces single texts in YAML that people wrote, and leaves all else as it is, comments and layout included."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from airferry.config.document import KeyPath, parse_document
from airferry.errors import ConfigurationError

_PLAIN = re.compile(r"[A-Za-z_.][\w./-]*\.ya?ml", re.ASCII)


def replace_texts(data: bytes, changes: Mapping[KeyPath, str], path: Path) -> bytes:
    """Return the YAML of a file with other texts at some keys.

    Where a text has no place in the file, as with aliases, the values are written out, without comments.

    Raises:
        ConfigurationError: the file is not valid YAML.
    """
    wanted = copy.deepcopy(parse_document(data, path).value)
    for key, text in changes.items():
        below = wanted
        for part in key[:-1]:
            below = below[part]
        below[key[-1]] = text
    edited = _spliced(data.decode("utf-8"), changes).encode()
    try:
        done = parse_document(edited, path).value == wanted
    except ConfigurationError:
        done = False
    return edited if done else yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True, width=120).encode()


def _spliced(text: str, changes: Mapping[KeyPath, str]) -> str:
    loader = yaml.CSafeLoader(text)
    try:
        root = loader.get_single_node()
    finally:
        loader.dispose()
    # libyaml does not count a byte order mark
    shift = 1 if text.startswith("\ufeff") else 0
    spans = []
    for key, new in changes.items():
        node = _node_at(root, key)
        if isinstance(node, yaml.ScalarNode):
            spans.append((node.start_mark.index + shift, node.end_mark.index + shift, new))
    for start, end, new in sorted(spans, reverse=True):
        text = text[:start] + (new if _PLAIN.fullmatch(new) else json.dumps(new, ensure_ascii=False)) + text[end:]
    return text


def _node_at(node: Any, key: KeyPath) -> Any:
    for part in key:
        if isinstance(node, yaml.MappingNode):
            node = next((value for name, value in node.value if name.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        else:
            return None
    return node
