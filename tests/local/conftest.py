"""What tests with servers on loopback and programs of this host share: the fixtures of unit tests, and a registry."""

from __future__ import annotations

from quick import no_pip, no_waiting, on_kubernetes, registry, said, tmp_path_factory, unsettled
from recorded_disk import disk

__all__ = ["disk", "no_pip", "no_waiting", "on_kubernetes", "registry", "said", "tmp_path_factory", "unsettled"]
