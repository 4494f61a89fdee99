"""Rules about what surrounds a config: its image, its variables and start commands, CPU and GPU of the site."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from airferry.config.site import parse_version
from airferry.errors import AirferryError
from airferry.oci.platform import parse_platform
from airferry.oci.reference import parse_reference
from airferry.plan.step_values import StepValue
from airferry.site.findings import Finding
from airferry.site.step_context import StepContext, masked
from airferry.site.submission import OFFLINE_VARIABLES, image_for, parse_image, reference_for

# the first driver that runs programs built for a CUDA major version (CUDA compatibility guide, "minor version")
FIRST_DRIVERS = {11: (450, 80), 12: (525, 60), 13: (580, 0)}
_DOWNLOADS = re.compile(
    r"\b(pip3?|uv|conda|mamba|apt-get|apt|dnf|yum|npm|git\s+clone|git\s+fetch|curl|wget|huggingface-cli|hf\s+download)\b"
)
_BOOTSTRAP = re.compile(r"\b_bootstrap\.\w+_runtime\b")  # the catalogue's modules that make an environment by pip
_PYTHON_INSTALL = re.compile(r"\b(pip3?|uv)\b")
_EXTRAS = "is installed by pip when the job starts; without an index that takes minutes and fails unseen"
_OFF = frozenset({"0", "false", "no", "off", ""})
_VARIABLES_OF_SERVICES = {
    "HF_HUB_OFFLINE": "huggingface",
    "TRANSFORMERS_OFFLINE": "huggingface",
    "HF_DATASETS_OFFLINE": "huggingface",
    "WANDB_MODE": "wandb",
}


@dataclass(frozen=True, slots=True)
class RegistryImage:
    """An image as the registry has it: None for what it lacks. `problem` says why it could not be asked."""

    found: bool
    environment: Mapping[str, str]
    problem: str | None = None


def site_findings(context: StepContext, images: Mapping[str, RegistryImage]) -> Iterator[Finding]:
    """Yield what is to be said about a step's image, variables, start commands, CPU and GPU."""
    yield from _image(context)
    yield from _other_images(context)
    yield from _artifacts(context)
    yield from _offline(context)
    yield from _startup(context)
    yield from _profile_values(context)
    if context.image is not None:
        yield from _platform(context)
        if (asked := images.get(context.image.pinned)) is not None:
            yield from _in_registry(context, asked)


def _image(context: StepContext) -> Iterator[Finding]:
    value = context.values.get("run", "env", "container_image")
    expected, accepted = None, set()
    if context.image is not None:
        reference = reference_for(context.executor, context.image)
        expected, accepted = image_for(context.executor.kind, reference), {context.image.pinned, str(reference)}
    fix = f"run.env.container_image={expected or 'IMAGE-OF-THE-RECEIPT'}"
    if value is not None and value.text:
        if parse_image(value.text) in accepted:
            return
        if context.image is None and _inside(context, value.text):
            return
        yield context.finding(
            value, "image", "block", "is not the loaded image, and beats the one of the profile", fix=fix
        )
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
            yield context.finding(value, "image", "warn", "is an image outside", fix=f"{value.name}=IMAGE-INSIDE")


def _artifacts(context: StepContext) -> Iterator[Finding]:
    """Yield artifact references, unless a manifest root on storage resolves them without a service."""
    tables = context.profile.source.tables if context.profile else {}
    artifacts = tables.get("artifacts")
    if (isinstance(artifacts, dict) and "manifest" in artifacts) or context.site.mirrors.wandb:
        return
    for value in context.values.values:
        if value.is_artifact:
            text = "is looked up in an artifact service when the step runs"
            fix = f"{value.name}=/PATH/ON/A/MOUNT, or [artifacts.manifest] in env.toml"
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
            yield context.finding(written, "offline", "block", reason, fix=fix)
        else:
            yield context.in_profile("offline", "block", reason, key=("env_vars", name), value=text, fix=fix)
    if context.site.mirrors.huggingface and context.environment.get("HF_HUB_OFFLINE", "1") not in _OFF:
        reason = "the site has a mirror of the Hub, and the image stays offline unless its variables are taken back"
        fix = f"run.env.env_vars.HF_HUB_OFFLINE=0 run.env.env_vars.HF_ENDPOINT={context.site.mirrors.huggingface}"
        yield context.general("offline", "warn", reason, key="run.env.env_vars.HF_HUB_OFFLINE", fix=fix)


def _downloads(context: StepContext, command: str) -> bool:
    if _BOOTSTRAP.search(command):
        return context.site.mirrors.packages is None
    found = _DOWNLOADS.search(command)
    return found is not None and not (context.site.mirrors.packages and _PYTHON_INSTALL.search(command))


def _startup(context: StepContext) -> Iterator[Finding]:
    text = "downloads when the job starts"
    for value in context.values.values:
        if {"startup_commands", "run_command"} & set(value.key) and _downloads(context, value.text):
            start = "startup_commands" in value.key
            fix = "run.env.startup_commands=[]" if start else f"{value.name}='python -m MODULE --config {{config}}'"
            yield context.finding(value, "startup", "block", text, fix=fix)
        if "pip_extras" in value.key and value.text and not context.site.mirrors.packages:
            parent = ".".join(str(part) for part in value.key[: value.key.index("pip_extras") + 1])
            yield context.finding(value, "startup", "warn", _EXTRAS, fix=f"{parent}=[]")
    if context.profile is not None:
        extras = context.profile.values.get("pip_extras")
        if isinstance(extras, list) and extras and not context.site.mirrors.packages:
            shown = " ".join(map(str, extras))
            fix = "run.env.pip_extras=[]"
            yield context.in_profile("startup", "warn", _EXTRAS, key=("pip_extras",), value=shown, fix=fix)
        run = context.profile.values.get("run_command")
        if isinstance(run, str) and _downloads(context, run):
            fix = "run.env.run_command='python -m MODULE --config {config}'"
            yield context.in_profile("startup", "block", text, key=("run_command",), value=run, fix=fix)
    commands = (context.profile.values.get("startup_commands") if context.profile else None) or []
    for index, command in enumerate(commands if isinstance(commands, list) else [commands]):
        if isinstance(command, str) and _downloads(context, command):
            yield context.in_profile(
                "startup",
                "block",
                text,
                key=("startup_commands", index),
                value=command,
                fix="run.env.startup_commands=[], as the image has what the step needs",
            )


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
                "a secret stands in a file",
                key=("env_vars", name),
                value="***",
                fix=f"{name} = '${{oc.env:{name}}}', and replace the secret: it is known now",
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
        )


def _in_registry(context: StepContext, asked: RegistryImage) -> Iterator[Finding]:
    key = "run.env.container_image"
    assert context.image is not None
    if asked.problem is not None:
        yield context.general("image", "block", asked.problem, key=key)
    elif not asked.found:
        yield context.general(
            "image",
            "block",
            f"the registry does not hold `{context.image.pinned}`",
            key=key,
            fix="load the bundle again: `airferry load`",
        )
    else:
        yield from gpu_findings(context, asked.environment)


def gpu_findings(context: StepContext, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what an image's own variables say against the driver and the compute capabilities of the site."""
    key = "run.env.container_image"
    cuda, driver = environment.get("CUDA_VERSION", ""), context.site.gpu.driver
    major = re.match(r"(\d+)\.", cuda)
    first = FIRST_DRIVERS.get(int(major[1])) if major else None
    if driver and first and parse_version(driver) < first:
        text = f"the image has CUDA {cuda}, which needs a driver from {first[0]}.{first[1]}; the site has {driver}"
        yield context.general("gpu", "block", text, key=key, fix="a newer driver, or an image with an older CUDA")
    written = environment.get("TORCH_CUDA_ARCH_LIST", "")
    built = re.findall(r"(\d+\.\d+[a-z]?)(\+PTX)?", written)
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
