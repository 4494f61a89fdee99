"""What tests with servers on loopback and programs of this host share: the fixtures of unit tests, and a registry."""

from __future__ import annotations

from quick import no_pip, no_waiting, on_kubernetes, registry, unsettled

__all__ = ["no_pip", "no_waiting", "on_kubernetes", "registry", "unsettled"]
