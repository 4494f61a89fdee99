"""Platforms: OCI image-spec, *image-index.md*, property "platform"."""

from __future__ import annotations

import platform as host_platform
import re
from dataclasses import dataclass

from airferry.errors import ConfigurationError

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
KNOWN_ARCHITECTURES = frozenset(_MACHINES)
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

        `arm64` and `arm64/v8` are the same; no variant wanted accepts any.
        """
        if (self.os, self.architecture) != (other.os, other.architecture):
            return False
        return not self.variant or _variant(self) == _variant(other)

    def matches_host(self) -> bool:
        """Tell whether this host runs the platform without emulation."""
        return self.os == "linux" and self.architecture == host().architecture


def _variant(value: Platform) -> str:
    default = {"arm64": "v8", "arm": "v7"}.get(value.architecture, "")
    return value.variant or default


def parse_platform(text: str) -> Platform:
    """Return the platform for `os/architecture[/variant]`; common aliases of an architecture are folded.

    Raises:
        ConfigurationError: it has another form.
    """
    parts = text.strip().lower().split("/")
    if not 2 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
        raise ConfigurationError(
            f"`{text}` is no platform, expected `os/architecture[/variant]`",
            hint="for example `linux/amd64` or `linux/arm64`",
        )
    architecture = _ALIASES.get(parts[1], parts[1])
    variant = parts[2] if len(parts) == 3 else ""
    if (architecture, variant) == ("arm64", "v8"):
        variant = ""
    return Platform(parts[0], architecture, variant)


def host() -> Platform:
    """Return the platform of this machine."""
    machine = host_platform.machine().lower()
    return Platform("linux", _ALIASES.get(machine, machine))
