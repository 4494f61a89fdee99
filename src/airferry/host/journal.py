"""The journal of finished actions, each under the digest of all its inputs.

What still matches is reused, what does not is done again; the file never has to be deleted. A state file of
another tool at the same path is recognised and left alone (the journal then goes next to it).

The file is one YAML mapping. A new action is appended to it, so that the time to note one does not grow with those
before; only what replaces or drops an entry writes all of it. Behind what was written whole stands a mark: what a lost
power supply cut off is behind the last one, and does not count. The file begins with the same mark, so that one of
which a copy holds only a part is not taken for one from before there were marks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airferry.errors import ConfigurationError, IntegrityError
from airferry.host import files
from airferry.host.canonical import inputs_digest
from airferry.host.yaml import load_yaml, render_yaml

JOURNAL_SCHEMA_VERSION = 1
JOURNAL_MARK = "airferry"
# at the beginning of a line, where no value of a mapping can have it
WHOLE = b"# noted\n"
MAX_JOURNAL_BYTES = 64 * 1024 * 1024
MAX_JOURNAL_VALUES = 4_000_000


class Journal:
    """Finished actions: a name and the digest of its inputs, and what came out. Safe to use from threads."""

    def __init__(self, path: Path) -> None:
        """Open the journal at `path`, which need not exist.

        Raises:
            ConfigurationError: the file was written by a newer airferry.
        """
        self.path = path
        self._lock = threading.Lock()
        self._actions: dict[str, dict[str, Any]] = {}
        # how long the file is, if it ends with a mark and holds what is noted here
        self._length: int | None = None
        data = self._read(path)
        if data is not None and data.get("written_by") != JOURNAL_MARK:
            self.path = path.with_name(f"airferry-{path.name}")
            data = self._read(self.path)
        if data is None:
            return
        version = data.get("schema_version", 0)
        if isinstance(version, int) and version > JOURNAL_SCHEMA_VERSION:
            raise ConfigurationError(
                f"`{self.path}` has schema_version {version}, "
                f"this version of airferry supports {JOURNAL_SCHEMA_VERSION}",
                hint="use the newer version of airferry that wrote it, or another output folder",
            )
        actions = data.get("actions")
        if isinstance(actions, dict):
            self._actions = {k: v for k, v in actions.items() if isinstance(v, dict)}

    def _read(self, path: Path) -> dict[str, Any] | None:
        self._length = None
        if not path.is_file():
            return None
        data = files.read_bounded(path, limit_bytes=MAX_JOURNAL_BYTES)
        ends = _ends(data)
        if not ends and not data.startswith(WHOLE):
            # one from before has no marks, and was written whole
            return _parsed(data, path) or {}
        # file systems may keep the mark and lose what was appended before it: what is before that is right
        for end in ends:
            if (found := _parsed(data[:end], path)) is not None:
                self._length = len(data) if end + len(WHOLE) == len(data) else None
                return found
        return {"written_by": JOURNAL_MARK} if data.startswith(WHOLE) else {}

    def result(self, action: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what the action left when it was done with the same inputs, or None."""
        with self._lock:
            entry = self._actions.get(action)
        if entry is None or entry.get("inputs") != inputs_digest(inputs):
            return None
        result = entry.get("result")
        return result if isinstance(result, dict) else None

    def results(self, prefix: str) -> dict[str, dict[str, Any]]:
        """Return what the actions whose names begin with a prefix left, whatever their inputs were."""
        with self._lock:
            found = {name: entry.get("result") for name, entry in self._actions.items() if name.startswith(prefix)}
        return {name: result for name, result in sorted(found.items()) if isinstance(result, dict)}

    def record(self, action: str, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Note durably that the action is done with these inputs. Replaces an older entry of that name."""
        entry = {"inputs": inputs_digest(inputs), "result": dict(result)}
        with self._lock:
            is_new = action not in self._actions
            self._actions[action] = entry
            if is_new and self._append(_entry_text({action: entry})):
                return
            document = {"schema_version": JOURNAL_SCHEMA_VERSION, "written_by": JOURNAL_MARK}
            text = render_yaml(document, width=80, unicode=True) + "actions:\n"
            data = WHOLE + (text + _entry_text(dict(sorted(self._actions.items())))).encode() + WHOLE
            self._length = None
            files.write_bytes(self.path, data)
            self._length = len(data)

    def forget_except(self, actions: set[str]) -> None:
        """Drop entries of actions that no plan names any more; written with the next `record`."""
        with self._lock:
            kept = {name: entry for name, entry in self._actions.items() if name in actions}
            if len(kept) < len(self._actions):
                self._length = None
            self._actions = kept

    def _append(self, text: str) -> bool:
        """Append entries to the file durably; False if it is not the one that was read or written last."""
        data = text.encode() + WHOLE
        try:
            with self.path.open("r+b") as stream:
                if self._length is None or stream.seek(0, os.SEEK_END) != self._length:
                    return False
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
                files.boundary(f"append to {self.path.name}")
        except FileNotFoundError:
            return False
        except OSError as error:
            self._length = None
            raise files.translate_os_error(error, doing="write", path=self.path) from error
        self._length += len(data)
        return True


def _ends(data: bytes) -> list[int]:
    """Return where what the last two marks vouch for ends, the longer part first."""
    ends: list[int] = []
    end = len(data)
    while len(ends) < 2 and (found := data.rfind(b"\n" + WHOLE, 0, end)) >= 0:
        ends.append(found + 1)
        end = found + 1
    return ends


def _parsed(data: bytes, path: Path) -> dict[str, Any] | None:
    """Return the mapping that a journal is, None where it is damaged."""
    try:
        # a journal from before may hold an alias where a result held the same list twice
        document = load_yaml(
            data, f"`{path}`", limit_bytes=MAX_JOURNAL_BYTES, limit_values=MAX_JOURNAL_VALUES, aliases=True
        )
    except IntegrityError:
        return None
    return document if isinstance(document, dict) else None


def _entry_text(entries: Mapping[str, Any]) -> str:
    """Return entries as YAML that can stand below `actions:`, or behind others there."""
    text = render_yaml(dict(entries), width=80, unicode=True)
    return "".join(f"  {line}\n" if line else "\n" for line in text.removesuffix("\n").split("\n"))
