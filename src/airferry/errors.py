"""The catalogue of error families, each with its documented exit code.

Everything that airferry raises on purpose derives from `AirferryError`. This module imports nothing of the
project, prints nothing and never exits: the command line decides what becomes of an error.
"""

from __future__ import annotations

from typing import ClassVar


class AirferryError(Exception):
    """Root of all errors that airferry raises on purpose.

    `message` says what failed, on which object, observed against expected; `hint`, if any, says what to do;
    `fields` carries the same as data. `exit_code` is the code of the family.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields


class UsageError(AirferryError):
    """The command was called in a way that cannot mean anything."""

    exit_code = 2


class ConfigurationError(AirferryError):
    """A file that the user wrote (configuration, plan, lock, step, site profile) is wrong."""

    exit_code = 3


class HostError(AirferryError):
    """The host lacks something: a tool, a permission, disk space, an emulator."""

    exit_code = 4


class BuildError(AirferryError):
    """Something could not be resolved, fetched, probed, built or exported."""

    exit_code = 5


class IntegrityError(AirferryError):
    """Bytes are not what a digest, a size or a document says. Never retried, never downgraded."""

    exit_code = 6


class RegistryError(AirferryError):
    """A registry cannot be reached, refuses, or answers what it must not."""

    exit_code = 7


class FindingsError(AirferryError):
    """A check or a rehearsal ran to its end and found something."""

    exit_code = 8
