"""What a check returns: the findings for each executor joined, and what to do about them. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from airferry.errors import FindingsError
from airferry.host.canonical import plain_data
from airferry.jobs.findings import LEVELS, Finding
from airferry.wording import counted


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All findings, the worst of each job first, and the jobs that were looked at: a step with a config each.

    `overlays_help`: overlays were not looked at, and could be. `executors` are those that were checked for, `left_out`
    says why others of the site were not; `images_asked` that the registry was asked for the images.
    """

    steps: tuple[str, ...]
    findings: tuple[Finding, ...]
    overlays_help: bool = False
    executors: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    images_asked: bool = True

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """The findings that keep a step from running inside."""
        return tuple(finding for finding in self.findings if finding.level == "block")

    def to_document(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "steps": list(self.steps),
            "counts": {level: sum(finding.level == level for finding in self.findings) for level in LEVELS},
            "findings": plain_data(self.findings),
            "executors": list(self.executors),
            "not_checked": dict(self.left_out),
            "images_asked": self.images_asked,
        }

    def raise_if_blocked(self) -> None:
        """Do nothing if nothing blocks.

        Raises:
            FindingsError: something does; `report` of it is this report.
        """
        if blocking := self.blocking:
            named = {finding.step for finding in blocking}
            blocked = len(self.steps) if "" in named else len(named)
            jobs = counted(len(self.steps), "job")
            whole = f"{blocked} of {jobs} would fail" if blocked < len(self.steps) else f"{jobs} would fail"
            raise FindingsError(
                f"{whole}{self._on(blocking)}: {counted(len(blocking), 'blocking finding')}",
                hint=_closing_hint(blocking, overlays_help=self.overlays_help),
                report=self,
            )

    @property
    def unblocked(self) -> tuple[str, ...]:
        """The executors that nothing blocks a job on."""
        blocked = {kind for finding in self.blocking for kind in finding.executors}
        return tuple(kind for kind in self.executors if kind not in blocked)

    def _on(self, findings: Sequence[Finding]) -> str:
        """Return which executors findings are about, where several were checked for."""
        if len(self.executors) < 2:
            return ""
        named = {kind for finding in findings for kind in finding.executors}
        return f" on {' and '.join(kind for kind in self.executors if kind in named)}"


def _closing_hint(blocking: Sequence[Finding], *, overlays_help: bool) -> str:
    """Return what to do about findings: what needs another build is named first, as no change here helps."""
    remedies = {finding.remedy for finding in blocking}
    parts: list[str] = []
    parts += dict.fromkeys(str(finding.fix) for finding in blocking if finding.remedy == "as said")
    if "build" in remedies:
        parts.append("build the bundle again as the findings say, and load it")
    elif "load" in remedies:
        parts.append("load the bundle again")
    by_overlays = sum(finding.by_overlays for finding in blocking) if overlays_help else 0
    if by_overlays:
        which = f"{by_overlays} of them" if by_overlays < len(blocking) else "all of them"
        parts.append(f"the configs that `airferry overlays` writes resolve {which}: check with `--overlays DIR`")
    if "change" in remedies and by_overlays < len(blocking):
        rest = "for the rest, " if parts else ""
        parts.append(f"{rest}set the overrides, or change the site profile and `env.toml`")
    return "; ".join(parts) + "; then check again"


def joined(
    reports: Sequence[CheckReport],
    *,
    whole: Sequence[Finding] = (),
    left_out: Mapping[str, str] | None = None,
    images_asked: bool = True,
) -> CheckReport:
    """Return the reports for each executor as one: what holds for several executors is one finding that names them.

    `whole` are findings about no job of one executor alone: each key's first one counts, for all executors.
    """
    kinds = tuple(kind for report in reports for kind in report.executors)
    found: dict[Finding, tuple[str, ...]] = {}
    for finding in (item for report in reports for item in report.findings):
        key = replace(finding, executors=())
        found[key] = tuple(dict.fromkeys((*found.get(key, ()), *finding.executors)))
    steps = tuple(dict.fromkeys(step for report in reports for step in report.steps))
    order = {step: number for number, step in enumerate(steps)}
    findings = [replace(finding, executors=executors) for finding, executors in found.items()]
    first = {finding.key: finding for finding in reversed(whole)}
    findings += [replace(finding, executors=kinds) for finding in first.values()]
    findings.sort(key=lambda item: (order.get(item.step, -1), LEVELS.index(item.level)))
    return CheckReport(
        steps,
        tuple(findings),
        overlays_help=any(report.overlays_help for report in reports),
        executors=kinds,
        left_out=dict(left_out or {}),
        images_asked=images_asked,
    )
