"""What in a config is an identifier on the Hugging Face Hub, told by its form and by what its key is about."""

from __future__ import annotations

import re

from airferry.jobs.context import has_word
from airferry.plan.code.fetches import HUB_ID
from airferry.plan.step_values import StepValue, StepValues

HUB_URL = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)")
LOCAL_DATASETS = frozenset(
    {"NemoGymDataset", "ResponseDataset", "PreferenceDataset", "BinaryPreferenceDataset", "OpenAIFormatDataset"}
)
_WORDS = "hf|huggingface|model|models|tokenizer|pretrained|repo|dataset|datasets|teacher|student|checkpoint|reward"
_FILE_ENDING = re.compile(r"\.(jsonl?|ya?ml|toml|py|parquet|txt|bin|csv|md|sqsh|sh|tar|gz)$", re.IGNORECASE)
_SERVED_BY = ("provider", "base_url", "url", "api_base", "endpoint")


def is_hub_id(values: StepValues, value: StepValue) -> bool:
    """Tell whether a value is an identifier on the Hugging Face Hub: by its form, and by what its key is about."""
    text = value.text
    if not HUB_ID.fullmatch(text) or _FILE_ENDING.search(text) or has_word(value.last, "image|alias|type|path_prefix"):
        return False
    if value.last == "model" and any(values.get(*value.key[:-1], name) for name in _SERVED_BY):
        return False
    names = [part for part in value.key if isinstance(part, str)]
    about = names[-1] if names[-1] != "name" or len(names) < 2 else names[-2]
    return has_word(about, _WORDS)
