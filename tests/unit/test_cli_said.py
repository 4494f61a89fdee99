"""What operators read after a command: the amounts, paths and next steps in it, and the JSON that scripts read."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cli_reference
from airferry import api
from airferry.bundle.receipt import write_receipt
from airferry.bundle.verify import open_bundle
from airferry.cli import app as program
from airferry.cli.app import run
from airferry.cli.assets import MAX_SHOWN_FINDINGS
from airferry.cli.bundles import SHOWN_BESIDE
from airferry.errors import UsageError
from loaded_receipts import loaded_receipt
from next_steps import next_commands
from oci_images import make_bundle
from quick import Said


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFERRY_ROOT", "AIRFERRY_TO", "AIRFERRY_SITE", "AIRFERRY_SOURCE", "AIRFERRY_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "out" / "bundle"
    make_bundle(path)
    return path


@pytest.mark.parametrize(
    ("raised", "code", "expected"),
    [
        (RuntimeError("odd [thing]"), 1, "bug: RuntimeError: odd [thing]"),
        (program.Interrupted(), program.INTERRUPTED, "interrupted; rerun the same command to continue"),
        (PermissionError(13, "Permission denied", "/a/file"), 4, "`/a/file`: Permission denied"),
    ],
)
def test_a_command_that_breaks_off_says_how_to_go_on(
    raised: BaseException, code: int, expected: str, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(api, "verify", broken)
    assert run(["verify", "out"]) == code
    out, err = said()
    assert out == "" and expected in err and "Traceback" not in err
    assert ("--debug" in err) is (code == 1)
    assert run(["--debug", "verify", "out"]) == code
    assert ("Traceback" in said()[1]) is (code != program.INTERRUPTED)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["load", "out"], "`--to HOST:PORT/PREFIX`"),
        (["load", "--to", "hub:5000/x"], "`--to HOST:PORT/PREFIX`"),
        (["load", "--rollback", "r.yaml", "out"], "`--rollback` takes a receipt"),
        (["load", "--rollback", "r.yaml", "--dry-run", "--probe"], "`--rollback` takes a receipt"),
        (["load", "out", "--to", "hub:5000/x", "--map", "a"], "`--map a`: expected `FROM=TO`"),
        (["load", "out", "--to", "hub:5000/x", "--map", "=b"], "`--map =b`: expected `FROM=TO`"),
        (["load", "out", "--to", "hub:5000/x", "--limit-rate", "fast"], "`--limit-rate fast`"),
        (["load", "out", "--to", "hub:5000/x", "--limit-rate", "0"], "`--limit-rate 0`"),
        (["load", "out", "--to", ""], "`--to` is empty"),
        (["load", "--rollback", "r.yaml", "--to", " "], "`--to` is empty"),
        (["registry", "probe", ""], "`HOST[:PORT][/REPO]` is empty"),
        (["login", ""], "`REGISTRY` is empty"),
        (["logout", ""], "`REGISTRY` is empty"),
        (["site", "init", "--registry", ""], "`--registry` is empty"),
        (["site", "init", "--endpoint", "x"], "`--endpoint x`"),
    ],
)
def test_a_command_line_that_cannot_be_is_a_usage_error(arguments: list[str], expected: str, said: Said) -> None:
    assert run(arguments) == 2
    assert expected in said()[1]


@pytest.mark.parametrize(("text", "rate"), [("20", 20.0), ("1.5K", 1536.0), ("20M", 20 * 2**20), ("1GiB", 2**30)])
def test_a_rate_reaches_the_load(text: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def load(*_: Any, options: api.ClientOptions, **__: Any) -> None:
        seen.append(options.limit_rate)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "load", load)
    run(["load", "out", "--to", "hub:5000/x", "--limit-rate", text])
    assert seen == [rate]


def test_a_damaged_bundle_is_named_with_its_findings_as_data(sealed: Path, tmp_path: Path, said: Said) -> None:
    path = tmp_path / "bundle"
    make_bundle(path)
    bundle = open_bundle(path)
    (image,) = bundle.manifest.images
    layer = image.platforms["linux/amd64"].layers[-1].digest
    bundle.store.blob_path(layer).unlink()
    assert run(["verify", str(path)]) == 6
    out, err = said()
    assert f"{layer}" in out and len(out.splitlines()) == 1
    assert "error:" in err and "hint:" in err
    assert run(["verify", str(path), "--json"]) == 6
    document = json.loads(said()[0])
    assert document["ok"] is False and len(document["findings"]) == 1 and layer in json.dumps(document["findings"])
    assert run(["verify", str(sealed), "--json"]) == 0
    assert json.loads(said()[0])["ok"] is True


def test_many_notes_about_a_folder_are_counted(sealed: Path, tmp_path: Path, said: Said) -> None:
    out = tmp_path / "out"
    make_bundle(out / "bundle")
    for number in range(30):
        (out / f"file{number}.txt").write_text("x")
    assert run(["verify", str(out), "--json"]) == 0
    assert len(json.loads(said()[0])["beside"]) == 30
    assert run(["verify", str(out)]) == 0
    err = said()[1]
    assert err.count("is not part of the bundle") == SHOWN_BESIDE == 20
    assert "note: 10 more notes about the folder; `--json` lists all" in err


WITH_ROOT = {
    "verify": ["out"],
    "load": ["out", "--to", "localhost:1/x"],
    "report": ["out"],
    "serve": ["out", "--listen", "127.0.0.1:0"],
    "catalogue extract": ["out", "far"],
    "assets verify": ["out", "data"],
    "assets unpack": ["out", "data"],
    "overlays": ["receipt.yaml"],
    "check": ["receipt.yaml", "--site", "site.yaml"],
    "mirrors": ["receipt.yaml"],
}


def test_an_empty_root_is_refused_and_not_taken_for_none(sealed: Path, tmp_path: Path, said: Said) -> None:
    """A shell makes one of a variable that is not set; nothing would be compared then."""
    assert WITH_ROOT.keys() == {
        " ".join(path)
        for path, command in cli_reference.commands(cli_reference.program())
        if "--root" in cli_reference.options(command)
    }
    (tmp_path / "out").symlink_to(sealed.parent)
    write_receipt(loaded_receipt("sft/one:tiny"), tmp_path / "receipt.yaml")
    (tmp_path / "site.yaml").write_text("executors: [kubernetes]\n")
    for command, arguments in WITH_ROOT.items():
        assert run([*command.split(), *arguments, "--root", ""]) == UsageError.exit_code, command
        assert "is not a root digest, expected `sha256:` and 64 hex digits: it is empty" in said()[1], command


@pytest.mark.parametrize("given", [True, False])
def test_a_report_says_whether_the_root_was_compared(sealed: Path, given: bool, said: Said) -> None:
    root = open_bundle(sealed).root
    arguments = ["report", str(sealed), *(["--root", root] if given else [])]
    assert run(arguments) == 0
    out, err = said()
    assert root in out.replace("\n", "") and ("Checked integrity, not origin" in err) is not given
    assert run([*arguments, "--html", "report.html", "--text", "report.txt"]) == 0
    out, err = said()
    assert out == "" and "wrote report.html" in err and "wrote report.txt" in err
    assert root in Path("report.txt").read_text().replace("\n", "")
    assert root in Path("report.html").read_text()


def test_a_copy_says_what_the_image_is_called_there_and_what_checks_it(
    sealed: Path, tmp_path: Path, said: Said, capsys: pytest.CaptureFixture[str]
) -> None:
    (name, index), *_ = open_bundle(sealed).images.items()
    assert run(["copy", f"oci:{sealed}:{name}", "oci:my copy:x"]) == 0
    captured = capsys.readouterr()
    assert index.digest in captured.out
    (check,) = next_commands(captured.err)
    assert check == ["verify", "my copy"] and run(check) == 0
    assert run(["copy", f"oci:{sealed}:{name}", "oci-archive:y.tar:y"]) == 0
    assert next_commands(capsys.readouterr().err) == [["podman", "load", "-i", "y.tar"]]
    assert run(["copy", f"oci:{sealed}:{name}", f"oci-archive:{tmp_path / 'x.tar'}:y", "--json"]) == 0
    assert index.digest in json.dumps(json.loads(said()[0]))


def test_an_asset_is_recorded_and_verified_with_its_amounts(tmp_path: Path, said: Said) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        (tmp_path / "data" / f"{number}.txt").write_text("four")
    assert run(["assets", "record", "data", "--kind", "dataset", "-o", "m.jsonl"]) == 0
    out, err = said()
    digest = out.split()[1]
    assert out.split()[0] == "m.jsonl" and digest.startswith("sha256:")
    assert "3 files, 12 B" in err and "airferry assets verify m.jsonl PATH" in err
    assert run(["assets", "verify", "m.jsonl", "data"]) == 0
    out, err = said()
    assert out == "" and "3 files, 12 B" in err and digest in err.replace(" ", "")
    for number in range(MAX_SHOWN_FINDINGS + 5):
        (tmp_path / "data" / f"extra{number}.txt").touch()
    assert run(["assets", "verify", "m.jsonl", "data"]) == 8
    out, err = said()
    lines = out.splitlines()
    assert {line.split(":")[0] for line in lines} == {"extra"}
    assert len(lines) == MAX_SHOWN_FINDINGS and "and 5 more; `--json` lists all" in err


@pytest.mark.parametrize(("scheme", "plain"), [("https", []), ("http", ["--tls-verify=false"])])
def test_serve_says_what_pulls_an_image(
    scheme: str, plain: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    images = (("hub:5000/airferry-artifacts:artifact-1", one), ("hub:5000/team/trainer:latest", two))
    stopped = SimpleNamespace(run=lambda: None)
    serving = api.Serving(f"{scheme}://hub:5000", one, True, images, stopped, lambda: None)  # type: ignore[arg-type]
    monkeypatch.setattr(api, "serve", lambda *_, **__: nullcontext(serving))
    assert run(["serve", "out"]) == 0
    pull = ["podman", "pull", *plain, f"hub:5000/team/trainer@{two}"]
    assert next_commands(capsys.readouterr().err) == [pull]
    assert run(["serve", "out", "--htpasswd", "users"]) == 0
    assert next_commands(capsys.readouterr().err) == [["podman", "login", *plain, "hub:5000"], pull]
    assert run(["serve", "out", "--json"]) == 0
    assert "Next" not in capsys.readouterr().err
