"""What a failure has to be: its class, its exit code, and what its message names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airferry.errors import AirferryError


def failure(work: Callable[[], object], kind: type[AirferryError], code: int, *named: str) -> AirferryError:
    """Do what has to fail, and return the error."""
    with pytest.raises(AirferryError) as caught:
        work()
    assert isinstance(caught.value, kind), caught.value
    assert caught.value.exit_code == code
    for text in named:
        assert text in caught.value.message
    return caught.value
