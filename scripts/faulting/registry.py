"""A registry with tokens, mounts and referrers that looks at what airferry leaves in it, and the faults in its way."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from airferry.oci.documents import IMAGE_INDEX, parse_index, parse_manifest
from scripted_registry import Call, Exchange, Fault, ScriptedRegistry, error_document, sha256

STALL_S = 6.0
TOKEN = "Bearer good"


@dataclass
class WatchedRegistry(ScriptedRegistry):
    """Notes each tag that is set before all that it stands for is there, and sessions that no client can know of."""

    mounts: bool = True
    early: list[str] = field(default_factory=list)
    untold: set[str] = field(default_factory=set)

    def serve(self, exchange: Exchange) -> None:
        """Serve a request with login, tokens and the referrers API."""
        call = exchange.call
        if call.path == "/token":
            exchange.answer(200, b'{"token": "good", "expires_in": 300}')
        elif call.headers.get("Authorization") != TOKEN:
            exchange.read_body()
            challenge = f'Bearer realm="http://{self.address}/token",service="s"'
            exchange.answer(401, error_document("UNAUTHORIZED"), WWW_Authenticate=challenge)
        elif found := re.fullmatch(r"/v2/(.+)/referrers/(sha256:[0-9a-f]+)", call.path):
            entries = [_descriptor(*self.manifests[key]) for key in self._referring(found[1], found[2])]
            index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries}
            exchange.answer(200, json.dumps(index).encode(), Content_Type=IMAGE_INDEX)
        else:
            super().serve(exchange)
            with self.lock:
                self.early += [key for key in self.incomplete() if key not in self.early]

    def _referring(self, repository: str, digest: str) -> list[str]:
        with self.lock:
            held = [(key, json.loads(data)) for key, (data, _kind) in self.manifests.items()]
        found = [(key, document.get("subject", {}).get("digest")) for key, document in held]
        return [key for key, subject in found if subject == digest and key.startswith(f"{repository}@sha256:")]

    def tags(self) -> dict[str, str]:
        """Return the digest of each tag, by `REPOSITORY@TAG`."""
        held = {key: sha256(data) for key, (data, _kind) in self.manifests.items()}
        return {key: digest for key, digest in held.items() if not re.search(r"@sha256[:-]", key)}

    def incomplete(self) -> list[str]:
        """Return the tags of which something is not there."""
        return [key for key in self.tags() if self._lacks(key)]

    def _lacks(self, tag: str) -> bool:
        repository = tag.rpartition("@")[0]
        waiting = [self.manifests[tag]]
        while waiting:
            data, kind = waiting.pop()
            if "index" in kind or "list" in kind:
                for child in parse_index(data).manifests:
                    held = self.manifests.get(f"{repository}@{child.digest}")
                    if held is None:
                        return True
                    waiting.append(held)
                continue
            manifest = parse_manifest(data)
            if any(blob.digest not in self.blobs for blob in (manifest.config, *manifest.layers)):
                return True
        return False

    def reset_counts(self) -> None:
        """Forget the requests so far."""
        with self.lock:
            self.calls.clear()


def _descriptor(data: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": sha256(data), "size": len(data)}


# --- classes of requests ----------------------------------------------------------------------------------------------


def is_tag(call: Call) -> bool:
    """Tell whether a request is about a tag."""
    return "/manifests/" in call.path and "/manifests/sha256" not in call.path


CLASSES: dict[str, Callable[[Call], bool]] = {
    "HEAD blob": lambda call: call.method == "HEAD" and "/blobs/" in call.path,
    "POST upload": lambda call: call.method == "POST" and "mount" not in call.query and "/uploads/" in call.path,
    "POST mount": lambda call: call.method == "POST" and "mount" in call.query,
    "PATCH chunk": lambda call: call.method == "PATCH",
    "GET session": lambda call: call.method == "GET" and "/uploads/" in call.path,
    "DELETE session": lambda call: call.method == "DELETE" and "/uploads/" in call.path,
    "PUT blob": lambda call: call.method == "PUT" and "/uploads/" in call.path,
    "PUT manifest": lambda call: call.method == "PUT" and "/manifests/sha256" in call.path,
    "PUT tag": lambda call: call.method == "PUT" and is_tag(call),
    "HEAD tag": lambda call: call.method == "HEAD" and is_tag(call),
    "GET manifest": lambda call: call.method == "GET" and "/manifests/" in call.path,
    "GET referrers": lambda call: call.method == "GET" and "/referrers/" in call.path,
    "GET token": lambda call: call.path == "/token",
}


# --- kinds of faults --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of fault. A transient one, that strikes once, must not be noticed by who runs a load.

    `lies` are answers that are not true: a load may find that the registry holds something else (exit code 6).
    """

    name: str
    fault: Fault
    transient: bool = True
    lies: bool = False


def status(code: int, data: bytes = b"", **headers: str) -> Fault:
    """Return what answers with a status."""

    def fault(exchange: Exchange) -> bool:
        exchange.read_body()
        return exchange.answer(code, data or error_document("SCRIPTED"), **headers)

    return fault


def close(exchange: Exchange) -> bool:
    """End the connection without an answer."""
    exchange.read_body()
    exchange.close_connection = True
    return True


def reset(exchange: Exchange) -> bool:
    """Reset the connection once the request has come."""
    exchange.read_body()
    return exchange.reset()


def reset_within_body(exchange: Exchange) -> bool:
    """Reset the connection in the middle of a request's body."""
    exchange.rfile.read(int(exchange.headers.get("Content-Length", "0")) // 2)
    return exchange.reset()


def stall(exchange: Exchange) -> bool:
    """Let the client wait longer than it does."""
    exchange.read_body()
    time.sleep(STALL_S)
    exchange.close_connection = True
    return True


def raw(data: bytes) -> Fault:
    """Return what answers with bytes."""

    def fault(exchange: Exchange) -> bool:
        exchange.read_body()
        exchange.wfile.write(data)
        exchange.close_connection = True
        return True

    return fault


def redirect(to: str) -> Fault:
    """Return what leads elsewhere; an empty place is the same URL again."""

    def fault(exchange: Exchange) -> bool:
        exchange.read_body()
        return exchange.answer(307, Location=to or exchange.path)

    return fault


def served(change: Callable[[bytes], bytes], *, told: bool) -> Fault:
    """Return what lets the registry serve a request and changes its answer; `told` says that a `Location` arrives."""

    def fault(exchange: Exchange) -> bool:
        registry, wire, answer = exchange.registry, exchange.wfile, io.BytesIO()
        assert isinstance(registry, WatchedRegistry)
        exchange.wfile = answer  # type: ignore[assignment]
        before = set(registry.sessions)
        try:
            registry.serve(exchange)
        finally:
            exchange.wfile = wire
        if not told:
            registry.untold |= set(registry.sessions) - before
        changed = change(answer.getvalue())
        if changed:
            wire.write(changed)
        exchange.close_connection = True
        return True

    return fault


def without_end(answer: bytes) -> bytes:
    """Announce more than comes."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    return (
        re.sub(rb"Content-Length: (\d+)", lambda found: b"Content-Length: %d" % (int(found[1]) + 9), head)
        + blank
        + body
    )


def damaged(answer: bytes) -> bytes:
    """Change a byte of the body, and the digest in the head."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    head = re.sub(rb"(Docker-Content-Digest: sha256:)[0-9a-f]{4}", rb"\g<1>0000", head)
    return head + blank + (b"X" + body[1:] if body else b"")


LOGIN_PAGE = b"<html><title>Sign in</title></html>"
KINDS = (
    Kind("connection closed", close),
    Kind("connection reset", reset),
    Kind("reset within the request", reset_within_body),
    Kind("no answer in time", stall),
    Kind("500", status(500)),
    Kind("502 of a proxy", status(502, b"<html>Bad Gateway</html>", Content_Type="text/html")),
    Kind("503, Retry-After", status(503, Retry_After="0")),
    Kind("504", status(504)),
    Kind("429, Retry-After", status(429, Retry_After="0")),
    Kind("answer lost", served(lambda answer: b"", told=False)),
    Kind("answer cut in its head", served(lambda answer: answer[:20], told=False)),
    Kind("answer cut in its body", served(without_end, told=True), lies=True),
    Kind("answer damaged", served(damaged, told=True), transient=False, lies=True),
    Kind("not HTTP", raw(b"\x00\xff\x15garbage\r\n\r\n"), transient=True),
    Kind("a head of 2 MiB", raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (2 << 20) + b"\r\n\r\n"), transient=False),
    Kind("200, a login page", status(200, LOGIN_PAGE, Content_Type="text/html"), transient=False, lies=True),
    Kind("400", status(400), transient=False),
    Kind("401, no challenge", status(401), transient=False),
    Kind("403", status(403), transient=False),
    Kind("404", status(404), transient=False),
    Kind("405", status(405), transient=False),
    Kind("413", status(413), transient=False),
    Kind("507", status(507), transient=False),
    Kind("redirects in circles", redirect(""), transient=False),
    Kind("redirect to nobody", redirect("http://127.0.0.1:1/"), transient=False),
)
