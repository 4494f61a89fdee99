"""The engine for real, as an ordinary user: with Buildah and with Podman."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airferry.engine.driver import ContainerBuild, ContainerOptions, Engine, Volume, base_tag, open_engine
from airferry.engine.storage import Isolation
from airferry.errors import BuildError, IntegrityError, RegistryError
from airferry.events import Event, Progress
from airferry.host import process
from airferry.oci.digest import digest_hex, digest_of
from airferry.oci.documents import parse_image_config
from airferry.oci.platform import Platform
from debian_bases import AMD64, ARM64, EPOCH_S, DebianBase
from pulled_images import pull_from_layout
from running import processes


@pytest.fixture(scope="module", params=["buildah", "podman"])
def engine(request: pytest.FixtureRequest, engine_state: Path, require_tool: Callable[[str], Path]) -> Iterator[Engine]:
    require_tool(request.param)
    with open_engine(engine_state, engine=request.param) as opened:
        yield opened


@pytest.fixture
def bases(engine: Engine, debian_base: DebianBase) -> dict[Platform, str]:
    return {
        platform: engine.import_base(debian_base.layout, descriptor.digest, platform=platform)
        for platform, descriptor in debian_base.manifests.items()
    }


def containerfile(folder: Path, text: str) -> Path:
    path = folder / "Containerfile"
    path.write_text("ARG BASE\nFROM ${BASE}\n" + textwrap.dedent(text))
    return path


def build(
    engine: Engine,
    base: DebianBase,
    folder: Path,
    text: str,
    platform: Platform = AMD64,
    *,
    name: str = "test",
    network: bool = False,
    **more: object,
) -> str:
    context = folder / "context"
    context.mkdir(exist_ok=True)
    return engine.build(
        ContainerBuild(
            containerfile(folder, text), context, {"BASE": base_tag(base.manifests[platform].digest)}, network=network
        ),
        platform=platform,
        tag=f"localhost/{name}-{platform.architecture}:latest",
        epoch_s=EPOCH_S,
        **more,  # type: ignore[arg-type]
    )


COUNT = "import socket; names = [n for _, n in socket.if_nameindex()]; print(names)"
MADE = f"""\
RUN python -B -c "{COUNT}" > /interfaces
RUN mkdir /added && echo payload > /added/file
RUN mkdir -p /tree/sub && echo 1 > /tree/sub/file && ln -s sub/file /tree/link
ENV MARK=1
"""


@pytest.fixture(scope="module")
def made(engine: Engine, debian_base: DebianBase, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image that tests look at."""
    engine.import_base(debian_base.layout, debian_base.manifests[AMD64].digest, platform=AMD64)
    return build(engine, debian_base, tmp_path_factory.mktemp("made"), MADE, name="made")


@pytest.mark.usefixtures("bases")
def test_import_is_idempotent_and_named_by_digest(engine: Engine, debian_base: DebianBase) -> None:
    digest = debian_base.manifests[AMD64].digest
    first = engine.import_base(debian_base.layout, digest, platform=AMD64)
    assert engine.import_base(debian_base.layout, digest, platform=AMD64) == first
    assert base_tag(digest) == f"localhost/base:{digest_hex(digest)[:12]}"
    assert engine.images()[base_tag(digest)] == first
    assert engine.find_image("localhost/absent:latest") is None


@pytest.mark.usefixtures("bases")
@pytest.mark.parametrize("platform", [AMD64, ARM64], ids=str)
def test_build_twice_gives_the_same_image_on_each_platform(
    engine: Engine, debian_base: DebianBase, tmp_path: Path, platform: Platform
) -> None:
    text = "RUN uname -m > /machine\n"
    first = build(engine, debian_base, tmp_path, text, platform)
    assert build(engine, debian_base, tmp_path, text, platform) == first
    assert engine.run(first, ["cat", "/machine"], platform=platform).text.strip() == platform.machine


@pytest.mark.usefixtures("bases")
def test_platforms_build_side_by_side(engine: Engine, debian_base: DebianBase, tmp_path: Path) -> None:
    def one(number: int) -> process.Completed:
        platform = (AMD64, ARM64)[number % 2]
        folder = tmp_path / str(number)
        folder.mkdir()
        # each under a name of its own, as an engine that commits two images to one name may mix them up
        text = f"RUN echo {number} > /number\n"
        image = build(engine, debian_base, folder, text, platform, name=f"test{number}")
        # by its exit code, as Buildah 1.28 now and then loses what is printed where several containers run at a time
        return engine.run(image, ["sh", "-c", f"test $(cat /number) = {number}"], platform=platform, check=False)

    with ThreadPoolExecutor(4) as pool:
        assert [done.returncode for done in pool.map(one, range(4))] == [0] * 4
    assert engine.storage.containers() == []


def test_there_is_no_network_unless_asked_for(engine: Engine, made: str) -> None:
    assert engine.run(made, ["cat", "/interfaces"], platform=AMD64).text.strip() == "['lo']"
    loopback = "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    code = f"{COUNT}; {loopback}"
    assert engine.run(made, ["python", "-c", code], platform=AMD64).text.strip() == "['lo']"
    with_network = engine.run(
        made, ["python", "-c", COUNT], platform=AMD64, options=ContainerOptions(network=True)
    ).text.strip()
    assert with_network != "['lo']" or len(list(Path("/sys/class/net").iterdir())) == 1


# code that is after the host: `BYSTANDER FOLDER PARENT`
HOSTILE = """
import os, sys

def attempt(call, *arguments):
    try:
        return call(*arguments)
    except OSError:
        return None

bystander, folder, parent = sys.argv[1:]
seen = [name for name in os.listdir('/proc') if name.isdigit()]
beyond = [name for name in seen if os.path.exists(f'/proc/{name}/root{folder}')]
os.makedirs('/tmp/deeper', exist_ok=True)
start = os.open('/', os.O_RDONLY)
attempt(os.chroot, '/tmp/deeper')
os.fchdir(start)
for _ in range(64):
    os.chdir('..')
attempt(os.chroot, '.')
shared = os.path.exists(f'/dev/shm/airferry-{bystander}')
# not printed: what is on its way to the engine is lost when its end is killed
os.makedirs('/found', exist_ok=True)
with open('/found/said', 'w') as said:
    print(len(seen) < 10, shared, beyond, os.path.exists(folder), file=said)
for pid in (1, int(bystander), *([os.getppid()] if parent == 'parent' else [])):
    attempt(os.kill, pid, 9)
"""
NOTHING_OF_THE_HOST = "True False [] False\n"


@pytest.mark.usefixtures("bases")
@pytest.mark.parametrize("network", [False, True])
def test_code_in_a_container_reaches_no_process_and_no_file_of_the_host(
    engine: Engine, debian_base: DebianBase, tmp_path: Path, network: bool
) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    shared = Path("/dev/shm", f"airferry-{bystander.pid}")
    shared.touch()
    found = tmp_path / "found"
    found.mkdir()
    try:
        engine.run(
            base_tag(debian_base.manifests[AMD64].digest),
            ["python", "-c", HOSTILE, str(bystander.pid), str(tmp_path), "parent"],
            platform=AMD64,
            options=ContainerOptions([Volume(found, "/found", writable=True)], network=network),
            check=False,
        )
        assert (found / "said").read_text() == NOTHING_OF_THE_HOST
        (tmp_path / "context").mkdir()
        (tmp_path / "context" / "hostile.py").write_text(HOSTILE)
        text = f"COPY hostile.py /\nRUN python /hostile.py {bystander.pid} {tmp_path} ''\n"
        made = build(engine, debian_base, tmp_path, text, network=network)
        assert engine.run(made, ["cat", "/found/said"], platform=AMD64).text == NOTHING_OF_THE_HOST
        assert bystander.poll() is None
    finally:
        shared.unlink()
        bystander.kill()
        bystander.wait()
    assert engine.storage.containers() == []


@pytest.mark.usefixtures("bases")
def test_an_engine_that_follows_links_of_an_image_finds_no_home(
    engine: Engine, debian_base: DebianBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2024-1753, which Debian 12's Buildah has: a bind mount of a link to `/` is one of the host's root."""
    home = tmp_path / "home"
    (home / "context").mkdir(parents=True)
    (home / "secret").touch()
    (home / "context" / "file").touch()
    monkeypatch.setenv("HOME", str(home))
    text = (
        "RUN ln -s / /link\nFROM ${BASE}\nCOPY file /\n"
        f"RUN --mount=type=bind,from=0,source=/link,target=/mnt test ! -e /mnt{home}/secret\n"
    )
    build(engine, debian_base, home, text)
    image = base_tag(debian_base.manifests[AMD64].digest)
    options = ContainerOptions([Volume(home / "context", "/given")])
    engine.run(image, ["test", "-e", "/given/file"], platform=AMD64, options=options)


@pytest.mark.usefixtures("bases")
def test_run_passes_volumes_environment_folder_input_and_exit_code(
    engine: Engine, debian_base: DebianBase, tmp_path: Path
) -> None:
    (tmp_path / "ro").mkdir()
    (tmp_path / "rw").mkdir()
    (tmp_path / "ro" / "file").write_text("from the host")
    script = "cat /ro/file; cat; pwd; echo $WORD; echo made > /rw/made; touch /ro/no 2>/dev/null && exit 9; exit 3"
    completed = engine.run(
        base_tag(debian_base.manifests[AMD64].digest),
        ["sh", "-c", script],
        platform=AMD64,
        options=ContainerOptions(
            [Volume(tmp_path / "ro", "/ro"), Volume(tmp_path / "rw", "/rw", writable=True)],
            env={"WORD": "a word"},
            workdir="/usr",
        ),
        streams=process.Streams(stdin=b" and stdin\n"),
        check=False,
    )
    assert completed.returncode == 3
    assert completed.text == "from the host and stdin\n/usr\na word\n"
    assert (tmp_path / "rw" / "made").read_text() == "made\n"
    assert engine.storage.containers() == []


@pytest.mark.usefixtures("bases")
def test_run_that_exceeds_its_time_leaves_nothing(engine: Engine, debian_base: DebianBase) -> None:
    started = time.monotonic()
    with pytest.raises(BuildError, match="did not finish within 2 s"):
        engine.run(base_tag(debian_base.manifests[AMD64].digest), ["sleep", "1234567"], platform=AMD64, timeout_s=2)
    assert time.monotonic() - started < 60
    assert engine.storage.containers() == []
    assert not processes("1234567")


def test_export_hands_over_new_layers_and_no_base(
    engine: Engine, made: str, debian_base: DebianBase, tmp_path: Path
) -> None:
    base_diff_ids = debian_base.diff_ids(AMD64)
    exported = engine.export(made, base_diff_ids=base_diff_ids, into=tmp_path / "out")
    config = parse_image_config(exported.config_bytes)
    assert config.rootfs.diff_ids[: len(base_diff_ids)] == base_diff_ids
    assert [layer.diff_id for layer in exported.layers] == config.rootfs.diff_ids[len(base_diff_ids) :]
    assert config.config and "MARK=1" in config.config["Env"]
    assert config.history and "airferry bootstrap" in config.history[0]["created_by"]
    layer = exported.layers[0]
    assert digest_of(layer.path.read_bytes()) == layer.descriptor.digest
    with tarfile.open(layer.path) as archive:
        content = archive.extractfile("added/file")
        assert content and content.read() == b"payload\n"
    for diff_id in base_diff_ids:
        assert (tmp_path / "out" / "blobs" / "sha256" / digest_hex(diff_id)).stat().st_size == 0
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) < 100_000


def test_export_refuses_another_base(
    engine: Engine, bases: dict[Platform, str], debian_base: DebianBase, tmp_path: Path
) -> None:
    # the image's own layer is named too, so that the engine need not compress it
    another = ["sha256:" + "1" * 64, *debian_base.diff_ids(AMD64)]
    with pytest.raises(BuildError, match="does not start with the layers of its base"):
        engine.export(bases[AMD64], base_diff_ids=another, into=tmp_path / "out")


@pytest.mark.usefixtures("bases")
def test_a_failing_step_is_shown_with_its_last_lines(engine: Engine, debian_base: DebianBase, tmp_path: Path) -> None:
    seen: list[Event] = []
    with pytest.raises(BuildError) as caught:
        build(engine, debian_base, tmp_path, "RUN true\nRUN echo the reason >&2; exit 7\n", emit=seen.append)
    assert "`RUN echo the reason >&2; exit 7` failed" in caught.value.message
    assert "| the reason" in caught.value.message
    assert [event.done for event in seen if isinstance(event, Progress)] == [1, 2, 3]
    assert engine.storage.containers() == []


def test_mount_copy_takes_a_tree_out_and_stays_inside(engine: Engine, made: str, tmp_path: Path) -> None:
    engine.mount_copy(made, "/tree", tmp_path / "copied")
    assert (tmp_path / "copied" / "sub" / "file").read_text() == "1\n"
    assert (tmp_path / "copied" / "link").readlink() == Path("sub/file")
    with pytest.raises(BuildError):
        engine.mount_copy(made, "/absent", tmp_path / "absent")
    assert engine.storage.containers() == []


def test_images_come_from_a_layout_by_name_whatever_its_path(
    engine: Engine, debian_base: DebianBase, tmp_path: Path
) -> None:
    from airferry.oci.layout import LayoutStore, named

    store = LayoutStore.create(tmp_path / "Upper Case")
    (tmp_path / "Upper Case" / "blobs" / "sha256").rmdir()
    (tmp_path / "Upper Case" / "blobs" / "sha256").symlink_to(debian_base.layout / "blobs" / "sha256")
    store.write_index([named(debian_base.manifests[AMD64], "example.test/debian:1")])
    image = pull_from_layout(engine, store.path, "example.test/debian:1", platform=AMD64)
    done = engine.run(image, ["python", "-c", "import sys; sys.exit(6 * 7)"], platform=AMD64, check=False)
    assert done.returncode == 42


@pytest.fixture
def registry(tmp_path: Path, require_tool: Callable[[str], Path]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "registry.yml"
    storage = f"storage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}"
    config.write_text(f"version: 0.1\n{storage}\nhttp: {{addr: '{address}'}}\n")
    server = process.start([require_tool("docker-registry"), "serve", config], log=tmp_path / "registry.log")
    try:
        host, port = address.split(":")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                break
            time.sleep(0.05)
        yield address
    finally:
        process.end_process_group(server)


@pytest.mark.usefixtures("bases")
def test_images_come_from_a_registry(engine: Engine, debian_base: DebianBase, registry: str) -> None:
    base = base_tag(debian_base.manifests[AMD64].digest)
    image = engine.find_image(base)
    quickly = ["--compression-format", "zstd"]
    engine.storage.invoke(["push", "--tls-verify=false", *quickly, "-q", base, f"docker://{registry}/team/debian:1"])
    assert engine.pull_from_registry(f"{registry}/team/debian:1", platform=AMD64, plain_http=True) == image
    with pytest.raises(RegistryError, match="manifest unknown"):
        engine.pull_from_registry(f"{registry}/team/absent:1", plain_http=True)
    engine.remove_image(f"{registry}/team/debian:1")
    assert engine.find_image(base) == image


def test_import_refuses_what_the_layout_lacks_and_other_platforms(engine: Engine, debian_base: DebianBase) -> None:
    # late, as Podman takes the image away under all its names
    with pytest.raises(IntegrityError, match="does not hold the manifest"):
        engine.import_base(debian_base.layout, "sha256:" + "0" * 64, platform=AMD64)
    with pytest.raises(BuildError, match="is for `linux/arm64`, expected `linux/amd64`"):
        engine.import_base(debian_base.layout, debian_base.manifests[ARM64].digest, platform=AMD64, name="wrong")


@pytest.mark.usefixtures("bases")
def test_another_process_shares_the_storage_and_takes_nothing_away(engine: Engine, debian_base: DebianBase) -> None:
    digest = debian_base.manifests[AMD64].digest
    temporary = engine.storage.temporary / "in-use"
    temporary.touch()
    with engine._working_container(base_tag(digest)):
        with open_engine(engine.storage.state, engine=engine.program.kind) as other:
            assert other.storage.temporary != engine.storage.temporary
            assert other.import_base(debian_base.layout, digest, platform=AMD64) == engine.find_image(base_tag(digest))
            assert other.run(base_tag(digest), ["true"], platform=AMD64).returncode == 0
            assert len(other.storage.containers()) == 1
        assert not other.storage.temporary.exists()
        assert len(engine.storage.containers()) == 1
    assert temporary.exists()
    temporary.unlink()


def test_isolation_that_the_user_names_is_taken(engine: Engine) -> None:
    assert engine.storage.isolation in (Isolation("chroot"), *[Isolation("rootless", r) for r in ("crun", "runc")])


BUILD_FOREVER = """
import sys
from pathlib import Path
from airferry.engine.driver import ContainerBuild, base_tag, open_engine
from airferry.oci.platform import parse_platform

kind, state, layout, digest, folder = sys.argv[1:]
platform = parse_platform("linux/amd64")
with open_engine(Path(state), engine=kind) as engine:
    engine.import_base(Path(layout), digest, platform=platform)
    source = ContainerBuild(Path(folder, "Containerfile"), Path(folder), {"BASE": base_tag(digest)})
    engine.build(source, platform=platform, tag="localhost/never:1", epoch_s=0)
"""


@pytest.mark.parametrize("kind", ["buildah", "podman"])
def test_a_killed_build_leaves_nothing_after_the_next_start(
    kind: str, debian_base: DebianBase, tmp_path: Path, require_tool: Callable[[str], Path]
) -> None:
    require_tool(kind)
    state, context = tmp_path / "state", tmp_path / "context"
    context.mkdir()
    mark = f"98765{os.getpid()}"
    (context / "Containerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\nRUN sleep {mark}\n")
    digest = debian_base.manifests[AMD64].digest
    child = subprocess.Popen(
        [sys.executable, "-c", BUILD_FOREVER, kind, str(state), str(debian_base.layout), digest, str(context)]
    )
    try:
        deadline = time.monotonic() + 60
        while not processes(f"sleep {mark}"):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    with open_engine(state, engine=kind) as engine:  # type: ignore[arg-type]
        try:
            assert engine.storage.containers() == []
            assert list(engine.storage.temporary.iterdir()) == []
            assert not processes(f"sleep {mark}")
            assert not processes(f"{engine.storage.root} ")
            assert engine.find_image(base_tag(digest)) is not None
        finally:
            engine.storage.remove_all()
    assert str(state) not in Path("/proc/self/mounts").read_text()
