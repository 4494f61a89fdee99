"""Logins of `serve`: wrong passwords cost those who send them, and tell them nothing."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Awaitable, Iterator
from pathlib import Path

import bcrypt
import pytest
from starlette.types import Message, Receive, Scope, Send

from airferry.errors import ConfigurationError
from airferry.far.serve import logins as module
from airferry.far.serve.logins import Credentials, Failures, Guard, LoginLimits, Logins, Passwords, Refusal
from airferry.far.serve.protocol import REFUSED

HASH = bcrypt.hashpw(b"right", bcrypt.gensalt(4))
LIMITS = LoginLimits(failures=3, window_s=60, waiting=4)


class Recorded(Passwords):
    """Passwords whose checks are recorded, and wait until they are let go on."""

    def __init__(self) -> None:
        super().__init__({"ferry": HASH, "second": HASH})
        self.checked: list[str] = []
        self.proceed = threading.Event()
        self.proceed.set()

    def check(self, credentials: Credentials) -> bool:
        self.checked.append(credentials.user)
        assert self.proceed.wait(5)
        return super().check(credentials)


@pytest.fixture
def passwords() -> Recorded:
    return Recorded()


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def logins(passwords: Recorded, now: list[float], said: list[str]) -> Iterator[Logins]:
    found = Logins(passwords, limits=LIMITS, complain=said.append, clock=lambda: now[0])
    yield found
    passwords.proceed.set()
    found.close()


def header(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def try_in(logins: Logins, user: str, password: str, host: str = "192.0.2.1") -> Awaitable[Refusal | None]:
    return logins.refusal(header(user, password), host)


def status(logins: Logins, user: str, password: str, host: str = "192.0.2.1") -> int:
    """Return the status of an attempt, 200 for one that is let in."""

    async def once() -> int:
        return await _settled(try_in(logins, user, password, host))

    return asyncio.run(once())


@pytest.mark.parametrize("user", ["ferry", "nobody"])
def test_failures_are_counted_by_address_and_user(
    logins: Logins, passwords: Recorded, now: list[float], said: list[str], user: str
) -> None:
    assert [status(logins, user, f"wrong {number}") for number in range(5)] == [401, 401, 401, 429, 429]
    assert len(passwords.checked) == 3, "what is refused beforehand costs no check"
    assert status(logins, "second", "right") == 200, "another user behind the same proxy"
    assert status(logins, user, "wrong", host="192.0.2.2") == 401, "the same user from elsewhere"
    assert len(said) == 1 and "192.0.2.1" in said[0] and user not in said[0]
    now[0] = LIMITS.window_s
    assert status(logins, user, "wrong") == 401


def test_a_refusal_says_when_to_try_again(logins: Logins, now: list[float]) -> None:
    for number in range(3):
        status(logins, "ferry", f"wrong {number}")
    now[0] = 20.5

    async def once() -> Refusal | None:
        return await try_in(logins, "ferry", "right")

    refusal = asyncio.run(once())
    assert refusal is not None and refusal.response.headers["retry-after"] == "40"
    assert b"TOOMANYREQUESTS" in bytes(refusal.response.body)


def test_who_was_let_in_before_is_not_shut_out_by_others_failures(logins: Logins, passwords: Recorded) -> None:
    assert status(logins, "ferry", "right") == 200
    for number in range(4):
        status(logins, "ferry", f"wrong {number}")
    before = len(passwords.checked)
    assert status(logins, "ferry", "right") == 200 and len(passwords.checked) == before
    assert status(logins, "ferry", "wrong") == 429


def test_a_login_that_succeeds_forgets_the_failures_before(logins: Logins) -> None:
    for _time in range(3):
        assert [status(logins, "ferry", "wrong 1"), status(logins, "ferry", "wrong 2")] == [401, 401]
        logins._passwords._accepted.clear()
        assert status(logins, "ferry", "right") == 200


def test_checks_under_way_delay_nobody_who_is_known(logins: Logins, passwords: Recorded) -> None:
    assert status(logins, "second", "right") == 200
    passwords.proceed.clear()

    async def both() -> None:
        wrong = asyncio.create_task(_settled(try_in(logins, "ferry", "wrong")))
        await asyncio.sleep(0.01)
        assert await try_in(logins, "second", "right") is None and not wrong.done()
        passwords.proceed.set()
        assert (await wrong) == 401

    asyncio.run(both())


async def _settled(attempt: Awaitable[Refusal | None]) -> int:
    refusal = await attempt
    return refusal.response.status_code if refusal else 200


def test_addresses_take_turns(logins: Logins, passwords: Recorded) -> None:
    passwords.proceed.clear()

    async def crowd() -> list[int]:
        attempts = [_settled(try_in(logins, f"guess {number}", "wrong")) for number in range(6)]
        tasks = [asyncio.create_task(attempt) for attempt in attempts]
        await asyncio.sleep(0.01)
        good = asyncio.create_task(_settled(try_in(logins, "ferry", "right", host="192.0.2.2")))
        await asyncio.sleep(0.01)
        passwords.proceed.set()
        return [await good, *[await task for task in tasks]]

    assert asyncio.run(crowd()) == [200, 401, 401, 401, 401, 429, 429], "4 of an address may wait"
    assert passwords.checked.index("ferry") <= 1


def test_connections_that_log_in_at_once_are_checked_and_counted_once(logins: Logins, passwords: Recorded) -> None:
    async def at_once(password: str) -> list[int]:
        return await asyncio.gather(*[_settled(try_in(logins, "ferry", password)) for _number in range(10)])

    assert asyncio.run(at_once("wrong")) == [401] * 10
    assert asyncio.run(at_once("right")) == [200] * 10
    assert passwords.checked == ["ferry", "ferry"]


def test_a_client_that_leaves_does_not_end_the_check_of_another(logins: Logins, passwords: Recorded) -> None:
    passwords.proceed.clear()

    async def two() -> int:
        first = asyncio.create_task(_settled(try_in(logins, "ferry", "right")))
        second = asyncio.create_task(_settled(try_in(logins, "ferry", "right")))
        await asyncio.sleep(0.01)
        first.cancel()
        passwords.proceed.set()
        return await second

    assert asyncio.run(two()) == 200


def test_an_unknown_user_costs_the_same_check(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {f"user {number}": b"$2y$%02d$" % (4 + number) + HASH[7:] for number in range(8)}
    passwords = Passwords(hashes)
    used: list[bytes] = []

    def record(_password: bytes, hashed: bytes) -> bool:
        used.append(hashed)
        return True

    monkeypatch.setattr(module.bcrypt, "checkpw", record)
    for name in ("nobody", "nobody", "someone", "no one", "anyone", "each"):
        assert not passwords.check(Credentials(name, "the other one's password"))
        assert not passwords.remembers(Credentials(name, "the other one's password"))
    assert len(used) == 6 and used[0] == used[1], "a name costs the same each time"
    assert set(used) <= set(hashes.values()) and len(set(used)) > 1


def test_a_refusal_takes_the_same_time_for_all_and_keeps_no_one_else_out(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = LoginLimits(failures=2, wrong_s=3600, blocked_s=7200)
    logins = Logins(Passwords({"ferry": HASH}), limits=limits)
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", wait)

    async def unreachable(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("let in")

    async def nothing() -> Message:
        raise AssertionError("nothing is read")

    def ask(value: str | None) -> list[str]:
        sent: list[str] = []

        async def send(message: Message) -> None:
            sent.append(str(message.get("status", message["type"])))

        headers = [(b"authorization", value.encode())] if value else []
        scope = {"type": "http", "headers": headers, "client": ("192.0.2.1", 1), "extensions": {REFUSED: {}}}
        asyncio.run(Guard(unreachable, logins)(scope, nothing, send))
        return sent[:-1]

    for user in ("ferry", "nobody"):
        for number, status, after_s in ((0, "401", 3600), (1, "401", 3600), (2, "429", 7200)):
            assert ask(header(user, f"wrong {number}")) == [REFUSED, status]
            # what the check took is a part of it
            assert after_s - 600 < waited.pop() < after_s
    assert ask(None) == ["401"] and waited == [], "a client that has not tried yet is told how at once"
    logins.close()


def test_failures_are_remembered_in_bounded_memory() -> None:
    failures = Failures(LIMITS, lambda: 0.0)
    for number in range(module.MOST_COUNTED + 10):
        failures.add(("192.0.2.1", b"%d" % number))
    assert len(failures._counted) == module.MOST_COUNTED


@pytest.mark.parametrize("cost", ["03", "18", "31", "99"])
def test_a_hash_that_would_take_minutes_is_refused(tmp_path: Path, cost: str) -> None:
    (tmp_path / "users").write_text(f"ferry:$2y${cost}$" + HASH[7:].decode())
    with pytest.raises(ConfigurationError, match=f"users:1: the hash has cost {cost}, expected 4 to 17"):
        Passwords.read(tmp_path / "users")
