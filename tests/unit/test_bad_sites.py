"""Profiles and receipts that do not fit together are told, with the one to name."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.bundle.receipt import ReceiptConnection, read_receipt, write_receipt
from airferry.cli.app import run
from airferry.config import load_site
from airferry.errors import UsageError
from airferry.events import Event, Warned
from airferry.jobs.profile import FoundSite, warn_of_another_site
from airferry.registry.client import ClientOptions
from catalogues import write_step
from loaded_receipts import loaded_receipt

HERE = "hub.site:5000/airgap"
OTHER = "sha256:" + "d" * 64
pytestmark = pytest.mark.usefixtures("unsettled")


@pytest.fixture
def receipt(tmp_path: Path) -> Path:
    path = tmp_path / "airgap-receipt.yaml"
    write_receipt(loaded_receipt("sft/one:tiny"), path)
    return path


def site(folder: Path, registry: str | None) -> FoundSite:
    path = folder / "site.yaml"
    path.write_text("executors: [kubernetes]\n" + (f"registry: {registry}\n" if registry else ""))
    return FoundSite(path, load_site(path))


@pytest.mark.parametrize(
    ("registry", "warned"),
    [(HERE, False), (f"{HERE}/", False), (None, False), ("hub.site:5000", True), ("b:1/x", True)],
)
def test_a_profile_of_another_registry_is_told(
    registry: str | None, warned: bool, receipt: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    warn_of_another_site(site(tmp_path, registry), read_receipt(receipt), emit=events.append)
    assert bool(events) is warned
    if warned:
        (event,) = events
        assert isinstance(event, Warned)
        assert f"`{registry}`" in event.text and f"`{HERE}`" in event.text and "`--site FILE`" in (event.hint or "")


def test_every_command_with_a_receipt_tells_of_it(
    receipt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site(tmp_path, "b:1/x")
    write_step(tmp_path / "code", "sft/one", configs={"tiny": "a: 1\n"})
    source = [str(receipt), "--source", "code"]
    for line in (["overlays", *source], ["check", *source, "--no-registry"], ["mirrors", str(receipt)]):
        run(line)
        assert "describes registry `b:1/x`" in " ".join(capsys.readouterr().err.split()), line
    run(["catalogue", "extract", str(receipt), "there"])
    assert "describes registry `b:1/x`" in " ".join(capsys.readouterr().err.split())


def test_a_platform_that_the_bundle_lacks_blocks(
    receipt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.yaml").write_text("executors: [kubernetes]\nplatform: linux/arm64\n")
    write_step(tmp_path / "code", "sft/one", configs={"tiny": "a: 1\n"})
    assert run(["check", str(receipt), "--source", "code", "--no-registry"]) == 8
    printed = capsys.readouterr()
    assert "is for linux/amd64, the nodes are linux/arm64" in printed.out + printed.err


def test_receipts_that_disagree_are_told_apart(receipt: Path, tmp_path: Path) -> None:
    first = loaded_receipt("sft/one:tiny")
    later = first.model_copy(update={"registry": "b:1/x", "bundle_root": OTHER, "loaded_at": "2026-02-02T00:00:00Z"})
    write_receipt(later, tmp_path / "airgap-receipt-b.yaml")
    (tmp_path / "airgap-receipt-cut.yaml").write_text("schema_version: 2\n")
    with pytest.raises(UsageError, match="several receipts") as caught:
        read_receipt(tmp_path)
    lines = caught.value.message.splitlines()[1:]
    assert [line.partition("`: ")[2] for line in lines] == [
        f"into b:1/x, root {OTHER[:23]}…, 2026-02-02T00:00:00Z",
        f"into {HERE}, root {first.bundle_root[:23]}…, 2026-01-01T00:00:00Z",
        "cannot be read as a receipt",
    ]
    assert "airferry history" in (caught.value.hint or "") and "name the file" in (caught.value.hint or "")


def test_a_registry_that_moved_to_tls_since_the_receipt_is_told_with_the_option() -> None:
    made = loaded_receipt("sft/one:tiny").model_copy(update={"connection": ReceiptConnection(tls=False)})
    options = made.reached_with(ClientOptions())
    assert options.plain_http is True
    assert "`--tls`" in options.remedies.tls and "receipt" in options.remedies.tls
    for typed in (ClientOptions(plain_http=False), ClientOptions(ca_file=Path("ca.pem"))):
        assert made.reached_with(typed) is typed, "what is typed counts"
    private = made.model_copy(
        update={"connection": ReceiptConnection(tls=True, ca_fingerprints=("sha256:" + "c" * 64,))}
    )
    options = private.reached_with(ClientOptions())
    assert options.plain_http is None and "folder with the `site.yaml`" in options.remedies.ca, "the load had its CA"
    public = made.model_copy(update={"connection": ReceiptConnection(tls=True)})
    assert public.reached_with(ClientOptions()).told is None


@pytest.mark.parametrize("broken", ["not a terminal", "closed"])
def test_site_init_without_a_terminal_names_the_option(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("/dev/null" if broken == "closed" else __file__)
    with path.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert run(["site", "init"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "at least one executor" in told and "`--executor KIND[:VERSION]`" in told
    assert not (tmp_path / "site.yaml").exists()


def test_a_profile_that_is_not_there_is_told_with_what_writes_it(
    receipt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (["overlays", str(receipt)], ["check", str(receipt)], ["mirrors", str(receipt)]):
        assert run([*line, "--site", "gone.yaml"]) == 3
        told = " ".join(capsys.readouterr().err.split())
        assert "there is no site profile `gone.yaml`" in told
        assert "`airferry site init --executor KIND --out gone.yaml`" in told
