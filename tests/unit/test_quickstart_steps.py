"""How a quickstart runs the steps of the far side: on every platform, in order, by digest, without network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from airferry import quickstart
from airferry.engine.driver import ContainerOptions
from airferry.events import silent
from airferry.host import process
from airferry.near.session import BuildOptions
from airferry.oci.platform import Platform, parse_platform
from loaded_receipts import PINNED, loaded_receipt

AMD64, ARM64 = parse_platform("linux/amd64"), parse_platform("linux/arm64")
STEPS = ("prepare/text", "train/count")


class Containers:
    """An engine that remembers what it is asked to run; each step leaves its name among the data."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.pulled: set[tuple[str, str]] = set()
        self.ran: list[tuple[str, str, ContainerOptions]] = []

    def pull_from_registry(self, reference: str, *, platform: Platform, **_: Any) -> str:
        with self.lock:
            self.pulled.add((reference, str(platform)))
        return f"image of {reference} for {platform}"

    def mount_copy(self, image: str, path: str, into: Path) -> None:
        assert path == quickstart.WORKSPACE
        into.mkdir(parents=True)

    def run(
        self, image: str, argv: Sequence[str], *, platform: Platform, options: ContainerOptions, **_: Any
    ) -> process.Completed:
        assert image == f"image of {PINNED} for {platform}"
        (data,) = (volume.host for volume in options.volumes if volume.writable)
        before = sorted(path.name for path in data.iterdir())
        with self.lock:
            self.ran.append((str(platform), argv[1], options))
        (data / argv[1].replace("/", "-")).touch()
        return process.Completed(0, f"after {len(before)}\n".encode(), ())


def test_steps_run_on_every_platform_in_their_order_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Containers()

    @contextmanager
    def opened(*_: Any, **__: Any) -> Iterator[Containers]:
        yield engine

    monkeypatch.setattr(quickstart, "open_engine", opened)
    (tmp_path / "data" / ARM64.slug).mkdir(parents=True)
    (tmp_path / "data" / ARM64.slug / "of an earlier run").touch()
    launcher = loaded_receipt().images[0].model_copy(update={"role": "launcher", "platforms": (str(AMD64), str(ARM64))})
    receipt = loaded_receipt(*(f"{step}:tiny" for step in STEPS))
    receipt = receipt.model_copy(update={"images": (*receipt.images, launcher)})
    runs = quickstart._run_steps(
        tmp_path, receipt, steps=STEPS, platforms=[AMD64, ARM64], options=BuildOptions(), emit=silent
    )
    assert [(run.platform, run.step) for run in runs] == [(to, step) for to in (AMD64, ARM64) for step in STEPS]
    assert [run.output for run in runs] == ["after 0", "after 1"] * 2, "each reads what those before it wrote"
    assert engine.pulled == {(PINNED, str(AMD64)), (PINNED, str(ARM64))}
    assert len(engine.ran) == 4
    for platform, script, options in engine.ran:
        code, data = options.volumes
        assert not options.network
        assert script.removeprefix(quickstart.WORKSPACE).endswith("/step.py")
        assert (code.host, code.container, code.writable) == (tmp_path / "workspace", quickstart.WORKSPACE, False)
        assert data.host == tmp_path / "data" / parse_platform(platform).slug
