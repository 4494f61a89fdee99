"""What a check says to type is taken by Nemotron's loader, and changes the value that it is about."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from airferry.bundle.receipt import ReceiptAsset
from airferry.cli.app import run
from airferry.config import SiteProfile
from airferry.jobs.check import Checked, run_check
from airferry.jobs.findings import Finding
from airferry.jobs.report import CheckReport
from airferry.jobs.settings import setting, variable
from airferry.plan.catalogue import catalogue_at
from airferry.plan.step_config import StepConfigReader
from airferry.plan.step_values import StepValues, read_step_values
from catalogues import STEPS, write_step
from travelling_catalogue import DIGEST, receipt_of

CONFIG = """\
run: {env: {nodes: "${oc.env:NODES,1}", env_vars: {SITE_TOKEN: "${oc.env:SITE_TOKEN,x}"}}}
sections: {base: {host: "${oc.env:HOST_NAME,x}", secret: "${oc.env:CLIENT_SECRET,x}"}}
plain: old
spaced: {key: old}
models:
  - {alias: a, model: org/a, note: "${plain}"}
  - {alias: b, model: org/b}
job: {name: "${oc.env:JOB_NAME,x}", token: "${oc.env:HF_TOKEN,x}"}
"""


def values_of(tmp_path: Path, text: str = CONFIG) -> StepValues:
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    return read_step_values(StepConfigReader(), path, environment={})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (("plain",), "/a path/with 'quotes'"),
        (("spaced", "key"), "[]"),
        (("models", 1, "model"), "/lustre/models/b"),
        (("models", 0, "note"), "x"),
    ],
)
def test_an_override_changes_its_value_and_nothing_else(tmp_path: Path, key: Any, text: str) -> None:
    values = values_of(tmp_path)
    value = values.get(*key)
    assert value is not None
    (typed,) = shlex.split(setting(values.tree, value, text))
    merged: Any = OmegaConf.to_container(
        OmegaConf.merge(OmegaConf.create(dict(values.tree)), OmegaConf.from_dotlist([typed])), resolve=False
    )
    expected: Any = OmegaConf.to_container(OmegaConf.create(dict(values.tree)), resolve=False)
    node = expected
    for part in key[:-1]:
        node = node[part]
    node[key[-1]] = [] if text == "[]" else text
    assert merged == expected


def test_no_override_reaches_into_a_list(tmp_path: Path) -> None:
    """The rule that makes whole lists necessary: it is OmegaConf's, and the loader's."""
    tree = OmegaConf.create(dict(values_of(tmp_path).tree))
    with pytest.raises(TypeError):
        OmegaConf.merge(tree, OmegaConf.from_dotlist(["models[1].model=/x"]))


def test_a_long_list_goes_into_a_config(tmp_path: Path) -> None:
    values = values_of(tmp_path, "models:\n" + "".join(f"  - {{a: {number}, m: {'x' * 40}}}\n" for number in range(20)))
    value = values.get("models", 3, "m")
    assert value is not None
    assert setting(values.tree, value, "/x") == (
        "in a config that inherits this one: `models`, the whole list, with `/x` in `[3].m`"
    )


@pytest.mark.parametrize(
    ("key", "name", "expected"),
    [
        (("job", "name"), "JOB_NAME", "run.env.env_vars.JOB_NAME=VALUE"),
        (("run", "env", "nodes"), "NODES", "run.env.nodes=VALUE"),
        (("sections", "base", "host"), "HOST_NAME", "export HOST_NAME=VALUE, where jobs are submitted"),
        (("sections", "base", "secret"), "CLIENT_SECRET", "have `CLIENT_SECRET` in the environment that submits jobs"),
        (("run", "env", "env_vars", "SITE_TOKEN"), "SITE_TOKEN", "have `SITE_TOKEN` in the environment that submits"),
        (("job", "token"), "HF_TOKEN", "name `HF_TOKEN` below `provides`"),
    ],
)
def test_a_variable_is_set_where_it_is_read_and_a_secret_is_never_typed(
    tmp_path: Path, key: Any, name: str, expected: str
) -> None:
    values = values_of(tmp_path)
    value = values.get(*key)
    assert value is not None
    assert variable(values.tree, value, name).startswith(expected)


# --- fixes of a check ------------------------------------------------------------------------------------------------

SITE: dict[str, Any] = {
    "executors": ["slurm-pyxis:4.0"],
    "mounts": ["/lustre/out:rw", "/lustre/data:ro"],
    "endpoints": {"nvidia": "http://vllm.site:8000/v1"},
}
FIXED = """\
hf_model_path: nvidia/Nano-30B-BF16
hf_dataset: cais/mmlu
dataset: {repo_id: HuggingFaceFW/fineweb-edu, local_dir: ./data/x}
input_path: ./output/splits/train/*.parquet
blend_path: /path/to/blend.json
checkpoint: {save: ./checkpoints/tiny}
data: {default: {dataset_name: HelpSteer3}}
evaluation:
  tasks: [{name: adlr_mmlu}]
server: {url: "https://integrate.api.nvidia.com/v1", model_id: x}
control: {base_url: "https://cloud.example/api/v1"}
models: [{alias: a, model: org/name}]
resolve_hf_placeholders: true
"""
FEEDS = '[step]\nid = "rl/dpo"\n[[consumes]]\ntype = "raw_jsonl"\n[[consumes]]\ntype = "filtered_jsonl"\n'


def check(tmp_path: Path, site: dict[str, Any] = SITE, **more: Any) -> CheckReport:
    root = tmp_path / "code"
    if not root.exists():
        folder = write_step(root, "rl/dpo", configs={"tiny": FIXED})
        (folder / "step.toml").write_text(FEEDS)
    return run_check(Checked(catalogue_at(root, steps=STEPS), SiteProfile.model_validate(site), **more), {})


def fix_of(report: CheckReport, key: str) -> str:
    found: list[Finding] = [item for item in report.findings if item.key == key and item.fix]
    assert found, key
    return found[0].fix or ""


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("hf_model_path", "hf_model_path=/lustre/data/PATH/Nano-30B-BF16"),
        ("input_path", "'input_path=/lustre/data/PATH/*.parquet'"),
        ("blend_path", "blend_path=/lustre/data/PATH/blend.json"),
        ("checkpoint.save", "checkpoint.save=/lustre/out/PATH/tiny"),
        ("hf_dataset", "stage its dataset in a cache of the Hub, and name that: run.env.env_vars.HF_HOME=/lustre/out/"),
        ("resolve_hf_placeholders", "resolve_hf_placeholders=false, with data that already has them replaced"),
        ("dataset.repo_id", "dataset=null, which downloads nothing"),
        ("data.default.dataset_name", "data.default.dataset_name=PreferenceDataset, and `data_path="),
        ("server.url", "server.url=http://vllm.site:8000/v1"),
        ("control.base_url", "control.base_url=https://HOST:PORT/api/v1"),
        ("models[0].model", """'models=[{"alias": "a", "model": "/lustre/data/PATH/name"}]'"""),
    ],
)
def test_a_fix_says_what_is_known_and_only_what_its_key_takes(tmp_path: Path, key: str, expected: str) -> None:
    assert fix_of(check(tmp_path), key).startswith(expected)


def test_the_name_of_a_benchmark_is_never_made_a_path(tmp_path: Path) -> None:
    fix = fix_of(check(tmp_path), "evaluation.tasks[0].name")
    assert "tasks" not in fix.partition("=")[0] and fix.endswith("or leave the task out")


def test_without_mounts_the_place_is_left_open(tmp_path: Path) -> None:
    report = check(tmp_path, {**SITE, "mounts": []})
    assert fix_of(report, "hf_model_path") == "hf_model_path=/PATH/ON/A/MOUNT"
    assert fix_of(report, "checkpoint.save") == "checkpoint.save=/PATH/ON/A/READ-WRITE/MOUNT"


def test_a_staged_asset_is_named_in_the_fix(tmp_path: Path) -> None:
    asset = ReceiptAsset(name="nano", kind="model", target="/lustre/data/nano", steps=("sft/one", "rl/dpo"))
    receipt = receipt_of(DIGEST, assets=(asset,)).model_copy(
        update={"steps": {"rl/dpo": f"hub.site:5000/airgap/trainer@{DIGEST}"}, "targets": ("rl/dpo:tiny",)}
    )
    folder = write_step(tmp_path / "code", "rl/dpo", configs={"tiny": "hf_model_path: nvidia/Nano-30B-BF16\n"})
    assert folder.is_dir()
    assert fix_of(check(tmp_path, receipt=receipt), "hf_model_path") == "hf_model_path=/lustre/data/nano"


def test_a_log_has_all_keys_of_a_finding_and_counts_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "a: {model: org/name}\nb: {model: org/name}\nc: {tokenizer: org/name}\n"
    write_step(tmp_path / "code", "sft/one", configs={"tiny": text, "big": text, "clean": "x: 1\n"})
    assert run(["check", "--source", str(tmp_path / "code"), "--site", str(_no_site(tmp_path))]) == 8
    captured = capsys.readouterr()
    (line,) = [line for line in captured.out.splitlines() if " sft/one:tiny " in line]
    assert line.endswith("(also b.model, c.tokenizer)")
    assert "2 of 3 jobs would fail: 2 blocking findings" in " ".join(captured.err.split())
    assert "step" not in captured.err.replace("steps/", "")


def _no_site(tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text("executors: ['slurm-pyxis:4.0']\n")
    return path
