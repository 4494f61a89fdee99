"""Build contexts: the folders that Containerfiles read from. Everything in them is pinned, and their digest is part of
the digest of the image's inputs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from airferry.errors import AirferryError, BuildError, ConfigurationError
from airferry.events import Emit
from airferry.host import files, process
from airferry.host.installation import shipped
from airferry.near.git import driver
from airferry.near.wheels.folder import wheelhouse
from airferry.near.wheels.pack import Wheel
from airferry.plan.models import Plan

LISTING_S = 600.0
MAX_TRACKED_FILES = 1_000_000
NEVER_IN_LAUNCHER = (".env", "env.toml")


def execution_context(
    into: Path,
    *,
    additions: Sequence[Wheel],
    pip: Path | None,
    checkouts: Sequence[tuple[str, str, str]],
    cache: Path,
    emit: Emit,
) -> None:
    """Lay out the context of an execution image.

    `checkouts` are URL, commit and target of the overlays, in the order in which they are put in place. `pip` is a
    wheel of pip, needed where there are additions.

    Raises:
        BuildError: an overlay cannot be fetched, or cannot be carried.
    """
    files.ensure_directory(into)
    shutil.copyfile(shipped("containerfiles") / "install-execution.sh", into / "install.sh")
    wheelhouse(additions, into / "wheels", pip=pip if additions else None)
    lines = []
    for number, (url, commit, target) in enumerate(checkouts):
        folder = f"{number}"
        driver.fetch_overlay(url, commit, cache=cache, emit=emit)
        driver.export_overlay(url, commit, cache=cache, into=into / "overlays" / folder, emit=emit)
        lines.append(f"{folder}\t{target}\n")
    (into / "overlays.tsv").write_text("".join(lines), encoding="utf-8")


def launcher_context(
    into: Path,
    *,
    source_root: Path,
    excluded: Sequence[Path],
    additions: Sequence[Wheel],
    pip: Path,
    configs: Mapping[PurePosixPath, Path],
) -> None:
    """Lay out the context of the launcher image: what Git tracks, without `excluded` folders, `.env` and `env.toml`,
    and the `configs` of the plan's targets.

    Raises:
        ConfigurationError: the catalogue is not in a Git repository.
    """
    files.ensure_directory(into)
    shutil.copyfile(shipped("containerfiles") / "install-launcher.sh", into / "install.sh")
    wheelhouse(additions, into / "wheels", pip=pip if additions else None)
    copy_tracked(source_root, into / "source", excluded=excluded, configs=configs)


def tracked_files(source_root: Path) -> list[PurePosixPath]:
    """Return the files that Git tracks below a folder, submodules included, relative to it and sorted.

    Raises:
        ConfigurationError: the folder is not in a Git repository.
    """
    program = process.find_program("git") or "git"
    argv = [program, "-C", source_root, "-c", "core.quotePath=false", "-c", "safe.directory=*"]
    # the repository's own configuration came with the catalogue: it names a program that Git asks what has changed, and
    # others that fetch what a partial clone lacks
    argv += ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    try:
        done = process.run(
            [*argv, "ls-files", "-z", "--cached", "--recurse-submodules"],
            timeout_s=LISTING_S,
            environment={"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1"},
        )
    except process.ProcessFailed as error:
        raise ConfigurationError(
            f"the launcher image contains the files that Git tracks in `{source_root}`, "
            "which is not in a Git repository",
            hint="clone the catalogue with Git, or give its root with `source.root` or `--source`",
        ) from error
    names = sorted({PurePosixPath(name) for name in done.stdout.decode("utf-8", "surrogateescape").split("\0") if name})
    if len(names) > MAX_TRACKED_FILES:
        raise BuildError(
            f"`{source_root}` tracks {len(names)} files, more than the limit of {MAX_TRACKED_FILES}",
            hint="set `source.root` to the folder of the catalogue alone, or `launcher_image: false`",
        )
    return names


def copy_tracked(
    source_root: Path, into: Path, *, excluded: Sequence[Path], configs: Mapping[PurePosixPath, Path] | None = None
) -> None:
    """Copy what Git tracks below a folder, as it is in the working tree, with modes 755 and 644 and links kept.

    Folders get mode 755 too, whatever the umask is.

    Files that are tracked but deleted are left out, as are `.env` and `env.toml` anywhere, since they hold secrets.
    """
    _open_directory(into)
    copy_files(carried(source_root, excluded, configs), into)


def copy_files(found: Iterable[tuple[PurePosixPath, Path]], into: Path) -> None:
    """Copy files and links to their names below a folder, with modes 755 and 644."""
    for name, source in found:
        target = into / name
        _open_directory(target.parent)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            shutil.copyfile(source, target)
            target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)


def _open_directory(path: Path) -> None:
    if not path.is_dir():
        _open_directory(path.parent)
        path.mkdir()
        path.chmod(0o755)


def tracked_digest(
    source_root: Path, *, excluded: Sequence[Path], configs: Mapping[PurePosixPath, Path] | None = None
) -> str:
    """Return the digest of what `copy_tracked` would copy: names, modes, links and contents."""
    state = hashlib.sha256()
    for name, source in carried(source_root, excluded, configs):
        if source.is_symlink():
            kind, content = b"l", os.fsencode(source.readlink())
        else:
            kind = b"x" if source.stat().st_mode & 0o100 else b"f"
            with source.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
        path = os.fsencode(name)
        state.update(b"%s%d:%s%d:%s" % (kind, len(path), path, len(content), content))
    return "sha256:" + state.hexdigest()


def carried(
    source_root: Path, excluded: Sequence[Path], configs: Mapping[PurePosixPath, Path] | None = None
) -> Iterator[tuple[PurePosixPath, Path]]:
    """Yield what the launcher carries: the name of each file and link, sorted, and where it is.

    These are those that Git tracks, and of `configs` those that it does not.

    Raises:
        ConfigurationError: the folder is not in a Git repository.
    """
    shut_out = [files.resolved(path) for path in excluded]
    root = files.resolved(source_root)
    found = dict(configs or {})
    for name in tracked_files(source_root):
        source = root / name
        if name.name in NEVER_IN_LAUNCHER or any(path == source or path in source.parents for path in shut_out):
            continue
        if source.is_symlink() or source.is_file():
            found[name] = source
    yield from sorted(found.items())


def untracked_steps(plan: Plan) -> list[Path]:
    """Return the programs of a plan's steps that Git does not track, which so do not reach the far side.

    None where the catalogue is in no repository: nothing is tracked there, and the code is taken as it lies.
    """
    try:
        tracked = {source for _name, source in carried(plan.source_root, [plan.output_dir])}
    except AirferryError:
        return []  # nor where Git is missing or fails: what needs it says so
    root = files.resolved(plan.source_root)
    programs = dict.fromkeys(step.step_py for step in plan.steps)
    return [path for path in programs if root / path.relative_to(plan.source_root) not in tracked]


def plan_configs(plan: Plan, cache: Path) -> dict[PurePosixPath, Path]:
    """Return the files that the configs of a plan's targets consist of, by their names in the catalogue as it travels.

    Those that travel with other entries of `defaults:` are written to the cache, under the digest of their content.
    """
    found = {}
    for item in plan.config_files:
        source = files.resolved(item.source)
        if item.data is not None:
            source = cache / "configs" / f"{hashlib.sha256(item.data).hexdigest()}.yaml"
            files.ensure_directory(source.parent)
            files.write_bytes(source, item.data)
        found[PurePosixPath(item.name)] = source
    return found
