"""Which targets share an execution image, and what it is called.

Membership, order, suffixes, names and tags are those that Nemotron's users have in their submit scripts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from airferry.config import Config, ExecutionImage
from airferry.host.canonical import plain_data
from airferry.oci.platform import Platform, host
from airferry.oci.reference import parse_reference
from airferry.plan.models import Candidate, GroupPlan, LauncherPlan, Origin, Overlay, StepPlan, Target
from airferry.plan.step_config import CLASH_HINT, find_clash, make_overlay, merge_overlays
from airferry.wording import near_names

_RANK: dict[Origin, int] = {"required": 0, "step": 1, "catalogue": 2, "reported": 3}
_REF_NAME = re.compile(
    r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*)*"
)
"""The names that the image-spec allows in `index.json`; containers/image refuses a whole layout for any other."""

_Variant = tuple[tuple[Platform, ...], bool, tuple[tuple[str, str], ...]]


@dataclass
class _Draft:
    """A group while steps are still being added to it."""

    base_key: str
    overlays: tuple[Overlay, ...]
    platforms: tuple[Platform, ...]
    pip_no_deps: bool
    env: Mapping[str, str]
    first: bool
    steps: list[StepPlan] = field(default_factory=list)
    images: dict[str, ExecutionImage] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        payload: dict[str, Any] = {
            "base_image": self.base_key,
            "repo_overlays": plain_data(self.overlays),
        }
        if not self.first:
            payload["platforms"] = [str(platform) for platform in self.platforms]
            payload["pip_no_deps"] = self.pip_no_deps
            # left out where there is none, so that images of plans from before `env:` keep their names
            if self.env:
                payload["env"] = dict(self.env)
        return short_hash(payload)


def short_hash(value: Any) -> str:
    """Return the first 8 hex digits of the SHA-256 of a value's compact JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:8]


def image_platforms(chosen: tuple[Platform, ...], image: tuple[Platform, ...], config: Config) -> tuple[Platform, ...]:
    """Return what an image is built for: as asked for, else as it says, else as the file says, else this host."""
    return tuple(dict.fromkeys(chosen or image or config.platforms or (host(),)))


def make_groups(config: Config, steps: Iterable[StepPlan], *, platforms: tuple[Platform, ...]) -> tuple[GroupPlan, ...]:
    """Group targets by base image and overlays, in the order in which they come.

    Raises:
        ConfigurationError: a step has no image, an image no definition, two overlays of a group want one target, two
            images of a group contradict each other.
    """
    drafts: dict[str, dict[_Variant, _Draft]] = {}
    ordered: list[_Draft] = []
    for step in steps:
        name, image = image_of_step(config, step.target)
        overlays = merge_overlays(
            step.overlays, (make_overlay(item.url, item.ref, item.target) for item in image.overlays)
        )
        if clash := find_clash(overlays):
            raise config.error(
                "execution_images",
                name,
                "overlays",
                reason=f"two overlays use the target `{clash[1].target}`: `{clash[0].key}` and `{clash[1].key}`, for "
                f"`{step.target.spec}`",
                hint=CLASH_HINT,
            )
        family = drafts.setdefault(_group_key(image.base_image.key, overlays), {})
        wanted = image_platforms(platforms, image.platform_choice, config)
        variant = (tuple(sorted(wanted)), image.pip_no_deps, tuple(sorted(image.env.items())))
        draft = family.get(variant)
        if draft is None:
            draft = _Draft(image.base_image.key, overlays, wanted, image.pip_no_deps, image.env, first=not family)
            family[variant] = draft
            ordered.append(draft)
        draft.steps.append(step)
        draft.images.setdefault(name, image)
    return tuple(_finish(config, draft) for draft in ordered)


def image_of_step(config: Config, target: Target) -> tuple[str, ExecutionImage]:
    """Return the image that a target runs in, and its name.

    Raises:
        ConfigurationError: the step has none, or one that is not defined.
    """
    step_id = target.step_id
    entry = config.step_execution_images.get(step_id)
    if entry is None:
        near = near_names(step_id, config.step_execution_images, cutoff=0.9)
        hint = f"add `{step_id}: <name>`, with one of " + (
            ", ".join(f"`{name}`" for name in config.execution_images) or "the names under `execution_images`"
        )
        raise config.error(
            "step_execution_images",
            *near,
            reason=f"step `{step_id}` has no entry",
            hint=hint + (f"; or correct `{near[0]}` if it means this step" if near else ""),
        )
    image = config.execution_images.get(entry.execution_image)
    if image is None:
        raise config.error(
            "step_execution_images",
            step_id,
            reason=f"there is no image `{entry.execution_image}` under `execution_images`",
            hint="there are " + (", ".join(f"`{name}`" for name in config.execution_images) or "none"),
        )
    return entry.execution_image, image


def _group_key(base_key: str, overlays: Iterable[Overlay]) -> str:
    ordered = sorted(overlays, key=lambda item: (item.target, item.url, item.ref, item.repo))
    return json.dumps([base_key, plain_data(ordered)], sort_keys=True)


def _finish(config: Config, draft: _Draft) -> GroupPlan:
    names = tuple(sorted(draft.images))
    suffix = draft.suffix
    if len(names) == 1:
        image = draft.images[names[0]]
        stem = names[0]
        tag = image.tag or config.source.image_name("execution", _sanitise(stem))
        tar = image.tar or f"execution-{_sanitise(stem)}.tar"
    else:
        stem = "-".join(_sanitise(name) for name in names)
        tag, tar = config.source.image_name("joined", stem), f"execution-{stem}-image.tar"
    images = draft.images
    requirements: dict[str, str] = {}
    for name in names:
        for module, requirement in images[name].requirements.items():
            if requirements.setdefault(module, requirement) != requirement:
                raise config.error(
                    "execution_images",
                    name,
                    "requirements",
                    module,
                    reason=f"`{requirement}`, and an image on the same base says `{requirements[module]}`",
                    hint="images with the same base and overlays become one image; use the same value",
                )
    required = {module: name for name in names for module in images[name].required_imports}
    return GroupPlan(
        name=f"{stem}-{suffix}",
        image_names=names,
        base_image=images[names[0]].base_image,
        platforms=draft.platforms,
        tag=tag_with_suffix(tag, suffix),
        tar=tar_with_suffix(tar, suffix),
        steps=tuple(dict.fromkeys(step.target.step_id for step in draft.steps)),
        targets=tuple(step.target.spec for step in draft.steps),
        pip_no_deps=draft.pip_no_deps,
        required_imports=tuple(sorted(required)),
        requirements=requirements,
        python=_agreed(config, images, "python"),
        containerfile=_agreed(config, images, "containerfile"),
        overlays=draft.overlays,
        candidates=_candidates(config, draft, required),
        compression=config.effective_compression,
        env=draft.env,
    )


def _agreed(config: Config, images: dict[str, ExecutionImage], key: str) -> Any:
    """Return what all images of a group say for a key."""
    names = list(images)
    first = getattr(images[names[0]], key)
    for name in names[1:]:
        other = getattr(images[name], key)
        if other != first:
            raise config.error(
                "execution_images",
                name,
                key,
                reason=f"`{other}`, and `{names[0]}`, which is on the same base, says `{first}`",
                hint="images with the same base and overlays become one image; use the same value",
            )
    return first


def _candidates(config: Config, draft: _Draft, required: dict[str, str]) -> tuple[Candidate, ...]:
    found = {
        module: Candidate(
            module, "required", config.path.name, config.line("execution_images", name, "required_imports")
        )
        for module, name in required.items()
    }
    for step in draft.steps:
        for candidate in step.candidates:
            known = found.get(candidate.module)
            if known is None or _RANK[candidate.origin] < _RANK[known.origin]:
                found[candidate.module] = candidate
    return tuple(found[module] for module in sorted(found))


def tag_with_suffix(tag: str, suffix: str) -> str:
    """Put a suffix at the end of an image's name, before its tag and digest; a port is none of these."""
    image, at, digest = tag.partition("@")
    folder, slash, last = image.rpartition("/")
    name, colon, version = last.partition(":")
    return f"{folder}{slash}{name}-{suffix}{colon}{version}{at}{digest}"


def tar_with_suffix(tar: str, suffix: str) -> str:
    """Put a suffix at the end of a file's name, before its last extension."""
    path = PurePosixPath(tar)
    return str(path.with_name(f"{path.stem}-{suffix}{path.suffix}"))


def _sanitise(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_.-]+", "-", name).strip("-").lower() or "image"


def check_images(config: Config, groups: Iterable[GroupPlan], launcher: LauncherPlan | None) -> None:
    """Check that every image has a name that all tools take and an archive name, both its own, and its Containerfile.

    Raises:
        ConfigurationError: it is not so.
    """
    images: list[tuple[tuple[str, ...], str, GroupPlan | LauncherPlan]] = [
        (("execution_images", group.image_names[0]), f"image `{group.name}`", group) for group in groups
    ]
    if launcher is not None:
        images.append((("launcher_image",), "the launcher image", launcher))
    tags: dict[str, str] = {}
    archives: dict[str, str] = {}
    for key, who, image in images:
        name = str(parse_reference(image.tag))
        if not _REF_NAME.fullmatch(name):
            raise config.error(
                *(*key, "tag"),
                reason=f"{who}: `{image.tag}`: Podman, Skopeo and Buildah refuse a layout with this name in it",
                hint="between letters and digits may be one of `-`, `.`, `_`, or `--`; not `__`",
            )
        if image.containerfile is not None and not image.containerfile.is_file():
            raise config.error(
                *(*key, "containerfile"),
                reason=f"`{image.containerfile}` is missing",
                hint="paths are relative to this file",
            )
        for part, kind, value, taken in (
            ("tag", "tag", name, tags),
            ("tar", "archive name", str(PurePosixPath(image.tar)), archives),
        ):
            if (other := taken.setdefault(value, who)) != who:
                raise config.error(
                    *(*key, part),
                    reason=f"{other} and {who} have the same {kind} `{value}`",
                    hint=f"give one of them another `{part}`",
                )
