"""A plan in an operator's words."""

from __future__ import annotations

from airferry.plan.models import GroupPlan, Plan, base_document


def describe_plan(plan: Plan) -> list[str]:
    """Return a plan as lines: stages, images with base, steps, platforms and overlays, and at the end step → image."""
    lines = ["stages: " + ", ".join(plan.stages)]
    lines.append("targets: " + ", ".join(step.target.spec for step in plan.steps))
    if plan.launcher is not None:
        lines += ["", f"launcher {plan.launcher.tag}", f"  base       {_base(plan.launcher.base_image)}"]
        lines.append("  platforms  " + ", ".join(map(str, plan.launcher.platforms)))
    for group in plan.groups:
        lines += ["", f"image {group.tag}", *_group_lines(group)]
    if plan.step_images:
        width = max(map(len, plan.step_images))
        lines += ["", "selected execution images:"]
        lines += [f"  {step:<{width}}  {image}" for step, image in plan.step_images.items()]
    return lines


def _group_lines(group: GroupPlan) -> list[str]:
    lines = [f"  base       {_base(group.base_image)}", f"  steps      {', '.join(group.targets)}"]
    lines.append("  platforms  " + ", ".join(map(str, group.platforms)))
    lines += [f"  overlay    {overlay.target} from {overlay.url} at {overlay.ref}" for overlay in group.overlays]
    wanted = sorted({item.module for item in group.candidates if item.origin != "reported"})
    reported = sorted({item.module for item in group.candidates if item.origin == "reported"} - set(wanted))
    if wanted:
        lines.append("  imports    " + ", ".join(wanted))
    if reported:
        lines.append("  reported   " + ", ".join(reported) + " (imported under conditions; not installed)")
    return lines


def _base(base: object) -> str:
    document = base_document(base)  # type: ignore[arg-type]
    if isinstance(document, str):
        return document
    spec = document["bootstrap"]
    return f"Debian {spec['suite']} with {', '.join(spec.get('packages', [])) or 'no further packages'}"
