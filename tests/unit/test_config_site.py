"""The site profile: what it accepts, what it says is wrong, and what it makes of the compression."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.config import Executor, StorageMount, load_config, load_site
from airferry.errors import ConfigurationError
from airferry.plan.planner import make_plan
from catalogues import airgap, write_airgap, write_step

SITE = """\
executors:
  - {kind: slurm-pyxis, version: 3.5, profile: slurm_airgap}
  - kubernetes
registry: registry.site:5000/airgap
platform: linux/amd64
gpu: {driver: 550.54, compute_capabilities: [9.0, "8.0"]}
mounts:
  - /lustre/data
  - {path: /lustre/out, target: /out, mode: rw, purpose: outputs}
mirrors: {huggingface: https://hub.site}
endpoints: {nvidia: http://vllm.site:8000/v1}
profiles:
  slurm_airgap: {executor: slurm-pyxis, env: {HF_HOME: /lustre/data/hf}, provides: [HF_TOKEN]}
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_profile_is_read_from_a_file_of_its_own_or_from_airgap_yaml(tmp_path: Path) -> None:
    own = load_site(write(tmp_path / "site.yaml", SITE))
    inside = "site:\n" + "".join(f"  {line}\n" for line in SITE.splitlines())
    assert load_site(write(tmp_path / "airgap.yaml", inside)) == own
    assert load_config(write(tmp_path / "named.yaml", "site: site.yaml\n")).site == own
    assert load_site(tmp_path / "named.yaml") == own
    assert own.gpu.driver == "550.54" and own.gpu.compute_capabilities == ("9.0", "8.0")
    assert [str(mount) for mount in own.mounts] == ["/lustre/data:/lustre/data:ro", "/lustre/out:/out"]
    name, profile = own.profile_of(own.executors[0]) or ("", None)
    assert name == "slurm_airgap" and profile is not None and profile.env["HF_HOME"] == "/lustre/data/hf"
    assert own.profile_of(own.executors[1]) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("executor: [docker]\n", "site.yaml:1: `executor`: unknown key, did you mean `executors`?"),
        ("executors:\n  - kubernetes\n  - enroot\n", "site.yaml:3: `executors[1]`"),
        ("executors: [slurm-pyxis]\n", "`slurm-pyxis` needs the `version` of enroot"),
        ("executors: [podman, podman]\n", "`podman` is listed twice"),
        ("executors: [{kind: podman, profile: a}]\nprofiles: {b: {}}\n", "names the profile `a`"),
        ("mounts:\n- relative\n", "site.yaml:2: `mounts[0]"),
        ("mounts: ['/a:/b:/c:ro']\n", "expected `PATH[:TARGET][:ro|rw]`"),
        ("mirrors: {huggingface: hub.site}\n", "expected a URL"),
        ("gpu: {compute_capabilities: [H100]}\n", "expected a compute capability"),
        ("registry: https://registry.site\n", "expected `HOST:PORT/PREFIX`"),
        ("", "expected a mapping"),
        ("workflow: {name: x}\n", "it has no `site`"),
        ("site: site.yaml\n", "`site`: unknown key"),
    ],
)
def test_what_is_wrong_is_told_at_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_site(write(tmp_path / "site.yaml", text))
    assert expected in caught.value.message


@pytest.mark.parametrize(
    ("executor", "reads"),
    [("slurm-pyxis:3.5.0", False), ("slurm-pyxis:4", True), ("docker:20.10", False), ("docker:23", True)]
    + [(kind, True) for kind in ("kubernetes", "podman", "lepton", "dgxcloud")],
)
def test_which_executors_read_zstd(executor: str, reads: bool) -> None:
    assert Executor.model_validate(executor).reads_zstd is reads


def test_a_mount_as_text() -> None:
    mount = StorageMount.model_validate("/a/:/b:rw")
    assert (mount.path, mount.inside, mount.mode) == ("/a/", "/b", "rw")


def test_an_executor_that_cannot_read_zstd_selects_gzip_or_the_plan_refuses(tmp_path: Path) -> None:
    write_step(tmp_path, "sft/one")
    document = airgap({"base": "registry.example/base:1"}, {"sft/one": "base"}, site={"executors": ["docker:20.10"]})
    plan = make_plan(load_config(write_airgap(tmp_path, document)))
    assert plan.compression.kind == "gzip" and plan.groups[0].compression.kind == "gzip"

    refused = load_config(write_airgap(tmp_path, {**document, "compression": "zstd"}))
    with pytest.raises(
        ConfigurationError, match=r"airgap.yaml:\d+: `compression`: `docker \(Docker 20.10\)`"
    ) as caught:
        make_plan(refused, stages=["validate"])
    assert "gzip" in (caught.value.hint or "")

    kept = load_config(write_airgap(tmp_path, {**document, "compression": {"kind": "preserve"}}))
    assert make_plan(kept).compression.kind == "preserve"
    able = load_config(write_airgap(tmp_path, {**document, "site": {"executors": ["docker:24.0"]}}))
    assert make_plan(able).compression.kind == "zstd"
