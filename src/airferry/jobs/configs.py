"""Config overlays: what makes each step of a loaded bundle run on the far side, without an edit of the catalogue.

An overlay inherits the step's own config and changes two keys: `run.env.mounts` without the checkouts that are baked
into the image, and `run.env.container_image`, pinned by digest; and those that a declared asset is for, which then name
where it is staged. Makes text; writes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airferry.bundle.receipt import RECEIPT_AGAIN, Receipt, ReceiptImage
from airferry.config import Executor, SiteProfile
from airferry.config.submit import NO_COMMAND_HINT, submit_command
from airferry.defaults import COMMANDS_FILE, NODES_FILE, PROFILE_FILE
from airferry.errors import ConfigurationError, Gathering, IntegrityError
from airferry.host.yaml import render_yaml
from airferry.jobs.context import consumed_and_produced
from airferry.jobs.known_assets import StagedValue, StagedValues, assets_of, staged_values
from airferry.jobs.placing import NODE_CA, Placed, about_loopback, access_steps, render_steps
from airferry.jobs.settings import changed_list
from airferry.jobs.submission import (
    NEMOTRON_EXECUTORS,
    image_for,
    names_by_digest,
    profile_name,
    reference_for,
    render_profile,
    submit_of,
)
from airferry.oci.reference import parse_reference
from airferry.plan.catalogue import Catalogue, StepFiles, find_step, parse_target
from airferry.plan.models import Overlay, Target
from airferry.plan.step_config import StepConfigReader, split_mounts
from airferry.plan.step_values import read_step_values
from airferry.wording import comment_line, on_one_line

DEFAULT_CONFIG_NAME = "default"
CONFIGS_MARK = "# Written by `airferry overlays`"
_ACCESS_HEAD = "what lets nodes pull from the registry. For bash; copy the CA, if one is named, to the node first."
UNVERIFIED_SUBMIT = (
    "the submit commands are the bundle's own, and it was loaded without `--root`: read them before you run them"
)
_INTERPOLATION = re.compile(r"(?<!\\)(\\*)\$\{")
_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*([A-Za-z_]\w*)\s*,[^${}]*\}")


@dataclass(frozen=True, slots=True)
class StepOverlay:
    """The overlay of a target for an executor. `path` is relative to the folder of all, None if there is no config."""

    target: str
    executor: str
    image: str
    path: str | None
    config: str | None
    cleared: tuple[str, ...]
    command: str
    staged: Mapping[str, str] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """Return the overlay as plain data."""
        return {
            "target": self.target,
            "executor": self.executor,
            "container_image": self.image,
            "overlay": self.path,
            "config": self.config,
            "cleared_mounts": list(self.cleared),
            "staged": dict(self.staged),
            "command": self.command,
        }


@dataclass(frozen=True, slots=True)
class OverlaySet:
    """All overlays and fragments by their relative paths, a line for each step, and what an operator must know.

    `private_ca` says that the load trusted a CA that was named for its registry.
    """

    steps: tuple[StepOverlay, ...]
    files: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = ()
    private_ca: bool = False


def make_overlays(receipt: Receipt, catalogue: Catalogue, *, site: SiteProfile, out: Path) -> OverlaySet:
    """Return the overlays for each step of a receipt and each executor of the site.

    They inherit by a path relative to where they will be below `out`, so that catalogue and overlays can move together.

    Raises:
        ConfigurationError: the catalogue lacks steps or configs, or mounts repositories that an image has not baked;
            all of that is told.
        IntegrityError: the receipt contradicts itself.
    """
    reader = StepConfigReader()
    submit = submit_of(site, receipt)
    writer = _OverlayWriter(reader, site, out, submit)
    problems = Gathering()
    steps: list[StepOverlay] = []
    texts: dict[str, str] = {}
    unclear: dict[tuple[str, str], None] = {}
    for target in targets_of(receipt):
        with problems.one():
            image = image_of(receipt, target)
            found = find_step(catalogue, with_default(catalogue, target), travelled=True)
            staged = _staged(found, receipt, reader)
            unclear.update(dict.fromkeys((name, found.target.spec) for name in staged.values.unclear))
            for executor in site.executors:
                step, text = writer.overlay(found, image, executor, staged)
                steps.append(step)
                if step.path is not None:
                    texts[step.path] = text
    problems.raise_all()
    notes = [
        f"cannot tell which key of `{target}` is for asset `{name}`: set it on the command line"
        for name, target in unclear
    ]
    if submit == "":
        notes.append(NO_COMMAND_HINT)
    if receipt.submit and site.submit is None and not receipt.root_verified:
        notes.append(UNVERIFIED_SUBMIT)
    registry = parse_reference(f"{receipt.registry}/x").registry
    notes += about_loopback(registry)
    for executor in site.executors:
        own = [step for step in steps if step.executor == executor.kind]
        texts[f"{executor.kind}/{PROFILE_FILE}"] = _fragment(site, executor, submit=submit)
        commands = "".join(f"{step.command}\n" for step in own)
        if access := access_steps(_placed(receipt, site), executor.kind):
            said = "".join(f"{comment_line(note)}\n" for note in about_loopback(registry))
            texts[f"{executor.kind}/{NODES_FILE}"] = f"{CONFIGS_MARK}: {_ACCESS_HEAD}\n{said}\n{render_steps(access)}"
        head = f"{CONFIGS_MARK}: one command a step.\n"
        if submit == "":
            head = f"{CONFIGS_MARK}: image, config and profile of each step.\n{comment_line(NO_COMMAND_HINT)}\n"
        texts[f"{executor.kind}/{COMMANDS_FILE}"] = head + commands
        if not names_by_digest(executor):
            notes.append(f"{executor} does not accept digests, so the overlays use tags: do not move them")
        if submit is None and executor.kind not in NEMOTRON_EXECUTORS:
            notes.append(
                f"`nemotron steps run` has no executor for {executor.kind}; "
                "take the image and the resolved config from the overlays"
            )
    private_ca = receipt.connection is not None and bool(receipt.connection.ca_fingerprints)
    return OverlaySet(tuple(steps), dict(sorted(texts.items())), tuple(notes), private_ca)


def _placed(receipt: Receipt, site: SiteProfile) -> Placed:
    """Return what nodes have to know of the registry; it is asked for by the names of loaded images, not by mirrors."""
    registry = parse_reference(f"{receipt.registry}/x").registry
    insecure = receipt.connection is not None and not receipt.connection.tls
    ca_file = site.node_ca_file or (NODE_CA if site.ca_file else None)
    return Placed(registry, {}, insecure, None if insecure else ca_file, None if insecure else site.ca_file)


def targets_of(receipt: Receipt) -> list[Target]:
    """Return the targets of a receipt that have an image, in its order."""
    named = [parse_target(text) for text in receipt.targets or receipt.steps]
    return [target for target in named if target.spec in receipt.steps or target.step_id in receipt.steps]


def image_of(receipt: Receipt, target: Target) -> ReceiptImage:
    """Return the image that a target runs in.

    Raises:
        IntegrityError: the receipt names an image that it does not list.
    """
    pinned = receipt.steps.get(target.spec) or receipt.steps[target.step_id]
    for image in receipt.images:
        if image.pinned == pinned:
            return image
    raise IntegrityError(
        f"the receipt runs `{target.spec}` in `{pinned}`, which is not one of its images", hint=RECEIPT_AGAIN
    )


def with_default(catalogue: Catalogue, target: Target) -> Target:
    """Return the target with the config that is taken where none is named, if there is one."""
    path = catalogue.steps_folder / target.step_id / "config" / f"{DEFAULT_CONFIG_NAME}.yaml"
    return Target(target.step_id, DEFAULT_CONFIG_NAME) if target.config is None and path.is_file() else target


@dataclass(frozen=True, slots=True)
class _Staged:
    """The values of a config that declared assets are for, and the tree that they are in."""

    values: StagedValues = field(default_factory=StagedValues)
    tree: Mapping[str, Any] = field(default_factory=dict)


def _staged(found: StepFiles, receipt: Receipt, reader: StepConfigReader) -> _Staged:
    if found.config_path is None or not assets_of(receipt.assets, step=found.target.spec):
        return _Staged()
    values = read_step_values(reader, found.config_path, environment={})
    consumes, _produces = consumed_and_produced(found.step_toml)
    return _Staged(staged_values(values, consumes, receipt.assets, step=found.target.spec), values.tree)


@dataclass(frozen=True, slots=True)
class _OverlayWriter:
    """Makes overlays for a site's executors; they will lie below `out`.

    `submit` is the catalogue's own command, see the receipt.
    """

    reader: StepConfigReader
    site: SiteProfile
    out: Path
    submit: str | None

    def overlay(
        self, found: StepFiles, image: ReceiptImage, executor: Executor, staged: _Staged
    ) -> tuple[StepOverlay, str]:
        """Return the overlay of a step for one executor, and its text, which is empty where the step has no config."""
        name = image_for(executor.kind, reference_for(executor, image))
        target = found.target
        profile = profile_name(self.site, executor)
        if found.config_path is None:
            command = submit_command(
                target.step_id,
                config=None,
                profile=profile,
                overrides={"run.env.container_image": name},
                template=self.submit,
            )
            return StepOverlay(target.spec, executor.kind, name, None, None, (), command), ""
        path = f"{executor.kind}/{target.step_id}/{target.config}.yaml"
        folder = (self.out / path).parent.absolute()
        changes: dict[str, Any] = {"container_image": name}
        baked, kept = _split(found.config_path, self.reader)
        if baked:
            _check_baked(found, image, baked)
            changes["mounts"] = list(kept)
        document = {"defaults": os.path.relpath(found.config_path.absolute(), folder), "run": {"env": changes}}
        for item in staged.values.found:
            _put(document, staged.tree, item)
        notes = [
            f"Image {image.image}; the rest is as in the config that it inherits.",
            *(f"Baked, so not cloned: {overlay.url} at {overlay.ref} in {overlay.target}" for overlay in baked),
            *(f"Staged: {item.value.name} is the asset {item.asset}" for item in staged.values.found),
        ]
        head = [on_one_line(f"{CONFIGS_MARK} for {target.spec} on {executor}."), *map(comment_line, notes)]
        text = "\n".join(head) + "\n" + render_yaml(document, width=1000)
        step = StepOverlay(
            target=target.spec,
            executor=executor.kind,
            image=name,
            path=path,
            config=str(found.config_path),
            cleared=tuple(f"{overlay.key},{overlay.target}" for overlay in baked),
            command=submit_command(
                target.step_id,
                config=str((self.out / path).absolute()),
                profile=profile,
                overrides={},
                template=self.submit,
                image=name,
            ),
            staged={item.value.name: item.target for item in staged.values.found},
        )
        return step, text


def _put(document: dict[str, Any], tree: Mapping[str, Any], item: StagedValue) -> None:
    """Put the place of an asset into the document of an overlay; a list that it is in is written whole.

    A variable that the value reads still wins, the place being its default then.
    """
    raw = str(item.value.raw)
    reads = _VARIABLE.fullmatch(raw.strip())
    plain = reads and not set(item.target) & set(",{}'\"\\$")
    text = f"${{oc.env:{reads[1]},{item.target}}}" if reads and plain else as_literal(item.target)
    key = item.value.key
    place = next((number for number, part in enumerate(key) if isinstance(part, int)), len(key))
    node = document
    for part in key[: place - 1]:
        node = node.setdefault(str(part), {})
    last = str(key[place - 1])
    if place == len(key):
        node[last] = text
    elif last not in node:
        node[last] = changed_list(tree, key, text)
    else:
        inner: Any = node[last]
        for part in key[place:-1]:
            inner = inner[part]
        inner[key[-1]] = text


def as_literal(text: str) -> str:
    """Return a text as a value that OmegaConf reads as that text: `${` in it begins no interpolation."""
    return _INTERPOLATION.sub(lambda found: found[1] * 2 + "\\${", text)


def _split(config: Path, reader: StepConfigReader) -> tuple[Sequence[Overlay], Sequence[Any]]:
    try:
        return split_mounts(reader.read(config).mounts)
    except ValueError as error:
        raise ConfigurationError(
            f"{config}: {error}", hint="write it as Nemotron does: `${auto_mount:git+URL@REF,TARGET}`"
        ) from error


def _check_baked(found: StepFiles, image: ReceiptImage, wanted: Iterable[Overlay]) -> None:
    """Refuse to clear what the image does not hold: the step would miss it, hours later."""
    baked = {(item.url, item.ref, item.target) for item in image.overlays}
    for overlay in wanted:
        if (overlay.url, overlay.ref, overlay.target) not in baked:
            raise ConfigurationError(
                f"{found.config_path}: mounts `{overlay.key}` at `{overlay.target}`, which is not baked into "
                f"`{image.image}`",
                hint="this is not the catalogue that the bundle was built from; omit `--source` to use "
                "the one in the bundle, if it contains one, or build the bundle again",
            )


def _fragment(site: SiteProfile, executor: Executor, *, submit: str | None) -> str:
    """Return the file that defines the profile which the commands name. `submit` is the catalogue's, see the receipt.

    `env.toml` and its variable are Nemotron's: another catalogue's command may read profiles from elsewhere.
    """
    if submit is None:
        head = (
            f"{CONFIGS_MARK}: append to `env.toml`, or name this file in NEMOTRON_ENV_FILE together with\n"
            "# the profile that it extends."
        )
    else:
        head = (
            f"{CONFIGS_MARK}: the profile that the commands in `submit.txt` name. Put its settings where\n"
            "# the catalogue's own command reads profiles."
        )
    return f"{head} Secrets do not belong here: the scheduler injects them.\n\n" + render_profile(site, executor)
