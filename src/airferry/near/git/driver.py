"""Git checkouts at a commit, fetched into a cache and exported as plain trees.

What such a repository says is data: none of its hooks, filters, attributes or transports is ever run, no path in it
points outside the exported tree, and no `.git` goes along.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from airferry.errors import BuildError, HostError
from airferry.events import Emit, Warned, silent
from airferry.host import clock, files
from airferry.host.locks import Thing, making
from airferry.near.git.addresses import is_local, read_address, redact, remote_address, submodule_address
from airferry.near.git.commands import STREAMED, DamagedRepository, WorkTree, run_git, try_git
from airferry.wording import near_names, size_text

LIST_TIMEOUT_S = 300.0
MAX_SUBMODULE_DEPTH = 10
# of a commit, those of its submodules included: PyTorch has a hundred, and three in each of eight levels are 9,840
MAX_SUBMODULES = 500
MAX_LISTED_REFS = 8
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
LFS_POINTER_MAX_BYTES = 1024

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,63}")
# what this host sends to itself is hardly worth compressing, or looking for deltas in
_LOCAL_SENDER = f"git -c {STREAMED} -c pack.compression=0 -c pack.window=0 upload-pack"
# the highest level of attributes: blobs come out as they are in the repository
_RAW_ATTRIBUTES = "* -text -eol -ident -filter -working-tree-encoding\n"


@dataclass(frozen=True, slots=True)
class Submodule:
    """A submodule at the commit that its parent records. `path` is relative to the overlay."""

    path: str
    url: str
    commit: str


@dataclass(frozen=True, slots=True)
class OverlayTree:
    """An exported overlay: where it is, and what was found in it."""

    path: Path
    submodules: tuple[Submodule, ...]


def resolve_commit(url: str, ref: str, *, cache: Path, emit: Emit = silent) -> str:
    """Return the full commit id that a ref of a repository points at.

    A full commit id passes unchecked. Annotated tags are peeled; tags come before branches of the same name; what
    looks like a shortened commit id is looked up in the repository's history.

    Raises:
        BuildError: the repository cannot be read, or has no such ref.
    """
    if _COMMIT.fullmatch(ref):
        return ref
    if ref.startswith("-") or not ref.strip():
        raise BuildError(f"`{ref}` is not a ref of `{redact(url)}`", hint="name a branch, a tag or a full commit id")
    refs = _list_refs(url, timeout_s=LIST_TIMEOUT_S, emit=emit)
    commit = _commit_of(ref, refs)
    if commit is None and _SHORT_COMMIT.fullmatch(ref):
        commit = _expand(url, ref, cache=cache, emit=emit)
    if commit is None:
        raise _no_ref(url, ref, refs)
    return commit


def find_ref(url: str, ref: str, *, timeout_s: float, emit: Emit = silent) -> str | None:
    """Ask a repository for a ref, and return its commit; None where that would take more than a question.

    The repository is asked for a commit id too, though it tells only by its history whether it has it.

    Raises:
        BuildError: the repository cannot be read in time, or has no such ref.
    """
    refs = _list_refs(url, timeout_s=timeout_s, emit=emit)
    commit = _commit_of(ref, refs)
    if commit is None and not _COMMIT.fullmatch(ref) and not _SHORT_COMMIT.fullmatch(ref):
        raise _no_ref(url, ref, refs)
    return commit


def _list_refs(url: str, *, timeout_s: float, emit: Emit) -> dict[str, str]:
    argv = ["ls-remote", "--", remote_address(url)]
    done = run_git(argv, url=url, timeout_s=timeout_s, emit=emit, doing="read the refs of")
    return {name: commit for commit, _, name in (line.partition("\t") for line in done.text.splitlines()) if name}


def _commit_of(ref: str, refs: Mapping[str, str]) -> str | None:
    for name in (ref, f"refs/tags/{ref}", f"refs/heads/{ref}", f"refs/{ref}"):
        commit = refs.get(name + "^{}") or refs.get(name)
        if commit is not None:
            return commit
    return None


def _no_ref(url: str, ref: str, refs: Mapping[str, str]) -> BuildError:
    names = sorted({re.sub(r"^refs/(heads|tags)/|\^\{\}$", "", name) for name in refs})
    near = near_names(ref, names, most=MAX_LISTED_REFS, cutoff=0.5) or names[:MAX_LISTED_REFS]
    return BuildError(
        f"`{redact(url)}` has no ref `{ref}`",
        hint=f"close matches: {', '.join(f'`{name}`' for name in near)}" if near else "it has no refs",
        url=redact(url),
        ref=ref,
        nearest=near,
    )


def fetch_overlay(url: str, commit: str, *, cache: Path, emit: Emit = silent) -> Path:
    """Bring a commit and, recursively, the submodules that it records into the cache; return the bare repository.

    Only the commit itself is fetched where the server allows that, all branches and tags where not. Idempotent, needs
    no network when everything is there, and safe while other processes run.

    Raises:
        BuildError: the repository cannot be read or does not have the commit.
    """
    repository, _below = _fetch(url, commit, cache=cache, emit=emit, depth=0, counted={})
    return repository


def export_overlay(url: str, commit: str, *, cache: Path, into: Path, emit: Emit = silent) -> OverlayTree:
    """Write a fetched commit with its submodules as a plain tree at `into`, which is replaced as a whole.

    The same commit gives the same tree: modes 755 and 644, one time stamp, symlinks as they are. No network.

    Raises:
        BuildError: the commit was not fetched, or holds a symlink that points outside the tree.
        HostError: there is no room for it.
    """
    files.ensure_directory(into.parent)
    # a commit of a few kilobytes can name one large file a million times
    needed, free = checkout_bytes(url, commit, cache=cache) or 0, files.free_bytes(into.parent)
    if needed > free:
        raise HostError(
            f"`{redact(url)}` at `{commit}` has {size_text(needed)} of files, but only {size_text(free)} are free at "
            f"`{into.parent}`",
            hint="free up space, or use another commit",
            needed_bytes=needed,
            free_bytes=free,
        )
    with files.scratch_directory(into.parent) as scratch:
        tree = scratch / "tree"
        submodules = _export(url, commit, cache=cache, into=tree)
        pointers = _settle(tree, what=f"{redact(url)}@{commit}")
        files.remove_tree(into)
        files.publish(tree, into)
    if pointers:
        emit(
            Warned(
                f"`{redact(url)}` at `{commit}` holds {len(pointers)} Git LFS pointers, such as `{pointers[0]}`; "
                "the files that they point to are not included",
                hint="add the files that steps need to `assets:`",
            )
        )
    return OverlayTree(into, tuple(submodules))


def checkout_bytes(url: str, commit: str, *, cache: Path) -> int | None:
    """Return the size of a commit's files, submodules included, or None where not all of it is in the cache."""
    return _checkout_bytes(url, commit, cache=cache, known={})


def _checkout_bytes(url: str, commit: str, *, cache: Path, known: dict[tuple[str, str], int | None]) -> int | None:
    if (url, commit) not in known:
        # digests cannot refer to themselves, so that nothing asks for this one again before it is known
        known[url, commit] = _own_bytes(url, commit, cache=cache, known=known)
    return known[url, commit]


def _own_bytes(url: str, commit: str, *, cache: Path, known: dict[tuple[str, str], int | None]) -> int | None:
    repository = _repository(url, cache)
    if not repository.is_dir() or not has_commit(repository, commit):
        return None
    listing = run_git(["ls-tree", "-r", "-l", "-z", "--full-tree", commit], url=url, repository=repository).text
    total = 0
    for line in listing.split("\0"):
        _mode, kind, _object, size = (line.partition("\t")[0].split() + [""] * 4)[:4]
        total += int(size) if kind == "blob" else 0
    submodules = _submodules(repository, url, commit)
    below = [_checkout_bytes(item.url, item.commit, cache=cache, known=known) for item in submodules]
    return None if None in below else total + sum(size or 0 for size in below)


def tree_digest(path: Path) -> str:
    """Return `sha256:…` of a tree: names, kinds, executable bits, contents and link targets, but no times."""
    state = hashlib.sha256()
    for entry in sorted(_walk(path), key=lambda item: os.fsencode(item.relative_to(path))):
        name = os.fsencode(entry.relative_to(path))
        mode = entry.lstat().st_mode
        if stat.S_ISLNK(mode):
            kind, content = b"l", hashlib.sha256(os.fsencode(entry.readlink())).digest()
        elif stat.S_ISDIR(mode):
            kind, content = b"d", b""
        else:
            kind = b"x" if mode & 0o100 else b"f"
            with entry.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
        state.update(kind + len(name).to_bytes(4, "big") + name + content)
    return "sha256:" + state.hexdigest()


def check_submodules(url: str, submodules: Sequence[Submodule]) -> None:
    """Refuse submodules of a distant repository that point into this host.

    Raises:
        BuildError: there is one.
    """
    for submodule in submodules:
        if is_local(submodule.url) and not is_local(url):
            raise BuildError(
                f"submodule `{submodule.path}` of `{redact(url)}` points to this host: `{submodule.url}`",
                hint="use a commit whose `.gitmodules` has an address that other hosts can reach",
                url=redact(url),
            )


def _fetch(
    url: str, commit: str, *, cache: Path, emit: Emit, depth: int, counted: dict[tuple[str, str], int]
) -> tuple[Path, int]:
    """Fetch a commit and what is below it, each once, and return its repository and how many submodules that are."""
    if (known := counted.get((url, commit))) is not None:
        return _repository(url, cache), known
    if not _COMMIT.fullmatch(commit):
        raise BuildError(f"`{commit}` is not a full commit id", hint="resolve the ref first")
    if depth > MAX_SUBMODULE_DEPTH:
        raise BuildError(
            f"`{redact(url)}`: submodules are nested more than {MAX_SUBMODULE_DEPTH} deep",
            hint="check for repositories that are submodules of each other",
        )
    with locked_repository(url, cache, emit=emit) as repository:
        if not has_commit(repository, commit):
            _fetch_commit(repository, url, commit, emit=emit)
        below = _submodules(repository, url, commit)
    check_submodules(url, below)
    total = 0
    for submodule in below:
        inner = _fetch(submodule.url, submodule.commit, cache=cache, emit=emit, depth=depth + 1, counted=counted)
        total += 1 + inner[1]
        if total > MAX_SUBMODULES:
            raise BuildError(
                f"`{redact(url)}` at `{commit}` has more than {MAX_SUBMODULES} submodules, theirs included, the limit",
                hint="use a commit without them, or a fork",
                url=redact(url),
            )
    counted[url, commit] = total
    return repository, total


def _fetch_commit(repository: Path, url: str, commit: str, *, emit: Emit) -> None:
    """Fetch one commit, or everything where the server answers no request for a bare commit."""
    remote, address = remote_address(url), read_address(url)
    common = [
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-write-fetch-head",
        "--no-recurse-submodules",
        "--no-auto-maintenance",
        *([f"--upload-pack={_LOCAL_SENDER}"] if address.is_local else []),
    ]
    pin = f"refs/airferry/{commit}"
    try:
        argv = [*common, "--depth=1", "--", remote, f"+{commit}:{pin}"]
        run_git(argv, url=url, repository=repository, emit=emit, doing="fetch from")
    except DamagedRepository:
        raise
    except BuildError as refusal:
        complete = ["--unshallow"] if (repository / "shallow").is_file() else []
        refspecs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
        run_git(
            [*common, *complete, "--", remote, *refspecs],
            url=url,
            repository=repository,
            emit=emit,
            doing="fetch from",
        )
        found = try_git(["cat-file", "-e", f"{commit}^{{commit}}"], url=url, repository=repository)
        if found.returncode != 0:
            raise BuildError(
                f"`{redact(url)}` has no commit `{commit}`",
                hint="check the ref; run `airferry lock --update` if the branch was rewritten",
                url=redact(url),
                commit=commit,
            ) from refusal
        run_git(["update-ref", pin, commit], url=url, repository=repository)


def has_commit(repository: Path, commit: str) -> bool:
    """Tell whether a repository of the cache has a commit, fetched for itself."""
    argv = ["rev-parse", "--verify", "--quiet", f"refs/airferry/{commit}^{{commit}}"]
    return try_git(argv, url="", repository=repository).returncode == 0


def _expand(url: str, short: str, *, cache: Path, emit: Emit) -> str | None:
    """Return the commit that a shortened id stands for, from the whole history, or None."""
    with locked_repository(url, cache, emit=emit) as repository:
        complete = ["--unshallow"] if (repository / "shallow").is_file() else []
        refspecs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
        argv = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", *complete]
        argv += ["--", remote_address(url), *refspecs]
        run_git(argv, url=url, repository=repository, emit=emit, doing="fetch from")
        argv = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{short}^{{commit}}"]
        done = try_git(argv, url=url, repository=repository)
        # `--end-of-options` itself is printed by the versions of Git before 2.30
        found = [line for line in done.text.split() if _COMMIT.fullmatch(line)]
        return found[0] if done.returncode == 0 and found else None


def _export(
    url: str, commit: str, *, cache: Path, into: Path, prefix: str = "", found: list[Submodule] | None = None
) -> list[Submodule]:
    """Export a commit and what is below it; `found` are the submodules of the whole so far, which this one extends."""
    found = [] if found is None else found
    files.ensure_directory(into)
    with locked_repository(url, cache) as repository:
        if len(found) > MAX_SUBMODULES or not has_commit(repository, commit):
            raise BuildError(f"`{redact(url)}` at `{commit}` is not in the cache", hint="rerun with network")
        with files.scratch_directory(repository) as scratch:
            checkout = WorkTree(into, index=scratch / "index")
            run_git(["read-tree", commit], url=url, repository=repository, checkout=checkout)
            argv = ["checkout-index", "--all", "--force", "--quiet"]
            run_git(argv, url=url, repository=repository, checkout=checkout, doing="export")
        below = _submodules(repository, url, commit)
    for item in below:
        target = into / item.path
        if target.is_symlink() or not files.lies_within(target.parent, into):
            raise BuildError(
                f"submodule `{item.path}` of `{redact(url)}` points outside the tree",
                hint="its path in `.gitmodules` leads through a link: correct it in that repository",
            )
        found.append(Submodule(prefix + item.path, redact(item.url), item.commit))
        _export(item.url, item.commit, cache=cache, into=target, prefix=f"{prefix}{item.path}/", found=found)
    return found


def _submodules(repository: Path, url: str, commit: str) -> list[Submodule]:
    """Return the submodules that a commit records, their addresses made absolute."""
    listing = run_git(["ls-tree", "-r", "-z", "--full-tree", commit], url=url, repository=repository).text
    links = {}
    for line in listing.split("\0"):
        fields, _, path = line.partition("\t")
        if fields.startswith("160000 "):
            links[path] = fields.split()[2]
    if not links:
        return []
    argv = ["config", "--blob", f"{commit}:.gitmodules", "--null", "--list"]
    done = try_git(argv, url=url, repository=repository)
    settings = dict(line.split("\n", 1) for line in done.text.split("\0") if "\n" in line)
    addresses = {
        path: settings.get(key.removesuffix(".path") + ".url", "")
        for key, path in settings.items()
        if key.startswith("submodule.") and key.endswith(".path")
    }
    found = []
    for path, recorded in sorted(links.items()):
        address = addresses.get(path, "")
        if not address:
            raise BuildError(
                f"`{redact(url)}` at `{commit}` records a submodule at `{path}`, but its `.gitmodules` has no address",
                hint="use a commit whose `.gitmodules` is complete",
            )
        found.append(Submodule(path, submodule_address(url, address), recorded))
    return found


def _settle(tree: Path, *, what: str) -> list[str]:
    """Give every entry its mode and time, refuse links that lead out, and return the Git LFS pointers."""
    epoch_s = clock.source_date_epoch_s()
    pointers = []
    entries = sorted(_walk(tree), reverse=True)
    for entry in [*entries, tree]:
        mode = entry.lstat().st_mode
        if stat.S_ISLNK(mode):
            target = entry.readlink()
            lexical = PurePosixPath(os.path.normpath(entry.parent.relative_to(tree) / target))
            if target.is_absolute() or lexical.parts[:1] == ("..",) or _leads_out(entry, tree):
                raise BuildError(
                    f"`{what}` holds the symlink `{entry.relative_to(tree)}`, which "
                    f"points outside the tree: `{target}`",
                    hint="use a commit without it, or a fork",
                )
        elif stat.S_ISDIR(mode):
            entry.chmod(0o755)
        else:
            entry.chmod(0o755 if mode & 0o100 else 0o644)
            if entry.lstat().st_size <= LFS_POINTER_MAX_BYTES and entry.read_bytes().startswith(LFS_POINTER):
                pointers.append(entry.relative_to(tree).as_posix())
        os.utime(entry, (epoch_s, epoch_s), follow_symlinks=False)
    return sorted(pointers)


def _leads_out(entry: Path, tree: Path) -> bool:
    """Tell whether a link ends outside the tree. A circle ends nowhere, and each link on it is looked at for itself."""
    try:
        return not files.resolved(entry).is_relative_to(files.resolved(tree))
    except HostError:
        return False


def _walk(path: Path) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(path):
        found += [Path(folder, name) for name in (*folders, *names)]
    return found


def _repository(url: str, cache: Path) -> Path:
    return cache / "git" / f"{hashlib.sha256(remote_address(url).encode()).hexdigest()[:32]}.git"


@contextmanager
def locked_repository(url: str, cache: Path, *, emit: Emit = silent) -> Iterator[Path]:
    """Hold the lock of a repository's bare copy in the cache, made if it is missing, cleared of what kills left."""
    repository = _repository(url, cache)
    with making(cache, Thing.REPOSITORY, repository.name, doing=f"reading `{redact(url)}`", emit=emit):
        if not repository.is_dir():
            bare = repository.with_suffix(".new")
            files.remove_tree(bare)
            run_git(["init", "--quiet", "--bare", "--template=", str(bare)], url=url)
            files.write_text(bare / "info" / "attributes", _RAW_ATTRIBUTES)
            files.publish(bare, repository)
        files.remove_stale_temporaries(repository)
        for pattern in ("*.lock", "refs/**/*.lock", "objects/pack/tmp_*"):
            for left_over in repository.glob(pattern):
                left_over.unlink(missing_ok=True)
        yield repository
