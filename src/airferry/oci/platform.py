"""Platforms: OCI image-spec, *image-index.md*, property "platform"."""

from __future__ import annotations

import platform as host_platform
import re
from collections.abc import Iterable
from dataclasses import dataclass

from airferry.errors import ConfigurationError
from airferry.wording import near_names

_PART = re.compile(r"[a-z0-9_.]+")
_ALIASES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "i386": "386",
    "i686": "386",
}
_MACHINES = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
    "386": "i686",
    "arm": "armv7l",
}
_VARIANTS = {
    "amd64": ("v2", "v3", "v4"),
    "arm": ("v5", "v6", "v7", "v8"),
    "arm64": ("v8", "v9"),
}
# what an architecture without a variant is; `normalizeArch` of containerd's platforms drops those of amd64 and arm64
_BASELINE = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
_QEMU = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
    "386": "i386",
    "arm": "arm",
}


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """An operating system, a CPU architecture and its variant, in Go's words."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def slug(self) -> str:
        """The platform as part of a file or image name."""
        return str(self).replace("/", "-")

    @property
    def machine(self) -> str:
        """The architecture as `uname -m` and wheel tags say it."""
        return _MACHINES.get(self.architecture, self.architecture)

    @property
    def qemu(self) -> str:
        """The architecture as QEMU's binfmt handlers name it."""
        return _QEMU.get(self.architecture, self.architecture)

    def accepts(self, other: Platform) -> bool:
        """Tell whether an image for `other` serves where this platform is wanted.

        `arm64` and `arm64/v8` are the same, `amd64` and `amd64/v1` too; no variant wanted accepts any.
        """
        if (self.os, self.architecture) != (other.os, other.architecture):
            return False
        return not self.variant or _variant(self) == _variant(other)

    def matches_host(self) -> bool:
        """Tell whether this host runs the platform without emulation."""
        return self.os == "linux" and self.architecture == host().architecture


def _variant(value: Platform) -> str:
    return value.variant or _BASELINE.get(value.architecture, "")


def parse_platform(text: str) -> Platform:
    """Return the platform for `os/architecture[/variant]`; common aliases of an architecture are folded.

    Raises:
        ConfigurationError: it has another form; the nearest one is named.
    """
    parts = text.strip().lower().split("/")
    if not 2 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
        raise ConfigurationError(
            f"`{text}` is not a platform, expected `os/architecture[/variant]`{_meant(text)}",
            hint="for example `linux/amd64` or `linux/arm64`",
        )
    architecture = _ALIASES.get(parts[1], parts[1])
    variant = parts[2] if len(parts) == 3 else ""
    if architecture in ("amd64", "arm64") and variant == _BASELINE[architecture]:
        variant = ""
    return Platform(parts[0], architecture, variant)


def parse_buildable_platform(text: str) -> Platform:
    """Return a platform that images can be built for.

    Raises:
        ConfigurationError: it has another form, or there is no such platform; the nearest one is named.
    """
    platform = parse_platform(text)
    if platform.os != "linux" or platform.architecture not in _MACHINES:
        supported = "; supported are " + ", ".join(f"`linux/{one}`" for one in sorted(_MACHINES))
        hint = "images are built for Linux alone" if platform.os != "linux" else None
        raise ConfigurationError(f"unsupported platform `{text}`{_meant(text) or supported}", hint=hint)
    variants = _VARIANTS.get(platform.architecture, ())
    if platform.variant and platform.variant not in variants:
        known = ", ".join(f"`{platform.os}/{platform.architecture}/{variant}`" for variant in variants)
        raise ConfigurationError(
            f"unsupported platform `{text}`, did you mean `{platform.os}/{platform.architecture}`?",
            hint=f"supported variants: {known}" if known else "it has no variants",
        )
    return platform


def _meant(text: str) -> str:
    """Return `, did you mean …?` for the platform that is nearest to a text; empty where none is near."""
    written = text.strip().lower()
    architecture = written.split("/")[1] if "/" in written else written.removeprefix("linux").strip("-_:.")
    near = near_names(_ALIASES.get(architecture, architecture), _MACHINES)
    return f", did you mean `linux/{near[0]}`?" if near else ""


def nearest(text: str, known: Iterable[str]) -> str:
    """Return `, did you mean …?` for the one of the known platforms that is nearest to a text; empty for none."""
    near = near_names(text, known, cutoff=0.8)
    return f", did you mean `{near[0]}`?" if near else ""


def host() -> Platform:
    """Return the platform of this machine."""
    machine = host_platform.machine().lower()
    return Platform("linux", _ALIASES.get(machine, machine))
