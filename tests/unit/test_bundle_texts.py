"""Free text from a bundle never becomes code: refused where it is read, and quoted where it is written."""

from __future__ import annotations

import ast
import csv
import io
import json
import shlex
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import ValidationError

from airferry.bundle.manifest import BundleManifest, ToolEntry, read_manifest
from airferry.bundle.receipt import read_receipt, write_receipt
from airferry.config import SiteProfile
from airferry.config.fields import parse_overlay, parse_text
from airferry.config.submit import submit_command
from airferry.errors import IntegrityError, UsageError
from airferry.host.toml import toml_pair, toml_table, toml_value
from airferry.host.yaml import to_yaml
from airferry.jobs.configs import as_literal, make_overlays
from airferry.jobs.mirrors import NodeCa, make_mirrors
from airferry.jobs.submission import render_profile
from airferry.near.wheels.pack import write_wheel
from airferry.oci.documents import parse_index
from airferry.plan.catalogue import catalogue_at
from airferry.plan.inventory import parse_inventory, render_inventory
from airferry.wording import obeyed
from catalogues import STEPS, write_step
from loaded_receipts import DIGEST, PINNED, loaded_receipt
from nasty_names import NASTY
from source_trees import nodes


def manifest(**changed: Any) -> dict[str, Any]:
    """Return a manifest as plain data, with one image in all places that name one."""
    digest, platform = DIGEST, "linux/amd64"
    layer = {"digest": digest, "size_bytes": 1, "media_type": "application/vnd.oci.layer", "diff_id": digest}
    built = {"digest": digest, "size_bytes": 1, "config_digest": digest, "layers": [layer]}
    image = "trainer:airgap"
    named = {"role": "execution", "image": image, "reference": f"docker.io/library/{image}", "digest": digest}
    asset = {"name": "m", "kind": "model", "target": "/m", "files": 1, "size_bytes": 1, "manifest": digest}
    overlay = {"repo": "Bridge", "url": "https://git.example/Bridge.git", "ref": "v1@x", "target": "/opt/Bridge"}
    group = {
        "name": "trainer-0a1b2c3d",
        "image_names": ["trainer"],
        "base_image": "nvcr.io/nvidia/nemo:26.04",
        "platforms": [platform],
        "tag": image,
        "selected_image": image,
        "tar": "trainer.tar",
        "steps": ["sft/one"],
        "targets": ["sft/one:tiny"],
        "env": {"NAME": "a value, “quoted”; $HOME"},
        "distributions": {platform: "a==1!2.0+local b==1"},
        "requirements": ["a==1!2.0+local ; python_version < '3.12'"],
        "required_imports": ["a"],
        "repo_overlays": [overlay],
    }
    artifact = {"title": "requirements-t.txt", "artifact_type": "application/vnd.x", "digest": digest, "size_bytes": 1}
    return {
        "schema_version": 1,
        "workflow": {"name": "größe – 表", "stages": ["validate"]},
        "build_stages": ["validate"],
        "targets": [{"target": "sft/one:tiny", "step_py": "s/a b.py", "step_toml": "s/s.toml", "config": "s/ü.yaml"}],
        "execution_groups": [group],
        "step_execution_images": {"sft/one": image},
        "saved_images": [{"name": "t", **named}],
        "persistent_assets": {
            "assets": [asset],
            "mounts_from_configs": ["${oc.env:DATA,/x}:/data", {"path": "a\nb"}],
        },
        "images": [{"name": "trainer-0a1b2c3d", **named, "platforms": {platform: built}}],
        "artifacts": [artifact],
        "compression": "zstd",
        "tool": {"airferry": "0.1.0", "versions": {"zstandard": "0.25"}},
        **changed,
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all texts in plain data, digests and what the format fixes left out."""
    if isinstance(value, dict):
        return [place for key, item in value.items() for place in places(item, (*path, key))]
    if isinstance(value, list):
        return [place for number, item in enumerate(value) for place in places(item, (*path, number))]
    return [path] if isinstance(value, str) and not value.startswith("sha256:") else []


def put(value: Any, path: tuple[Any, ...], text: str) -> None:
    for part in path[:-1]:
        value = value[part]
    value[path[-1]] = text


def data_of(document: dict[str, Any]) -> bytes:
    """Return a document as bytes: JSON is YAML, and is written at once."""
    return json.dumps(document, ensure_ascii=False).encode()


def test_an_honest_manifest_of_the_first_version_is_read() -> None:
    assert read_manifest(data_of(manifest())).schema_version == 1


def test_no_text_of_a_manifest_commands_a_terminal() -> None:
    for place in places(manifest()):
        for text in ("x\x1b]0;x\x07", "x\u202ey", "x\x9bm", "\ufeffx"):
            document = manifest()
            put(document, place, text)
            with pytest.raises(IntegrityError, match=r"airgap-manifest\.yaml"):
                read_manifest(yaml.dump(document, Dumper=yaml.CSafeDumper).encode())


def test_each_text_of_a_manifest_is_one_line_of_bounded_length() -> None:
    # these values are shown, and written nowhere
    free = ("workflow.", "persistent_assets.mounts_from_configs.", "execution_groups.0.required_imports.")
    for place in places(manifest()):
        if ".".join(map(str, place)).startswith(free):
            continue
        for text in ("x\nrun: {env: {run_command: [evil]}}", "x" * 1_100_000):
            document = manifest()
            put(document, place, text)
            with pytest.raises(ValidationError):
                BundleManifest.model_validate(document)


NAMES: list[Callable[[str], dict[str, Any]]] = [
    lambda text: {"targets": (text,)},
    lambda text: {"targets": (f"sft/one:{text}",)},
    lambda text: {"steps": {text: PINNED}},
    lambda text: {"steps": {"sft/one": text}},
    lambda text: {"registry": text},
    lambda text: {"images": ({"image": text},)},
    lambda text: {"images": ({"name": text},)},
    lambda text: {"images": ({"reference": text},)},
    lambda text: {"images": ({"pinned": text},)},
    lambda text: {"images": ({"platforms": (text,)},)},
    lambda text: {"images": ({"env": {text: "x"}},)},
    lambda text: {"artifacts": (text,)},
]


@pytest.mark.parametrize("make", NAMES, ids=range(len(NAMES)))
def test_a_name_of_a_receipt_is_a_name(tmp_path: Path, make: Callable[[str], dict[str, Any]]) -> None:
    path = tmp_path / "airgap-receipt.yaml"
    honest = loaded_receipt("sft/one:tiny")
    write_receipt(honest, path)
    assert read_receipt(path) == honest
    for text in NASTY:
        changed = make(text)
        if "images" in changed:
            changed = {"images": tuple(honest.images[0].model_copy(update=image) for image in changed["images"])}
        path.write_bytes(to_yaml(honest.model_copy(update=changed)))
        with pytest.raises(IntegrityError, match="is not valid") as caught:
            read_receipt(path)
        assert len(str(caught.value)) < 1_500 and obeyed(str(caught.value)) is None


def test_keys_of_others_are_shown_bounded(tmp_path: Path) -> None:
    document = manifest(**{"k" * 100_000: 1})
    with pytest.raises(IntegrityError) as caught:
        read_manifest(data_of(document))
    assert len(str(caught.value)) < 1_000


def test_what_looks_like_a_place_of_the_template_is_not_filled_again() -> None:
    line = submit_command("{config}", config="c", profile="p", overrides={}, template="acme {step} {config}")
    assert shlex.split(line) == ["acme", "{config}", "c"]


@pytest.mark.parametrize("text", ["trainer:airgap\nrun: {env: {run_command: [evil]}}\n#", "a\x85b: 1", "a\u2028b: 1"])
def test_no_comment_of_a_jobs_config_ends_early(tmp_path: Path, text: str) -> None:
    """The very attack: a line feed in an image's name, after which keys of the job follow."""
    write_step(tmp_path / "code", "sft/one", configs={"tiny": "run: {env: {nodes: 1}}\n"})
    held = loaded_receipt("sft/one:tiny")
    held = held.model_copy(update={"images": (held.images[0].model_copy(update={"image": text}),)})
    site = SiteProfile.model_validate({"executors": ["kubernetes"]})
    made = make_overlays(held, catalogue_at(tmp_path / "code", steps=STEPS), site=site, out=tmp_path / "out")
    document = yaml.safe_load(made.files["kubernetes/sft/one/tiny.yaml"])
    assert document.keys() == {"defaults", "run"} and document["run"] == {"env": {"container_image": PINNED}}


@pytest.mark.parametrize(("verified", "submit"), [(True, "acme {step}"), (False, "acme {step}"), (False, None)])
def test_commands_of_a_bundle_of_unknown_origin_are_named_as_such(
    tmp_path: Path, verified: bool, submit: str | None
) -> None:
    write_step(tmp_path / "code", "sft/one", configs={"tiny": "run: {env: {nodes: 1}}\n"})
    held = loaded_receipt("sft/one:tiny").model_copy(update={"root_verified": verified, "submit": submit})
    site = SiteProfile.model_validate({"executors": ["kubernetes"]})
    made = make_overlays(held, catalogue_at(tmp_path / "code", steps=STEPS), site=site, out=tmp_path / "out")
    said = any("read them before you run them" in note for note in made.notes)
    assert said == (submit is not None and not verified)


@given(st.text(alphabet=st.sampled_from("${}\\:a/.'\"[], ")))
def test_a_place_of_an_asset_is_no_interpolation(text: str) -> None:
    path = f"/data/{text}x"
    config = OmegaConf.create(yaml.safe_load(yaml.safe_dump({"path": as_literal(path), "HOME": "other"})))
    assert config.path == path


@given(
    st.recursive(
        st.text() | st.booleans() | st.integers(-(2**53), 2**53),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    st.text(),
    st.text(),
)
def test_toml_is_read_back_as_it_was(value: Any, key: str, table: str) -> None:
    whole = f"# x\n{toml_table(table, key)}\n{toml_pair(key, value)}\n"
    assert tomllib.loads(whole) == {table: {key: {key: value}}}
    assert tomllib.loads("a = " + toml_value("\ud800")) == {"a": "\ufffd"}


def test_a_profile_quotes_what_a_site_says() -> None:
    nasty = 'x"\n[evil]\nkey = "\x7f\\'
    site = SiteProfile.model_validate(
        {
            "executors": [{"kind": "dgxcloud", "profile": "mine"}],
            "mounts": ["/data"],
            "profiles": {"mine": {"env": {"NOTE": nasty}}},
        }
    )
    mount = site.mounts[0].model_copy(update={"path": "/data\n[evil]"})
    text = render_profile(site.model_copy(update={"mounts": (mount,)}), site.executors[0])
    document = tomllib.loads(text)
    assert document.keys() == {"mine_airgap"} and document["mine_airgap"]["env_vars"]["NOTE"] == nasty


def test_the_path_of_a_ca_is_one_line() -> None:
    held = loaded_receipt("sft/one:tiny")
    image = held.images[0].model_copy(update={"role": "base", "image": "nvcr.io/a/b:1"})
    with pytest.raises(UsageError, match="is not a path"):
        make_mirrors(held.model_copy(update={"images": (image,)}), ca=NodeCa("/ca\nENROOT_ALLOW_HTTP yes"))


def test_a_record_quotes_names_as_csv_does(tmp_path: Path) -> None:
    names = ['a,sha256=x,1\n"b".py', "c.py"]
    path = write_wheel(tmp_path / "x.whl", dict.fromkeys(names, b""), info="x.dist-info")
    with zipfile.ZipFile(path) as archive:
        rows = list(csv.reader(io.StringIO(archive.read("x.dist-info/RECORD").decode(), newline="")))
    assert [row[0] for row in rows] == [*sorted(names), "x.dist-info/RECORD"]


def test_a_version_in_a_base_names_no_second_distribution() -> None:
    text = render_inventory({"a": "1", "b": "1 torch==9", "c": "1\ttorch==9", "d": "1\x1b[2J", "e": ""})
    assert parse_inventory(text) == {"a": "1"}


@pytest.mark.parametrize("text", ["x\ny", "x\ty", "x\x1by", "x\u202ey", "x\r"])
def test_no_text_of_a_plan_has_control_characters(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_text(text)
    with pytest.raises(ValueError, match="control characters"):
        parse_overlay(f"git+https://git.example/a.git@v1,/opt/{text}/b")


def test_comments_of_files_are_written_by_one_function() -> None:
    """A text of others in `# …` could end the line: `comment_line` and `on_one_line` keep it on one."""
    found = []
    for place, node in nodes(ast.JoinedStr):
        if place == "wording.py" or place.startswith("example/"):
            continue
        first = node.values[0] if node.values else None
        if isinstance(first, ast.Constant) and str(first.value).lstrip().startswith("# "):
            made = [ast.unparse(part.value) for part in node.values if isinstance(part, ast.FormattedValue)]
            found += [f"{place}:{node.lineno}: {name}" for name in made if not name.isupper()]
    # a document after a comment
    assert [line for line in found if not line.endswith(": render_yaml(document)")] == []


@pytest.mark.parametrize("text", ["x\r\nSet-Cookie: a", "x\x1b[2J", "x\u202e", "é", "x" * 256])
@pytest.mark.parametrize("key", ["mediaType", "artifactType"])
def test_a_media_type_is_one_header_of_http(key: str, text: str) -> None:
    kind = "application/vnd.oci.image.manifest.v1+json; charset=utf-8"
    entry = {"mediaType": kind, "digest": DIGEST, "size": 1, "artifactType": "application/vnd.a.b!#$&^_.+-"}
    assert parse_index(json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()).manifests[0].media_type == kind
    for document in ({"manifests": [{**entry, key: text}]}, {"manifests": [], key: text}):
        with pytest.raises(IntegrityError, match=key):
            parse_index(json.dumps({"schemaVersion": 2, **document}).encode())


def test_a_manifest_that_is_written_is_read() -> None:
    tool = ToolEntry(airferry="0")
    made = BundleManifest(workflow={"name": "a\tb\nc"}, build_stages=(), compression="zstd", tool=tool)
    assert read_manifest(made.to_yaml()) == made
