"""What a check found: each with the step, the file, the key, and what to type. Values only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Level = Literal["block", "warn", "note"]
FindingKind = Literal[
    "artifact",
    "asset",
    "endpoint",
    "git",
    "gpu",
    "huggingface",
    "image",
    "input",
    "mount",
    "offline",
    "output",
    "platform",
    "secret",
    "startup",
    "url",
    "value",
    "variable",
]
# what takes a finding back: a change on the far side, another load, another build on the near side, or what `fix` says
Remedy = Literal["change", "load", "build", "as said"]
OVERLAYS_WRITE_IT = "which `airferry overlays` writes"
LEVELS: tuple[Level, ...] = ("block", "warn", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a step: `block` keeps it from running inside, `warn` may, `note` is to be known.

    An empty `step` stands for all of them.

    `value` never holds a secret. `fix` is an override or setting to type; `also` are other keys that say the same.
    `remedy` is where the fix has to be made. `executors` are those of the site that it holds for.
    """

    step: str
    kind: FindingKind
    level: Level
    file: str
    line: int
    key: str
    value: str
    text: str
    fix: str | None = None
    also: tuple[str, ...] = ()
    remedy: Remedy = "change"
    executors: tuple[str, ...] = ()

    @property
    def by_overlays(self) -> bool:
        """Whether the config that `airferry overlays` writes for the job takes the finding back."""
        pins = self.kind == "image" and (self.fix or "").startswith("run.env.container_image=")
        return pins or (self.kind == "git" and OVERLAYS_WRITE_IT in (self.fix or ""))


def merge_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings with those of one step that say the same of one value made one; the worst first."""
    found: dict[tuple[str, ...], Finding] = {}
    for finding in findings:
        key = (finding.step, finding.kind, finding.level, finding.file, finding.value, finding.text)
        known = found.get(key)
        if known is None:
            found[key] = finding
        elif finding.key != known.key and finding.key not in known.also:
            found[key] = replace(known, also=(*known.also, finding.key))
    return sorted(found.values(), key=lambda item: (item.step, LEVELS.index(item.level)))
