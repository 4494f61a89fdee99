"""Where a TOML file is wrong: Python 3.11 says so in the text of its error only. Reads no file."""

from __future__ import annotations

import re

_AT_LINE = re.compile(r"at line (\d+)")


def toml_error_line(error: Exception, text: str) -> int:
    """Return the line (from 1) that an error of `tomllib` names; where it names none, the last line of the text."""
    # `TOMLDecodeError.lineno` is there from Python 3.14 on
    found = _AT_LINE.search(str(error))
    return int(found[1]) if found else text.count("\n") + 1
