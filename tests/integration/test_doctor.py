"""The doctor on a sound host, and on hosts that lack something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from registries import free_port, run_registry

from airferry.cli.app import run
from near_side import NearSide, snapshot


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, str]], str]:
    """Return the exit code, the checks by name, and what stderr got."""
    code = run(["doctor", *arguments, "--json"])
    captured = capsys.readouterr()
    return code, {check["name"]: check for check in json.loads(captured.out)}, captured.err


def test_a_sound_host_can_build_the_plan(side: NearSide, capsys: pytest.CaptureFixture[str]) -> None:
    side.write(builder="buildah")
    before = snapshot(side.root)
    code, checks, shown = examined(capsys, "--config", str(side.config), "--platform", "linux/amd64,linux/arm64")
    assert code == 0, shown
    assert {"isolation", "storage", "emulator linux/arm64"} <= set(checks)
    assert {check["status"] for check in checks.values()} <= {"ok", "warn", "unknown"}
    assert snapshot(side.root) == before
    assert "This host can build the plan, as far as known." in shown


def test_a_host_without_engine_says_what_to_install(
    side: NearSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    side.write(builder="buildah")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    code, checks, shown = examined(capsys, "--config", str(side.config))
    assert code == 4
    failed = [check for check in checks.values() if check["status"] == "fail"]
    assert failed and all(check["hint"] for check in failed)
    assert "buildah" in json.dumps(failed) and "apt-get install" in json.dumps(failed)
    assert "checks failed" in shown
    assert run(["build", "--config", str(side.config)]) == 4
    assert "was not found\nhint:  run `airferry doctor`" in capsys.readouterr().err


def test_a_runtime_folder_of_somebody_else_ends_no_report(
    side: NearSide, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So it is after `su` and `sudo`, and engines then do not even say their version."""
    side.write(builder="buildah")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/usr")
    code, checks, shown = examined(capsys, "--config", str(side.config))
    assert code == 4 and "checks failed" in shown
    assert checks["runtime folder"]["status"] == "fail" and "XDG_RUNTIME_DIR" in checks["runtime folder"]["hint"]
    assert all(check["hint"] for check in checks.values() if check["status"] == "fail")
    assert {"disk", "git"} <= set(checks)
    assert run(["build", "--config", str(side.config)]) == 4
    assert "export XDG_RUNTIME_DIR" in capsys.readouterr().err


def test_bases_are_looked_up_in_their_registries(
    side: NearSide, tmp_path: Path, require_tool: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    require_tool("docker-registry")
    with run_registry(tmp_path / "registry") as registry:
        dead, empty = f"127.0.0.1:{free_port()}/team/base:1", f"{registry.address}/team/base:1"
        image = side.document["execution_images"]["py"]
        side.write(
            execution_images={"py": {**image, "base_image": empty}},
            launcher_image={**side.document["launcher_image"], "base_image": dead},
        )
        code, checks, _shown = examined(capsys, "--config", str(side.config))
    assert code == 4
    assert "no such image" in checks[f"base {empty}"]["detail"]
    assert "refuses connections" in checks[f"base {dead}"]["detail"] and checks[f"base {dead}"]["hint"]
