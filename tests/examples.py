"""How many examples a property is tried with: few in scripts/test, many times as many in scripts/test-slow."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

MANY = int(os.environ.get("AIRFERRY_EXAMPLES", "1"))


def examples(count: int) -> settings:
    """Return the settings for a test that tries `count` examples, or in scripts/test-slow that number many times."""
    return settings(
        max_examples=count * MANY,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
