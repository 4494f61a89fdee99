"""What keeps the unit tests quick: none of them starts pip."""

from __future__ import annotations

import pytest

from airferry.near.wheels.pip import Pip


@pytest.fixture(autouse=True)
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to start pip: `folder_pip.FolderPip` answers in-process, and tests/integration has the real one."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a unit test starts pip: take `folder_pip.FolderPip`, or move it to tests/integration")

    monkeypatch.setattr(Pip, "_run", refuse)
    monkeypatch.setattr(Pip, "_run_all", refuse)
