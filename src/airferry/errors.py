"""The catalogue of error families, each with its documented exit code.

Everything that airferry raises on purpose derives from `AirferryError`. This module imports nothing of the
project, prints nothing and never exits: the command line decides what becomes of an error.

Code that decides by an error catches a class, or asks a typed attribute (`RegistryError.status`); leaves that only one
module raises are defined there. `fields` is the same as data, for output alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn, Self, TypeVar

MAX_TOLD = 50
_WORDS = ("message", "hint")


class AirferryError(Exception):
    """Root of all errors that airferry raises on purpose.

    `message` says what failed, on which object, observed against expected; `hint`, if any, says what to do. `tail`
    holds the last lines of a program whose failure this is, `failures` the errors that this one combines. Further
    keywords become attributes. `exit_code` is the code of the family.
    """

    exit_code: ClassVar[int] = 1
    # shown where nothing more is known: what reads bytes does not always know whose they are
    advice: ClassVar[str | None] = None
    tail: tuple[str, ...] = ()
    failures: tuple[AirferryError, ...] = ()

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        tail: Sequence[str] = (),
        failures: Sequence[AirferryError] = (),
        **fields: object,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.tail = tuple(tail)
        self.failures = tuple(failures)
        vars(self).update(fields)

    @property
    def fields(self) -> dict[str, object]:
        """What the error knows besides its words, as data for output. Code that decides asks the attributes."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in _WORDS and not name.startswith("_") and value is not None and value != ()
        }

    def at(self, place: str, *, hint: str | None = None) -> Self:
        """Return this error with the place that it is about in front; what it combines gets the place as well.

        Class and attributes stay, the hint unless one is given; this error is the cause of the new one.
        """
        told = self.reworded(f"{place}: {self.message}", hint=hint)
        told.failures = tuple(failure.at(place) for failure in self.failures)
        return told

    def reworded(self, message: str, *, hint: str | None = None, **fields: object) -> Self:
        """Return this error with another message, and another hint or more attributes where they are given.

        Class and all else stay; this error is the cause of the new one.
        """
        told = revived(type(self), {**vars(self), "message": message, "hint": hint or self.hint, **fields})
        told.__cause__ = self
        return told

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # a leaf may have a constructor of its own, which what copies or pickles errors must not have to know
        return revived, (type(self), vars(self))


_AnyError = TypeVar("_AnyError", bound=AirferryError)


def revived(kind: type[_AnyError], attributes: dict[str, object]) -> _AnyError:
    """Return an error of a class with these attributes, whatever its constructor takes."""
    error = kind.__new__(kind, attributes["message"])
    vars(error).update(attributes)
    return error


class UsageError(AirferryError):
    """The command was called in a way that cannot mean anything."""

    exit_code = 2


class ConfigurationError(AirferryError):
    """A file that the user wrote (configuration, plan, lock, step, site profile) is wrong.

    `path` and `line` say where, as far as that is known.
    """

    exit_code = 3
    path: str | None = None
    line: int | None = None

    def __init__(
        self, message: str, *, hint: str | None = None, path: str | None = None, line: int | None = None, **fields: Any
    ) -> None:
        super().__init__(message, hint=hint, **fields)
        self.path = path
        self.line = line


class HostError(AirferryError):
    """The host lacks something: a tool, a permission, disk space, an emulator."""

    exit_code = 4


class BuildError(AirferryError):
    """Something could not be resolved, fetched, probed, built or exported."""

    exit_code = 5


class IntegrityError(AirferryError):
    """Bytes are not what a digest, a size or a document says. Never retried, never downgraded."""

    exit_code = 6
    advice = (
        "the content is damaged or was changed: get it again from its source; if it is the same again, ask its provider"
    )


class RegistryError(AirferryError):
    """A registry cannot be reached, refuses, or answers what it must not.

    `status` is the status of its answer, None where there was none, `code` the registry's own word for it, and
    `retry_after_s` the pause that it asks for. `method` and `url`, without what may be secret, say what it answered.
    """

    exit_code = 7
    method: str | None = None
    url: str | None = None
    status: int | None = None
    code: str | None = None
    retry_after_s: float | None = None

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        status: int | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message, hint=hint, **fields)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class FindingsError(AirferryError):
    """A check or a rehearsal ran to its end and found something; `report` holds all of it."""

    exit_code = 8
    report: object = None


@contextmanager
def advising(hint: str) -> Iterator[None]:
    """Say what to do about damaged bytes whose reader did not know what they are of; a hint that is there stays."""
    try:
        yield
    except IntegrityError as error:
        if error.hint:
            raise
        raise error.reworded(error.message, hint=hint) from error


class Gathering:
    """Problems of files that users wrote, gathered so that all are told at once."""

    def __init__(self) -> None:
        self._found: list[ConfigurationError] = []

    @contextmanager
    def one(self) -> Iterator[None]:
        """Keep the problem that is found in the block, which ends there, and go on."""
        try:
            yield
        except ConfigurationError as error:
            self._found.append(error)

    def raise_all(self) -> None:
        """Raise what was found, if anything was.

        Raises:
            ConfigurationError: see `combined`.
        """
        if self._found:
            raise_all(self._found)


def raise_all(failures: Sequence[AirferryError]) -> NoReturn:
    """Raise one error for several failures.

    Raises:
        AirferryError: always, see `combined`.
    """
    told = combined(failures)
    if told in failures:
        raise told
    raise told from failures[0]


def combined(failures: Sequence[AirferryError]) -> AirferryError:
    """Return one error for several: of their family, else of the first one's; one that is alone comes back as it is."""
    told: dict[str, AirferryError] = {}
    for error in failures:
        for single in parts(error):
            told.setdefault(single.message, single)
    singles = list(told.values())
    if len(singles) == 1:
        return singles[0]
    hints = list(dict.fromkeys(single.hint for single in singles if single.hint))
    lines = []
    for single in singles[:MAX_TOLD]:
        lines.append(single.message)
        if single.hint and len(hints) > 1:
            lines.append(f"  hint: {single.hint}")
    if len(singles) > MAX_TOLD:
        lines.append(f"… and {len(singles) - MAX_TOLD} more")
    first = singles[0]
    family: type[AirferryError] = next(kind for kind in type(first).__mro__ if kind.__module__ == __name__)
    return family("\n".join(lines), hint=hints[0] if len(hints) == 1 else None, failures=singles)


def parts(error: AirferryError) -> Sequence[AirferryError]:
    """Return the errors that an error combines, or it alone."""
    return error.failures or (error,)
