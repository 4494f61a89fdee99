"""A customer's own config on its way: in the catalogue of the bundle, and what the far side makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from airferry import api
from airferry.bundle.catalogue import CATALOGUE_MARK
from airferry.bundle.receipt import write_receipt
from airferry.events import Event, Warned
from airferry.jobs.extract import extract_artifact
from airferry.near.assemble import context
from airferry.near.carry.catalogue import CarriedCatalogue
from airferry.oci.layout import LayoutStore
from airferry.plan.models import Plan
from travelling_catalogue import DIGEST, TARGET, carry, plan_of, receipt_of, tree, write_catalogue

STEP = "src/nemotron/steps/sft/one"


@pytest.fixture(autouse=True)
def own_cache(on_kubernetes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))


def lay_out(root: Path, *, tracked: bool = True) -> Plan:
    """Write a catalogue, and a config of a customer next to it that inherits from it and from a file of its own."""
    catalogue = write_catalogue(root / "code", tracked=tracked)
    own = root / "own"
    own.mkdir()
    (own / "site.yaml").write_text("run: {env: {nodes: 2}}\n")
    (own / "mine.yaml").write_text(f"# ours\ndefaults: [{catalogue}/{STEP}/config/tiny, site]\na: 3\n")
    return plan_of(catalogue, workflow={"stages": [f"sft/one:{own}/mine.yaml"]})


def travel(root: Path, **options: Any) -> tuple[CarriedCatalogue, Plan]:
    plan = lay_out(root, **options)
    carried = carry(plan.source_root, root / "layout", plan=plan)
    assert carried is not None
    extract_artifact(LayoutStore.open(root / "layout", read_only=True), carried.artifact[1], root / "far")
    return carried, plan


@pytest.mark.parametrize("tracked", [True, False])
def test_it_travels_with_what_it_inherits_and_without_a_path_of_the_host(tmp_path: Path, tracked: bool) -> None:
    _, plan = travel(tmp_path / "one", tracked=tracked)
    files = {name: content for name, (_, content) in tree(tmp_path / "one/far").items()}
    files.pop("airgap.yaml", None)  # tracked in this catalogue, and names the path
    assert files[f"{STEP}/config/mine.yaml"] == "# ours\ndefaults: [tiny.yaml, ../inherited/mine/site.yaml]\na: 3\n"
    assert files[f"{STEP}/inherited/mine/site.yaml"] == "run: {env: {nodes: 2}}\n"
    assert not [name for name, content in files.items() if str(tmp_path) in content]
    assert str(tmp_path) not in str(plan.to_document())


def test_the_artifact_is_the_same_wherever_the_config_lay(tmp_path: Path) -> None:
    found = []
    for place in ("one", "two/deeper"):
        travel(tmp_path / place)
        found.append(tree(tmp_path / place / "far"))
        for name in ("airgap.yaml", CATALOGUE_MARK):  # the plan's file is tracked here, and names the path
            found[-1].pop(name)
    assert found[0] == found[1]


def test_overlays_and_check_take_it_like_any_other(tmp_path: Path) -> None:
    _, plan = travel(tmp_path)
    receipt = receipt_of(DIGEST).model_copy(update={"targets": (plan.steps[0].target.spec,)})
    write_receipt(receipt, tmp_path / "receipt.yaml")
    made = api.overlays(
        tmp_path / "receipt.yaml", catalogue=api.CatalogueSource(tmp_path / "far"), out=tmp_path / "jobs"
    )
    (step,) = made.steps
    assert step.target == "sft/one:mine" and step.path == "kubernetes/sft/one/mine.yaml"
    overlay = yaml.safe_load((tmp_path / "jobs" / step.path).read_text())
    inherited = (tmp_path / "jobs" / step.path).parent / overlay["defaults"]
    assert inherited.resolve() == tmp_path / f"far/{STEP}/config/mine.yaml"
    assert overlay["run"]["env"]["mounts"] == [] and step.cleared[0].endswith(TARGET)
    report = api.check(
        api.JobSelection(overlays=tmp_path / "jobs"),
        receipt=tmp_path / "receipt.yaml",
        catalogue=api.CatalogueSource(tmp_path / "far"),
        ask_registry=False,
    )
    assert report.steps == ("sft/one:mine",) and not report.blocking


def test_the_launcher_and_rehearsals_carry_it_too(tmp_path: Path) -> None:
    plan = lay_out(tmp_path)
    excluded = [plan.output_dir]
    before = context.tracked_digest(plan.source_root, excluded=excluded)
    configs = context.plan_configs(plan, tmp_path / "cache")
    context.copy_tracked(plan.source_root, tmp_path / "copy", excluded=excluded, configs=configs)
    assert (tmp_path / f"copy/{STEP}/config/mine.yaml").read_text().startswith("# ours\ndefaults: [tiny.yaml, ")
    first = context.tracked_digest(plan.source_root, excluded=excluded, configs=configs)
    assert first != before
    with (tmp_path / "own/site.yaml").open("a") as stream:
        stream.write("b: 1\n")
    again = plan_of(plan.source_root, workflow={"stages": [f"sft/one:{tmp_path}/own/mine.yaml"]})
    configs = context.plan_configs(again, tmp_path / "cache")
    assert context.tracked_digest(plan.source_root, excluded=excluded, configs=configs) != first


def test_a_config_in_the_catalogue_travels_though_git_does_not_track_it(tmp_path: Path) -> None:
    catalogue = write_catalogue(tmp_path / "code")
    (catalogue / STEP / "config/new.yaml").write_text("defaults: base/more\n")
    (catalogue / STEP / "config/base").mkdir()
    (catalogue / STEP / "config/base/more.yml").write_text("a: 1\n")
    (catalogue / STEP / "config/base/more.yaml").symlink_to("more.yml")
    plan = plan_of(catalogue, workflow={"stages": ["sft/one:new"]})
    events: list[Event] = []
    carried = carry(catalogue, tmp_path / "layout", plan=plan, emit=events.append)
    assert carried is not None
    extract_artifact(LayoutStore.open(tmp_path / "layout"), carried.artifact[1], tmp_path / "far")
    assert (tmp_path / f"far/{STEP}/config/base/more.yaml").read_text() == "a: 1\n"
    assert [event.text for event in events if isinstance(event, Warned)] == [
        f"`{STEP}/config/base/more.yaml`, `{STEP}/config/new.yaml` are added to the bundle because "
        "targets need them, although Git does not track them"
    ]


def test_the_submit_line_is_the_catalogues(tmp_path: Path) -> None:
    catalogue = write_catalogue(tmp_path / "code")
    for submit, expected in (
        (None, "nemotron steps run sft/one -c "),
        ("acme run {step} --file {config}", "acme run sft/one --file "),
        ("", "# no command is known for this catalogue"),
    ):
        write_receipt(receipt_of(DIGEST, submit=submit), tmp_path / "receipt.yaml")
        source = api.CatalogueSource(catalogue)
        (step,) = api.overlays(tmp_path / "receipt.yaml", catalogue=source, out=tmp_path / "jobs").steps
        assert step.command.startswith(expected)
        assert step.command in (tmp_path / "jobs/kubernetes/submit.txt").read_text()


def test_a_config_that_was_written_on_the_far_side_is_checked_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = write_catalogue(tmp_path / "code")
    write_receipt(receipt_of(DIGEST), tmp_path / "receipt.yaml")
    (tmp_path / "late.yaml").write_text(f"defaults: code/{STEP}/config/default\ntokenizer: org/name\n")
    monkeypatch.chdir(tmp_path)
    report = api.check(
        api.JobSelection(targets=("sft/one:late.yaml",)),
        receipt=Path("receipt.yaml"),
        catalogue=api.CatalogueSource(catalogue),
        ask_registry=False,
    )
    assert report.steps == ("sft/one:late.yaml",)
    assert "huggingface" in {finding.kind for finding in report.blocking}
