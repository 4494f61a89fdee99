"""What a load says to submit steps with: the loaded image, and never an override that drops the site's storage."""

from __future__ import annotations

import pytest

from airferry.bundle.receipt import ReceiptCatalogue
from airferry.cli import bundles
from airferry.cli.app import run
from airferry.cli.render import Reporter
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


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (HELD, "airferry overlays airgap-receipt.yaml writes these configs"),
        (None, "airferry overlays airgap-receipt.yaml --source CATALOGUE writes these configs"),
    ],
)
def test_what_writes_the_configs_is_said(
    held: ReceiptCatalogue | None, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundles._show_commands(outcome_of(receipt_of(DIGEST, catalogue=held), baked=True), Reporter())
    said = " ".join(capsys.readouterr().err.split())
    assert expected in said
    assert ("contains no catalogue" in said) == (held is None)


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
