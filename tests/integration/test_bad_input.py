"""What is wrong is said with its place and its remedy, under its exit code, and leaves what was there untouched."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import yaml
from registries import PASSWORD, USER, basic_options, free_port, run_registry

from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from airferry.errors import BuildError
from airferry.host import files
from airferry.near import session
from catalogues import mounting
from near_side import PROGRAM, NearSide, make_near_side, snapshot, temporaries
from oci_images import make_bundle
from scripted_registry import error_document, run_scripted, times
from wheel_factory import make_wheel

STEPS = "src/nemotron/steps"
OTHER_ROOT = "sha256:" + "0" * 64
UNCOMPARED = ["airgap-plan.yaml", ".airferry.lock"]


@pytest.fixture(scope="module")
def finished(near_base: Path, near_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> NearSide:
    """A near side whose plan is built."""
    side = make_near_side(tmp_path_factory.mktemp("finished") / "near", near_base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFERRY_CACHE", str(near_cache))
        for name, value in side.environment.items():
            patch.setenv(name, value)
        side.build()
    return side


@pytest.fixture
def side(finished: NearSide, near_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NearSide:
    """A copy of the finished near side, to do wrong in."""
    shutil.copytree(finished.root, tmp_path / "near", symlinks=True)
    monkeypatch.setenv("AIRFERRY_CACHE", str(near_cache))
    copy = NearSide(tmp_path / "near", finished.base, dict(finished.document))
    for name, value in copy.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(copy.catalogue)
    return copy


def text(side: NearSide, content: str) -> None:
    side.config.write_text(content)


def image(side: NearSide, **changes: object) -> None:
    """Change the execution image of the plan."""
    side.write(execution_images={"py": {**side.document["execution_images"]["py"], **changes}})


def stages(side: NearSide, *targets: str) -> None:
    side.write(workflow={"name": "tests", "stages": list(targets)})


def config(side: NearSide, content: str) -> None:
    (side.catalogue / STEPS / "train/run/config/tiny.yaml").write_text(content)


def step(side: NearSide, source: str) -> None:
    (side.catalogue / STEPS / "train/run/step.py").write_text(source)
    (side.out / "airgap.lock.yaml").unlink()


def no_wheel(side: NearSide) -> None:
    make_wheel(side.index, "foreign-addition", "1.0", tag="cp311-cp311-win_amd64")
    step(side, "import foreign_addition\n")
    image(side, requirements={"foreign_addition": "foreign-addition==1.0"})


def failing_containerfile(side: NearSide) -> None:
    path = side.catalogue / "Containerfile"
    path.write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN echo one && echo the last words >&2 && exit 7\n")
    side.write(builder="buildah")
    image(side, containerfile="Containerfile")


@dataclass(frozen=True)
class Case:
    """Something wrong: how it comes about, the exit code, and what the message says."""

    name: str
    arrange: Callable[[NearSide], None]
    code: int
    says: tuple[str, ...]


CASES = [
    Case(
        "unreadable yaml", lambda s: text(s, "workflow:\n  name: [x\n"), 3, ("airgap.yaml:3: not valid YAML", "hint:")
    ),
    Case("empty yaml", lambda s: text(s, ""), 3, ("airgap.yaml:1: the file is empty",)),
    Case("missing file", lambda s: s.config.unlink(), 3, ("there is no `airgap.yaml`", "--config")),
    Case(
        "unknown key",
        lambda s: s.write(execution_image={}),
        3,
        ("airgap.yaml:", "`execution_image`", "`execution_images`"),
    ),
    Case("wrong type", lambda s: s.write(platforms=3), 3, ("airgap.yaml:", "`platforms`")),
    Case("no such step", lambda s: stages(s, "train/runn:tiny"), 3, ("airgap.yaml:", "train/runn", "train/run")),
    Case("missing config", lambda s: stages(s, "train/run:tinny"), 3, ("airgap.yaml:", "tinny", "tiny")),
    Case(
        "cycle",
        lambda s: s.write(dependencies={"train/run": ["prep/pack:tiny"], "prep/pack": ["train/run:tiny"]}),
        3,
        ("airgap.yaml:", "train/run", "prep/pack", "→"),
    ),
    Case(
        "step without image",
        lambda s: s.write(step_execution_images={"prep/pack": "py"}),
        3,
        ("airgap.yaml:", "train/run"),
    ),
    Case("image without base", lambda s: s.write(execution_images={"py": {"tag": "x:1"}}), 3, ("base_image",)),
    Case("no such image", lambda s: s.write(step_execution_images={"train/run": "pie"}), 3, ("`pie`", "`py`")),
    Case(
        "overlay without ref",
        lambda s: config(s, mounting("https://example.invalid/a.git,/opt/a").replace("@main", "")),
        3,
        ("tiny.yaml:", "@"),
    ),
    Case(
        "overlay without target", lambda s: config(s, mounting("https://example.invalid/a.git@v1")), 3, ("tiny.yaml:",)
    ),
    Case(
        "ref that does not exist",
        lambda s: config(s, mounting(f"{s.thing.as_uri()}@nowhere,/opt/thing")),
        3,
        ("the lock file does not cover", "@nowhere", "airferry lock"),
    ),
    Case(
        "two overlays want one target",
        lambda s: config(s, mounting(f"{s.thing.as_uri()}@main,/opt/a", f"{s.thing.as_uri()}@v2,/opt/a")),
        3,
        ("tiny.yaml:6: ", "/opt/a"),
    ),
    Case(
        "checkout that nothing leads to",
        lambda s: (image(s, env={}), (s.out / "airgap.lock.yaml").unlink())[0],
        5,
        ("train/run/step.py:3: `thing`", "tiny.yaml:", "hint:", "`env: {PYTHONPATH: /opt/thing}`"),
    ),
    Case(
        "secret in an image's variables",
        lambda s: image(s, env={"HF_TOKEN": "x"}),
        3,
        ("airgap.yaml:", "`HF_TOKEN` is named like a secret", "provides"),
    ),
    Case("unknown platform", lambda s: s.write(platforms=["linux/mips9"]), 3, ("airgap.yaml:", "linux/mips9")),
    Case(
        "containerfile that fails",
        failing_containerfile,
        5,
        ("the last words", "RUN", "catalogue/Containerfile`"),
    ),
    Case("containerfile missing", lambda s: image(s, containerfile="Nowhere"), 3, ("Nowhere",)),
    Case(
        "platform that the base lacks",
        lambda s: (s.write(platforms=["linux/s390x"]), (s.out / "airgap.lock.yaml").unlink())[0],
        3,
        ("airgap.yaml:", "has no image for `linux/s390x`"),
    ),
    Case(
        "base that is not there",
        lambda s: (image(s, base_image="oci:/nowhere:x"), (s.out / "airgap.lock.yaml").unlink())[0],
        3,
        ("airgap.yaml:", "/nowhere", "hint:"),
    ),
    Case("core import missing", lambda s: step(s, "import torch\n"), 5, ("step.py:1: `torch`", "base_image")),
    Case("unnamed module", lambda s: step(s, "import zzz_unheard\n"), 5, ("step.py:1: `zzz_unheard`", "requirements")),
    Case(
        "addition that cannot be found",
        lambda s: (step(s, "import zzz\n"), image(s, requirements={"zzz": "zzz-nowhere==1.0"}))[0],
        5,
        ("zzz-nowhere", "`zzz` (src/nemotron/steps/train/run/step.py:1)"),
    ),
    Case(
        "addition without a wheel for the platform",
        no_wheel,
        5,
        ("foreign-addition", "win_amd64", "/step.py:1)", "requirements"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_build_of_a_wrong_plan(side: NearSide, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.arrange(side)
    # a build that began has noted the images that were made before the one that failed
    uncompared = [*UNCOMPARED, "airgap-build-state.yaml"] if case.code == BuildError.exit_code else UNCOMPARED
    before = snapshot(side.out, but=uncompared)
    assert run(["build"]) == case.code
    shown = capsys.readouterr().err
    for part in case.says:
        assert part in shown, shown
    assert "error:" in shown and "Traceback" not in shown
    after = snapshot(side.out, but=uncompared)
    assert {name: after.get(name) for name in before} == before
    assert temporaries(side.out) == []


def test_a_ref_that_does_not_exist_is_told_at_the_config_that_asks_for_it(
    side: NearSide, capsys: pytest.CaptureFixture[str]
) -> None:
    config(side, mounting(f"{side.thing.as_uri()}@maim,/opt/thing"))
    before = snapshot(side.out, but=UNCOMPARED)
    assert run(["lock"]) == 5
    shown = capsys.readouterr().err
    assert f"{STEPS}/train/run/config/tiny.yaml:5: " in shown and "has no ref `maim`" in shown and "`main`" in shown
    assert snapshot(side.out, but=UNCOMPARED) == before


@pytest.mark.parametrize("key", ["tag", "tar"])
def test_two_images_of_one_name(side: NearSide, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    group = yaml.safe_load((side.out / "airgap-plan.yaml").read_text())["execution_groups"][0]
    side.write(launcher_image={**side.document["launcher_image"], key: group[key]})
    before = snapshot(side.out, but=UNCOMPARED)
    assert run(["plan"]) == 3
    shown = capsys.readouterr().err
    assert "airgap.yaml:" in shown and group[key] in shown
    assert snapshot(side.out, but=UNCOMPARED) == before


# --- the host ---------------------------------------------------------------------------------------------------------


def test_an_output_folder_that_is_not_writable(side: NearSide, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(side.out)
    modes = {path: path.stat().st_mode for path in [side.out, *side.out.rglob("*")] if path.is_dir()}
    side.write(compression="gzip")
    try:
        for path in modes:
            path.chmod(0o555)
        assert run(["build"]) == 4
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    shown = capsys.readouterr().err
    assert str(side.out) in shown and "hint:" in shown
    assert snapshot(side.out) == before


def in_small_file_system(side: NearSide, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program where a folder is a full file system of 64 KiB, in a user namespace of its own."""
    script = """
        mount -t tmpfs -o size=64k tmpfs "$1" && cp "$2"/airgap.lock.yaml "$2"/airgap-plan.yaml "$1"
        head -c 1000000 /dev/zero >"$1/filler" 2>/dev/null
        folder=$1; plan=$(cat "$1/airgap-plan.yaml"); shift 2
        "$@"; code=$?
        [ "$plan" = "$(cat "$folder/airgap-plan.yaml")" ] || echo "the plan was touched" >&2
        ls -A "$folder" >&2
        exit $code
    """
    arguments = ("sh", "-c", script, "sh", str(folder), str(side.out), *PROGRAM, *arguments)
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *arguments],
        cwd=side.catalogue,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", ["plan", "build"])
def test_a_full_disk(side: NearSide, command: str, require_tool: Callable[[str], Path]) -> None:
    require_tool("unshare")
    full = side.root / "full"
    full.mkdir()
    side.write(paths={"output_dir": str(full)}, compression="gzip", workflow={"name": "other", "stages": ["prep/pack"]})
    done = in_small_file_system(side, full, command)
    assert done.returncode == 4, done.stderr
    assert "No space left on device" in done.stderr and "free up space" in done.stderr
    assert "the plan was touched" not in done.stderr and files.TEMPORARY_PREFIX + "tmp" not in done.stderr


def test_room_is_looked_for_before_anything_is_built(side: NearSide, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's layers are to be compressed in a way in which no cache has them."""
    monkeypatch.setattr(files, "free_bytes", lambda _path: 10**6)
    side.write(compression={"kind": "zstd", "level": 5})
    before = snapshot(side.out, but=UNCOMPARED)
    assert run(["build"]) == 4
    assert snapshot(side.out, but=UNCOMPARED) == before


def test_a_disk_that_fills_up_in_the_middle_of_a_build(side: NearSide, require_tool: Callable[[str], Path]) -> None:
    """The output folder is a file system with room for the smaller blobs alone, mounted in a user namespace."""
    script = """
        set -e
        mount -t tmpfs -o size=12m tmpfs "$1"
        cp -R "$2"/airgap.lock.yaml "$1"
        before=$(cat "$1"/airgap.lock.yaml)
        folder=$1; shift 2; set +e
        "$@"; code=$?
        [ "$before" = "$(cat "$folder"/airgap.lock.yaml)" ] && echo "the lock stands" >&2
        find "$folder" -name '.airferry-*' >&2
        exit $code
    """
    require_tool("unshare")
    small = side.root / "small"
    small.mkdir()
    side.write(compression="gzip")
    (side.out / "airgap.lock.yaml").unlink()
    side.lock()
    side.write(paths={"output_dir": str(small)})
    forget = (
        "from airferry.near import build, session\n"
        "session.check_for_build = build.ensure_room = lambda *_, **__: None\n"
    )
    program = [PROGRAM[0], "-c", forget]
    program[-1] += PROGRAM[-1]
    build = ["build", "--stage", "build-execution-images"]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", small, side.out, *program, *build],
        cwd=side.catalogue,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "No space left on device" in done.stderr and "free up space" in done.stderr
    assert "the lock stands" in done.stderr and ".airferry-" not in done.stderr.partition("the lock stands")[2]


def test_a_platform_that_nothing_emulates(
    side: NearSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "binfmt").mkdir()
    (tmp_path / "binfmt" / "register").touch()
    monkeypatch.setattr(session, "check_emulator", partial(session.check_emulator, binfmt=tmp_path / "binfmt"))
    side.write(builder="buildah", platforms=["linux/arm64", "linux/amd64"])
    assert run(["lock"]) in (0, 4), "a probe that runs nothing needs no emulator"
    before = snapshot(side.out, but=UNCOMPARED)
    capsys.readouterr()
    assert run(["build"]) == 4
    shown = capsys.readouterr().err
    assert "linux/arm64" in shown and "apt-get install qemu-user-static" in shown
    assert snapshot(side.out, but=UNCOMPARED) == before


# --- bundles ----------------------------------------------------------------------------------------------------------


def a_layer(bundle: Path) -> Path:
    """Return the file of a layer of the image."""
    sealed = open_bundle(bundle)
    layer = sealed.manifest.images[0].platforms["linux/amd64"].layers[0]
    return sealed.store.blob_path(layer.digest)


def flip(bundle: Path) -> None:
    path = a_layer(bundle)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose(bundle: Path) -> None:
    a_layer(bundle).unlink()


def truncate(bundle: Path) -> None:
    path = bundle / "index.json"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (flip, 6, "trainer"),
        (lose, 6, "trainer"),
        (truncate, 6, "index.json"),
        (lambda bundle: None, 6, "root"),
        (shutil.rmtree, 2, "bundle"),
    ],
    ids=["flipped bit", "missing blob", "truncated index", "another root", "no bundle"],
)
def test_a_damaged_bundle_is_refused_and_nothing_is_sent(
    damage: Callable[[Path], None], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    root = make_bundle(bundle).root
    damage(bundle)
    # a truncated index has another root, too; that it is one is told where no root is given
    wanted = [] if damage is truncate else ["--root", root if damage in (flip, lose, shutil.rmtree) else OTHER_ROOT]
    receipt = tmp_path / "receipt.yaml"
    assert run(["verify", str(bundle), *wanted]) == code
    captured = capsys.readouterr()
    assert says in captured.out + captured.err and "Traceback" not in captured.err
    with run_scripted() as registry:
        # that a byte is another one tells reading alone
        first = ["--verify-first"] if damage is flip else []
        arguments = ["--to", f"{registry.address}/x", *wanted, *first, "--receipt", str(receipt)]
        assert run(["load", str(bundle), *arguments]) == code
        # whether it may push is asked by an upload that is begun and ended at once
        assert {call.method for call in registry.calls} <= {"POST", "DELETE"}
        assert not registry.blobs and not registry.manifests and registry.sessions == {}
    assert not receipt.exists()


# --- registries -------------------------------------------------------------------------------------------------------


def load(bundle: Path, to: str, receipt: Path) -> int:
    return run(["load", str(bundle), "--to", to, "--receipt", str(receipt), "-j", "1"])


def test_a_registry_that_is_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(tmp_path / "bundle")
    before = snapshot(tmp_path)
    address = f"127.0.0.1:{free_port()}"
    assert load(tmp_path / "bundle", f"{address}/x", tmp_path / "receipt.yaml") == 7
    shown = capsys.readouterr().err
    assert address in shown and "refuses connections" in shown and "hint:" in shown
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("password", [None, "wrong-secret"])
def test_a_registry_that_refuses_the_credentials(
    password: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    require_tool: Callable[[str], Path],
) -> None:
    require_tool("docker-registry")
    make_bundle(tmp_path / "bundle")
    receipt = tmp_path / "receipt.yaml"
    authfile = tmp_path / "auth.json"
    with run_registry(tmp_path / "registry", extra=basic_options(tmp_path / "auth")) as registry:
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(authfile))

        def log_in(secret: str) -> None:
            token = base64.b64encode(f"{USER}:{secret}".encode()).decode()
            authfile.write_text(json.dumps({"auths": {registry.address: {"auth": token}}}))

        authfile.write_text("{}")
        if password:
            log_in(password)
        assert load(tmp_path / "bundle", f"{registry.address}/x", receipt) == 7
        shown = capsys.readouterr().err
        assert registry.address in shown and "hint:" in shown
        assert "wrong-secret" not in shown
        assert not receipt.exists()
        log_in(PASSWORD)
        assert load(tmp_path / "bundle", f"{registry.address}/x", receipt) == 0


def test_a_registry_that_fails_half_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(tmp_path / "bundle")
    receipt = tmp_path / "receipt.yaml"
    with run_scripted() as registry:
        broken = times(
            1000,
            lambda call: call.method == "PUT" and "/manifests/" in call.path,
            lambda exchange: exchange.answer(403, error_document("DENIED", "out of space")),
        )
        registry.faults.append(broken)
        assert load(tmp_path / "bundle", f"{registry.address}/x", receipt) == 7
        shown = capsys.readouterr().err
        assert "DENIED" in shown and "403" in shown
        assert registry.blobs and not registry.manifests and not receipt.exists()
        assert registry.sessions == {}
        registry.faults.clear()
        sent = registry.count("POST")
        assert load(tmp_path / "bundle", f"{registry.address}/x", receipt) == 0
        assert registry.count("POST") == sent + 1, "the blobs are there already, and the right to push is asked"
        assert receipt.exists()
