"""The site profile: a description of the far side, as `site:` of `airgap.yaml` or as a separate file.

Says what executors, storage, mirrors and GPUs there are; asks none of them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from airferry.config.fields import ContainerPath, PlatformField, StrictModel, Text, VariableName
from airferry.config.submit import SubmitText
from airferry.errors import UsageError
from airferry.oci.reference import expect_no_login
from airferry.wording import near_names

ExecutorKind = Literal["slurm-pyxis", "kubernetes", "lepton", "dgxcloud", "docker", "podman"]
EXECUTOR_KINDS: tuple[ExecutorKind, ...] = ("slurm-pyxis", "kubernetes", "lepton", "dgxcloud", "docker", "podman")
FIRST_WITH_ZSTD = {"slurm-pyxis": (4, 0), "docker": (23, 0)}
_KINDS_OF_OTHER_NAMES = {
    **dict.fromkeys(("slurm", "enroot", "pyxis"), "slurm-pyxis"),
    **dict.fromkeys(("k8s", "k3s", "rke2", "openshift"), "kubernetes"),
}
VERSIONED = {"slurm-pyxis": "enroot", "docker": "Docker"}
_SHOWN_CHARACTERS = 120

_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,9}")
_PROFILE = re.compile(r"[A-Za-z0-9_-]+")
_URL = re.compile(r"https?://[^\s/]+(/\S*)?")
_CAPABILITY = re.compile(r"[0-9]{1,2}\.[0-9][a-z]?")
_REGISTRY = re.compile(r"(\[[0-9a-f:]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?(/[a-z0-9._/-]+)?")


def _matching(pattern: re.Pattern[str], expected: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"`{value[:_SHOWN_CHARACTERS]}`: expected {expected}")
        return value

    return AfterValidator(check)


def _without_login(value: str) -> str:
    try:
        expect_no_login(value)
    except UsageError as error:
        raise ValueError(error.message) from error
    return value


def _number_as_text(value: Any) -> Any:
    """Take `4.1` as it stands in YAML without quotes, a number, for the text that it was meant to be."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


_TEXT_OR_NUMBER = {"anyOf": [{"type": "string"}, {"type": "number"}]}
Version = Annotated[
    str,
    BeforeValidator(_number_as_text),
    _matching(_VERSION, "a version such as `4.0` (in quotes)"),
    WithJsonSchema(_TEXT_OR_NUMBER),
]
Capability = Annotated[
    str,
    BeforeValidator(_number_as_text),
    _matching(_CAPABILITY, 'a compute capability such as `"9.0"`'),
    WithJsonSchema(_TEXT_OR_NUMBER),
]
Url = Annotated[Text, _matching(_URL, "a URL such as `https://host.internal/path`")]
ProfileName = Annotated[str, _matching(_PROFILE, "a profile's name of letters, digits, `_` and `-`")]
RegistryPrefix = Annotated[Text, AfterValidator(_without_login), _matching(_REGISTRY, "`HOST:PORT/PREFIX`")]


def parse_executor_version(text: str) -> tuple[int, ...]:
    """Return a version as numbers, two at least."""
    numbers = tuple(int(part) for part in text.split("."))
    return numbers if len(numbers) > 1 else (*numbers, 0)


def _known_kind(value: Any) -> Any:
    """Refuse an unknown kind of executor, with the one that may have been meant."""
    if not isinstance(value, str) or value in EXECUTOR_KINDS:
        return value
    near = near_names(value, EXECUTOR_KINDS)
    meant = _KINDS_OF_OTHER_NAMES.get(value.lower()) or (near[0] if near else None)
    there_are = ", ".join(f"`{kind}`" for kind in EXECUTOR_KINDS)
    asked = f", did you mean `{meant}`?" if meant else f": there are {there_are}"
    raise ValueError(f"`{value}` is not an executor that airferry knows{asked}")


class Executor(StrictModel):
    """What runs containers: its kind, and for Slurm enroot's version, for Docker its own."""

    kind: Annotated[ExecutorKind, BeforeValidator(_known_kind), Field(description="What runs the containers.")]
    version: Annotated[
        Version | None, Field(description="Of enroot (`slurm-pyxis`) or Docker, which decides what layers it can read.")
    ] = None
    profile: Annotated[
        ProfileName | None, Field(description="Profile of `env.toml` that jobs are submitted with there.")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        if isinstance(data, str):
            kind, _, version = data.partition(":")
            return {"kind": kind, **({"version": version} if version else {})}
        return data

    @model_validator(mode="after")
    def _check_version(self) -> Executor:
        if self.kind in VERSIONED and self.version is None:
            raise ValueError(f"`{self.kind}` needs the `version` of {VERSIONED[self.kind]}, for example `4.0`")
        return self

    @property
    def reads_zstd(self) -> bool:
        """Whether it can run images whose layers are compressed with zstd."""
        first = FIRST_WITH_ZSTD.get(self.kind)
        return first is None or self.version is None or parse_executor_version(self.version) >= first

    def __str__(self) -> str:
        if self.kind not in VERSIONED:
            return self.kind
        return f"{self.kind} ({VERSIONED[self.kind]} {self.version})"


class Gpu(StrictModel):
    """The GPUs that steps get."""

    driver: Annotated[Version | None, Field(description="Version of the NVIDIA driver, as `nvidia-smi` shows it.")] = (
        None
    )
    compute_capabilities: Annotated[
        tuple[Capability, ...], Field(description='Compute capabilities of the GPUs, for example `"9.0"` for H100.')
    ] = ()


class StorageMount(StrictModel):
    """Persistent storage that containers see."""

    path: Annotated[ContainerPath, Field(description="Where it is on the nodes.")]
    target: Annotated[ContainerPath | None, Field(description="Where it is in containers; the same by default.")] = None
    mode: Annotated[Literal["ro", "rw"], Field(description="Read-only or read-write.")] = "ro"
    purpose: Annotated[Text | None, Field(description="What it is for, in words.")] = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        parts = data.split(":")
        if parts[-1] in ("ro", "rw") and len(parts) > 1:
            *parts, mode = parts
        else:
            mode = "ro"
        if len(parts) > 2:
            raise ValueError(f"`{data}`: expected `PATH[:TARGET][:ro|rw]`")
        return {"path": parts[0], "mode": mode, **({"target": parts[1]} if len(parts) == 2 else {})}

    @property
    def inside(self) -> str:
        """The path in containers, without a slash at its end."""
        return (self.target or self.path).rstrip("/")

    def __str__(self) -> str:
        return f"{self.path.rstrip('/')}:{self.inside}" + (":ro" if self.mode == "ro" else "")


class Mirrors(StrictModel):
    """Services inside that stand for public ones."""

    huggingface: Annotated[Url | None, Field(description="A mirror of the Hugging Face Hub, as `HF_ENDPOINT`.")] = None
    packages: Annotated[Url | None, Field(description="A Python package index, as `PIP_INDEX_URL`.")] = None
    wandb: Annotated[Url | None, Field(description="A Weights & Biases server, as `WANDB_BASE_URL`.")] = None


class EnvironmentProfile(StrictModel):
    """A profile of `env.toml`: for which executor it is, and which variables it or the scheduler sets."""

    executor: Annotated[ExecutorKind | None, Field(description="The executor that it belongs to.")] = None
    env: dict[VariableName, str] = Field(
        default_factory=dict, description="Variables with their values. No secrets: name those under `provides`."
    )
    provides: Annotated[
        tuple[VariableName, ...], Field(description="Variables that the scheduler injects, secrets for example.")
    ] = ()


class SiteProfile(StrictModel):
    """Describes the far side."""

    executors: Annotated[tuple[Executor, ...], Field(description="What runs the steps.")] = ()
    registry: Annotated[RegistryPrefix | None, Field(description="`HOST:PORT/PREFIX` that `load` pushes to.")] = None
    ca_file: Annotated[
        Text | None, Field(description="PEM certificate of the registry's private CA on this host, as `--ca-file`.")
    ] = None
    node_ca_file: Annotated[
        ContainerPath | None, Field(description="The same certificate's path on the nodes, for `airferry mirrors`.")
    ] = None
    platform: Annotated[PlatformField | None, Field(description="CPU platform of the nodes.")] = None
    gpu: Gpu = Gpu()
    mounts: Annotated[tuple[StorageMount, ...], Field(description="Persistent storage.")] = ()
    mirrors: Mirrors = Mirrors()
    endpoints: dict[str, Url] = Field(
        default_factory=dict, description="Model providers by the name that configs use, and where they are inside."
    )
    submit: Annotated[
        SubmitText | None, Field(description="The command that submits a step here, in place of `source.submit`.")
    ] = None
    profiles: dict[ProfileName, EnvironmentProfile] = Field(
        default_factory=dict, description="Environment profiles of `env.toml`."
    )

    @model_validator(mode="after")
    def _check_profiles(self) -> SiteProfile:
        taken: set[str] = set()
        for executor in self.executors:
            if executor.kind in taken:
                raise ValueError(f"`{executor.kind}` is listed twice; list each executor once")
            taken.add(executor.kind)
            if executor.profile and self.profiles and executor.profile not in self.profiles:
                raise ValueError(
                    f"executor `{executor.kind}` names the profile `{executor.profile}`, which `profiles` lacks"
                )
        return self

    @property
    def without_zstd(self) -> tuple[Executor, ...]:
        """The executors that cannot read zstd."""
        return tuple(executor for executor in self.executors if not executor.reads_zstd)

    def profile_of(self, executor: Executor) -> tuple[str, EnvironmentProfile] | None:
        """Return the profile that jobs on an executor use, if the site names one."""
        if executor.profile:
            return executor.profile, self.profiles.get(executor.profile, EnvironmentProfile(executor=executor.kind))
        for name, profile in self.profiles.items():
            if profile.executor == executor.kind:
                return name, profile
        return None
