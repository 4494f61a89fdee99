"""The far side's commands after a load, as they are typed: what they print, write and exit with."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from airferry import api
from airferry.bundle.manifest import OverlayEntry
from airferry.bundle.receipt import Receipt, ReceiptImage, write_receipt
from airferry.cli.app import run
from airferry.config import load_site
from airferry.errors import UsageError
from catalogues import write_step
from checked_catalogue import write_checked_catalogue
from next_steps import next_commands

DIGEST = "sha256:" + "d" * 64
PINNED = f"hub.site:5000/airgap/trainer@{DIGEST}"

AIRGAP = """\
workflow: {name: one, stages: ['sft/one:tiny']}
step_execution_images: {sft/one: {execution_image: trainer}}
execution_images: {trainer: {base_image: hub/base:1}}
"""


def put_receipt(folder: Path, *, target: str = "sft/one:tiny") -> Path:
    overlay = OverlayEntry(
        repo="Bridge", url="https://github.com/NVIDIA/Bridge.git", ref="0123abc", target="/opt/Bridge", commit=None
    )
    common = {"digest": DIGEST, "platforms": ("linux/amd64",)}
    trainer = ReceiptImage(
        name="trainer",
        role="execution",
        image="trainer:airgap",
        reference="hub.site:5000/airgap/trainer:airgap",
        pinned=PINNED,
        overlays=(overlay,),
        **common,
    )
    base = ReceiptImage(
        name="nvcr.io/nvidia/nemo:26.04",
        role="base",
        image="nvcr.io/nvidia/nemo:26.04",
        reference="hub.site:5000/airgap/nvidia/nemo:26.04",
        pinned=f"hub.site:5000/airgap/nvidia/nemo@{DIGEST}",
        **common,
    )
    receipt = Receipt(
        bundle_root=DIGEST,
        root_verified=True,
        registry="hub.site:5000/airgap",
        loaded_at="2026-01-01T00:00:00Z",
        airferry="0",
        images=(trainer, base),
        steps={target.partition(":")[0]: PINNED},
        targets=(target,),
    )
    write_receipt(receipt, folder / "airgap-receipt.yaml")
    return folder / "airgap-receipt.yaml"


@pytest.mark.usefixtures("on_kubernetes")
def test_a_missing_receipt_is_told_with_what_writes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["overlays", "gone.yaml"], ["check", "gone.yaml", "--source", str(tmp_path)]):
        assert run(words) == 4
        said = " ".join(capsys.readouterr().err.split())
        assert "there is no receipt `gone.yaml`" in said and "airferry load BUNDLE --to HOST:PORT/PREFIX" in said


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFERRY_SITE", "AIRFERRY_SOURCE", "AIRFERRY_ROOT", "NEMOTRON_ENV_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_init_writes_what_later_commands_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--executor", "slurm-pyxis:3.5", "--executor", "podman", "--profile", "slurm-pyxis=slurm_sft"]
    options += ["--mount", "/lustre/data:ro", "--endpoint", "nvidia=http://v/v1", "--compute-capability", "9.0"]
    assert run(["site", "init", *options]) == 0
    site = load_site(tmp_path / "site.yaml")
    assert [str(executor) for executor in site.executors] == ["slurm-pyxis (enroot 3.5)", "podman"]
    assert site.executors[0].profile == "slurm_sft" and site.endpoints == {"nvidia": "http://v/v1"}
    assert "gpu" in yaml.safe_load((tmp_path / "site.yaml").read_text())
    assert "mirrors" not in yaml.safe_load((tmp_path / "site.yaml").read_text())
    assert "cannot read zstd" in capsys.readouterr().err
    assert run(["site", "init", *options]) == 2
    before = (tmp_path / "site.yaml").read_bytes()
    wrong = ["--executor", "enroot", "--mount", "data", "--gpu-driver", "new", "--endpoint", "nvidia=v"]
    assert run(["site", "init", "--force", *wrong, "--platform", "linux/amd46"]) == 2
    said = capsys.readouterr().err
    assert "`--executor`: `enroot` is not an executor that airferry knows, did you mean `slurm-pyxis`?" in said
    for option in ("--mount", "--gpu-driver", "--endpoint", "--platform"):
        assert f"  `{option}`: " in said
    assert "site.yaml:" not in said and "was not written" in said
    assert (tmp_path / "site.yaml").read_bytes() == before
    assert load_site(tmp_path / "site.yaml") == site, "a wrong profile does not take the place of a right one"
    assert run(["site", "init", "--force", "--profile", "docker=x"]) == 2
    assert run(["site", "init", "--force", "--endpoint", "x"]) == 2


def test_overlays_print_the_commands_and_check_accepts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = tmp_path / "code"
    text = "run: {env: {mounts: ['${auto_mount:git+https://github.com/NVIDIA/Bridge.git@0123abc,/opt/Bridge}']}}\n"
    write_step(code, "sft/one", configs={"tiny": text})
    receipt = put_receipt(tmp_path)
    (tmp_path / "site.yaml").write_text("executors: ['slurm-pyxis:4.0']\n")
    arguments = [str(receipt), "--source", str(code)]
    assert run(["check", *arguments, "--no-registry"]) == 8
    assert "is cloned when the job starts" in capsys.readouterr().out
    assert run(["overlays", *arguments, "--out", "made"]) == 0
    path = tmp_path / "made/slurm-pyxis/sft/one/tiny.yaml"
    printed = capsys.readouterr()
    assert printed.out == f"nemotron steps run sft/one -c {path} -b slurm_pyxis_airgap\n"
    (after,) = next_commands(printed.err)
    assert after == ["check", str(receipt), "--overlays", "made", "--source", str(code)]
    assert run([*after, "--no-registry"]) == 0, "what is printed is what checks"
    then = next_commands(capsys.readouterr().err)
    nodes, profile, commands = (Path(file).read_text() for _cat, file in then)
    assert "machine hub.site login" in nodes and "slurm_pyxis_airgap" in profile and str(path) in commands
    assert yaml.safe_load(path.read_text())["run"]["env"] == {
        "container_image": f"hub.site:5000#airgap/trainer:{DIGEST}",
        "mounts": [],
    }
    assert run(["check", *arguments, "--no-registry", "--overlays", "made"]) == 0
    assert run(["overlays", *arguments, "--out", "made", "--json"]) == 0
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    assert step["overlay"] == "slurm-pyxis/sft/one/tiny.yaml"
    assert run(["overlays", *arguments, "--root", "sha256:" + "e" * 64]) == 6
    assert run(["check", *arguments, "--no-registry", "--overlays", "gone"]) == 2
    assert run(["overlays", str(receipt), "--source", str(tmp_path)]) == 3


def test_check_is_for_every_executor_and_says_which_it_is_not_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "code"
    write_step(code, "sft/one", configs={"tiny": "a: 1\n"})
    (tmp_path / "site.yaml").write_text("executors: [kubernetes, 'slurm-pyxis:4.0']\n")
    arguments = [str(put_receipt(tmp_path)), "--source", str(code)]
    checking = ["check", *arguments, "--no-registry", "--overlays", "made"]
    assert run(["overlays", *arguments, "--out", "made"]) == 0
    capsys.readouterr()
    assert run(checking) == 0
    said = capsys.readouterr().err
    assert "Nothing blocks 1 job on kubernetes and slurm-pyxis." in said
    assert "Not checked: whether the registry holds the images (`--no-registry`)." in " ".join(said.split())
    files = [file for _cat, file in next_commands(said)]
    assert [file for file in files if file.endswith("submit.txt")] == [
        "made/kubernetes/submit.txt",
        "made/slurm-pyxis/submit.txt",
    ]

    # only the second one cannot run
    overlay = tmp_path / "made/slurm-pyxis/sft/one/tiny.yaml"
    overlay.write_text(overlay.read_text().replace("hub.site:5000#", "hub.elsewhere:5000#"))
    assert run(checking) == 8
    shown = capsys.readouterr()
    assert shown.out.count("block") == 1 and shown.out.rstrip().endswith("(on slurm-pyxis)")
    assert "Nothing blocks 1 job on kubernetes." in shown.err and "1 job would fail on slurm-pyxis" in shown.err
    assert run([*checking, "--json"]) == 8
    document = json.loads(capsys.readouterr().out)
    assert document["executors"] == ["kubernetes", "slurm-pyxis"] and document["steps"] == ["sft/one:tiny"]
    assert [item["executors"] for item in document["findings"] if item["level"] == "block"] == [["slurm-pyxis"]]
    assert not document["images_asked"]
    assert run([*checking, "--executor", "kubernetes"]) == 0
    assert "slurm-pyxis" not in capsys.readouterr().err

    # an executor without overlays is named
    shutil.rmtree(tmp_path / "made/slurm-pyxis")
    assert run(checking) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "Nothing blocks 1 job on kubernetes." in said and "Not checked for slurm-pyxis: `made` has no overlays" in said
    )


def test_overlays_of_another_load_are_named_as_such_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": "a: 1\n", "more": "a: 2\n"})
    (tmp_path / "site.yaml").write_text("executors: [kubernetes, 'slurm-pyxis:4.0']\n")
    receipt = put_receipt(tmp_path)
    newer = tmp_path / "airgap-receipt-newer.yaml"
    other = "sha256:" + "e" * 64
    newer.write_text(receipt.read_text().replace(DIGEST, other))
    arguments = ["--source", str(tmp_path / "code")]
    assert run(["overlays", str(newer), *arguments, "--out", "made"]) == 0
    capsys.readouterr()
    checking = [*arguments, "--no-registry", "--overlays", "made"]
    assert run(["check", str(receipt), *checking]) == 8
    shown = capsys.readouterr()
    (line,) = shown.out.splitlines()
    assert line.startswith("block  all jobs  made: these overlays are of another load")
    assert f"bundle `{other}`" in line and "airgap-receipt-newer.yaml" in line and f"is of bundle `{DIGEST}`" in line
    said = " ".join(shown.err.split())
    assert "1 job would fail on kubernetes and slurm-pyxis: 1 blocking finding" in said
    assert f"write the overlays again with `airferry overlays {receipt} --out made`" in said.replace("` ", "`")
    assert "set the overrides" not in said and "run.env.container_image" not in line
    assert run(["check", str(newer), *checking]) == 0
    newer.unlink()
    assert run(["check", str(receipt), *checking]) == 8
    assert "another load (no receipt here)" in capsys.readouterr().out, "the repository is the same"


def test_a_catalogue_without_a_submit_command_takes_the_sites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": "a: 1\n"})
    receipt = put_receipt(tmp_path)
    receipt.write_text(receipt.read_text() + "submit: ''\n")
    arguments = [str(receipt), "--source", str(tmp_path / "code")]
    checking = ["check", *arguments, "--no-registry", "--overlays", "made"]
    assert run(["site", "init", "--executor", "kubernetes"]) == 0
    capsys.readouterr()
    assert run(["overlays", *arguments, "--out", "made"]) == 0
    shown = capsys.readouterr()
    submitting = tmp_path / "made/kubernetes/submit.txt"
    assert f" image={PINNED} config={tmp_path}/made/kubernetes/sft/one/tiny.yaml profile=" in shown.out
    hint = "write your site's as `submit:` into the site profile"
    assert hint in " ".join(shown.err.split()) and hint in submitting.read_text()
    assert {line[:1] for line in submitting.read_text().splitlines()} == {"#"}
    assert run(checking) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "then run the jobs' commands" not in said and "then submit the jobs: what each needs, and how" in said

    assert run(["site", "init", "--force", "--executor", "kubernetes", "--submit", "acme run --config {config}"]) == 2
    assert "`{step}` is missing" in " ".join(capsys.readouterr().err.split())
    command = "acme run {step} --config {config}"
    assert run(["site", "init", "--force", "--executor", "kubernetes", "--submit", command]) == 0
    assert run(["overlays", *arguments, "--out", "made"]) == 0
    path = tmp_path / "made/kubernetes/sft/one/tiny.yaml"
    assert f"acme run sft/one --config {path}\n" in submitting.read_text()
    assert run(checking) == 0
    assert "then run the jobs' commands" in " ".join(capsys.readouterr().err.split())


def test_fixes_are_told_apart_by_executor_where_they_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": "a: 1\n"})
    (tmp_path / "site.yaml").write_text("executors: [kubernetes, 'slurm-pyxis:4.0']\n")
    receipt = str(put_receipt(tmp_path))
    assert run(["check", receipt, "--source", str(tmp_path / "code"), "--no-registry", "--fixes"]) == 8
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert lines == [
        "# sft/one:tiny on kubernetes",
        f"run.env.container_image=hub.site:5000/airgap/trainer@{DIGEST}",
        "# sft/one:tiny on slurm-pyxis",
        f"run.env.container_image=hub.site:5000#airgap/trainer:{DIGEST}",
    ]


def test_what_an_earlier_run_wrote_does_not_linger(tmp_path: Path) -> None:
    code, out = tmp_path / "code", tmp_path / "made"
    write_step(code, "sft/one", configs={"tiny": "a: 1\n"})
    (tmp_path / "site.yaml").write_text("executors: ['slurm-pyxis:4.0', kubernetes]\n")
    arguments = ["overlays", str(put_receipt(tmp_path)), "--source", str(code), "--out", "made"]
    assert run(arguments) == 0
    own = out / "kubernetes" / "notes.yaml"
    own.write_text("not: ours\n")
    elsewhere = (out / "kubernetes/sft/one/tiny.yaml").rename(tmp_path / "elsewhere.yaml")
    another = out / "another" / "slurm-pyxis" / "tiny.yaml"
    another.parent.mkdir(parents=True)
    another.write_bytes(elsewhere.read_bytes())
    (out / "kubernetes/sft/one/tiny.yaml").symlink_to(elsewhere)
    (tmp_path / "site.yaml").write_text("executors: ['slurm-pyxis:4.0']\n")
    assert run(arguments) == 0
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        "slurm-pyxis/env.toml",
        "slurm-pyxis/nodes.txt",
        "slurm-pyxis/submit.txt",
        "slurm-pyxis/sft/one/tiny.yaml",
        "another/slurm-pyxis/tiny.yaml",
        "kubernetes/notes.yaml",
        "kubernetes/sft/one/tiny.yaml",
    }


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (None, "", "error: there is no site profile"),
        ("airgap.yaml", AIRGAP, "airgap.yaml:1: it has no `site`"),
        ("site.yaml", "platform: linux/amd64\n", "site.yaml: the site profile names no executor"),
    ],
)
def test_nothing_is_guessed_of_a_site_that_nobody_described(
    name: str | None, text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": "a: 1\n"})
    if name is not None:
        (tmp_path / name).write_text(text)
    receipt, copy = str(put_receipt(tmp_path)), ["--source", str(tmp_path / "code")]
    for words in (["overlays", receipt, *copy, "--out", "made"], ["check", receipt, *copy], ["check", *copy]):
        assert run(words) == 3
        said = " ".join(capsys.readouterr().err.split())
        assert expected in said and "airferry site init --executor" in said
    assert not (tmp_path / "made").exists()


def test_a_profile_without_answers_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--registry", "hub.site:5000/airgap"]):
        assert run(["site", "init", *words]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "--executor KIND[:VERSION]" in said and "slurm-pyxis" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("on_kubernetes")
def test_check_exits_with_8_and_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = write_checked_catalogue(tmp_path / "code")
    assert run(["check", "--source", str(code), "--json"]) == 8
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["counts"]["block"] == sum(item["level"] == "block" for item in document["findings"]) > 0
    assert re.search(r"\d+ of \d+ jobs would fail: \d+ blocking findings", " ".join(captured.err.split()))
    (tmp_path / "env.toml").write_text("[a]\nb = [\n")
    assert run(["check", "--source", str(code), "--env-file", "env.toml", "--profile", "a"]) == 3
    assert "env.toml:" in capsys.readouterr().err
    assert run(["check", "--source", str(code), "--site", "gone.yaml"]) == 3
    assert run(["check", str(code / "README.md"), "--source", str(code)]) == 6, "it is not a receipt"


def test_registry_and_ca_come_from_the_site_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path | None, bool | None]] = []

    def load(_bundle: Path, *, to: object, options: api.ClientOptions, **_: object) -> None:
        asked.append((str(to), options.ca_file, options.plain_http))
        raise UsageError("far enough")

    monkeypatch.setattr(api, "load", load)
    monkeypatch.delenv("AIRFERRY_TO", raising=False)
    (tmp_path / "site.yaml").write_text(
        "executors: [kubernetes]\nregistry: hub.site:5000/airgap\nca_file: ca.pem\nnode_ca_file: /etc/ssl/site.pem\n"
    )
    assert run(["load", "out"]) == 2 and run(["load", "out", "--to", "other:1/x", "--ca-file", "own.pem"]) == 2
    assert run(["load", "out", "--plain-http"]) == 2
    hub = "hub.site:5000/airgap"
    expected = [(hub, Path("ca.pem"), None), ("other:1/x", Path("own.pem"), None), (hub, None, True)]
    assert asked == expected
    assert run(["load", "out", "--plain-http", "--ca-file", "own.pem"]) == 2 and len(asked) == 3
    assert run(["mirrors", str(put_receipt(tmp_path)), "--out", "made"]) == 0
    assert '"/etc/ssl/site.pem"' in (tmp_path / "made/containerd/certs.d/nvcr.io/hosts.toml").read_text()


def test_mirrors_write_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mirrors", str(put_receipt(tmp_path)), "--out", "made"]) == 0
    assert capsys.readouterr().out.startswith(
        f"nvcr.io/nvidia/nemo:26.04  hub.site:5000/airgap/nvidia/nemo:26.04  {DIGEST}"
    )
    assert (tmp_path / "made/containerd/certs.d/nvcr.io/hosts.toml").is_file()
    assert run(["mirrors", str(tmp_path / "airgap-receipt.yaml"), "--out", "made", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    made = {str(path.relative_to(tmp_path / "made")) for path in (tmp_path / "made").rglob("*") if path.is_file()}
    assert made and set(document["files"]) == made


def test_on_a_terminal_init_asks_for_what_no_option_says_until_the_answers_are_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {
        "Executors": ["docker:24.0, pod", "docker:24.0, podman"],
        "NVIDIA": ["new", "580.1"],
        "Storage": ["data", "/data:rw"],
        "Package": ["pypi.site", ""],
        "Model": ["nvidia", "nvidia=http://v/v1"],
        "Profile of env.toml for docker": ["a b", "local"],
    }
    asked: list[str] = []

    def answer(question: str, **_more: object) -> str:
        asked.append(question)
        return next((given.pop(0) for start, given in answers.items() if question.startswith(start) and given), "")

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", answer)
    assert run(["site", "init", "--registry", "hub.site:5000/x"]) == 0
    site = load_site(Path("site.yaml"))
    assert site.registry == "hub.site:5000/x" and not any(question.startswith("Registry") for question in asked)
    assert [str(executor) for executor in site.executors] == ["docker (Docker 24.0)", "podman"]
    assert [str(mount) for mount in site.mounts] == ["/data:/data"]
    assert site.executors[0].profile == "local" and site.executors[1].profile is None
    assert site.gpu.driver == "580.1" and site.endpoints == {"nvidia": "http://v/v1"} and not site.mirrors.packages
    assert len(asked) == 12 + 6, "each once, and once more where the answer was wrong"
    assert "`new`: expected a version" in capsys.readouterr().err


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[str]]], list[str]]:
    """Return a way to answer what a terminal is asked, by how questions begin: the questions, as they come."""

    def answered(answers: dict[str, list[str]]) -> list[str]:
        asked: list[str] = []

        def answer(question: str, **_more: object) -> str:
            asked.append(question)
            return next((given.pop(0) for start, given in answers.items() if question.startswith(start) and given), "")

        for stream in ("stdin", "stderr"):
            monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
        monkeypatch.setattr("typer.prompt", answer)
        return asked

    return answered


def test_each_answer_is_checked_when_it_is_given(
    prompts: Callable[[dict[str, list[str]]], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("ca.pem").write_text("PEM")
    asked = prompts({"Executors": ["", "kubernetes"], "Registry": ["hub.site:5000/x"], "PEM": ["no.pem", "ca.pem"]})
    assert run(["site", "init"]) == 0
    assert [question[:8] for question in asked[:5]] == ["Executor", "Executor", "Registry", "PEM cert", "PEM cert"]
    assert load_site(Path("site.yaml")).ca_file == "ca.pem"
    said = capsys.readouterr().err
    assert "name at least one" in said and "`no.pem`: there is no such file" in said


@pytest.mark.parametrize(
    "typed",
    [
        ["--ca-file", "no.pem"],
        ["--gpu-driver", "new"],
        ["--executor", "pod"],
        ["--executor", "podman", "--profile", "docker=local"],
        ["--out", "there.yaml"],
    ],
)
def test_what_is_wrong_already_is_said_before_anything_is_asked(
    prompts: Callable[[dict[str, list[str]]], list[str]], typed: list[str]
) -> None:
    Path("there.yaml").write_text("executors: [podman]\n")
    asked = prompts({})
    assert run(["site", "init", *typed]) == 2
    assert asked == [] and not Path("site.yaml").exists()


def test_lists_of_a_site_take_commas_as_the_prompts_do() -> None:
    given = ["--executor", "slurm-pyxis:4.0,kubernetes", "--compute-capability", "9.0, 10.0", "--mount", "/a:ro,/b"]
    assert run(["site", "init", *given, "--executor", "podman"]) == 0
    site = load_site(Path("site.yaml"))
    assert [str(item) for item in site.executors] == ["slurm-pyxis (enroot 4.0)", "kubernetes", "podman"]
    assert site.gpu.compute_capabilities == ("9.0", "10.0") and [item.path for item in site.mounts] == ["/a", "/b"]


def test_the_registry_and_its_ca_are_typed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--executor", "kubernetes", "--registry", "hub.site:5000/airgap", "--ca-file", "ca.pem"]
    assert run(["site", "init", *given]) == 2, "there is no such file"
    assert not Path("site.yaml").exists()
    Path("ca.pem").write_text("PEM")
    capsys.readouterr()
    assert run(["site", "init", *given, "--node-ca-file", "/etc/ssl/site.pem"]) == 0
    site = load_site(Path("site.yaml"))
    assert (site.ca_file, site.node_ca_file) == ("ca.pem", "/etc/ssl/site.pem")
    assert next_commands(capsys.readouterr().err) == [["login"]]
    asked: list[tuple[str, Path | None]] = []

    def login(host: str, *_: object, options: api.ClientOptions) -> Path:
        asked.append((host, options.ca_file))
        return Path("auth.json")

    monkeypatch.setattr(api, "login", login)
    monkeypatch.setattr("sys.stdin", io.StringIO("secret"))
    assert run(["login", "-u", "ferry", "--password-stdin"]) == 0
    assert asked == [("hub.site:5000", Path("ca.pem"))]
    assert "registry hub.site:5000/airgap, CA ca.pem: from site.yaml" in capsys.readouterr().err
    Path("site.yaml").unlink()
    assert run(["login", "-u", "ferry", "--password-stdin"]) == 2
    assert "airferry site init" in capsys.readouterr().err

    # in another folder the profile's paths start there, and what comes next names all of it
    (tmp_path / "far").mkdir()
    assert run(["site", "init", *given, "--out", "far/site.yaml"]) == 0
    ca_file = tmp_path / "ca.pem"
    assert load_site(Path("far/site.yaml")).ca_file == str(ca_file)
    assert next_commands(capsys.readouterr().err) == [["login", "hub.site:5000", "--ca-file", str(ca_file)]]
    Path("far/site.yaml").write_text("ca_file: certs/ca.pem\n")
    known = api.known_site(Path("far/site.yaml"))
    assert known is not None and known.ca_file == Path("far/certs/ca.pem")
