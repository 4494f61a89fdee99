"""The shell commands that check a whole output folder from the root alone, for people who have no airferry.

They are the same everywhere: in the report, and on the page for security officers, which a test compares.
"""

from __future__ import annotations

from airferry.host.installation import shipped

BY_HAND = "containerfiles/verify-by-hand.sh"


def commands_by_hand(root: str, folder: str) -> str:
    """Return the commands for a root and the folder that holds `bundle`, as a path from where they are typed.

    POSIX shell, `sha256sum` and `sed` are all that they take.
    """
    lines = shipped(BY_HAND).read_text(encoding="utf-8").splitlines()
    first, second = f"root={root}", f"out={folder}"
    return "\n".join([first, second, *lines[2:]])
