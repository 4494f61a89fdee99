"""A plan in an operator's words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from airferry.near.predict import Prediction
from airferry.plan.models import GroupPlan, Plan, PlanWarning, base_document
from airferry.wording import counted, size_text

WIDTH = 120


def describe_plan(plan: Plan, *, verbose: bool = False) -> list[str]:
    """Return a plan as lines: stages, images with base, steps, platforms and overlays, step → image, and warnings.

    What is imported under conditions is counted, or listed where `verbose`; warnings that depend on values of configs
    likewise.
    """
    lines = ["stages: " + ", ".join(plan.stages)]
    lines += _list("targets: ", (step.target.spec for step in plan.steps), indent=9)
    for step in plan.steps:
        if step.target.path is not None:
            more = len(step.config_files) - 1
            inherits = f", which inherits from {counted(more, 'file')}" if more else ""
            lines.append(f"own config: {step.target.spec} is `{step.target.path}`{inherits}")
    if plan.launcher is not None:
        lines += ["", f"launcher {plan.launcher.tag}", f"  base       {_base(plan.launcher.base_image)}"]
        lines.append("  platforms  " + ", ".join(map(str, plan.launcher.platforms)))
    for group in plan.groups:
        lines += ["", f"image {group.tag}", *_group_lines(group, verbose=verbose)]
    if plan.step_images:
        width = max(map(len, plan.step_images))
        lines += ["", "selected execution images:"]
        lines += [f"  {step:<{width}}  {image}" for step, image in plan.step_images.items()]
    if plan.warnings:
        lines += ["", "warnings:", *_warning_lines(plan.warnings, verbose=verbose)]
    return lines


def describe_prediction(predicted: Prediction, *, verbose: bool = False) -> list[str]:
    """Return what a build takes as lines: at most, or, where something is not known, at least."""
    if not predicted.unknown:
        return [
            "predicted:",
            f"  in         {size_text(predicted.in_bytes)} to fetch",
            f"  out        at most {size_text(predicted.out_bytes)}",
            f"  disk       at most {size_text(predicted.disk_bytes())} in addition to what is used now",
        ]

    def least(size_bytes: int) -> str:
        return f"at least {size_text(size_bytes)}" if size_bytes else "not known yet"

    lines = [
        "predicted:",
        f"  in         {least(predicted.in_bytes)}" + (" to fetch" if predicted.in_bytes else ""),
        f"  out        {least(predicted.least_out_bytes)}",
        f"  disk       {least(predicted.least_disk_bytes)}"
        + (" in addition to what is used now" if predicted.least_disk_bytes else ""),
        *_list("  not known  ", [predicted.unknown_text]),
    ]
    return lines + [f"             {what}" for what in predicted.unknown if verbose]


def warning_text(warning: PlanWarning) -> str:
    """Return a warning as one line: where, what, and for how many targets."""
    more = f" and {counted(len(warning.also), 'other place')}" if warning.also else ""
    return f"{warning.place}{more}: {warning.message}"


def _warning_lines(warnings: Iterable[PlanWarning], *, verbose: bool) -> list[str]:
    lines: list[str] = []
    left_out = 0
    for warning in warnings:
        if not (warning.certain or verbose):
            left_out += 1
            continue
        lines += _list("  ", [warning_text(warning)], indent=4)
        if verbose and warning.also:
            lines += _list("    also   ", warning.also, indent=11)
        if warning.targets:
            lines += _list("    steps  ", warning.targets, indent=11)
        lines += _list("    fix    ", [warning.hint], indent=11)
    if left_out:
        places = counted(left_out, "place")
        lines.append(f"  in {places} of the steps' code, configs decide what is downloaded; `--verbose` lists them")
    return lines


def _group_lines(group: GroupPlan, *, verbose: bool) -> list[str]:
    lines = [f"  base       {_base(group.base_image)}", *_list("  steps      ", group.targets)]
    lines.append("  platforms  " + ", ".join(map(str, group.platforms)))
    lines += [f"  overlay    {overlay.target} from {overlay.url} at {overlay.ref}" for overlay in group.overlays]
    wanted = sorted({item.module for item in group.candidates if item.origin != "reported"})
    reported = sorted({item.module for item in group.candidates if item.origin == "reported"} - set(wanted))
    if wanted:
        lines += _list("  imports    ", wanted)
    if reported and verbose:
        lines += _list("  optional   ", reported, end=" (imported conditionally, not installed)")
    elif reported:
        lines.append(f"  optional   {counted(len(reported), 'module')} imported conditionally, not installed")
    return lines


def _list(label: str, items: Iterable[str], *, end: str = "", indent: int = 13) -> list[str]:
    """Return items after a label, in lines that a terminal shows whole, none of them torn."""
    return textwrap.wrap(
        label + ", ".join(items) + end,
        width=WIDTH,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _base(base: object) -> str:
    document = base_document(base)  # type: ignore[arg-type]
    if isinstance(document, str):
        return document
    spec = document["bootstrap"]
    return f"Debian {spec['suite']} with {', '.join(spec.get('packages', [])) or 'no further packages'}"
