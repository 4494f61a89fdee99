"""What an engine that starts code of others is shown of the user's home: only what it works with.

Engines have followed links in images to files of the host (CVE-2024-1753, in Buildah before 1.35.1). Starts nothing;
`inside.show_only` hides the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from airferry.errors import HostError
from airferry.host import files

# variables that name what an engine reads at each start
ENGINE_FILES = (
    "CONTAINERS_CONF",
    "CONTAINERS_REGISTRIES_CONF",
    "CONTAINERS_STORAGE_CONF",
    "REGISTRIES_CONFIG_PATH",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
)


def hidden_home(needed: Iterable[Path], environment: Mapping[str, str]) -> list[Path]:
    """Return the home, and what lies in it of what is needed, configuration and programs included.

    Nothing is returned where there is no home, or all of it is needed.
    """
    home = files.home_directory()
    if home is None:
        return []
    try:
        real = files.resolved(home)
    except HostError:
        return []
    named = [environment.get(name, "") for name in ENGINE_FILES] + environment.get("PATH", "").split(os.pathsep)
    paths = [*needed, home / ".config" / "containers", *(Path(text) for text in named if text)]
    kept: set[Path] = set()
    for path in paths:
        if files.exists(path):
            # the engine goes by the name that it is given, and by what links lead to
            for spelled in (path.absolute(), files.resolved(path)):
                kept.add(real / spelled.relative_to(home) if spelled.is_relative_to(home) else spelled)
    if not real.is_dir() or any(real.is_relative_to(path) for path in kept):
        return []
    inside = sorted(path for path in kept if path.is_relative_to(real))
    return [real, *(path for path in inside if not any(other in path.parents for other in inside))]
