"""What a unit test may not do: reach anything over a network, or start a process."""

from __future__ import annotations

import sys

# it binds a socket as it is imported, to find out whether there is IPv6: not in the middle of a test
import urllib3.util.connection  # noqa: F401

# Python raises these whichever module is used, but for `multiprocessing`, which no code here uses.
EVENTS = frozenset(
    [
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.system",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.sendto",
        "subprocess.Popen",
    ]
)
MESSAGE = "a unit test raises the event `{}`: servers, connections and processes belong in tests/local"


class Refusal:
    """Refuses those events while a unit test runs, and remembers them, as code under test may catch the error.

    It is called for every event of Python, so it does as little as it can.
    """

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        # the node of a socket in a folder leads nowhere
        if event in EVENTS and self.on and not (event == "socket.bind" and isinstance(arguments[1], str)):
            self.seen.append(event)
            raise AssertionError(MESSAGE.format(event))

    def begin(self) -> None:
        """Refuse from now on."""
        self.on = True

    def end(self) -> str | None:
        """Refuse no longer, and return what is wrong with the test that ran."""
        self.on = False
        seen, self.seen = self.seen, []
        return MESSAGE.format(seen[0]) if seen else None


REFUSAL = Refusal()
sys.addaudithook(REFUSAL)
