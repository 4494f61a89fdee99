"""Rehearsals of steps that misbehave: what each one does is found, and no bundle is sealed over it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from airferry import api
from airferry.bundle.manifest import read_manifest
from airferry.engine.driver import open_engine
from airferry.errors import ConfigurationError
from airferry.events import Event, Notice, Warned
from airferry.host import files
from airferry.near import session
from airferry.oci.layout import LayoutStore
from near_side import PROGRAM, NearSide, git, temporaries
from rehearsed_steps import LONG_SLEEP_S, SLEEP_S, STEPS, make_rehearsed_side, stages
from running import processes, wait_for

REPORT = "airgap-rehearsal.json"
SLOW = "slow/sleep"
HARMLESS = ("quiet/python", "native/code", "declared/silent", "good/step", "fetch/children")
DECLARED = ["*.example.org", "203.0.113.5:6379", "203.0.113.6", "203.0.113.9:8125", "[2001:db8:1::7]:443"]

# host, port, protocol, the end of the process's command line, and the step's line: what must be found, and all of it
QUIET = {
    ("models.example.org", 443, "tcp", "tiny.yaml", "quiet/python/step.py:10"),
    ("names.example.org", None, "dns", "tiny.yaml", "quiet/python/step.py:14"),
    ("203.0.113.9", 8125, "udp", "tiny.yaml", "quiet/python/step.py:18"),
    ("2001:db8:1::7", 443, "tcp", "tiny.yaml", "quiet/python/step.py:20"),
    ("telemetry.example.org", 4317, "tcp", "tiny.yaml", "quiet/python/step.py:21"),
}
NATIVE = {
    ("203.0.113.5", 6379, "tcp", "tiny.yaml", ""),
    ("license.example.org", None, "dns", "tiny.yaml", ""),
    ("203.0.113.6", 9092, "tcp", "connect_ex(('203.0.113.6', 9092))", "native/code/step.py:15"),
}
FETCH = {
    ("git.example.org", 443, "tcp", "git-remote-https origin https://***@git.example.org/models.git", "step.py:7"),
    ("files.example.org", 8080, "tcp", "curl --silent http://files.example.org:8080/weights.bin", "step.py:8"),
    ("shell.example.org", 443, "tcp", "curl --silent --max-time 5 https://shell.example.org/", "step.py:9"),
}


@pytest.fixture(scope="module")
def yard(near_base: Path, near_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NearSide]:
    """A near side of misbehaving steps."""
    side = make_rehearsed_side(tmp_path_factory.mktemp("rehearsed") / "near", near_base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFERRY_CACHE", str(near_cache))
        for name, value in side.environment.items():
            patch.setenv(name, value)
        yield side


@pytest.fixture(scope="module")
def refused(yard: NearSide) -> subprocess.CompletedProcess[str]:
    """`build --rehearse` over all steps but the one that is meant to be killed."""
    yard.write(**stages(*(step for step in STEPS if step != SLOW)))
    return yard.run("build", "--rehearse")


@pytest.fixture(scope="module")
def fared(yard: NearSide, refused: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What the report says of each step."""
    report = json.loads((yard.out / REPORT).read_text())
    assert report["ok"] is False
    return {entry["target"].removesuffix(":tiny"): entry for entry in report["rehearsals"]}


def attempts(entry: dict[str, Any]) -> set[tuple[str, int | None, str, str, str]]:
    return {
        (item["host"], item["port"], item["protocol"], item["process"], item["place"]) for item in entry["attempts"]
    }


def same(found: dict[str, Any], expected: set[tuple[str, int | None, str, str, str]]) -> bool:
    """Tell whether attempts are those expected, each once."""
    pairs = sorted(attempts(found), key=str), sorted(expected, key=str)
    return len(found["attempts"]) == len(expected) and all(
        one[:3] == other[:3]
        and one[3].endswith(other[3])
        and one[4].endswith(other[4])
        and bool(one[4]) == bool(other[4])
        for one, other in zip(*pairs, strict=True)
    )


# --- what is found ----------------------------------------------------------------------------------------------------


def test_nothing_is_sealed_over_findings_and_the_exit_code_says_so(
    yard: NearSide, refused: subprocess.CompletedProcess[str]
) -> None:
    assert refused.returncode == 8, refused.stderr
    assert "models.example.org:443" in refused.stderr and "hint:" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (yard.out / "airgap-manifest.yaml").exists()
    assert json.loads((yard.out / "bundle" / "index.json").read_text())["manifests"] == []


def test_attempts_of_python_are_found_by_line_though_the_code_swallows_the_error(
    fared: dict[str, dict[str, Any]],
) -> None:
    assert same(fared["quiet/python"], QUIET), fared["quiet/python"]["attempts"]
    assert {item["seen"] for item in fared["quiet/python"]["attempts"]} == {"python"}
    library = next(item["library"] for item in fared["quiet/python"]["attempts"] if item["port"] == 4317)
    assert re.fullmatch(r"/.*/ferry_telemetry\.py:6", library), "the line of the library that did it"
    assert fared["quiet/python"]["reached"] == "started"


def test_attempts_of_native_code_and_of_interpreters_without_hook_are_found_by_process(
    fared: dict[str, dict[str, Any]],
) -> None:
    assert same(fared["native/code"], NATIVE), fared["native/code"]["attempts"]
    assert {item["seen"] for item in fared["native/code"]["attempts"]} == {"network"}


def test_attempts_of_git_and_curl_are_found_with_the_line_that_started_them(fared: dict[str, dict[str, Any]]) -> None:
    assert same(fared["fetch/children"], FETCH), fared["fetch/children"]["attempts"]
    assert "secret" not in json.dumps(fared["fetch/children"]["attempts"])


def test_a_step_that_hangs_is_ended_with_all_that_it_left(fared: dict[str, dict[str, Any]]) -> None:
    entry = fared["slow/hang"]
    assert (entry["reached"], entry["stopped_by"]) == ("started", "time limit")
    assert entry["output"] == "training\n"
    assert [(item["host"], item["port"]) for item in entry["attempts"]] == [("coordinator.example.org", 29500)]
    assert processes(f"sleep {SLEEP_S}") == []


@pytest.mark.parametrize(
    ("step", "reached", "stopped_by", "missing", "finding"),
    [
        ("broken/name", "image", "module", [], "cannot import name 'nothing_of_that_name'"),
        ("broken/addition", "image", "module", ["ferry_incomplete"], "step.py:1), as `ferry_of_nobody` is missing"),
        (
            "exec/launcher",
            "config",
            "program",
            [],
            "program at src/nemotron/steps/exec/launcher/step.py:6: the program ",
        ),
        ("exec/launcher", "config", "program", [], "the program `torchrun` is not in the image: FileNotFoundError"),
        ("early/exit", "imported", "finished", [], "it ended without reading its config"),
    ],
)
def test_steps_that_do_not_come_far(
    fared: dict[str, dict[str, Any]], step: str, reached: str, stopped_by: str, missing: list[str], finding: str
) -> None:
    entry = fared[step]
    assert (entry["reached"], entry["stopped_by"], entry["missing"]) == (reached, stopped_by, missing)
    assert any(finding in line for line in entry["findings"]), entry["findings"]
    assert any(f"reached `{reached}`, expected `started`" in line for line in entry["findings"])


def test_declared_attempts_and_a_missing_gpu_are_no_findings(fared: dict[str, dict[str, Any]]) -> None:
    entry = fared["declared/silent"]
    assert (entry["reached"], entry["stopped_by"], entry["findings"]) == ("started", "gpu", [])
    assert [(item["host"], item["allowed"]) for item in entry["attempts"]] == [("telemetry.example.org", True)]
    assert entry["place"] == "src/nemotron/steps/declared/silent/step.py:8"


def test_a_step_that_talks_to_itself_reaches_for_nothing(fared: dict[str, dict[str, Any]]) -> None:
    entry = fared["good/step"]
    assert (entry["reached"], entry["stopped_by"], entry["attempts"], entry["findings"]) == (
        "started",
        "finished",
        [],
        [],
    )


# --- what is sealed ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sealed(yard: NearSide, refused: subprocess.CompletedProcess[str]) -> api.BuildOutcome:
    """The bundle of the steps whose attempts the plan declares by now; what was tried is not tried again."""
    rehearsal = yard.document["rehearsal"]
    yard.write(**stages(*HARMLESS), rehearsal={**rehearsal, "allow": DECLARED})
    yard.lock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "open_engine", None)
        return api.build(yard.selection(), rehearse=True)


def test_the_bundle_carries_what_was_found(yard: NearSide, sealed: api.BuildOutcome) -> None:
    assert sealed.manifest is not None and sealed.root is not None
    api.verify(yard.out, root=sealed.root).raise_if_wrong()
    manifest = read_manifest((yard.out / "airgap-manifest.yaml").read_bytes())
    assert [entry.target for entry in manifest.rehearsals] == [f"{step}:tiny" for step in HARMLESS]
    assert {entry.reached for entry in manifest.rehearsals} == {"started"}
    assert all(attempt.allowed for entry in manifest.rehearsals for attempt in entry.attempts)
    images = {image.platforms["linux/amd64"].digest for image in manifest.images}
    assert {entry.image for entry in manifest.rehearsals} < images
    (artifact,) = (item for item in manifest.artifacts if item.artifact_type.endswith(".rehearsal.v1"))
    store = LayoutStore.open(yard.out / "bundle", read_only=True)
    document = yaml.safe_load(store.blob_path(artifact.digest).read_bytes())
    carried = json.loads(store.blob_path(document["layers"][0]["digest"]).read_bytes())
    assert carried["rehearsals"] == [entry.model_dump(mode="json") for entry in manifest.rehearsals]
    assert "elapsed_s" not in json.dumps(carried) and "secret" not in json.dumps(carried)


def test_a_plain_build_keeps_what_still_fits_and_says_what_does_not(yard: NearSide, sealed: api.BuildOutcome) -> None:
    said: list[Event] = []
    assert api.build(yard.selection(), emit=said.append).root == sealed.root
    assert "kept 5 rehearsals" in " ".join(item.text for item in said if isinstance(item, Notice))
    rehearsal = yard.document["rehearsal"]
    yard.write(rehearsal={**rehearsal, "env": {"OTHER": "1"}})
    without = api.build(yard.selection(), emit=said.append)
    assert without.manifest is not None and without.manifest.rehearsals == ()
    (warned,) = (item.text for item in said if isinstance(item, Warned) and "rehears" in item.text)
    assert warned.startswith("the bundle is sealed without a rehearsal: image, code or command changed since")
    assert not (yard.out / REPORT).exists()
    yard.write(rehearsal=rehearsal)
    assert api.build(yard.selection()).root == sealed.root
    assert (yard.out / REPORT).exists()


def test_another_engine_finds_the_same_to_the_byte(
    yard: NearSide, sealed: api.BuildOutcome, require_tool: Callable[[str], Path]
) -> None:
    require_tool("podman")
    assert sealed.manifest is not None
    (yard.out / "airgap-build-state.yaml").unlink()
    targets = ("native/code:tiny", "quiet/python:tiny")
    again = api.rehearse(yard.selection(targets=targets), options=api.BuildOptions(engine="podman"))
    assert [result.reused for result in again.report.results] == [False, False]
    before = {entry.target: entry.model_dump_json() for entry in sealed.manifest.rehearsals}
    assert {entry.target: entry.model_dump_json() for entry in again.report.entries} == {
        target: before[target] for target in targets
    }


@pytest.mark.parametrize("step", ["native/code", pytest.param("quiet/python", marks=pytest.mark.slow)])
def test_it_works_across_cpus(
    yard: NearSide, fared: dict[str, dict[str, Any]], sealed: api.BuildOutcome, step: str
) -> None:
    yard.write(**stages(step), platforms=["linux/arm64"])
    try:
        yard.lock()
        report = api.rehearse(yard.selection()).report
    finally:
        yard.write(platforms=["linux/amd64"])
    (entry,) = report.to_document()["rehearsals"]
    assert (entry["target"], entry["platform"]) == (f"{step}:tiny", "linux/arm64")
    assert attempts(entry) == attempts(fared[step])
    assert (entry["reached"], entry["stopped_by"]) == (fared[step]["reached"], fared[step]["stopped_by"])


def test_named_targets_alone_are_tried(yard: NearSide, sealed: api.BuildOutcome) -> None:
    yard.write(**stages(*HARMLESS))
    done = yard.run("rehearse", "--target", "good/step:tiny, quiet/python")
    assert done.returncode == 0, done.stderr
    report = json.loads((yard.out / REPORT).read_text())
    assert sorted(entry["target"] for entry in report["rehearsals"]) == ["good/step:tiny", "quiet/python:tiny"]


def test_a_step_that_there_is_none_of_is_named(yard: NearSide, sealed: api.BuildOutcome) -> None:
    yard.write(**stages(*HARMLESS))
    with pytest.raises(ConfigurationError, match="there is no step `good/stop`") as caught:
        api.rehearse(yard.selection(targets=("good/stop",)))
    assert "`good/step`" in (caught.value.hint or "")
    limits = yard.document["rehearsal"]
    for name, wanted in (("good/stop", "good/stop/step.py"), ("good/step:tony", "good/step/config/tony.yaml")):
        yard.write(rehearsal={**limits, "steps": {**limits["steps"], name: {"least": "config"}}})
        with pytest.raises(ConfigurationError, match=rf"airgap.yaml:\d+: .*the catalogue does not contain `{wanted}`"):
            api.rehearse(yard.selection())
    yard.write(rehearsal=limits)


def test_a_step_that_git_does_not_track_is_named(yard: NearSide, sealed: api.BuildOutcome) -> None:
    yard.write(**stages(*HARMLESS))
    git(yard.catalogue, "rm", "--quiet", "--cached", "src/nemotron/steps/good/step/step.py")
    try:
        with pytest.raises(ConfigurationError, match=r"good/step/step\.py` is not tracked by Git"):
            api.rehearse(yard.selection())
    finally:
        git(yard.catalogue, "add", "--all")


# --- what is left -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_rehearsal_that_ends_in_the_middle_leaves_nothing(
    yard: NearSide, near_cache: Path, sealed: api.BuildOutcome, how: signal.Signals, code: int
) -> None:
    limits = yard.document["rehearsal"]
    yard.write(**stages(SLOW))
    yard.lock()
    (yard.out / REPORT).unlink(missing_ok=True)
    files.remove_tree(yard.out / "airgap-build-state.yaml")
    child = subprocess.Popen(
        [*PROGRAM, "rehearse"],
        cwd=yard.catalogue,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: processes(f"sleep {LONG_SLEEP_S}") or child.poll() is not None)
    os.killpg(child.pid, how)
    _stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == code, stderr
    wait_for(lambda: not processes(f"sleep {LONG_SLEEP_S}"))
    assert not (yard.out / REPORT).exists()
    if how == signal.SIGKILL:
        # what could not clean up after itself is cleaned up by the next one
        yard.write(rehearsal={**limits, "steps": {SLOW: {"time_limit_s": 1}}})
        done = yard.run("rehearse", "--json")
        yard.write(rehearsal=limits)
        assert done.returncode == 0, done.stderr
        (entry,) = json.loads(done.stdout)["rehearsals"]
        assert (entry["reached"], entry["stopped_by"]) == ("started", "time limit")
    assert temporaries(yard.out, near_cache) == []
    with open_engine(near_cache / "engine") as engine:
        assert engine.storage.containers() == []
        assert [name for name in engine.images() if "rehearsal" in name] == []
        assert list(engine.storage.temporary.iterdir()) == []
    assert processes(f"sleep {LONG_SLEEP_S}") == []
