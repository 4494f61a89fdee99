"""What a plan predicts, against what a build then takes; and builds that the disk has no room for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from airferry.api import plan
from airferry.errors import HostError
from airferry.events import Event, Warned
from airferry.host.yaml import count_values
from airferry.near import doctor as host
from airferry.near import predict
from airferry.near.bases import fetch as bases
from airferry.near.planning import read_plan
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_platform
from near_side import REFERENCE, NearSide

AMD64 = parse_platform("linux/amd64")


@pytest.fixture
def direct(side: NearSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NearSide:
    """A near side with a cache of its own."""
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    return side


def base_bytes(side: NearSide) -> int:
    """Return the size of the base's layers for the platform of the plan."""
    store = LayoutStore.open(side.base, read_only=True)
    layers = predict._read_layers(store, store.resolve(REFERENCE), AMD64)
    assert layers is not None
    return sum(layer.size for layer in layers.descriptors)


def taken_bytes(*folders: Path) -> int:
    """Return what the files of folders take, those with several names once."""
    seen: dict[int, int] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            status = path.lstat()
            seen[status.st_ino] = status.st_size if path.is_file() else 0
    return sum(seen.values())


def wheel_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "cache" / "wheels").rglob("*.whl"))


def test_before_anything_is_there_a_plan_says_what_it_knows_and_what_not(direct: NearSide, tmp_path: Path) -> None:
    predicted = plan(direct.selection()).prediction
    assert predicted.in_bytes == base_bytes(direct)
    assert base_bytes(direct) < predicted.out_bytes < base_bytes(direct) + 100_000
    assert [what.partition("`")[0] for what in predicted.unknown] == ["wheels of ", "wheels of ", "checkout "]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("compression", ["zstd", "preserve"])
def test_a_build_takes_what_was_predicted_and_a_plan_after_it_predicts_the_bundle_that_is_there(
    direct: NearSide, tmp_path: Path, compression: str
) -> None:
    direct.write(compression=compression)
    before = plan(direct.selection()).prediction
    built = direct.build()
    assert taken_bytes(tmp_path / "cache", direct.out) < before.disk_bytes() + 2 * wheel_bytes(tmp_path) + 1_000_000
    predicted = plan(direct.selection()).prediction
    assert predicted.in_bytes == 0
    assert predicted.unknown == ()
    values = count_values(yaml.safe_load((direct.out / "airgap-manifest.yaml").read_text()))
    assert values * 0.6 < predicted.manifest_values <= values, "what a plan refuses would not be read, surely"
    assert built.bundle_bytes * 0.98 < predicted.out_bytes < built.bundle_bytes * 1.02
    gained = built.recompressed
    assert (gained is None) is (compression == "preserve")
    if gained is not None:
        (image, *_others) = built.manifest.images if built.manifest else ()
        carried = sum(layer.size_bytes for layer in image.platforms["linux/amd64"].layers if layer.from_base)
        assert (gained.fetched_bytes, gained.carried_bytes) == (base_bytes(direct), carried)
        assert gained.compression == "zstd 3" and " carried (zstd 3): " in gained.text
    # the base's layers are links to the cache, which take no further room
    assert predicted.new_bytes < 100_000
    shutil.rmtree(direct.out / "bundle")
    assert plan(direct.selection()).prediction.new_bytes < 100_000


def test_the_program_prints_what_it_predicts(direct: NearSide) -> None:
    told = direct.run("plan", check=True).stdout
    assert "predicted:" in told
    assert "not known  wheels of 2 images, 1 checkout" in told and "at least" in told and "at most" not in told
    document = json.loads(direct.run("plan", "--json", check=True).stdout)
    assert document["predicted"]["in_bytes"] == base_bytes(direct)
    assert "predicted" not in (direct.out / "airgap-plan.yaml").read_text()


def test_a_build_that_surely_does_not_fit_is_refused_before_it_begins(
    direct: NearSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict.files, "free_bytes", lambda path: base_bytes(direct))
    with pytest.raises(HostError, match=r"are free at .* needs at least") as caught:
        direct.build()
    assert caught.value.exit_code == 4
    assert not list((tmp_path / "cache" / "bases" / "blobs" / "sha256").iterdir())
    assert not (direct.out / "bundle").exists()


def test_a_build_that_may_not_fit_is_warned_of_and_goes_on(direct: NearSide, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    monkeypatch.setattr(predict.files, "free_bytes", lambda path: base_bytes(direct) * 2)
    assert direct.build(emit=events.append).root is not None
    assert any(isinstance(event, Warned) and "may need" in event.text for event in events)


def test_a_base_that_the_cache_has_no_room_for_is_not_fetched(
    direct: NearSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases.files, "free_bytes", lambda path: base_bytes(direct) - 1)
    with pytest.raises(HostError, match=r"GB to fetch, but"):
        direct.lock()
    assert not list((tmp_path / "cache" / "bases" / "blobs" / "sha256").iterdir())


@pytest.mark.parametrize(("share", "status"), [(0.5, "fail"), (2, "warn"), (100, "unknown")])
def test_the_doctor_looks_for_room_for_the_plan(
    share: float, status: str, direct: NearSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes = int(base_bytes(direct) * share)
    monkeypatch.setattr(predict.files, "free_bytes", lambda path: free_bytes)
    (check,) = (item for item in host._room(read_plan(direct.selection())))
    assert (check.name, check.status) == ("room for the plan", status)
    assert "an unknown amount for: wheels of" in check.detail and f"{free_bytes / 1e9:.2f} GB free" in check.detail
