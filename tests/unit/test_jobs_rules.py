"""Every rule of a check, one at a time: the level of what it finds, the exit code, and what makes it find nothing.

A case is a config of one step, where all else is in order; all that is found is compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from airferry.bundle.manifest import AssetEntry, OverlayEntry
from airferry.bundle.receipt import Receipt
from airferry.cli.app import run
from airferry.config import SiteProfile
from airferry.errors import FindingsError
from airferry.jobs.check import Checked, run_check
from airferry.jobs.findings import LEVELS
from airferry.jobs.report import CheckReport
from airferry.jobs.rules.assets import StagedAssets
from airferry.jobs.rules.site import RegistryImage
from airferry.plan.catalogue import catalogue_at
from airferry.plan.env_profiles import read_env_file
from catalogues import STEPS, write_step
from loaded_receipts import DIGEST, PINNED, loaded_receipt

MOUNT = "${auto_mount:git+https://g.example/Bridge.git@0123abc,/opt/Bridge}"
SITE: dict[str, Any] = {
    "executors": ["kubernetes"],
    "registry": "hub.site:5000/airgap",
    "platform": "linux/amd64",
    "mounts": ["/nowhere/data:/data:ro", "/nowhere/out:/out:rw"],
    "endpoints": {"inside": "http://vllm.site:8000/v1"},
}
HUB = {"mirrors": {"huggingface": "https://hub.site"}}
WANDB = {"mirrors": {"wandb": "https://wandb.site"}}
PACKAGES = {"mirrors": {"packages": "https://pypi.site/simple"}}
GPU = {"gpu": {"driver": "570.10", "compute_capabilities": ["9.0"]}}
IS_OFFLINE = ("warn", "offline", "run.env.env_vars.HF_HUB_OFFLINE")
NEEDS = '[step]\nid = "a/step"\n[[consumes]]\ntype = "packed_parquet"\n[[consumes]]\ntype = "checkpoint_lora"\n'
NEEDS_LESS = NEEDS + "required = false\n"


Found = tuple[str, str, str]


@dataclass(frozen=True)
class Case:
    """A config next to the pinned image, what is to be found in it, and what is unlike the usual."""

    config: str
    expected: tuple[Found, ...] = ()
    site: Mapping[str, Any] = field(default_factory=dict)
    profile: str | None = None
    toml: str | None = None
    source: str = ""
    image: str | None = PINNED
    asked: RegistryImage | None = None
    baked: bool = True
    platforms: tuple[str, ...] = ("linux/amd64",)
    env: Mapping[str, str] = field(default_factory=dict)
    asset: str | None = None


def found(*expected: Found, config: str = "a: 1", **more: Any) -> Case:
    return Case(config, expected, **more)


def nothing(config: str = "a: 1", **more: Any) -> Case:
    return Case(config, (), **more)


def env_of(name: str, value: str) -> str:
    return f"run: {{env: {{env_vars: {{{name}: '{value}'}}}}}}"


def starting(command: str) -> str:
    return f"run: {{env: {{startup_commands: ['{command}']}}}}"


def profile(text: str) -> str:
    return f'[base]\nexecutor = "docker"\ncontainer_image = "{PINNED}"\n{text}\n'


START = "run.env.startup_commands[0]"
IMAGE = "run.env.container_image"
BLEND = '{"datasets": [{"path": "hf://org/set"}]}'

RULES: dict[str, list[Case]] = {
    "identifiers of the Hub": [
        found(("block", "huggingface", "model_name"), config="model_name: org/model"),
        found(("note", "huggingface", "model_name"), config="model_name: org/model", site=HUB),
        found(("note", "huggingface", "x.model_name"), config="x: {enabled: false, model_name: org/model}"),
        found(("block", "huggingface", "x.model_name"), config="x: {enabled: true, model_name: org/model}"),
        found(("block", "huggingface", "a"), config="a: hf://datasets/org/set"),
        found(("block", "huggingface", "data.dataset_name"), config="data: {dataset_name: HelpSteer3}"),
        nothing("data: {dataset_name: ResponseDataset}"),
        found(("warn", "huggingface", "resolve_hf_placeholders"), config="resolve_hf_placeholders: true"),
        nothing("resolve_hf_placeholders: false"),
        found(("warn", "huggingface", "evaluation.tasks[0].name"), config="evaluation: {tasks: [{name: mmlu}]}"),
        nothing("other: {tasks: [{name: mmlu}]}"),
        nothing("model_name: /data/model"),
    ],
    "data blends": [
        found(("block", "huggingface", "blend_path"), config="blend_path: /nemo_run/code/blend.json"),
        nothing("blend_path: /nemo_run/code/blend.json", site=HUB),
        nothing("blend_path: /nemo_run/code/local.json"),
        nothing("blend_path: /nemo_run/code/gone.json"),
    ],
    "Git checkouts": [
        found(("block", "git", "run.env.mounts[0]"), config=f"run: {{env: {{mounts: ['{MOUNT}']}}}}"),
        found(("block", "git", "run.env.mounts[0]"), config=f"run: {{env: {{mounts: ['{MOUNT}']}}}}", baked=False),
        found(("block", "git", "elsewhere"), config=f"elsewhere: '{MOUNT}'"),
        nothing("run: {env: {mounts: ['/nowhere/x:/x']}}"),
        found(("block", "git", "base.mounts.0"), profile=profile(f"mounts = ['{MOUNT}']")),
        nothing(profile=profile("mounts = ['/nowhere/x:/x']")),
    ],
    "variables and missing values": [
        found(("block", "variable", "a"), config="a: ${oc.env:UNSET}"),
        found(("note", "variable", "a"), config="a: ${oc.env:UNSET,1}"),
        nothing("a: ${oc.env:USER}"),
        nothing("a: ${oc.env:SET}\n" + env_of("SET", "1")),
        found(("block", "value", "a"), config="a: ???"),
        found(("block", "value", "a"), config="a: ${nowhere}"),
        nothing("a: ${b}\nb: 1"),
        found(("warn", "variable", "api_key_env"), config="api_key_env: MODEL_KEY"),
        nothing("api_key_env: MODEL_KEY\n" + env_of("MODEL_KEY", "${oc.env:USER}")),
    ],
    "addresses": [
        found(("block", "endpoint", "server.url"), config="server: {url: 'https://api.example/v1'}"),
        nothing("server: {url: 'http://vllm.site:8000/v1'}"),
        nothing("server: {url: 'http://127.0.0.1:8000/v1'}"),
        found(("block", "endpoint", "server.url"), config="server: {url: '', model_id: x}"),
        nothing("server: {url: ''}"),
        found(("block", "url", "docs"), config="docs: https://docs.example/page"),
        nothing("docs: see https://docs.example/page"),
        nothing("docs: https://hub.site:5000/page"),
        found(("block", "endpoint", "m.provider"), config="m: {provider: nvidia, model: x}"),
        nothing("m: {provider: inside, model: x}"),
        nothing("m: {provider: own, model: x}\nproviders: [{name: own}]"),
        nothing("m: {provider: nvidia}"),
        found(("block", "endpoint", "backend"), config="backend: google"),
        nothing("backend: nmt"),
    ],
    "tracking": [
        found(("warn", "offline", "wandb_enabled"), config="wandb_enabled: true"),
        nothing("wandb_enabled: false"),
        nothing("wandb_enabled: true", site=WANDB),
        found(("warn", "offline", "wandb.enabled"), config="wandb: {enabled: true}"),
        nothing("other: {enabled: true}"),
        found(("warn", "offline", "export.destinations[0]"), config="export: {destinations: [wandb]}"),
        nothing("export: {destinations: [local]}"),
    ],
    "secrets": [
        found(("block", "secret", "api_key"), config="api_key: abcdefgh"),
        nothing("api_key: abcdefg"),
        nothing("api_key: ${oc.env:USER}"),
        nothing("api_key: MODEL_KEY"),
        nothing("api_key_file: /run/secrets/key-of-it"),
        found(("block", "secret", "a"), config="a: hf_a1B2c3D4e5F6g7H8i9J0k1L2"),
        found(("block", "secret", "base.env_vars.MY_TOKEN"), profile=profile("[base.env_vars]\nMY_TOKEN = 'abcdefgh'")),
        nothing(profile=profile("[base.env_vars]\nMY_TOKEN = '${oc.env:USER}'")),
        nothing(profile=profile("[base.env_vars]\nMY_TOKEN = 'abc'")),
    ],
    "inputs": [
        found(("block", "input", "a"), config="a: /path/to/file"),
        found(("block", "input", "a"), config="a: ./model.bin"),
        found(("block", "input", "a"), config="a: /tmp/model.bin"),
        found(("block", "input", "a"), config="a: /elsewhere/model.bin"),
        found(("warn", "input", "a"), config="a: /elsewhere/model.bin", site={"mounts": []}),
        found(("note", "input", "a"), config="a: /data/model.bin"),
        found(("note", "input", "a"), ("note", "mount", "a"), config="a: /out/model.bin"),
        found(("block", "input", "a"), config="a: /here/model.bin", site={"mounts": ["HERE:/here:ro"]}),
        nothing("a: /here/full.bin", site={"mounts": ["HERE:/here:ro"]}),
        found(("block", "input", "a"), config="a: /here/empty.bin", site={"mounts": ["HERE:/here:ro"]}),
        nothing("splits: {manifest_path: /data/m.json, train: {data_path: /path/to/file}}"),
    ],
    "what a step needs": [
        found(("warn", "input", "packed_train_data_path"), toml=NEEDS_LESS),
        found(
            ("warn", "input", "packed_train_data_path"), ("warn", "input", "lora_checkpoint"), toml=NEEDS, config="a: 1"
        ),
        found(("block", "input", "packed_train_data_path"), toml=NEEDS_LESS, config="packed_train_data_path: null"),
        found(("note", "input", "packed_train_data_path"), toml=NEEDS_LESS, config="packed_train_data_path: /data/x"),
        found(
            ("note", "input", "packed_train_data_path"),
            ("note", "input", "lora_checkpoint"),
            toml=NEEDS_LESS,
            config="lora_checkpoint: /data/x",
        ),
        nothing(toml='[step]\nid = "a/step"\n[[consumes]]\ntype = "packed_parquet"\nrequired = false\n'),
    ],
    "outputs": [
        found(("warn", "output", "output_dir"), config="output_dir: /elsewhere/x"),
        found(("warn", "output", "output_dir"), config="output_dir: ./x"),
        found(("block", "mount", "output_dir"), config="output_dir: /data/x"),
        nothing("output_dir: /out/x"),
        nothing("output_dir: name"),
    ],
    "declared assets": [
        found(("block", "asset", "assets.base"), asset="/elsewhere/base"),
        found(("note", "asset", "assets.base"), asset="/data/base"),
        found(("block", "asset", "assets.base"), asset="/here/base", site={"mounts": ["HERE:/here:ro"]}),
    ],
    "images": [
        found(("block", "image", IMAGE), image="nvcr.io/nvidia/nemo:26.04"),
        found(("block", "image", IMAGE), image=None),
        nothing(image=None, profile=profile("")),
        nothing(image="hub.site:5000#airgap/trainer:" + DIGEST),
        found(("warn", "image", "sidecar.image"), config="sidecar: {image: docker.io/x/y}"),
        nothing("sidecar: {image: 'hub.site:5000/x/y'}"),
        nothing("sidecar: {image: '${a}'}\na: docker.io/x/y"),
        found(("block", "platform", IMAGE), platforms=("linux/arm64",)),
        nothing(platforms=("linux/arm64", "linux/amd64")),
        nothing(asked=RegistryImage(True, {})),
        found(("block", "image", IMAGE), asked=RegistryImage(False, {})),
        found(("block", "image", IMAGE), asked=RegistryImage(True, {}, "zstd")),
        found(("block", "image", IMAGE), asked=RegistryImage(True, {}, "404", hidden=True)),
        found(("block", "image", IMAGE), asked=RegistryImage(True, {}, hidden=True)),
    ],
    "artifacts": [
        found(("block", "artifact", "a"), config="a: '${art:model,path}'"),
        nothing("a: '${art:model,path}'", site=WANDB),
        nothing("a: '${art:model,path}'", profile=profile("[artifacts]\nmanifest = '/data/m'")),
    ],
    "offline": [
        found(("block", "offline", "run.env.env_vars.HF_HUB_OFFLINE"), config=env_of("HF_HUB_OFFLINE", "0")),
        nothing(env_of("HF_HUB_OFFLINE", "1")),
        nothing(env_of("HF_HUB_OFFLINE", "0"), site=HUB),
        found(("block", "offline", "run.env.env_vars.WANDB_MODE"), config=env_of("WANDB_MODE", "online")),
        nothing(env_of("WANDB_MODE", "disabled")),
        nothing(env_of("WANDB_MODE", "online"), site=WANDB),
        found(IS_OFFLINE, profile=profile(""), site=HUB),
        nothing(profile=profile("[base.env_vars]\nHF_HUB_OFFLINE = '0'"), site=HUB),
        found(
            ("block", "offline", "base.env_vars.WANDB_MODE"), profile=profile("[base.env_vars]\nWANDB_MODE = 'online'")
        ),
        nothing(profile=profile("[base.env_vars]\nWANDB_MODE = 'offline'")),
    ],
    "installs at start": [
        found(("block", "startup", START), config=starting("pip install left-pad")),
        nothing(starting("pip install left-pad"), site=PACKAGES),
        found(("block", "startup", START), config=starting("apt-get install -y git")),
        found(("block", "startup", START), config=starting("curl -O https://x.example/y"), site=PACKAGES),
        nothing(starting("echo hello")),
        found(("warn", "startup", "run.env.pip_extras[0]"), config="run: {env: {pip_extras: [typer]}}"),
        nothing("run: {env: {pip_extras: [typer]}}", site=PACKAGES),
        found(("warn", "startup", "base.pip_extras"), profile=profile("pip_extras = ['typer']")),
        found(("block", "startup", "base.startup_commands.0"), profile=profile("startup_commands = ['pip install x']")),
        nothing(profile=profile("startup_commands = ['echo']")),
    ],
    "Python's path": [
        found(
            ("block", "variable", "base.env_vars.PYTHONPATH"),
            profile=profile("[base.env_vars]\nPYTHONPATH = '/data/x'"),
            env={"PYTHONPATH": "/opt/Bridge/src"},
        ),
        found(
            ("warn", "variable", "base.env_vars.PYTHONPATH"),
            profile=profile("[base.env_vars]\nPYTHONPATH = '/data/x'"),
            env={"PYTHONPATH": "/opt/other"},
        ),
        nothing(
            profile=profile("[base.env_vars]\nPYTHONPATH = '/data/x:/opt/other'"), env={"PYTHONPATH": "/opt/other"}
        ),
        nothing(env={"PYTHONPATH": "/opt/other"}),
    ],
    "CPU and GPU": [
        found(("block", "gpu", IMAGE), asked=RegistryImage(True, {"CUDA_VERSION": "13.0.1"}), site=GPU),
        nothing(asked=RegistryImage(True, {"CUDA_VERSION": "13.0.1"})),
        nothing(asked=RegistryImage(True, {"CUDA_VERSION": "12.8.0"}), site=GPU),
        found(("block", "gpu", IMAGE), asked=RegistryImage(True, {"TORCH_CUDA_ARCH_LIST": "8.0"}), site=GPU),
        nothing(asked=RegistryImage(True, {"TORCH_CUDA_ARCH_LIST": "9.0"}), site=GPU),
    ],
    "a step's own code": [
        found(("warn", "git", "step.py"), source='import os\nos.system("git clone https://g.example/Other.git x")\n'),
        nothing(source='import os\nos.system("git clone https://g.example/Bridge.git x")\n'),
        found(("warn", "startup", "step.py"), source='import os\nos.system("pip install left-pad")\n'),
        found(
            ("note", "startup", "step.py"),
            source='import os\nos.system("pip install left-pad")\n',
            site=PACKAGES,
        ),
        found(("warn", "url", "step.py"), source='import requests\nrequests.get("https://x.example/y")\n'),
        found(("note", "url", "step.py"), source="import requests\nrequests.get(address)\n"),
        nothing(source='import requests\nrequests.get("https://hub.site:5000/y")\n'),
    ],
    "configs that cannot be read": [found(("block", "value", ""), config="defaults: gone.yaml")],
}
CASES = [
    pytest.param(case, id=f"{rule} {number}") for rule, cases in RULES.items() for number, case in enumerate(cases)
]


def receipt(case: Case) -> Receipt:
    overlay = OverlayEntry(
        repo="Bridge", url="https://g.example/Bridge.git", ref="0123abc", target="/opt/Bridge", commit=None
    )
    baked = (overlay,) if case.baked else ()
    return loaded_receipt("a/step:tiny", platforms=case.platforms, overlays=baked, env=dict(case.env))


def check(root: Path, case: Case) -> CheckReport:
    config = yaml.safe_load(case.config)
    if case.image is not None:
        config.setdefault("run", {}).setdefault("env", {})["container_image"] = case.image
    folder = write_step(root, "a/step", configs={"tiny": json.dumps(config)}, source=case.source)
    if case.toml is not None:
        (folder / "step.toml").write_text(case.toml)
    (root / "blend.json").write_text(BLEND)
    (root / "local.json").write_text("{}")
    storage = root / "storage"
    storage.mkdir()
    (storage / "full.bin").write_text("x")
    (storage / "empty.bin").write_text("")
    if case.profile is not None:
        (root / "env.toml").write_text(case.profile)
    site = json.loads(json.dumps({**SITE, **case.site}).replace("HERE", str(storage)))
    entries: tuple[AssetEntry, ...] = ()
    if case.asset is not None:
        entry = AssetEntry(
            name="base", kind="model", target=case.asset, files=1, size_bytes=7, manifest="sha256:" + "e" * 64
        )
        entries = (entry,)
    checked = Checked(
        catalogue_at(root, steps=STEPS),
        SiteProfile.model_validate({"executors": ["kubernetes"], **site}),
        receipt=receipt(case),
        env_file=read_env_file(root / "env.toml") if case.profile is not None else None,
        profile="base" if case.profile is not None else None,
        submission={"USER": "me"},
        assets=StagedAssets(entries),
    )
    return run_check(checked, {} if case.asked is None else {PINNED: case.asked})


@pytest.mark.parametrize("case", CASES)
def test_a_rule_finds_at_its_level_what_it_is_for_and_nothing_else(case: Case, tmp_path: Path) -> None:
    report = check(tmp_path, case)
    assert sorted((item.level, item.kind, item.key) for item in report.findings) == sorted(case.expected)
    levels = [level for level, _kind, _key in case.expected]
    assert report.to_document()["counts"] == {level: levels.count(level) for level in LEVELS}
    if "block" in levels:
        with pytest.raises(FindingsError, match="1 job would fail") as caught:
            report.raise_if_blocked()
        assert caught.value.exit_code == 8
    else:
        report.raise_if_blocked()


def test_each_rule_is_shown_to_find_something_and_each_but_one_to_find_nothing() -> None:
    for rule, cases in RULES.items():
        assert any(case.expected for case in cases), rule
    quiet = [rule for rule, cases in RULES.items() if all(case.expected for case in cases)]
    assert quiet == ["declared assets", "configs that cannot be read"], "assets that are there are tested elsewhere"


@pytest.mark.usefixtures("on_kubernetes")
@pytest.mark.parametrize(
    ("config", "level", "code"),
    [
        ("{docs: 'https://docs.example/page'}", "block", 8),
        ("{wandb_enabled: true}", "warn", 0),
        ("{a: '${oc.env:UNSET_BY_ALL,1}'}", "note", 0),
        ("{a: 1}", None, 0),
    ],
)
def test_the_command_shows_the_level_and_only_what_blocks_makes_it_fail(
    config: str,
    level: str | None,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("AIRFERRY_SOURCE", "NEMOTRON_ENV_FILE", "UNSET_BY_ALL"):
        monkeypatch.delenv(name, raising=False)
    write_step(tmp_path, "a/step", configs={"tiny": config})
    arguments = ["check", "--source", str(tmp_path), "--no-registry"]
    assert run(arguments) == code
    shown = capsys.readouterr()
    assert ("Nothing blocks 1 job." in shown.err) is (code == 0)
    assert ("1 job would fail: 1 blocking finding" in " ".join(shown.err.split())) is (code == 8)
    assert [line.split()[0] for line in shown.out.splitlines()] == ([level] if level in ("block", "warn") else [])
    assert run([*arguments, "--notes"]) == code
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ([level] if level else [])
    assert run([*arguments, "--json"]) == code
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert {name for name, count in counts.items() if count} == ({level} if level else set())
