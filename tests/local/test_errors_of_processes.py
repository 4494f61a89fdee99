"""Errors that a process of ours raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from airferry.errors import ConfigurationError, RegistryError
from airferry.host.workers.processes import LocalProcesses
from airferry.host.workers.work import Running
from airferry.registry.failures import NotFound
from error_classes import ATTRIBUTES, leaves
from units_of_work import OwnError, unit


@contextmanager
def apart(name: str, **arguments: Any) -> Iterator[Running]:
    """Begin a unit of work in another process."""
    with LocalProcesses(1, start_from_bytes=0) as workers, workers.begin(unit(name, **arguments)) as running:
        yield running


def test_every_class_is_raised_by_a_process_as_what_it_is() -> None:
    plain = {name: value for name, value in ATTRIBUTES.items() if name not in ("tail", "failures")}
    kinds = [kind for kind in leaves() if kind.__module__ != "airferry.errors"] + [ConfigurationError, RegistryError]
    names = [f"{kind.__module__}:{kind.__qualname__}" for kind in kinds]
    arguments = {"kinds": names, "attributes": plain}
    with apart("raise_as_told", **arguments) as running, pytest.raises(kinds[0]) as caught:
        running.result()
    raised = [caught.value, *caught.value.failures]
    assert [type(error) for error in raised] == kinds
    assert all(vars(error).items() >= plain.items() for error in raised)


def test_an_error_whose_class_a_process_defines_keeps_it() -> None:
    with apart("refuse_in_own_words") as running, pytest.raises(OwnError) as caught:
        running.result()
    error = caught.value
    assert (error.status, error.retry_after_s, error.host, error.tries) == (
        503,
        1.5,
        Path("r.example"),
        {"made": (3, [3])},
    )
    (part,) = error.failures
    assert isinstance(part, NotFound) and part.hint == "look elsewhere" and part.fields["digest"] == "sha256:0"
    assert "refuse_in_own_words" in "".join(error.__notes__), "the traceback of the process"
