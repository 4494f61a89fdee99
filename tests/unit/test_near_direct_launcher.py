"""The launcher's environment, made without running anything: from the system's interpreter, or next to another one."""

from __future__ import annotations

import pytest

from airferry.near.assemble.direct import Known
from airferry.near.assemble.launcher import add_environment, launcher_obstacle
from airferry.near.assemble.tree import LayerTree
from layer_tars import Item, link, view_of
from static_bases import probe, python_of

VENV = [
    Item("opt/venv/pyvenv.cfg", value="home = /usr/local/bin\n"),
    link("opt/venv/bin/python", "/usr/local/bin/python3.12"),
]


@pytest.mark.parametrize("python", ["/usr/local/bin/python", "/opt/venv/bin/python"])
def test_an_environment_is_made_from_the_interpreter_below_the_one_named(python: str) -> None:
    layer = [*python_of(), *VENV]
    view, facts = view_of(layer), probe(layer, python=python).python
    assert launcher_obstacle(Known(view, facts), ()) is None
    tree = LayerTree(view, epoch_s=0)
    scheme = add_environment(tree, facts, "/workspace/.venv")
    assert scheme.purelib == "/workspace/.venv/lib/python3.12/site-packages"
    text = b"".join(tree.blocks()).decode("latin-1")
    assert "home = /usr/local/bin\n" in text
    assert "executable = /usr/local/bin/python3.12\n" in text
    assert f"command = {python} -m venv --without-pip /workspace/.venv\n" in text


def test_an_interpreter_that_is_not_there_is_an_obstacle() -> None:
    layer = [*python_of(), *VENV]
    facts = probe(layer, python="/opt/venv/bin/python").python
    gone = facts.model_copy(update={"base_executable": "/gone/python3"})
    assert launcher_obstacle(Known(view_of(layer), gone), ()) == (
        "the interpreter `/gone/python3`, from which its virtual environment was made, is missing"
    )
    assert launcher_obstacle(Known(view_of(layer)), ()) == "its interpreter is not known"
