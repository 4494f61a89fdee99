"""The texts that manifests and receipts are made of, checked where they are read: their characters and their length.

They end in shell lines, configs of jobs, pages and on terminals. Each writer quotes for its format as well; what no
writer is ever to get stops here: names are names, and free text is one line that no terminal obeys. Honest documents of
all versions pass.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from airferry.config.environment import MAX_VALUE
from airferry.config.fields import is_target, parse_tag
from airferry.wording import obeyed

LONGEST_LINE = 4096
LONGEST_NAME = 1024
MAX_FILE_NAME = 255

# what ends no word, line or quoted text in a shell, YAML, TOML, HTML and URLs, and no program takes for an option;
# brackets are for IPv6 addresses
_WORD = re.compile(r"[A-Za-z0-9_./:@\[][A-Za-z0-9_./:@%+=,~\[\]-]*")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_PLATFORM = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+){1,2}")


def _one_line(value: str) -> str:
    if found := obeyed(value):
        raise ValueError(f"expected one line of text without control characters, found {found}")
    return value


def _matching(pattern: re.Pattern[str], expected: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value) or ".." in value.split("/"):
            raise ValueError(f"expected {expected}")
        return value

    return AfterValidator(check)


def _target(value: str) -> str:
    if not is_target(value):
        raise ValueError("expected a step or target, `step/id:config` or `step/id`")
    return value


Line = Annotated[str, Field(max_length=LONGEST_LINE), AfterValidator(_one_line)]
"""Free text on one line, of any language."""

Word = Annotated[str, Field(max_length=LONGEST_NAME), _matching(_WORD, "a name of letters, digits and `_./:@%+=,~[]-`")]
"""A name that means the same everywhere: to a shell, in YAML, in a URL."""

ImageText = Annotated[Word, AfterValidator(parse_tag)]
"""An image reference as written."""

TargetText = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_target)]
"""A step, or one with a config."""

PlatformText = Annotated[str, Field(max_length=MAX_FILE_NAME), _matching(_PLATFORM, "a platform, `os/architecture`")]
"""A platform."""

FileTitle = Annotated[str, Field(max_length=MAX_FILE_NAME), _matching(_FILE_NAME, "a file name")]
"""The name of a file, without a folder."""

EnvironmentText = Annotated[str, Field(max_length=MAX_VALUE), AfterValidator(_one_line)]
"""The value of a variable."""

Distributions = Annotated[str, Field(max_length=1 << 20), AfterValidator(_one_line)]
"""The Python distributions that an image holds: `name==version`, sorted, with blanks between them."""
