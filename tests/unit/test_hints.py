"""Every error says what can be done about it, or stands on a short list that says why it does not."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from airferry import errors
from airferry.errors import AirferryError, BuildError, IntegrityError, advising
from source_trees import modules, nodes

# `IntegrityError` may come without: what reads bytes does not know whose they are, and `advising` adds the hint where
# that is known; else the class has one
READERS = ("oci/", "rootfs/", "host/yaml.py", "bundle/manifest.py", "engine/driver.py", "registry/sink.py")
# classes that are never shown: whoever calls catches them, and goes another way
CAUGHT = {
    "StaticallyUnknown": "the base is run instead, or the module is unknown",
    "UnreadLayer": "the base is run instead, or the module is unknown",
    "DoesNotBuild": "the wheel is built from its source elsewhere, or `_does_not_build` says why not",
    "NoReferrers": "a warning says that referrers are unknown",
}
# places that only a bug of ours reaches: nothing can be done but to report it
BUGS = {
    ("oci/layout.py", "_ensure_writable"): "who opens a layout says whether it writes",
}


def families(root: type[AirferryError] = AirferryError) -> set[str]:
    """Return the names of a class of errors and all below it, by their bases in the source."""
    known = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, root)}
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases} for _, node in nodes(ast.ClassDef)
    }
    while more := {name for name, above in bases.items() if above & known} - known:
        known |= more
    return known


def makers() -> set[str]:
    """Return the names of functions that make an error with the hint that they are given, or None."""
    found = set()
    for _, node in nodes(ast.FunctionDef):
        defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        optional = {name.arg for name, value in defaults if isinstance(value, ast.Constant) and value.value is None}
        if "hint" in optional and "Error" in ast.unparse(node.returns or node):
            found.add(node.name)
    # these keep the hint that the error has
    return found - {"at", "reworded", "__init__"}


def without_hint() -> Iterator[tuple[str, str, str]]:
    """Yield place, function and class of each error that is made without a hint."""
    kinds, functions = families(), makers()
    for place, module in modules().items():
        for function, call in calls(module, ""):
            name = ast.unparse(call.func).rpartition(".")[2]
            hints = [keyword.value for keyword in call.keywords if keyword.arg in ("hint", None)]
            given = any(not (isinstance(value, ast.Constant) and not value.value) for value in hints)
            shows = ast.unparse(call.func) == "reporter.error"
            if (name in kinds or name in functions) and not given and not shows:
                yield f"{place}:{call.lineno}", function, name


def calls(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call below a node, with the function that it stands in."""
    for child in ast.iter_child_nodes(node):
        inside = child.name if isinstance(child, ast.FunctionDef) else function
        if isinstance(child, ast.Call):
            yield inside, child
        yield from calls(child, inside)


def test_every_error_has_a_hint() -> None:
    integrity = families(IntegrityError)
    found = [
        f"{place} in `{function}`: {name}"
        for place, function, name in without_hint()
        if name not in CAUGHT
        and (place.rpartition(":")[0], function) not in BUGS
        and not (name in integrity and place.startswith(READERS))
    ]
    assert found == [], "say what to type, or what to look at; else add it to a list above, with the reason"


def test_what_makes_hints_always_makes_one() -> None:
    """Else `hint=…` above would pass, and nothing be shown."""
    found = [
        f"{place}:{node.lineno} {node.name}"
        for place, node in nodes(ast.FunctionDef)
        if node.name.endswith(("_hint", "_hints"))
        and "None" in ast.unparse(node.returns or ast.Constant(""))
        # the caller has another one then, or asks for this alone
        and node.name not in ("wrong_time_hint", "site_for_hints")
    ]
    assert found == []


def test_the_lists_name_what_is_there() -> None:
    assert set(CAUGHT) <= families()
    names = {
        (place, node.name)
        for place, module in modules().items()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
    }
    assert set(BUGS) <= names


def test_damaged_bytes_get_the_advice_of_where_they_came_from() -> None:
    with pytest.raises(IntegrityError) as caught, advising("copy it again"):
        raise IntegrityError("it is cut")
    assert caught.value.hint == "copy it again"
    with pytest.raises(IntegrityError) as caught, advising("copy it again"):
        raise IntegrityError("it is cut", hint="look there")
    assert caught.value.hint == "look there"
    with pytest.raises(BuildError) as other, advising("copy it again"):
        raise BuildError("it does not build")
    assert other.value.hint is None


def test_damaged_bytes_of_unknown_origin_have_an_advice() -> None:
    assert "get it again" in (IntegrityError("it is cut").advice or "")
