"""Every parser of airferry that meets bytes of others, with valid documents to begin with: the table of the fuzzer.

A new parser gets an entry in one of the modules that are imported here, which says how many cases it gets in proportion
(`share`): few, where a case takes long. Private names are used where a parser is a part of what starts a program, which
is not to be started a million times.
"""

from __future__ import annotations

import configurations
import documents
import hosts
import packages
import registries
from table import PARSERS, Parser, named

__all__ = ["PARSERS", "Parser", "configurations", "documents", "hosts", "named", "packages", "registries"]
