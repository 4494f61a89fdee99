"""What a plan says that a build takes, where not all of it is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.config import load_config
from airferry.errors import HostError
from airferry.events import Event, Warned
from airferry.near import doctor as host
from airferry.near import predict as prediction
from airferry.near.describe import describe_prediction
from airferry.near.predict import Expected, Prediction, ensure_room
from airferry.plan.planner import make_plan
from catalogues import airgap, write_airgap, write_step

GIB = 1 << 30


UNKNOWN_BASE = Expected("base `b` for linux/amd64", None, None, part="base")


BASE = Expected("base `a` for linux/amd64", 4 * GIB, 8 * GIB, 8 * GIB, 2 * GIB, 4 * GIB, "base")


REST = (
    Expected("wheels of `x` for linux/amd64", None, None, part="wheels"),
    Expected("wheels of `y` for linux/amd64", None, None, part="wheels"),
    Expected("checkout `u@main`", None, None, part="checkout"),
    Expected("checkout `u@main`", None, None, part="checkout"),
    Expected("airferry itself", None, None),
)


def shown(*items: Expected, verbose: bool = False) -> list[str]:
    return describe_prediction(Prediction(tuple(items)), verbose=verbose)


def test_at_most_is_said_only_where_all_is_known() -> None:
    assert shown(BASE) == [
        "predicted:",
        "  in         4.0 GiB to fetch",
        "  out        at most 8.0 GiB",
        "  disk       at most 13.2 GiB in addition to what is used now",
    ]
    assert shown(BASE, UNKNOWN_BASE, *REST) == [
        "predicted:",
        "  in         at least 4.0 GiB to fetch",
        "  out        at least 4.0 GiB",
        "  disk       at least 6.0 GiB in addition to what is used now",
        "  not known  1 of 2 bases, wheels of 2 images, 1 checkout, airferry itself",
    ]


def test_nothing_is_not_said_to_be_at_least() -> None:
    lines = shown(UNKNOWN_BASE)
    assert lines[1:] == [
        "  in         not known yet",
        "  out        not known yet",
        "  disk       not known yet",
        "  not known  1 of 1 base",
    ]
    assert shown(UNKNOWN_BASE, *REST, verbose=True)[-5:] == [
        "             base `b` for linux/amd64",
        "             wheels of `x` for linux/amd64",
        "             wheels of `y` for linux/amd64",
        "             checkout `u@main`",
        "             airferry itself",
    ]


def test_data_says_how_many_bases_are_not_known() -> None:
    document = Prediction((BASE, UNKNOWN_BASE, *REST)).to_document()
    assert (document["bases"], document["unknown_bases"]) == (2, 1)
    assert (document["least_out_bytes"], document["least_disk_bytes"]) == (4 * GIB, 6 * GIB)
    assert len(document["unknown"]) == 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("free", "items", "expected"),
    [
        (100 * GIB, (BASE,), []),
        (7 * GIB, (BASE,), ["may need 14.17 GB more there"]),
        (7 * GIB, (BASE, UNKNOWN_BASE), ["may need 14.17 GB more there, plus an unknown amount for: 1 of 2 bases"]),
    ],
)
def test_a_warning_names_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, items: tuple[Expected, ...], expected: list[str]
) -> None:
    monkeypatch.setattr(prediction.files, "free_bytes", lambda _folder: free)
    events: list[Event] = []
    ensure_room(Prediction(items), cache=tmp_path, output=tmp_path, emit=events.append)
    said = [event.text.partition("the build ")[2] for event in events if isinstance(event, Warned)]
    assert said == expected
    monkeypatch.setattr(prediction.files, "free_bytes", lambda _folder: GIB)
    with pytest.raises(HostError, match=r"needs at least 6\.44 GB more there"):
        ensure_room(Prediction(items), cache=tmp_path, output=tmp_path)


@pytest.mark.parametrize(
    ("items", "free", "status", "detail"),
    [
        ((BASE,), 100 * GIB, "ok", "the build needs at most 14.17 GB there"),
        ((BASE,), 7 * GIB, "warn", "the build needs at most 14.17 GB there"),
        (
            (BASE, UNKNOWN_BASE),
            100 * GIB,
            "unknown",
            "at least 6.44 GB there, and an unknown amount for: 1 of 2 bases",
        ),
        ((UNKNOWN_BASE,), 100 * GIB, "unknown", "the build needs an unknown amount for: 1 of 1 base"),
        ((BASE, UNKNOWN_BASE), GIB, "fail", "at least 6.44 GB there"),
    ],
)
def test_the_doctor_gives_no_tick_for_room_that_is_not_known(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    items: tuple[Expected, ...],
    free: int,
    status: str,
    detail: str,
) -> None:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(host.Predictor, "predict", lambda _self: Prediction(items))
    monkeypatch.setattr(prediction.files, "free_bytes", lambda _folder: free)
    write_step(tmp_path, "s")
    made = make_plan(load_config(write_airgap(tmp_path, airgap({"img": "base:1"}, {"s": "img"}))))
    (check,) = host._room(made)
    assert (check.status, detail in check.detail) == (status, True), check.detail
    assert ("airferry lock" in (check.hint or "")) == (status == "unknown" or status == "ok")
