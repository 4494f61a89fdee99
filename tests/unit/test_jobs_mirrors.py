"""Mirror configurations: what each runtime gets for the originals that a load left."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import yaml

from airferry.bundle.receipt import Receipt, ReceiptConnection, ReceiptImage
from airferry.config.site import EXECUTOR_KINDS
from airferry.errors import ConfigurationError, UsageError
from airferry.far.relocate import parse_destination, relocate
from airferry.jobs.mirrors import make_mirrors
from airferry.jobs.submission import image_for, parse_image
from airferry.oci.reference import parse_reference

DIGEST = "sha256:" + "a" * 64
NAMES = ("nvcr.io/nvidia/nemo:26.04", "docker.io/library/python:3.12-slim", "quay.io:8443/team/tool:1")


def receipt(
    names: tuple[str, ...] = NAMES, *, flatten: bool = False, registry: str = "hub.site:5000/airgap"
) -> Receipt:
    places = relocate(names, parse_destination(registry, flatten=flatten), whole=names)
    images = [
        ReceiptImage(
            name=name,
            role="base",
            image=name,
            reference=str(places[name]),
            pinned=str(places[name].with_digest(DIGEST)),
            digest=DIGEST,
        )
        for name in names
    ]
    return Receipt(
        bundle_root=DIGEST,
        root_verified=True,
        registry=registry,
        loaded_at="2026-01-01T00:00:00Z",
        airferry="0",
        images=tuple(images),
    )


def test_containerd_maps_each_host_to_the_prefix_and_nothing_to_the_internet() -> None:
    files = make_mirrors(receipt(), ca_file="/etc/ca.pem").files
    for host in ("nvcr.io", "docker.io", "quay.io:8443"):
        document = tomllib.loads(files[f"containerd/certs.d/{host}/hosts.toml"])
        url = "https://hub.site:5000/v2/airgap"
        assert document["server"] == url
        assert document["override_path"] is True and document["ca"] == "/etc/ca.pem"
        assert document["host"] == {url: {key: document[key] for key in ("capabilities", "override_path", "ca")}}


def test_containers_and_openshift_map_each_repository() -> None:
    files = make_mirrors(receipt(), plain_http=True).files
    conf = tomllib.loads(files["containers/registries.conf.d/50-airferry.conf"])
    pairs = {entry["prefix"]: entry["mirror"][0] for entry in conf["registry"]}
    assert pairs == {
        "nvcr.io/nvidia/nemo": {"location": "hub.site:5000/airgap/nvidia/nemo", "insecure": True},
        "docker.io/library/python": {"location": "hub.site:5000/airgap/library/python", "insecure": True},
        "quay.io:8443/team/tool": {"location": "hub.site:5000/airgap/team/tool", "insecure": True},
    }
    assert conf["aliases"] == {"python": "docker.io/library/python"}
    for name, kind, key in (
        ("image-digest-mirror-set", "ImageDigestMirrorSet", "imageDigestMirrors"),
        ("image-tag-mirror-set", "ImageTagMirrorSet", "imageTagMirrors"),
    ):
        document = yaml.safe_load(files[f"openshift/{name}.yaml"])
        assert (document["apiVersion"], document["kind"]) == ("config.openshift.io/v1", kind)
        assert {entry["source"]: entry["mirrors"] for entry in document["spec"][key]} == {
            source: [mirror["location"]] for source, mirror in pairs.items()
        }


def test_enroot_gets_other_names_and_no_secret() -> None:
    files = make_mirrors(receipt(), plain_http=True).files
    assert (
        f"nvcr.io/nvidia/nemo:26.04  docker://hub.site:5000#airgap/nvidia/nemo:{DIGEST}\n" in files["enroot/images.txt"]
    )
    assert (
        files["enroot/credentials"].splitlines()[-1]
        == "machine hub.site login $REGISTRY_USER password $REGISTRY_PASSWORD"
    )
    assert "ENROOT_ALLOW_HTTP yes" in files["enroot/enroot.conf.d/50-airferry.conf"]


def test_a_load_that_moved_paths_is_told_about_and_repositories_are_still_mapped() -> None:
    made = make_mirrors(receipt(flatten=True))
    assert not any(name.startswith("containerd/") for name in made.files)
    assert len(made.notes) == 3 and "without `--flatten`" in made.notes[0]
    assert "hub.site:5000/airgap/nemo" in made.files["containers/registries.conf.d/50-airferry.conf"]


def test_a_registry_without_prefix() -> None:
    files = make_mirrors(receipt(NAMES[:1], registry="127.0.0.1:5000")).files
    assert tomllib.loads(files["containerd/certs.d/nvcr.io/hosts.toml"])["server"] == "http://127.0.0.1:5000/v2"


def test_a_bundle_without_originals_is_refused_with_the_key_to_set() -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_mirrors(receipt(()))
    assert "bases: include" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", EXECUTOR_KINDS)
def test_an_image_is_read_back_from_what_an_executor_takes(kind: str) -> None:
    for text in (f"hub.site:5000/a/b@{DIGEST}", "hub.site:5000/a/b:1.0"):
        assert parse_image("docker://" + image_for(kind, parse_reference(text))) == text
    assert parse_image("hub.site#a/b:1.0") == "hub.site/a/b:1.0"


@pytest.mark.parametrize(
    ("registry", "tls", "options", "secure"),
    [
        ("127.0.0.1:5000/airgap", True, {}, True),
        ("127.0.0.1:5000/airgap", None, {}, False),
        ("127.0.0.1:5000/airgap", None, {"ca_file": "/etc/ca.pem"}, True),
        ("hub.site:5000/airgap", False, {}, False),
        ("hub.site:5000/airgap", False, {"plain_http": False}, True),
        ("hub.site:5000/airgap", None, {}, True),
        ("hub.site:5000/airgap", True, {"plain_http": True}, False),
    ],
)
def test_mirrors_go_the_way_that_the_load_went(registry: str, tls: bool | None, options: Any, secure: bool) -> None:
    connection = None if tls is None else ReceiptConnection(tls=tls)
    held = receipt(registry=registry).model_copy(update={"connection": connection})
    files = make_mirrors(held, **options).files
    server = tomllib.loads(files["containerd/certs.d/nvcr.io/hosts.toml"])["server"]
    assert server.startswith("https://" if secure else "http://")
    assert ("insecure = true" in files["containers/registries.conf.d/50-airferry.conf"]) is not secure
    assert ("ENROOT_ALLOW_HTTP yes" in files["enroot/enroot.conf.d/50-airferry.conf"]) is not secure


def test_a_ca_for_a_registry_without_tls_is_refused() -> None:
    with pytest.raises(UsageError, match="`--ca-file` is for TLS"):
        make_mirrors(receipt(), plain_http=True, ca_file="/etc/ca.pem")
