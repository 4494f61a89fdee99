"""Messages, docstrings and documents keep to the glossary's terms and to plain English."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from source_trees import SOURCE, nodes

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
DOCUMENTS = [path for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]) if path != GLOSSARY]

# what to write instead is in the brackets
BANNED = {
    r"\banew\b": "again",
    r"\bafresh\b": "again",
    r"\bwhoever\b": "anyone who, or name who it is",
    r"(?<![`\w.(-])beside\b(?![`=)])": "next to, besides",
    r"\bmended\b": "fixed",
    r"\blearnt\b": "learned",
    r"\bnobody\b": "say what is not done",
    r"\bso many\b": "N, this many",
    r"\bof (?:its|their) own\b": "separate, its own X",
    r"\bin vain\b": "without success",
    r"\bby another way\b": "over a separate channel",
    r"\bsays of itself\b": "claims",
    r"\bwhat is known of\b": "facts about",
    r"\bno such word\b": "not needed",
    r"(?<!there )\bis no way to\b": "unknown X `y` (choose …)",
    r"\bare wanted\b": "required",
    r"\bat the most\b": "at most",
    r"\bsane size\b": "say the limit",
    r"(?<!there )(?<!There )\bis no (?!longer\b|more\b|network\b)[a-z]": "is not a X",
}
# parameters are written like this, and the lead of a comment cannot be split
ALLOWED: set[tuple[str, str]] = set()


@cache
def texts() -> list[tuple[Path, int, str]]:
    """Return file, line and text of each string in the sources, docstrings included, and each line of documents."""
    strings = [
        (SOURCE / place, node.lineno, " ".join(node.value.split()))
        for place, node in nodes(ast.Constant)
        if not place.startswith("example/") and isinstance(node.value, str) and " " in node.value
    ]
    lines = [
        (path, number, line) for path in DOCUMENTS for number, line in enumerate(path.read_text().splitlines(), start=1)
    ]
    return strings + lines


def glossary() -> dict[str, tuple[str, list[str]]]:
    """Return each term with its meaning and the words that are not used for it."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]*)\|$", GLOSSARY.read_text(), re.MULTILINE)
    return {
        term: (meaning, [word.strip() for word in words.split(",") if word.strip()])
        for term, meaning, words in rows
        if term != "Term"
    }


def uses(pattern: str) -> list[str]:
    """Return where texts match, as `file:line: text`."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {text[:120]}"
        for path, number, text in texts()
        if re.search(pattern, text) and (path.name, pattern) not in ALLOWED
    ]


@pytest.mark.parametrize("phrase", BANNED)
def test_texts_avoid_archaic_and_literary_phrases(phrase: str) -> None:
    assert uses(phrase) == [], f"write: {BANNED[phrase]}"


def test_the_search_finds_what_it_is_for() -> None:
    samples = ("`x` is no way to probe", "what is no folder", "read it anew", "lies beside the bundle", "of its own")
    for sample in samples:
        assert any(re.search(phrase, sample) for phrase in BANNED), sample
    for sample in ("there is no bundle", "is no longer there", "report.beside", "besides images", "`beside`"):
        assert not any(re.search(phrase, sample) for phrase in BANNED), sample


def test_the_glossary_is_sorted_and_has_the_terms_of_the_product() -> None:
    terms = list(glossary())
    assert len(terms) >= 30
    assert terms == sorted(terms, key=str.lower)
    assert {"root digest", "overlay", "addition", "bundle", "seal", "launcher image", "receipt"} <= set(terms)


@pytest.mark.parametrize("term", glossary())
def test_a_term_of_the_glossary_is_used_and_its_variants_are_not(term: str) -> None:
    assert uses(rf"(?i)\b{re.escape(term)}"), "no message and no document uses it"
    for variant in glossary()[term][1]:
        assert uses(rf"(?i)\b{re.escape(variant)}s?\b") == [], f"write: {term}"
