"""Mirror configurations: what runtimes need so that the original names of base images lead to the private registry.

containerd maps whole hosts (*hosts.md*), containers/image and OpenShift
single repositories (*containers-registries.conf(5)*, `ImageDigestMirrorSet`); enroot knows no mirrors, so it gets the
other names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from airferry.bundle.receipt import Receipt, find_receipt
from airferry.errors import ConfigurationError, UsageError
from airferry.events import Emit, Warned, silent
from airferry.host import files
from airferry.host.toml import toml_pair, toml_table
from airferry.host.yaml import render_yaml
from airferry.jobs.placing import (
    CONTAINERS_CONF,
    ENROOT_CONF,
    ENROOT_CREDENTIALS,
    NODE_CA,
    NodeStep,
    Placed,
    about_loopback,
    render_steps,
    steps_on_nodes,
)
from airferry.jobs.profile import FoundSite, warn_of_another_site
from airferry.jobs.submission import image_for
from airferry.oci.reference import DEFAULT_REGISTRY, Reference, is_loopback, parse_reference, without_port
from airferry.registry.client import CA_WITHOUT_TLS
from airferry.registry.tls import certificate_text, fingerprints
from airferry.wording import comment_line, obeyed

MIRRORS_MARK = "Written by `airferry mirrors`."
CA_COPY = "ca.pem"
PLACING_FILE = "INSTALL.txt"
OPENSHIFT_API = "config.openshift.io/v1"


@dataclass(frozen=True, slots=True)
class MirroredImage:
    """An original: its name outside, where it is inside, and its digest."""

    original: Reference
    place: Reference
    digest: str


@dataclass(frozen=True, slots=True)
class MirrorFiles:
    """Files by their relative paths, what could not be expressed in some of them, and what the nodes need to know."""

    images: tuple[MirroredImage, ...]
    placed: Placed
    files: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def steps(self, executors: Collection[str] = ()) -> list[NodeStep]:
        """Return what puts the files where they go, in their folder; of all runtimes, or those of some executors."""
        return steps_on_nodes(self.placed, executors)


@dataclass(frozen=True, slots=True)
class NodeCa:
    """The registry's private CA: its path on the nodes, and the certificate itself, as far as each is known."""

    path: str | None = None
    certificate: Path | None = None


def mirrors(
    receipt: Path,
    *,
    out: Path,
    plain_http: bool | None = None,
    ca: NodeCa | None = None,
    site: FoundSite | None = None,
    root: str | None = None,
    emit: Emit = silent,
) -> MirrorFiles:
    """Write mirror configurations for the base images that a loaded bundle carried, and what puts them on the nodes.

    A warning says where the `site` that the CA is from does not fit the receipt.

    Raises:
        ConfigurationError: it carried none, or the CA's certificate cannot be read.
        IntegrityError: it is not a receipt, or one of another bundle than `root` names.
    """
    held = find_receipt(receipt, root=root, emit=emit)
    warn_of_another_site(site, held, emit=emit)
    made = make_mirrors(held, plain_http=plain_http, ca=ca)
    files.write_texts(out, made.files)
    for note in made.notes:
        emit(Warned(note))
    return made


def make_mirrors(receipt: Receipt, *, plain_http: bool | None = None, ca: NodeCa | None = None) -> MirrorFiles:
    """Return the mirror configurations for the originals that a load left.

    A `ca` means TLS. `plain_http` None means: as the load reached the registry, or, where an older receipt does not
    say, on loopback only.

    Raises:
        ConfigurationError: the bundle carried no originals, or the CA's certificate cannot be read.
        UsageError: the path of the CA has control characters, or there is one for a registry without TLS.
    """
    ca = ca or NodeCa()
    known = ca.path is not None or ca.certificate is not None
    if plain_http and known:
        raise UsageError(CA_WITHOUT_TLS, hint="leave one of both out")
    if ca.path is not None and obeyed(ca.path):
        raise UsageError(
            f"`{ca.path}` is not a path that configurations of nodes can name",
            hint="give the path of the CA on the nodes, for example `/etc/ssl/site-ca.pem`",
        )
    images = _originals(receipt)
    registry = parse_reference(f"{receipt.registry}/x").registry
    insecure = _is_plain(receipt, registry) if plain_http is None and not known else bool(plain_http)
    ca_file = ca.path or (NODE_CA if ca.certificate is not None else None)
    containerd, urls, notes = _containerd(images, insecure=insecure, ca_file=ca_file)
    if not insecure:
        notes += _about_ca(receipt, ca)
    notes += about_loopback(registry)
    files = {
        **containerd,
        CONTAINERS_CONF: _registries_conf(images, insecure=insecure),
        "openshift/image-digest-mirror-set.yaml": _mirror_set("ImageDigestMirrorSet", "imageDigestMirrors", images),
        "openshift/image-tag-mirror-set.yaml": _mirror_set("ImageTagMirrorSet", "imageTagMirrors", images),
        ENROOT_CREDENTIALS: _enroot_credentials(registry),
        ENROOT_CONF: _enroot_conf(insecure=insecure, ca_file=ca_file),
        "enroot/images.txt": _enroot_images(images),
    }
    if ca.certificate is not None:
        files[CA_COPY] = certificate_text(ca.certificate)
    placed = Placed(registry, urls, insecure, ca_file, CA_COPY if ca.certificate is not None else None)
    head = comment_line(f"{MIRRORS_MARK} For bash, in this folder; take what your nodes run.")
    files[PLACING_FILE] = f"{head}\n\n{render_steps(steps_on_nodes(placed))}"
    return MirrorFiles(images, placed, dict(sorted(files.items())), tuple(notes))


def _about_ca(receipt: Receipt, ca: NodeCa) -> list[str]:
    """Return what is to be said of the CA: the load trusted one that is not named now, or another one."""
    trusted = set(receipt.connection.ca_fingerprints) if receipt.connection is not None else set()
    if not trusted:
        return []
    if ca.certificate is not None:
        if trusted.isdisjoint(fingerprints(ca.certificate)):
            return [f"`{ca.certificate}` is not the CA that the load trusted ({', '.join(sorted(trusted))})"]
        return []
    if ca.path is None:
        return [
            f"the load trusted a private CA ({', '.join(sorted(trusted))}) that these files do not name: set "
            "`ca_file:` in the site profile, or give its path on the nodes with `--ca-file`"
        ]
    return []


def _is_plain(receipt: Receipt, registry: str) -> bool:
    return is_loopback(registry) if receipt.connection is None else not receipt.connection.tls


def _originals(receipt: Receipt) -> tuple[MirroredImage, ...]:
    found = [
        MirroredImage(parse_reference(image.image), parse_reference(image.reference), image.digest)
        for image in receipt.images
        if image.role == "base"
    ]
    if not found:
        raise ConfigurationError(
            "the bundle of this receipt contains no base images for a mirror to serve",
            hint="set `bases: include` in `airgap.yaml` on the near side, build and load again",
        )
    return tuple(sorted(found, key=lambda image: str(image.original)))


def _repositories(images: Iterable[MirroredImage]) -> dict[str, str]:
    """Return repository outside to repository inside, each in full."""
    return {image.original.name: image.place.name for image in images}


def _containerd(
    images: Iterable[MirroredImage], *, insecure: bool, ca_file: str | None
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return a `certs.d` tree, the URLs by host, and notes. A host is mapped if one prefix is before all it has."""
    files: dict[str, str] = {}
    urls: dict[str, str] = {}
    notes: list[str] = []
    prefixes: dict[str, set[str | None]] = {}
    for image in images:
        before, own, after = image.place.repository.rpartition(image.original.repository)
        fits = bool(own) and not after and (not before or before.endswith("/"))
        prefixes.setdefault(image.original.registry, set()).add(before.rstrip("/") if fits else None)
    places = {image.original.registry: image.place.registry for image in images}
    for host, found in prefixes.items():
        if len(found) > 1 or None in found:
            notes.append(
                f"containerd maps whole hosts, and the images of `{host}` have different paths there: "
                "load them without `--flatten` and `--map`"
            )
            continue
        path = f"/v2/{next(iter(found))}".rstrip("/")
        url = f"{'http' if insecure else 'https'}://{places[host]}{path}"
        options = [toml_pair("capabilities", ["pull", "resolve"]), toml_pair("override_path", True)]
        if ca_file and not insecure:
            options.append(toml_pair("ca", ca_file))
        lines = [
            comment_line(f"{MIRRORS_MARK} The server is the mirror too: nothing is asked of the real `{host}`."),
            toml_pair("server", url),
            *options,
            "",
            toml_table("host", url),
            *(f"  {option}" for option in options),
        ]
        files[f"containerd/certs.d/{host}/hosts.toml"] = "\n".join(lines) + "\n"
        urls[host] = url
    return files, urls, notes


def _registries_conf(images: Iterable[MirroredImage], *, insecure: bool) -> str:
    lines = [f"# {MIRRORS_MARK} For /etc/containers/registries.conf.d/ or ~/.config/containers/registries.conf.d/."]
    short: dict[str, str] = {}
    for original, place in _repositories(images).items():
        lines += ["", "[[registry]]", toml_pair("prefix", original), toml_pair("location", original)]
        lines += ["[[registry.mirror]]", toml_pair("location", place)]
        lines += [toml_pair("insecure", True)] if insecure else []
        library = f"{DEFAULT_REGISTRY}/library/"
        if original.startswith(library):
            short[original.removeprefix(library)] = original
    if short:
        lines += ["", toml_table("aliases"), *(toml_pair(name, full) for name, full in short.items())]
    return "\n".join(lines) + "\n"


def _mirror_set(kind: str, key: str, images: Iterable[MirroredImage]) -> str:
    document = {
        "apiVersion": OPENSHIFT_API,
        "kind": kind,
        "metadata": {"name": "airferry"},
        "spec": {
            key: [
                {"source": original, "mirrors": [place], "mirrorSourcePolicy": "NeverContactSource"}
                for original, place in _repositories(images).items()
            ]
        },
    }
    return f"# {MIRRORS_MARK}\n{render_yaml(document)}"


def _enroot_credentials(registry: str) -> str:
    # of the grammar of references, so one word: netrc has no quotes that all its readers know
    host = without_port(registry)
    lines = [
        f"# {MIRRORS_MARK} Append to $ENROOT_CONFIG_PATH/.credentials; netrc lines are matched without the port.",
        "# The variables are expanded when enroot reads the file, so no secret stands in it.",
        f"machine {host} login $REGISTRY_USER password $REGISTRY_PASSWORD",
    ]
    return "\n".join(lines) + "\n"


def _enroot_conf(*, insecure: bool, ca_file: str | None) -> str:
    lines = [f"# {MIRRORS_MARK} For /etc/enroot/enroot.conf.d/."]
    if insecure:
        lines.append("ENROOT_ALLOW_HTTP yes")
    elif ca_file:
        lines.append(f"SSL_CERT_FILE {ca_file}")
    else:
        lines.append("# The registry's certificate is taken to be known to the nodes.")
    return "\n".join(lines) + "\n"


def _enroot_images(images: Iterable[MirroredImage]) -> str:
    lines = [f"# {MIRRORS_MARK} enroot knows no mirrors: these names take the place of the original ones."]
    for image in images:
        lines.append(f"{image.original}  docker://{image_for('slurm-pyxis', image.place.with_digest(image.digest))}")
    return "\n".join(lines) + "\n"
