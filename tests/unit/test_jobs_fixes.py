"""What findings say, show and advise to type: each rule's words, and the shapes of configs that decide about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_jobs_rules import PACKAGES, SITE, WANDB, env_of, starting

from airferry.assets.manifest import AssetFile, AssetManifest
from airferry.bundle.manifest import AssetEntry, OverlayEntry
from airferry.bundle.receipt import Receipt, ReceiptTwin
from airferry.config import SiteProfile
from airferry.defaults import COMMANDS_FILE
from airferry.errors import FindingsError, UsageError
from airferry.jobs.catalogue import CatalogueSource
from airferry.jobs.check import Checked, JobSelection, check, run_check
from airferry.jobs.findings import Finding, merge_findings
from airferry.jobs.report import CheckReport
from airferry.jobs.rules.assets import StagedAssets
from airferry.jobs.rules.paths import path_problem
from airferry.jobs.rules.site import RegistryImage
from airferry.plan.catalogue import catalogue_at
from airferry.plan.env_profiles import read_env_file
from catalogues import STEPS, write_step
from loaded_receipts import PINNED, loaded_receipt

CACHE = "stage its dataset in a cache of the Hub, and name that: run.env.env_vars.HF_HOME=/out/PATH/HUB-CACHE"
ON_HUB = "is on the Hugging Face Hub, which cannot be reached"
OUTSIDE = "is not on a mount: its content is lost when the job ends"
PLACEHOLDER = "is a placeholder"
LORA = '[[consumes]]\ntype = "checkpoint_lora"\n'
PACKED = '[[consumes]]\ntype = "packed_parquet"\n'
BLENDED = '[[consumes]]\ntype = "filtered_jsonl"\n'
HF = '[[{}]]\ntype = "checkpoint_hf"\nrequired = false\n'
SLURM = {"executors": ["slurm-pyxis:4.0"]}
OLD_SLURM = {"executors": ["slurm-pyxis:3.3"]}
TWO_ENDPOINTS = {"endpoints": {"inside": "http://vllm.site:8000/v1", "nvidia": "http://nim.site/v1"}}
HELD = {"linux/amd64": "omegaconf==2.3.0 typer==0.15.1"}
BAKED = OverlayEntry(repo="FOX", url="https://g.example/FOX.git", ref="0123abc", target="/opt/FOX/")
TWIN = ReceiptTwin(
    reference="hub.site:5000/airgap/trainer:airgap-docker",
    digest="sha256:" + "d" * 64,
    pinned="hub.site:5000/airgap/trainer@sha256:" + "d" * 64,
)


def receipt(**image: Any) -> Receipt:
    return loaded_receipt("a/step:tiny", **image)


def look(
    root: Path,
    config: str = "a: 1",
    *,
    site: Mapping[str, Any] | None = None,
    step: str = "a/step",
    toml: str = "",
    source: str = "",
    env_file: str | None = None,
    profile: str | None = "base",
    files: Mapping[str, str] | None = None,
    asked: RegistryImage | None = None,
    **more: Any,
) -> list[Finding]:
    """Return what a check finds in a step of one config; without a receipt, so that images are not compared."""
    folder = write_step(root, step, configs={"tiny": config}, source=source, files=files)
    with (folder / "step.toml").open("a") as file:
        file.write(toml)
    if env_file is not None:
        (root / "env.toml").write_text(f'[base]\nexecutor = "docker"\n{env_file}\n')
        more |= {"env_file": read_env_file(root / "env.toml"), "profile": profile}
    described = SiteProfile.model_validate({**SITE, **(site or {})})
    checked = Checked(catalogue_at(root, steps=STEPS), described, submission={"USER": "me"}, **more)
    return list(run_check(checked, {PINNED: asked} if asked else {}).findings)


@pytest.mark.parametrize(
    ("config", "key", "text", "fix"),
    [
        ("model_name: org/model", "model_name", ON_HUB, "model_name=/data/PATH/model"),
        ("a: hf://datasets/org/set", "a", ON_HUB, "a=/data/PATH/set"),
        ("model: {name: org/model}", "model.name", ON_HUB, "model.name=/data/PATH/model"),
        ("train_dataset: org/set", "train_dataset", ON_HUB, CACHE),
        ("repo_id: org/tok", "repo_id", ON_HUB, "repo_id=/data/PATH/tok"),
        (
            "x: {tokenizer: {repo_id: org/tok}}",
            "x.tokenizer.repo_id",
            ON_HUB,
            "x.tokenizer=null, which downloads nothing; and files on a mount as the input",
        ),
        (
            "tokenizer: {repo_id: org/tok}",
            "tokenizer.repo_id",
            ON_HUB,
            "tokenizer=null, which downloads nothing; and files on a mount as the input",
        ),
        ("x: [{repo_id: org/tok}]", "x[0].repo_id", ON_HUB, """'x=[{"repo_id": "/data/PATH/tok"}]'"""),
        (
            "evaluation: {tasks: [{model_name: org/m}]}",
            "evaluation.tasks[0].model_name",
            ON_HUB,
            """'evaluation.tasks=[{"model_name": "/data/PATH/m"}]'""",
        ),
        (
            "data: {dataset_name: HelpSteer3}",
            "data.dataset_name",
            "is a dataset that the framework downloads from the Hugging Face Hub, which cannot be reached",
            "data.dataset_name=ResponseDataset, and `data_path=/data/PATH/FILE.jsonl` in its `train` and `validation`",
        ),
        ("docs: git+https://docs.example/page", "docs", "`docs.example` is outside", "docs=/data/PATH/page"),
        (
            "docs: 'https://docs.example/page it is'",
            "docs",
            "`docs.example` is outside",
            "'docs=/data/PATH/page it is'",
        ),
        (
            "docs: 'https://hub.site:5000/a,https://docs.example/b'",
            "docs",
            "`docs.example` is outside",
            "docs=/data/PATH/b",
        ),
        (
            "base_url: https://api.example/v1/",
            "base_url",
            "`api.example` is not an endpoint that the site declares",
            "base_url=http://vllm.site:8000/v1",
        ),
        (
            "x: {url: https://api.example/v2/chat}",
            "x.url",
            "`api.example` is not an endpoint that the site declares",
            "x.url=https://HOST:PORT/v2/chat",
        ),
        (
            "x: {url: 'https://[bad/v1'}",
            "x.url",
            "`` is not an endpoint that the site declares",
            "x.url=http://HOST:PORT",
        ),
        ("x: {url: null, model_id: y}", "x.url", "no endpoint is set", "x.url=http://vllm.site:8000/v1"),
        ("x: {url: '', api_key_env: USER}", "x.url", "no endpoint is set", "x.url=http://vllm.site:8000/v1"),
        (
            "a: ${oc.env:FIRST,1}-${oc.env:USER}-${oc.env:UNSET}",
            "a",
            "reads `UNSET`, which nothing sets and which has no default",
            "run.env.env_vars.UNSET=VALUE",
        ),
        ("a: /path/to", "a", PLACEHOLDER, "a=/data/PATH/to"),
        ("a: file:/path/to/x", "a", PLACEHOLDER, "a=/data/PATH/x"),
        ("a: '${oc.env:ROOT,/path/to/x}'", "a", PLACEHOLDER, "a=/data/PATH/x"),
        ("sections: {b: /path/to/x}", "sections.b", PLACEHOLDER, "sections.b=/data/PATH/x"),
        (
            "sections: {b: '${oc.env:ROOT,/path/to/x}'}",
            "sections.b",
            PLACEHOLDER,
            "export ROOT=VALUE, where jobs are submitted",
        ),
        ("manifest_path: /data/m\ndata_path: /path/to/x", "data_path", PLACEHOLDER, "data_path=/data/PATH/x"),
        ("s: {manifest_path: /m, t: {other: /path/to/x}}", "s.t.other", PLACEHOLDER, "s.t.other=/data/PATH/x"),
    ],
)
def test_what_blocks_says_why_and_what_to_type(config: str, key: str, text: str, fix: str, tmp_path: Path) -> None:
    (finding,) = [item for item in look(tmp_path, config) if item.level == "block"]
    assert (finding.key, finding.text, finding.fix) == (key, text, fix)
    assert finding.remedy == "change"


@pytest.mark.parametrize(
    ("config", "key", "text", "fix"),
    [
        (
            "resolve_hf_placeholders: true",
            "resolve_hf_placeholders",
            "replaces placeholders in the data by datasets from the Hugging Face Hub, which cannot be reached",
            "resolve_hf_placeholders=false, with data that already has them replaced",
        ),
        (
            "evaluation: {tasks: [{name: mmlu}]}",
            "evaluation.tasks[0].name",
            "is a benchmark that downloads its dataset from the Hugging Face Hub, which cannot be reached",
            f"{CACHE}; or leave the task out",
        ),
        (
            "use_wandb: true",
            "use_wandb",
            "Weights & Biases cannot be reached; in offline mode runs stay on disk, and exports fail",
            "use_wandb=false",
        ),
        (
            "export: {destinations: [wandb]}",
            "export.destinations[0]",
            "Weights & Biases cannot be reached; in offline mode runs stay on disk, and exports fail",
            "'export.destinations=[]'",
        ),
        ("output_dir: /nemo_run/x", "output_dir", OUTSIDE, "output_dir=/out/PATH/x"),
        ("output_dir: /nemo_run/code/x", "output_dir", OUTSIDE, "output_dir=/out/PATH/x"),
        (
            "run: {env: {env_vars: {A: '/b:/elsewhere'}}}\noutput_dir: /elsewhere/x",
            "output_dir",
            OUTSIDE,
            "output_dir=/out/PATH/x",
        ),
    ],
)
def test_what_warns_says_why_and_what_to_type(config: str, key: str, text: str, fix: str, tmp_path: Path) -> None:
    (finding,) = look(tmp_path, config)
    assert (finding.level, finding.key, finding.text, finding.fix) == ("warn", key, text, fix)


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ("data: {dataset_name: /data/set.json}", {}),
        ('docs: "see\\nhttps://docs.example/page"', {}),
        ('docs: "first\\n/path/to/file"', {}),
        ("a: ${oc.env:SCRATCH,1}", {"profiles": {"k": {"executor": "kubernetes", "provides": ["SCRATCH"]}}}),
        ("api_key_env: MODEL_KEY", {"profiles": {"k": {"executor": "kubernetes", "provides": ["MODEL_KEY"]}}}),
        ("docs: https://hub.site:5000/page", {"registry": "hub.site:5000/airgap/team"}),
        ("docs: https://hub.site:5000/page", {"registry": "hub.site:5000"}),
        ("side: {image: 'hub.site:5000/x/y'}", {"registry": "hub.site:5000/airgap/team"}),
        ("side: {image: /data/x.sqsh}", {}),
        ("x: {url: 'http://0.0.0.0:8000/v1'}", {}),
        ("m: {provider: other, model: x, base_url: 'http://vllm.site:8000/v1'}", {}),
        ("enabled: true", {}),
        ("token_dir: tokens-of-all", {}),
        ("token_env: my-variable", {}),
        ("use_wandb: true", WANDB),
        ("m: {manifest_path: /data/m, t: {data_path: /path/to/file}}", {}),
        ("manifest_path: /data/m\nt: {data_path: /path/to/file}", {}),
        ("adapter_config: {output_dir: /elsewhere/x}", {}),
        ("output_dir: /nemo_run/x", SLURM),
        ("output_dir: /nemo_run/code/x", SLURM),
        ("run: {env: {mounts: ['/nowhere/more:/more']}}\noutput_dir: /more/x", {}),
    ],
)
def test_nothing_is_said_of_what_only_looks_like_it(config: str, more: dict[str, Any], tmp_path: Path) -> None:
    assert look(tmp_path, config, site=more) == []


@pytest.mark.parametrize(
    ("step", "dataset"), [("rl/dpo", "PreferenceDataset"), ("dpo", "PreferenceDataset"), ("sft", "ResponseDataset")]
)
def test_the_dataset_that_is_advised_is_the_steps_kind(step: str, dataset: str, tmp_path: Path) -> None:
    (finding,) = look(tmp_path, "data: {dataset_name: HelpSteer3}", step=step)
    assert (finding.fix or "").startswith(f"data.dataset_name={dataset}, and")


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://integrate.api.NVIDIA.example/v1", "http://nim.site/v1"),
        ("https://api.example/v1", "http://HOST:PORT/v1"),
    ],
)
def test_of_several_endpoints_the_one_in_the_hosts_name_is_advised(url: str, endpoint: str, tmp_path: Path) -> None:
    (finding,) = look(tmp_path, f"x: {{url: '{url}'}}", site=TWO_ENDPOINTS)
    assert finding.fix == f"x.url={endpoint}"


def test_an_endpoint_that_is_not_set_shows_no_value(tmp_path: Path) -> None:
    (finding,) = look(tmp_path, "x: {url: null, model_id: y}")
    assert finding.value == ""


def test_a_data_blend_is_named_at_its_line_and_replaced_by_the_key_that_names_it(tmp_path: Path) -> None:
    blend = '{\n"datasets": [{"path": "hf://org/set"}]}'
    (tmp_path / "blend.json").write_text(blend)
    (named,) = look(tmp_path, "data: {blend_path: /nemo_run/code/blend.json}")
    assert (named.file, named.line, named.fix) == ("blend.json", 2, "data.blend_path=/data/PATH/blend.json")
    (own,) = look(tmp_path / "own", files={"data/blend_tiny.json": blend})
    assert (own.key, own.value, own.fix) == ("blend_path", "hf://org/set", "blend_path=/data/PATH/blend_tiny.json")


def test_a_clone_outside_the_mounts_has_no_fix(tmp_path: Path) -> None:
    (finding,) = look(tmp_path, "a: '${auto_mount:git+https://g.example/B.git@0123abc,/opt/B}'")
    assert (finding.text, finding.fix) == ("is cloned when the job starts", None)
    assert finding.value == "https://g.example/B.git@0123abc in /opt/B"


@pytest.mark.parametrize(
    ("toml", "config", "blend", "expected"),
    [
        (PACKED + "required = false\n" + LORA, "a: 1", False, [("warn", "lora_checkpoint")]),
        (PACKED + LORA, "packed_train_data_path: /data/x", False, ["packed_train_data_path", "lora_checkpoint"]),
        (BLENDED + LORA, "a: 1", True, [("warn", "lora_checkpoint")]),
        (BLENDED, "a: 1", False, [("warn", "blend_path")]),
        (BLENDED, "blend_path: null", True, [("block", "blend_path")]),
        (PACKED, "a: 1", True, [("warn", "packed_train_data_path")]),
        (HF.format("produces"), "hf_path: /elsewhere/x", False, [("warn", "hf_path")]),
        (HF.format("produces") + HF.format("consumes"), "hf_path: /elsewhere/x", False, [("warn", "hf_path")]),
        ("", "model_cache: /out/m.bin", False, ["model_cache"]),
    ],
)
def test_what_a_step_declares_decides_what_its_keys_are(
    toml: str, config: str, blend: bool, expected: list[Any], tmp_path: Path
) -> None:
    findings = look(tmp_path, config, toml=toml, files={"data/blend_tiny.json": "{}"} if blend else {})
    found = [item.key if item.level == "note" else (item.level, item.key) for item in findings]
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_a_pattern_is_looked_for_at_every_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.parquet").write_text("x")
    assert path_problem(tmp_path / "**" / "x.parquet") is None


def asset(**more: Any) -> AssetEntry:
    of: dict[str, Any] = {"name": "base", "kind": "model", "target": "/elsewhere", "files": 3, "size_bytes": 3}
    return AssetEntry.model_validate({**of, "manifest": "sha256:" + "e" * 64, **more})


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "the model `base` is expected at `/elsewhere`, which is not on a mount"),
        ({"kind": "other"}, "the asset `base` is expected at `/elsewhere`, which is not on a mount"),
        ({"steps": ("a/step",)}, "the model `base` is expected at `/elsewhere`, which is not on a mount"),
        ({"steps": ("a/step:tiny",)}, "the model `base` is expected at `/elsewhere`, which is not on a mount"),
        ({"steps": ("a/step:other",)}, None),
    ],
)
def test_an_asset_is_looked_at_for_the_steps_that_read_it(
    more: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    texts = [item.text for item in look(tmp_path, assets=StagedAssets((asset(**more),)))]
    assert texts == ([expected] if expected else [])


def test_of_what_differs_in_an_asset_two_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "storage" / "base").mkdir(parents=True)
    listed = tuple(AssetFile(path=name, size_bytes=1, sha256="0" * 64) for name in ("a", "b", "c", "d"))
    manifest = AssetManifest(name="base", kind="model", files=listed)
    site = {"mounts": [f"{tmp_path}/storage:/here:ro"]}
    assets = StagedAssets((asset(target="/here/base"),), {"base": manifest})
    (finding,) = look(tmp_path, site=site, assets=assets)
    assert "differs from what was recorded: missing: a; missing: b; and 2 more (`" in finding.text


def in_image(root: Path, config: str = "", *, image: Mapping[str, Any] | None = None, **more: Any) -> list[Finding]:
    """Return what is found in a step whose job is given the loaded image."""
    pinned = f'container_image = "{PINNED}"\n'
    more["env_file"] = pinned + more.get("env_file", "")
    return look(root, config or "a: 1", receipt=receipt(**(image or {})), **more)


@pytest.mark.parametrize(
    ("path", "overlays", "level", "fix"),
    [
        (None, (), None, None),
        ("/:/opt/other", (), "warn", "/opt/other:/data/x"),
        ("/opt/FOX/:X", (), "warn", "/opt/FOX:X:/data/x"),
        ("/opt/FOX", (BAKED,), "block", "/opt/FOX:/data/x"),
        ("/opt/FOXES", (BAKED,), "warn", "/opt/FOXES:/data/x"),
        ("/:/data/x/", (), None, None),
    ],
)
def test_what_a_profile_takes_from_pythons_path_is_put_in_front_again(
    path: str | None, overlays: tuple[OverlayEntry, ...], level: str | None, fix: str | None, tmp_path: Path
) -> None:
    image = {"env": {} if path is None else {"PYTHONPATH": path}, "overlays": overlays}
    found = in_image(tmp_path, image=image, env_file="[base.env_vars]\nPYTHONPATH = '/data/x'")
    assert [(item.level, item.fix) for item in found] == (
        [] if level is None else [(level, f"run.env.env_vars.PYTHONPATH={fix}")]
    )


def test_the_path_of_the_image_in_the_registry_counts_before_the_receipts(tmp_path: Path) -> None:
    asked = RegistryImage(True, {"PYTHONPATH": "/opt/asked"})
    (finding,) = in_image(tmp_path, asked=asked, env_file="[base.env_vars]\nPYTHONPATH = '/data/x'")
    assert "which has `/opt/asked` as well" in finding.text


@pytest.mark.parametrize(
    ("asked", "site", "image", "text", "remedy"),
    [
        (RegistryImage(False, {}), {}, {}, f"the registry does not have `{PINNED}`", "load"),
        (RegistryImage(False, {}), OLD_SLURM, {}, f"the registry does not have `{PINNED}`", "load"),
        (RegistryImage(True, {}, "404"), {}, {}, "404", "change"),
        (RegistryImage(True, {}, "404", other_build=True), {}, {}, "404", "build"),
        (RegistryImage(True, {}, hidden=True), {}, {}, "is hidden", "change"),
        (RegistryImage(True, {}, hidden=True), SLURM, {}, "is hidden", "build"),
        (RegistryImage(True, {}, hidden=True), OLD_SLURM, {}, "is hidden", "change"),
        (RegistryImage(True, {}, hidden=True), SLURM, {"docker_twin": TWIN}, "is hidden", "change"),
        (
            None,
            {},
            {"platforms": ("linux/arm64",)},
            "`trainer:airgap` is for linux/arm64, the nodes are linux/amd64",
            "build",
        ),
    ],
)
def test_what_takes_back_a_finding_about_the_image(
    asked: RegistryImage | None, site: dict[str, Any], image: dict[str, Any], text: str, remedy: str, tmp_path: Path
) -> None:
    (finding,) = in_image(tmp_path, asked=asked, site=site, image=image)
    assert (finding.level, finding.text, finding.remedy) == ("block", text, remedy)


@pytest.mark.parametrize(
    ("variables", "gpu", "blocks"),
    [
        ({"CUDA_VERSION": "13.0.1"}, {"driver": "580.0"}, False),
        ({"CUDA_VERSION": "13.0.1"}, {"driver": "579.99"}, True),
        ({"TORCH_CUDA_ARCH_LIST": "8.0a+PTX"}, {"compute_capabilities": ["9.0"]}, False),
        ({"TORCH_CUDA_ARCH_LIST": "8.6"}, {"compute_capabilities": ["8.0"]}, True),
        ({"TORCH_CUDA_ARCH_LIST": "8.6"}, {"compute_capabilities": ["8.9"]}, False),
        ({"TORCH_CUDA_ARCH_LIST": "9.0"}, {"compute_capabilities": ["8.9"]}, True),
    ],
)
def test_an_image_fits_a_driver_and_gpus_from_the_first_that_run_it(
    variables: dict[str, str], gpu: dict[str, Any], blocks: bool, tmp_path: Path
) -> None:
    found = in_image(tmp_path, asked=RegistryImage(True, variables), site={"gpu": gpu})
    assert [item.kind for item in found] == (["gpu"] if blocks else [])


def test_each_variable_that_goes_back_online_is_found_however_it_is_written(tmp_path: Path) -> None:
    config = "run: {env: {env_vars: {HF_HUB_OFFLINE: '1', HF_DATASETS_OFFLINE: 'False', WANDB_MODE: Online}}}"
    assert [(item.level, item.key, item.fix) for item in look(tmp_path, config)] == [
        ("block", f"run.env.env_vars.{name}", f"run.env.env_vars.{name}={value}")
        for name, value in (("HF_DATASETS_OFFLINE", "1"), ("WANDB_MODE", "offline"))
    ]


def test_what_the_code_may_fetch_is_one_note_that_names_all_places(tmp_path: Path) -> None:
    source = "import requests\nrequests.get(one)\nrequests.get(two)\nrequests.get(three)\n"
    (finding,) = look(tmp_path, source=source)
    file = f"{STEPS}/a/step/step.py"
    assert (finding.file, finding.line, finding.also) == (file, 2, (f"{file}:3", f"{file}:4"))


@pytest.mark.parametrize(("site", "ending"), [({}, ""), (PACKAGES, "; the site's mirror must have it")])
def test_what_the_code_installs_must_be_on_the_mirror_if_there_is_one(
    site: dict[str, Any], ending: str, tmp_path: Path
) -> None:
    (finding,) = look(tmp_path, source='import os\nos.system("pip install left-pad")\n', site=site)
    assert finding.text.partition(";") == (finding.text.removesuffix(ending), ending[:1], ending[1:])
    assert (finding.fix is None) is bool(ending)


DOWNLOADS = "downloads when the job starts"
BUILDS = "when the job starts, and pip fetches what builds it"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("apt-get install -y git make", "installs `git`, `make` by apt when the job starts"),
        ("npm install", "installs packages by npm when the job starts"),
        ("pip install -e /opt/x -e /opt/y", f"installs `/opt/x`, `/opt/y` {BUILDS}"),
        ("pip install --no-build-isolation -e /opt/x", f"installs `/opt/x` {BUILDS}"),
        ("pip install --no-deps -e /opt/x", f"installs `/opt/x` {BUILDS}"),
        ("pip install --no-deps --no-build-isolation -e /opt/x", None),
        ("pip install typer -e /opt/x", DOWNLOADS),
        ("pip install git+https://g.example/x -e /opt/x", DOWNLOADS),
        ("pip install git+https://g.example/x", DOWNLOADS),
        ("pip install -r list.txt -e /opt/x", DOWNLOADS),
    ],
)
def test_what_a_command_installs_at_start_is_named(command: str, text: str | None, tmp_path: Path) -> None:
    found = in_image(tmp_path, starting(command), image={"distributions": HELD})
    assert [(item.level, item.text) for item in found if item.kind == "startup"] == ([("block", text)] if text else [])


def test_extras_of_a_profile_are_one_install(tmp_path: Path) -> None:
    (finding,) = look(tmp_path, env_file="pip_extras = ['typer', 'rich']")
    assert (finding.level, finding.value) == ("warn", "typer rich")
    assert finding.text.startswith("is installed by pip when the job starts; without an index")


@pytest.mark.parametrize(
    ("command", "step"),
    [
        ("python -m nemotron.steps._bootstrap.curator -- python -m a -- b", "python -m a -- b"),
        ("pip install left-pad -- other", "python -m MODULE --config {config}"),
        ("pip install left-pad", "python -m MODULE --config {config}"),
    ],
)
def test_a_run_command_is_replaced_by_what_it_starts(command: str, step: str, tmp_path: Path) -> None:
    found = look(tmp_path, f"run: {{env: {{run_command: '{command}'}}}}")
    assert {(item.fix or "").rpartition("run.env.run_command=")[2] for item in found} == {f"'{step}'"}


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ("docs: 'https://x.example${oc.env:PWD}'", "https://x.example/nemo_run/code"),
        ("docs: 'https://x.example${oc.env:NEMO_RUN_DIR}'", "https://x.example/nemo_run"),
        ("docs: 'https://x.example/${oc.env:HOSTNAME}'", "https://x.example/hostname"),
        ("docs: 'https://x.example/${oc.env:USER}'", "https://x.example/me"),
        ("docs: 'https://x.example/${oc.env:OWN}'\n" + env_of("OWN", "o"), "https://x.example/o"),
    ],
)
def test_values_are_shown_as_the_job_sees_them(config: str, shown: str, tmp_path: Path) -> None:
    assert [item.value for item in look(tmp_path, config)] == [shown]


def test_only_variables_are_variables_of_a_job(tmp_path: Path) -> None:
    (finding,) = look(tmp_path, "run: {env: {nodes: 1, env_vars: {OWN: x}}}\na: ${oc.env:nodes}")
    assert (finding.level, finding.kind, finding.key) == ("block", "variable", "a")


def test_the_sites_profile_gives_its_name_and_variables(tmp_path: Path) -> None:
    site = {"profiles": {"base": {"executor": "kubernetes", "env": {"OWN": "o"}}}}
    assert look(tmp_path, "a: ${oc.env:OWN}", env_file="", profile=None, site=site) == []


def test_lustre_of_a_profile_is_a_mount(tmp_path: Path) -> None:
    assert look(tmp_path, "output_dir: /lustre/x", env_file="lustre_mount = '/l:/lustre'") == []


def test_the_fix_of_a_value_names_the_asset_that_is_meant_for_it(tmp_path: Path) -> None:
    assets = StagedAssets((asset(target="/data/base", steps=("a/step",)),))
    fixes = {item.key: item.fix for item in look(tmp_path, "model_name: org/model", assets=assets)}
    assert fixes["model_name"] == "model_name=/data/base"


def test_a_key_that_says_the_same_twice_is_told_once() -> None:
    first = Finding("s", "url", "warn", "f", 1, "a", "v", "t")
    others = [replace(first, key=key, line=line) for key, line in (("b", 2), ("a", 3), ("c", 4), ("b", 5))]
    assert merge_findings([first, *others]) == [replace(first, also=("b", "c"))]
    worse = replace(first, level="block")
    assert merge_findings([first, worse]) == [worse, first]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (("s", "t"), "1 of 2 jobs would fail: 1 blocking finding"),
        (("s",), "1 job would fail: 1 blocking finding"),
    ],
)
def test_a_report_counts_the_jobs_that_would_fail(steps: tuple[str, ...], message: str) -> None:
    report = CheckReport(steps, (Finding("s", "url", "block", "f", 1, "a", "v", "t"),))
    assert report.to_document()["steps"] == list(steps)
    with pytest.raises(FindingsError) as caught:
        report.raise_if_blocked()
    assert caught.value.message == message


OWN = '\n[[consumes]]\ntype = "table"\n[[consumes]]\ntype = "packed_json"\n[[produces]]\ntype = "model"\n'


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("table: output/t.csv", [("input", "table", "is local to the job, not on shared storage")]),
        ("table: /elsewhere/t.csv", [("input", "table", "is not on a mount: containers cannot see it")]),
        ("packed: ./output/packed.json", [("input", "packed", "is local to the job, not on shared storage")]),
        ("input_table_path: /tmp/t.csv", [("input", "input_table_path", "is local to the job, not on shared storage")]),
        ("model: /elsewhere/m.json", [("output", "model", OUTSIDE)]),
        ("model: output/m.json", [("output", "model", OUTSIDE)]),
        ("output: ./output/m.json", [("output", "output", OUTSIDE)]),
        (
            "data_path: /elsewhere/t.csv",
            [("input", "data_path", "is not on a mount: containers cannot see it, unless the image holds it")],
        ),
        ("s: [{file: /scratch/me/t.csv}]", [("input", "s[0].file", "is not on a mount: containers cannot see it")]),
        ("table: prices\nmodel: acme/small\noutput: json\nrows: 3", []),
        ("tokenizer: /opt/tiny\npython: /usr/bin/python3\nhealth_path: /up/ready\nroute: /a/b\npath: /v1/health", []),
        ("sections: {a: {workspace: /lustre/me}}", []),
    ],
)
def test_paths_of_a_catalogues_own_types_are_warned_of_where_they_are_on_no_mount(
    config: str, expected: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    found = [item for item in look(tmp_path, config, toml=OWN) if item.kind in ("input", "output")]
    assert {item.level for item in found} <= {"warn"}
    assert [(item.kind, item.key) for item in found] == [(kind, key) for kind, key, _text in expected]
    for item, (_kind, _key, text) in zip(found, expected, strict=True):
        assert item.text.startswith(text)


def test_a_step_that_cannot_be_looked_at_does_not_keep_others_from_it(tmp_path: Path) -> None:
    write_step(tmp_path, "a/broken", configs={"tiny": "defaults: gone.yaml"})
    write_step(tmp_path, "b/bare", configs={})
    found = look(tmp_path, "use_wandb: true", step="c/last")
    assert [(item.step, item.level) for item in found] == [("a/broken:tiny", "block"), ("c/last:tiny", "warn")]


@pytest.mark.parametrize(
    ("more", "message", "hint"),
    [
        (
            {"receipt": receipt(), "targets": ("b/other:tiny",)},
            "the receipt has no `b/other:tiny`",
            "it has `a/step:tiny`, `c/last:tiny`",
        ),
        (
            {"receipt": receipt().model_copy(update={"targets": (), "steps": {}}), "targets": ("b/other:tiny",)},
            "the receipt has no `b/other:tiny`",
            "it has none",
        ),
        ({"executor": "docker"}, "the site has no executor `docker`", "it has `kubernetes`, `lepton`"),
        (
            {"env_file": "[more]\nexecutor = 'docker'\n", "profile": None},
            "no profile of `{root}/env.toml` selected",
            "`--profile NAME`; there are `base`, `more`",
        ),
    ],
)
def test_what_there_is_instead_is_named(more: dict[str, Any], message: str, hint: str, tmp_path: Path) -> None:
    write_step(tmp_path, "b/other", configs={"tiny": "a: 1"})
    if "targets" in more and more["receipt"].targets:
        loaded = more["receipt"].model_copy(
            update={"targets": ("a/step:tiny", "c/last:tiny"), "steps": {"a/step": PINNED, "c/last": PINNED}}
        )
        more = {**more, "receipt": loaded}
    with pytest.raises(UsageError) as caught:
        look(tmp_path, site={"executors": ["kubernetes", "lepton"]}, **more)
    assert (caught.value.message, caught.value.hint) == (message.format(root=tmp_path), hint)


def selected(root: Path, site: str = "executors: [kubernetes, lepton]\n", **jobs: Any) -> JobSelection:
    (root / "site.yaml").write_text(site)
    return JobSelection(site=root / "site.yaml", **jobs)


def test_a_check_looks_at_what_is_selected(tmp_path: Path) -> None:
    for step in ("a/step", "b/other"):
        write_step(tmp_path, step, configs={"tiny": "a: ${oc.env:OWN}"})
    (tmp_path / "env.toml").write_text("[one]\nexecutor = 'lepton'\n[one.env_vars]\nOWN = 'o'\n")
    copy = CatalogueSource(source=tmp_path)
    every = check(selected(tmp_path), catalogue=copy)
    assert every.steps == ("a/step:tiny", "b/other:tiny") and len(every.blocking) == 2
    one = check(selected(tmp_path, targets=("b/other:tiny",)), catalogue=copy)
    assert one.steps == ("b/other:tiny",)
    held = check(selected(tmp_path, env_file=tmp_path / "env.toml", profile="one"), catalogue=copy)
    assert held.findings == ()
    with pytest.raises(UsageError, match="has no executor `docker`"):
        check(selected(tmp_path, executor="docker"), catalogue=copy)
    with pytest.raises(UsageError, match="`--hash-assets` requires a bundle"):
        check(selected(tmp_path), catalogue=copy, hash_assets=True)


def test_a_check_names_the_overlays_that_lie_next_to_the_receipt_if_there_are_some(tmp_path: Path) -> None:
    mount = "${auto_mount:git+https://g.example/FOX.git@0123abc,/opt/FOX/}"
    write_step(tmp_path, "a/step", configs={"tiny": f"run: {{env: {{mounts: ['{mount}']}}}}"})
    path = tmp_path / "jobs" / "receipt.json"
    path.parent.mkdir()
    path.write_text(receipt(overlays=(BAKED,)).model_dump_json())

    def fix(site: str) -> str:
        report = check(
            selected(tmp_path, site), receipt=path, catalogue=CatalogueSource(source=tmp_path), ask_registry=False
        )
        (finding,) = [item for item in report.findings if item.kind == "git"]
        return finding.fix or ""

    assert fix("executors: [lepton]\n").startswith("-c airgap-overlays/lepton/a/step/tiny.yaml")
    (path.parent / "lepton").mkdir()
    (path.parent / "lepton" / COMMANDS_FILE).write_text("")
    assert fix("executors: [lepton]\n").startswith(f"-c {path.parent}/lepton/a/step/tiny.yaml")
    assert fix("executors: [kubernetes]\n").startswith("-c airgap-overlays/kubernetes/a/step/tiny.yaml")


def test_a_check_asks_the_registry_for_the_sites_platform_unless_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_step(tmp_path, "a/step", configs={"tiny": f"run: {{env: {{container_image: '{PINNED}'}}}}"})
    (tmp_path / "receipt.json").write_text(receipt().model_dump_json())
    asked: list[tuple[list[str], str]] = []

    def ask(names: list[str], *, platform: object, **_more: object) -> dict[str, RegistryImage]:
        asked.append((names, str(platform)))
        return {PINNED: RegistryImage(False, {})}

    monkeypatch.setattr("airferry.jobs.check.ask_images", ask)
    jobs = selected(tmp_path, "executors: [kubernetes]\nplatform: linux/arm64\n")
    copy = CatalogueSource(source=tmp_path)
    report = check(jobs, receipt=tmp_path / "receipt.json", catalogue=copy)
    assert asked == [([PINNED], "linux/arm64")]
    assert "does not have" in "".join(item.text for item in report.blocking)
    check(jobs, receipt=tmp_path / "receipt.json", catalogue=copy, ask_registry=False)
    assert len(asked) == 1
