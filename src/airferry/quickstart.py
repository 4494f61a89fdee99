"""The quickstart: the whole job on the built-in example, near side and far side, on this machine alone.

It needs package registries, but no image registry: bases are Debian userlands, and the private registry of the far
side is a real one that it starts on loopback and ends again.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from airferry.bundle.receipt import Receipt
from airferry.engine.driver import ContainerOptions, Engine, Volume, open_engine
from airferry.errors import HostError
from airferry.events import Emit, StageFinished, StageStarted, silent
from airferry.far.load import LoadOutcome, load
from airferry.far.verify import verify
from airferry.host import clock, files, process
from airferry.host.installation import PACKAGE
from airferry.host.threads import parallel_map, usable_cores
from airferry.host.yaml import render_yaml
from airferry.near.build import BuildOutcome, build
from airferry.near.planning import Selection, plan
from airferry.near.session import BuildOptions, parse_engine
from airferry.oci.platform import Platform, parse_platform
from airferry.wording import size_text

WORKSPACE = "/workspace/ferry"  # as the example's airgap.yaml says
PYTHON = "/usr/bin/python3"
REGISTRY_PROGRAMS = ("docker-registry", "registry")
REGISTRY_START_S = 20.0
STEP_S = 600.0
PREFIX = "airgap"
TAG = "v1.0"
PLACEHOLDER = "@TOKENIZER_URL@"
IDENTITY = {
    "GIT_AUTHOR_NAME": "airferry",
    "GIT_AUTHOR_EMAIL": "airferry@localhost",
    "GIT_COMMITTER_NAME": "airferry",
    "GIT_COMMITTER_EMAIL": "airferry@localhost",
    "GIT_AUTHOR_DATE": "2000-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}


@dataclass(frozen=True, slots=True)
class StepRun:
    """A step that ran on the far side: on which platform, for how long, and what it printed."""

    step: str
    platform: Platform
    elapsed_s: float
    output: str


def quickstart(
    folder: Path,
    *,
    platforms: Sequence[str] = (),
    engine: str = "auto",
    may_share_processes: bool = False,
    emit: Emit = silent,
) -> list[str]:
    """Lay the example out in a folder, build, verify, load, run each step without network, and return the story.

    What an earlier run left in the folder is reused.

    Raises:
        HostError: the host lacks something; the hint says what to type.
        AirferryError: of the family of what failed.
    """
    started = clock.monotonic_s()
    folder = folder.absolute()
    selection = Selection(config=lay_out(folder), platforms=tuple(platforms))
    planned = plan(selection).plan
    options = BuildOptions(engine=engine, may_share_processes=may_share_processes)
    built = build(selection, options=options, emit=emit)
    checked = verify(built.output, root=built.root, emit=emit)
    checked.raise_if_wrong()
    near_s = clock.monotonic_s() - started
    receipt = folder / "far" / "airgap-receipt.yaml"
    with _registry(files.ensure_directory(folder / "registry"), emit=emit) as host:
        # of an earlier run, whose registry listened on another port
        receipt.unlink(missing_ok=True)
        loaded = load(
            built.output,
            to=f"{host}/{PREFIX}",
            root=built.root,
            receipt=receipt,
            emit=emit,
        )
        runs = _run_steps(
            folder / "far",
            loaded.receipt,
            steps=[step.target.step_id for step in planned.steps],
            platforms=planned.platforms,
            options=options,
            emit=emit,
        )
    return _story(folder, built, loaded, runs, near_s=near_s, total_s=clock.monotonic_s() - started)


def lay_out(folder: Path) -> Path:
    """Write the example into a folder, its two Git repositories made on the spot, and return its airgap.yaml.

    Idempotent: what already exists and the same is left alone. Git ids are the same on every machine.
    """
    example = PACKAGE / "example"
    tokenizer = folder / "tokenizer"
    _repository(example / "tokenizer", tokenizer, replacements={})
    _repository(example / "catalogue", folder / "catalogue", replacements={PLACEHOLDER: tokenizer.as_uri()})
    files.write_bytes(folder / "airgap.yaml", (example / "airgap.yaml").read_bytes())
    return folder / "airgap.yaml"


def _repository(source: Path, into: Path, *, replacements: dict[str, str]) -> None:
    contents: dict[Path, str] = {}
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            text = path.read_text(encoding="utf-8")
            for old, new in replacements.items():
                text = text.replace(old, new)
            contents[path.relative_to(source)] = text
    if (into / ".git").is_dir() and all(
        (into / name).is_file() and (into / name).read_text(encoding="utf-8") == text for name, text in contents.items()
    ):
        return
    files.remove_tree(into)
    for name, text in contents.items():
        files.ensure_directory((into / name).parent)
        (into / name).write_text(text, encoding="utf-8")
    for arguments in (
        ["init", "--quiet", "--initial-branch", "main", "."],
        ["add", "--all"],
        ["commit", "--quiet", "--message", "Add the example"],
        ["tag", TAG],
    ):
        process.run(["git", *arguments], timeout_s=60, cwd=into, environment=IDENTITY)


@contextmanager
def _registry(data: Path, *, emit: Emit) -> Iterator[str]:
    """Run a registry on a free port of the loopback interface, with its data in a folder, and give its host."""
    program = next((path for name in REGISTRY_PROGRAMS if (path := process.find_program(name))), None)
    if program is None:
        raise HostError(
            "the quickstart loads into a registry that it starts itself, and `docker-registry` is not installed",
            hint="on Debian and Ubuntu: `sudo apt-get install docker-registry`, or run `scripts/setup`",
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    host = f"127.0.0.1:{port}"
    configuration = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(data / "blobs")}, "delete": {"enabled": True}},
        "http": {"addr": host},
    }
    files.write_text(data / "config.yml", render_yaml(configuration))
    child = process.start([program, "serve", data / "config.yml"], log=data / "registry.log")
    try:
        deadline = clock.monotonic_s() + REGISTRY_START_S
        while not _answers(port):
            if child.poll() is not None or clock.monotonic_s() > deadline:
                raise HostError(f"`{program}` did not start on {host}", hint=f"see `{data / 'registry.log'}`")
            time.sleep(0.05)
        yield host
    finally:
        process.end_process_group(child)


def _answers(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1.0)
        return client.connect_ex(("127.0.0.1", port)) == 0


def _run_steps(
    far: Path,
    receipt: Receipt,
    *,
    steps: Sequence[str],
    platforms: Sequence[Platform],
    options: BuildOptions,
    emit: Emit,
) -> list[StepRun]:
    """Run each step from the loaded image, by digest, with the code that the launcher carries, without network.

    On a platform the steps run one after the other, as each reads what the one before it wrote; platforms go side by
    side.
    """
    with open_engine(
        files.cache_directory() / "far-engine",
        engine=parse_engine(options.engine),
        may_share_processes=options.may_share_processes,
        emit=emit,
    ) as opened:
        code = _code(opened, receipt, far)

        def run_all(platform: Platform) -> list[StepRun]:
            data = far / "data" / platform.slug
            files.remove_tree(data)
            files.ensure_directory(data)
            return [
                _run_step(opened, receipt.steps[step], step, platform, volumes=_volumes(code, data), emit=emit)
                for step in steps
            ]

        return [run for runs in parallel_map(run_all, platforms, jobs=usable_cores()) for run in runs]


def _volumes(code: Path, data: Path) -> list[Volume]:
    return [Volume(code, WORKSPACE), Volume(data, "/data", writable=True)]


def _run_step(
    engine: Engine, reference: str, step: str, platform: Platform, *, volumes: Sequence[Volume], emit: Emit
) -> StepRun:
    started = clock.monotonic_s()
    emit(StageStarted(f"run {step} on {platform}", "without network"))
    image = engine.pull_from_registry(reference, platform=platform, plain_http=True)
    folder = f"{WORKSPACE}/src/ferrysteps/{step}"
    done = engine.run(
        image,
        [PYTHON, f"{folder}/step.py", "--config", f"{folder}/config/tiny.yaml"],
        platform=platform,
        options=ContainerOptions(
            volumes,
            env={
                "FERRY_CATALOGUE": WORKSPACE,
                "FERRY_DATA": "/data",
                "PYTHONPATH": f"{WORKSPACE}/src",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        ),
        timeout_s=STEP_S,
    )
    elapsed_s = clock.monotonic_s() - started
    emit(StageFinished(f"run {step} on {platform}", elapsed_s))
    return StepRun(step, platform, elapsed_s, done.text.strip())


def _code(engine: Engine, receipt: Receipt, far: Path) -> Path:
    """Take the catalogue out of the launcher image, as the operator on the far side gets it."""
    launcher = next(image for image in receipt.images if image.role == "launcher")
    platform = parse_platform(launcher.platforms[0])
    image = engine.pull_from_registry(launcher.pinned, platform=platform, plain_http=True)
    code = far / "workspace"
    files.remove_tree(code)
    engine.mount_copy(image, WORKSPACE, code)
    return code


def _story(
    folder: Path, built: BuildOutcome, loaded: LoadOutcome, runs: Sequence[StepRun], *, near_s: float, total_s: float
) -> list[str]:
    tars = sum(image.unpacked_bytes for image in built.images)
    count = sum(len(image.platforms) for image in built.images)
    lines = [
        "",
        "Near side",
        f"  {len(built.images)} images for {len(built.images[0].platforms)} platforms, built rootless and daemonless in"
        f" {near_s:.0f} s ({built.reused} of {count} reused):",
        *(f"    {image.reference}  {size_text(image.size_bytes)}  {image.digest}" for image in built.images),
        f"  one bundle of {size_text(built.bundle_bytes)}; as {count} uncompressed TARs, one per image and platform, it"
        f" would be {size_text(tars)}: {tars / max(1, built.bundle_bytes):.1f} times as much",
        *_own_share(built),
        f"  root digest, to send over a separate channel: {built.root}",
        "",
        "Far side",
        f"  verified, then loaded into a registry on localhost: {loaded.summary}",
        "  each step, run by digest from the loaded image, without network, with the code from the launcher image:",
    ]
    for run in runs:
        lines.append(f"    {run.platform}  {run.step}  ({run.elapsed_s:.1f} s)")
        lines += [f"      | {line}" for line in run.output.splitlines()]
    places = {
        folder / "airgap.yaml": "what was requested",
        built.output / "airgap-manifest.yaml": "what was built, every digest",
        built.output / "airgap.lock.yaml": "pinned bases, commits and versions",
        built.bundle: "the bundle, an OCI image layout",
        loaded.receipt_path: "what the registry holds, and what to submit each step with",
        folder / "far" / "data": "what the steps computed",
    }
    width = max(len(str(path)) for path in places)
    lines += [
        "",
        f"All done in {total_s:.0f} s. Where to look:",
        *(f"  {path!s:<{width}}  {what}" for path, what in places.items()),
        f"Run the same command again to reuse all of it. To start over, remove {folder}.",
    ]
    return lines


def _own_share(built: BuildOutcome) -> list[str]:
    loader = built.manifest.loader if built.manifest else None
    if loader is None:
        return []
    return [f"  of it, {size_text(loader.size_bytes)} are airferry itself, for a far side that has nothing"]
