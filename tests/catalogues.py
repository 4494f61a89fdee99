"""Step catalogues of Nemotron's shape, made on the spot, and its naming rules in a few lines of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

STEPS = "src/nemotron/steps"


def write_step(
    root: Path,
    step_id: str,
    *,
    configs: Mapping[str, str] | None = None,
    source: str = "",
    files: Mapping[str, str] | None = None,
    toml_id: str | None = None,
) -> Path:
    """Write one step and return its folder."""
    folder = root / STEPS / step_id
    (folder / "config").mkdir(parents=True)
    (folder / "step.py").write_text(source)
    (folder / "step.toml").write_text(f'[step]\nid = "{toml_id or step_id}"\nname = "a step"\n')
    for name, text in (configs if configs is not None else {"tiny": "a: 1\n", "default": "a: 2\n"}).items():
        (folder / "config" / f"{name}.yaml").write_text(text)
    for name, text in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def mounting(*overlays: str, mounts: Sequence[str] = ()) -> str:
    """Return a step config that mounts overlays `URL@REF,TARGET` and ordinary mounts."""
    entries = [f"${{auto_mount:git+{overlay}}}" for overlay in overlays] + list(mounts)
    return yaml.safe_dump({"run": {"env": {"mounts": entries}}, "iterations": 3})


def write_airgap(root: Path, document: Mapping[str, Any] | str) -> Path:
    """Write `airgap.yaml` into a folder and return its path."""
    path = root / "airgap.yaml"
    root.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(dict(document), sort_keys=False))
    return path


def airgap(images: Mapping[str, Any], steps: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """Return a configuration of images and step → image, its stages all steps with their config `tiny`."""
    return {
        "workflow": {"stages": [f"{step}:tiny" for step in steps]},
        "step_execution_images": dict(steps),
        "execution_images": {
            name: image if isinstance(image, Mapping) else {"base_image": image} for name, image in images.items()
        },
        **more,
    }


def expected_suffix(base: str, overlays: Sequence[str] = (), **more: Any) -> str:
    """Work out a group's suffix from its base and overlays `URL@REF,TARGET`."""
    entries = []
    for overlay in overlays:
        address, target = overlay.split(",")
        url, ref = address.rsplit("@", 1)
        repo = url.split("/")[-1]
        entries.append({"repo": repo[:-4] if repo.endswith(".git") else repo, "url": url, "ref": ref, "target": target})
    text = json.dumps({"base_image": base, "repo_overlays": entries, **more}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def write_completed(root: Path) -> Path:
    """Write a catalogue of three steps, of which the plan names one, with a platform that no host has; return it."""
    for step in ("sft/tiny", "sft/large", "eval/perplexity"):
        write_step(root, step, configs={"tiny": "a: 1\n"})
    document = airgap({"py": "registry.example/base:1"}, {"sft/tiny": "py"})
    document["execution_images"]["py"]["platforms"] = ["linux/riscv64"]
    write_airgap(root, document)
    return root
