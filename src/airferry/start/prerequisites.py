"""What a step cannot do without, as far as `step.toml` tells: the one other step that produces what it consumes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airferry.plan.catalogue import read_step_toml
from airferry.start.survey import STEP_FILE, Survey


def find_prerequisites(survey: Survey) -> dict[str, tuple[str, ...]]:
    """Return step id to the targets that produce what it must have, where one step alone produces that.

    What several produce is for people to choose, and steps that need each other come in no order: neither is listed.
    """
    documents = {
        target.step_id: read_step_toml(survey.catalogue.steps_folder / target.step_id / STEP_FILE)
        for target in survey.targets
    }
    producers: dict[str, list[str]] = {}
    for step_id, document in documents.items():
        for kind in set(_types(document, "produces")):
            producers.setdefault(kind, []).append(step_id)
    before: dict[str, list[str]] = {}
    for step_id, document in documents.items():
        for kind in dict.fromkeys(_types(document, "consumes")):
            # a step that refines what it consumes produces the same type: another one's is meant
            others = [other for other in producers.get(kind, ()) if other != step_id]
            if len(others) == 1 and step_id not in _reached(others[0], before):
                before.setdefault(step_id, []).append(others[0])
    specs = {target.step_id: target.spec for target in reversed(survey.targets)}
    return {step_id: tuple(specs[other] for other in dict.fromkeys(found)) for step_id, found in before.items()}


def _types(document: dict[str, Any], key: str) -> Iterator[str]:
    """Yield the types that a step consumes or produces, but for those that it can do without."""
    listed = document.get(key)
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict) and isinstance(item.get("type"), str) and item.get("required", True) is not False:
            yield item["type"]


def _reached(step_id: str, before: dict[str, list[str]]) -> set[str]:
    """Return a step and all that come before it."""
    found: set[str] = set()
    waiting = [step_id]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += before.get(one, ())
    return found
