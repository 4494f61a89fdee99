"""The installed wheel, as an ordinary user: the quickstart does the whole job, and the far side needs no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from airferry.engine import inside
from airferry.engine.program import find_engine
from airferry.engine.storage import Storage
from airferry.events import silent

SOURCE = Path(__file__).parents[2]
BINFMT = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
STEPS = ("data_prep/pack", "sft/bigram", "eval/perplexity")
KEPT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "XDG_RUNTIME_DIR", "BUILDAH_ISOLATION", "CI")
CARRIED = ("PIP_", "SSL_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP", "http", "NO_PROXY", "no_proxy")
NO_ROUTE = """
import socket, sys
try:
    socket.create_connection(("192.0.2.1", 80), timeout=2)
except OSError:
    sys.exit(0)
sys.exit("there is a way out")
"""
FAR_SIDE = """
set -eu
python=$1; airferry=$2; out=$3; root=$4; work=$5
"$python" -c "$NO_ROUTE"
printf '{"version": "0.1", "log": {"level": "warn"}, "storage": {"filesystem": {"rootdirectory": "%s"}},
    "http": {"addr": "127.0.0.1:5000"}}' "$work/blobs" > "$work/config.yml"
docker-registry serve "$work/config.yml" > "$work/log" 2>&1 &
registry=$!
trap 'kill $registry' EXIT
for _ in $(seq 200); do
    "$python" -c 'import socket; socket.create_connection(("127.0.0.1", 5000), 1)' 2>/dev/null && break
    sleep 0.1
done
cd "$work"
"$airferry" verify "$out" --root "$root" --json > verify.json
"$airferry" load "$out" --to 127.0.0.1:5000/far --root "$root" --json > first.json
"$airferry" load "$out" --to 127.0.0.1:5000/far --root "$root" --json > second.json
"""


@dataclass(frozen=True)
class Installed:
    """A virtual environment that has the wheel, and a folder to work in."""

    wheel: Path
    python: Path
    program: Path
    work: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a user's shell would pass on, with a cache that nothing has filled."""
        kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(CARRIED)}
        return {**kept, "AIRFERRY_CACHE": str(self.work / "cache")}

    def run(self, *argv: object, timeout_s: float = 540) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in argv],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str], Path]) -> Iterator[Installed]:
    for tool in ("buildah", "mmdebstrap", "docker-registry", "git", "unshare"):
        require_tool(tool)
    if os.geteuid() == 0:
        pytest.fail("the wheel is tested as an ordinary user (scripts/test does that)")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder / "dist")]
    subprocess.run(build, cwd=SOURCE, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    site = next((environment / "lib").glob("python3.*")) / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    work = folder / "work"
    work.mkdir()
    made = Installed(wheel, python, environment / "bin" / "airferry", work)
    yield made
    for name in ("engine", "far-engine"):
        state = work / "cache" / name
        for kind in ("buildah", "podman"):
            if (state / f"{kind}-storage").is_dir():
                Storage(find_engine(kind), state, emit=silent).remove_all()  # type: ignore[arg-type]


def test_the_wheel_holds_what_the_program_needs_and_no_tests(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = set(wheel.namelist())
    needed = ["containerfiles/Containerfile.execution", "containerfiles/Containerfile.launcher", "airgap.yaml"]
    needed += ["containerfiles/install-execution.sh", "containerfiles/install-launcher.sh", "example/airgap.yaml"]
    needed += ["example/first/steps/train/line/step.toml", "example/first/steps/train/line/config/default.yaml"]
    needed += ["example/catalogue/requirements.txt", "example/catalogue/.gitignore", "example/tokenizer/README.md"]
    needed += [f"example/catalogue/src/ferrysteps/{step}/step.toml" for step in STEPS]
    assert {f"airferry/{name}" for name in needed} <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/")) or "__pycache__" in name]


def test_nothing_of_the_source_tree_is_imported(installed: Installed) -> None:
    code = "import json, sys, airferry; print(json.dumps([airferry.__file__, sys.path]))"
    done = installed.run(installed.python, "-c", code)
    where, path = json.loads(done.stdout)
    assert Path(where).is_relative_to(installed.python.parents[1])
    assert not [entry for entry in path if entry.startswith(str(SOURCE / "src"))]
    done = installed.run(installed.program, "schema")
    assert json.loads(done.stdout)["title"]


@pytest.fixture(scope="module")
def quickstart(installed: Installed) -> subprocess.CompletedProcess[str]:
    """The quickstart, once, for this host's platform."""
    return installed.run(installed.program, "quickstart", "--dir", "q", "--platform", "linux/amd64")


def test_the_quickstart_does_the_whole_job(installed: Installed, quickstart: subprocess.CompletedProcess[str]) -> None:
    check_story(installed.work / "q", quickstart, platforms=("linux/amd64",))


@pytest.mark.slow
def test_the_quickstart_does_the_whole_job_for_a_second_platform(installed: Installed) -> None:
    if not BINFMT.exists():
        if os.environ.get("CI"):
            pytest.fail("no emulator for linux/arm64 (scripts/setup installs it)")
        pytest.skip("no emulator for linux/arm64")
    both = ("linux/amd64", "linux/arm64")
    done = installed.run(installed.program, "quickstart", "--dir", "both", "--platform", ",".join(both))
    check_story(installed.work / "both", done, platforms=both)


def check_story(folder: Path, done: subprocess.CompletedProcess[str], *, platforms: Sequence[str]) -> None:
    """See that a quickstart told and left what it is for, with a run of each step on each platform."""
    assert done.returncode == 0, done.stderr
    for words in ("root digest, to send", "verified", "without network", "times as much"):
        assert words in done.stdout
    manifest = yaml.safe_load((folder / "out/airgap-manifest.yaml").read_text())
    assert manifest["root"] in done.stdout
    for step in STEPS:
        assert done.stdout.count(f"  {step}  (") == len(platforms)
    receipt = yaml.safe_load((folder / "far/airgap-receipt.yaml").read_text())
    assert sorted(receipt["steps"]) == sorted(STEPS)
    assert receipt["bundle_root"] == manifest["root"] and receipt["root_verified"] is True
    results = list((folder / "far/data").rglob("*.json"))
    assert {path.relative_to(folder / "far/data").parts[0] for path in results} == {
        platform.replace("/", "-") for platform in platforms
    }


def test_a_second_quickstart_builds_nothing(installed: Installed, quickstart: subprocess.CompletedProcess[str]) -> None:
    before = (installed.work / "q/out/airgap-manifest.yaml").read_bytes()
    done = installed.run(installed.program, "build", "--config", "q/airgap.yaml", "--json", "--platform", "linux/amd64")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["reused"] == sum(len(image["platforms"]) for image in answer["images"])
    assert (installed.work / "q/out/airgap-manifest.yaml").read_bytes() == before


def test_the_far_side_needs_no_network(
    installed: Installed, quickstart: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    manifest = yaml.safe_load((installed.work / "q/out/airgap-manifest.yaml").read_text())
    script = f"NO_ROUTE='{NO_ROUTE}'\n{FAR_SIDE}"
    arguments = [installed.python, installed.program, installed.work / "q/out", manifest["root"], tmp_path]
    isolated = ["unshare", "--user", "--map-root-user", installed.python, "-I", inside.__file__, "offline"]
    done = installed.run(*isolated, "bash", "-c", script, "bash", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "verify.json").read_text())["findings"] == []
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "second"))
    assert first["sent_blobs"] > 0 and second["sent_blobs"] == 0
    assert {tag["moved"] for tag in second["tags"]} == {False}
    receipt = yaml.safe_load(next(tmp_path.glob("airgap-receipt-*.yaml")).read_text())
    assert sorted(receipt["steps"]) == sorted(STEPS)
    assert all(reference.startswith("127.0.0.1:5000/far/") for reference in receipt["steps"].values())
