"""What a rehearsal's error says to do fits what was found."""

from __future__ import annotations

import pytest

from airferry.bundle.manifest import AttemptEntry, RehearsalEntry
from airferry.errors import FindingsError
from airferry.near.rehearse.causes import ENOUGH
from airferry.near.rehearse.run import RehearsalReport, StepResult, how_far

ATTEMPT = AttemptEntry(host="a.invalid", protocol="tcp", seen="python")


def report(**entry: object) -> RehearsalReport:
    described = {
        "target": "s/one:tiny",
        "group": "one",
        "platform": "linux/amd64",
        "image": "sha256:" + "0" * 64,
        "command": ["python"],
        "modules": 0,
        **entry,
    }
    return RehearsalReport((StepResult(RehearsalEntry.model_validate(described), 1.0, "", ("it is wrong",)),))


@pytest.mark.parametrize(
    ("entry", "keys"),
    [
        ({"reached": "started", "stopped_by": "gpu", "attempts": [ATTEMPT]}, {"overlays"}),
        ({"reached": "config", "stopped_by": "network"}, {"overlays"}),
        ({"reached": "config", "stopped_by": "module", "missing": ["a"]}, {"required_imports"}),
        ({"reached": "started", "stopped_by": "gpu", "missing": ["a"]}, {"required_imports"}),
        ({"reached": "imported", "stopped_by": "program"}, {"containerfile"}),
        ({"reached": "config", "stopped_by": "error"}, {"airgap-rehearsal.json"}),
        (
            {"reached": "config", "stopped_by": "program", "missing": ["a"], "attempts": [ATTEMPT]},
            {"overlays", "required_imports", "containerfile"},
        ),
    ],
)
def test_the_way_out_is_that_of_what_was_found(entry: dict[str, object], keys: set[str]) -> None:
    with pytest.raises(FindingsError) as caught:
        report(**entry).raise_if_wrong()
    ways = ("overlays", "required_imports", "containerfile", "airgap-rehearsal.json")
    assert {way for way in ways if way in str(caught.value.hint)} == keys


def test_progress_says_whether_a_step_ran_to_its_end() -> None:
    said = {stop: how_far(report(reached="started", stopped_by=stop).entries[0]) for stop in ENOUGH}
    assert said["finished"] == "ran to its end" and said["data"] == "started, stopped where it needs data"
    assert len(set(said.values())) == len(ENOUGH) and not any("reached" in text for text in said.values())
    assert how_far(report(reached="config", stopped_by="network").entries[0]) == (
        "reached `config`, stopped by `network`"
    )
