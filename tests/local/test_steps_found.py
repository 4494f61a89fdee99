"""`--steps`, `--source` and the receipt are for exceptions: what a copy of the catalogue and a folder say is enough."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from airferry import api
from airferry.bundle.receipt import ReceiptConnection, write_receipt
from airferry.cli.app import run
from airferry.errors import ConfigurationError
from airferry.host.installation import PACKAGE
from airferry.plan.catalogue import catalogue_at, find_steps
from airferry.registry.client import ClientOptions
from next_steps import next_commands
from travelling_catalogue import DIGEST, receipt_of, write_catalogue

EXAMPLE = PACKAGE / "example" / "catalogue"


def put_step(root: Path, folder: str, step_id: str) -> None:
    (root / folder / step_id).mkdir(parents=True)
    (root / folder / step_id / "step.toml").write_text(f'[step]\nid = "{step_id}"\n')


def test_the_ids_of_steps_tell_their_folder(tmp_path: Path) -> None:
    assert find_steps(EXAMPLE) == "src/ferrysteps", "the quickstart's own"
    found = catalogue_at(EXAMPLE)
    assert (found.package, found.steps_folder) == ("ferrysteps", EXAMPLE / "src/ferrysteps")
    put_step(tmp_path, "acme/steps", "train/big")
    put_step(tmp_path, "acme/steps", "eval")
    # neither hidden folders, nor files that are no TOML or name another step, count
    put_step(tmp_path, ".venv/lib/other", "train/big")
    for name, text in (("broken", "["), ("strange", '[step]\nid = "elsewhere"\n'), ("table", "step = 1\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "step.toml").write_text(text)
    assert find_steps(tmp_path) == "acme/steps"
    put_step(tmp_path, "old/steps", "eval")
    with pytest.raises(ConfigurationError, match="several folders of steps: `acme/steps`, `old/steps`") as told:
        find_steps(tmp_path, holding=["eval"])
    assert "--steps" in str(told.value.hint)
    assert find_steps(tmp_path, holding=["eval", "train/big"]) == "acme/steps"


def test_what_is_not_the_root_of_a_catalogue_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not the root of a catalogue") as told:
        catalogue_at(tmp_path)
    assert "--source DIR" in str(told.value.hint)
    above = tmp_path / "above"
    shutil.copytree(EXAMPLE, above / "copy")
    told_root = re.escape(str(above / "copy"))
    with pytest.raises(ConfigurationError, match=rf"is not the root of a catalogue, `{told_root}` is"):
        find_steps(above)
    for steps in (None, ".", "./"):
        with pytest.raises(ConfigurationError, match="is the folder of the steps itself"):
            catalogue_at(EXAMPLE / "src/ferrysteps", steps=steps)


@pytest.mark.usefixtures("unsettled")
def test_a_copy_of_the_quickstarts_catalogue_needs_no_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "copy")
    (tmp_path / "site.yaml").write_text("executors: [kubernetes]\n")
    assert run(["check", "--source", "copy"]) == 8
    assert "src/ferrysteps/sft/bigram/config/tiny.yaml" in capsys.readouterr().out


@pytest.mark.usefixtures("unsettled")
def test_the_receipt_in_the_folder_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The registry took no catalogue here, so the receipt does not say where its steps are."""
    code = write_catalogue(tmp_path / "code")
    (code / "src/nemotron").rename(code / "src/acme")
    (tmp_path / "site.yaml").write_text("executors: [kubernetes]\n")
    assert run(["overlays"]) == 4
    assert run(["check", "--no-registry"]) == 2
    write_receipt(receipt_of(DIGEST), tmp_path / "airgap-receipt-one.yaml")
    capsys.readouterr()
    assert run(["overlays", "--source", "code"]) == 0
    ((command, *_),) = next_commands(capsys.readouterr().err)
    assert command == "check"
    assert run(["check", "--source", "code", "--no-registry"]) == 8, "a copy alone: images are not compared"
    assert run(["check", ".", "--source", "code", "--overlays", "airgap-overlays", "--no-registry"]) == 0
    write_receipt(receipt_of(DIGEST), tmp_path / "airgap-receipt-two.yaml")
    assert run(["overlays", "--source", "code"]) == 0
    assert "taking that of the latest load" in capsys.readouterr().err
    elsewhere = receipt_of(DIGEST).model_copy(update={"registry": "other.site:5000/x"})
    write_receipt(elsewhere, tmp_path / "airgap-receipt-two.yaml")
    assert run(["overlays", "--source", "code"]) == 2
    assert "there are several receipts" in capsys.readouterr().err


def test_a_registry_is_reached_as_the_load_reached_it() -> None:
    receipt = receipt_of(DIGEST)
    plain = receipt.model_copy(update={"connection": ReceiptConnection(tls=False)})
    over_tls = receipt.model_copy(update={"connection": ReceiptConnection(tls=True)})
    usual = ClientOptions()
    assert [one.reached_with(usual).plain_http for one in (receipt, over_tls, plain)] == [None, None, True]
    for typed in (replace(usual, plain_http=False), replace(usual, ca_file=Path("ca.pem"))):
        assert plain.reached_with(typed) == typed, "an option wins"
    assert api.CatalogueSource(source=EXAMPLE).find(None).options is None
