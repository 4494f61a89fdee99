"""The loader out of a bundle, where there is no network, no pip and nothing of ours: it installs and loads."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from airferry.bundle.manifest import BundleManifest, ToolEntry
from airferry.bundle.receipt import read_receipt
from airferry.bundle.seal import seal
from airferry.bundle.verify import open_bundle, verify_bundle
from airferry.config.models import LoaderChoice
from airferry.events import Emit, Event, StageFinished, silent
from airferry.host import process
from airferry.host.journal import Journal
from airferry.near.carry.loader import CarriedLoader, carry_loader
from airferry.near.wheels.pip import Pip
from airferry.near.wheels.store import WheelStore
from airferry.oci.layout import LayoutStore
from by_hand import unpack_loader
from debian_bases import AMD64, DebianBase
from oci_images import REFERENCE, make_image

RequireTool = Callable[[str], Path]
TIMEOUT_S = 300
MACHINE = """
set -eu
ip link set lo up
[ "$(ip route show | wc -l)" = 0 ]
mount --rbind /dev "$ROOT/dev"
mount -t proc proc "$ROOT/proc"
exec chroot "$ROOT" /bin/sh -eu /far/run
"""
FAR_SIDE = """
export HOME=/far/home PATH=/usr/bin:/bin
for absent in pip yaml pydantic requests; do
  if python3 -c "import $absent" 2>/dev/null; then exit 9; fi
done
cd /far
LOADER_BY_HAND
/far/docker-registry serve /far/registry.yml >/far/registry.log 2>&1 &
registry=$!
trap 'kill $registry' EXIT
python3 - <<'PYTHON'
import socket, time
for attempt in range(200):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 5055)) == 0:
            break
    time.sleep(0.05)
PYTHON
/far/airferry/bin/airferry verify out --root "$(cat root)"
/far/airferry/bin/airferry load out --root "$(cat root)" --to 127.0.0.1:5055/airgap --receipt /far/receipt.yaml
code=0
/far/airferry/bin/airferry build 2>/far/build.txt || code=$?
[ "$code" = 4 ] && grep -qF "airferry[near]" /far/build.txt
/far/airferry/bin/airferry serve --help >/dev/null
/far/airferry/bin/airferry report out --root "$(cat root)" --html /far/report.html
"""
REGISTRY = """
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: /far/registry}}
http: {addr: '127.0.0.1:5055'}
"""


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seal a bundle of a small image and the loader for this machine, as `airferry build` does."""
    folder = tmp_path_factory.mktemp("carried")
    store = LayoutStore.create(folder / "out" / "bundle")
    index, image = make_image(store)
    choice = LoaderChoice(pythons=(f"{sys.version_info[0]}.{sys.version_info[1]}",))
    wheels = WheelStore(folder / "cache", Pip())
    journal = Journal(folder / "journal.yaml")
    loader = carry_loader(
        choice, [AMD64], store, journal=journal, wheels=wheels, scratch=folder / "scratch", emit=silent
    )
    entry, descriptor = loader.artifact
    manifest = BundleManifest(
        workflow={},
        build_stages=(),
        images=(image,),
        artifacts=(entry,),
        compression="zstd",
        tool=ToolEntry(airferry="0.1.0"),
        locks=(loader.lock,),
        loader=loader.entry,
    )
    sealed = seal(store, {REFERENCE: index}, artifacts=[descriptor], manifest=manifest)
    (folder / "out" / "airgap-manifest.yaml").write_bytes(manifest.with_root(sealed.root).to_yaml())
    return folder


def test_it_is_made_again_without_an_index_to_the_same_bytes(carried: Path, tmp_path: Path) -> None:
    bundle = open_bundle(carried / "out")
    store = LayoutStore.create(tmp_path / "bundle")
    choice = LoaderChoice(pythons=(f"{sys.version_info[0]}.{sys.version_info[1]}",))
    wheels = WheelStore(carried / "cache", Pip(options=("--no-index",)))

    def carry(wheels: WheelStore, emit: Emit = silent) -> CarriedLoader:
        journal = Journal(tmp_path / "journal.yaml")
        return carry_loader(
            choice, [AMD64], store, journal=journal, wheels=wheels, scratch=tmp_path / "scratch", emit=emit
        )

    again = carry(wheels)
    assert again.entry == bundle.manifest.loader and again.artifact[0] == bundle.manifest.artifacts[0]
    assert verify_bundle(carried / "out").ok
    events: list[Event] = []
    none_at_all = WheelStore(tmp_path / "empty", Pip(options=("--no-index",)))
    assert carry(none_at_all, events.append) == again, "what is in the layout is not made again"
    assert [event.reused for event in events if isinstance(event, StageFinished)] == [True]
    store.blob_path(again.entry.digest).unlink()
    assert carry(wheels) == again and store.blob_path(again.entry.digest).is_file()


def test_tar_alone_unpacks_it_and_every_file_is_listed(carried: Path, tmp_path: Path) -> None:
    loader = open_bundle(carried / "out").manifest.loader
    assert loader is not None and loader.size_bytes < 24 << 20
    process.run(["tar", "-xf", carried / "out" / loader.archive, "-C", tmp_path], timeout_s=TIMEOUT_S)
    folder = tmp_path / "airferry-loader"
    process.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], timeout_s=TIMEOUT_S, cwd=folder)
    listed = {line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed | {"SHA256SUMS"} == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    wheels = (folder / "environments" / loader.environments[0]).read_text().split()
    assert sorted(path.name for path in (folder / "wheels").iterdir()) == wheels


def test_a_damaged_file_and_a_python_that_does_not_fit_are_refused(carried: Path, tmp_path: Path) -> None:
    loader = open_bundle(carried / "out").manifest.loader
    assert loader is not None
    process.run(["tar", "-xf", carried / "out" / loader.archive, "-C", tmp_path], timeout_s=TIMEOUT_S)
    install = ["sh", tmp_path / "airferry-loader" / "install", tmp_path / "target"]
    wrong = process.run(install, timeout_s=TIMEOUT_S, environment={"PYTHON": "/bin/false"}, check=False)
    assert wrong.returncode == 4 and "no Python fits" in wrong.tail[-1]
    damaged = next((tmp_path / "airferry-loader" / "wheels").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    refused = process.run(install, timeout_s=TIMEOUT_S, check=False)
    assert refused.returncode == 4 and "are damaged" in refused.tail[-1]
    assert not (tmp_path / "target").exists()


def test_it_installs_and_loads_where_there_is_no_way_out(
    carried: Path, debian_base: DebianBase, require_tool: RequireTool, tmp_path: Path
) -> None:
    """The machine is Debian's python3-minimal with the standard library, in a namespace without any route."""
    registry, ip = require_tool("docker-registry"), require_tool("ip")
    root = tmp_path / "root"
    root.mkdir()
    process.run(["tar", "-xf", debian_base.results[AMD64].tar, "-C", root], timeout_s=TIMEOUT_S)
    far = root / "far"
    far.mkdir()
    shutil.copytree(carried / "out", far / "out")
    shutil.copy(registry, far / "docker-registry")
    (far / "home").mkdir()
    bundle = open_bundle(carried / "out")
    (far / "run").write_text(FAR_SIDE.replace("LOADER_BY_HAND\n", unpack_loader(bundle.root)))
    (far / "registry.yml").write_text(REGISTRY)
    (far / "root").write_text(bundle.root)
    unshare = ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    environment = {"ROOT": str(root), "PATH": f"{ip.parent}:/usr/sbin:/usr/bin:/sbin:/bin"}
    done = process.run([*unshare, "sh", "-c", MACHINE], timeout_s=TIMEOUT_S, environment=environment)
    receipt = read_receipt(far / "receipt.yaml")
    assert receipt.root_verified and receipt.bundle_root == bundle.root
    assert receipt.images[0].pinned.startswith("127.0.0.1:5055/airgap/team/trainer@sha256:"), done.text
    assert bundle.root in (far / "report.html").read_text()
