"""What the steps share: arguments, configuration, files."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

import yaml

VARIABLE = re.compile(r"\$\{oc\.env:(\w+)(?:,([^}]*))?\}")


def load_config(default: str) -> dict:
    """Return the YAML config named by `--config`, or the step's default; `${oc.env:NAME,default}` is replaced."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default=default)
    path = Path(parser.parse_args().config)
    text = VARIABLE.sub(lambda match: os.environ.get(match[1], match[2] or ""), path.read_text(encoding="utf-8"))
    return yaml.safe_load(text)


def read_json(path: str) -> dict:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path: str, value: object) -> None:
    """Write a JSON file and the folders above it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(value, sort_keys=True) + "\n", encoding="utf-8")
