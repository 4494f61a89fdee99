"""Replaces single texts in YAML that people wrote, and leaves all else as it is, comments and layout included."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path

from airferry.config.document import KeyPath, parse_document, text_spans
from airferry.errors import ConfigurationError
from airferry.host.yaml import render_yaml

_PLAIN = re.compile(r"[A-Za-z_.][\w./-]*\.ya?ml", re.ASCII)


def replace_texts(data: bytes, changes: Mapping[KeyPath, str], path: Path) -> bytes:
    """Return the YAML of a step's config with other texts at some keys.

    Where a text has no place in the file, as with aliases, the values are written out, without comments.

    Raises:
        ConfigurationError: the file is not valid YAML.
    """
    wanted = copy.deepcopy(parse_document(data, path, as_steps_do=True).value)
    for key, text in changes.items():
        below = wanted
        for part in key[:-1]:
            below = below[part]
        below[key[-1]] = text
    edited = _spliced(data.decode("utf-8"), changes).encode()
    try:
        done = parse_document(edited, path, as_steps_do=True).value == wanted
    except ConfigurationError:
        done = False
    return edited if done else render_yaml(wanted, unicode=True).encode()


def _spliced(text: str, changes: Mapping[KeyPath, str]) -> str:
    spans = text_spans(text, changes)
    for key, (start, end) in sorted(spans.items(), key=lambda item: item[1], reverse=True):
        new = changes[key]
        text = text[:start] + (new if _PLAIN.fullmatch(new) else json.dumps(new, ensure_ascii=False)) + text[end:]
    return text
