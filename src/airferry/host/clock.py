"""The only module that reads a wall clock. `SOURCE_DATE_EPOCH` wins where it is set."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

from airferry.errors import ConfigurationError
from airferry.host.parsing import parse_count

# the last second that RFC 3339 can write
LAST_EPOCH_S = 253402300799
DEFAULT_EPOCH_S = 315532800  # 1980-01-01, the first second that zip archives (wheels) can hold


def source_date_epoch_s() -> int:
    """Return the time, in seconds since 1970, that goes into images and documents.

    It is `SOURCE_DATE_EPOCH` or, without it, a constant, so that the same inputs give the same bytes.

    Raises:
        ConfigurationError: `SOURCE_DATE_EPOCH` is not a non-negative whole number.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return DEFAULT_EPOCH_S
    epoch_s = parse_count(text)
    if epoch_s is None or epoch_s > LAST_EPOCH_S:
        raise ConfigurationError(
            f"`SOURCE_DATE_EPOCH` is `{text}`, expected seconds since 1970 as a whole number, before the year 10000",
            hint="unset it, or set it to the output of `git log -1 --format=%ct`",
        )
    return epoch_s


def rfc3339(epoch_s: float) -> str:
    """Return a time in seconds since 1970 as RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(int(epoch_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_s() -> float:
    """Return the wall clock's seconds since 1970, for receipts and token expiry, never for build output."""
    return time.time()


def monotonic_s() -> float:
    """Return a clock that only moves forward, in seconds, for durations."""
    return time.monotonic()
