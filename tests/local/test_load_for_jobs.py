"""A load that also writes what jobs need: what can fail without the registry fails before anything is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airferry import api
from airferry import load_for_jobs as module
from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from airferry.config.site import Executor
from airferry.errors import AirferryError, ConfigurationError, HostError, UsageError
from airferry.events import Event, Warned
from airferry.far.receipts import receipt_name
from airferry.jobs.rules.site import RegistryImage
from travelling_catalogue import make_travelling_bundle, outcome_of, receipt_of, write_catalogue

NOBODY = "127.0.0.1:1/airgap"
CONFIG = "src/nemotron/steps/sft/one/config"


@pytest.fixture(autouse=True)
def own_cache(on_kubernetes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFERRY_SITE", "AIRFERRY_SOURCE", "AIRFERRY_ROOT", "AIRFERRY_TO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_travelling_bundle(write_catalogue(tmp_path / "code"), tmp_path / "out" / "bundle")
    return tmp_path / "out"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the load by one that needs no registry, and note that it ran."""
    done: list[str] = []

    def load(bundle: Path, *, receipt: Path, **_: Any) -> api.LoadOutcome:
        done.append(str(receipt))
        return replace(outcome_of(receipt_of(open_bundle(bundle).root), baked=True), receipt_path=receipt)

    monkeypatch.setattr(module, "load", load)
    return done


def test_another_catalogue_is_refused_before_anything_is_sent(tmp_path: Path, bundle: Path, sent: list[str]) -> None:
    other = write_catalogue(tmp_path / "other", tracked=False)
    config = other / CONFIG / "default.yaml"
    config.write_text(config.read_text().replace("0123abc", "9999999"))
    with pytest.raises(ConfigurationError, match="which is not baked into"):
        api.load_for_jobs(bundle, to=NOBODY, jobs=api.JobFiles(tmp_path / "jobs", source=other))
    (other / CONFIG / "tiny.yaml").unlink()
    with pytest.raises(ConfigurationError, match="has no config `tiny`"):
        api.load_for_jobs(bundle, to=NOBODY, jobs=api.JobFiles(tmp_path / "jobs", source=other))
    assert not sent and not (tmp_path / "jobs").exists()


def test_a_site_that_nobody_described_is_told_before_anything_is_sent(
    tmp_path: Path, bundle: Path, sent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.yaml").unlink()
    for words in ([], ["--dry-run"]):
        assert run(["load", str(bundle), "--to", NOBODY, "--jobs", "jobs", *words]) == 3
        assert "airferry site init --executor" in " ".join(capsys.readouterr().err.split())
    assert not sent and not (tmp_path / "jobs").exists()


def test_places_are_tried_before_anything_is_sent(tmp_path: Path, bundle: Path, sent: list[str]) -> None:
    (tmp_path / "file").write_text("x")
    for jobs in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(HostError, match=r"file` is not a folder"):
            api.load_for_jobs(bundle, to=NOBODY, jobs=api.JobFiles(jobs, receipt=tmp_path / "receipt.yaml"))
    with pytest.raises(UsageError, match="is a folder, expected a file"):
        api.load_for_jobs(bundle, to=NOBODY, jobs=api.JobFiles(tmp_path / "jobs", receipt=tmp_path))
    assert not sent
    for receipt, kind in ((tmp_path, UsageError), (tmp_path / "file/receipt.yaml", HostError)):
        with pytest.raises(kind, match=r"is (a folder|not a folder)"):
            api.load(bundle, to=NOBODY, receipt=receipt)


def test_a_place_that_refuses_files_is_told(
    tmp_path: Path, bundle: Path, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("airferry.host.files.tempfile.TemporaryFile", refuse)
    with pytest.raises(HostError, match=r"cannot write below .*Permission denied"):
        api.load_for_jobs(bundle, to=NOBODY, jobs=api.JobFiles(tmp_path / "jobs"))
    assert not sent


def test_what_fails_after_the_load_says_that_it_is_loaded(
    tmp_path: Path, bundle: Path, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise HostError("the disk is full")

    monkeypatch.setattr(module, "write_overlays", full)
    events: list[Event] = []
    with pytest.raises(AirferryError, match="the disk is full"):
        files = api.JobFiles(tmp_path / "jobs", source=tmp_path / "code")
        api.load_for_jobs(bundle, to=NOBODY, jobs=files, emit=events.append)
    said = [event for event in events if isinstance(event, Warned)][-1]
    name = receipt_name(api.parse_destination(NOBODY), open_bundle(bundle).root)
    receipt = tmp_path / "jobs" / name
    assert f"the bundle is loaded (receipt `{receipt}`" in said.text
    assert f"airferry overlays {receipt} --out {tmp_path / 'jobs'} --source {tmp_path / 'code'}" in str(said.hint)


def test_a_load_that_fits_writes_the_jobs(tmp_path: Path, bundle: Path, sent: list[str]) -> None:
    assert run(["load", str(bundle), "--to", NOBODY, "--jobs", "jobs"]) == 0
    assert sent and (tmp_path / "jobs/kubernetes/submit.txt").is_file()


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (
            RegistryImage(True, {}, "the registry holds the image and answers 404 to enroot", hidden=True),
            "build with `docker_twin: true` and load again, or use distribution 3, zot or `airferry serve`",
        ),
        (RegistryImage(True, {}, "zstd layers", fix="build with gzip"), "build with gzip"),
        (RegistryImage(True, {}), None),
    ],
)
def test_images_that_an_executor_cannot_pull_are_warned_of(
    tmp_path: Path, bundle: Path, sent: list[str], monkeypatch: pytest.MonkeyPatch, answer: Any, hint: str | None
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("executors: [{kind: slurm-pyxis, version: '4.0'}]\n")
    asked: list[Executor] = []

    def ask(names: set[str], *, executor: Executor, **_: Any) -> dict[str, RegistryImage]:
        asked.append(executor)
        return dict.fromkeys(names, answer)

    monkeypatch.setattr(module, "ask_images", ask)
    events: list[Event] = []
    api.load_for_jobs(bundle, to=NOBODY, jobs=api.JobFiles(tmp_path / "jobs", site=site), emit=events.append)
    said = [event for event in events if isinstance(event, Warned)]
    assert [executor.kind for executor in asked] == ["slurm-pyxis"]
    assert [event.hint for event in said] == ([hint] if hint else [])
    assert all("cannot run `trainer:airgap`: " in event.text for event in said)
