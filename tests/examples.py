"""How many examples a property is tried with: a third of its number in scripts/test, twenty times in scripts/test-slow.

Of 15 s for the examples of all properties, 10 s are saved in each run; the others are looked for where time is.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

MANY = int(os.environ.get("AIRFERRY_EXAMPLES", "0"))


def how_many(count: int) -> int:
    """Return how many examples a test tries whose property asks for `count`."""
    return count * MANY if MANY else max(count // 3, 15)


def examples(count: int) -> settings:
    """Return the settings for a test whose property asks for `count` examples."""
    return settings(
        max_examples=how_many(count),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
