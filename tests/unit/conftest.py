"""What unit tests share."""

from __future__ import annotations

from quick import no_pip, no_waiting, on_kubernetes, registry, unsettled

__all__ = ["no_pip", "no_waiting", "on_kubernetes", "registry", "unsettled"]
