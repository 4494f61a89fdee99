"""airferry carries container images, and everything that goes with them, across an air gap.

The public interface is `airferry.api`; this package imports nothing by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str

__all__ = ["__version__"]

# the version is looked up when it is asked for, as that takes longer than many a command
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name != "__version__":
            raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("airferry")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0.0.0"
