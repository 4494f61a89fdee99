"""`rehearsal:` of `airgap.yaml`: how steps are tried before sealing, and which attempts to reach out are known."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictInt

from airferry.config.fields import StrictModel, Text, VariableName

RehearsalLevel = Literal["image", "imported", "config", "started"]
DEFAULT_TIME_LIMIT_S = 120
_PLACE = re.compile(r"(\[[0-9a-f:.]+\]|(\*\.)?[A-Za-z0-9_.-]+)(:[0-9]{1,5})?")


def _allowed(value: str) -> str:
    if not _PLACE.fullmatch(value):
        raise ValueError(f"`{value}`: expected `HOST`, `*.HOST` or either with `:PORT`")
    return value.lower()


Allowed = Annotated[str, AfterValidator(_allowed)]
Seconds = Annotated[StrictInt, Field(ge=1, le=86400)]


class StepRehearsal(StrictModel):
    """How one step, or one target, is tried."""

    command: Annotated[
        tuple[Text, ...] | None,
        Field(min_length=1, description="Instead of `{python} {step} --config {config}`; those words are replaced."),
    ] = None
    env: dict[VariableName, str] = Field(
        default_factory=dict, description="Environment variables, over those of all steps."
    )
    allow: Annotated[tuple[Allowed, ...], Field(description="More hosts that this step may try to reach.")] = ()
    time_limit_s: Annotated[Seconds | None, Field(description="Seconds after which the step has run long enough.")] = (
        None
    )
    least: Annotated[RehearsalLevel | None, Field(description="How far it must come.")] = None


class RehearsalChoice(StrictModel):
    """How steps are tried before sealing, in a network that leads nowhere."""

    allow: Annotated[
        tuple[Allowed, ...],
        Field(description="Hosts that steps may try to reach: `HOST`, `*.HOST`, with or without port."),
    ] = ()
    env: dict[VariableName, str] = Field(
        default_factory=dict, description="Environment variables that the far side sets as well."
    )
    time_limit_s: Annotated[
        Seconds, Field(description="Seconds after which a step has run long enough; four times that under emulation.")
    ] = DEFAULT_TIME_LIMIT_S
    least: Annotated[
        RehearsalLevel, Field(description="How far steps must come: `image`, `imported`, `config` or `started`.")
    ] = "started"
    steps: dict[Text, StepRehearsal] = Field(
        default_factory=dict, description="Exceptions by step id or by target, which wins."
    )

    def for_target(self, step_id: str, *specs: str) -> StepRehearsal:
        """Return what counts for a target, everything filled in. `specs` are the names that it has."""
        chosen = [self.steps[name] for name in dict.fromkeys((*specs, step_id)) if name in self.steps]
        env = dict(self.env)
        for choice in reversed(chosen):
            env.update(choice.env)
        return StepRehearsal(
            command=next((choice.command for choice in chosen if choice.command), None),
            env=env,
            allow=(*self.allow, *(item for choice in chosen for item in choice.allow)),
            time_limit_s=next((choice.time_limit_s for choice in chosen if choice.time_limit_s), self.time_limit_s),
            least=next((choice.least for choice in chosen if choice.least), self.least),
        )


def is_allowed(host: str, port: int | None, patterns: Iterable[str]) -> bool:
    """Tell whether an attempt to reach a host is one of those that were declared."""
    host = host.lower().rstrip(".")
    for pattern in patterns:
        name, _, number = (
            pattern.rpartition(":") if re.search(r"[^:]:[0-9]+$|\]:[0-9]+$", pattern) else (pattern, "", "")
        )
        if fnmatch.fnmatchcase(host, name.strip("[]")) and (not number or port is None or port == int(number)):
            return True
    return False
