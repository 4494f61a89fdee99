"""Asks a registry for images as the site's executor will, and reads what their configs say. Changes nothing there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from airferry.bundle.receipt import ReceiptImage
from airferry.config import Executor
from airferry.config.site import ExecutorKind, parse_executor_version
from airferry.errors import AirferryError, ConfigurationError, RegistryError
from airferry.events import Emit, Warned, silent
from airferry.host.threads import parallel_map
from airferry.jobs.rules.site import RegistryImage, runtime_fix
from airferry.jobs.submission import reference_for
from airferry.oci.documents import LAYER_ZSTD, MAX_IMAGE_CONFIG_BYTES, Manifest, parse_image_config
from airferry.oci.platform import Platform
from airferry.oci.ports import blocks
from airferry.oci.reference import parse_reference
from airferry.registry.client import ClientOptions, open_clients
from airferry.registry.runtimes import Runtime, pull_as
from airferry.registry.source import RegistrySource

JOBS = 4
GZIP = "build with `compression: gzip`, or with the site's profile as `site`, and load again"
# Lepton and DGX Cloud run on Kubernetes, whose nodes pull with containerd unless they are OpenShift's
RUNTIMES: Mapping[ExecutorKind, Runtime] = {
    "slurm-pyxis": "enroot",
    "kubernetes": "containerd",
    "lepton": "containerd",
    "dgxcloud": "containerd",
    "docker": "docker",
    "podman": "podman",
}


def ask_images(
    names: Iterable[str],
    *,
    executor: Executor,
    platform: Platform | None,
    options: ClientOptions,
    emit: Emit = silent,
) -> dict[str, RegistryImage]:
    """Return what an executor gets for images by tag or digest. A registry that does not answer is a problem of each.

    The variables are those of `platform`, or of the first that the image has.
    """
    wanted = sorted(set(names))
    version = parse_executor_version(executor.version) if executor.version else ()
    with open_clients(options, emit=emit) as clients:

        def ask(name: str) -> RegistryImage:
            reference = parse_reference(name)
            try:
                source = RegistrySource(clients(reference.registry), reference.repository)
                answer = pull_as(RUNTIMES[executor.kind], source, reference.target, version=version, platform=platform)
                if answer.missing:
                    return RegistryImage(False, {})
                problem, fix, other = answer.problem, None, False
                if answer.manifest is None:
                    return RegistryImage(True, {}, problem, hidden=answer.hidden)
                if problem is None and not executor.reads_zstd and _has_zstd(answer.manifest):
                    problem = f"the layers of `{name}` are compressed with zstd, which {executor} cannot read"
                    fix, other = GZIP, True
                return RegistryImage(True, _environment(source, answer.manifest), problem, fix=fix, other_build=other)
            except RegistryError as error:
                silent = error.status is None or error.status == 401 or error.status >= 500
                told = f"`{reference.registry}` requires a login, or refuses this one (401)"
                problem = told if error.status == 401 else error.message
                return RegistryImage(False, {}, problem, fix=error.hint, silent=silent)
            except ConfigurationError as error:
                return RegistryImage(False, {}, error.message, fix=error.hint)
            except AirferryError as error:
                return RegistryImage(True, {}, f"`{name}` cannot be read: {error.message}")

        return dict(zip(wanted, parallel_map(ask, wanted, jobs=JOBS), strict=True))


def pull_warnings(
    executor: Executor, images: Iterable[ReceiptImage], asked: Mapping[str, RegistryImage]
) -> list[Warned]:
    """Return a warning for each reason why an executor cannot have images that the registry holds."""
    reasons: dict[tuple[str, str | None], list[str]] = {}
    for image in images:
        name = str(reference_for(executor, image))
        answer = asked.get(name)
        if answer is None or answer.problem is None:
            continue
        # the digest is in the request that the problem quotes, so that no two images would have the same one
        problem = answer.problem.replace(name.rpartition("@")[2], "DIGEST")
        hint = runtime_fix(executor, image, name) if answer.hidden else answer.fix
        reasons.setdefault((problem, hint), []).append(f"`{image.image}`")
    return [
        Warned(f"{executor} cannot run {', '.join(dict.fromkeys(names))}: {problem}", hint=hint)
        for (problem, hint), names in reasons.items()
    ]


def _has_zstd(manifest: Manifest) -> bool:
    return any(layer.media_type == LAYER_ZSTD for layer in manifest.layers)


def _environment(source: RegistrySource, manifest: Manifest) -> dict[str, str]:
    if manifest.config.size > MAX_IMAGE_CONFIG_BYTES:
        return {}
    with source.open_blob(manifest.config) as stream:
        config = parse_image_config(b"".join(blocks(stream)))
    entries = (config.config or {}).get("Env") or []
    return dict(entry.split("=", 1) for entry in entries if isinstance(entry, str) and "=" in entry)
