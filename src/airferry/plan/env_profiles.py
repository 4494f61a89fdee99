"""Profiles of `env.toml` as the catalogue's own command reads them: inheritance by `extends`, values with their lines.

Only reads the file; resolves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airferry.config.document import KeyPath
from airferry.errors import ConfigurationError, HostError
from airferry.host import files
from airferry.host.parsing import Malformed, parse_toml
from airferry.wording import near_names

MAX_PROFILES_BYTES = 4 * 1024 * 1024
NO_PROFILES = frozenset({"wandb", "cli", "cache", "artifacts"})


@dataclass(frozen=True)
class EnvFile:
    """An `env.toml`: its tables, and the text to find lines in."""

    path: Path
    tables: Mapping[str, Any]
    text: str = field(repr=False)

    @property
    def profiles(self) -> list[str]:
        """The names of its profiles."""
        return [name for name, table in self.tables.items() if isinstance(table, dict) and name not in NO_PROFILES]

    def profile(self, name: str) -> EnvProfile:
        """Return a profile with what it inherits; mappings merged, lists replaced.

        Raises:
            ConfigurationError: it, or one that it extends, does not exist, or they extend each other in a circle.
        """
        chain: list[str] = []
        current: str | None = name
        while current is not None:
            if current in chain:
                raise self.error(
                    chain[-1],
                    "circular inheritance between profiles: " + " → ".join([*chain, current]),
                    hint="correct `extends` of one of them",
                )
            if current not in self.profiles:
                known = ", ".join(f"`{item}`" for item in self.profiles) or "none"
                near = near_names(current, self.profiles)
                where = f"profile `{chain[-1]}` extends `{current}`, which" if chain else f"profile `{current}`"
                raise self.error(
                    chain[-1] if chain else "",
                    f"{where} does not exist; available: {known}",
                    hint=f"did you mean `{near[0]}`?"
                    if near
                    else f"name one of these, or add `[{current}]` to the file",
                )
            chain.append(current)
            current = self.tables[current].get("extends")
        merged: dict[str, Any] = {}
        for item in reversed(chain):
            merged = _merged(merged, {key: value for key, value in self.tables[item].items() if key != "extends"})
        return EnvProfile(name, self, tuple(chain), merged)

    def line(self, table: str, key: str | None = None) -> int:
        """Return the line of a table, or of a key in it or in a table below it; 1 where it is not found."""
        inside, first = False, 1
        for number, line in enumerate(self.text.splitlines(), start=1):
            if header := re.match(r"\s*\[\[?([^\]]+)\]", line):
                name = header[1].strip().replace('"', "").replace("'", "")
                inside = name == table or name.startswith(f"{table}.")
                if name == table:
                    first = number
            elif inside and key is not None and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                return number
        return first

    def error(self, table: str, reason: str, *, hint: str) -> ConfigurationError:
        """Return the error for a table, as `file:line: reason`."""
        line = self.line(table)
        return ConfigurationError(f"{self.path}:{line}: {reason}", path=str(self.path), line=line, hint=hint)


@dataclass(frozen=True)
class EnvProfile:
    """A profile of `env.toml` with what it inherits; `chain` are the tables, the strongest first."""

    name: str
    source: EnvFile
    chain: tuple[str, ...]
    values: Mapping[str, Any]

    def line(self, key: KeyPath) -> int:
        """Return the line of a key, in the strongest table that has it."""
        last = next((part for part in reversed(key) if isinstance(part, str)), "")
        for table in self.chain:
            value: Any = self.source.tables[table]
            for part in key:
                if isinstance(value, dict) and part in value:
                    value = value[part]
                elif isinstance(part, str):
                    break
            else:
                return self.source.line(table, last)
        return self.source.line(self.name)


def read_env_file(path: Path) -> EnvFile:
    """Read an `env.toml`.

    Raises:
        ConfigurationError: it cannot be read or is not TOML; the line is named.
    """
    try:
        data = files.read_bounded(path, limit_bytes=MAX_PROFILES_BYTES)
        return EnvFile(path, parse_toml(data), data.decode("utf-8"))
    except HostError as error:
        raise ConfigurationError(error.message, hint=error.hint, path=str(path)) from error
    except Malformed as error:
        raise ConfigurationError(
            f"{path}:{error.line}: not valid TOML: {error}",
            hint="check the quotes and brackets of this line",
            path=str(path),
            line=error.line,
        ) from error


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        result[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result
