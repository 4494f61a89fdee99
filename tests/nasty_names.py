"""Names that do harm where a text is built of them: shells, YAML and terminals each stumble over some."""

from __future__ import annotations

NASTY = [
    "x; touch pwned #",
    "x\ntouch pwned #",
    "$(touch pwned)",
    "`touch pwned`",
    "x' y",
    "../../etc",
    "-x",
    "x\x1b[2J",
    "x\u202ey",
    "x\u2028y",
    "x\x85run: {}",
    " x",
    "",
    "x" * 5000,
]
