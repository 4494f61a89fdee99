"""What code that is not trusted leaves behind: read without links, waiting or bounds, and removed whatever it is."""

from __future__ import annotations

import io
import os
import socket
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from airferry.errors import BuildError
from airferry.host import files
from airferry.near.left_behind import open_left
from airferry.near.rehearse.stage import LOG_FILE, MAX_LOG_BYTES, RehearsalFolders, Scene
from airferry.near.wheels import pack
from airferry.near.wheels.pack import built_wheel, normalise_wheel
from airferry.near.wheels.pip import Pip
from wheel_factory import make_wheel

NAME = "pkg-1.0-py3-none-any.whl"


def link(path: Path) -> None:
    secret = path.parent / "secret"
    secret.write_text("secret")
    path.symlink_to(secret)


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


TRAPS = [link, dangling, device, os.mkfifo, Path.mkdir, listening]


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_only_a_regular_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    trap(Path(NAME))
    with pytest.raises(BuildError, match=NAME), open_left(Path(NAME)):
        pass
    with pytest.raises(BuildError, match=NAME):
        built_wheel(Path(), what="a build")


def test_what_is_removed_is_said(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="No such file"), open_left(tmp_path / "gone"):
        pass


def test_a_build_leaves_one_wheel_that_has_the_name_of_one(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="a build left 0 wheels, expected 1"):
        built_wheel(tmp_path, what="a build")
    made = make_wheel(tmp_path, "pkg", "1.0")
    (tmp_path / "log.txt").touch()
    assert built_wheel(tmp_path, what="a build") == made
    made.rename(tmp_path / "evil.whl")
    with pytest.raises(BuildError, match=r"`evil\.whl` is not a wheel"):
        built_wheel(tmp_path, what="a build")
    make_wheel(tmp_path, "pkg", "2.0")
    with pytest.raises(BuildError, match="left 2 wheels"):
        built_wheel(tmp_path, what="a build")


def test_a_wheel_that_unpacks_to_more_than_the_limit_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "MAX_BUILT_BYTES", 1 << 30)
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pkg/a", b"")
    data = path.read_bytes()
    # a central directory that declares 2 GiB
    place = data.index(b"PK\x01\x02") + 24
    path.write_bytes(data[:place] + (1 << 31).to_bytes(4, "little") + data[place + 4 :])
    with pytest.raises(BuildError, match="unpacks to more than 1 GiB"):
        normalise_wheel(path, tmp_path / "normal.whl")


def test_a_wheel_is_normalised_to_the_bytes_that_writing_it_at_once_gives(tmp_path: Path) -> None:
    path, normal = tmp_path / NAME, tmp_path / "normal.whl"
    members = {"pkg/b.py": b"x = 1\n" * 1000, "pkg/a.so": os.urandom(3 << 20), "pkg/empty": b""}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            item = zipfile.ZipInfo(name, (2020, 2, 2, 2, 2, 2))
            item.external_attr = (0o755 if name.endswith(".so") else 0o644) << 16
            archive.writestr(item, data)
    normalise_wheel(path, normal)
    expected = io.BytesIO()
    with zipfile.ZipFile(expected, "w") as archive:
        for name, data in sorted(members.items()):
            item = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            item.external_attr = (0o100755 if name.endswith(".so") else 0o100644) << 16
            item.create_system = 3
            archive.writestr(item, data)
    assert normal.read_bytes() == expected.getvalue()


def folders(root: Path) -> RehearsalFolders:
    step = SimpleNamespace(
        target=SimpleNamespace(spec="sft/tiny:default"), job_path=SimpleNamespace(variable=None, folders=())
    )
    choice = SimpleNamespace(env={}, time_limit_s=1)
    scene = Scene(
        *cast(tuple[Any, Any], (step, None)),
        *cast(tuple[Any, Any], ("linux/amd64", None)),
        python="python",
        choice=cast(Any, choice),
        command=(),
        config="",
        workspace="/workspace",
        path="",
        modules=(),
    )
    root.mkdir()
    return RehearsalFolders(root, root, scene, "")


@pytest.mark.parametrize("trap", [link, device, os.mkfifo, Path.mkdir, Path.exists], ids=lambda trap: trap.__name__)
def test_a_step_that_replaces_its_log_is_named(tmp_path: Path, trap: Callable[[Path], object]) -> None:
    stage = folders(tmp_path / "scene")
    log = tmp_path / "scene" / "start" / "log" / LOG_FILE
    log.unlink()
    trap(log)
    with pytest.raises(BuildError, match=r"`sft/tiny:default` on linux/amd64 has lost its log.*hook\.log"):
        stage.logs("start")


def test_of_a_log_without_end_the_end_is_read(tmp_path: Path) -> None:
    stage = folders(tmp_path / "scene")
    log = tmp_path / "scene" / "start" / "log" / LOG_FILE
    with log.open("r+b") as stream:
        stream.truncate(MAX_LOG_BYTES * 1000)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\n{'event': 'end'}\n")
    started = time.monotonic()
    assert [record["event"] for record in stage.logs("start")[0]] == ["end"]
    assert time.monotonic() - started < 20


def test_a_tree_of_any_depth_is_removed() -> None:
    # 3,000 levels are more than the stack and paths allow; on a disk, removing each takes milliseconds
    top = Path(tempfile.mkdtemp(dir="/dev/shm"))
    handle = os.open(top, os.O_RDONLY)
    for _level in range(3000):
        os.mkdir("deeper", dir_fd=handle)
        inner = os.open("deeper", os.O_RDONLY, dir_fd=handle)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=handle))
        os.close(handle)
        handle = inner
    os.close(handle)
    files.remove_tree(top)
    assert not top.exists()


def test_removing_a_link_changes_nothing_where_it_points(tmp_path: Path) -> None:
    outside, top = tmp_path / "outside", tmp_path / "top"
    outside.write_text("kept")
    outside.chmod(0o640)
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)
    top.mkdir()
    (top / "file").symlink_to(outside)
    (top / "folder").symlink_to(folder)
    os.mkfifo(top / "pipe")
    top.chmod(0o500)
    files.remove_tree(top)
    assert not top.exists()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o640
    assert (folder / "inside").is_dir()
    os.mkfifo(top)
    files.remove_tree(top)
    files.remove_tree(top)
    assert not top.exists()


@pytest.mark.parametrize(
    "requirement",
    [
        "x @ https://example.test/x.tar.gz",
        "x @ git+https://example.test/x",
        "x @ file:///home/user/x.whl",
        "x y",
        "-e .",
    ],
)
def test_a_build_says_no_address_that_this_host_fetches(tmp_path: Path, requirement: str) -> None:
    with pytest.raises(BuildError, match="a build requires `") as caught:
        Pip().download_closure([requirement], None, into=tmp_path)
    assert "example" not in caught.value.message
