"""How each executor is given an image and a job: names of images, profiles, commands. Pure.

The forms are those that enroot, and the runtimes that follow Docker's references, understand.
"""

from __future__ import annotations

from airferry.bundle.receipt import Receipt, ReceiptImage
from airferry.config import Executor, SiteProfile
from airferry.config.site import StorageMount, parse_executor_version
from airferry.config.submit import NEMOTRON_SUBMIT
from airferry.host.toml import TomlValue, toml_pair, toml_table, toml_value
from airferry.oci.reference import Reference, parse_reference
from airferry.wording import comment_line

NEMOTRON_EXECUTORS = {"slurm-pyxis": "slurm", "lepton": "lepton", "dgxcloud": "dgxcloud", "docker": "docker"}
OFFLINE_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
}
FIRST_ENROOT_WITH_DIGESTS = (3, 4)  # its pattern for tags takes a colon, so `sha256:…` as well (3.3.1, src/docker.sh)
AIRGAP_SUFFIX = "_airgap"


def image_for(kind: str, image: Reference) -> str:
    """Return an image, by its digest or else by its tag, in the form that an executor takes as `container_image`."""
    return f"{image.registry}#{image.repository}:{image.target}" if kind == "slurm-pyxis" else str(image)


def names_by_digest(executor: Executor) -> bool:
    """Tell whether an executor can be given a digest; enroot can from 3.4 on."""
    known = executor.kind == "slurm-pyxis" and executor.version is not None
    return not known or parse_executor_version(executor.version or "") >= FIRST_ENROOT_WITH_DIGESTS


def reference_for(executor: Executor, image: ReceiptImage) -> Reference:
    """Return what an executor is to be given of a loaded image: its digest, or its tag where it knows no digests.

    enroot is given the Docker twin where the registry took one: docker-registry 2.x hides the image itself from it.
    """
    loaded = image.docker_twin if executor.kind == "slurm-pyxis" and image.docker_twin else image
    return parse_reference(loaded.pinned if names_by_digest(executor) else loaded.reference)


def parse_image(text: str) -> str:
    """Return what names an image in either form, enroot's or Docker's, in Docker's."""
    plain = text.removeprefix("docker://")
    host, mark, rest = plain.partition("#")
    if not mark:
        return plain
    repository, colon, digest = rest.partition(":sha256:")
    return f"{host}/{repository}@sha256:{digest}" if colon else f"{host}/{rest}"


def submit_of(site: SiteProfile, receipt: Receipt) -> str | None:
    """Return the command that submits a step, the site's before the bundle's: None for Nemotron's, empty for none."""
    if site.submit is None:
        return receipt.submit
    return None if site.submit == NEMOTRON_SUBMIT else site.submit


def profile_name(site: SiteProfile, executor: Executor) -> str:
    """Return the name of the profile that the fragment for an executor defines: the site's own one, with a suffix."""
    known = site.profile_of(executor)
    return (known[0] if known else executor.kind.replace("-", "_")) + AIRGAP_SUFFIX


def environment_of(site: SiteProfile, executor: Executor) -> dict[str, str]:
    """Return the variables that jobs on an executor get: offline, or towards the site's mirrors; then the site's own.

    What a mirror stands in for is taken back online, as the images are offline by default.
    """
    variables = dict(OFFLINE_VARIABLES)
    mirrors = site.mirrors
    if mirrors.huggingface:
        variables.update({name: "0" for name in OFFLINE_VARIABLES if name != "WANDB_MODE"})
        variables["HF_ENDPOINT"] = mirrors.huggingface
    if mirrors.wandb:
        variables.update({"WANDB_MODE": "online", "WANDB_BASE_URL": mirrors.wandb})
    if mirrors.packages:
        variables.update({"PIP_INDEX_URL": mirrors.packages, "UV_DEFAULT_INDEX": mirrors.packages})
    known = site.profile_of(executor)
    return {**variables, **(known[1].env if known else {})}


def render_profile(site: SiteProfile, executor: Executor) -> str:
    """Return the profile for an executor, as Nemotron's `env.toml` has it; it extends the site's own one, if named.

    A list replaces that of the profile it extends; so the mounts are all of the site's.
    """
    known = site.profile_of(executor)
    name = profile_name(site, executor)
    lines = [toml_table(name)]
    if known:
        lines.append(toml_pair("extends", known[0]))
    lines.append(toml_pair("executor", NEMOTRON_EXECUTORS.get(executor.kind, executor.kind)))
    if site.mounts and executor.kind == "dgxcloud":
        lines.append("# DGX Cloud mounts claims, not paths: the profile's `pvcs` must name those of this storage:")
        lines += [comment_line(f"  {mount}") for mount in site.mounts]
    elif site.mounts:
        if known:
            whose = toml_value(known[0])
            lines.append(comment_line(f"Replaces the mounts of {whose}: name all storage of jobs in the site profile."))
        lines += ["mounts = [", *(f"  {toml_value(_mount(mount, executor))}," for mount in site.mounts), "]"]
    lines += ["", toml_table(name, "env_vars")]
    lines += [toml_pair(key, value) for key, value in environment_of(site, executor).items()]
    return "\n".join(lines) + "\n"


def _mount(mount: StorageMount, executor: Executor) -> TomlValue:
    """Return a mount as the executor's profile has it: Lepton takes tables, and knows no read-only ones."""
    if executor.kind != "lepton":
        return str(mount)
    return {"path": mount.path.rstrip("/"), "mount_path": mount.inside}
