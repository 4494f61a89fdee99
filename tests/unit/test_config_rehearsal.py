"""`rehearsal:` of `airgap.yaml`: exceptions by step and by target, with errors at file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.config import load_config
from airferry.errors import ConfigurationError
from catalogues import write_airgap

PLAN = """\
rehearsal:
  allow: ["*.Example.org:443"]
  env: {A: all, B: all}
  time_limit_s: 60
  steps:
    sft/a:
      env: {B: step, C: step}
      allow: [203.0.113.9]
      time_limit_s: 10
      least: config
    sft/a:tiny:
      command: ["{python}", -V]
      env: {C: target}
      allow: ["[2001:db8::7]:443"]
      least: imported
"""


def test_a_target_beats_its_step_and_a_step_beats_all(tmp_path: Path) -> None:
    rehearsal = load_config(write_airgap(tmp_path, PLAN)).rehearsal
    target = rehearsal.for_target("sft/a", "sft/a:tiny")
    assert target.env == {"A": "all", "B": "step", "C": "target"}
    assert set(target.allow) == {"*.example.org:443", "203.0.113.9", "[2001:db8::7]:443"}
    assert (target.command, target.time_limit_s, target.least) == (("{python}", "-V"), 10, "imported")
    step = rehearsal.for_target("sft/a", "sft/a:default")
    assert (step.env, step.command, step.least) == ({"A": "all", "B": "step", "C": "step"}, None, "config")
    other = rehearsal.for_target("sft/b", "sft/b:tiny")
    assert (other.env, other.allow) == ({"A": "all", "B": "all"}, ("*.example.org:443",))
    assert (other.time_limit_s, other.least) == (60, "started")


@pytest.mark.parametrize(
    ("body", "line", "reason"),
    [
        ("  allow: [https://example.org/x]", 2, "expected `HOST`, `*.HOST` or either with `:PORT`"),
        ("  allow: ['*']", 2, "expected `HOST`, `*.HOST` or either with `:PORT`"),
        ("  env: {'A B': x}", 2, "is not the name of an environment variable"),
        ("  time_limit_s: 0", 2, "greater than or equal to 1"),
        ("  least: all", 2, "Input should be 'image'"),
        ("  steps:\n    a:\n      commands: [x]", 4, "did you mean `command`?"),
        ("  steps:\n    a: {command: []}", 3, "expected at least one entry"),
    ],
)
def test_what_is_wrong_is_told_at_its_line(tmp_path: Path, body: str, line: int, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(write_airgap(tmp_path, f"rehearsal:\n{body}\n"))
    assert reason in caught.value.message
    assert f"airgap.yaml:{line}: `rehearsal" in caught.value.message
