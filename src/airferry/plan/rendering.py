"""Documents of the plan as YAML text. Writes no file."""

from __future__ import annotations

from typing import Any

import yaml


class _PlainDumper(yaml.SafeDumper):
    """Writes each value out, even where two are the same."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render_yaml(document: Any, *, sort_keys: bool, width: int = 120) -> str:
    """Return a document as YAML, the same text for the same content.

    Characters beyond ASCII are escaped: some are line breaks to YAML, and would not be read back as they were.
    """
    text: str = yaml.dump(document, Dumper=_PlainDumper, sort_keys=sort_keys, width=width)
    return text


def render_line(value: Any) -> str:
    """Return a value as YAML on one line, to be pasted after a key."""
    text: str = yaml.dump(value, Dumper=_PlainDumper, default_flow_style=True, sort_keys=True, width=1 << 20)
    return text.removesuffix("\n").removesuffix("\n...")
