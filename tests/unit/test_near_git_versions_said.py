"""What a version says of the commit that it was built from, and which projects take theirs from Git."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.near.git.versions import difference, has_fixed_version, needs_history, shortened_id
from airferry.plan.locks.packages import GitSource


def test_versions_are_compared_by_what_they_say_of_the_commit() -> None:
    git = GitSource("https://h/r.git", "a8425c9f11a45412e6d5338cecb1c014b0ecc0c4")
    assert shortened_id("0.10.0+a8425c9", git.commit) == "a8425c9"
    assert shortened_id("1.0.dev3+ga8425c9f.d20261127", git.commit) == "a8425c9f"
    assert shortened_id("1.0+cu128", git.commit) is None
    assert difference("x", "0.10.0+a8425c9", "0.10.0+a8425c9", git) == ""
    assert "another length" in (difference("x", "0.10.0+a8425c9", "0.10.0+a8425c9f1", git) or "")
    digits = GitSource("https://h/r.git", "0012446781a45412e6d5338cecb1c014b0ecc0c4")
    assert shortened_id("1.0+12446", digits.commit) == "0012446", "PEP 440 takes a part of digits for a number"
    assert difference("x", "1.0+0012446", "1.0+12446", digits) == ""
    assert "another length" in (difference("x", "1.0+12446", "1.0+1244678", digits) or "")
    assert difference("x", "1.0+12446", "1.0+12447", digits) is None
    for got in ("0.10.0", "0.11.0+a8425c9f1", "0.10.0+b823cde", "0.10.0+a8425c9f1.cu128"):
        assert difference("x", "0.10.0+a8425c9", got, git) is None, got


@pytest.mark.parametrize(
    "text",
    [
        '[build-system]\nrequires = ["setuptools_scm[toml]>=8"]\n',
        '[build-system]\nrequires = ["hatchling", "hatch-vcs"]\n',
        "[tool.versioningit]\n",
        '[tool.pdm.version]\nsource = "scm"\n',
    ],
)
def test_tools_that_count_commits_are_known(tmp_path: Path, text: str) -> None:
    assert not needs_history(tmp_path)
    (tmp_path / "pyproject.toml").write_text(text)
    assert needs_history(tmp_path)


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ('[project]\nversion = "1"\n', True),
        ('[project]\ndynamic = ["version"]\n', False),
        ("[project", False),
        ("", False),
    ],
)
def test_a_fixed_version_takes_no_history(tmp_path: Path, text: str, fixed: bool) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    assert (has_fixed_version(tmp_path), needs_history(tmp_path)) == (fixed, False)
