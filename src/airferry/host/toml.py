"""TOML that programs write: the only writer. Makes lines of keys, values and table headers, whatever they say.

`host.parsing` reads TOML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from airferry.wording import obeyed

TomlValue = str | bool | int | Sequence["TomlValue"] | Mapping[str, "TomlValue"]

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_value(value: TomlValue) -> str:
    """Return a value on one line; a mapping becomes an inline table."""
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        pairs = ", ".join(toml_pair(key, inner) for key, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return "[" + ", ".join(map(toml_value, value)) + "]"


def toml_pair(key: str, value: TomlValue) -> str:
    """Return a line that gives a key its value."""
    return f"{_key(key)} = {toml_value(value)}"


def toml_table(*keys: str) -> str:
    """Return the line that begins a table, one key a level."""
    return f"[{'.'.join(map(_key, keys))}]"


def _key(text: str) -> str:
    return text if _BARE.fullmatch(text) else toml_value(text)


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if obeyed(character) is None:
        return character
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:
        # TOML has no halves of surrogates, nor has UTF-8
        return "\ufffd"
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"
