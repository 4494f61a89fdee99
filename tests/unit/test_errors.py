"""Errors have types: what they know survives being reworded, copied, pickled and raised in another process."""

from __future__ import annotations

import ast
import copy
import pickle

import pytest

from airferry.errors import BuildError, ConfigurationError, RegistryError, revived
from airferry.host.process import ProcessFailed
from airferry.host.workers.failures import error_document, error_from
from airferry.registry.failures import LostSession, NotFound, TooLarge, Unauthorized, status_error
from error_classes import ATTRIBUTES, leaves
from source_trees import nodes
from units_of_work import OwnError


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
