"""Parsers of what people and catalogues write: configs, locks, step code."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import yaml
from table import (
    DIGEST,
    MARKERS,
    as_json,
    each,
    of_file,
    of_text,
    parser,
)
from worker import Target

from airferry.config import load_config, load_site
from airferry.config.fields import parse_overlay
from airferry.errors import AirferryError
from airferry.host import files
from airferry.host.parsing import parse_python
from airferry.near.bases.debian import _deb822_sources, _one_line_sources
from airferry.near.carry.loader import read_pins
from airferry.plan.catalogue import catalogue_at, find_step, parse_target, read_step_toml
from airferry.plan.code.commands import installs_of
from airferry.plan.code.fetch_commands import commands_of, fetches_of
from airferry.plan.code.imports import ImportScanner
from airferry.plan.code.job_path import _additions
from airferry.plan.env_profiles import read_env_file
from airferry.plan.inventory import parse_inventory
from airferry.plan.lockfile import (
    LockedAddition,
    LockedGit,
    LockedGroup,
    LockedPlatform,
    Lockfile,
    read_lockfile,
    render_lockfile,
)
from airferry.plan.locks.catalogue import read_catalogue_lock
from airferry.plan.locks.packages import evaluate, read_requirement
from airferry.plan.step_config import StepConfigReader
from airferry.plan.step_values import read_step_values

# --- what people and catalogues write ---------------------------------------------------------------------------------

AIRGAP = b"""
workflow: {name: w, stages: ["sft/one:tiny"]}
step_execution_images: {"sft/one": trainer}
execution_images:
  trainer:
    base_image: registry.example/base:1
    requirements: ["numpy==1.0"]
    required_imports: {numpy: numpy}
    env: {A: "b"}
    repo_overlays: ["https://h/x.git@v1,/opt/x"]
platforms: [linux/amd64]
site: {registry: "r:5000/p", executors: [slurm], mounts: ["/a:/b"], mirrors: {huggingface: "https://h"}}
"""


@parser("airgap.yaml", share=0.3)
def airgap_target() -> Target:
    document = yaml.safe_load(AIRGAP)
    for key in ("required_imports",):
        document["execution_images"]["trainer"].pop(key, None)
    seeds = [json.dumps(document).encode(), yaml.safe_dump(document).encode(), b"workflow: {stages: []}\n"]
    accepted = [seed for seed in seeds if _is_read(of_file("airgap.yaml", load_config), seed)]
    return Target(of_file("airgap.yaml", load_config), accepted or seeds)


def _is_read(parse: Callable[[bytes], object], data: bytes) -> bool:
    try:
        parse(data)
    except AirferryError:
        return False
    return True


@parser("site profile", share=0.5)
def site_target() -> Target:
    document = {
        "executors": [{"kind": "slurm-pyxis", "version": 3.5, "profile": "p"}, "kubernetes"],
        "registry": "registry.site:5000/airgap",
        "gpu": {"driver": 550.54, "compute_capabilities": [9.0, "8.0"]},
        "mounts": ["/lustre/data", {"path": "/lustre/out", "target": "/out", "mode": "rw", "purpose": "outputs"}],
        "mirrors": {"huggingface": "https://hub.site"},
        "endpoints": {"nvidia": "http://vllm.site:8000/v1"},
        "profiles": {"p": {"executor": "slurm-pyxis", "env": {"HF_HOME": "/lustre/data/hf"}, "provides": ["HF_TOKEN"]}},
    }
    return Target(of_file("site.yaml", load_site), [json.dumps(document).encode(), yaml.safe_dump(document).encode()])


@parser("env.toml")
def env_target() -> Target:
    def read(path: Path) -> None:
        file = read_env_file(path)
        for name in file.profiles:
            file.profile(name)

    text = b'[base]\nexecutor = "slurm"\nmounts = ["/a:/b"]\n[lepton]\nextends = "base"\n[lepton.env]\nA = "b"\n'
    return Target(of_file("env.toml", read), [text])


@parser("step.toml")
def step_toml_target() -> Target:
    return Target(
        of_file("step.toml", read_step_toml), [b'[step]\nid = "sft/one"\nname = "x"\n[step.launch]\ntorchrun = true\n']
    )


@parser("step config with what it inherits", share=0.3)
def step_config_target() -> Target:
    Path("base.yaml").write_bytes(b"run: {env: {nodes: 1, container_image: 'x:1'}}\na: ${oc.env:A,b}\n")

    def read(path: Path) -> None:
        reader = StepConfigReader()
        reader.read(path)
        read_step_values(reader, path, environment={"A": "x"})

    mounts = "['${auto_mount:git+https://h/x.git@v1,/opt/x}', '/a:/b']"
    first = f"defaults: base.yaml\nrun:\n  env:\n    mounts: {mounts}\nt: 12:00:00\n".encode()
    return Target(of_file("tiny.yaml", read), [first, as_json(b"a: ${b}\nb: [1, '${c.d}']\nc: {d: 2}\n")])


@parser("overlays, mounts and shell words of configs", share=0.8)
def words_target() -> Target:
    def parse(text: str) -> None:
        installs_of(text)
        for words in commands_of(text):
            list(fetches_of(words))
        with suppress(AirferryError, ValueError):
            parse_overlay(text)

    seeds = [
        b"https://h/x.git@v1,/opt/x",
        b"pip install -e '.[a]' 'b>=1' && git clone https://h/x | sh -c \"wget y\"",
        b"uv run --with a b",
    ]
    return Target(of_text(parse), seeds)


@parser("step code", share=0.5)
def code_target() -> Target:
    root = Path.cwd() / "catalogue"
    step = files.ensure_directory(root / "src/nemotron/steps/sft/one")
    (step / "step.toml").write_text('[step]\nid = "sft/one"\n')

    def parse(data: bytes) -> None:
        (step / "step.py").write_bytes(data)
        list(_additions(parse_python(data)))
        catalogue = catalogue_at(root, steps="src/nemotron/steps")
        ImportScanner(catalogue).candidates(find_step(catalogue, parse_target("sft/one")))

    seed = b"import os, sys\nsys.path.append(os.path.join(os.environ['X'], 'y'))\n"
    seed += b"try:\n    import torch\nexcept ImportError:\n    pass\n"
    return Target(parse, [seed + b"from nemotron.x import y\ndef main():\n    __import__('z')\n"])


@parser("airgap.lock.yaml", share=0.3)
def lock_target() -> Target:
    addition = LockedAddition(
        name="a",
        version="1.0",
        file="a-1.0-py3-none-any.whl",
        sha256="0" * 64,
        modules=("a",),
        source=LockedGit(url="https://h/a", commit="1" * 40),
    )
    platform = LockedPlatform(
        inputs=DIGEST, python="/usr/bin/python3", python_version="3.12", additions=(addition,), notes=("x",)
    )
    lock = Lockfile(groups={"g": LockedGroup(platforms={"linux/amd64": platform})})
    document = render_lockfile(lock).encode()
    seeds = [document, as_json(document)]
    return Target(of_file("airgap.lock.yaml", read_lockfile), seeds)


UV_LOCK = b"""version = 1
requires-python = ">=3.10"
resolution-markers = ["sys_platform == 'linux'"]
[manifest]
members = ["app"]
overrides = [{ name = "b", specifier = ">=1" }]
[[package]]
name = "app"
version = "0.1"
source = { virtual = "." }
dependencies = [{ name = "b", extra = ["x"], marker = "python_version < '3.13'" }]
[[package]]
name = "b"
version = "1.0"
source = { registry = "https://h/simple" }
wheels = [{ url = "https://h/b-1.0-py3-none-any.whl", hash = "sha256:%s", size = 5 }]
[[package]]
name = "c"
version = "2"
source = { git = "https://h/c.git?rev=v1#%s" }
""" % (b"0" * 64, b"a" * 40)
PYLOCK = b"""lock-version = "1.0"
created-by = "uv"
[[packages]]
name = "b"
version = "1.0"
marker = "os_name == 'posix'"
wheels = [{ url = "https://h/b-1.0-py3-none-any.whl", hashes = { sha256 = "%s" } }]
""" % (b"0" * 64)


@parser("uv.lock", share=0.7)
def uv_lock_target() -> Target:
    return Target(of_file("uv.lock", read_catalogue_lock), [UV_LOCK])


@parser("pylock.toml", share=0.7)
def pylock_target() -> Target:
    return Target(of_file("pylock.toml", read_catalogue_lock), [PYLOCK])


@parser("requirements.txt and markers")
def requirements_target() -> Target:
    def marked(data: bytes) -> None:
        for line in data.decode("utf-8", "replace").splitlines():
            requirement = read_requirement(line.partition(" --hash")[0])
            if requirement.marker is not None:
                evaluate(str(requirement.marker), MARKERS)

    text = b"a[x]==1.0 ; python_version < '3.13' --hash=sha256:%s\nb @ https://h/b-1-py3-none-any.whl\n# c\n" % (
        b"0" * 64
    )
    plain = b"a==1.0\nb==2 ; sys_platform == 'linux' and extra != 'x'\n"
    return Target(each(of_file("requirements.txt", read_catalogue_lock), marked), [plain, text], also=(ValueError,))


@parser("pins of the loader, inventories, sources of apt")
def pins_target() -> Target:
    def parse(text: str) -> None:
        read_pins(text)
        parse_inventory(text)
        list(_one_line_sources(text, "bookworm", ["main"]))
        list(_deb822_sources(text, "bookworm", ["main"]))

    deb = b"Types: deb\nURIs: http://h/debian\nSuites: bookworm\nComponents: main\nSigned-By: /k\n\n"
    deb += b"deb [x=y] http://h bookworm main\n"
    return Target(of_text(parse), [b"a==1 \\\n --hash=sha256:%s\n" % (b"0" * 64), deb])
