"""A step as a check sees it: its config's values, what it consumes, and the storage that its containers get."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from airferry.bundle.receipt import ReceiptImage
from airferry.config import Executor, SiteProfile
from airferry.config.environment import SECRET_TEXT
from airferry.host import files
from airferry.jobs.findings import Finding, FindingKind, Level, Remedy
from airferry.jobs.settings import setting
from airferry.plan.catalogue import StepFiles, read_step_toml
from airferry.plan.env_profiles import EnvProfile
from airferry.plan.step_values import StepValue, StepValues

JOB_FOLDER = "/nemo_run"
CODE_FOLDER = "/nemo_run/code"
CLAIM = "/a persistent volume claim"
OWN_BLEND = "blend_tiny.json"
AMBIENT = frozenset({"PWD", "USER", "HOME", "HOSTNAME", "PATH", "TMPDIR", "LOGNAME", "NEMO_RUN_DIR"})
# the keys that feed what a step consumes; types without paths are the catalogue's, the paths are config keys
FEEDS: dict[str, tuple[str, ...]] = {
    "packed_parquet": ("packed_train_data_path", "nano3_packed_sft_dir", "packed_data_dir", "train_data_path"),
    "binidx": ("data_paths", "paths", "blend_path", "data_path"),
    "raw_jsonl": ("input_glob", "input_path", "input_dir"),
    "filtered_jsonl": ("blend_path", "input_path"),
    "training_jsonl": ("blend_path", "path_or_dataset_id", "data_path", "manifest_path", "dataset_name", "path"),
    "checkpoint_hf": (
        *("hf_model_id", "hf_model_path", "base_hf_path", "teacher_hf_path", "student_hf_path"),
        *("hf_model_name_or_path", "pretrained_model_name_or_path", "model_name", "genrm_model_name"),
    ),
    "checkpoint_megatron": (
        *("megatron_path", "pretrained_checkpoint", "checkpoint_path", "base_megatron_path", "model_name"),
    ),
    "checkpoint_lora": ("lora_checkpoint",),
    "benchmark_source_corpus": ("input_dir",),
    "benchmark_parquet": ("dataset_path",),
}
PathPlace = Literal["mount", "code", "job", "temporary", "relative", "image"]


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder of the nodes that containers see."""

    inside: str
    host: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Consumed:
    """Something that a step declares to read."""

    kind: str
    required: bool


@dataclass(frozen=True)
class StepContext:
    """Everything that the rules of a check look at. `staged` has targets of assets by the keys they are for,
    `overlays` is the folder that configs were written to, `submit` the catalogue's command, None for Nemotron's."""

    name: str
    files: StepFiles
    values: StepValues
    consumes: tuple[Consumed, ...]
    produces: tuple[str, ...]
    site: SiteProfile
    executor: Executor
    mounts: tuple[Mount, ...]
    environment: Mapping[str, str] = field(repr=False)
    provided: frozenset[str] = frozenset()
    profile: EnvProfile | None = None
    image: ReceiptImage | None = None
    code_root: Path = Path()
    staged: Mapping[tuple[str | int, ...], str] = field(default_factory=dict)
    overlays: Path | None = None
    submit: str | None = None

    def finding(
        self,
        value: StepValue,
        kind: FindingKind,
        level: Level,
        text: str,
        *,
        fix: str | None = None,
        shown: str | None = None,
        remedy: Remedy = "change",
    ) -> Finding:
        """Return a finding about a value of the config."""
        return Finding(
            step=self.name,
            kind=kind,
            level=level,
            file=self.shown_path(value.file),
            line=value.line,
            key=value.name,
            value=masked(str(value.value if value.value is not None else value.raw) if shown is None else shown),
            text=text,
            fix=fix,
            remedy=remedy,
        )

    def general(
        self, kind: FindingKind, level: Level, text: str, *, key: str, fix: str | None = None, remedy: Remedy = "change"
    ) -> Finding:
        """Return a finding about the config as a whole."""
        path = self.values.path
        return Finding(self.name, kind, level, self.shown_path(path), 1, key, "", text, fix, remedy=remedy)

    def in_profile(
        self,
        kind: FindingKind,
        level: Level,
        text: str,
        *,
        key: tuple[str | int, ...],
        value: str,
        fix: str | None = None,
    ) -> Finding:
        """Return a finding about the profile of `env.toml`."""
        assert self.profile is not None
        name = ".".join([self.profile.name, *(str(part) for part in key)])
        path = str(self.profile.source.path)
        return Finding(self.name, kind, level, path, self.profile.line(key), name, masked(value), text, fix)

    def shown_path(self, path: Path) -> str:
        """Return a path relative to the catalogue, if it is in it."""
        root = files.resolved(self.code_root)
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    def place_of(self, path: str) -> tuple[PathPlace, Mount | None]:
        """Return where a path of a container leads: the longest mount that covers it wins."""
        covering = [mount for mount in self.mounts if path == mount.inside or path.startswith(f"{mount.inside}/")]
        if covering:
            return "mount", max(covering, key=lambda mount: len(mount.inside))
        if not path.startswith("/"):
            return "relative", None
        for folder, place in ((CODE_FOLDER, "code"), (JOB_FOLDER, "job"), ("/tmp", "temporary")):
            if path == folder or path.startswith(f"{folder}/"):
                return place, None  # type: ignore[return-value]
        return "image", None

    def on_this_host(self, path: str) -> Path | None:
        """Return where a path of a container can be looked at here: in the catalogue, or on storage."""
        place, mount = self.place_of(path)
        if place == "code":
            return self.code_root / path.removeprefix(CODE_FOLDER).lstrip("/")
        if mount is not None:
            return Path(mount.host + path.removeprefix(mount.inside))
        return None

    @property
    def own_blend(self) -> Path | None:
        """The data blend that comes with the step, and counts where its config names none."""
        path = self.files.folder / "data" / OWN_BLEND
        return path if path.is_file() else None

    def is_off(self, value: StepValue) -> bool:
        """Tell whether a part of the config that the value is in is switched off by `enabled: false`."""
        for depth in range(1, len(value.key)):
            switch = self.values.get(*value.key[:depth], "enabled")
            if switch is not None and str(switch.value).lower() == "false":
                return True
        return False

    def setting(self, value: StepValue, text: str) -> str:
        """Return what to type so that a value becomes `text`, or the target of the asset that is meant for it."""
        known = self.staged.get(value.key)
        return setting(self.values.tree, value, text if known is None else known)

    def sibling(self, value: StepValue, name: str) -> StepValue | None:
        """Return the value next to another one in the same mapping."""
        return self.values.get(*value.key[:-1], name)


def consumed_and_produced(path: Path) -> tuple[tuple[Consumed, ...], tuple[str, ...]]:
    """Return what a step says that it consumes and produces; the file was checked when the step was found."""
    data = read_step_toml(path)

    def tables(name: str) -> list[Mapping[str, Any]]:
        found = data.get(name, [])
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    consumes = [Consumed(str(item.get("type")), item.get("required", True) is not False) for item in tables("consumes")]
    return tuple(consumes), tuple(str(item.get("type")) for item in tables("produces"))


def mounts_of(site: SiteProfile, written: Sequence[object]) -> tuple[Mount, ...]:
    """Return the mounts of a site and those written in a config or a profile: `HOST:INSIDE[:OPTIONS]`, Lepton's tables,
    and DGX Cloud's claims, which are on no path of the nodes."""
    found = [Mount(mount.inside, mount.path.rstrip("/"), mount.mode == "ro") for mount in site.mounts]
    for text in written:
        if isinstance(text, dict) and (inside := str(text.get("mount_path") or text.get("path") or "").rstrip("/")):
            host = str(text.get("path") or inside).rstrip("/") if "mount_path" in text else CLAIM
            found.append(Mount(inside, host, False))
        parts = text.split(":") if isinstance(text, str) and not text.startswith(("<", "$", "__")) else []
        if len(parts) >= 2 and parts[1].startswith("/"):
            options = parts[2].split(",") if len(parts) > 2 else []
            inside = parts[1].rstrip("/")
            found.append(Mount(inside or "/", parts[0].rstrip("/") or "/", "ro" in options))
    return tuple(found)


def has_word(name: str, words: str) -> bool:
    """Tell whether a key has one of the words (a pattern), as a whole part between `_`."""
    return re.search(rf"(^|_)({words})(_|$)", name.lower()) is not None


def masked(text: str) -> str:
    """Return a text with what looks like a secret masked: tokens of well-known services, logins in URLs."""
    return SECRET_TEXT.sub("***", text)
