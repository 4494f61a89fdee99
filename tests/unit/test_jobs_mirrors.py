"""Mirror configurations: what each runtime gets for the originals that a load left."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import Any

import certifi
import pytest
import yaml

from airferry.bundle.receipt import Receipt, ReceiptConnection, ReceiptImage
from airferry.config.site import EXECUTOR_KINDS
from airferry.errors import ConfigurationError, UsageError
from airferry.far.relocate import parse_destination, relocate
from airferry.jobs.mirrors import NodeCa, make_mirrors
from airferry.jobs.placing import Placed, access_steps
from airferry.jobs.submission import image_for, parse_image
from airferry.oci.reference import parse_reference
from airferry.registry.tls import fingerprints

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
    files = make_mirrors(receipt(), ca=NodeCa("/etc/ca.pem")).files
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


def test_nodes_are_not_sent_to_themselves_unsaid() -> None:
    (said,) = make_mirrors(receipt(registry="localhost:5443/x"), plain_http=True).notes
    assert said.startswith("`localhost:5443` means each node itself") and "`--to`" in said
    assert make_mirrors(receipt(), plain_http=True).notes == ()


def test_a_secret_that_is_there_is_replaced() -> None:
    texts = make_mirrors(receipt(), plain_http=True).files["INSTALL.txt"]
    (line,) = (line for line in texts.splitlines() if "kubectl create secret" in line)
    assert line.endswith("--dry-run=client -o yaml | kubectl apply -f -")


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


@pytest.mark.parametrize(
    ("registry", "host"),
    [
        ("hub.site", "hub.site"),
        ("[fd00::1]", "[fd00::1]"),
        ("[fd00::1]:5000", "[fd00::1]"),
        ("10.0.0.1:80", "10.0.0.1"),
    ],
)
def test_the_host_of_credentials_is_the_registry_without_its_port(registry: str, host: str) -> None:
    line = f"machine {host} login $REGISTRY_USER password $REGISTRY_PASSWORD"
    assert make_mirrors(receipt(registry=registry)).files["enroot/credentials"].splitlines()[-1] == line
    steps = access_steps(Placed(registry, {}, False, None, None), "slurm-pyxis")
    assert any(line in shlex.split(step.command) for step in steps)


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
        ("127.0.0.1:5000/airgap", None, {"ca": NodeCa("/etc/ca.pem")}, True),
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
        make_mirrors(receipt(), plain_http=True, ca=NodeCa("/etc/ca.pem"))


def one_certificate(path: Path) -> Path:
    """Write a CA's certificate, with text around it as many such files have."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    body = Path(certifi.where()).read_text().partition(begin)[2].partition(end)[0]
    path.write_text(f"# the site's CA\n{begin}{body}{end}\nkey: not for nodes\n")
    return path


@pytest.mark.parametrize(
    ("executors", "runtimes", "others"),
    [
        ((), ("containerd:", "CRI-O", "Podman", "OpenShift:", "Kubernetes:", "Docker", "enroot:"), ()),
        (("slurm-pyxis",), ("enroot:",), ("containerd:", "CRI-O", "Kubernetes:", "Docker")),
        (("kubernetes",), ("containerd:", "CRI-O", "OpenShift:", "Kubernetes:"), ("enroot:", "Docker")),
        (("podman", "docker"), ("Podman", "Docker"), ("containerd:", "Kubernetes:", "enroot:")),
    ],
)
def test_what_puts_the_files_on_the_nodes_is_told_for_what_runs_there(
    executors: tuple[str, ...], runtimes: tuple[str, ...], others: tuple[str, ...]
) -> None:
    made = make_mirrors(receipt())
    told = [f"{step.purpose}: {step.command}" for step in made.steps(executors)]
    for runtime in runtimes:
        assert any(text.startswith(runtime) or f" and {runtime}" in text for text in told), runtime
    assert not [text for text in told if text.startswith(others)]
    for step in made.steps(executors):
        assert shlex.split(step.command), "quotes are closed"
        assert "\n" not in step.purpose + step.command


def test_each_file_that_goes_to_nodes_is_in_a_command(tmp_path: Path) -> None:
    made = make_mirrors(receipt(), ca=NodeCa(certificate=one_certificate(tmp_path / "ca.pem")))
    commands = " ".join(step.command for step in made.steps())
    for name in made.files.keys() - {"INSTALL.txt"}:
        named = any(part in commands for part in (name, "containerd/certs.d", "openshift") if name.startswith(part))
        assert named or name == "enroot/images.txt", name
    for step in made.steps():
        assert step.command in made.files["INSTALL.txt"]
    (restart,) = [step for step in made.steps() if "systemctl restart" in f"{step.purpose} {step.command}"]
    assert "if this does not show `config_path" in restart.purpose


def test_the_ca_comes_along_and_is_compared_with_the_one_that_the_load_trusted(tmp_path: Path) -> None:
    certificate = one_certificate(tmp_path / "site.pem")
    trusted = ReceiptConnection(tls=True, ca_fingerprints=fingerprints(certificate))
    held = receipt().model_copy(update={"connection": trusted})
    made = make_mirrors(held, ca=NodeCa(certificate=certificate))
    assert made.notes == () and "not for nodes" not in made.files["ca.pem"]
    assert tomllib.loads(made.files["containerd/certs.d/nvcr.io/hosts.toml"])["ca"] == "/etc/airferry/ca.pem"
    commands = [step.command for step in made.steps()]
    assert "sudo install -D -m 644 ca.pem /etc/airferry/ca.pem" in commands
    assert "sudo install -D -m 644 ca.pem /etc/containers/certs.d/hub.site:5000/ca.crt" in commands
    assert any("--from-file=hub.site..5000=ca.pem" in command for command in commands)
    named = make_mirrors(held, ca=NodeCa("/etc/ssl/site.pem", certificate))
    assert "sudo install -D -m 644 ca.pem /etc/ssl/site.pem" in [step.command for step in named.steps()]
    (note,) = make_mirrors(held).notes
    assert fingerprints(certificate)[0] in note and "`ca_file:` in the site profile" in note
    assert make_mirrors(held, ca=NodeCa("/etc/ssl/site.pem")).notes == ()
    other = held.model_copy(update={"connection": ReceiptConnection(tls=True, ca_fingerprints=(DIGEST,))})
    (note,) = make_mirrors(other, ca=NodeCa(certificate=certificate)).notes
    assert "is not the CA that the load trusted" in note
    (tmp_path / "none.pem").write_text("no certificate")
    with pytest.raises(ConfigurationError, match="cannot be read as CA"):
        make_mirrors(held, ca=NodeCa(certificate=tmp_path / "none.pem"))


def test_no_password_is_an_argument_of_a_program() -> None:
    for step in make_mirrors(receipt()).steps():
        if "$REGISTRY_PASSWORD" in step.command:
            # the shell's own printf: it starts nothing
            assert "printf %s " in step.command and "--docker-password" not in step.command
            # nobody else may read the file when the password comes into it
            assert "tee" not in step.command or step.command.startswith("sudo chmod 600 ")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("kubernetes", ["containerd:", "CRI-O", "Kubernetes:"]),
        ("slurm-pyxis", ["enroot:"]),
        ("podman", ["Podman"]),
        ("docker", ["Docker"]),
        ("lepton", []),
    ],
)
def test_nodes_pull_loaded_images_with_the_ca_and_a_password(kind: str, expected: list[str]) -> None:
    behind_tls = Placed("hub.site:5000", {}, False, "/etc/ssl/site.pem", "my ca.pem")
    steps = access_steps(behind_tls, kind)
    told = [f"{step.purpose}: {step.command}" for step in steps]
    for start in expected:
        assert any(text.startswith(start) or f" and {start}" in text for text in told), start
    named = [text for text in told if "my ca.pem" in text]
    assert bool(named) is bool(expected) and bool(steps) is bool(expected)
    assert all(shlex.split(step.command) for step in steps)
    if kind == "kubernetes":
        (made,) = [step.command for step in steps if "tee" in step.command]
        words = shlex.split(made)
        lines = words[words.index("%s\\n") + 1 : words.index("|")]
        document = tomllib.loads("\n".join(lines))
        inner = {"capabilities": ["pull", "resolve"], "ca": "/etc/ssl/site.pem"}
        assert document == {"server": "https://hub.site:5000", "host": {"https://hub.site:5000": inner}}
    # a registry whose certificate the nodes trust anyway
    trusted = access_steps(Placed("hub.site:5000", {}, False, None, None), kind)
    assert not [step for step in trusted if "install -D" in step.command or "tee" in step.command]
    plain = " ".join(step.command for step in access_steps(Placed("hub.site:5000", {}, True, None, None), kind))
    assert ("http://hub.site:5000" in plain) is (kind == "kubernetes")
    assert ("ENROOT_ALLOW_HTTP yes" in plain) is (kind == "slurm-pyxis")
