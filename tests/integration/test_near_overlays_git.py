"""Overlays come out of real Git repositories as plain trees, and nothing of such a repository is ever run."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from airferry.errors import BuildError
from airferry.events import Event, Warned
from airferry.host import process
from airferry.near.git import driver
from airferry.near.git.addresses import submodule_address
from airferry.near.git.commands import DamagedRepository


class Repository:
    """A Git repository to take overlays from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        return self.path.as_uri()

    def git(self, *argv: str) -> str:
        settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
        command = ["git", "-C", str(self.path), *settings, *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, files: dict[str, str] | None = None) -> str:
        for name, text in (files or {}).items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "-m", "one")
        return self.git("rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def git_is_there(require_tool: Callable[[str], Path]) -> None:
    require_tool("git")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def bring(url: str, commit: str, cache: Path, into: Path) -> driver.OverlayTree:
    driver.fetch_overlay(url, commit, cache=cache)
    return driver.export_overlay(url, commit, cache=cache, into=into)


def test_refs_of_every_kind_become_commits(repository: Repository, cache: Path) -> None:
    first = repository.commit({"a": "1"})
    repository.git("tag", "light")
    repository.git("tag", "-a", "-m", "annotated", "v1")
    second = repository.commit({"a": "2"})
    repository.git("branch", "v1", second)
    for ref, commit in {
        "main": second,
        "HEAD": second,
        "light": first,
        "v1": first,
        "refs/heads/v1": second,
        "tags/v1": first,
        first: first,
        first[:8]: first,
    }.items():
        assert driver.resolve_commit(repository.url, ref, cache=cache) == commit, ref
    assert driver.resolve_commit(str(repository.path), "main", cache=cache) == second


def test_a_ref_that_does_not_exist_names_the_nearest(repository: Repository, cache: Path) -> None:
    repository.commit()
    repository.git("branch", "release-1.2")
    with pytest.raises(BuildError, match=r"has no ref `release-1\.3`") as caught:
        driver.resolve_commit(repository.url, "release-1.3", cache=cache)
    assert "`release-1.2`" in (caught.value.hint or "")
    with pytest.raises(BuildError, match="has no ref `deadbeef`"):
        driver.resolve_commit(repository.url, "deadbeef", cache=cache)


@pytest.mark.parametrize("url", ["--upload-pack=touch pwned", "ext::sh -c touch% pwned", "", "fd::3", "a\nb"])
def test_an_address_that_git_would_run_is_refused(
    url: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BuildError, match="is not an address"):
        driver.resolve_commit(url, "main", cache=cache)
    with pytest.raises(BuildError, match="is not an address"):
        driver.fetch_overlay(url, "0" * 40, cache=cache)
    assert not (tmp_path / "pwned").exists()


def test_a_ref_that_looks_like_an_option_is_refused(repository: Repository, cache: Path) -> None:
    with pytest.raises(BuildError, match="is not a ref of"):
        driver.resolve_commit(repository.url, "--upload-pack=x", cache=cache)


def test_a_repository_that_is_not_there(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(BuildError, match="cannot read the refs of"):
        driver.resolve_commit((tmp_path / "nowhere").as_uri(), "main", cache=cache)
    with pytest.raises(BuildError, match="cannot read the refs of") as caught:
        driver.resolve_commit("http://user:secret@127.0.0.1:9/x.git", "main", cache=cache)
    assert "secret" not in f"{caught.value} {caught.value.fields}"


def test_the_tree_is_plain_and_always_the_same(repository: Repository, cache: Path, tmp_path: Path) -> None:
    (repository.path / "link").symlink_to("deep/down")
    commit = repository.commit({"deep/down/file": "text", "run.sh": "#!/bin/sh\n", ".gitignore": "x\n"})
    (repository.path / "run.sh").chmod(0o777)
    commit = repository.commit()
    old_umask = os.umask(0o077)
    try:
        first = bring(repository.url, commit, cache, tmp_path / "out")
    finally:
        os.umask(old_umask)
    modes = {
        path.relative_to(first.path).as_posix(): stat.S_IMODE(path.lstat().st_mode)
        for path in first.path.rglob("*")
        if not path.is_symlink()
    }
    assert modes == {"deep": 0o755, "deep/down": 0o755, "deep/down/file": 0o644, "run.sh": 0o755, ".gitignore": 0o644}
    assert (first.path / "link").readlink() == Path("deep/down")
    assert {path.lstat().st_mtime for path in (first.path, *first.path.rglob("*"))} == {315532800.0}
    digest = driver.tree_digest(first.path)
    (first.path / "left over").write_text("x")
    second = bring(repository.url, commit, cache, tmp_path / "out")
    assert driver.tree_digest(second.path) == digest
    assert not (second.path / "left over").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".airferry")] == []


def test_the_digest_sees_every_kind_of_change(repository: Repository, cache: Path, tmp_path: Path) -> None:
    (repository.path / "link").symlink_to("a")
    tree = bring(repository.url, repository.commit({"a": "1", "d/b": "2"}), cache, tmp_path / "out").path
    seen = {driver.tree_digest(tree)}

    def changed(count: int) -> None:
        seen.add(driver.tree_digest(tree))
        assert len(seen) == count

    (tree / "a").write_text("other")
    changed(2)
    (tree / "a").chmod(0o755)
    changed(3)
    (tree / "link").unlink()
    (tree / "link").symlink_to("d")
    changed(4)
    (tree / "d" / "b").rename(tree / "d" / "c")
    changed(5)
    (tree / "empty").mkdir()
    changed(6)


def test_submodules_come_at_their_recorded_commit(tmp_path: Path, cache: Path) -> None:
    inner = Repository(tmp_path / "inner")
    inner.commit({"inner.txt": "recorded"})
    middle = Repository(tmp_path / "middle")
    middle.git("submodule", "--quiet", "add", "../inner", "deps/inner")
    middle.git("submodule", "--quiet", "add", inner.url, "absolute")
    middle.commit({"middle.txt": "x"})
    recorded = inner.git("rev-parse", "HEAD")
    inner.commit({"inner.txt": "newer"})
    outer = Repository(tmp_path / "outer")
    outer.git("submodule", "--quiet", "add", middle.url, "third_party/middle")
    commit = outer.commit()
    tree = bring(outer.url, commit, cache, tmp_path / "out")
    base = tree.path / "third_party" / "middle"
    assert (base / "deps" / "inner" / "inner.txt").read_text() == "recorded"
    assert (base / "absolute" / "inner.txt").read_text() == "recorded"
    assert [path for path in tree.path.rglob("*") if path.name == ".git"] == []
    assert [(item.path, item.commit) for item in tree.submodules] == [
        ("third_party/middle", middle.git("rev-parse", "HEAD")),
        ("third_party/middle/absolute", recorded),
        ("third_party/middle/deps/inner", recorded),
    ]


def test_what_was_fetched_needs_the_repository_no_more(repository: Repository, cache: Path, tmp_path: Path) -> None:
    commit = repository.commit({"a": "1"})
    bare = driver.fetch_overlay(repository.url, commit, cache=cache)
    repository.path.rename(tmp_path / "gone")
    assert driver.fetch_overlay(repository.url, commit, cache=cache) == bare
    assert (driver.export_overlay(repository.url, commit, cache=cache, into=tmp_path / "out").path / "a").is_file()


def test_only_the_commit_is_fetched_and_later_another(repository: Repository, cache: Path) -> None:
    commits = [repository.commit({"a": str(number)}) for number in range(5)]
    bare = driver.fetch_overlay(repository.url, commits[2], cache=cache)
    counted = process.run(["git", f"--git-dir={bare}", "rev-list", "--count", "--all"], timeout_s=20).text
    assert counted == "1\n"
    driver.fetch_overlay(repository.url, commits[0], cache=cache)
    assert driver.resolve_commit(repository.url, commits[1][:10], cache=cache) == commits[1]


def test_a_server_that_refuses_bare_commits_is_asked_for_everything(
    repository: Repository, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository.commit({"a": "1"})
    repository.commit({"a": "2"})
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text("[protocol]\n  version = 0\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    tree = bring(repository.url, commit, cache, tmp_path / "out")
    assert (tree.path / "a").read_text() == "1"
    with pytest.raises(BuildError, match=f"has no commit `{'1' * 40}`"):
        driver.fetch_overlay(repository.url, "1" * 40, cache=cache)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "d/../../outside", "hop/../../outside"])
def test_a_link_out_of_the_tree_is_refused(repository: Repository, cache: Path, tmp_path: Path, target: str) -> None:
    (repository.path / "bad").symlink_to(target)
    (repository.path / "hop").symlink_to("d")
    commit = repository.commit({"d/file": "x"})
    with pytest.raises(BuildError, match="symlink `bad`, which points outside"):
        bring(repository.url, commit, cache, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_filters_hooks_and_line_endings_of_the_user_are_not_applied(
    repository: Repository, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, mark = tmp_path / "home", tmp_path / "ran"
    hooks = home / "hooks"
    hooks.mkdir(parents=True)
    for name in ("post-checkout", "reference-transaction"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {mark}\n")
        (hooks / name).chmod(0o755)
    (home / ".gitconfig").write_text(
        f'[core]\n  hooksPath = {hooks}\n  autocrlf = true\n[filter "evil"]\n  smudge = touch {mark} && cat\n'
        f"  required = true\n[init]\n  templateDir = {home}\n"
    )
    text = "one\ntwo\n$Id$\n"
    commit = repository.commit({"file": text, ".gitattributes": "file filter=evil ident text eol=crlf\n"})
    monkeypatch.setenv("HOME", str(home))
    tree = bring(repository.url, commit, cache, tmp_path / "out")
    assert (tree.path / "file").read_bytes() == text.encode()
    assert not mark.exists()


def test_lfs_pointers_are_noticed(repository: Repository, cache: Path, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n"
    commit = repository.commit({"model.bin": pointer, "plain": "x"})
    driver.fetch_overlay(repository.url, commit, cache=cache)
    seen: list[Event] = []
    driver.export_overlay(repository.url, commit, cache=cache, into=tmp_path / "out", emit=seen.append)
    assert [
        event for event in seen if isinstance(event, Warned) and "1 Git LFS pointers, such as `model.bin`" in event.text
    ]


def test_a_submodule_of_a_distant_repository_may_not_point_into_this_host() -> None:
    with pytest.raises(BuildError, match="points to this host"):
        driver.check_submodules("https://example.org/a.git", [driver.Submodule("x", "/etc", "0" * 40)])
    driver.check_submodules("/srv/a.git", [driver.Submodule("x", "/srv/b.git", "0" * 40)])


@pytest.mark.parametrize(
    ("url", "address", "expected"),
    [
        ("https://example.org/team/a.git", "../b.git", "https://example.org/team/b.git"),
        ("https://example.org/team/a.git/", "../../other/b", "https://example.org/other/b"),
        ("git@example.org:team/a.git", "../b.git", "git@example.org:team/b.git"),
        ("git@example.org:a.git", "../b.git", "git@example.org:b.git"),
        ("https://example.org/a", "./b", "https://example.org/a/b"),
        ("/srv/a", "../b", "/srv/b"),
        ("https://example.org/a", "https://elsewhere.org/b", "https://elsewhere.org/b"),
    ],
)
def test_relative_addresses_of_submodules(url: str, address: str, expected: str) -> None:
    assert submodule_address(url, address) == expected


def test_two_at_once_and_one_killed_before(repository: Repository, cache: Path, tmp_path: Path) -> None:
    commit = repository.commit({"a": "1"})
    bare = driver.fetch_overlay(repository.url, repository.commit({"a": "2"}), cache=cache)
    (bare / "shallow.lock").touch()
    (bare / "objects" / "pack").mkdir(exist_ok=True)
    (bare / "objects" / "pack" / "tmp_pack_x").touch()
    digests: list[str] = []
    threads = [
        threading.Thread(
            target=lambda number=number: digests.append(
                driver.tree_digest(bring(repository.url, commit, cache, tmp_path / f"out{number}").path)
            )
        )
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 3
    assert len(set(digests)) == 1
    assert list(bare.glob("*.lock")) == []


def rewrite(monkeypatch: pytest.MonkeyPatch, home: Path, more: str = "", **rules: Path | str) -> None:
    """Give the user a Git configuration that leads `https://NAME.example.org/` to places."""
    home.mkdir(exist_ok=True)
    text = "".join(f'[url "{to}"]\n  insteadOf = https://{name}.example.org/\n' for name, to in rules.items())
    (home / ".gitconfig").write_text(text + more)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))


@pytest.mark.parametrize("allow", ["", "[protocol.file]\n  allow = always\n", "[protocol]\n  allow = user\n"])
@pytest.mark.parametrize("form", ["file", "path"])
def test_an_address_that_the_user_leads_to_a_mirror_on_this_host_comes_from_there(
    repository: Repository, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, allow: str
) -> None:
    commit = repository.commit({"file": "x"})
    repository.git("checkout", "--quiet", "-b", "team/some-branch")
    tip = repository.commit({"file": "y"})
    place = tmp_path.as_uri() if form == "file" else tmp_path
    rewrite(monkeypatch, tmp_path / "home", allow, git=f"{place}/")
    url = "https://git.example.org/repository"
    assert driver.resolve_commit(url, "main", cache=cache) == commit
    assert driver.resolve_commit(url, "team/some-branch", cache=cache) == tip
    assert driver.resolve_commit(url, tip[:9], cache=cache) == tip
    there = bring(url, tip, cache, tmp_path / "there")
    assert (there.path / "file").read_text() == "y"
    here = bring(repository.url, tip, cache, tmp_path / "here")
    assert driver.tree_digest(there.path) == driver.tree_digest(here.path)


def test_submodules_are_led_to_mirrors_as_well_and_none_by_its_own_word_into_this_host(
    repository: Repository, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = Repository(tmp_path / "inner")
    recorded = inner.commit({"inner": "i"})

    def record(address: str) -> str:
        (repository.path / ".gitmodules").write_text(f'[submodule "m"]\n  path = m\n  url = {address}\n')
        repository.git("update-index", "--add", "--cacheinfo", f"160000,{recorded},m")
        repository.git("add", ".gitmodules")
        repository.git("commit", "--quiet", "-m", "m")
        return repository.git("rev-parse", "HEAD")

    rewrite(monkeypatch, tmp_path / "home", git=f"{tmp_path.as_uri()}/", other=f"{tmp_path}/")
    url = "https://git.example.org/repository"
    for number, address in enumerate(("https://other.example.org/inner", "../inner")):
        tree = bring(url, record(address), cache, tmp_path / f"out{number}")
        assert (tree.path / "m" / "inner").read_text() == "i"
        assert tree.submodules[0].url == ("https://git.example.org/inner" if number else address)
    for address, reason in [
        (inner.url, "points to this host"),
        (str(inner.path), "points to this host"),
        ("https://git.example.org/../inner", "contains `.."),
        ("https://git.example.org/%2e%2e/inner", "contains `.."),
        ("https://git.example.org/x/..%2f../inner", "contains `.."),
    ]:
        with pytest.raises(BuildError, match=reason):
            bring(url, record(address), cache, tmp_path / "bad")


def test_what_the_user_forbids_or_leads_to_a_program_is_said_so(
    repository: Repository, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, url = repository.commit({"file": "x"}), "https://git.example.org/repository"
    rewrite(monkeypatch, tmp_path / "home", "[protocol.file]\n  allow = never\n", git=f"{tmp_path.as_uri()}/")
    with pytest.raises(BuildError, match="transport 'file' not allowed") as caught:
        driver.fetch_overlay(url, commit, cache=cache)
    assert "`protocol.file.allow = never`" in str(caught.value.hint) and tmp_path.as_uri() in caught.value.message
    rewrite(monkeypatch, tmp_path / "home", "[protocol.ext]\n  allow = always\n", git=f"ext::touch {tmp_path}/ran ")
    with pytest.raises(BuildError, match="transport 'ext' not allowed"):
        driver.resolve_commit(url, "main", cache=cache)
    assert not (tmp_path / "ran").exists()
    rewrite(monkeypatch, tmp_path / "home", git=f"{tmp_path}/nowhere/")
    with pytest.raises(BuildError) as caught:
        driver.resolve_commit(url, "main", cache=cache)
    assert "is a Git repository that you may read" in str(caught.value.hint)


def test_the_configuration_may_come_by_variables_and_not_from_the_current_folder(
    repository: Repository, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, url = repository.commit({"file": "x"}), "https://git.example.org/repository"
    rewrite(monkeypatch, tmp_path / "home")
    repository.git("config", f"url.{tmp_path}/.insteadOf", "https://git.example.org/")
    monkeypatch.chdir(repository.path)
    monkeypatch.setenv("GIT_SSH_COMMAND", "false")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "url.ssh://nowhere.invalid/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://git.example.org/")
    with pytest.raises(BuildError, match=r"ssh://nowhere\.invalid/repository"):
        driver.resolve_commit(url, "main", cache=cache)
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{tmp_path}/.insteadOf")
    assert driver.resolve_commit(url, "main", cache=cache) == commit


def test_a_mirror_that_is_not_whole_or_belongs_to_another_user_is_named(
    repository: Repository, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository.commit({"big": "b" * 100, "file": "x"})
    blob = repository.git("rev-parse", "HEAD:big")
    rewrite(monkeypatch, tmp_path / "home", git=f"{tmp_path.as_uri()}/")
    (repository.path / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(DamagedRepository, match=blob) as caught:
        driver.fetch_overlay("https://git.example.org/repository", commit, cache=cache)
    assert repository.url in caught.value.message and "git clone --mirror" in str(caught.value.hint)
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {process.find_program("git")} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    with pytest.raises(BuildError, match="dubious ownership") as caught:
        driver.resolve_commit("https://git.example.org/repository", "main", cache=cache)
    assert f"safe.directory {repository.path}" in str(caught.value.hint)
