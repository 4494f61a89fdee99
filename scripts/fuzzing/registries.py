"""Parsers of what registries answer, and of what clients of `serve` ask."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import urllib3
from answers import registry_answers
from table import (
    bundle,
    of_file,
    of_text,
    parser,
)
from worker import Target

from airferry.far.relocate import parse_destination
from airferry.registry.auth import parse_challenges
from airferry.registry.bodies import acknowledged_bytes
from airferry.registry.connections import Answer
from airferry.registry.credentials import find_credential
from airferry.registry.failures import registry_codes
from airferry.registry.profile import profile_path, read_profile
from airferry.registry.registries_conf import parse_registries_conf
from airferry.registry.retry import retry_after_s
from airferry.wording import on_one_line, printable, visible

# --- registries -------------------------------------------------------------------------------------------------------


@parser("registries.conf")
def registries_conf_target() -> Target:
    path = Path("registries.conf")
    second = b'[[registry]]\nprefix = "*.example"\nlocation = "m.example:5000/x"\ninsecure = true\n'
    second += b'[[registry.mirror]]\nlocation = "n"\n'
    first = b'[registries.search]\nregistries = ["docker.io"]\n[registries.block]\nregistries = ["h"]\n'
    return Target(
        lambda data: parse_registries_conf(data, path),
        [second, first, b'short-name-mode = "off"\n[aliases]\na = "b/c"\n'],
    )


@parser("credentials files")
def credentials_target() -> Target:
    def read(path: Path) -> None:
        os.environ["REGISTRY_AUTH_FILE"] = str(path)
        find_credential("r.example", "a/b")

    document = {"auths": {"r.example": {"auth": "dTpw"}, "https://r.example/v1/": {"identitytoken": "x"}}}
    return Target(of_file("auth.json", read), [json.dumps(document).encode()])


@parser("headers of registries", share=3)
def header_target() -> Target:
    def parse(text: str) -> None:
        parse_challenges(text)
        headers = urllib3.HTTPHeaderDict()
        for name in ("Link", "Range", "Retry-After"):
            headers[name] = text
        answer = SimpleNamespace(headers=headers)
        acknowledged_bytes(cast(Answer, answer))
        cast(property, Answer.next_page).fget(answer)  # type: ignore[misc]
        retry_after_s({"Retry-After": text})
        registry_codes(text.encode("utf-8", "surrogateescape"))
        visible(text), on_one_line(text), printable(text, most=100)

    seeds = [
        b'Bearer realm="https://t/x",service="s",scope="repository:a:pull", Basic realm="y"',
        b'</v2/x?n=1>; rel="next"',
    ]
    seeds += [b"0-1023", b"Wed, 21 Oct 2015 07:28:00 GMT", b'{"errors":[{"code":"DENIED","message":"no"}]}', b"120"]
    return Target(of_text(parse), seeds)


@parser("answers of a registry, through the client", share=0.7)
def answer_target() -> Target:
    return registry_answers()


@parser("what is known about a registry", share=0.5)
def profile_target() -> Target:
    path = profile_path("r.example")
    path.parent.mkdir(parents=True, exist_ok=True)

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read_profile("r.example").limits()

    return Target(
        parse, [b'{"registry": "r.example", "mounts": true, "chunks": true, "largest_request_bytes": 1000000}']
    )


@parser("requests to serve", share=0.2)
def serve_target() -> Target:
    from airferry.bundle.verify import open_bundle
    from airferry.far.serve.offer import CheckedBlobs, read_repositories
    from airferry.far.serve.server import make_app

    opened = open_bundle(bundle())
    repositories = read_repositories(opened, parse_destination("r.example/x"))
    app = make_app(repositories, CheckedBlobs(opened.store))
    name, repository = next(iter(repositories.items()))
    digest = next(iter(repository.blobs))

    def parse(data: bytes) -> None:
        lines = data.split(b"\n")
        method, _, target = lines[0].partition(b" ")
        path, _, query = target.partition(b"?")
        headers = [(key.lower(), value) for key, _, value in (line.partition(b": ") for line in lines[1:]) if key]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method.decode("latin-1")}
        scope |= {"path": path.decode("utf-8", "replace"), "raw_path": path, "query_string": query, "headers": headers}
        scope |= {
            "scheme": "http",
            "server": ("127.0.0.1", 5000),
            "client": ("127.0.0.1", 1),
            "root_path": "",
            "state": {},
        }

        waiting = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> dict[str, Any]:
            return next(waiting, {"type": "http.disconnect"})

        async def send(_message: Any) -> None:
            return None

        asyncio.run(app(scope, receive, send))

    base = f"/v2/{name}"
    seeds = [
        f'GET {base}/blobs/{digest}\nRange: bytes=0-10\nIf-None-Match: "x"',
        f"GET {base}/manifests/1.0\nAccept: */*",
    ]
    seeds += [
        f"GET {base}/tags/list?n=1&last=a\n",
        f"HEAD {base}/referrers/{digest}\n",
        "GET /v2/_catalog?n=5\n",
        "PUT /v2/x\n",
    ]
    return Target(parse, [seed.encode() for seed in seeds])
