"""Logins where Podman and Docker keep them, in a home that holds no others."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest


def encoded(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def empty_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder the home, so that nothing is found but what a test writes there."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
    return folder


def write(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
