"""How often the documents of an image are parsed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from airferry.oci import documents
from scripted_registry import sha256


def count_parses(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count from now on how often each document is parsed, by its digest."""
    seen: Counter[str] = Counter()
    parse = documents._parse

    def counted(model: Any, data: bytes, what: str) -> Any:
        seen[sha256(data)] += 1
        return parse(model, data, what)

    monkeypatch.setattr(documents, "_parse", counted)
    return seen
