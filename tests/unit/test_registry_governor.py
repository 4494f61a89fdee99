"""The number of parallel uploads settles at what a registry allows, and follows it up again; a rate is kept."""

from __future__ import annotations

import threading

import pytest

from airferry.registry.governor import Governor, RateLimit


def drive(governor: Governor, allowed: int, requests: int) -> list[int]:
    """Send requests in rounds of as many as are allowed; a proxy refuses what is above its own limit."""
    limits = []
    done = 0
    while done < requests:
        batch = governor.limit
        for number in range(batch):
            if number < allowed:
                governor.succeeded()
            else:
                governor.overloaded()
            done += 1
            limits.append(governor.limit)
    return limits


@pytest.mark.parametrize("allowed", [1, 2, 3, 5])
def test_it_settles_at_what_is_allowed_and_finds_a_raised_limit_within_50_requests(allowed: int) -> None:
    governor = Governor(8)
    drive(governor, allowed, 30)
    settled = drive(governor, allowed, 200)
    assert min(settled) >= max(1, allowed - 1) and max(settled) <= allowed + 1
    assert sum(settled) / len(settled) == pytest.approx(allowed, abs=0.5)
    raised = drive(governor, 8, 50)
    assert raised[-1] == 8


def test_no_more_than_the_limit_are_under_way() -> None:
    governor = Governor(3)
    governor.overloaded()
    lock, active, most = threading.Lock(), [0], [0]

    def work() -> None:
        for _ in range(20):
            with governor.slot():
                with lock:
                    active[0] += 1
                    most[0] = max(most[0], active[0])
                with lock:
                    active[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most[0] <= 2
    for _ in range(20):
        governor.overloaded()
    assert governor.limit == 1


def test_a_rate_is_kept_over_all_takers() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    rate = RateLimit(1000.0, sleep=sleep, now_s=lambda: now[0])
    for _ in range(10):
        rate.take(500)
    assert now[0] == pytest.approx(4.5)
    free = RateLimit(None, sleep=sleep, now_s=lambda: now[0])
    free.take(10**12)
    assert now[0] == pytest.approx(4.5)
