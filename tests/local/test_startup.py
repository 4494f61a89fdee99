"""A command loads what it needs: what registries, plans and servers need would be most of a short command's time."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from airferry.host import process
from oci_images import make_bundle
from source_trees import SOURCE

ROOT = Path(__file__).parents[2]
LOADED = """
import json, sys
from airferry.cli.app import run
code = run(sys.argv[1:])
print()
print(json.dumps([code, sorted(sys.modules)]))
"""


REGISTRIES = {"jsonschema", "oras", "requests", "urllib3", "airferry.registry.client"}
PLANS = {"omegaconf", "airferry.config.models", "airferry.near", "airferry.plan"}
SERVER = {"anyio", "bcrypt", "starlette", "uvicorn"}
NOT_FOR_A_LINE = {"pydantic", "yaml", "zstandard", "rich.console"}


def loaded(*arguments: str, expected: int = 0, folder: Path | None = None) -> set[str]:
    environment = {"PYTHONPATH": str(ROOT / "src"), "AIRFERRY_CACHE": "/nonexistent"}
    done = process.run([sys.executable, "-c", LOADED, *arguments], timeout_s=120, cwd=folder, environment=environment)
    code, modules = json.loads(done.text.splitlines()[-1])
    assert code == expected
    return set(modules)


def test_the_version_loads_no_more_than_the_command_line() -> None:
    assert loaded("--version") & (REGISTRIES | PLANS | SERVER | NOT_FOR_A_LINE) == set()


def test_help_loads_no_more_than_it_shows() -> None:
    assert loaded("plan", "--help") & (REGISTRIES | PLANS | SERVER) == set()


def test_verification_loads_nothing_of_registries_plans_and_servers(tmp_path: Path) -> None:
    make_bundle(tmp_path / "out" / "bundle")
    # where no profile of the site lies, as the one in this repository's own plan
    assert loaded("verify", "out", folder=tmp_path) & (REGISTRIES | PLANS | SERVER) == set()


@pytest.mark.parametrize("arguments", [["load", "missing", "--to", "127.0.0.1:9/x"]])
def test_a_command_that_talks_to_registries_loads_oras_py_under_its_own_name(arguments: list[str]) -> None:
    modules = loaded(*arguments, expected=2)
    assert {"oras.provider", "jsonschema.validators"} <= modules


def test_importing_it_loads_nothing_heavy() -> None:
    program = "import sys; from airferry import api; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    environment = {"PYTHONPATH": str(ROOT / "src")}
    loaded = process.run([sys.executable, "-c", program], timeout_s=60, environment=environment).text
    assert "airferry" in loaded
    for heavy in ("pydantic", "oras", "requests", "yaml", "omegaconf", "rich", "typer", "starlette"):
        assert f"'{heavy}'" not in loaded


def test_imports_run_downwards() -> None:
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert program is not None
    result = process.run([program, "--no-cache"], timeout_s=120, cwd=SOURCE.parents[1], check=False)
    assert result.returncode == 0, result.text
