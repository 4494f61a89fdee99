"""oras-py's `Registry`, loaded without `jsonschema`, which takes as long to load as all the rest of it.

oras-py checks the documents of its own commands with that, and no such command is used. It is loaded when it is asked
for anything.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = ["Registry"]


class _LoadedWhenUsed(ModuleType):
    """Stands for a module, and loads it when it is asked for anything."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self.__name__), name)


def _load_registry() -> Any:
    name = "jsonschema"
    known = sys.modules.get(name)
    sys.modules[name] = known or _LoadedWhenUsed(name)
    try:
        from oras.provider import Registry
    finally:
        if known is None:
            del sys.modules[name]
    return Registry


Registry = _load_registry()
