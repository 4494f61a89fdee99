"""Where the files of mirror configurations go on the nodes: for each runtime the commands that put them there. Pure.

The commands are for bash, and to be run in the folder of the files. No password is an argument of a program: the list
of processes shows those. What takes a restart says so; all else is read at each pull.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from airferry.host.toml import toml_pair, toml_table
from airferry.oci.reference import is_loopback, without_port
from airferry.wording import comment_line

# on nodes whose profile does not say where the CA is
NODE_CA = "/etc/airferry/ca.pem"
CERTS_D = "/etc/containerd/certs.d"
CONTAINERS_CONF = "containers/registries.conf.d/50-airferry.conf"
ENROOT_CONF = "enroot/enroot.conf.d/50-airferry.conf"
ENROOT_CREDENTIALS = "enroot/credentials"
PULL_SECRET = "airferry"
# `create` alone fails where the secret is there: from the files of another command, or with an older password
_APPLIED = "--dry-run=client -o yaml | kubectl apply -f -"
_ENROOT_FOLDER = '"${ENROOT_CONFIG_PATH:-$HOME/.config/enroot}"'
_ENCODED = '"$(printf %s "$REGISTRY_USER:$REGISTRY_PASSWORD" | base64 -w0)"'
# what pulls images on the nodes of an executor; others bring their own
_RUNTIMES: dict[str, tuple[str, ...]] = {
    "slurm-pyxis": ("enroot",),
    "kubernetes": ("containerd", "CRI-O", "OpenShift", "Kubernetes"),
    "docker": ("Docker",),
    "podman": ("Podman",),
}


@dataclass(frozen=True, slots=True)
class NodeStep:
    """A command line for nodes: what it is for, and for which runtimes; none means any."""

    purpose: str
    command: str
    runtimes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """What the commands are about: the registry, the URLs of containerd's mirrors by host, and the CA.

    `ca_file` is the CA's path on the nodes, `ca_copy` its name among the files, if it is one of them.
    """

    registry: str
    urls: Mapping[str, str]
    insecure: bool
    ca_file: str | None
    ca_copy: str | None


def about_loopback(registry: str) -> list[str]:
    """Return what to say where nodes are given a registry that only the host of the load reaches by its name."""
    if not is_loopback(registry):
        return []
    return [
        f"`{registry}` means each node itself: for nodes other than this host, load again with a `--to` that they reach"
    ]


def steps_on_nodes(placed: Placed, executors: Collection[str] = ()) -> list[NodeStep]:
    """Return the commands for the runtimes of some executors, or of all where none is given, in order."""
    steps = [*_of_ca(placed), _ASK, *_of_containerd(placed), *_of_containers(placed), *_pull_secret(placed)]
    steps += [*_of_openshift(placed), *_of_docker(placed), *_of_enroot()]
    wanted = {runtime for kind in executors for runtime in _RUNTIMES.get(kind, ())}
    return [step for step in steps if not executors or not step.runtimes or wanted & set(step.runtimes)]


def access_steps(placed: Placed, kind: str) -> list[NodeStep]:
    """Return what lets the nodes of an executor pull from the registry itself: its CA, where the CA's certificate is
    known, and its password."""
    runtimes = set(_RUNTIMES.get(kind, ()))
    steps = [*_of_ca(placed), *_containerd_itself(placed)]
    steps += [_ASK, *_pull_secret(placed), *_logins(placed), *_enroot_itself(placed)]
    return [step for step in steps if runtimes and (not step.runtimes or runtimes & set(step.runtimes))]


def render_steps(steps: Iterable[NodeStep]) -> str:
    """Return the commands as a text to read and to paste from."""
    return "\n".join(f"{comment_line(step.purpose)}\n{step.command}\n" for step in steps)


_CONFIG_PATH = NodeStep(
    f'containerd: if this does not show `config_path = "{CERTS_D}"`, set it in /etc/containerd/config.toml '
    "(`registry` of the CRI plugin) and run `sudo systemctl restart containerd`",
    "sudo containerd config dump | grep config_path",
    ("containerd",),
)
_ENROOT_LOGIN = "enroot: as each user who submits, who sets REGISTRY_USER and REGISTRY_PASSWORD for the job"
_ASK = NodeStep(
    "where the registry asks for a password; answer before you paste what follows",
    # without `IFS=` a blank at the end of a password is lost
    'read -rp "User: " REGISTRY_USER; IFS= read -rsp "Password: " REGISTRY_PASSWORD; '
    "export REGISTRY_USER REGISTRY_PASSWORD",
)


def _of_ca(placed: Placed) -> list[NodeStep]:
    if placed.ca_copy is None or placed.ca_file is None:
        return []
    trust = shlex.join(["sudo", "install", "-D", "-m", "644", placed.ca_copy, placed.ca_file])
    steps = [NodeStep("the registry's CA, on each node", trust, ("containerd", "enroot"))]
    for runtimes, root in ((("Podman", "CRI-O"), "/etc/containers/certs.d"), (("Docker",), "/etc/docker/certs.d")):
        place = f"{root}/{placed.registry}/ca.crt"
        words = shlex.join(["sudo", "install", "-D", "-m", "644", placed.ca_copy, place])
        steps.append(NodeStep(f"{' and '.join(runtimes)}: the registry's CA, on each node", words, runtimes))
    return steps


def _containerd_itself(placed: Placed) -> list[NodeStep]:
    """Return what tells containerd of the registry's CA, or that it speaks plain HTTP; else it needs nothing."""
    if not placed.insecure and placed.ca_file is None:
        return []
    url = f"{'http' if placed.insecure else 'https'}://{placed.registry}"
    lines = [toml_pair("server", url), toml_table("host", url), toml_pair("capabilities", ["pull", "resolve"])]
    lines += [toml_pair("ca", placed.ca_file)] if placed.ca_file and not placed.insecure else []
    folder = shlex.quote(f"{CERTS_D}/{placed.registry}")
    path = shlex.quote(f"{CERTS_D}/{placed.registry}/hosts.toml")
    shown = " ".join(shlex.quote(line) for line in lines)
    command = f"sudo mkdir -p {folder} && printf '%s\\n' {shown} | sudo tee {path} >/dev/null"
    return [NodeStep("containerd: on each node; no restart", command, ("containerd",)), _CONFIG_PATH]


def _enroot_itself(placed: Placed) -> list[NodeStep]:
    enroot = ("enroot",)
    # netrc lines are matched without the port
    host = without_port(placed.registry)
    line = shlex.quote(f"machine {host} login $REGISTRY_USER password $REGISTRY_PASSWORD")
    option = "ENROOT_ALLOW_HTTP yes" if placed.insecure else f"SSL_CERT_FILE {placed.ca_file}" if placed.ca_file else ""
    steps = []
    if option:
        command = f"sudo mkdir -p /etc/enroot/enroot.conf.d && echo {shlex.quote(option)} | sudo tee /etc/{ENROOT_CONF}"
        steps.append(NodeStep("enroot: on each node; no restart", command, enroot))
    command = f"install -d -m 700 {_ENROOT_FOLDER} && echo {line} >> {_ENROOT_FOLDER}/.credentials"
    return [*steps, NodeStep(_ENROOT_LOGIN, command, enroot)]


def _of_containerd(placed: Placed) -> list[NodeStep]:
    if not placed.urls:
        return []
    runtime = ("containerd",)
    steps = [
        NodeStep("containerd: on each node; no restart", f"sudo cp -r containerd/certs.d {CERTS_D[:-8]}", runtime),
        _CONFIG_PATH,
    ]
    for host, url in placed.urls.items():
        path = shlex.quote(f"{CERTS_D}/{host}/hosts.toml")
        header = r"""'  [host."%s".header]\n    authorization = "Basic %s"\n'"""
        command = (
            f"sudo chmod 600 {path} && printf {header} {shlex.quote(url)} {_ENCODED} | sudo tee -a {path} >/dev/null"
        )
        steps.append(
            NodeStep(f"containerd: the password, for images of {host}; once, after the copy", command, runtime)
        )
    return steps


def _of_containers(placed: Placed) -> list[NodeStep]:
    place = shlex.quote(f"/etc/{CONTAINERS_CONF}")
    both = ("Podman", "CRI-O")
    return [
        NodeStep("Podman and CRI-O: on each node", f"sudo install -D -m 644 {CONTAINERS_CONF} {place}", both),
        NodeStep("CRI-O: to have it read that", "sudo systemctl reload crio", ("CRI-O",)),
        *(step for step in _logins(placed) if step.runtimes == ("Podman",)),
    ]


def _pull_secret(placed: Placed) -> list[NodeStep]:
    secret = (
        """printf '{"auths":{"%s":{"auth":"%s"}}}' """
        f"{shlex.quote(placed.registry)} {_ENCODED} | "
        f"kubectl create secret docker-registry {PULL_SECRET} --from-file=.dockerconfigjson=/dev/stdin {_APPLIED}"
    )
    patch = f"""kubectl patch serviceaccount default -p '{{"imagePullSecrets":[{{"name":"{PULL_SECRET}"}}]}}'"""
    kubernetes = ("Kubernetes",)
    return [
        NodeStep("Kubernetes: the password for pods, once in each namespace of jobs", secret, kubernetes),
        NodeStep("Kubernetes: let all pods of the namespace use it", patch, kubernetes),
    ]


def _logins(placed: Placed) -> list[NodeStep]:
    return [
        NodeStep(
            f"{runtime}: as each user who pulls", shlex.join([runtime.lower(), "login", placed.registry]), (runtime,)
        )
        for runtime in ("Podman", "Docker")
    ]


def _of_openshift(placed: Placed) -> list[NodeStep]:
    openshift = ("OpenShift",)
    steps = [NodeStep("OpenShift: once; its operator takes it to the nodes", "oc apply -f openshift", openshift)]
    if placed.ca_copy is not None:
        key = placed.registry.replace(":", "..")  # a key of a config map has no colon
        words = shlex.join(["oc", "create", "configmap", f"{PULL_SECRET}-ca", "-n", "openshift-config"])
        trust = '{"spec":{"additionalTrustedCA":{"name":"%s-ca"}}}' % PULL_SECRET  # noqa: UP031
        steps.append(
            NodeStep(
                "OpenShift: the registry's CA, once",
                f"{words} {shlex.quote(f'--from-file={key}={placed.ca_copy}')} {_APPLIED.replace('kubectl', 'oc')} && "
                f"oc patch image.config.openshift.io/cluster --type merge -p '{trust}'",
                openshift,
            )
        )
    return steps


def _of_docker(placed: Placed) -> list[NodeStep]:
    docker = ("Docker",)
    steps = [
        NodeStep(
            "Docker maps no names: pull those in enroot/images.txt; log in as each user who does",
            shlex.join(["docker", "login", placed.registry]),
            docker,
        )
    ]
    if placed.insecure:
        steps.append(
            NodeStep(
                f'Docker: if this does not show {placed.registry}, add it to "insecure-registries" in '
                "/etc/docker/daemon.json and run `sudo systemctl restart docker`",
                "docker info | grep -A5 'Insecure Registries'",
                docker,
            )
        )
    return steps


def _of_enroot() -> list[NodeStep]:
    enroot = ("enroot",)
    return [
        NodeStep(
            "enroot: on each node; no restart", f"sudo install -D -m 644 {ENROOT_CONF} /etc/{ENROOT_CONF}", enroot
        ),
        NodeStep(
            _ENROOT_LOGIN,
            f"install -d -m 700 {_ENROOT_FOLDER} && grep -v '^#' {ENROOT_CREDENTIALS} >> {_ENROOT_FOLDER}/.credentials",
            enroot,
        ),
    ]
