"""Answers of a registry as cases: what the client makes of them, without a socket.

A case is a status, headers and a body, as they stand in an answer; every request of the case gets it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import jsonschema
import urllib3
from worker import Target

from airferry.errors import AirferryError
from airferry.oci.documents import IMAGE_MANIFEST, LAYER_TAR, Descriptor, descriptor_of
from airferry.oci.ports import Stored
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.connections import Answer, Connections
from airferry.registry.credentials import Credential
from airferry.registry.retry import RetryPolicy
from airferry.registry.runtimes import pull_as
from airferry.registry.sink import RegistrySink
from airferry.registry.uploads import Limits, Uploader, checks_digests

BLOB = b"some bytes of a layer"
LAYER = descriptor_of(BLOB, LAYER_TAR)
DOCUMENT = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": {"mediaType": "a/b", "digest": LAYER.digest, "size": 21},
        "layers": [],
    }
).encode()
MANIFEST = descriptor_of(DOCUMENT, IMAGE_MANIFEST)
SCOPES = ("repository:r/x:pull,push",)


def registry_answers() -> Target:
    """Return what asks a registry for all that airferry asks for, with the case as each answer."""
    current = [b""]

    def send(_self: Connections, method: str, url: str, _headers: Any, body: Any, _timeout: Any) -> Answer:
        for _block in body if body is not None and not isinstance(body, bytes) else ():
            pass
        return Answer(method, url, _response(current[0], method))

    Connections.send = send  # type: ignore[method-assign,assignment]
    options = ClientOptions(
        plain_http=True,
        retry=RetryPolicy(attempts=2, sleep=lambda _: None),
        lookup=lambda _registry, _repository: Credential("user", "secret"),
    )
    asks = _asks()

    def parse(data: bytes) -> None:
        current[0] = data[1:]
        number = data[0] if data else 0
        with RegistryClient("127.0.0.1:5000", options=options) as client:
            asks[number % len(asks)](client)

    heads = [
        b"200 Docker-Content-Digest: %s\nContent-Type: %s\n" % (MANIFEST.digest.encode(), IMAGE_MANIFEST.encode()),
        b'401 WWW-Authenticate: Bearer realm="http://127.0.0.1:5000/token",service="s"\n',
        b"202 Location: /v2/r/x/blobs/uploads/1?_state=2\nRange: 0-20\nOCI-Chunk-Min-Length: 5\n",
        b'200 Link: </v2/r/x/referrers/x?n=2>; rel="next"\nContent-Type: application/vnd.oci.image.index.v1+json\n',
        b"307 Location: https://storage.example/x?signature=1\n",
        b"503 Retry-After: 5\n",
        b"201 Docker-Content-Digest: %s\nOCI-Subject: x\n" % LAYER.digest.encode(),
        b"206 Content-Range: bytes 5-20/21\nContent-Length: 16\n",
        b"404 Content-Type: application/json\n",
    ]
    bodies = [DOCUMENT, b'{"schemaVersion":2,"manifests":[]}', b'{"token": "x", "expires_in": 5}', BLOB, b""]
    bodies.append(b'{"errors": [{"code": "DENIED", "message": "no"}]}')
    seeds = [
        bytes([number]) + head + b"\n" + bodies[(number + at) % len(bodies)]
        for at, head in enumerate(heads)
        for number in range(len(asks))
    ]
    # what oras-py's own methods say of a manifest that does not suit its schema
    return Target(parse, seeds, also=(jsonschema.ValidationError,), prefix=1)


def _response(data: bytes, method: str) -> urllib3.HTTPResponse:
    head, _, body = data.partition(b"\n\n")
    status, _, lines = head.partition(b" ")
    headers = urllib3.HTTPHeaderDict()
    for line in lines.split(b"\n"):
        name, colon, value = line.partition(b": ")
        if colon and name:
            headers.add(name.decode("latin-1"), value.decode("latin-1"))
    number = int(status) if status.isdigit() and len(status) == 3 else 200
    return urllib3.HTTPResponse(
        body=io.BytesIO(b"" if method == "HEAD" else body),
        headers=headers,
        status=number,
        preload_content=False,
        decode_content=False,
    )


def _asks() -> list[Callable[[RegistryClient], object]]:
    @contextmanager
    def opened() -> Iterator[IO[bytes]]:
        yield io.BytesIO(BLOB)

    def read(client: RegistryClient, descriptor: Descriptor) -> None:
        with RegistrySink(client, "r/x").source.open_blob(descriptor) as stream:
            stream.read()

    def read_from(client: RegistryClient) -> None:
        with RegistrySink(client, "r/x").source.open_blob_at(LAYER, 5) as stream:
            stream.read()

    def upload(client: RegistryClient, limits: Limits | None) -> None:
        RegistrySink(client, "r/x", uploader=Uploader(client, limits=limits)).put_blob_from(LAYER, opened)

    def tag(client: RegistryClient) -> None:
        with suppress(AirferryError):
            RegistrySink(client, "r/x").delete_tag("1")
        RegistrySink(client, "r/x").put_manifest(Stored(MANIFEST, DOCUMENT), reference="1")

    return [
        lambda client: RegistrySink(client, "r/x").source.resolve("1"),
        lambda client: RegistrySink(client, "r/x").source.find("1"),
        lambda client: RegistrySink(client, "r/x").source.read_manifest(MANIFEST),
        lambda client: RegistrySink(client, "r/x").source.referrers(MANIFEST.digest),
        lambda client: RegistrySink(client, "r/x").source.has_referrers_api(MANIFEST.digest),
        lambda client: RegistrySink(client, "r/x").has_blob(LAYER),
        lambda client: RegistrySink(client, "r/x").mount_blob(LAYER, "r/y"),
        lambda client: read(client, LAYER),
        read_from,
        lambda client: upload(client, None),
        lambda client: upload(client, Limits(1, 8)),
        lambda client: checks_digests(client, "r/x", SCOPES),
        tag,
        lambda client: pull_as("enroot", RegistrySink(client, "r/x").source, "1"),
        lambda client: pull_as("containerd", RegistrySink(client, "r/x").source, MANIFEST.digest),
        lambda client: client.get_manifest("127.0.0.1:5000/r/x:1"),
        lambda client: client.get_tags("127.0.0.1:5000/r/x"),
    ]
