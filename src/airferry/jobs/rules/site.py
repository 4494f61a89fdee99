"""Rules about what surrounds a config: its image, its variables and start commands, CPU and GPU of the site."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from airferry.bundle.receipt import ReceiptImage
from airferry.config import Executor
from airferry.config.site import parse_executor_version
from airferry.errors import AirferryError
from airferry.jobs.context import StepContext, masked
from airferry.jobs.findings import Finding, Remedy
from airferry.jobs.rules.python_path import python_path_findings
from airferry.jobs.rules.startup import startup_findings
from airferry.jobs.settings import input_path, override
from airferry.jobs.submission import OFFLINE_VARIABLES, image_for, parse_image, reference_for
from airferry.oci.platform import parse_platform
from airferry.oci.reference import parse_reference
from airferry.plan.step_values import StepValue

# the first driver that runs programs built for a CUDA major version (CUDA compatibility guide, "minor version")
FIRST_DRIVERS = {11: (450, 80), 12: (525, 60), 13: (580, 0)}
_OFF = frozenset({"0", "false", "no", "off", ""})
_VARIABLES_OF_SERVICES = {
    "HF_HUB_OFFLINE": "huggingface",
    "TRANSFORMERS_OFFLINE": "huggingface",
    "HF_DATASETS_OFFLINE": "huggingface",
    "WANDB_MODE": "wandb",
}


@dataclass(frozen=True, slots=True)
class RegistryImage:
    """An image as the executor gets it from the registry, `found` False for one that is not there.

    `problem` says why it cannot be had, `fix` what helps where that is known, `other_build` that this is a new build;
    `hidden` that the registry holds it, and does not show it to this executor; `silent` that it was not asked for, as
    the registry takes no login or does not answer.
    """

    found: bool
    environment: Mapping[str, str]
    problem: str | None = None
    hidden: bool = False
    fix: str | None = None
    other_build: bool = False
    silent: bool = False


def site_findings(context: StepContext, images: Mapping[str, RegistryImage]) -> Iterator[Finding]:
    """Yield what is to be said about a step's image, variables, start commands, CPU and GPU."""
    yield from _image(context)
    yield from _other_images(context)
    yield from _artifacts(context)
    yield from _offline(context)
    yield from startup_findings(context)
    yield from _profile_values(context)
    if context.image is not None:
        yield from _platform(context)
        name = _image_of_job(context, context.image)
        asked = images.get(name)
        if asked is not None:
            yield from _in_registry(context, context.image, name, asked)
        known = asked.environment if asked is not None and asked.found else context.image.env
        yield from python_path_findings(context, known)


def _image(context: StepContext) -> Iterator[Finding]:
    value = context.values.get("run", "env", "container_image")
    expected: str | None = None
    accepted: set[str] = set()
    if context.image is not None:
        reference = reference_for(context.executor, context.image)
        expected = image_for(context.executor.kind, reference)
        accepted = images_of_job(context.executor, context.image)
    fix = f"run.env.container_image={expected or 'IMAGE-OF-THE-RECEIPT'}"
    if value is not None and value.text:
        if parse_image(value.text) in accepted:
            return
        if context.image is None and _inside(context, value.text):
            return
        yield context.finding(value, "image", "block", "is not the loaded image, and overrides the profile", fix=fix)
        return
    if context.image is None:
        return
    profile = context.profile.values.get("container_image") if context.profile else None
    if isinstance(profile, str) and parse_image(profile) in accepted:
        return
    yield context.general("image", "block", "nothing pins the loaded image", key="run.env.container_image", fix=fix)


def _inside(context: StepContext, text: str) -> bool:
    registry = (context.site.registry or "").partition("/")[0]
    try:
        return bool(registry) and parse_reference(parse_image(text)).registry == registry
    except AirferryError:
        return text.endswith(".sqsh")


def _other_images(context: StepContext) -> Iterator[Finding]:
    for value in context.values.values:
        if value.key[:3] == ("run", "env", "container_image") or value.last not in ("container_image", "image"):
            continue
        written = isinstance(value.raw, str) and not value.raw.strip().startswith("${")
        if written and value.text and "/" in value.text and not _inside(context, value.text):
            yield context.finding(
                value, "image", "warn", "is an image outside", fix=context.setting(value, "IMAGE-INSIDE")
            )


def _artifacts(context: StepContext) -> Iterator[Finding]:
    """Yield artifact references, unless a manifest root on storage resolves them without a service."""
    tables = context.profile.source.tables if context.profile else {}
    artifacts = tables.get("artifacts")
    if (isinstance(artifacts, dict) and "manifest" in artifacts) or context.site.mirrors.wandb:
        return
    for value in context.values.values:
        if value.is_artifact:
            text = "is resolved by an artifact service when the step runs"
            fix = f"{context.setting(value, input_path(context, None))}, or [artifacts.manifest] in env.toml"
            yield context.finding(value, "artifact", "block", text, fix=fix, shown=str(value.raw))


def _offline(context: StepContext) -> Iterator[Finding]:
    seen: list[tuple[str, StepValue | None, str]] = []
    for value in context.values.values:
        if value.last in OFFLINE_VARIABLES and "env_vars" in value.key:
            seen.append((value.last, value, str(value.value)))
    variables = (context.profile.values.get("env_vars") if context.profile else None) or {}
    seen += [(name, None, str(variables[name])) for name in OFFLINE_VARIABLES if name in variables]
    for name, written, text in seen:
        service = _VARIABLES_OF_SERVICES[name]
        online = text.lower() in _OFF if service == "huggingface" else text.lower() == "online"
        if not online or getattr(context.site.mirrors, service):
            continue
        reason = f"takes `{name}` of the image back online, and the site declares no mirror"
        fix = f"run.env.env_vars.{name}={OFFLINE_VARIABLES[name]}"
        if written is not None:
            fix = context.setting(written, OFFLINE_VARIABLES[name])
            yield context.finding(written, "offline", "block", reason, fix=fix)
        else:
            yield context.in_profile("offline", "block", reason, key=("env_vars", name), value=text, fix=fix)
    if context.site.mirrors.huggingface and context.environment.get("HF_HUB_OFFLINE", "1") not in _OFF:
        reason = "the site has a mirror of the Hub, and the image stays offline unless its variables are taken back"
        mirror = override("run.env.env_vars.HF_ENDPOINT", context.site.mirrors.huggingface)
        fix = f"run.env.env_vars.HF_HUB_OFFLINE=0 {mirror}"
        yield context.general("offline", "warn", reason, key="run.env.env_vars.HF_HUB_OFFLINE", fix=fix)


def _profile_values(context: StepContext) -> Iterator[Finding]:
    """Yield secrets and Git mounts in the profile itself."""
    if context.profile is None:
        return
    variables = context.profile.values.get("env_vars")
    for name, value in variables.items() if isinstance(variables, dict) else ():
        text = str(value)
        named = re.search(r"(TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)$", str(name)) is not None
        if masked(text) != text or (named and "${" not in text and len(text) >= 8):
            yield context.in_profile(
                "secret",
                "block",
                "a secret is stored in a file",
                key=("env_vars", name),
                value="***",
                fix=f"{name} = '${{oc.env:{name}}}', and rotate the secret: it is exposed",
            )
    mounts = context.profile.values.get("mounts")
    for index, mount in enumerate(mounts if isinstance(mounts, list) else ()):
        if isinstance(mount, str) and "auto_mount" in mount:
            reason = "is cloned when the job starts"
            fix = f"remove it from `{context.profile.name}`; an image holds its checkouts where the plan bakes them"
            yield context.in_profile("git", "block", reason, key=("mounts", index), value=mount, fix=fix)


def _platform(context: StepContext) -> Iterator[Finding]:
    image, wanted = context.image, context.site.platform
    if image is None or wanted is None or not image.platforms:
        return
    if not any(wanted.accepts(parse_platform(text)) for text in image.platforms):
        yield context.general(
            "platform",
            "block",
            f"`{image.image}` is for {', '.join(image.platforms)}, the nodes are {wanted}",
            key="run.env.container_image",
            fix=f"build it for {wanted}: `airferry build --platform {wanted}`",
            remedy="build",
        )


def images_of_job(executor: Executor, image: ReceiptImage) -> set[str]:
    """Return what a job on an executor may name of a loaded image: what it is to be given, or the image by digest."""
    return {str(reference_for(executor, image)), image.pinned}


def _image_of_job(context: StepContext, image: ReceiptImage) -> str:
    """Return what the job names of the loaded image by its config or profile, else what it is to be given."""
    value = context.values.get("run", "env", "container_image")
    profile = context.profile.values.get("container_image") if context.profile else None
    written = (value.text if value is not None else "") or (profile if isinstance(profile, str) else "")
    named = parse_image(written)
    return named if named in images_of_job(context.executor, image) else str(reference_for(context.executor, image))


def _in_registry(context: StepContext, image: ReceiptImage, name: str, asked: RegistryImage) -> Iterator[Finding]:
    key = "run.env.container_image"
    if asked.hidden:
        yield context.general(
            "image",
            "block",
            asked.problem or "is hidden",
            key=key,
            fix=runtime_fix(context.executor, image, name),
            remedy=_remedy_where_hidden(context.executor, image, name),
        )
    elif asked.problem is not None:
        remedy: Remedy = "build" if asked.other_build else "change"
        yield context.general("image", "block", asked.problem, key=key, fix=asked.fix, remedy=remedy)
    elif not asked.found:
        yield context.general(
            "image",
            "block",
            f"the registry does not have `{name}`",
            key=key,
            fix="load the bundle again: `airferry load`",
            remedy="load",
        )
    else:
        yield from gpu_findings(context, asked.environment)


def _remedy_where_hidden(executor: Executor, image: ReceiptImage, name: str) -> Remedy:
    other = str(reference_for(executor, image)) != name
    return "change" if other or executor.kind != "slurm-pyxis" or image.docker_twin is not None else "build"


def runtime_fix(executor: Executor, image: ReceiptImage, name: str) -> str:
    """Return what helps where the registry hides an image from the executor."""
    expected = reference_for(executor, image)
    if str(expected) != name:
        return f"run.env.container_image={image_for(executor.kind, expected)}"
    if executor.kind != "slurm-pyxis":
        return "let the registry, or the proxy in front of it, answer the runtime"
    if image.docker_twin is not None:
        return "enroot 3.4.1 or newer, given the image by digest"
    return "build with `docker_twin: true` and load again, or use distribution 3, zot or `airferry serve`"


def gpu_findings(context: StepContext, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what an image's own variables say against the driver and the compute capabilities of the site."""
    key = "run.env.container_image"
    cuda, driver = environment.get("CUDA_VERSION", ""), context.site.gpu.driver
    major = re.match(r"(\d{1,4})\.", cuda)
    first = FIRST_DRIVERS.get(int(major[1])) if major else None
    if driver and first and parse_executor_version(driver) < first:
        text = f"the image has CUDA {cuda}, which requires driver {first[0]}.{first[1]} or newer; the site has {driver}"
        yield context.general("gpu", "block", text, key=key, fix="a newer driver, or an image with an older CUDA")
    written = environment.get("TORCH_CUDA_ARCH_LIST", "")
    built = re.findall(r"(?<!\d)(\d{1,4}\.\d{1,4}[a-z]?)(?!\d)(\+PTX)?", written)
    for capability in context.site.gpu.compute_capabilities if built else ():
        wanted = _number(capability)
        exact = any(_number(arch)[0] == wanted[0] and _number(arch) <= wanted for arch, _ptx in built)
        ahead = any(ptx and _number(arch) <= wanted for arch, ptx in built)
        if not exact and not ahead:
            text = f"the image is built for compute capabilities {written}, the site has {capability}"
            yield context.general("gpu", "block", text, key=key, fix="another image, or other GPUs")


def _number(capability: str) -> tuple[int, int]:
    major, _, minor = capability.rstrip("abcdefghijklmnopqrstuvwxyz").partition(".")
    return int(major), int(minor or 0)
