"""What a process of the wheel of airferry itself does."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from airferry.host import process
from airferry.near.carry.loader import own_wheel


def test_our_own_wheel_can_make_itself_again(tmp_path: Path) -> None:
    first = own_wheel(tmp_path)
    with zipfile.ZipFile(first) as archive:
        archive.extractall(tmp_path / "lib")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom airferry.near.carry.loader import own_wheel\n"
        "import airferry\nassert airferry.__file__.startswith(sys.argv[1])\n"
        "own_wheel(Path(sys.argv[2]))\n"
    )
    (tmp_path / "again").mkdir()
    process.run([sys.executable, "-I", "-c", code, tmp_path / "lib", tmp_path / "again"], timeout_s=60)
    assert (tmp_path / "again" / first.name).read_bytes() == first.read_bytes()
