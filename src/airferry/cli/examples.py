"""Two examples for each command: at the end of its help, in its man page, and nowhere else by hand."""

from __future__ import annotations

import re

# what the variables of examples stand for
EXAMPLE_VARIABLES = {
    "BUNDLE": "the folder that was carried over, for example BUNDLE=out",
    "REGISTRY": "your registry with a prefix for its images, as HOST:PORT/PREFIX",
    "ROOT": "the root digest (sha256:…) that came over a separate channel",
}

# command -> (command line, what it is for)
EXAMPLES: dict[tuple[str, ...], tuple[tuple[str, str], tuple[str, str]]] = {
    ("init",): (
        ("airferry init acme", "a project with two steps that build, in the folder acme"),
        ("airferry init --source ~/Nemotron --target sft/megatron_bridge:tiny", "a plan here, for a catalogue there"),
    ),
    ("doctor",): (
        ("airferry doctor --source ~/Nemotron", "is this host fit for the plan in ./airgap.yaml?"),
        ("airferry doctor --engine podman --platform linux/amd64,linux/arm64", "and for Podman and two platforms?"),
    ),
    ("plan",): (
        ("airferry plan --source ~/Nemotron", "what would be built, and how much of it is there already"),
        ("airferry plan --target sft/megatron_bridge:tiny --json", "one step and what it needs, for a script"),
    ),
    ("lock",): (
        ("airferry lock --source ~/Nemotron", "pin bases, commits and versions, and show what changed"),
        ("airferry lock --update nvcr.io/nvidia/nemo:26.04", "resolve one base again, keep all other pins"),
    ),
    ("build",): (
        ("airferry build --source ~/Nemotron", "build, seal, and print the root"),
        ("airferry build --platform linux/arm64 --locked", "for other nodes, from the pins as they are"),
    ),
    ("schema",): (
        ("airferry schema > airgap.schema.json", "for an editor that completes airgap.yaml"),
        ("airferry schema | less", "every key and what it takes"),
    ),
    ("quickstart",): (
        ("airferry quickstart", "the whole job on a built-in example, below airferry-quickstart"),
        ("airferry quickstart --platform linux/amd64", "for one platform, which needs no emulation"),
    ),
    ("rehearse",): (
        ("airferry rehearse --source ~/Nemotron", "run every step without network; exits with 8 if one reaches out"),
        ("airferry rehearse --target sft/megatron_bridge:tiny", "one step"),
    ),
    ("verify",): (
        ('airferry verify "$BUNDLE" --root "$ROOT"', "every byte, against the root from a separate channel"),
        ('airferry verify "$BUNDLE"', "damage alone: a bundle that was made to deceive passes"),
    ),
    ("load",): (
        (
            'airferry load "$BUNDLE" --to "$REGISTRY" --root "$ROOT" --jobs jobs',
            "load, and write what submits the jobs",
        ),
        (
            'airferry load "$BUNDLE" --to "$REGISTRY" --dry-run',
            "what would be sent, and what this registry would refuse",
        ),
    ),
    ("history",): (
        ("airferry history", "what was loaded from this folder, where to, and when"),
        ("airferry history jobs /srv/receipts --json", "of two folders, for a script"),
    ),
    ("report",): (
        ('airferry report "$BUNDLE" --root "$ROOT" --html report.html', "what the approver signs, as a page"),
        ('airferry report "$BUNDLE"', "the same in short, here"),
    ),
    ("serve",): (
        ('airferry serve "$BUNDLE" --root "$ROOT"', "a read-only registry on loopback, until Ctrl-C"),
        (
            'airferry serve "$BUNDLE" --listen 0.0.0.0:5000 --tls-cert cert.pem --tls-key key.pem --htpasswd users',
            "for the nodes of a site, with TLS and passwords",
        ),
    ),
    ("login",): (
        ('airferry login "$REGISTRY"', "asks for user and password"),
        ('airferry login "$REGISTRY" --username me --password-stdin < token', "for a script"),
    ),
    ("logout",): (
        ('airferry logout "$REGISTRY"', "forget the credentials for one registry"),
        ("airferry logout ghcr.io", "before a shared account is handed on"),
    ),
    ("copy",): (
        ('airferry copy "$REGISTRY/trainer:airgap" oci:trainer:airgap', "from a registry into an image layout"),
        (
            'airferry copy oci-archive:image.tar "$REGISTRY/image:1" --platform linux/amd64',
            "one platform of an archive",
        ),
    ),
    ("overlays",): (
        ("airferry overlays jobs --out jobs", "write the configs again, after a change of site.yaml"),
        ("airferry overlays jobs --source ~/Nemotron --site other-site.yaml", "for your own copy, and another site"),
    ),
    ("mirrors",): (
        ("airferry mirrors jobs", "files for containerd, Podman, CRI-O, OpenShift and enroot"),
        ("airferry mirrors jobs --ca-file /etc/ssl/site-ca.pem", "with the CA's path on the nodes"),
    ),
    ("check",): (
        (
            "airferry check jobs --overlays jobs",
            "what would keep the loaded jobs from running; exits with 8 if anything does",
        ),
        (
            "airferry check --source ~/Nemotron --target sft/megatron_bridge:tiny --fixes",
            "one job, before a bundle is built",
        ),
    ),
    ("assets", "record"): (
        (
            "airferry assets record /lustre/models/nemotron --name nemotron --kind model",
            "list a folder with its digests",
        ),
        (
            "airferry assets record /lustre/data/blend --name blend --kind dataset --out blend.jsonl",
            "data, into another file",
        ),
    ),
    ("assets", "verify"): (
        ('airferry assets verify "$BUNDLE" /lustre/models', "is everything there, and is it what the bundle names?"),
        ('airferry assets verify "$BUNDLE" /lustre/models --json', "for a script"),
    ),
    ("assets", "unpack"): (
        ('airferry assets unpack "$BUNDLE" /lustre/models', "write the models and data that the bundle carries"),
        ('airferry assets unpack "$BUNDLE" /lustre/models --json', "for a script"),
    ),
    ("registry", "probe"): (
        ('airferry registry probe "$REGISTRY" --bundle "$BUNDLE"', "does the registry take this bundle?"),
        (
            'airferry registry probe "$REGISTRY/airferry-probe" --ca-file /etc/ssl/site-ca.pem --json',
            "all that it takes, behind a private CA, for a script",
        ),
    ),
    ("site", "init"): (
        ("airferry site init --executor slurm-pyxis:4.0 --profile slurm-pyxis=slurm_sft", "Slurm with enroot 4"),
        ('airferry site init --executor kubernetes --registry "$REGISTRY"', "Kubernetes"),
    ),
    ("catalogue", "extract"): (
        ('airferry catalogue extract "$BUNDLE" catalogue', "the steps as they were built, to read or to change"),
        ("airferry catalogue extract jobs catalogue", "the same from the registry, by its receipt"),
    ),
}


def page_name(path: tuple[str, ...]) -> str:
    """Return the name of a command's man page."""
    return "-".join(("airferry", *path))


def explain_variables(lines: list[str]) -> list[str]:
    """Return what the variables in command lines stand for, a line for each, for people who have not set them."""
    used = {name for line in lines for name in re.findall(r"\$([A-Z]+)", line)}
    return [f"${name} is {meaning}." for name, meaning in EXAMPLE_VARIABLES.items() if name in used]
