"""What others wrote, where it is read: the right class of error, exit code and file, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from pydantic import TypeAdapter, ValidationError

from airferry.bundle.manifest import BundleManifest, CatalogueEntry
from airferry.cli.app import run
from airferry.config import load_config
from airferry.config.document import parse_document, read_yaml
from airferry.config.fields import RequirementText
from airferry.errors import AirferryError, ConfigurationError, IntegrityError
from airferry.far.serve.server import Listener
from airferry.host.parsing import Malformed, parse_json
from airferry.host.yaml import from_yaml
from airferry.near.git.versions import difference
from airferry.near.lock.closure import _satisfies
from airferry.near.wheels.project import project_wheel
from airferry.oci.documents import LAYER_TAR, descriptor_of, parse_index, parse_manifest
from airferry.plan.catalogue import choose_target, open_catalogue
from airferry.plan.code.commands import installs_of
from airferry.plan.env_profiles import read_env_file
from airferry.plan.inventory import is_held
from airferry.plan.locks.catalogue import read_catalogue_lock
from airferry.plan.locks.packages import (
    GitSource,
    IndexSource,
    LockedPackage,
    evaluate,
    read_requirement,
    version_key,
)
from airferry.plan.planner import make_plan
from airferry.registry.bodies import acknowledged_bytes
from airferry.registry.connections import Answer
from airferry.registry.credentials import find_credential
from airferry.registry.failures import redacted
from airferry.registry.registries_conf import read_registries_conf
from airferry.registry.retry import retry_after_s
from airferry.registry.uploads import UploadJournal, UploadSession
from catalogues import STEPS, airgap, write_airgap, write_step
from failures import failure

DEEP_TOML = "a = " + "[" * 20_000


LONG_TOML = "\n\na = " + "1" * 5_000


BAD_TOML = [DEEP_TOML, LONG_TOML, "a = 2024-99-99", "a = \0", "\n\xff", "a = 1\na = 2"]


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("latin-1"))
    return path


@pytest.mark.parametrize("text", BAD_TOML, ids=range(len(BAD_TOML)))
@pytest.mark.parametrize(
    "name", ["env.toml", "uv.lock", "pylock.toml", "pyproject.toml", "registries.conf", "step.toml"]
)
def test_toml(name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / name, text)
    if name == "step.toml":
        write_step(tmp_path, "sft/tiny")
        path = written(tmp_path / STEPS / "sft/tiny/step.toml", text)
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(path))
    reads: dict[str, Callable[[], object]] = {
        "env.toml": lambda: read_env_file(path),
        "uv.lock": lambda: read_catalogue_lock(path),
        "pylock.toml": lambda: read_catalogue_lock(path),
        "pyproject.toml": lambda: project_wheel(path, source_path="/x", version=None, into=tmp_path),
        "registries.conf": read_registries_conf,
        "step.toml": lambda: make_plan(
            load_config(write_airgap(tmp_path, airgap({"img": "base:1"}, {"sft/tiny": "img"})))
        ),
    }
    failure(reads[name], ConfigurationError, 3, str(path))


BAD_YAML = [
    "a: 0x_",
    "a: " + "1" * 5_000,
    "a: 0b_",
    'a: !!int ""',
    "a: !!float abc",
    "a: !!timestamp x",
    "a: !!bool x",
    "a: !!float " + "1:" * 3_000 + "1.5",
    "a: !!binary eA==",
    "%TAG !a! a\n" * 101 + "---\na: 1",
    "[" * 100_000,
    "a: " + "{a: " * 30_000,
    "- " * 100_000,
    "a: &a [*a]",
    "? [a]\n: b",
    "a: \0",
    "\xff",
    "*x",
    "<<: 1",
]


@pytest.mark.parametrize("text", BAD_YAML, ids=range(len(BAD_YAML)))
def test_yaml_of_people(text: str, tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", text)
    failure(lambda: read_yaml(path), ConfigurationError, 3, str(path))


@pytest.mark.parametrize("text", BAD_YAML, ids=range(len(BAD_YAML)))
def test_yaml_of_airferrys_own(text: str) -> None:
    data = text.encode("latin-1")
    failure(lambda: from_yaml(BundleManifest, data, schema_version=1, what="x"), AirferryError, 6, "x")


@pytest.mark.parametrize("name", ["a\0b.yaml", "x" * 5_000, "loop/x.yaml", "~no-such-user/x.yaml"])
def test_a_file_that_no_system_can_have(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    failure(lambda: read_yaml(tmp_path / name), ConfigurationError, 3, str(tmp_path / name))
    config = write_airgap(tmp_path, {**airgap({"img": "base:1"}, {"sft/tiny": "img"}), "site": name})
    failure(lambda: load_config(config), ConfigurationError, 3, name.partition("/")[0])


def test_a_list_of_thousands_of_items_is_not_deep(tmp_path: Path) -> None:
    document = parse_document(b"a:\n" + b"- [1, {b: 2}]\n" * 5_000, tmp_path / "x.yaml")
    assert len(document.value["a"]) == 5_000


PYTHON = [
    "x = \0",
    "x = " + "(" * 5_000 + ")" * 5_000,
    "x = " + "1 + " * 20_000 + "1",
    "x = " + "a." * 20_000 + "a",
    "x = " + "-" * 20_000 + "1",
    "if a: pass\n" + "elif a: pass\n" * 20_000,
    "import a\n" + "try: pass\nexcept: pass\n" * 2_000,
    "def f(:\n",
    "x = '\\ud800'",
    "import " + "a." * 10_000 + "a",
    "import " + "a" * 5_000,
    "import nemotron." + "a" * 300,
    "from ." + "a" * 300 + " import b",
    "# coding: none\n",
    "\xff\xfe",
    "x = " + "1" * 5_000,
    "import os, sys\nsys.path.append(" + "str(" * 80 + "'x'" + ")" * 80 + ")",
]


@pytest.mark.parametrize("source", PYTHON, ids=range(len(PYTHON)))
def test_a_step_in_python(source: str, tmp_path: Path) -> None:
    write_step(tmp_path, "sft/tiny")
    path = written(tmp_path / STEPS / "sft/tiny/step.py", source + "\nimport subprocess; subprocess.run(['pip'])")
    config = load_config(write_airgap(tmp_path, airgap({"img": "base:1"}, {"sft/tiny": "img"})))
    try:
        make_plan(config)
    except ConfigurationError as error:
        assert error.message.startswith(f"{path}:")


def test_a_config_below_links_in_a_circle(tmp_path: Path) -> None:
    write_step(tmp_path, "sft/tiny")
    (tmp_path / "loop").symlink_to("loop")
    config = load_config(write_airgap(tmp_path, airgap({"img": "base:1"}, {"sft/tiny": "img"})))
    catalogue = open_catalogue(config)
    failure(lambda: choose_target(catalogue, "sft/tiny:loop/x.yaml", folder=tmp_path), ConfigurationError, 3, "loop")
    for name in ("~no-such-user/x.yaml", "x" * 300, "x/" * 3_000 + "x.yaml"):
        failure(lambda name=name: make_plan(config, targets=(f"sft/tiny:{name}",)), ConfigurationError, 3, name[:10])
    failure(lambda: make_plan(config, targets=("x" * 300,)), ConfigurationError, 3, "there is no step")
    config_path = written(tmp_path / STEPS / "sft/tiny/config/tiny.yaml", "defaults: [" + "y" * 300 + "]")
    failure(lambda: make_plan(config), ConfigurationError, 3, str(config_path))


@pytest.mark.parametrize("size", ["1" + "0" * 400, "9223372036854775808", "-1", ".inf", ".nan", "1e999"])
def test_sizes_in_a_bundle_manifest_are_those_of_files(size: str) -> None:
    value = yaml.safe_load(size)
    with pytest.raises(ValidationError, match="size_bytes"):
        CatalogueEntry.model_validate(
            {
                "digest": "sha256:" + "0" * 64,
                "files": 1,
                "size_bytes": value,
                "unpacked_bytes": 1,
                "steps": "src/steps",
                "package": "steps",
            }
        )


@pytest.mark.parametrize(
    "marker",
    [
        '"" == "x"',
        'os_name ~= "x"',
        'nothing == "x"',
        "(" * 5_000,
        'python_version < "abc" or',
        "",
    ],
)
def test_a_marker_that_compares_nothing(marker: str) -> None:
    failure(lambda: evaluate(marker, {"os_name": "posix"}), ConfigurationError, 3, "is not an environment marker")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"auths": ' + "1" * 5_000 + "}", "\xff", "[]"])
def test_credentials(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "auth.json", text)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
    failure(lambda: find_credential("r.example", "x"), ConfigurationError, 3, str(path))


@pytest.mark.parametrize("secret", ["é", "a" * 5, "/w==", "====", "\ud800"])
def test_a_login_that_is_not_base64_is_none(secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "auth.json", json.dumps({"auths": {"r.example": {"auth": secret}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
    assert find_credential("r.example", "x") is None


@pytest.mark.parametrize("address", ["127.0.0.1:" + "1" * 5_000, "127.0.0.1:٠", "127.0.0.1:-1", "[::1:x", ":"])
def test_an_address_to_listen_on(address: str) -> None:
    failure(lambda: Listener(address), AirferryError, 2, "is not an address")


def test_an_acknowledgement_of_thousands_of_digits() -> None:
    answer = SimpleNamespace(headers={"Range": "0-" + "9" * 5_000})
    assert acknowledged_bytes(cast(Answer, answer)) is None


@pytest.mark.parametrize(
    "text",
    ["Mon, 01 Jan 0001 00:00:00 -0000", "Mon, 99 Foo 99999 00:00:00 GMT", "²", "Mon, 01 Jan 2024 99:99:99 GMT", ","],
)
def test_a_pause_that_no_clock_knows(text: str) -> None:
    assert retry_after_s({"Retry-After": text}) in (None, 0.0)


def test_an_upload_journal_that_names_no_url(tmp_path: Path) -> None:
    path, layer = tmp_path / "uploads.json", descriptor_of(b"layer", LAYER_TAR)
    journal = UploadJournal(path)
    journal.record("r.example/x", layer, UploadSession("http://r.example/v2/x/blobs/uploads/1", 5))
    assert UploadJournal(path).find("r.example/x", layer) is not None
    path.write_text(path.read_text().replace("http://r.example/", "http://[::1/"))
    assert UploadJournal(path).find("r.example/x", layer) is None


def test_a_url_that_is_none_shows_nothing_of_itself() -> None:
    assert redacted("http://user:secret@[::1/x?token=y") == "(not a URL)"
    assert redacted("http://user:secret@h:1/x?token=y") == "http://h:1/x"


def test_a_host_without_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("airferry.cli.app.app", fail)
    assert run(["plan"]) == 4
    assert "too little memory" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["1" + "0" * 400, "1e999", "9223372036854775808", "-1", "NaN", "1" * 5_000])
def test_a_size_that_no_blob_can_have(size: str) -> None:
    descriptor = f'{{"mediaType": "a/b", "digest": "sha256:{"0" * 64}", "size": {size}}}'
    data = f'{{"schemaVersion": 2, "config": {descriptor}, "layers": []}}'.encode()
    failure(lambda: parse_manifest(data), IntegrityError, 6, "the manifest is not valid")


VALUES = {
    "mappings": '{"a":[' + "{}," * 600_000 + "{}]}",
    "keys": "{" + '"a":1,' * 600_000 + '"b":1}',
    "items": "[" + "1," * 600_000 + "1]",
}


@pytest.mark.parametrize(
    "parse", [parse_json, lambda text: parse_json(text.encode()), lambda text: parse_index(text.encode())]
)
@pytest.mark.parametrize("name", VALUES)
def test_json_of_more_values_than_memory_is_for(name: str, parse: Callable[[str], object]) -> None:
    with pytest.raises((Malformed, IntegrityError), match="more than 500000 values, the limit for a JSON document"):
        parse(VALUES[name])


@pytest.mark.parametrize("text", ["," * 600_000, '\\",{' * 200_000, "[{" * 300_000, ""])
def test_marks_within_texts_are_no_values(text: str) -> None:
    assert parse_json(f'{{"a":"{text}"}}')["a"] == text.replace('\\"', '"')
    assert parse_json(f'{{"a":"{text}","b":"{text}"}}'.encode())["b"] == text.replace('\\"', '"')
    with pytest.raises(Malformed, match="more than 3 values"):
        parse_json(f'{{"a":"{text}","b":["{text}",1]}}', max_values=3)


LONG_VERSION = "1." + "1" * 5_000


@pytest.mark.parametrize("text", [f"a=={LONG_VERSION}", f"a>={LONG_VERSION}", f"a ; python_version > '{LONG_VERSION}'"])
def test_no_requirement_has_a_number_that_python_makes_none_of(tmp_path: Path, text: str) -> None:
    """`packaging` takes it, and fails with a ValueError of Python where versions are compared."""
    with pytest.raises(ValueError, match="more than 100 digits"):
        read_requirement(text)
    (tmp_path / "requirements.txt").write_text(f"{text}\n")
    with pytest.raises(ConfigurationError, match=r"requirements\.txt:1: .* is not a valid requirement"):
        read_catalogue_lock(tmp_path / "requirements.txt")
    with pytest.raises(ValidationError, match="is not a requirement"):
        TypeAdapter(RequirementText).validate_python(text)
    assert installs_of(f"pip install '{text}'")[0].unknown


def test_no_comparison_of_versions_fails_over_a_long_number() -> None:
    with pytest.raises(ConfigurationError, match="more than 100 digits"):
        evaluate(f"python_version > '{LONG_VERSION}'", {"python_version": "3.12"})  # type: ignore[arg-type]
    package = LockedPackage("a", LONG_VERSION, IndexSource())
    assert str(version_key(package)) == "0"
    assert not is_held("a>1", {"a": LONG_VERSION})
    git = GitSource("https://h/x", "a" * 40)
    assert difference("a", LONG_VERSION, "1.0", git) is None
    assert not _satisfies(SpecifierSet(">1"), LONG_VERSION)
