"""What a load says to submit steps with: the loaded image, and never an override that drops the site's storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airferry import api
from airferry.bundle.receipt import ReceiptCatalogue
from airferry.cli.app import run
from next_steps import next_commands
from travelling_catalogue import DIGEST, outcome_of, receipt_of

IMAGE = f"hub.site:5000/airgap/trainer@{DIGEST}"
HELD = ReceiptCatalogue(
    pinned=f"hub.site:5000/airgap/airferry-artifacts@{DIGEST}", steps="src/nemotron/steps", package="nemotron.steps"
)


@pytest.mark.parametrize("by_target", [True, False])
def test_a_step_with_a_baked_checkout_takes_the_config_that_overlays_writes(by_target: bool) -> None:
    commands = outcome_of(receipt_of(DIGEST), baked=True, by_target=by_target).submit_commands()
    assert commands == ["nemotron steps run sft/one -c airgap-overlays/EXECUTOR/sft/one/tiny.yaml -b PROFILE"]


@pytest.mark.parametrize("submit", [None, "", "acme run {step} --file {config} {overrides}"])
@pytest.mark.parametrize("baked", [True, False])
def test_no_command_overrides_the_mounts_of_a_job(baked: bool, submit: str | None) -> None:
    """Overrides come after the profile: one of the mounts would take its storage away."""
    for targets in (("sft/one:tiny",), ("sft/one",), ("sft/one:tiny", "eval/two")):
        steps = dict.fromkeys(targets, IMAGE)
        receipt = receipt_of(DIGEST, submit=submit).model_copy(update={"targets": targets, "steps": steps})
        commands = outcome_of(receipt, baked=baked).submit_commands()
        assert len(commands) == len(targets)
        assert [command for command in commands if "mounts" in command] == []


def test_a_step_without_one_takes_its_own_config_and_the_image() -> None:
    commands = outcome_of(receipt_of(DIGEST), baked=False).submit_commands()
    assert commands == [f"nemotron steps run sft/one -c tiny -b PROFILE run.env.container_image={IMAGE}"]


def test_another_catalogue_is_submitted_as_it_says() -> None:
    receipt = receipt_of(DIGEST, submit="acme run {step} --file {config} {overrides}")
    assert outcome_of(receipt, baked=False).submit_commands() == [
        f"acme run sft/one --file tiny run.env.container_image={IMAGE}"
    ]
    (line,) = outcome_of(receipt_of(DIGEST, submit=""), baked=False).submit_commands()
    assert line.startswith("# no command is known") and IMAGE in line and "nemotron" not in line
    (own,) = outcome_of(receipt_of(DIGEST, submit=""), baked=False).submit_commands(template="run {step} {config}")
    assert own == "run sft/one tiny"


def test_configs_of_one_step_have_their_own_images() -> None:
    receipt = receipt_of(DIGEST).model_copy(
        update={
            "targets": ("sft/one:tiny", "sft/one:big", "eval/two"),
            "steps": {"sft/one:tiny": "a@x", "sft/one:big": "b@x", "eval/two": "c@x"},
        }
    )
    assert outcome_of(receipt, baked=False).submit_commands() == [
        "nemotron steps run sft/one -c tiny -b PROFILE run.env.container_image=a@x",
        "nemotron steps run sft/one -c big -b PROFILE run.env.container_image=b@x",
        "nemotron steps run eval/two -c CONFIG -b PROFILE run.env.container_image=c@x",
    ]


@pytest.mark.usefixtures("unsettled")
@pytest.mark.parametrize(("held", "source"), [(HELD, []), (None, ["--source", "CATALOGUE"])])
def test_what_writes_the_configs_is_said(
    held: ReceiptCatalogue | None,
    source: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(api, "load", lambda *_, **__: outcome_of(receipt_of(DIGEST, catalogue=held), baked=True))
    reach = ["--ca-file", "my ca.pem"]
    assert run(["load", "out", "--to", "hub:5000/x", *reach]) == 0
    said = capsys.readouterr().err
    assert next_commands(said) == [
        ["site", "init", "--registry", "hub.site:5000/airgap", *reach],
        ["overlays", "airgap-receipt.yaml", *source],
    ]
    assert ("contains no catalogue" in said) == (held is None)
    (tmp_path / "site.yaml").write_text("executors: [kubernetes]\nca_file: ca.pem\n")
    assert run(["load", "out", "--to", "hub:5000/x"]) == 0
    said = capsys.readouterr().err
    assert next_commands(said) == [["overlays", "airgap-receipt.yaml", *source]]
    assert "CA ca.pem: from site.yaml" in said
    assert run(["--quiet", "load", "out", "--to", "hub:5000/x"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["load", "out", "--to", "hub:5000/x", "--json"]) == 0
    assert "Next" not in capsys.readouterr().err


@pytest.mark.usefixtures("unsettled")
def test_a_profile_stops_a_load_only_where_it_may_say_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[api.ClientOptions] = []

    def load(*_: Any, options: api.ClientOptions, **__: Any) -> api.LoadOutcome:
        asked.append(options)
        return outcome_of(receipt_of(DIGEST), baked=False)

    monkeypatch.setattr(api, "load", load)
    plan = tmp_path / "airgap.yaml"
    command = ["load", "out", "--to", "hub:5000/x"]
    plan.write_text("workflow: {name: other}\nkey_of_another_tool: 1\n")
    assert run(command) == 0
    assert "airgap.yaml" not in capsys.readouterr().err, "a plan that says nothing of a site"
    plan.write_text("workflow: [")
    assert run(command) == 0
    assert "warning: nothing is taken from `airgap.yaml` here" in capsys.readouterr().err
    assert run(["load", "out"]) == 2, "and so there is no registry"
    plan.write_text("key_of_another_tool: 1\nsite: {registry: 'hub:5000/x', ca_file: site.pem}\n")
    capsys.readouterr()
    assert run(["load", "out"]) == 0
    assert asked[-1].ca_file == Path("site.pem")
    assert "registry hub:5000/x, CA site.pem: from airgap.yaml" in capsys.readouterr().err
    plan.write_text("site: {registry: 'hub:5000/x', caf: site.pem}\n")
    assert run(command) == 3
    assert "airgap.yaml:1: `site.caf`: unknown key" in capsys.readouterr().err
    for reach in (["--ca-file", "own.pem"], ["--plain-http"]):
        assert run([*command, *reach]) == 0, "nothing is left for the profile to say"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["load", "out", "--to", "hub:5000/x", "--jobs", "4"], "for parallel transfers use `-j 4`"),
        (["load", "out", "--to", "hub:5000/x", "--source", "code"], "`--source` requires `--jobs DIR`"),
        (["load", "--rollback", "r.yaml", "--jobs", "jobs"], "takes a receipt and excludes a bundle"),
    ],
)
def test_options_that_do_not_go_together_are_told(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert reason in " ".join(capsys.readouterr().err.split())
