"""`airgap.lock.yaml`: written the same for the same content, read back, compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.config import load_config
from airferry.errors import ConfigurationError, UsageError
from airferry.near.lock.follow import drop_entries
from airferry.plan.lockfile import (
    LockedAddition,
    LockedBase,
    LockedBasePlatform,
    LockedGit,
    LockedGroup,
    LockedLauncher,
    LockedOverlay,
    LockedPlatform,
    Lockfile,
    differences,
    group_digest,
    read_lockfile,
    render_lockfile,
    write_lockfile,
)
from airferry.plan.locks.packages import GitSource
from airferry.plan.models import Candidate
from airferry.plan.planner import make_plan
from catalogues import airgap, write_airgap, write_step

DIGEST = "sha256:" + "a" * 64


def example() -> Lockfile:
    addition = LockedAddition(
        name="tabulate",
        version="0.10.0",
        file="tabulate-0.10.0-py3-none-any.whl",
        sha256="b" * 64,
        modules=("tabulate",),
    )
    from_git = LockedAddition(
        name="run",
        version="1",
        file="run-1-py3-none-any.whl",
        sha256="c" * 64,
        source=LockedGit(url="https://h/run.git", commit="1" * 40, subdirectory="p"),
    )
    platform = LockedPlatform(
        inputs=DIGEST,
        python="/usr/bin/python3",
        python_version="3.11.2",
        libc="glibc",
        libc_version="2.36",
        missing=("tabulate",),
        additions=(addition, from_git),
    )
    return Lockfile(
        bases={
            "python:3.12": LockedBase(
                kind="registry", index=DIGEST, platforms={"linux/arm64": LockedBasePlatform(manifest=DIGEST)}
            ),
            '{"bootstrap":{}}': LockedBase(
                kind="bootstrap",
                platforms={"linux/amd64": LockedBasePlatform(manifest=DIGEST, packages={"dash": "0.5"})},
            ),
        },
        overlays={"https://h/o.git@main": LockedOverlay(commit="2" * 40)},
        groups={"g-12345678": LockedGroup(platforms={"linux/arm64": platform})},
        launcher=LockedLauncher(platforms={"linux/arm64": platform}),
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "airgap.lock.yaml"
    assert read_lockfile(path) is None
    write_lockfile(example(), path)
    found = read_lockfile(path)
    assert found == example()
    first = path.read_text()
    assert first == render_lockfile(example())
    assert "schema_version: 2" in first and "&id" not in first and "null" not in first
    assert found is not None
    (_, from_git) = found.groups["g-12345678"].platforms["linux/arm64"].additions
    assert from_git.git_source == GitSource("https://h/run.git", "1" * 40, "p")


def test_a_lock_of_version_1_is_read_and_written_as_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "airgap.lock.yaml"
    path.write_text("schema_version: 1\noverlays:\n  a@b: {commit: '" + "0" * 40 + "'}\n")
    found = read_lockfile(path)
    assert found is not None and found.overlays["a@b"].commit == "0" * 40
    assert "schema_version: 2" in render_lockfile(found)


def test_an_update_forgets_what_is_named_and_a_base_by_the_image_on_it(tmp_path: Path) -> None:
    base = {"bootstrap": {"suite": "bookworm", "packages": ["python3-minimal"]}}
    for step in ("a", "b"):
        write_step(tmp_path, step)
    images = {"own": {"base_image": base}, "other": "python:3.12"}
    plan = make_plan(load_config(write_airgap(tmp_path, airgap(images, {"a": "own", "b": "other"}))))
    key = next(group.base_image.key for group in plan.groups if "own" in group.image_names)
    bases = {name: LockedBase(kind="registry", index=DIGEST) for name in (key, "python:3.12")}
    lockfile = Lockfile(bases=bases, overlays={"u@r": LockedOverlay(commit="1" * 40)})
    assert set(drop_entries(lockfile, ["own"], plan=plan).bases) == {"python:3.12"}
    assert set(drop_entries(lockfile, ["other", key], plan=plan).bases) == set()
    assert drop_entries(lockfile, ["u@r"], plan=plan) == Lockfile(bases=bases)
    assert drop_entries(lockfile, [], plan=plan) == Lockfile()
    with pytest.raises(UsageError, match="the lock file has no entry `onw`") as caught:
        drop_entries(lockfile, ["onw"], plan=plan)
    assert "`own`" in (caught.value.hint or "")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.dictionaries(TEXT, st.text("0123456789abcdef", min_size=40, max_size=40)))
def test_any_names_survive(tmp_path_factory: pytest.TempPathFactory, refs: dict[str, str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.lock.yaml"
    lockfile = Lockfile(overlays={key: LockedOverlay(commit=commit) for key, commit in refs.items()})
    write_lockfile(lockfile, path)
    assert read_lockfile(path) == lockfile


def test_order_of_keys_does_not_matter() -> None:
    one = Lockfile(overlays={"a": LockedOverlay(commit="1" * 40), "b": LockedOverlay(commit="2" * 40)})
    other = Lockfile(overlays=dict(reversed(one.overlays.items())))
    assert render_lockfile(one) == render_lockfile(other)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a lock file"),
        ("schema_version: 3\n", "has version 3, this version of airferry reads version 2"),
        ("overlays: {}\n", "expected 2, found `None`"),
        ("schema_version: 1\noverlays:\n  a: {commit: main}\n", ":3: `overlays.a.commit`"),
        ("schema_version: 1\nunknown: 1\n", ":2: `unknown`"),
        ("schema_version: 1\nbases: {a: {kind: moon}}\n", "`bases.a.kind`"),
        ("schema_version: 1\nschema_version: 1\n", "duplicate key"),
    ],
)
def test_other_files_are_refused_at_their_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "airgap.lock.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_lockfile(path)
    assert reason in caught.value.message
    assert path.read_text() == text


def test_differences_are_readable() -> None:
    old = example()
    assert differences(old, old) == []
    assert {line[:2] for line in differences(None, old)} == {"+ "}
    group = old.groups["g-12345678"].platforms["linux/arm64"]
    newer = group.additions[0].model_copy(update={"version": "0.11.0"})
    changed = old.model_copy(
        update={
            "overlays": {"https://h/o.git@main": LockedOverlay(commit="3" * 40)},
            "bases": {key: base for key, base in old.bases.items() if key.startswith("python")},
            "groups": {
                "g-12345678": old.groups["g-12345678"].model_copy(
                    update={"platforms": {"linux/arm64": group.model_copy(update={"additions": (newer,)})}}
                )
            },
        }
    )
    assert differences(old, changed) == [
        f'- base `{{"bootstrap":{{}}}}` for linux/amd64: {DIGEST}, 1 package',
        "- group g-12345678 for linux/arm64, addition run: 1 (run-1-py3-none-any.whl, cccccccccccc)",
        "~ group g-12345678 for linux/arm64, addition tabulate: 0.10.0 (tabulate-0.10.0-py3-none-any.whl, bbbbbbbbbbbb)"
        " → 0.11.0 (tabulate-0.10.0-py3-none-any.whl, bbbbbbbbbbbb)",
        f"~ overlay `https://h/o.git@main`: {'2' * 40} → {'3' * 40}",
    ]


def test_a_group_that_asks_for_something_else_has_another_digest(tmp_path: Path) -> None:
    write_step(tmp_path, "a", source="import tabulate\n")
    (group,) = make_plan(load_config(write_airgap(tmp_path, airgap({"i": "base:1"}, {"a": "i"})))).groups
    digest = group_digest(group)
    moved = replace(group, candidates=tuple(replace(item, line=99) for item in group.candidates))
    reported = replace(group, candidates=(*group.candidates, Candidate("maybe", "reported", "f", 1)))
    assert group_digest(moved) == group_digest(reported) == digest
    others = [
        replace(group, candidates=()),
        replace(group, pip_no_deps=False),
        replace(group, python="/opt/python"),
        replace(group, requirements={"tabulate": "tabulate==1"}),
    ]
    assert len({digest, *(group_digest(other) for other in others)}) == 5


def test_the_notes_of_all_entries_are_listed_with_their_image_and_platform() -> None:
    def noted(*texts: str) -> LockedPlatform:
        return LockedPlatform(inputs=DIGEST, python="python3", python_version="3.12", notes=texts)

    lock = Lockfile(
        groups={
            "b": LockedGroup(platforms={"linux/arm64": noted("three"), "linux/amd64": noted("one", "two")}),
            "a": LockedGroup(platforms={"linux/amd64": noted()}),
        },
        launcher=LockedLauncher(platforms={"linux/amd64": noted("four")}),
    )
    assert [tuple(note.values()) for note in lock.noted()] == [
        ("b", "linux/amd64", "one"),
        ("b", "linux/amd64", "two"),
        ("b", "linux/arm64", "three"),
        ("launcher", "linux/amd64", "four"),
    ]
    assert Lockfile().noted() == []
