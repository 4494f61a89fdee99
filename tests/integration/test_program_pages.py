"""The man page as `man` shows it, and the documents: each of their commands is run, on a bundle built here.

The blocks of a page run in their order, as a reader goes through them: what one sets or writes, the next one finds.
Marks in the pages: see `page_blocks`.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from registries import PASSWORD, USER, basic_options, make_authority, run_registry

from airferry.bundle.verify import open_bundle
from airferry.host import files, process
from catalogues import STEPS, write_airgap, write_step
from near_side import REFERENCE, commit_all, make_near_side
from page_blocks import DOCUMENTS, ROOT, SERVES, blocks, pages_that_run

# what a mark `not run` is for
NOT_HERE = re.compile(r"sudo |nvcr\.io|^scripts/|^oras |quickstart|^python3 -m venv|^AIRFERRY_REGENERATE", re.MULTILINE)
CATALOGUE_URL = "https://github.com/NVIDIA-NeMo/Nemotron.git"
BASE = "outside/base:1"
STEP = """
import sys
import ferry_addition
print(open(sys.argv[sys.argv.index("--config") + 1]).read())
"""
TIMEOUT_S = 300


def test_man_shows_the_page_without_a_warning(require_tool: Callable[[str], Path]) -> None:
    pages = sorted((ROOT / "docs" / "man").iterdir())
    argv = [require_tool("groff"), "-man", "-Tutf8", "-ww", "-Kutf8", *pages]
    shown = process.run(argv, timeout_s=60)
    text = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", shown.text)
    assert len(pages) > 20 and shown.tail == ()
    assert text.count("EXAMPLES") == len(pages) - 1 and 'airferry verify "$BUNDLE" --root "$ROOT"' in text


@dataclass(frozen=True)
class Workplace:
    """A user's home with a folder `work` in it, where plan, bundle and receipt are, and a registry with TLS."""

    home: Path
    registry: str
    environment: dict[str, str]
    layout: Path
    """A layout that is not a bundle."""

    @property
    def folder(self) -> Path:
        return self.home / "work"

    @property
    def root(self) -> str:
        """The root of the bundle as it was built last."""
        return open_bundle(self.folder / "out").root

    def translate(self, script: str) -> str:
        """Put what is here in the place of what a reader has: in lines that set a variable, and as names of images."""
        here = {
            "REGISTRY": f"{self.registry}/nemotron",
            "CA": str(self.home / "tls" / "ca.crt"),
            "LAYOUT": str(self.layout),
        }
        for name, value in here.items():
            script = re.sub(rf"^{name}=\S+", f"{name}={value}", script, flags=re.MULTILINE)
        script = script.replace("0.0.0.0:5000", "127.0.0.1:0")
        # which prompts
        said = f'login "$REGISTRY" --username {USER} --password-stdin <~/password'
        script = re.sub(r'login "\$REGISTRY"(?=\s*(#|$))', said, script, flags=re.MULTILINE)
        script = script.replace("--username ferry ", f"--username {USER} ")
        script = script.replace("nvcr.io/nvidia/nemo=", f"{self.registry}/outside/base=")
        script = script.replace("git clone ", "rm -rf ~/Nemotron; git clone ")
        # on the base that all tests share, instead of a userland for this page alone
        script = script.replace("airferry init acme\n", f"airferry init acme --base {self.registry}/{BASE}\n")
        return script.replace("python:3.12-slim", f"{self.registry}/{BASE}")

    def run(self, script: str) -> None:
        """Run commands in a shell; what a page set before is set."""
        argv = ["bash", "-euo", "pipefail", "-c", self.in_order(script)]
        typed = process.Streams(stdin=f"{self.root}\n".encode() if "read -r ROOT" in script else None)
        done = process.run(
            argv, timeout_s=TIMEOUT_S, cwd=self.folder, environment=self.environment, streams=typed, check=False
        )
        assert done.returncode == 0, "\n".join([script, done.text, *done.tail])

    def in_order(self, script: str) -> str:
        """Return a script that goes on where the one before it ended: in its folder, with the page's variables."""
        names = " ".join(sorted(set().union(*(block.sets for page in DOCUMENTS for block in blocks(page)))))
        keep = f'for name in {names}; do [ -z "${{!name-}}" ] || declare -p "$name"; done; printf "cd %q\\n" "$PWD"'
        return f". {self.state}\n{script}\n{{ {keep}; }} >{self.state}"

    def begin(self) -> None:
        """Forget what another page set or wrote: a reader begins each one in the project's folder."""
        self.state.write_text("")
        receipts = [path for place in (".", "jobs") for path in (self.folder / place).glob("airgap-receipt*.yaml")]
        for path in [self.folder / "site.yaml", *receipts]:
            path.unlink(missing_ok=True)

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def load(self) -> str:
        """The command that loads the bundle as the pages do."""
        return f"airferry load out --to {self.registry}/nemotron"

    def serve(self, script: str) -> None:
        """Run what serves until it is interrupted, and interrupt it when it has refused a guest without a password."""
        log = self.home / "serve.log"
        child = process.start(
            ["bash", "-c", f". {self.state}; exec {script}"], log=log, cwd=self.folder, environment=self.environment
        )
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not (found := re.search(r"at https://127\.0\.0\.1:(\d+)", log.read_text())):
                assert child.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            trust = ssl.create_default_context(cafile=self.home / "tls" / "ca.crt")
            guest = http.client.HTTPSConnection("127.0.0.1", int(found[1]), timeout=TIMEOUT_S, context=trust)
            guest.request("GET", "/v2/")
            assert guest.getresponse().status == 401
            guest.close()
            os.kill(child.pid, signal.SIGINT)
            assert child.wait(timeout=30) == 0, log.read_text()
        finally:
            process.end_process_group(child)


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, near_base: Path, near_cache: Path, require_tool: Callable[[str], Path]
) -> Iterator[Workplace]:
    """Build the bundle that all pages speak of, load it, and lay out a home as the pages find it."""
    for tool in ("docker-registry", "skopeo", "podman", "buildah", "htpasswd"):
        require_tool(tool)
    side = make_near_side(tmp_path_factory.mktemp("pages") / "near", near_base)
    write_step(side.catalogue, "translate/nemo_curator", source="import json\n")
    (side.catalogue / STEPS / "train/run/step.py").write_text(STEP)
    runner_plan = side.catalogue / "deploy/nemotron-customizer/airgap/airgap.yaml"
    runner_plan.parent.mkdir(parents=True)
    shutil.copy(side.config, runner_plan)
    commit_all(side.catalogue, "everything")
    # podman refuses a run root of more than 50 characters, and capitals in the path of a layout
    home = Path(tempfile.mkdtemp(prefix="af-", dir="/tmp"))
    work = home / "work"
    work.mkdir()
    tls = make_authority(home / "tls")
    shutil.copy(home / "tls" / "host.crt", work / "cert.pem")
    shutil.copy(home / "tls" / "host.key", work / "key.pem")
    guarded = basic_options(home / "users")
    shutil.copy(home / "users" / "htpasswd", work / "users")
    (home / "password").write_text(f"{PASSWORD}\n")
    programs = home / "bin"
    programs.mkdir()
    (programs / "nemotron").write_text('#!/bin/sh\n[ "$1 $2" = "steps run" ] && [ $# -ge 7 ]\n')
    (programs / "nemotron").chmod(0o755)
    (home / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\nrunroot = "{home}/run"\ngraphroot = "{home}/images"\n'
    )
    environment = {
        "HOME": str(home),
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AIRFERRY_CACHE": str(near_cache),
        "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
        "PIP_FIND_LINKS": str(side.index),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{side.catalogue}.insteadOf",
        "GIT_CONFIG_VALUE_0": CATALOGUE_URL,
    }
    with run_registry(home / "registry", tls=dict(tls), extra=guarded) as registry:
        certificates = home / ".config/containers/certs.d" / registry.address
        certificates.mkdir(parents=True)
        shutil.copy(home / "tls" / "ca.crt", certificates)
        image = {"base_image": f"{registry.address}/{BASE}", "python": "/usr/bin/python3"}
        steps = {**side.document["step_execution_images"], "translate/nemo_curator": "py"}
        plan = {
            **side.document,
            "source": {"root": str(home / "Nemotron"), "lock": "requirements.txt"},
            "bases": "include",
            "loader": {"pythons": ["3.11"]},
            "archives": True,
            "docker_twin": True,
            "launcher_image": {**image, "tag": "ferry-launcher", "tar": "launcher-image.tar", "packages": []},
            "step_execution_images": steps,
            "execution_images": {"py": {**image, "tag": "py:1", "tar": "py.tar"}},
        }
        write_airgap(work, plan)
        made = Workplace(home, registry.address, environment, near_base)
        made.begin()
        login = f"airferry login {registry.address} --username {USER} --password-stdin <~/password"
        made.run(login)
        made.run(f"airferry copy oci:{near_base}:{REFERENCE} docker://{registry.address}/{BASE}")
        made.run(f"git clone -q {CATALOGUE_URL} ~/Nemotron && airferry build")
        # somebody else made the tags, so that no load of a page does: this registry cannot remove one that is new
        made.run(f"AIRFERRY_CACHE=~/somebody-else {made.load} --receipt first.yaml")
        yield made
    process.run(["buildah", "unshare", "rm", "-rf", home / "images"], timeout_s=60, environment=environment)
    files.remove_tree(home)


@pytest.mark.parametrize("page", pages_that_run())
def test_the_commands_of_a_page_run(page: str, workplace: Workplace) -> None:
    workplace.begin()
    if page == "site":  # which begins after a load
        workplace.run(f"{workplace.load} --receipt jobs/airgap-receipt.yaml")
    for block in blocks(page):
        script = workplace.translate(block.script)
        if block.why_not_run is not None:
            assert NOT_HERE.search(block.script), f"{block} could run"
        elif block.mark == SERVES:
            workplace.serve(script)
        else:
            workplace.run(script)
