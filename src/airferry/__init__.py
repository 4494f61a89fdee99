"""airferry carries container images, and everything that goes with them, across an air gap.

The public interface is `airferry.usecases`; this package imports nothing by itself.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("airferry")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
