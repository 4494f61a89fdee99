"""Errors that a process of ours raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.errors import ConfigurationError, RegistryError
from airferry.host.offload import Offloaded
from airferry.registry.failures import NotFound
from error_classes import ATTRIBUTES, leaves
from offloaded import OwnError


def test_every_class_is_raised_by_a_process_as_what_it_is() -> None:
    plain = {name: value for name, value in ATTRIBUTES.items() if name not in ("tail", "failures")}
    kinds = [kind for kind in leaves() if kind.__module__ != "airferry.errors"] + [ConfigurationError, RegistryError]
    names = [f"{kind.__module__}:{kind.__qualname__}" for kind in kinds]
    arguments = {"kinds": names, "attributes": plain}
    with Offloaded("offloaded:raise_as_told", arguments) as process, pytest.raises(kinds[0]) as caught:
        process.result()
    raised = [caught.value, *caught.value.failures]
    assert [type(error) for error in raised] == kinds
    assert all(vars(error).items() >= plain.items() for error in raised)


def test_an_error_whose_class_a_process_defines_keeps_it() -> None:
    with Offloaded("offloaded:refuse_in_own_words", {}) as process, pytest.raises(OwnError) as caught:
        process.result()
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
