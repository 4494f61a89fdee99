"""Cases through commands that talk to a registry: of what is sent to it, and of what it answers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from changed import PREFIX, RESEALED, Changed
from command_line import RUNNING, Refused, airferry, files_target, judged
from worker import Target

from airferry.oci.documents import parse_index, parse_manifest
from oci_images import REFERENCE, make_bundle
from scripted_registry import Exchange, ScriptedRegistry, run_scripted


def load_target(*more: str) -> Target:
    """Return what loads a changed bundle: no tag may stand for what is not there."""
    original = Path.cwd() / "original"
    make_bundle(original)
    changed = Changed(original)
    registry = RUNNING.enter_context(run_scripted())

    def parse(case: bytes) -> None:
        root = changed.write(case)
        _empty(registry)
        code, said = airferry(*_load(changed.folder, registry, root), *more)
        missing = incomplete_tags(registry)
        assert not missing, f"a tag without {missing}"
        assert not registry.sessions, "an open session"
        assert code == 0 or not tags_of(registry), f"tags after exit code {code}: {said[-300:]}"
        judged(code, said)

    return Target(parse, changed.seeds(0, RESEALED), also=(Refused,), prefix=PREFIX)


def _load(bundle: Path, registry: ScriptedRegistry, root: str) -> list[str]:
    # one after the other, so that the same case is about the same request each time
    arguments = ["load", str(bundle), "--to", f"{registry.address}/x", "--root", root, "--parallel", "1"]
    return [*arguments, "--receipt", str(Path.cwd() / "r.yaml")]


def _empty(registry: ScriptedRegistry) -> None:
    """Let a registry hold nothing, and airferry know nothing of it."""
    registry.blobs.clear(), registry.manifests.clear(), registry.sessions.clear(), registry.calls.clear()
    for name in ("loads", "registries"):
        shutil.rmtree(Path(os.environ["AIRFERRY_CACHE"], name), ignore_errors=True)


def tags_of(registry: ScriptedRegistry) -> list[str]:
    """Return the tags, each as `REPOSITORY@TAG`."""
    return [key for key in registry.manifests if ":" not in key.rpartition("@")[2]]


def incomplete_tags(registry: ScriptedRegistry) -> list[str]:
    """Return what tags stand for and the registry does not hold."""
    missing: list[str] = []
    for key in tags_of(registry):
        repository = key.rpartition("@")[0]
        data, kind = registry.manifests[key]
        waiting = [(data, kind)]
        while waiting:
            data, kind = waiting.pop()
            if "index" in kind or "list" in kind:
                for child in parse_index(data).manifests:
                    held = registry.manifests.get(f"{repository}@{child.digest}")
                    missing += [] if held else [f"{repository}@{child.digest}"]
                    waiting += [held] if held else []
            else:
                manifest = parse_manifest(data)
                missing += [
                    blob.digest for blob in (manifest.config, *manifest.layers) if blob.digest not in registry.blobs
                ]
    return missing


ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\n\r\n"
    b'{"schemaVersion":2,"manifests":[]}',
    b'HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm="http://127.0.0.1:1/token",service="s"\r\n\r\n',
    b"HTTP/1.1 202 Accepted\r\nLocation: /v2/x/blobs/uploads/1?_state=2\r\nRange: 0-20\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 307 Elsewhere\r\nLocation: /v2/x/blobs/uploads/1\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 201 Created\r\nDocker-Content-Digest: sha256:" + b"0" * 64 + b"\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 206 Part\r\nContent-Range: bytes 5-20/21\r\nContent-Length: 16\r\n\r\n" + b"x" * 16,
    b'HTTP/1.1 403 No\r\nContent-Type: application/json\r\n\r\n{"errors":[{"code":"DENIED","message":"no"}]}',
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
)


def answered_target(*arguments: str, most: int) -> Target:
    """Return what runs a command while a registry answers a request with the case, one of them or all that follow.

    The first byte is the number of the request, an odd second one says that all that follow are meant.
    """
    original = Path.cwd() / "original"
    root = make_bundle(original).root
    registry = RUNNING.enter_context(run_scripted())
    whole = {**{word: word for word in arguments}, "REGISTRY": registry.address}
    whole |= {"IMAGE": f"docker://{registry.address}/x/{REFERENCE.partition('/')[2]}"}
    judged(*airferry(*_load(original, registry, root)))
    blobs, manifests = dict(registry.blobs), dict(registry.manifests)

    def parse(case: bytes) -> None:
        _empty(registry)
        shutil.rmtree("copied", ignore_errors=True)
        loads = arguments[0] == "load"
        if not loads:
            registry.blobs.update(blobs), registry.manifests.update(manifests)
        first, lasting, answer = (case[0] if case else 0) % most, len(case) > 1 and case[1] % 2, case[2:]

        def fault(exchange: Exchange) -> bool:
            if exchange.call.number != first and not (lasting and exchange.call.number > first):
                return False
            exchange.read_body()
            exchange.wfile.write(answer)
            exchange.close_connection = True
            return True

        registry.faults[:] = [fault]
        code, said = airferry(*(_load(original, registry, root) if loads else [whole[word] for word in arguments]))
        # a registry that goes on to say what is not so cannot be known
        if loads and not lasting:
            missing = incomplete_tags(registry)
            assert not missing, f"a tag without {missing}"
        judged(code, said)

    seeds = [bytes([number, 0]) + answer for answer in ANSWERS for number in range(0, most, max(1, most // 5))]
    # the first one is what goes well: a request that is never sent
    return Target(parse, [bytes([most - 1, 0]) + ANSWERS[5], *seeds], also=(Refused,), prefix=PREFIX)


def rollback_target() -> Target:
    """Return what puts tags back by a changed receipt."""
    registry = RUNNING.enter_context(run_scripted())
    for salt in ("", "2"):
        root = make_bundle(Path.cwd() / f"original{salt}", salt).root
        # a load does not replace the receipt of another bundle
        Path("r.yaml").unlink(missing_ok=True)
        judged(*airferry(*_load(Path.cwd() / f"original{salt}", registry, root)))
    blobs, manifests = dict(registry.blobs), dict(registry.manifests)

    def restore() -> None:
        _empty(registry)
        registry.blobs.update(blobs), registry.manifests.update(manifests)

    def ended() -> None:
        missing = incomplete_tags(registry)
        assert not missing, f"a tag without {missing}"

    return files_target(["r.yaml"], "load", "--rollback", "r.yaml", prepare=lambda: None, before=restore, after=ended)


def login_target() -> Target:
    """Return what asks for an image with a changed credentials file."""
    registry = RUNNING.enter_context(run_scripted())
    root = make_bundle(Path.cwd() / "original").root
    judged(*airferry(*_load(Path.cwd() / "original", registry, root)))
    Path("auth.json").write_text(json.dumps({"auths": {registry.address: {"auth": "dTpw"}}, "credHelpers": {}}))
    os.environ["REGISTRY_AUTH_FILE"] = str(Path("auth.json").absolute())
    image = f"docker://{registry.address}/x/{REFERENCE.partition('/')[2]}"

    def ask_for_login(exchange: Exchange) -> bool:
        if "Authorization" in exchange.headers:
            return False
        exchange.read_body()
        return exchange.answer(401, WWW_Authenticate='Basic realm="x"')

    registry.faults.append(ask_for_login)
    return files_target(["auth.json"], "copy", image, "oci:copied:x", prepare=lambda: None, cleared=["copied"])
