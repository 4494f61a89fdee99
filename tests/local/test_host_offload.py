"""A function in a subprocess: what it returns and raises, and that it ends."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from airferry.errors import HostError, IntegrityError
from airferry.host.offload import Offloaded
from airferry.rootfs import sources
from layer_tars import Item, facts_of


def children() -> list[str]:
    """Return the processes that this thread has started and that are still there."""
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()


def test_what_a_function_returns() -> None:
    data = os.urandom(3 << 20)
    with Offloaded("offloaded:digest_of", {"salt": "x"}) as process:
        process.write(data[:100])
        process.write(data[100:])
        assert process.result() == hashlib.sha256(b"x" + data).hexdigest().encode()


def test_what_a_function_raises_is_raised_while_it_is_fed() -> None:
    with Offloaded("offloaded:refuse", {}) as process, pytest.raises(IntegrityError, match="not a tar") as caught:
        for _block in range(1000):
            process.write(bytes(1 << 20))
    assert caught.value.hint == "take another"


def test_what_a_function_raises_is_raised_at_the_end() -> None:
    with Offloaded("offloaded:refuse", {}) as process:
        process.write(b"x")
        with pytest.raises(IntegrityError, match="not a tar"):
            process.result()


def test_a_mistake_shows_where_it_was_made() -> None:
    with Offloaded("offloaded:fail", {}) as process, pytest.raises(RuntimeError, match="in fail\n"):
        process.result()


def test_a_process_that_is_killed_is_an_error_of_the_host() -> None:
    with Offloaded("offloaded:die", {}) as process, pytest.raises(HostError, match="with code -9"):
        process.result()


def test_work_that_is_given_up_leaves_no_process() -> None:
    before = children()
    with Offloaded("offloaded:digest_of", {"salt": ""}) as process:
        process.write(b"x")
        (running,) = set(children()) - set(before)
        assert Path(f"/proc/{running}").exists()
    assert not Path(f"/proc/{running}").exists()


def test_nothing_is_loaded_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "colorsys.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with Offloaded("offloaded:where", {}) as process:
        assert not process.result().startswith(os.fsencode(tmp_path))


def test_a_disk_without_room_is_told_as_such() -> None:
    with Offloaded("offloaded:fill_the_disk", {}) as process, pytest.raises(OSError, match="No space left") as caught:
        process.result()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/cache/layer")


def test_too_little_memory_is_an_error_of_the_host() -> None:
    with Offloaded("offloaded:use_much_memory", {}) as process, pytest.raises(HostError, match="too little memory"):
        process.result()


def test_sources_are_looked_at_the_same_here_and_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [
        Item(f"site/p{number}.py", value=f"import a{number}\nfrom b import (\n  c{number},\n)\n" + "x = 1\n" * 2000)
        for number in range(200)
    ]
    items[20:20] = [Item("site/n/__init__.py", value="__path__ = extend_path(__path__, __name__)"), Item("site/no.py")]
    items += [Item("site/é.py", value="import é\nimport last\n"), Item("site/RECORD", value="no source")]
    here = facts_of(items)
    started: list[object] = []
    real = sources.Offloaded

    def start(*arguments: Any) -> object:
        started.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(sources, "INLINE_BYTES", 100_000)
    monkeypatch.setattr(sources, "Offloaded", start)
    assert facts_of(items) == here
    assert len(started) == 1
    monkeypatch.setattr(sources, "MAX_KEPT_BYTES", 1000)
    monkeypatch.setattr(sources, "INLINE_BYTES", 8 << 20)
    with pytest.raises(IntegrityError, match="more than 1000 bytes of imports"):
        facts_of(items)
