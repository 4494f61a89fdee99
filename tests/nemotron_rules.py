"""How Nemotron puts a job together from a config, a profile and a command line: its rules, in a few lines of their own.

Checked by hand against `nemotron steps run … --dry-run`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

OWNED_BY_THE_CONFIG = ("container_image", "nodes", "gpus_per_node", "ntasks_per_node", "nproc_per_node")


def load_as_steps_do(path: Path) -> DictConfig:
    """Load a config as the steps' own loader does: bases below, lists replaced, `defaults` gone."""
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    named = config.get("defaults")
    if named is None:
        return config
    merged = OmegaConf.create()
    for item in [named] if isinstance(named, str) else list(named):
        base = Path(item) if Path(item).suffix else Path(item).with_suffix(".yaml")
        merged = OmegaConf.merge(merged, load_as_steps_do(base if base.is_absolute() else path.parent / base))
    own = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    own.pop("defaults")
    result = OmegaConf.merge(merged, own)
    assert isinstance(result, DictConfig)
    return result


def environment_of_job(command: str, profile: Mapping[str, Any]) -> dict[str, Any]:
    """Return `run.env` of the job that `nemotron steps run STEP -c CONFIG.yaml -b PROFILE OVERRIDES…` submits.

    Overrides are merged into the config; then the profile is laid over it, variables one by one, mounts behind those of
    the config, and a few keys left as the config has them; then overrides are merged again.
    """
    words = shlex.split(command)
    overrides = [word for word in words[4:] if "=" in word and not word.startswith("-")]
    config = OmegaConf.merge(load_as_steps_do(Path(words[words.index("-c") + 1])), OmegaConf.from_dotlist(overrides))
    written: Any = OmegaConf.to_container(config, resolve=False)
    own = (written.get("run") or {}).get("env") or {}
    merged = {**own, **profile}
    merged["env_vars"] = {**(own.get("env_vars") or {}), **(profile.get("env_vars") or {})}
    merged["mounts"] = [*(own.get("mounts") or []), *(profile.get("mounts") or [])]
    merged.update({key: own[key] for key in OWNED_BY_THE_CONFIG if key in own})
    last = OmegaConf.merge(OmegaConf.create({"run": {"env": merged}}), OmegaConf.from_dotlist(overrides))
    result: Any = OmegaConf.to_container(last, resolve=False)
    environment: dict[str, Any] = result["run"]["env"]
    return environment
