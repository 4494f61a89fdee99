"""Config overlays: resolved as the steps' own loader does, they change two keys and nothing else."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from airferry import api
from airferry.bundle.manifest import OverlayEntry
from airferry.bundle.receipt import Receipt, ReceiptAsset, write_receipt
from airferry.config import SiteProfile
from airferry.errors import ConfigurationError
from airferry.jobs.configs import OverlaySet, make_overlays
from airferry.plan.catalogue import catalogue_at
from catalogues import STEPS, write_step
from loaded_receipts import DIGEST, PINNED, loaded_receipt
from nemotron_rules import environment_of_job, load_as_steps_do

BRIDGE = ("https://git.example/Bridge.git", "0123abc", "/opt/Bridge")
MOUNT = "${auto_mount:git+%s@%s,%s}" % BRIDGE  # noqa: UP031 (braces of its own)
BASE = f"""\
run:
  env:
    container_image: nvcr.io/nvidia/nemo:26.04
    nodes: 2
    mounts:
      - {MOUNT}
      - ${{oc.env:DATA,/lustre}}:/data
    env_vars: {{NAME: "${{oc.env:NAME,x}}"}}
train: {{iters: 5, lr: 1.0e-4, path: "${{output}}/a"}}
output: ./out
"""
SITE = SiteProfile.model_validate(
    {
        "executors": [{"kind": "slurm-pyxis", "version": "4.0", "profile": "slurm_sft"}, "kubernetes"],
        "mounts": ["/lustre/data", "/lustre/out:/out:rw"],
        "mirrors": {"huggingface": "https://hub.site"},
        "profiles": {"slurm_sft": {"env": {"HF_HOME": "/lustre/data/hf", "NOTE": 'a "quoted" word'}}},
    }
)


def flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {name: leaf for part, item in value.items() for name, leaf in flat(item, f"{key}.{part}").items()}
    return {key.lstrip("."): value}


def receipt(*targets: str, steps: dict[str, str] | None = None, baked: tuple[str, str, str] = BRIDGE) -> Receipt:
    url, ref, target = baked
    overlay = OverlayEntry(repo="Bridge", url=url, ref=ref, target=target, commit="0" * 40)
    return loaded_receipt(*targets, steps=steps, overlays=(overlay,))


def overlays(tmp_path: Path, loaded: Receipt, site: SiteProfile = SITE) -> OverlaySet:
    made = make_overlays(loaded, catalogue_at(tmp_path / "code", steps=STEPS), site=site, out=tmp_path / "overlays")
    for name, text in made.files.items():
        path = tmp_path / "overlays" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return made


@pytest.mark.parametrize(
    ("configs", "config", "cleared"),
    [
        ({"tiny": BASE}, "tiny", ["${oc.env:DATA,/lustre}:/data"]),
        ({"default": BASE, "tiny": "defaults: default.yaml\ntrain: {iters: 1}\n"}, "tiny", None),
        ({"default": "run: {env: {nodes: 1}}\na: [1, 2]\n"}, "default", "absent"),
    ],
)
@pytest.mark.parametrize("executor", ["slurm-pyxis", "kubernetes"])
def test_only_two_keys_change(
    tmp_path: Path, configs: dict[str, str], config: str, cleared: Any, executor: str
) -> None:
    folder = write_step(tmp_path / "code", "sft/one", configs=configs)
    made = overlays(tmp_path, receipt(f"sft/one:{config}"))
    before = flat(OmegaConf.to_container(load_as_steps_do(folder / "config" / f"{config}.yaml")))
    after = flat(OmegaConf.to_container(load_as_steps_do(tmp_path / "overlays" / executor / f"sft/one/{config}.yaml")))
    image = {
        "slurm-pyxis": f"hub.site:5000#airgap/trainer:{DIGEST}",
        "kubernetes": f"hub.site:5000/airgap/trainer@{DIGEST}",
    }[executor]
    expected = {**before, "run.env.container_image": image}
    if cleared != "absent":
        expected["run.env.mounts"] = ["${oc.env:DATA,/lustre}:/data"]
    assert after == expected
    (step,) = [step for step in made.steps if step.executor == executor]
    assert step.cleared == (() if cleared == "absent" else (f"{BRIDGE[0]}@{BRIDGE[1]},{BRIDGE[2]}",))


SLURM, PLAIN = f"hub.site:5000#airgap/trainer:{DIGEST}", f"hub.site:5000/airgap/trainer@{DIGEST}"


@pytest.mark.parametrize(
    ("executor", "expected"),
    [
        ("slurm-pyxis:3.3", "hub.site:5000#airgap/trainer:airgap"),
        ("slurm-pyxis:3.4", SLURM),
        ("slurm-pyxis:4.0", SLURM),
        ("slurm-pyxis:4.1.2", SLURM),
        ("kubernetes", PLAIN),
        ("lepton", PLAIN),
        ("dgxcloud", PLAIN),
        ("docker:29.1", PLAIN),
        ("podman", PLAIN),
    ],
)
def test_each_executor_gets_the_image_in_its_own_form(tmp_path: Path, executor: str, expected: str) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": BASE})
    made = overlays(tmp_path, receipt("sft/one:tiny"), SiteProfile.model_validate({"executors": [executor]}))
    kind = executor.partition(":")[0]
    config = load_as_steps_do(tmp_path / "overlays" / kind / "sft/one/tiny.yaml")
    assert config.run.env.container_image == expected
    assert any("does not accept digests" in note for note in made.notes) == executor.endswith(":3.3")


def test_storage_is_in_each_executors_own_form(tmp_path: Path) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": BASE})
    site = {"executors": ["lepton", "dgxcloud", "docker:29.1"], "mounts": ["/lustre/data", "/lustre/out:/out:rw"]}
    files = overlays(tmp_path, receipt("sft/one:tiny"), SiteProfile.model_validate(site)).files
    profiles = {kind: tomllib.loads(files[f"{kind}/env.toml"])[f"{kind}_airgap"] for kind in ("lepton", "dgxcloud")}
    assert profiles["lepton"]["mounts"] == [
        {"path": "/lustre/data", "mount_path": "/lustre/data"},
        {"path": "/lustre/out", "mount_path": "/out"},
    ]
    assert "mounts" not in profiles["dgxcloud"] and "#   /lustre/out:/out" in files["dgxcloud/env.toml"]
    docker = tomllib.loads(files["docker/env.toml"])["docker_airgap"]
    assert docker["mounts"] == ["/lustre/data:/lustre/data:ro", "/lustre/out:/out"]


def test_the_command_is_whole_and_names_the_overlay_and_the_profile(tmp_path: Path) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": BASE})
    write_step(tmp_path / "code", "eval/none", configs={})
    made = overlays(tmp_path, receipt("sft/one:tiny", "eval/none"))
    commands = {(step.target, step.executor): step.command for step in made.steps}
    path = tmp_path / "overlays/slurm-pyxis/sft/one/tiny.yaml"
    assert commands["sft/one:tiny", "slurm-pyxis"] == f"nemotron steps run sft/one -c {path} -b slurm_sft_airgap"
    assert commands["eval/none", "kubernetes"] == (
        f"nemotron steps run eval/none -b kubernetes_airgap run.env.container_image={PINNED}"
    )
    submit = (tmp_path / "overlays/slurm-pyxis/submit.txt").read_text()
    assert submit.startswith("#")
    assert submit.splitlines()[1:] == [step.command for step in made.steps if step.executor == "slurm-pyxis"]
    assert any("kubernetes" in note for note in made.notes)
    image = commands["eval/none", "slurm-pyxis"].split()[-1].strip("'")
    assert OmegaConf.from_dotlist([image]).run.env.container_image == f"hub.site:5000#airgap/trainer:{DIGEST}"


def test_the_profile_extends_the_sites_own_one_and_goes_to_its_mirrors(tmp_path: Path) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": BASE})
    made = overlays(tmp_path, receipt("sft/one:tiny"))
    profile = tomllib.loads(made.files["slurm-pyxis/env.toml"])["slurm_sft_airgap"]
    assert profile == {
        "extends": "slurm_sft",
        "executor": "slurm",
        "mounts": ["/lustre/data:/lustre/data:ro", "/lustre/out:/out"],
        "env_vars": {
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "WANDB_MODE": "offline",
            "HF_ENDPOINT": "https://hub.site",
            "HF_HOME": "/lustre/data/hf",
            "NOTE": 'a "quoted" word',
        },
    }
    kubernetes = SiteProfile.model_validate({"executors": ["kubernetes"]})
    other = tomllib.loads(overlays(tmp_path, receipt("sft/one:tiny"), kubernetes).files["kubernetes/env.toml"])
    assert other["kubernetes_airgap"]["env_vars"]["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("submit", ["acme run {step} --config {config} --cluster {profile} {overrides}", ""])
def test_a_fragment_for_another_catalogue_names_nothing_of_nemotron(tmp_path: Path, submit: str) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": BASE})
    nemotron = overlays(tmp_path, receipt("sft/one:tiny")).files["slurm-pyxis/env.toml"]
    assert "NEMOTRON_ENV_FILE" in nemotron
    loaded = receipt("sft/one:tiny").model_copy(update={"submit": submit})
    text = overlays(tmp_path, loaded).files["slurm-pyxis/env.toml"]
    assert "NEMOTRON" not in text and "env.toml" not in text and "`submit.txt`" in text
    assert tomllib.loads(text) == tomllib.loads(nemotron)


STAGED = """\
hf_model_path: ${oc.env:SFT_MODEL,nvidia/Nano-30B-BF16}
tokenizer: {name: "${hf_model_path}"}
reward: {model_name: "Qwen/Reward-4B", kept: 1}
stages:
  - {name: a, dataset_path: /path/to/train.jsonl}
  - {name: b, dataset_path: /path/to/train.jsonl}
train: {iters: 5}
"""
CONSUMES = '[[consumes]]\ntype = "benchmark_parquet"\n'


def staged(*assets: tuple[str, str, str, tuple[str, ...]]) -> tuple[ReceiptAsset, ...]:
    return tuple(ReceiptAsset(name=name, kind=kind, target=target, steps=steps) for name, kind, target, steps in assets)


def test_a_declared_asset_takes_the_place_of_what_it_is_for(tmp_path: Path) -> None:
    folder = write_step(tmp_path / "code", "sft/one", configs={"tiny": STAGED})
    (folder / "step.toml").write_text(f'[step]\nid = "sft/one"\n{CONSUMES}')
    assets = staged(
        ("nano", "model", "/lustre/models/nano-30b-bf16", ()),
        ("reward-4b", "model", "/lustre/models/rm", ()),
        ("chat", "dataset", "/lustre/data/chat.jsonl", ("sft/one",)),
        ("elsewhere", "model", "/lustre/models/other", ("eval/two",)),
    )
    made = overlays(tmp_path, receipt("sft/one:tiny").model_copy(update={"assets": assets}))
    config = load_as_steps_do(tmp_path / "overlays/slurm-pyxis/sft/one/tiny.yaml")
    assert config.hf_model_path == config.tokenizer.name == "/lustre/models/nano-30b-bf16"
    assert OmegaConf.to_container(config.reward) == {"model_name": "/lustre/models/rm", "kept": 1}
    assert [dict(stage) for stage in config.stages] == [
        {"name": "a", "dataset_path": "/lustre/data/chat.jsonl"},
        {"name": "b", "dataset_path": "/lustre/data/chat.jsonl"},
    ]
    assert config.train.iters == 5
    step = made.steps[0]
    assert step.to_document()["staged"]["hf_model_path"] == "/lustre/models/nano-30b-bf16"
    text = made.files["slurm-pyxis/sft/one/tiny.yaml"]
    assert "# Staged: hf_model_path is the asset nano" in text and "${oc.env:SFT_MODEL,/lustre/models/nano" in text
    assert not any("cannot tell which key" in note for note in made.notes)


def test_the_variable_that_a_value_reads_still_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": STAGED})
    assets = staged(("nano", "model", "/lustre/models/nano-30b-bf16", ()))
    overlays(tmp_path, receipt("sft/one:tiny").model_copy(update={"assets": assets}))
    monkeypatch.setenv("SFT_MODEL", "/mine")
    assert load_as_steps_do(tmp_path / "overlays/slurm-pyxis/sft/one/tiny.yaml").hf_model_path == "/mine"


@pytest.mark.parametrize(
    ("assets", "expected"),
    [
        # two that could be meant, and two values that could be
        ([("a", "model", "/m/a", ("sft/one",)), ("b", "model", "/m/b", ("sft/one",))], {"a", "b"}),
        ([("a", "model", "/m/a", ("sft/one",))], {"a"}),
        # a folder is not a place for a file
        ([("d", "dataset", "/data/folder", ("sft/one",))], {"d"}),
        # declared for every step: nothing says that this one reads it
        ([("d", "dataset", "/data/x.jsonl", ())], set()),
        # another kind
        ([("t", "other", "/data/x.jsonl", ("sft/one",))], {"t"}),
        # without a place
        ([("n", "model", None, ("sft/one",))], set()),
    ],
)
def test_what_is_not_clear_is_left_alone_and_said(tmp_path: Path, assets: Any, expected: set[str]) -> None:
    folder = write_step(tmp_path / "code", "sft/one", configs={"tiny": STAGED})
    (folder / "step.toml").write_text(f'[step]\nid = "sft/one"\n{CONSUMES}')
    made = overlays(tmp_path, receipt("sft/one:tiny").model_copy(update={"assets": staged(*assets)}))
    assert made.steps and not any(step.staged for step in made.steps)
    said = {note.partition("for asset `")[2].partition("`")[0] for note in made.notes if "cannot tell" in note}
    assert said == expected


PROFILE = {
    "executor": "slurm",
    "container_image": "hub.site:5000/other",
    "mounts": ["/lustre:/lustre", "/home:/home"],
    "env_vars": {"A": "1"},
}


def test_the_submitted_job_keeps_the_storage_of_the_profile(tmp_path: Path) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": BASE})
    command = next(step.command for step in overlays(tmp_path, receipt("sft/one:tiny")).steps)
    job = environment_of_job(command, PROFILE)
    assert job["mounts"] == ["${oc.env:DATA,/lustre}:/data", "/lustre:/lustre", "/home:/home"]
    assert job["container_image"] == f"hub.site:5000#airgap/trainer:{DIGEST}" and job["nodes"] == 2
    assert job["env_vars"]["A"] == "1" and "NAME" in job["env_vars"]


def test_no_override_can_stand_in_for_the_overlay(tmp_path: Path) -> None:
    """What the command line says comes after the profile, and takes its storage away."""
    folder = write_step(tmp_path / "code", "sft/one", configs={"tiny": BASE})
    command = f"nemotron steps run sft/one -c {folder / 'config/tiny.yaml'} -b slurm"
    assert MOUNT in environment_of_job(command, PROFILE)["mounts"]
    assert environment_of_job(f"{command} 'run.env.mounts=[]'", PROFILE)["mounts"] == []


def test_configs_of_one_step_may_have_their_own_images_and_a_bare_step_its_default(tmp_path: Path) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": BASE, "default": "a: 1\n"})
    loaded = receipt("sft/one:tiny", "sft/one", steps={"sft/one:tiny": PINNED, "sft/one": PINNED})
    paths = {step.target: step.path for step in overlays(tmp_path, loaded).steps if step.executor == "kubernetes"}
    assert paths == {
        "sft/one:tiny": "kubernetes/sft/one/tiny.yaml",
        "sft/one:default": "kubernetes/sft/one/default.yaml",
    }


@pytest.mark.parametrize(
    ("configs", "loaded", "expected"),
    [
        ({"tiny": BASE}, receipt("sft/one:tiny", baked=(BRIDGE[0], "another", BRIDGE[2])), "is not baked into"),
        ({"other": BASE}, receipt("sft/one:tiny"), "has no config `tiny`"),
        ({"tiny": "defaults: gone.yaml\n"}, receipt("sft/one:tiny"), "tiny.yaml:1: `defaults`"),
        ({"tiny": BASE}, receipt("sft/two:tiny"), "there is no step `sft/two`"),
        ({"tiny": "run: {env: {mounts: ['${auto_mount:git+x}']}}\n"}, receipt("sft/one:tiny"), "has no `@REF`"),
    ],
)
def test_what_the_catalogue_contradicts_is_refused(
    tmp_path: Path, configs: dict[str, str], loaded: Receipt, expected: str
) -> None:
    write_step(tmp_path / "code", "sft/one", configs=configs)
    with pytest.raises(ConfigurationError) as caught:
        overlays(tmp_path, loaded)
    assert expected in caught.value.message
    assert ("catalogue of the bundle" in (caught.value.hint or "")) == ("has no config" in expected)


def test_a_folder_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no steps folder"):
        catalogue_at(tmp_path, steps=STEPS)


def test_paths_in_commands_have_no_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.yaml").write_text("executors: [kubernetes]\n")
    write_step(tmp_path / "code", "sft/one", configs={"tiny": BASE})
    write_receipt(receipt("sft/one:tiny"), tmp_path / "receipt.yaml")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    copy = api.CatalogueSource(Path("../code"))

    def command(out: str) -> str:
        made = api.overlays(Path("../receipt.yaml"), catalogue=copy, site=Path("../site.yaml"), out=Path(out))
        (config,) = [word for word in made.steps[0].command.split() if word.endswith("tiny.yaml")]
        assert Path(config).is_file()
        return made.steps[0].command

    assert f" -c {tmp_path}/jobs/kubernetes/sft/one/tiny.yaml " in command("../jobs")
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "here/link").symlink_to(tmp_path / "deep/er")
    assert f" -c {tmp_path}/here/jobs/" in command("link/../jobs")
