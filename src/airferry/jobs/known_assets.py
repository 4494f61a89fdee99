"""Declared assets and the keys of a config that they are for: so that configs name what was staged, not the Hub.

An asset is for a key where their names agree, or where nothing else can be meant: it is declared for the step, and it
is the only one of its kind for the only value of that kind. Anything less clear is left to the person. Pure.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from airferry.bundle.receipt import ReceiptAsset
from airferry.config.document import KeyPath
from airferry.jobs.context import FEEDS, Consumed, has_word
from airferry.jobs.hub import is_hub_id
from airferry.plan.step_values import StepValue, StepValues

MODELS, DATA = ("model", "checkpoint"), ("dataset",)
TOKENIZERS = ("tokenizer", "model")
_CHECKPOINTS = frozenset({"checkpoint_hf", "checkpoint_megatron", "checkpoint_lora"})
_REFERENCE = re.compile(r"\$\{\s*\.?[A-Za-z_][\w.\[\]]*\s*\}")
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class StagedValue:
    """A value of a config, and the asset that is to take its place."""

    value: StepValue
    asset: str
    target: str


@dataclass(frozen=True, slots=True)
class StagedValues:
    """What assets are for which values, and the names of those declared for the step whose key is not clear."""

    found: tuple[StagedValue, ...] = ()
    unclear: tuple[str, ...] = ()


def assets_of(assets: Iterable[ReceiptAsset], *, step: str) -> list[ReceiptAsset]:
    """Return the assets that a step or target reads and that have a place: those that name no step are for all."""
    names = {step, step.partition(":")[0]}
    return [asset for asset in assets if asset.target and (not asset.steps or names & set(asset.steps))]


def staged_values(
    values: StepValues, consumes: Sequence[Consumed], assets: Iterable[ReceiptAsset], *, step: str
) -> StagedValues:
    """Return which of the assets of a step are for which values of its config."""
    own = assets_of(assets, step=step)
    if not own:
        return StagedValues()
    open_values = [(value, kinds) for value in values.values if (kinds := _kinds(values, consumes, value))]
    targets = {asset.target for asset in own}
    there = {value.text for value in values.values}
    found: dict[KeyPath, StagedValue] = {}
    used = {asset.name for asset in own if asset.target in there}
    for value, kinds in open_values:
        named = [asset for asset in own if _same_name(asset, value) and asset.kind in (*kinds, "other")]
        if value.text not in targets and len({asset.target for asset in named}) == 1:
            found[value.key] = StagedValue(value, named[0].name, named[0].target or "")
            used.add(named[0].name)
    for kinds in (MODELS, DATA, TOKENIZERS):
        left = [asset for asset in own if asset.kind in kinds and asset.steps and asset.name not in used]
        waiting = [value for value, others in open_values if others == kinds and value.key not in found]
        waiting = [value for value in waiting if value.text not in targets]
        if len(left) == 1 and len({value.text for value in waiting}) == 1:
            asset = left[0]
            if all(_same_form(value.text, asset.target or "") for value in waiting):
                used.add(asset.name)
                found.update({value.key: StagedValue(value, asset.name, asset.target or "") for value in waiting})
    unclear = tuple(asset.name for asset in own if asset.steps and asset.name not in used)
    return StagedValues(tuple(found.values()), unclear)


def _kinds(values: StepValues, consumes: Sequence[Consumed], value: StepValue) -> tuple[str, ...] | None:
    """Return the kinds of assets that may stand for a value: None where it names nothing that has to be staged."""
    if isinstance(value.raw, str) and ("\n" in value.raw or _REFERENCE.fullmatch(value.raw.strip())):
        return None
    if is_hub_id(values, value):
        names = [part for part in value.key if isinstance(part, str)][-2:]
        if any(has_word(name, "tokenizer") for name in names):
            return TOKENIZERS
        return DATA if any(has_word(name, "dataset|datasets|data") for name in names[-1:]) else MODELS
    fed = [item.kind for item in consumes if value.last in FEEDS.get(item.kind, ())]
    if not fed or (value.text.startswith("/") and not value.text.startswith("/path/to")):
        return None
    if value.text and not value.text.startswith(("/", ".", "~")) and value.problem is None:
        return None
    return MODELS if set(fed) <= _CHECKPOINTS else None if set(fed) & _CHECKPOINTS else DATA


def _same_name(asset: ReceiptAsset, value: StepValue) -> bool:
    last = posixpath.basename(value.text.rstrip("/")).casefold()
    return bool(last) and last in (asset.name.casefold(), posixpath.basename(asset.target or "").casefold())


def _same_form(text: str, target: str) -> bool:
    """Tell whether both name a file, or both a folder: a folder does not do for what reads a file, or a pattern."""
    return _PATTERN.search(text) is None and _is_file(text) == _is_file(target)


def _is_file(path: str) -> bool:
    return re.search(r"\.(jsonl?|ya?ml|parquet|txt|csv|bin|npy|arrow)$", path, re.IGNORECASE) is not None
