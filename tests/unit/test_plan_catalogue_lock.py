"""The catalogue's lock: what counts on which platform and Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.errors import ConfigurationError
from airferry.plan.locks.catalogue import CatalogueLock, find_catalogue_lock, read_catalogue_lock
from airferry.plan.locks.packages import GitSource, IndexSource, LocalSource, LockedFile, UrlSource

A, B, C = ("sha256:" + letter * 64 for letter in "abc")
UV = f"""
version = 1
[[package]]
name = "catalogue"
version = "0.1"
source = {{ editable = "." }}
dependencies = [
  {{ name = "both", version = "1.0", source = {{ registry = "r" }}, marker = "platform_machine == 'x86_64'" }},
  {{ name = "both", version = "2.0", source = {{ registry = "r" }}, marker = "platform_machine != 'x86_64'" }},
  {{ name = "From.Git" }},
  {{ name = "old", marker = "python_full_version < '3.11'" }},
  {{ name = "with-extras", extra = ["fast"] }},
]
[package.optional-dependencies]
all = [{{ name = "unwanted" }}]
[package.dev-dependencies]
dev = [{{ name = "unwanted" }}]
[[package]]
name = "both"
version = "1.0"
source = {{ registry = "r" }}
resolution-markers = ["platform_machine == 'x86_64'", "python_full_version < '3'"]
wheels = [{{ url = "https://h/both-1.0-py3-none-any.whl", hash = "{A}" }}]
[[package]]
name = "both"
version = "2.0"
source = {{ registry = "r" }}
resolution-markers = ["platform_machine != 'x86_64'"]
sdist = {{ url = "https://h/both%2B2.0.tar.gz?x=1", hash = "{B}" }}
wheels = [{{ url = "https://h/both-2.0-py3-none-any.whl", hash = "{C}" }}]
[[package]]
name = "from-git"
version = "3"
source = {{ git = "https://h/from.git?subdirectory=python%2Flib&rev=main#{"1" * 40}" }}
dependencies = [{{ name = "with-extras" }}]
[[package]]
name = "old"
version = "1"
source = {{ registry = "r" }}
[[package]]
name = "unwanted"
version = "1"
source = {{ registry = "r" }}
[[package]]
name = "with-extras"
version = "1"
source = {{ registry = "r" }}
dependencies = [{{ name = "from-git" }}]
[package.optional-dependencies]
fast = [{{ name = "fast-part" }}]
slow = [{{ name = "unwanted" }}]
[[package]]
name = "fast-part"
version = "1.10"
source = {{ url = "https://h/fast.whl" }}
[[package]]
name = "fast-part"
version = "1.9"
source = {{ registry = "r" }}
"""


def environment(machine: str = "x86_64", python: str = "3.12.1") -> dict[str, str]:
    return {
        "platform_machine": machine,
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": "linux",
    }


def lock(tmp_path: Path, text: str, name: str = "uv.lock") -> CatalogueLock:
    (tmp_path / name).write_text(text)
    return read_catalogue_lock(tmp_path / name)


def names(found: CatalogueLock, **where: str) -> list[str]:
    return [f"{item.name} {item.version}" for item in found.all_for(environment(**where))]


def test_markers_choose_among_versions(tmp_path: Path) -> None:
    found = lock(tmp_path, UV)
    here, there = (found.find("Both", environment(machine)) for machine in ("x86_64", "aarch64"))
    assert here is not None and here.version == "1.0" and here.hashes == (A,)
    assert there is not None and there.version == "2.0"
    assert set(there.files) == {LockedFile("both-2.0-py3-none-any.whl", C), LockedFile("both+2.0.tar.gz", B)}
    assert found.find("nothing", environment()) is None
    assert "From_Git" in found and "nothing" not in found
    highest = found.find("fast-part", environment())
    assert highest is not None and highest.version == "1.10" and highest.source == UrlSource("https://h/fast.whl")


def test_git_entries_have_url_commit_and_folder(tmp_path: Path) -> None:
    package = lock(tmp_path, UV).find("from-git", environment())
    assert package is not None
    assert package.source == GitSource("https://h/from.git", "1" * 40, "python/lib")


def test_the_environment_is_the_closure_without_extras_and_development_groups(tmp_path: Path) -> None:
    found = lock(tmp_path, UV)
    assert names(found) == ["both 1.0", "fast-part 1.10", "from-git 3", "with-extras 1"]
    assert names(found, machine="aarch64") == ["both 2.0", "fast-part 1.10", "from-git 3", "with-extras 1"]
    assert "old 1" in names(found, python="3.10.4")


def test_a_lock_without_root_project_is_refused_for_the_launcher(tmp_path: Path) -> None:
    text = 'version = 1\n[[package]]\nname = "a"\nversion = "1"\nsource = { registry = "r" }\n'
    with pytest.raises(ConfigurationError, match="no root project"):
        lock(tmp_path, text).all_for(environment())


def test_pylock(tmp_path: Path) -> None:
    found = lock(
        tmp_path,
        f"""
lock-version = "1.0"
[[packages]]
name = "Plain"
version = "1.0"
marker = "platform_machine == 'x86_64'"
wheels = [{{ url = "https://h/plain-1.0-py3-none-any.whl", hashes = {{ sha256 = "{"a" * 64}" }} }}]
sdist = {{ name = "plain-1.0.tar.gz", hashes = {{ sha256 = "{"b" * 64}" }} }}
[[packages]]
name = "git"
vcs = {{ type = "git", url = "https://h/g.git", commit-id = "{"2" * 40}", subdirectory = "p" }}
[[packages]]
name = "local"
directory = {{ path = "." }}
""",
        "pylock.toml",
    )
    plain = found.find("plain", environment())
    assert plain is not None and plain.hashes == (A, B)
    assert {file.name for file in plain.files} == {"plain-1.0-py3-none-any.whl", "plain-1.0.tar.gz"}
    assert found.find("plain", environment("aarch64")) is None
    git = found.find("git", environment())
    assert git is not None and git.source == GitSource("https://h/g.git", "2" * 40, "p")
    assert [item.source for item in found.all_for(environment())] == [git.source, LocalSource("."), IndexSource()]


def test_requirements(tmp_path: Path) -> None:
    found = lock(
        tmp_path,
        f"""# made by a tool
--index-url https://h/simple
Tab_ulate==0.10.0 \\
    --hash={A} \\
    --hash={B}
    # via something
only-arm[fast]==1.0 ; platform_machine == "aarch64" --hash={C}  # a comment
git-thing @ git+https://h/g.git@{"3" * 40}#subdirectory=p
file @ https://h/file-1-py3-none-any.whl
""",
        "requirements.txt",
    )
    package = found.find("tab-ulate", environment())
    assert package is not None and package.version == "0.10.0" and package.hashes == (A, B)
    assert [item.name for item in found.all_for(environment())] == ["file", "git-thing", "tab-ulate"]
    arm = found.find("only-arm", environment("aarch64"))
    assert arm is not None and arm.hashes == (C,)
    git = found.find("git-thing", environment())
    assert git is not None and git.source == GitSource("https://h/g.git", "3" * 40, "p")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("requirements.txt", "a==1\nb>=2\n", "requirements.txt:2: `b>=2` is not pinned"),
        ("requirements.txt", "a==1.*\n", "is not pinned"),
        ("requirements.txt", "\n-r other.txt\n", "requirements.txt:2: `-r other.txt`"),
        ("requirements.txt", "a b\n", "is not a valid requirement"),
        ("uv.lock", "[[package]\n", "not valid TOML"),
        ("uv.lock", 'version = 1\n[[package]]\nname = "a"\n', "unexpected structure"),
        ("uv.lock", 'version = 1\n[[package]]\nname = "a"\nsource = { moon = "x" }\n', "unexpected structure"),
        ("uv.lock", "version = 2\n", "uv.lock: its version is `2`"),
        ("uv.lock", 'version = 1\n[manifest]\noverrides = [{ name = "a b" }]\n', "unexpected structure"),
        ("pylock.toml", '[[packages]]\nversion = "1"\n', "unexpected structure"),
    ],
)
def test_locks_that_are_none_are_refused(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        lock(tmp_path, text, name)
    assert reason in caught.value.message


def test_a_lock_that_cannot_be_read_is_a_matter_of_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"uv\.lock"):
        read_catalogue_lock(tmp_path / "uv.lock")


def test_the_best_lock_of_a_catalogue_is_taken(tmp_path: Path) -> None:
    assert find_catalogue_lock(tmp_path) is None
    for name in ("requirements.txt", "pylock.toml", "uv.lock"):
        (tmp_path / name).write_text("")
        assert find_catalogue_lock(tmp_path) == tmp_path / name
