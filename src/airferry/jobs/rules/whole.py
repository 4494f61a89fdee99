"""Findings about a check as a whole, said once and not for each job: a registry that answers nothing, and overlays of
another load. Their `step` is empty. Reads receipts; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from airferry.bundle.receipt import Receipt, read_receipt, receipts_in
from airferry.errors import AirferryError
from airferry.jobs.findings import Finding
from airferry.jobs.rules.site import RegistryImage
from airferry.jobs.submission import parse_image
from airferry.oci.reference import parse_reference
from airferry.plan.step_values import StepValues
from airferry.wording import shell_line


def split_answers(asked: Mapping[str, RegistryImage]) -> tuple[dict[str, RegistryImage], list[Finding]]:
    """Return what registries say of images, without those of a registry that answers none of them and a finding for
    each of these: wrong passwords and lost networks are no fault of an image."""
    by_host: dict[str, dict[str, RegistryImage]] = {}
    for name, answer in asked.items():
        by_host.setdefault(parse_reference(name).registry, {})[name] = answer
    about_images: dict[str, RegistryImage] = {}
    findings = []
    for host, answers in by_host.items():
        first = next(iter(answers.values()))
        if not all(answer.silent and answer.fix == first.fix for answer in answers.values()):
            about_images |= answers
            continue
        text = f"the images could not be looked up: {first.problem}"
        fix = first.fix or "see that this host reaches the registry"
        findings.append(Finding("", "image", "block", "", 1, host, "", text, fix, remedy="as said"))
    return about_images, findings


def stale_overlays(
    values: StepValues, receipt: Receipt, *, receipt_path: Path | None, overlays: Path
) -> Finding | None:
    """Return a finding where a config in a folder of overlays pins an image of another load than the receipt's, None
    where it does not: an image under another digest, or one that another receipt here has."""
    value = values.get("run", "env", "container_image")
    if value is None or not values.path.is_relative_to(overlays):
        return None
    pinned = parse_image(value.text)
    if pinned in _names(receipt):
        return None
    other = _receipt_with(pinned, receipt, [overlays, *([_folder(receipt_path)] if receipt_path else [])])
    repositories = {name.partition("@")[0] for name in _names(receipt)}
    if other is None and ("@" not in pinned or pinned.partition("@")[0] not in repositories):
        return None
    own = receipt_path or Path()
    whose = f"bundle `{other[1].bundle_root}`, receipt `{other[0]}`" if other else "no receipt here"
    text = f"these overlays are of another load ({whose}); the receipt `{own}` is of bundle `{receipt.bundle_root}`"
    again = f"write the overlays again with `{shell_line(['airferry', 'overlays', own, '--out', overlays])}`"
    if other:
        again += (
            f", or check with their receipt: `{shell_line(['airferry', 'check', other[0], '--overlays', overlays])}`"
        )
    return Finding("", "image", "block", "", 1, str(overlays), "", text, again, remedy="as said")


def _names(receipt: Receipt) -> set[str]:
    names: set[str] = set()
    for image in receipt.images:
        names |= {image.pinned, image.reference}
        if image.docker_twin is not None:
            names |= {image.docker_twin.pinned, image.docker_twin.reference}
    return names


def _folder(receipt_path: Path) -> Path:
    return receipt_path if receipt_path.is_dir() else receipt_path.parent


def _receipt_with(pinned: str, receipt: Receipt, folders: list[Path]) -> tuple[Path, Receipt] | None:
    """Return the receipt in some folders that an image is of, and where it is; what cannot be read is left out."""
    for folder in dict.fromkeys(folders):
        try:
            paths = receipts_in(folder)
        except AirferryError:
            continue
        for path in paths:
            try:
                held = read_receipt(path)
            except AirferryError:
                continue
            if held.bundle_root != receipt.bundle_root and pinned in _names(held):
                return path, held
    return None
