"""The public API: complete, documented, lazy, and used as its page says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from airferry import api

ROOT = Path(__file__).parents[2]


PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


CLASSES = sorted(name for name in api.__all__ if inspect.isclass(getattr(api, name)))


FUNCTIONS = sorted(name for name in api.__all__ if inspect.isfunction(getattr(api, name)))


def test_every_name_is_listed_and_found() -> None:
    assert sorted(api.__all__) == api.__all__ and set(api.__all__) == {*CLASSES, *FUNCTIONS}
    with pytest.raises(AttributeError, match="has no attribute `nothing`"):
        api.nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", [*CLASSES, *FUNCTIONS])
def test_every_name_is_documented(name: str) -> None:
    assert len((getattr(api, name).__doc__ or "").splitlines()[0]) > 20
    assert re.search(rf"(`|api\.){name}\b", PAGE), "docs/api.md does not name it"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_function_raises_is_documented_and_names_errors_that_there_are(name: str) -> None:
    from airferry import errors

    documented = (getattr(api, name).__doc__ or "").partition("Raises:\n")[2]
    raised = re.findall(r"^        (\w+): ", documented, re.MULTILINE)
    assert all(issubclass(getattr(errors, item), errors.AirferryError) for item in raised)
    quiet = {"describe_plan", "describe_prediction", "schema", "site_trouble"}
    assert bool(raised) != (name in quiet)


def test_every_type_that_a_signature_names_is_public_or_pythons_own() -> None:
    known = {*api.__all__, "None", "Path", "Sequence", "Mapping", "Any", "Plan", "Prediction", "Emit"}
    private = set()
    for name in FUNCTIONS:
        for parameter in inspect.signature(getattr(api, name)).parameters.values():
            for word in re.findall(r"[A-Z]\w+", str(parameter.annotation)):
                if word not in known:
                    private.add((name, word))
    assert private == set()
