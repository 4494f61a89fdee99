"""Who may pull: users of an htpasswd file, whose passwords are checked without delaying anyone else.

A check takes bcrypt milliseconds to seconds of a core by design. It runs on its own few threads, of low priority, at
most one for each address at a time, so that addresses take turns. Who logged in before is recognised at once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import math
import os
import re
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import bcrypt
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from airferry.errors import ConfigurationError
from airferry.far.serve.admission import client_address
from airferry.far.serve.answers import error_answer
from airferry.far.serve.protocol import REFUSED
from airferry.host import files
from airferry.host.threads import usable_cores
from airferry.wording import shell_word

MAX_PASSWORD_FILE_BYTES = 1024 * 1024
# the rest is not looked at: bcrypt's own limit
MAX_PASSWORD_BYTES = 72
# `htpasswd` makes no costlier ones; a check of cost 17 takes seconds
MAX_COST = 17
MOST_THREADS = 4
# added to the threads' niceness: serving goes first
NICENESS = 10
MOST_COUNTED = 4096

_BCRYPT = re.compile(r"\$2[aby]\$(?P<cost>[0-9]{2})\$[./A-Za-z0-9]{53}")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password, as a client sent them."""

    user: str
    password: str


def parse_basic(header: str) -> Credentials | None:
    """Return what an `Authorization` header of the kind Basic holds, RFC 7617; None for any other header."""
    kind, _, value = header.partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except ValueError:
        return None
    return Credentials(user, password) if colon else None


class Passwords:
    """Users and the bcrypt hashes of their passwords, as `htpasswd -B` writes them. Safe with threads."""

    def __init__(self, hashes: Mapping[str, bytes]) -> None:
        """Take users with their hashes, one at least."""
        self._hashes = dict(hashes)
        self._decoys = list(self._hashes.values())
        self._accepted: dict[str, bytes] = {}
        self._secret = secrets.token_bytes(32)

    @classmethod
    def read(cls, path: Path) -> Passwords:
        """Read an htpasswd file.

        Raises:
            HostError: it cannot be read.
            ConfigurationError: a line is not a user with a bcrypt hash of a usual cost, or there is none.
        """
        hashes: dict[str, bytes] = {}
        text = files.read_bounded(path, limit_bytes=MAX_PASSWORD_FILE_BYTES).decode("utf-8", "replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            user, _colon, value = line.strip().partition(":")
            found = _BCRYPT.fullmatch(value)
            if not user or found is None:
                raise ConfigurationError(
                    f"{path}:{number}: expected a user and a bcrypt hash, `USER:$2y$…`",
                    hint=f"make it with `htpasswd -B {shell_word(path)} USER`",
                )
            if not 4 <= int(found["cost"]) <= MAX_COST:
                raise ConfigurationError(
                    f"{path}:{number}: the hash has cost {found['cost']}, expected 4 to {MAX_COST}",
                    hint=f"make it with `htpasswd -B -C 10 {shell_word(path)} USER`",
                )
            hashes[user] = value.encode()
        if not hashes:
            raise ConfigurationError(
                f"{path}:1: contains no user", hint=f"make one with `htpasswd -Bc {shell_word(path)} USER`"
            )
        return cls(hashes)

    def mark(self, text: str) -> bytes:
        """Return what stands for a text in memory: it tells equal ones, and nothing about the text."""
        return hashlib.blake2b(text.encode(), key=self._secret, digest_size=32).digest()

    def remembers(self, credentials: Credentials) -> bool:
        """Tell whether a check has accepted the same credentials before. Quick."""
        known = self._accepted.get(credentials.user)
        return known is not None and hmac.compare_digest(known, self.mark(credentials.password))

    def check(self, credentials: Credentials) -> bool:
        """Tell whether a user has this password. Slow by design.

        An unknown user is checked against another one's hash, always the same one, so that time does not tell who is
        there, even where hashes have different costs.
        """
        expected = self._hashes.get(credentials.user)
        decoy = self._decoys[int.from_bytes(self.mark(credentials.user)[:8], "big") % len(self._decoys)]
        matches = bcrypt.checkpw(credentials.password.encode()[:MAX_PASSWORD_BYTES], expected or decoy)
        if not matches or expected is None:
            return False
        self._accepted[credentials.user] = self.mark(credentials.password)
        return True


@dataclass(frozen=True, slots=True)
class LoginLimits:
    """How often a client may fail.

    After `failures` for one user from one address within `window_s`, that user gets 429 from there until the time is
    over. `waiting` checks of an address wait at a time. The 401 is sent `wrong_s` after its request came, and the 429
    `blocked_s`: a client that goes on on many connections costs little then.
    """

    failures: int = 5
    window_s: float = 60
    waiting: int = 16
    wrong_s: float = 1
    blocked_s: float = 10


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer, and how many seconds after its request it is sent."""

    response: Response
    after_s: float


class Failures:
    """Failed logins by address and user: proxies share an address, and a user is tried from many."""

    def __init__(self, limits: LoginLimits, clock: Callable[[], float]) -> None:
        """Start without any; no more than 4096 pairs are counted, the latest ones."""
        self._limits = limits
        self._clock = clock
        self._counted: OrderedDict[tuple[str, bytes], tuple[int, float]] = OrderedDict()

    def blocked_s(self, key: tuple[str, bytes]) -> float:
        """Return for how long a pair may not try again; 0 if it may now."""
        count, until_s = self._counted.get(key, (0, 0.0))
        left_s = until_s - self._clock()
        if left_s <= 0:
            self.forget(key)
            return 0
        return left_s if count >= self._limits.failures else 0

    def add(self, key: tuple[str, bytes]) -> bool:
        """Count an attempt before its end is known; tell whether it was the last one that the pair has."""
        now_s = self._clock()
        count, until_s = self._counted.pop(key, (0, now_s + self._limits.window_s))
        self._counted[key] = (count + 1, until_s)
        while len(self._counted) > MOST_COUNTED:
            self._counted.popitem(last=False)
        return count + 1 >= self._limits.failures

    def forget(self, key: tuple[str, bytes]) -> None:
        """Count a pair from nothing again."""
        self._counted.pop(key, None)


class Logins:
    """Decides who is let in. Lives on the event loop's thread."""

    def __init__(
        self,
        passwords: Passwords,
        *,
        limits: LoginLimits | None = None,
        complain: Callable[[str], None] = lambda _text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the users; `complain` hears of clients that are refused for having failed too often."""
        self._passwords = passwords
        self._limits = limits or LoginLimits()
        self._complain = complain
        self._failures = Failures(self._limits, clock)
        self._threads = ThreadPoolExecutor(
            min(MOST_THREADS, max(1, usable_cores() // 2)), thread_name_prefix="password", initializer=_step_back
        )
        # a lock is there as long as a check holds or awaits it
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._waiting: Counter[str] = Counter()
        self._running: dict[tuple[str, bytes, bytes], asyncio.Task[bool]] = {}

    def close(self) -> None:
        """Give up checks that wait for a thread. Idempotent."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def refusal(self, header: str | None, host: str) -> Refusal | None:
        """Return what a request is answered that is not let in; None for one that is."""
        credentials = parse_basic(header) if header is not None else None
        if credentials is None:
            return Refusal(_unauthorized(), 0)
        if self._passwords.remembers(credentials):
            return None
        address = client_address(host)
        key = (address, self._passwords.mark(credentials.user))
        attempt = (*key, self._passwords.mark(credentials.password))
        # clients open several connections at once: what all of them try is checked and counted once
        if (task := self._running.get(attempt)) is not None:
            return None if await asyncio.shield(task) else self._wrong()
        if (blocked_s := self._failures.blocked_s(key)) > 0:
            return self._too_many("too many failed logins of this user from this address", blocked_s)
        if self._waiting[address] >= self._limits.waiting:
            return self._too_many("too many logins from this address wait for their check", 1)
        last = self._failures.add(key)
        self._waiting[address] += 1
        task = self._running[attempt] = asyncio.create_task(self._check(credentials, address))
        task.add_done_callback(lambda _task: self._settle(attempt))
        if await asyncio.shield(task):
            self._failures.forget(key)
            return None
        if last:
            self._complain(
                f"{self._limits.failures} failed logins of one user from `{address}`: refused there for "
                f"{self._limits.window_s:.0f} s"
            )
        return self._wrong()

    def _wrong(self) -> Refusal:
        return Refusal(_unauthorized(), self._limits.wrong_s)

    def _too_many(self, message: str, seconds: float) -> Refusal:
        after = math.ceil(seconds)
        headers = {"Retry-After": str(after)}
        response = error_answer(429, "TOOMANYREQUESTS", f"{message}: try again in {after} s", headers=headers)
        return Refusal(response, self._limits.blocked_s)

    async def _check(self, credentials: Credentials, address: str) -> bool:
        turn = self._turns.setdefault(address, asyncio.Lock())
        async with turn:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._passwords.check, credentials)

    def _settle(self, attempt: tuple[str, bytes, bytes]) -> None:
        del self._running[attempt]
        address = attempt[0]
        self._waiting[address] -= 1
        if not self._waiting[address]:
            del self._waiting[address]


class Guard:
    """Lets requests through that carry the right password."""

    def __init__(self, app: ASGIApp, logins: Logins) -> None:
        """Wrap an application."""
        self._app = app
        self._logins = logins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 429 when it is time to, or what the application answers."""
        started_s = time.monotonic()
        host = str((scope.get("client") or ("unknown",))[0])
        refusal = await self._logins.refusal(Headers(scope=scope).get("authorization"), host)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        left_s = started_s + refusal.after_s - time.monotonic()
        if left_s > 0:
            # a connection that is kept waiting keeps no one else out
            if REFUSED in scope.get("extensions", {}):
                await send({"type": REFUSED})
            await asyncio.sleep(left_s)
        await refusal.response(scope, receive, send)


def _step_back() -> None:
    """Leave the cores to the threads that serve; on Linux, niceness is a thread's own."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)


def _unauthorized() -> Response:
    challenge = {"WWW-Authenticate": 'Basic realm="airferry"'}
    return error_answer(401, "UNAUTHORIZED", "authentication required", headers=challenge)
