"""How often, and after which pause, a request is sent again. No requests are made in here."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from airferry.host import clock

TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
# Docker Hub's limit lifts after hours, too long to wait for; a proxy's after seconds
MAX_RETRY_AFTER_S = 120.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts in all, and pauses that double from `first_pause_s` up to `longest_pause_s`, with full jitter."""

    attempts: int = 6
    first_pause_s: float = 0.5
    longest_pause_s: float = 20.0
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def pause(self, attempt: int, *, asked_s: float | None = None) -> None:
        """Wait before the attempt after `attempt` (counted from 0), as long as `Retry-After` asked for if it did."""
        if asked_s is None:
            # jitter, so that threads which failed at once do not come back at once
            longest = min(self.longest_pause_s, self.first_pause_s * 2**attempt)
            self.sleep(longest * (0.5 + 0.5 * self.jitter()))
        else:
            self.sleep(min(asked_s, MAX_RETRY_AFTER_S))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` asks for (RFC 9110, section 10.2.3), or None."""
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        moment_s = email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return max(0.0, moment_s - clock.now_s())
