"""The checklist: golden findings on a catalogue of every shape, then what each part of the site changes about them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airferry.assets.record import hash_asset
from airferry.bundle.manifest import AssetEntry, OverlayEntry
from airferry.bundle.receipt import ReceiptTwin, write_receipt
from airferry.config import SiteProfile
from airferry.errors import ConfigurationError, FindingsError, RegistryError, UsageError
from airferry.jobs.catalogue import CatalogueSource
from airferry.jobs.check import Checked, JobSelection, images_to_ask, run_check
from airferry.jobs.check import check as check_jobs
from airferry.jobs.findings import Finding
from airferry.jobs.report import CheckReport
from airferry.jobs.rules.assets import StagedAssets
from airferry.jobs.rules.paths import path_problem
from airferry.jobs.rules.site import RegistryImage
from airferry.plan.catalogue import catalogue_at
from airferry.plan.env_profiles import read_env_file
from catalogues import STEPS
from checked_catalogue import OPTIMIZER, TOKEN, write_checked_catalogue
from loaded_receipts import DIGEST, PINNED, loaded_receipt

GOLDEN = Path(__file__).parent / "golden" / "check.json"
SITE: dict[str, Any] = {
    "executors": [{"kind": "slurm-pyxis", "version": "4.0"}],
    "registry": "hub.site:5000/airgap",
    "platform": "linux/amd64",
    "mounts": ["/lustre/data:ro", "/lustre/out:rw"],
    "endpoints": {"inside": "http://vllm.site:8000/v1"},
}

BRIDGE = OverlayEntry(repo="Bridge", url="https://github.com/NVIDIA/Bridge.git", ref="0123abc", target="/opt/Bridge")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_checked_catalogue(tmp_path / "code")


def check(root: Path, site: Mapping[str, Any] = SITE, *, images: Any = None, **more: Any) -> CheckReport:
    checked = Checked(
        catalogue_at(root, steps=STEPS),
        SiteProfile.model_validate({"executors": ["kubernetes"], **site}),
        submission={"USER": "me"},
        **more,
    )
    return run_check(checked, images or {})


def brief(finding: Finding) -> list[str]:
    return [finding.level, finding.kind, f"{Path(finding.file).name}:{finding.line}", finding.key, finding.value]


def found(report: CheckReport, kind: str, level: str | None = None) -> list[Finding]:
    return [item for item in report.findings if item.kind == kind and level in (None, item.level)]


def test_the_findings_are_the_golden_ones(root: Path) -> None:
    """Set AIRFERRY_REGENERATE=1 to write them again, and read the difference."""
    report = check(root)
    observed: dict[str, list[list[str]]] = {}
    for finding in report.findings:
        observed.setdefault(finding.step, []).append(brief(finding))
    if os.environ.get("AIRFERRY_REGENERATE"):
        text = json.dumps(observed, indent=1).replace(str(root), "ROOT")
        GOLDEN.write_text(text + "\n")
    assert json.loads(json.dumps(observed).replace(str(root), "ROOT")) == json.loads(GOLDEN.read_text())


def test_no_secret_is_ever_shown(root: Path) -> None:
    text = json.dumps(check(root).to_document())
    for secret in (TOKEN, "0123456789abcdef", "s3cr3tword"):
        assert secret not in text


def test_every_blocking_finding_says_what_to_type(root: Path) -> None:
    report = check(root)
    assert report.blocking
    assert [finding for finding in report.blocking if not finding.fix] == []
    with pytest.raises(FindingsError) as caught:
        report.raise_if_blocked()
    assert caught.value.exit_code == 8 and caught.value.fields["report"] is report


def test_mirrors_and_endpoints_of_the_site_take_findings_back(root: Path) -> None:
    site = {
        **SITE,
        "mirrors": {"huggingface": "https://hub.site", "wandb": "https://wandb.site"},
        "endpoints": {**SITE["endpoints"], "nvidia": "http://v/v1", "x": "https://integrate.api.example/v1"},
    }
    before, after = check(root), check(root, site)
    assert found(before, "huggingface", "block") and not found(after, "huggingface", "block")
    assert {item.level for item in found(after, "huggingface")} == {"note"}
    assert [item.key for item in found(after, "endpoint")] == ["target.url"]
    assert found(before, "artifact") and not found(after, "artifact")
    assert found(before, "offline", "block") and not found(after, "offline", "block")


def test_the_receipt_decides_which_image_is_the_right_one(root: Path) -> None:
    pinned = loaded_receipt("sft/one:tiny", "data_prep/pack:tiny")
    report = check(root, receipt=pinned)
    assert report.steps == ("sft/one:tiny", "data_prep/pack:tiny")
    wanted = f"run.env.container_image=hub.site:5000#airgap/trainer:{DIGEST}"
    assert [(item.step, item.level, item.fix) for item in found(report, "image")] == [
        ("sft/one:tiny", "block", wanted),
        ("data_prep/pack:tiny", "block", wanted),
    ]
    with pytest.raises(UsageError, match="has no `rl/two:tiny`"):
        check(root, receipt=pinned, targets=("rl/two:tiny",))


def test_enroot_before_3_4_is_given_a_tag(root: Path, tmp_path: Path) -> None:
    site = {**SITE, "executors": [{"kind": "slurm-pyxis", "version": "3.3"}]}
    pinned = loaded_receipt("data_prep/pack:tiny")
    (finding,) = found(check(root, site, receipt=pinned), "image")
    assert finding.fix == "run.env.container_image=hub.site:5000#airgap/trainer:airgap"
    folder = tmp_path / "overlays" / "slurm-pyxis" / "data_prep" / "pack"
    folder.mkdir(parents=True)
    base = os.path.relpath(root / STEPS / "data_prep/pack/config/tiny.yaml", folder)
    env = {"container_image": "hub.site:5000#airgap/trainer:airgap"}
    (folder / "tiny.yaml").write_text(json.dumps({"defaults": base, "run": {"env": env}}))
    assert found(check(root, site, receipt=pinned, overlays=tmp_path / "overlays"), "image") == []
    assert found(check(root, receipt=pinned, overlays=tmp_path / "overlays"), "image"), "newer ones take the digest"


def test_what_a_step_clones_by_itself_is_found_unless_it_is_baked(root: Path) -> None:
    (finding,) = found(check(root, receipt=loaded_receipt("optimize/prune:tiny")), "git")
    assert (finding.level, finding.line, finding.value) == ("warn", 3, OPTIMIZER)
    assert finding.file.endswith("optimize/prune/step.py")
    baked = OverlayEntry(repo="Optimizer", url=OPTIMIZER.removesuffix(".git"), ref="main", target="/opt/O", commit=None)
    assert found(check(root, receipt=loaded_receipt("optimize/prune:tiny", overlays=(baked,))), "git") == []
    (root / STEPS / "optimize/prune/step.py").write_text("def broken(:\n")
    assert found(check(root, receipt=loaded_receipt("optimize/prune:tiny")), "git") == []


def test_what_a_step_installs_and_downloads_is_found_and_mirrors_take_it_back(root: Path) -> None:
    (root / STEPS / "optimize/prune/step.py").write_text(
        "import os, requests\nfrom huggingface_hub import snapshot_download\n"
        'os.system("pip install left-pad")\nsnapshot_download("org/model")\n'
        'requests.get("https://files.site/x")\nrequests.get(one)\nrequests.get(two)\n'
    )
    mirrors = {"huggingface": "https://hub.site", "packages": "https://files.site"}

    def from_code(site: dict[str, object]) -> list[tuple[str, str, int, str]]:
        report = check(root, site, receipt=loaded_receipt("optimize/prune:tiny"))
        return [(i.kind, i.level, i.line, i.value) for i in report.findings if i.file.endswith("prune/step.py")]

    address = "https://files.site/x"
    assert sorted(from_code(SITE), key=lambda item: item[2]) == [
        ("startup", "warn", 3, "left-pad"),
        ("huggingface", "warn", 4, "org/model"),
        ("url", "warn", 5, address),
        ("url", "note", 6, ""),
    ]
    assert sorted(from_code({**SITE, "mirrors": mirrors}), key=lambda item: item[2]) == [
        ("startup", "note", 3, "left-pad"),
        ("huggingface", "note", 4, "org/model"),
        ("url", "note", 6, ""),
    ]


def test_overlays_are_what_counts_where_there_are_some(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "overlays" / "slurm-pyxis" / "sft" / "one"
    folder.mkdir(parents=True)
    base = os.path.relpath(root / STEPS / "sft/one/config/tiny.yaml", folder)
    image = f"hub.site:5000#airgap/trainer:{DIGEST}"
    env = {"container_image": image, "mounts": ["/lustre/scratch:/scratch"]}
    (folder / "tiny.yaml").write_text(json.dumps({"defaults": base, "run": {"env": env}}))
    pinned = loaded_receipt("sft/one:tiny", overlays=(BRIDGE,))
    without, within = check(root, receipt=pinned), check(root, receipt=pinned, overlays=tmp_path / "overlays")
    gone = {(item.kind, item.key) for item in without.findings} - {(item.kind, item.key) for item in within.findings}
    assert gone == {("git", "run.env.mounts[0]"), ("image", "run.env.container_image")}
    (cloned,) = [item for item in without.findings if item.kind == "git"]
    assert cloned.fix is not None and cloned.fix.startswith("-c airgap-overlays/slurm-pyxis/sft/one/tiny.yaml, which")
    assert "run.env.mounts=" not in cloned.fix


@pytest.mark.parametrize(
    ("submit", "expected"),
    [
        (None, "-c jobs/slurm-pyxis/sft/one/tiny.yaml, which"),
        ("acme run {step} --file={config} {overrides}", "--file=jobs/slurm-pyxis/sft/one/tiny.yaml, which"),
        ("acme run {step} {config}", "jobs/slurm-pyxis/sft/one/tiny.yaml, which"),
        ("", "jobs/slurm-pyxis/sft/one/tiny.yaml, which"),
    ],
)
def test_the_fix_of_a_clone_names_the_folder_given_and_the_catalogues_command(
    root: Path, submit: str | None, expected: str
) -> None:
    pinned = loaded_receipt("sft/one:tiny", overlays=(BRIDGE,)).model_copy(update={"submit": submit})
    for folder in ({"overlays": Path("jobs")}, {"written": Path("jobs")}):
        (cloned,) = [item for item in check(root, receipt=pinned, **folder).findings if item.kind == "git"]
        assert (cloned.fix or "").startswith(expected)


def test_no_overlay_is_named_for_a_config_that_did_not_travel(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"defaults: {root / STEPS / 'sft/one/config/tiny.yaml'}\n")
    pinned = loaded_receipt("sft/one:tiny", overlays=(BRIDGE,))
    report = check(root, receipt=pinned, targets=(f"sft/one:{own}",))
    (cloned,) = [item for item in report.findings if item.kind == "git"]
    assert cloned.fix is not None and "airgap-overlays/" not in cloned.fix
    assert cloned.fix.startswith("name this config in the plan's `workflow.stages`")


def test_a_checkout_that_the_image_does_not_hold_is_said_to_be_missing(root: Path) -> None:
    (cloned,) = [item for item in check(root, receipt=loaded_receipt("sft/one:tiny")).findings if item.kind == "git"]
    assert cloned.fix is not None and "does not contain it: build the bundle again" in cloned.fix


@pytest.mark.parametrize(
    ("image", "gpu", "expected"),
    [
        (RegistryImage(False, {}), {}, ("image", "does not have")),
        (RegistryImage(False, {}, "no answer"), {}, ("image", "no answer")),
        (RegistryImage(True, {"CUDA_VERSION": "13.0.1"}), {"driver": "570.10"}, ("gpu", "driver 580.0")),
        (RegistryImage(True, {"CUDA_VERSION": "12.8.0"}), {"driver": "550.54"}, None),
        (RegistryImage(True, {"TORCH_CUDA_ARCH_LIST": "7.5 8.0"}), {"compute_capabilities": ["9.0"]}, ("gpu", "9.0")),
        (RegistryImage(True, {"TORCH_CUDA_ARCH_LIST": "8.0 8.6+PTX"}), {"compute_capabilities": ["9.0"]}, None),
        (RegistryImage(True, {"TORCH_CUDA_ARCH_LIST": "9.0a"}), {"compute_capabilities": ["9.0"]}, None),
        (RegistryImage(True, {}), {"driver": "1.0", "compute_capabilities": ["1.0"]}, None),
    ],
)
def test_what_the_registry_says_of_the_image(root: Path, image: RegistryImage, gpu: Any, expected: Any) -> None:
    kubernetes = SiteProfile.model_validate({"executors": ["kubernetes"]})
    pinned = loaded_receipt("data_prep/pack:tiny")
    assert images_to_ask(Checked(catalogue_at(root, steps=STEPS), kubernetes, receipt=pinned)) == [PINNED]
    report = check(root, {**SITE, "gpu": gpu}, receipt=pinned, images={PINNED: image})
    texts = [(item.kind, item.text) for item in report.blocking if "pins the loaded" not in item.text]
    texts = [item for item in texts if item[0] in ("gpu", "image")]
    if expected is None:
        assert texts == []
    else:
        ((kind, text),) = texts
        assert kind == expected[0] and expected[1] in text


def test_what_helps_against_a_problem_of_an_image_is_said(root: Path) -> None:
    image = RegistryImage(True, {}, "its layers are compressed with zstd", fix="build with `compression: gzip`")
    report = check(root, receipt=loaded_receipt("data_prep/pack:tiny"), images={PINNED: image})
    fixes = {item.text: item.fix for item in found(report, "image", "block")}
    assert fixes[image.problem or ""] == image.fix


HIDDEN = RegistryImage(True, {}, "the registry answers 404 to enroot", hidden=True)


def test_an_image_that_is_hidden_from_enroot_blocks_with_the_way_out(root: Path) -> None:
    report = check(root, receipt=loaded_receipt("data_prep/pack:tiny"), images={PINNED: HIDDEN})
    fixes = {item.text: item.fix for item in found(report, "image", "block")}
    assert "build with `docker_twin: true` and load again" in (fixes[HIDDEN.problem or ""] or "")


OVERLAYS_FIRST = (
    "the configs that `airferry overlays` writes resolve 1 of them: check with `--overlays DIR`; "
    "for the rest, set the overrides"
)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (HIDDEN, f"build the bundle again as the findings say, and load it; {OVERLAYS_FIRST}"),
        (RegistryImage(True, {}, "zstd", fix="gzip", other_build=True), "build the bundle again"),
        (RegistryImage(False, {}), f"load the bundle again; {OVERLAYS_FIRST}"),
        (RegistryImage(True, {}), f"{OVERLAYS_FIRST}, or change the site profile and `env.toml`; then check again"),
    ],
)
def test_the_closing_hint_fits_the_findings(root: Path, image: RegistryImage, expected: str) -> None:
    report = check(root, receipt=loaded_receipt("data_prep/pack:tiny"), images={PINNED: image})
    with pytest.raises(FindingsError) as caught:
        report.raise_if_blocked()
    assert (caught.value.hint or "").startswith(expected)
    only = CheckReport(report.steps, tuple(item for item in report.findings if item.remedy != "change"))
    if only.blocking:
        with pytest.raises(FindingsError) as caught:
            only.raise_if_blocked()
        assert "overrides" not in (caught.value.hint or "")


def test_a_registry_that_answers_nothing_is_one_finding_for_all_jobs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, path = tmp_path / "site.yaml", tmp_path / "airgap-receipt.yaml"
    site.write_text("executors: [kubernetes, 'slurm-pyxis:4.0']\n")
    loaded = loaded_receipt("sft/one:tiny", "data_prep/pack:tiny")
    write_receipt(loaded, path)

    asked: list[str] = []

    def refused(status: int | None) -> CheckReport:
        def pull(runtime: str, *_args: object, **_more: object) -> None:
            asked.append(runtime)
            raise RegistryError("cannot pull `trainer`: wrong password", hint="`airferry login hub`", status=status)

        monkeypatch.setattr("airferry.jobs.images.pull_as", pull)
        return check_jobs(JobSelection(site), receipt=path, catalogue=CatalogueSource(root, steps=STEPS))

    for status in (401, 503, None):
        asked.clear()
        report = refused(status)
        assert asked == ["containerd"], "a silent registry is waited for once"
        (finding,) = [item for item in report.findings if item.text.startswith("the images could not be looked up: ")]
        assert ("refuses this one (401)" in finding.text) is (status == 401)
        assert (finding.step, finding.key, finding.level) == ("", "hub.site:5000", "block")
        assert (finding.fix, finding.executors) == ("`airferry login hub`", ("kubernetes", "slurm-pyxis"))
        assert report.findings[0] is finding
        with pytest.raises(FindingsError) as caught:
            replace(report, findings=(finding,)).raise_if_blocked()
        assert caught.value.hint == "`airferry login hub`; then check again"
        assert caught.value.message == "2 jobs would fail on kubernetes and slurm-pyxis: 1 blocking finding"
    assert {item.step for item in refused(403).findings if "wrong password" in item.text} == set(report.steps)


def test_enroot_is_given_the_twin_and_others_the_image(root: Path, tmp_path: Path) -> None:
    loaded = loaded_receipt("data_prep/pack:tiny")
    digest = "sha256:" + "d" * 64
    name = f"hub.site:5000/airgap/trainer@{digest}"
    twin = ReceiptTwin(reference="hub.site:5000/airgap/trainer:airgap-docker", digest=digest, pinned=name)
    pinned = loaded.model_copy(update={"images": (loaded.images[0].model_copy(update={"docker_twin": twin}),)})
    slurm = SiteProfile.model_validate(SITE)
    kubernetes = SiteProfile.model_validate({"executors": ["kubernetes"]})
    catalogue = catalogue_at(root, steps=STEPS)
    assert images_to_ask(Checked(catalogue, slurm, receipt=pinned)) == [PINNED, name]
    assert images_to_ask(Checked(catalogue, kubernetes, receipt=pinned)) == [PINNED]
    wanted = f"run.env.container_image=hub.site:5000#airgap/trainer:{digest}"
    (finding,) = found(check(root, receipt=pinned, images={PINNED: HIDDEN, name: RegistryImage(True, {})}), "image")
    assert (finding.text, finding.fix) == ("nothing pins the loaded image", wanted)

    folder = tmp_path / "overlays" / "slurm-pyxis" / "data_prep" / "pack"
    folder.mkdir(parents=True)
    base = os.path.relpath(root / STEPS / "data_prep/pack/config/tiny.yaml", folder)
    images = {PINNED: HIDDEN, name: RegistryImage(True, {})}
    for image, expected in ((digest, []), (DIGEST, [wanted])):
        env = {"container_image": f"hub.site:5000#airgap/trainer:{image}"}
        (folder / "tiny.yaml").write_text(json.dumps({"defaults": base, "run": {"env": env}}))
        report = check(root, receipt=pinned, overlays=tmp_path / "overlays", images=images)
        assert [item.fix for item in found(report, "image")] == expected


def test_an_image_for_another_cpu_blocks(root: Path) -> None:
    report = check(root, receipt=loaded_receipt("data_prep/pack:tiny", platforms=("linux/arm64",)))
    (finding,) = found(report, "platform")
    assert finding.fix == "build it for linux/amd64: `airferry build --platform linux/amd64`"


ENV_TOML = """\
[base]
executor = "slurm"
remote_job_dir = "/lustre/out/jobs"
mounts = ["/lustre/scratch:/scratch", "${auto_mount:git+https://g/x.git@main,/opt/x}"]
startup_commands = ["export A=1", "python -m pip install --quiet omegaconf"]
run_command = "python -m nemotron.steps._bootstrap.curator_runtime -- python x"

[base.env_vars]
SFT_OUTPUT_DIR = "${oc.env:WORK,/lustre}/out/${oc.env:USER}"
SFT_PACKED_DIR = "/lustre/data/packed"

[child]
extends = "base"

[child.env_vars]
WANDB_MODE = "online"
WANDB_API_KEY = "0123456789abcdef"

[wandb]
project = "p"
"""


def test_the_profile_of_env_toml_counts_and_is_looked_at_itself(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "env.toml"
    path.write_text(ENV_TOML)
    report = check(root, env_file=read_env_file(path), profile="child", targets=("sft/one:tiny",))
    own = {(item.kind, item.key): item for item in report.findings if item.file == str(path)}
    lines = {key: item.line for key, item in own.items()}
    assert lines == {
        ("startup", "child.run_command"): 6,
        ("startup", "child.startup_commands.1"): 5,
        ("git", "child.mounts.1"): 4,
        ("offline", "child.env_vars.WANDB_MODE"): 16,
        ("secret", "child.env_vars.WANDB_API_KEY"): 17,
    }
    assert own["secret", "child.env_vars.WANDB_API_KEY"].value == "***"
    save = [item for item in report.findings if item.key == "checkpoint.save"]
    assert save == [], "the profile sets SFT_OUTPUT_DIR, below a mount that is read-write"
    (packed,) = [item for item in report.findings if item.key == "dataset.packed_train_data_path"]
    assert (packed.value, packed.level) == ("/lustre/data/packed", "note"), "storage that this host does not see"


@pytest.mark.parametrize(
    ("text", "profile", "expected"),
    [
        ("[a]\nb = \n", "a", "env.toml:2: not valid TOML"),
        ("[a]\n", "b", "profile `b` does not exist; available: `a`"),
        ('[a]\nextends = "c"\n', "a", "env.toml:1: profile `a` extends `c`, which does not exist"),
        (
            '[x]\n[a]\nextends = "b"\n[b]\nextends = "a"\n',
            "a",
            "env.toml:4: circular inheritance between profiles: a → b → a",
        ),
        ("[wandb]\n", "wandb", "profile `wandb` does not exist; available: none"),
    ],
)
def test_what_is_wrong_with_env_toml_is_told_at_its_line(
    root: Path, tmp_path: Path, text: str, profile: str, expected: str
) -> None:
    path = tmp_path / "env.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        check(root, env_file=read_env_file(path), profile=profile)
    assert expected in caught.value.message


@pytest.mark.parametrize(
    ("kind", "mounts"),
    [
        ("lepton", "mounts = [{ path = '/s', mount_path = '${oc.env:WORK,/lustre/data}', from = 'node-nfs:x' }]"),
        ("dgxcloud", "pvcs = [{ name = 'store', path = '${oc.env:WORK,/lustre/data}' }]"),
        ("docker", "mounts = ['${oc.env:HOST_DATA,/s}:/lustre/data']"),
    ],
)
def test_storage_of_the_profile_counts_in_each_executors_own_form(
    root: Path, tmp_path: Path, kind: str, mounts: str
) -> None:
    path = tmp_path / "env.toml"
    path.write_text(f"[base]\nexecutor = '{kind}'\n{mounts}\npip_extras = ['typer']\n")
    site = {"executors": [{"kind": kind, "version": "29.1"}]}
    report = check(root, site, env_file=read_env_file(path), profile="base", targets=("byob/mcq:translate",))
    (dataset,) = [item for item in report.findings if item.key == "dataset_path" and item.kind == "input"]
    assert (dataset.level, "is not visible from this host" in dataset.text) == ("note", True)
    (extras,) = found(report, "startup")
    assert (extras.level, extras.key, extras.line, extras.value) == ("warn", "base.pip_extras", 4, "typer")
    mirrored = {**site, "mirrors": {"packages": "https://pypi.site/simple"}}
    assert not found(check(root, mirrored, env_file=read_env_file(path), profile="base"), "startup")


def test_a_profile_without_a_file_and_an_unknown_executor_are_usage_errors(root: Path) -> None:
    with pytest.raises(UsageError, match="is not in any file"):
        check(root, profile="a")
    with pytest.raises(UsageError, match="has no executor `docker`"):
        check(root, executor="docker")


def test_a_profile_is_checked_with_the_executors_that_have_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "env.toml").write_text("[a]\nexecutor = 'slurm'\n[b]\nexecutor = 'docker'\n")
    site = tmp_path / "site.yaml"
    slurm = {"kind": "slurm-pyxis", "version": "4.0", "profile": "a"}
    executors = ["kubernetes", slurm, {"kind": "docker", "version": "29.1", "profile": "b"}]
    site.write_text(json.dumps({"executors": executors}))

    def looked_at(**more: Any) -> tuple[tuple[str, ...], list[str]]:
        jobs = JobSelection(site, env_file=tmp_path / "env.toml", **more)
        report = check_jobs(jobs, catalogue=CatalogueSource(root, steps=STEPS))
        return report.executors, list(report.left_out)

    assert looked_at() == (("slurm-pyxis", "docker"), ["kubernetes"])
    assert looked_at(profile="b") == (("docker",), ["kubernetes", "slurm-pyxis"])
    assert looked_at(executor="docker") == (("docker",), [])
    (tmp_path / "env.toml").write_text("[other]\nexecutor = 'kubernetes'\n")
    assert looked_at(profile="other")[0] == ("kubernetes",), "the first one, where the site names it for none"


def test_storage_is_looked_at_through_mounts(root: Path, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    (storage / "corpus").mkdir(parents=True)
    site = {**SITE, "mounts": [{"path": str(storage), "target": "/lustre/data", "mode": "rw"}]}

    def inputs() -> dict[str, str]:
        report = check(root, site, targets=("rl/two:tiny",))
        return {item.key: item.text.partition(" (")[0] for item in found(report, "input", "block")}

    assert inputs()["input_dir"] == "is an empty folder"
    assert inputs()["deep.input_dir"] == "is not there"
    (storage / "corpus" / "a.txt").write_text("a")
    assert "input_dir" not in inputs()
    report = check(root, site, targets=("rl/two:tiny",))
    assert {item.key for item in found(report, "mount", "note")} == {"input_dir", "deep.input_dir"}


def test_assets_are_looked_at_where_containers_find_them(root: Path, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    (storage / "base").mkdir(parents=True)
    (storage / "base" / "w.safetensors").write_bytes(b"weights")
    manifest = hash_asset(storage / "base", name="base", kind="model", journal=tmp_path / "journal")
    site = {**SITE, "mounts": [{"path": str(storage), "target": "/models"}, "/nowhere:/far:ro"]}

    def look(target: str, *, steps: tuple[str, ...] = (), content: bool = False) -> list[tuple[str, str, str]]:
        entry = AssetEntry(
            name="base", kind="model", steps=steps, target=target, files=1, size_bytes=7, manifest=manifest.digest
        )
        assets = StagedAssets((entry,), {"base": manifest}, content=content)
        report = check(root, site, targets=("byob/mcq:translate",), assets=assets)
        return [(item.level, item.text, item.fix or "") for item in found(report, "asset")]

    assert look("/models/base", content=True) == look("/models/base", steps=("byob/mcq",)) == []
    assert look("/models/gone", steps=("sft/one",)) == [], "another step reads it"
    (storage / "base" / "w.safetensors").write_bytes(b"WEIGHTS")
    assert look("/models/base") == [], "names and sizes are right"
    ((level, text, fix),) = look("/models/base", content=True)
    assert (level, "changed: w.safetensors" in text) == ("block", True)
    assert fix.endswith(f"airferry assets verify BUNDLE {storage}/base --name base")
    (storage / "base" / "w.safetensors").unlink()
    ((level, text, _fix),) = look("/models/base")
    assert (level, "the model `base` differs from what was recorded: missing: w.safetensors" in text) == ("block", True)
    assert "is not there" in look("/models/gone")[0][1]
    assert look("/far/base")[0][0] == "note", "storage that this host does not see"
    assert look("/elsewhere")[0][:2] == (
        "block",
        "the model `base` is expected at `/elsewhere`, which is not on a mount",
    )


def test_what_is_wrong_with_a_path(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "full.parquet").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    assert path_problem(tmp_path / "*.parquet") is None
    assert path_problem(tmp_path / "full") is None
    assert path_problem(tmp_path / "*.bin") == "matches nothing"
    assert path_problem(tmp_path / "empty") == "is an empty file"
    assert path_problem(tmp_path / "none") == "is not there"
    (tmp_path / "loop").symlink_to("loop")
    assert path_problem(tmp_path / "loop") in ("is not there", "cannot be read: too many levels of symbolic links")
    if os.geteuid() != 0:
        (tmp_path / "full.parquet").chmod(0)
        assert path_problem(tmp_path / "full.parquet") == "cannot be read: permission denied"
