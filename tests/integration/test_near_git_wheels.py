"""Wheels from Git have the version that the lock names, and what builds them reaches nothing of the host."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

from airferry.errors import BuildError, HostError
from airferry.events import Event, Warned
from airferry.host import confined, confinement, process
from airferry.near.wheels.pack import Wheel
from airferry.near.wheels.pip import Pip, wheel_target
from airferry.near.wheels.store import Pin, WheelStore
from airferry.plan.locks.packages import GitSource
from wheel_factory import make_probe

TARGET = wheel_target(make_probe().python)
BACKEND = """
import os, subprocess, zipfile
def git(*argv):
    return subprocess.run(["git", *argv], capture_output=True, text=True).stdout.strip()
def describe():
    tag, _, rest = git("describe", "--tags", "--long").rpartition("-")[0].rpartition("-")
    return f"{tag}.post{rest}" if tag else "0.dev0"
def build_wheel(directory, config_settings=None, metadata_directory=None):
    version = VERSION
    name = f"fromgit-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as archive:
        archive.writestr("fromgit.py", TEXT)
        info = f"fromgit-{version}.dist-info"
        archive.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(info + "/METADATA", f"Metadata-Version: 2.1\\nName: fromgit\\nVersion: {version}\\n")
        archive.writestr(info + "/RECORD", "")
    return name
"""
SHORT = '"1.0+" + git("rev-parse", "--short", "HEAD")'


class Repository:
    """A Git repository with a project whose version its back end computes."""

    def __init__(self, folder: Path, version: str, *, text: str = '""', tag: str | None = "1.0") -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        )
        (folder / "backend.py").write_text(BACKEND.replace("VERSION", version).replace("TEXT", text))
        self.git("init", "-q")
        for number in range(3):
            (folder / "count").write_text(str(number))
            self.git("add", ".")
            self.git("commit", "-qm", str(number))
            if number == 0 and tag:
                self.git("tag", tag)
        self.commit = self.git("rev-parse", "HEAD").strip()

    def git(self, *argv: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@t.example")
        # always the same ids: one of digits alone would be spelled otherwise in a version
        dates = {"GIT_AUTHOR_DATE": "1700000000 +0000", "GIT_COMMITTER_DATE": "1700000000 +0000"}
        return process.run(["git", "-C", self.folder, *who, *argv], environment=dates, timeout_s=60).text

    def pin(self, version: str | None, *, url: str | None = None) -> Pin:
        source = GitSource(url or self.folder.as_uri(), self.commit)
        return Pin("fromgit", f"=={version}" if version else "", git=source, place="uv.lock:7")


def fetch(cache: Path, pin: Pin, events: list[Event] | None = None) -> Wheel:
    emit = events.append if events is not None else (lambda _event: None)
    return WheelStore(cache, Pip(("--no-index",), emit=emit), emit).fetch([pin], TARGET)[0]


@pytest.mark.parametrize("length", [7, 9])
def test_the_commit_is_shortened_to_the_length_that_the_lock_has(tmp_path: Path, length: int) -> None:
    repository = Repository(tmp_path / "repository", SHORT)
    version = f"1.0+{repository.commit[:length]}"
    assert fetch(tmp_path / "cache", repository.pin(version)).version == version


def test_a_wheel_from_git_is_built_once_and_the_same_in_every_cache(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository", SHORT)
    pin = repository.pin(f"1.0+{repository.commit[:7]}")
    first = fetch(tmp_path / "cache", pin)
    events: list[Event] = []
    assert fetch(tmp_path / "cache", pin, events) == first
    assert events == [], "neither Git nor pip is asked again"
    assert fetch(tmp_path / "other", pin).sha256 == first.sha256


def test_history_and_tags_are_fetched_where_the_version_takes_them(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository", "describe()")
    assert fetch(tmp_path / "cache", repository.pin("1.0.post2")).version == "1.0.post2"
    assert fetch(tmp_path / "cache", repository.pin(None)).version == "1.0.post2", "also where no version is wanted"


def test_another_version_names_lock_wanted_got_and_a_way_out(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository", '"2.0"')
    with pytest.raises(BuildError, match=r"^uv\.lock:7: `fromgit` is locked at 1\.0, but .* builds 2\.0") as caught:
        fetch(tmp_path / "cache", repository.pin("1.0"))
    way_out = f'requirements: {{fromgit: "fromgit @ git+{repository.folder.as_uri()}@{repository.commit}"}}'
    assert way_out in (caught.value.hint or "")
    assert fetch(tmp_path / "cache", repository.pin(None)).version == "2.0", "the way out leads out"


def test_a_remote_without_tags_is_told(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository", "describe()", tag=None)
    with pytest.raises(BuildError, match=r"locked at 1\.0\.post2, .* the remote has no tags") as caught:
        fetch(tmp_path / "cache", repository.pin("1.0.post2"))
    assert "push the tags" in (caught.value.hint or "")


def test_a_shallow_remote_is_told(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository", "describe()")
    shallow = tmp_path / "shallow"
    process.run(["git", "clone", "-q", "--depth=1", repository.folder.as_uri(), shallow], timeout_s=60)
    with pytest.raises(BuildError, match="the remote has only part of the history") as caught:
        fetch(tmp_path / "cache", repository.pin("1.0.post2", url=shallow.as_uri()))
    assert "the full history" in (caught.value.hint or "")


def test_a_commit_that_is_gone_is_named_with_the_place_in_the_lock(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository", SHORT)
    repository.commit = "1" * 40
    with pytest.raises(BuildError, match=r"^uv\.lock:7: .* has no commit `1{40}`"):
        fetch(tmp_path / "cache", repository.pin("1.0"))


def test_the_same_commit_at_another_length_is_a_note(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository", '"1.0+" + git("rev-parse", "HEAD")[:11]')
    wheel = fetch(tmp_path / "cache", repository.pin(f"1.0+{repository.commit[:7]}"))
    assert wheel.version == f"1.0+{repository.commit[:11]}"
    assert "the same commit with an abbreviated id of another length" in wheel.note
    assert fetch(tmp_path / "cache", repository.pin(f"1.0+{repository.commit[:7]}")) == wheel


def test_a_build_script_reaches_neither_files_nor_network_nor_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@index.example/simple")
    secret = tmp_path / "secret"
    secret.write_text("x")
    seen = f"""repr([
        os.path.exists({str(secret)!r}),
        os.path.exists({str(Path.home())!r}),
        __import__("socket").socket().connect_ex(("127.0.0.1", 9)) == __import__("errno").ENETUNREACH,
        [name for name, value in os.environ.items() if "secret" in value],
        subprocess.run(["umount", "/tmp"], capture_output=True).returncode != 0,
        os.getpid() < 100,
    ])"""
    repository = Repository(tmp_path / "repository", '"1.0"', text=seen)
    wheel = fetch(tmp_path / "cache", repository.pin("1.0"))
    assert zipfile.ZipFile(wheel.path).read("fromgit.py") == b"[False, False, True, [], True, True]"


def test_a_build_script_changes_nothing_of_the_cache(tmp_path: Path) -> None:
    objects = 'git("rev-parse", "--git-path", "objects/info/alternates")'
    harm = f'subprocess.run(["rm", "-rf", open({objects}).read().strip()], capture_output=True).returncode and ""'
    repository = Repository(tmp_path / "repository", '"1.0"', text=harm)
    fetch(tmp_path / "cache", repository.pin("1.0"))
    (bare,) = (tmp_path / "cache" / "git").glob("*.git")
    assert list((bare / "objects" / "pack").glob("*.pack"))


def test_a_host_without_namespaces_refuses_or_warns_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = tmp_path / "refusing.py"
    refusing.write_text(
        'import sys\nsys.stderr.write("airferry: [Errno 1] unshare: Operation not permitted\\n")\n'
        f"sys.exit({confined.SETUP_FAILED})\n"
    )
    monkeypatch.setattr(confined, "__file__", str(refusing))
    repository = Repository(tmp_path / "repository", SHORT)
    pin = repository.pin(f"1.0+{repository.commit[:7]}")
    with pytest.raises(HostError, match=r"cannot be confined on this host: .*not permitted") as caught:
        fetch(tmp_path / "cache", pin)
    assert f"{confinement.UNCONFINED}=1" in (caught.value.hint or "")
    monkeypatch.setenv(confinement.UNCONFINED, "1")
    events: list[Event] = []
    assert Version(fetch(tmp_path / "cache", pin, events).version) == Version(pin.specifier.removeprefix("=="))
    assert any(isinstance(event, Warned) and confinement.UNCONFINED in event.text for event in events)


def test_what_is_confined_ends_with_its_code_and_its_words(tmp_path: Path) -> None:
    done = confinement.run_confined(
        [confinement.host_python(), "-c", "import sys; sys.stderr.write('last words\\n'); sys.exit(7)"],
        scratch=tmp_path,
        view=confinement.HostView(),
        cwd="/tmp",
        environment={},
        timeout_s=60,
    )
    assert (done.returncode, done.tail) == (7, ("last words",))


def test_an_interpreter_outside_of_the_system_is_shown_without_its_pip_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "python"
    prefix.mkdir()
    (prefix / "pip.conf").write_text("secret")
    (prefix / "shown").write_text("shown")
    for name in ("base_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, str(prefix))
    done = confinement.run_confined(
        ["/bin/cat", prefix / "shown", prefix / "pip.conf"],
        scratch=tmp_path / "scratch",
        view=confinement.HostView(),
        cwd="/tmp",
        environment={},
        timeout_s=60,
    )
    assert (done.returncode, done.text) == (0, "shown")
