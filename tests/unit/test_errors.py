"""Errors have types: what they know survives being reworded, copied, pickled and raised in another process."""

from __future__ import annotations

import ast
import copy
import importlib
import pickle
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import airferry
from airferry.errors import AirferryError, BuildError, ConfigurationError, RegistryError, revived
from airferry.host.process import ProcessFailed
from airferry.host.workers.failures import error_document, error_from
from airferry.host.workers.processes import LocalProcesses
from airferry.host.workers.work import Running
from airferry.registry.failures import LostSession, NotFound, TooLarge, Unauthorized, status_error
from source_trees import nodes
from units_of_work import OwnError, unit

ATTRIBUTES = {
    "message": "cannot push",
    "hint": "log in",
    "tail": ("first \udcff", "last"),
    "failures": (),
    "status": 413,
    "path": "/etc/é",
    "missing": ["a", "b"],
    "left": {"x": None, "y": 1.5},
}


def leaves() -> list[type[AirferryError]]:
    """Return every class of errors in the source."""
    for module in pkgutil.walk_packages(airferry.__path__, "airferry."):
        if not module.name.startswith(
            ("airferry.example", "airferry.near.rehearse.hook", "airferry.near.probe.script")
        ):
            importlib.import_module(module.name)
    found: list[type[AirferryError]] = []
    todo: list[type[AirferryError]] = [AirferryError]
    while todo:
        kind = todo.pop()
        found += [kind] if kind.__module__.startswith("airferry.") else []
        todo += kind.__subclasses__()
    return sorted(set(found), key=lambda kind: kind.__qualname__)


@contextmanager
def apart(name: str, **arguments: Any) -> Iterator[Running]:
    """Begin a unit of work in another process."""
    with LocalProcesses(1, start_from_bytes=0) as workers, workers.begin(unit(name, **arguments)) as running:
        yield running


def test_there_are_leaves_outside_of_the_catalogue() -> None:
    assert {ProcessFailed, LostSession, NotFound, TooLarge, Unauthorized} < set(leaves())


def test_every_class_survives_copying_pickling_and_a_document() -> None:
    for kind in leaves():
        error = revived(kind, {**ATTRIBUTES, "failures": (NotFound("gone", status=404),)})
        for again in (copy.copy(error), pickle.loads(pickle.dumps(error)), error_from(error_document(error))):
            assert type(again) is kind
            assert (str(again), again.exit_code) == (error.message, kind.exit_code)
            told = dict(vars(again))
            (failure,) = told.pop("failures")
            assert type(failure) is NotFound and vars(failure) == vars(error.failures[0])
            assert told == {name: value for name, value in vars(error).items() if name != "failures"}


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


def test_a_document_makes_errors_alone() -> None:
    with pytest.raises(TypeError, match=r"os:system"):
        error_from({"class": "os:system", "attributes": {"message": "true"}})


def test_an_error_of_a_class_in_a_function_is_sent_as_the_next_one_that_can_be_found() -> None:
    class Local(BuildError):
        pass

    again = error_from(error_document(Local("x", hint="y")))
    assert type(again) is BuildError and again.hint == "y"


def test_an_error_at_a_place_is_the_same_error() -> None:
    error = OwnError("r.example", tries=2)
    told = error.at("airgap.yaml:3", hint="try later")
    assert type(told) is OwnError and told.__cause__ is error
    assert str(told) == told.message == "airgap.yaml:3: `r.example` failed 2 times"
    assert (told.hint, told.status, told.tries) == ("try later", 503, error.tries)
    assert error.message == "`r.example` failed 2 times" and error.hint is None, "the first one stays as it was"


def test_what_an_error_combines_gets_the_place_as_well() -> None:
    error = BuildError("a\nb", failures=(BuildError("a"), RegistryError("b", status=500)))
    told = error.at("image `x`")
    assert [part.message for part in told.failures] == ["image `x`: a", "image `x`: b"]
    assert told.failures[1].fields["status"] == 500


def test_a_reworded_error_takes_more_attributes() -> None:
    told = NotFound("gone", status=404, hint="look").reworded("gone; 2 left", left=["a"])
    assert type(told) is NotFound and told.hint == "look" and told.fields == {"status": 404, "left": ["a"]}


def test_fields_say_what_is_known_alone() -> None:
    assert RegistryError("x", hint="y").fields == {}
    assert ConfigurationError("x", path="a.yaml", line=3, problems=("p",)).fields == {
        "path": "a.yaml",
        "line": 3,
        "problems": ("p",),
    }


@pytest.mark.parametrize(
    ("status", "kind"), [(401, Unauthorized), (404, NotFound), (413, TooLarge), (418, RegistryError)]
)
def test_a_status_has_its_class(status: int, kind: type[RegistryError]) -> None:
    error = status_error("GET", "https://r/v2/", status=status, data=b"", what="look", transient=False)
    assert type(error) is kind and error.status == status


def test_no_code_decides_by_the_fields_of_an_error() -> None:
    readers = [f"{place}:{node.lineno}" for place, node in nodes(ast.Attribute) if node.attr == "fields"]
    assert readers == [], "catch a class, or ask a typed attribute"


def test_no_error_is_made_anew_of_anothers_words() -> None:
    """`raise type(error)(error.message, …)` fails for classes with another signature, and loses attributes."""
    found = []
    for place, node in nodes(ast.ExceptHandler):
        if node.type is not None and node.name:
            caught = {ast.unparse(kind) for kind in getattr(node.type, "elts", [node.type])}
            calls = [below for below in ast.walk(node) if isinstance(below, ast.Call)]
            same = [call for call in calls if ast.unparse(call.func) in caught | {f"type({node.name})"}]
            found += [
                f"{place}:{call.lineno}"
                for call in same
                if any(f"{node.name}.message" in ast.unparse(argument) for argument in call.args)
            ]
    assert found == [], "`error.at(place)` or `error.reworded(…)` keeps what it is"
