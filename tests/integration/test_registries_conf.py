"""Pulls by way of `registries.conf` ask the same places, in the same order, as skopeo and Podman do with that file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from registries import make_authority, run_registry

from airferry.errors import AirferryError, RegistryError
from airferry.events import Event, Warned, silent
from airferry.far.copy import copy
from airferry.host import process
from airferry.oci.copy import copy_image
from airferry.oci.layout import LayoutStore
from airferry.oci.reference import parse_reference
from airferry.registry.client import ClientOptions, RegistryClient, open_clients
from airferry.registry.pulls import Pulls
from airferry.registry.retry import RetryPolicy
from airferry.registry.sink import RegistrySink
from oci_images import put_image
from scripted_registry import Exchange, ScriptedRegistry, run_scripted

ONCE = ClientOptions(lookup=lambda *_: None, retry=RetryPolicy(attempts=1, sleep=lambda _: None))
DIGEST = "sha256:" + "ab" * 32
# `A`, `B` and `C` stand for registries on loopback, none of which has any image; `none.invalid` is nowhere
MIRRORED = """
[[registry]]
prefix = "nvcr.invalid/nvidia"
location = "C/cache/nvidia"
insecure = true
[[registry.mirror]]
location = "A/first"
insecure = true
[[registry.mirror]]
location = "B"
insecure = true
"""
CASES = {
    "mirrors in order, then the location": (MIRRORED, "nvcr.invalid/nvidia/nemo:25.04"),
    "by digest": (MIRRORED, f"nvcr.invalid/nvidia/nemo@{DIGEST}"),
    "a prefix ends where a part of the name ends": (MIRRORED, "nvcr.invalid/nvidia-other/nemo:1"),
    "the repository itself as prefix": (MIRRORED, "nvcr.invalid/nvidia:1"),
    "the longest prefix wins": (
        MIRRORED + '[[registry]]\nprefix = "nvcr.invalid"\nlocation = "A/short"\ninsecure = true\n'
        '[[registry]]\nprefix = "nvcr.invalid/nvidia/nemo"\nlocation = "B/long"\ninsecure = true\n',
        "nvcr.invalid/nvidia/nemo:1",
    ),
    "digest only, asked by tag": (
        MIRRORED.replace('nvidia"\ninsecure', 'nvidia"\nmirror-by-digest-only = true\ninsecure'),
        "nvcr.invalid/nvidia/nemo:1",
    ),
    "digest only, asked by digest": (
        MIRRORED.replace('nvidia"\ninsecure', 'nvidia"\nmirror-by-digest-only = true\ninsecure'),
        f"nvcr.invalid/nvidia/nemo@{DIGEST}",
    ),
    "one mirror for digests, one for tags, asked by tag": (
        MIRRORED.replace('first"\n', 'first"\npull-from-mirror = "digest-only"\n').replace(
            'B"\n', 'B"\npull-from-mirror = "tag-only"\n'
        ),
        "nvcr.invalid/nvidia/nemo:1",
    ),
    "one mirror for digests, one for tags, asked by digest": (
        MIRRORED.replace('first"\n', 'first"\npull-from-mirror = "digest-only"\n').replace(
            'B"\n', 'B"\npull-from-mirror = "tag-only"\n'
        ),
        f"nvcr.invalid/nvidia/nemo@{DIGEST}",
    ),
    "a wildcard with a location": (
        '[[registry]]\nprefix = "*.example.invalid"\nlocation = "A/example"\ninsecure = true\n',
        "deep.below.example.invalid/team/base:1",
    ),
    "a wildcard without a location": (
        '[[registry]]\nprefix = "*.example.invalid"\n[[registry.mirror]]\nlocation = "A/example"\ninsecure = true\n',
        "quay.example.invalid/team/base:1",
    ),
    "a wildcard covers no host but those below": (
        '[[registry]]\nprefix = "*.example.invalid"\nlocation = "A/example"\ninsecure = true\n',
        "example.invalid/team/base:1",
    ),
    "Docker Hub": (
        '[[registry]]\nlocation = "docker.io"\nblocked = true\n'
        '[[registry.mirror]]\nlocation = "A/hub"\ninsecure = true\n',
        "docker.io/library/python:3.12-slim",
    ),
    "a mirror of a blocked registry": (
        MIRRORED.replace('nvidia"\ninsecure', 'nvidia"\nblocked = true\ninsecure')
        + '[[registry]]\nlocation = "C"\nblocked = true\n',
        "nvcr.invalid/nvidia/nemo:1",
    ),
    "a blocked mirror": (MIRRORED + '[[registry]]\nlocation = "A"\nblocked = true\n', "nvcr.invalid/nvidia/nemo:1"),
    "a trailing slash": (
        '[[registry]]\nprefix = "nvcr.invalid/"\nlocation = "A/x/"\ninsecure = true\n',
        "nvcr.invalid/nvidia/nemo:1",
    ),
    "a port behind the prefix": (
        '[[registry]]\nprefix = "nvcr.invalid"\nlocation = "127.0.0.1"\ninsecure = true\n',
        "nvcr.invalid:PORT_A/nvidia/nemo:1",
    ),
    "two with one prefix": (
        '[[registry]]\nprefix = "nvcr.invalid"\nlocation = "A/1"\ninsecure = true\n'
        '[[registry]]\nprefix = "nvcr.invalid"\nlocation = "B/2"\ninsecure = true\n',
        "nvcr.invalid/nvidia/nemo:1",
    ),
    "version 1": ("[registries.insecure]\nregistries = ['A']\n", "A/nvidia/nemo:1"),
    "version 1, blocked": (
        "[registries.insecure]\nregistries = ['A']\n[registries.block]\nregistries = ['A']\n",
        "A/nvidia/nemo:1",
    ),
    "no mirror's location": ('[[registry]]\nlocation = "A"\n[[registry.mirror]]\ninsecure = true\n', "A/x:1"),
    "a location with a scheme": ('[[registry]]\nprefix = "A"\nlocation = "http://B"\n', "A/x:1"),
    "a location that is not a host": ('[[registry]]\nprefix = "nvcr.invalid"\nlocation = "mirror"\n', "nvcr.invalid/x"),
    "a bad wildcard": ('[[registry]]\nprefix = "*.invalid:5000"\nlocation = "A"\n', "nvcr.invalid/x:1"),
    "versions 1 and 2": (
        "[registries.insecure]\nregistries = ['A']\n[[registry]]\nlocation = \"A\"\ninsecure = true\n",
        "A/x:1",
    ),
    "what is not TOML": ("[[registry]\n", "A/x:1"),
    "a number for a switch": ('[[registry]]\nlocation = "A"\ninsecure = 1\n', "A/x:1"),
    "an unknown key": ('later = 1\n[[registry]]\nlocation = "A"\ninsecure = true\nnewer = "x"\n', "A/x:1"),
}


FILES = {
    "a file of the user": {"registries.conf": "A/main"},
    "a drop-in of the user": {"registries.conf.d/1.conf": "A/in"},
    "a drop-in replaces a prefix of the file": {"registries.conf": "A/main", "registries.conf.d/1.conf": "A/in"},
    "the last drop-in wins": {"registries.conf.d/2.conf": "A/second", "registries.conf.d/1.conf": "A/first"},
    "a drop-in has its ending": {"registries.conf.d/1.conf": "A/first", "registries.conf.d/2.toml": "A/second"},
    "drop-ins in folders are none": {"registries.conf.d/1.conf": "A/first", "registries.conf.d/sub/2.conf": "A/second"},
    "a named file stands in for the user's": {"registries.conf": "A/main", "/named.conf": "B/named"},
    "drop-ins count with a named file": {"registries.conf.d/1.conf": "A/in", "/named.conf": "B/named"},
    "a drop-in of version 1": {"registries.conf.d/1.conf": "[registries.block]\nregistries = []\n"},
    "a named file that is not there": {"registries.conf.d/1.conf": "A/in", "/named.conf": ""},
}


class Asked:
    """Three registries, and which manifests they were asked for, in order."""

    def __init__(self, registries: dict[str, ScriptedRegistry], log: list[str]) -> None:
        self._registries = registries
        self._log = log

    def take(self) -> list[str]:
        """Return what was requested since the last time."""
        taken = self._log[:]
        self._log.clear()
        return taken

    def addressed(self, text: str) -> str:
        """Put addresses in the place of the letters in a configuration or a reference."""
        for name, registry in self._registries.items():
            port = registry.address.rpartition(":")[2]
            text = re.sub(rf"""(^|["'/]){name}(?=["'/])""", rf"\g<1>{registry.address}", text)
            text = text.replace(f"PORT_{name}", port)
        return text


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    log: list[str] = []

    def note(name: str) -> Callable[[Exchange], bool]:
        def fault(exchange: Exchange) -> bool:
            if "/manifests/" in exchange.path:
                log.append(f"{name}{exchange.path.removeprefix('/v2')}")
            return False

        return fault

    with ExitStack() as stack:
        yield Asked({name: stack.enter_context(run_scripted([note(name)])) for name in "ABC"}, log)


def ask_both(asked: Asked, home: Path, reference: str, named: Path | None, skopeo: Path) -> tuple[list[str], list[str]]:
    """Return what skopeo and what airferry asks for, neither of which gets anything."""
    arguments = ["--registries-conf", named] if named else []
    asked.take()
    by_skopeo = process.run(
        [skopeo, *arguments, "inspect", "--raw", "--no-creds", f"docker://{reference}"],
        timeout_s=60,
        environment={"HOME": str(home)},
        check=False,
    )
    assert by_skopeo.returncode != 0
    theirs = asked.take()
    parsed = parse_reference(reference)
    with open_clients(ONCE) as clients, pytest.raises(AirferryError):
        Pulls(clients, emit=silent).source(parsed).resolve(parsed.target)
    return theirs, asked.take()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "REGISTRIES_CONFIG_PATH", "CONTAINERS_REGISTRIES_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_the_same_places_are_asked_as_by_skopeo(
    case: str, asked: Asked, home: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str], Path]
) -> None:
    skopeo = require_tool("skopeo")
    text, reference = CASES[case]
    conf = home / "registries.conf"
    conf.write_text(asked.addressed(text))
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(conf))
    theirs, ours = ask_both(asked, home, asked.addressed(reference), conf, skopeo)
    assert ours == theirs


@pytest.mark.parametrize("case", FILES)
def test_the_same_files_count_as_for_skopeo(
    case: str, asked: Asked, home: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str], Path]
) -> None:
    skopeo, named = require_tool("skopeo"), None
    for name, text in FILES[case].items():
        path = home / ".config" / "containers" / name.lstrip("/")
        if name.startswith("/"):
            named = path
            monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(named))
        if text:
            path.parent.mkdir(parents=True, exist_ok=True)
            rule = f'[[registry]]\nprefix = "nvcr.invalid"\nlocation = "{text}"\ninsecure = true\n'
            path.write_text(asked.addressed(text if text.startswith("[") else rule))
    theirs, ours = ask_both(asked, home, "nvcr.invalid/nvidia/nemo:1", named, skopeo)
    assert ours == theirs
    assert len(ours) == (0 if case in ("a drop-in of version 1", "a named file that is not there") else 1)


def test_insecure_pulls_accept_a_certificate_that_uploads_to_the_same_host_do_not(
    home: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str], Path]
) -> None:
    require_tool("docker-registry")
    store = LayoutStore.create(home / "made")
    descriptor, _ = put_image(store, [{"a": b"b"}])
    trusting = ClientOptions(lookup=lambda *_: None, ca_file=home / "tls" / "ca.crt")
    with run_registry(home / "registry", tls=make_authority(home / "tls")) as registry:
        with RegistryClient(registry.address, options=trusting) as client:
            copy_image(store, RegistrySink(client, "cache/team/base"), descriptor, reference="1")
        conf = home / "registries.conf"
        conf.write_text(
            f'[[registry]]\nprefix = "nvcr.invalid"\nlocation = "{registry.address}/cache"\ninsecure = true\n'
            f'[[registry]]\nlocation = "{registry.address}"\ninsecure = true\n'
        )
        monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(conf))
        base = "docker://nvcr.invalid/team/base:1"
        events: list[Event] = []
        copied = copy(base, f"oci:{home / 'out'}:base", options=ONCE, emit=events.append)
        assert copied.descriptor.digest == descriptor.digest
        assert [event.text for event in events if isinstance(event, Warned)] == [
            f"{conf}:3: pulls from `{registry.address}` accept any certificate, and plain HTTP"
        ]
        with pytest.raises(RegistryError, match="is not trusted"):
            copy(base, f"docker://{registry.address}/up/base:1", options=ONCE)
