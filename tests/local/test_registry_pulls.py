"""`registries.conf`: what it says of a name, what is wrong with it, and how pulls and copies follow it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from airferry.errors import ConfigurationError, IntegrityError, RegistryError
from airferry.events import Event, Notice, Warned
from airferry.far.copy import copy
from airferry.oci.documents import IMAGE_MANIFEST
from airferry.oci.layout import LayoutStore
from airferry.oci.reference import parse_reference
from airferry.registry import registries_conf
from airferry.registry.client import ClientOptions, RegistryClient, open_clients
from airferry.registry.connections import Request
from airferry.registry.credentials import Credential
from airferry.registry.pulls import FIRST_ATTEMPTS, Pulls, PullSource
from airferry.registry.registries_conf import (
    MAX_REGISTRIES_CONF_BYTES,
    covered,
    parse_registries_conf,
    read_registries_conf,
)
from airferry.registry.retry import RetryPolicy
from oci_images import put_image
from scripted_registry import Exchange, ScriptedRegistry, run_scripted, sha256, times

CONF = Path("/etc/containers/registries.conf")
NAME = parse_reference("nvcr.invalid/nvidia/nemo:1")
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": {}, "layers": []}).encode()
OPTIONS = ClientOptions(lookup=lambda *_: None, retry=RetryPolicy(attempts=4, sleep=lambda _: None))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "REGISTRIES_CONFIG_PATH", "CONTAINERS_REGISTRIES_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(registries_conf, "SYSTEM_FOLDER", tmp_path / "etc")
    return tmp_path


@pytest.fixture
def registries() -> Iterator[list[ScriptedRegistry]]:
    with ExitStack() as stack:
        yield [stack.enter_context(run_scripted()) for _ in range(2)]


def mirrored(*mirrors: str, location: str = "nvcr.invalid", more: str = "") -> str:
    tables = "".join(f'[[registry.mirror]]\nlocation = "{mirror}"\n{more}' for mirror in mirrors)
    return f'[[registry]]\nprefix = "nvcr.invalid"\nlocation = "{location}"\n{tables}'


class Pulling:
    """Pulls with a configuration, and what was said about it."""

    def __init__(self, text: str, options: ClientOptions = OPTIONS) -> None:
        self.events: list[Event] = []
        self._options = options
        self._rules = registries_conf.RegistriesConf(parse_registries_conf(text.encode(), CONF))

    def ask(self, work: Callable[[PullSource], object]) -> object:
        with open_clients(self._options) as clients:
            pulls = Pulls(clients, emit=self.events.append, read=lambda: self._rules)
            return [work(pulls.source(NAME)) for _ in range(2)][1]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("prefix", "name", "expected"),
    [
        ("nvcr.io", "nvcr.io/nvidia/nemo", 7),
        ("nvcr.io/nvidia", "nvcr.io/nvidia/nemo", 14),
        ("nvcr.io/nvidia/nemo", "nvcr.io/nvidia/nemo", 19),
        ("nvcr.io/nvid", "nvcr.io/nvidia/nemo", None),
        ("nvcr.io/nvidia/nemo/more", "nvcr.io/nvidia/nemo", None),
        ("nvcr.io", "nvcr.io:5000/nemo", 7),
        ("*.io", "nvcr.io/nemo", 7),
        ("*.io", "a.b.io/nemo", 6),
        ("*.io", "io/nemo", None),
        ("*.io", "host.com/x.io", None),
        ("*.nvcr.io", "nvcr.io/nemo", None),
    ],
)
def test_a_prefix_covers_whole_parts_of_a_name(prefix: str, name: str, expected: int | None) -> None:
    assert covered(name, prefix) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[registry]\n", "1: not valid TOML"),
        ("a = 1\nb = \n", "2: not valid TOML"),
        ("\n[[registry]]\nlocation = 5\n", "3: `location`: expected text"),
        ('[[registry]]\nlocation = "a.b"\n[[registry]]\nlocation = "https://c.d"\n', "4: `location` is a name, not a"),
        ("\n\n[[registry]]\ninsecure = true\n", "3: `[[registry]]` has neither `prefix` nor `location`"),
        ('[[registry]]\nprefix = "a.b"\n', "2: `a.b` needs a `location`"),
        ('[[registry]]\nprefix = "*.b/c"\n', "2: `*.b/c`: a prefix with `*.` ends with the domain"),
        ('[[registry]]\nlocation = "a.b"\npull-from-mirror = "all"\n', "3: `pull-from-mirror` belongs in"),
        ('[[registry]]\nlocation = "a.b"\n[[registry.mirror]]\n', "3: `[[registry.mirror]]` has no `location`"),
        (
            '[[registry]]\nlocation = "a.b"\n[[registry.mirror]]\nlocation = "c.d"\n[[registry.mirror]]\n'
            'location = "e.f"\npull-from-mirror = "never"\n',
            "7: `pull-from-mirror`: expected `all`, `digest-only` or `tag-only`",
        ),
        (
            '[[registry]]\nlocation = "a.b"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = "c.d"\n'
            'pull-from-mirror = "all"\n',
            "6: `pull-from-mirror` and the registry's `mirror-by-digest-only` exclude each other",
        ),
        (
            '[[registry]]\nlocation = "a.b"\n[[registry]]\nprefix = "c.d"\nlocation = "a.b"\nblocked = true\n',
            "3: `a.b` is listed twice with different",
        ),
        (
            '[registries.block]\nregistries = ["a"]\n[[registry]]\nlocation = "a.b"\n',
            "1: `[registries.…]` is version 1",
        ),
        ('[registries.insecure]\nregistries = "a"\n', "2: `registries`: expected a list"),
        ("[registries]\nsearch = 1\n", "2: `search`: expected a table"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_registries_conf(text.encode(), CONF)
    assert f"{CONF}:{problem}" in caught.value.message


def test_all_problems_of_a_file_are_said_at_once() -> None:
    text = '[[registry]]\nprefix = "a.b"\n[[registry]]\nblocked = true\n'
    with pytest.raises(ConfigurationError) as caught:
        parse_registries_conf(text.encode(), CONF)
    assert [line.split(":")[1] for line in caught.value.message.splitlines()] == ["2", "3"]


def test_files_are_bounded_and_one_that_a_variable_names_must_be_there(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_registries_conf().rules == {}
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(home / "mine.conf"))
    with pytest.raises(ConfigurationError) as caught:
        read_registries_conf()
    assert "mine.conf" in caught.value.message and "`CONTAINERS_REGISTRIES_CONF` points to it" in (
        caught.value.hint or ""
    )
    write(home / "mine.conf", "#" * (MAX_REGISTRIES_CONF_BYTES + 1))
    with pytest.raises(ConfigurationError, match="larger than the limit"):
        read_registries_conf()
    write(home / "mine.conf", mirrored("a.b"))
    write(home / "other.conf", mirrored("c.d"))
    monkeypatch.setenv("REGISTRIES_CONFIG_PATH", str(home / "other.conf"))
    assert [mirror.location for mirror in read_registries_conf().rules["nvcr.invalid"].mirrors] == ["a.b"]
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", "")
    assert [mirror.location for mirror in read_registries_conf().rules["nvcr.invalid"].mirrors] == ["c.d"]


def test_a_file_of_the_user_hides_those_of_the_system(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / "etc/registries.conf", '[[registry]]\nlocation = "main.system"\n')
    write(home / "etc/registries.conf.d/1.conf", '[[registry]]\nlocation = "drop-in.system"\n')
    write(home / ".config/containers/registries.conf.d/1.conf", '[[registry]]\nlocation = "drop-in.user"\n')
    assert set(read_registries_conf().rules) == {"main.system", "drop-in.system", "drop-in.user"}
    own = write(home / ".config/containers/registries.conf", '[[registry]]\nlocation = "main.user"\n')
    assert set(read_registries_conf().rules) == {"main.user", "drop-in.user"}
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(own))
    assert set(read_registries_conf().rules) == {"main.user", "drop-in.user", "drop-in.system"}
    monkeypatch.delenv("CONTAINERS_REGISTRIES_CONF")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
    assert set(read_registries_conf().rules) == {"main.user", "drop-in.user"}
    write(home / "xdg/containers/registries.conf", '[[registry]]\nlocation = "main.xdg"\n')
    assert set(read_registries_conf().rules) == {"main.xdg"}


def test_a_mirror_that_has_the_image_gives_all_of_it_and_names_stay_as_written(
    registries: list[ScriptedRegistry],
) -> None:
    one, two = registries
    two.manifests["nvidia/nemo@1"] = (MANIFEST, IMAGE_MANIFEST)
    two.manifests[f"nvidia/nemo@{sha256(MANIFEST)}"] = (MANIFEST, IMAGE_MANIFEST)
    two.blobs[sha256(b"layer")] = b"layer"
    pulling = Pulling(mirrored(one.address, two.address))

    def work(source: PullSource) -> bytes:
        descriptor = source.resolve("1")
        assert str(source) == f"{two.address}/nvidia/nemo"
        layer = descriptor.model_copy(update={"digest": sha256(b"layer"), "size": 5})
        with source.open_blob(layer) as stream:
            return source.read_manifest(descriptor).data + stream.read()

    assert pulling.ask(work) == MANIFEST + b"layer"
    assert one.count("GET", "/blobs/") == 0
    said = [event.text for event in pulling.events if isinstance(event, Notice)]
    assert len(said) == len(pulling.events) == 2, "said once, though it was pulled twice"
    assert f"`{one.address}/nvidia/nemo:1` is skipped" in said[0]
    assert f"`{NAME}` is pulled from `{two.address}/nvidia/nemo` ({CONF}:7)" == said[1]
    assert pulling.ask(lambda source: source.find("1")) == sha256(MANIFEST)
    assert pulling.ask(lambda source: source.find(sha256(MANIFEST))) == sha256(MANIFEST)


def test_an_image_that_no_place_has_is_one_error_that_names_each(registries: list[ScriptedRegistry]) -> None:
    one, two = registries
    pulling = Pulling(mirrored(one.address, location=f"{two.address}/cache"))
    with pytest.raises(RegistryError) as caught:
        pulling.ask(lambda source: source.resolve("1"))
    lines = caught.value.message.splitlines()
    assert lines[0] == f"`{NAME}` cannot be pulled from any of 2 sources:"
    assert lines[1].startswith(f"  {CONF}:5: `{one.address}/nvidia/nemo:1`: ") and "404" in lines[1]
    assert lines[2].startswith(f"  {CONF}:3: `{two.address}/cache/nvidia/nemo:1`: ") and "404" in lines[2]
    assert pulling.ask(lambda source: source.find("1")) is None
    one.faults.append(lambda exchange: exchange.answer(403))
    with pytest.raises(RegistryError, match="403"):
        pulling.ask(lambda source: source.find("1"))


def test_a_fault_that_passes_is_waited_for_only_where_no_other_place_has_the_image(
    registries: list[ScriptedRegistry],
) -> None:
    one, two = registries
    one.manifests["nvidia/nemo@1"] = two.manifests["nvidia/nemo@1"] = (MANIFEST, IMAGE_MANIFEST)
    text = mirrored(one.address, two.address, location="127.0.0.1:1")
    busy = times(FIRST_ATTEMPTS, lambda call: "/manifests/" in call.path, lambda exchange: exchange.answer(503))
    one.faults.append(busy)
    assert Pulling(text).ask(lambda source: (source.resolve("1"), str(source))[1]) == f"{one.address}/nvidia/nemo"
    assert two.count("GET", "/manifests/") == 1, "the first of two pulls went on to the second mirror"
    del two.manifests["nvidia/nemo@1"]
    one.faults[:] = [times(FIRST_ATTEMPTS + 1, lambda call: "/manifests/" in call.path, lambda e: e.answer(503))]
    assert Pulling(text).ask(lambda source: (source.resolve("1"), str(source))[1]) == f"{one.address}/nvidia/nemo"


def test_a_mirror_that_gives_other_bytes_is_not_passed_over(registries: list[ScriptedRegistry]) -> None:
    one, two = registries
    one.manifests[f"nvidia/nemo@{sha256(b'other')}"] = (MANIFEST, IMAGE_MANIFEST)
    two.manifests[f"nvidia/nemo@{sha256(b'other')}"] = (b"other", IMAGE_MANIFEST)
    with pytest.raises(IntegrityError):
        Pulling(mirrored(one.address, two.address)).ask(lambda source: source.resolve(sha256(b"other")))
    assert two.calls == []


def test_a_blocked_registry_is_refused_with_the_line_that_blocks_it(registries: list[ScriptedRegistry]) -> None:
    one, _ = registries
    text = '[[registry]]\nlocation = "nvcr.invalid"\nblocked = true\n'
    with pytest.raises(ConfigurationError) as caught:
        Pulling(text).ask(lambda source: source.resolve("1"))
    assert caught.value.message == f"{CONF}:3: pulls from `nvcr.invalid/nvidia/nemo` are blocked"
    one.manifests["nvidia/nemo@1"] = (MANIFEST, IMAGE_MANIFEST)
    assert Pulling(text + f'[[registry.mirror]]\nlocation = "{one.address}"\n').ask(lambda source: source.find("1"))


def test_insecure_is_said_once_and_sends_nothing(registries: list[ScriptedRegistry]) -> None:
    one, _ = registries
    one.manifests["nvidia/nemo@1"] = (MANIFEST, IMAGE_MANIFEST)
    pulling = Pulling(mirrored(one.address, more="insecure = true\n"))
    pulling.ask(lambda source: source.resolve("1"))
    warned = [event.text for event in pulling.events if isinstance(event, Warned)]
    assert warned == [f"{CONF}:5: pulls from `{one.address}` accept any certificate, and plain HTTP"]
    with (
        RegistryClient(one.address, options=OPTIONS, insecure=True) as client,
        pytest.raises(RegistryError, match="over a connection for pulls"),
    ):
        client.request(Request("PUT", "nvidia/nemo/manifests/2", what="push", body=b"x"))
    assert one.count("PUT") == 0


def test_the_login_is_that_of_the_mirror(registries: list[ScriptedRegistry]) -> None:
    one, _ = registries
    one.manifests["cache/nvidia/nemo@1"] = (MANIFEST, IMAGE_MANIFEST)

    def challenge(exchange: Exchange) -> bool:
        if exchange.headers.get("Authorization") == Credential("mirror", "pw").basic:
            return False
        return exchange.answer(401, WWW_Authenticate='Basic realm="x"')

    one.faults.append(challenge)
    looked_up = []

    def lookup(registry: str, repository: str) -> Credential | None:
        looked_up.append(registry)
        return Credential("mirror", "pw") if registry == one.address else Credential("upstream", "pw")

    options = ClientOptions(lookup=lookup, retry=OPTIONS.retry)
    assert Pulling(mirrored(f"{one.address}/cache"), options).ask(lambda source: source.resolve("1"))
    assert set(looked_up) == {one.address}


def test_a_copy_pulls_by_way_of_the_mirror_and_pushes_to_the_name_itself(
    registries: list[ScriptedRegistry], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule for the destination's own name must not lead an upload elsewhere."""
    mirror, destination = registries
    store = LayoutStore.create(home / "made")
    descriptor, _ = put_image(store, [{"a": b"b"}])
    store.write_index([descriptor.model_copy(update={"annotations": {"org.opencontainers.image.ref.name": "x:1"}})])
    copy(f"oci:{home / 'made'}:x:1", f"docker://{mirror.address}/cache/base:1", options=OPTIONS)
    rule = '[[registry]]\nprefix = "{0}"\nlocation = "{1}"\ninsecure = true\n'
    text = rule.format("nvcr.invalid", f"{mirror.address}/cache") + rule.format(destination.address, "127.0.0.1:1")
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(write(home / "r.conf", text)))
    copied = copy("docker://nvcr.invalid/base:1", f"docker://{destination.address}/b:1", options=OPTIONS)
    assert copied.descriptor.digest == descriptor.digest
    assert destination.manifests["b@1"] == mirror.manifests["cache/base@1"]
