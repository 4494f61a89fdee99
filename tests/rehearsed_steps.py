"""A catalogue of steps that misbehave, each in its own way, where no network leads out."""

from __future__ import annotations

from pathlib import Path

from catalogues import write_step
from near_side import REFERENCE, NearSide, commit_all
from wheel_factory import sha256, wheel_of

LIMIT_S = 3
SLEEP_S = "86.42"
LONG_SLEEP_S = "87.53"

QUIET = """
import socket
import sys
import urllib.request

import ferry_telemetry

open(sys.argv[2]).read()
try:
    urllib.request.urlopen("https://models.example.org/weights", timeout=5)
except Exception:
    pass
try:
    socket.getaddrinfo("names.example.org", None)
except OSError:
    pass
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
    udp.sendto(b"tick", ("203.0.113.9", 8125))
with socket.socket(socket.AF_INET6) as v6:
    v6.connect_ex(("2001:db8:1::7", 443))
ferry_telemetry.ping()
"""

TELEMETRY = """
import socket

def ping():
    try:
        socket.create_connection(("telemetry.example.org", 4317), timeout=5).close()
    except OSError:
        pass
"""

FETCH = """
import os
import subprocess
import sys

open(sys.argv[2]).read()
subprocess.run(["git", "clone", "https://ferry:secret@git.example.org/models.git", "/tmp/models"], check=False)
subprocess.run(["curl", "--silent", "http://files.example.org:8080/weights.bin"], check=False)
os.system("curl --silent --max-time 5 https://shell.example.org/ || true")
"""

NATIVE = """
import ctypes
import os
import struct
import subprocess
import sys

open(sys.argv[2]).read()
libc = ctypes.CDLL(None)
handle = libc.socket(2, 1, 0)
libc.connect(handle, struct.pack("=H", 2) + struct.pack("!H4s8x", 6379, bytes([203, 0, 113, 5])), 16)
found = ctypes.c_void_p()
libc.getaddrinfo(b"license.example.org", None, None, ctypes.byref(found))
code = "import socket; socket.socket().connect_ex(('203.0.113.6', 9092))"
subprocess.run([sys.executable, "-I", "-S", "-c", code], env={}, check=False)
"""

HANG = f"""
import os
import signal
import socket
import sys
import time

open(sys.argv[2]).read()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "{SLEEP_S}"])
    os._exit(0)
print("training", flush=True)
while True:
    try:
        socket.create_connection(("coordinator.example.org", 29500), timeout=1)
    except OSError:
        time.sleep(0.1)
"""

SLOW = f"""
import os
import subprocess
import sys

open(sys.argv[2]).read()
os.makedirs("checkpoints/1", mode=0o700)  # whoever the image's user is, it is not the one who cleans up
open("checkpoints/1/weights.bin", "w").close()
subprocess.run(["sleep", "{LONG_SLEEP_S}"], check=False)
"""

BROKEN = "from ferry_telemetry import nothing_of_that_name\n"
INCOMPLETE = "import ferry_incomplete\n"
EARLY = "import sys\nprint('nothing to do')\nsys.exit(0)\n"

SILENT = """
import sys

import ferry_telemetry

open(sys.argv[2]).read()
ferry_telemetry.ping()
raise RuntimeError("No CUDA GPUs are available")
"""

GOOD = """
import json
import multiprocessing
import os
import socket
import sys
import threading

def listen(server):
    server.accept()[0].sendall(b"hello")

if __name__ == "__main__":
    print(open(sys.argv[2]).read())
    assert os.environ["PWD"] == os.getcwd()
    open("output.txt", "w").close()
    server = socket.create_server(("", 0))
    threading.Thread(target=listen, args=(server,)).start()
    with socket.create_connection((socket.gethostname(), server.getsockname()[1])) as own:
        assert own.recv(5) == b"hello"
    socket.getaddrinfo("localhost", 80)
    child = multiprocessing.get_context("fork").Process(target=print, args=("child",))
    child.start()
    child.join()
"""

EXEC = """
import os
import sys

open(sys.argv[-1]).close()
os.execvp("torchrun", ["torchrun", "--nproc_per_node=8", "train.py"])
"""
STEPS = {
    "quiet/python": QUIET,
    "native/code": NATIVE,
    "slow/hang": HANG,
    "slow/sleep": SLOW,
    "broken/name": BROKEN,
    "broken/addition": INCOMPLETE,
    "early/exit": EARLY,
    "exec/launcher": EXEC,
    "declared/silent": SILENT,
    "good/step": GOOD,
    "fetch/children": FETCH,
}
IMAGES = {"fetch/children": "tools", "broken/name": "broken", "broken/addition": "broken"}


def make_rehearsed_side(root: Path, base: Path) -> NearSide:
    """Lay out a near side of these steps, all on a base from a layout, `fetch/children` on one with Git and curl."""
    side = NearSide(root, base)
    for step, source in STEPS.items():
        write_step(side.catalogue, step, source=source)
    (side.catalogue / "pyproject.toml").write_text('[project]\nname = "nemotron"\nversion = "1"\n')
    (side.catalogue / ".gitignore").write_text("out/\n")
    wheels = {
        "ferry_telemetry": wheel_of(side.index, "ferry-telemetry", "1.0", {"ferry_telemetry.py": TELEMETRY.encode()}),
        "ferry_incomplete": wheel_of(
            side.index, "ferry-incomplete", "1.0", {"ferry_incomplete.py": b"import ferry_of_nobody\n"}
        ),
    }
    lines = [f"{name.replace('_', '-')}==1.0 --hash=sha256:{sha256(wheel)}\n" for name, wheel in wheels.items()]
    (side.catalogue / "requirements.txt").write_text("".join(lines))
    commit_all(side.catalogue)
    # another name of the base makes another group, so that the images of the rest stay as they are without these steps
    (root / "base").symlink_to(base)
    image = {"base_image": f"oci:{base}:{REFERENCE}", "python": "/usr/bin/python3"}
    again = {**image, "base_image": f"oci:{root / 'base'}:{REFERENCE}"}
    packages = ["python3-minimal", "libpython3-stdlib", "git", "curl"]
    tools = {**image, "base_image": {"bootstrap": {"suite": "bookworm", "packages": packages}}}
    side.document = {
        "source": {"lock": "requirements.txt"},
        "platforms": ["linux/amd64"],
        "builder": "direct",
        "loader": False,
        "launcher_image": {**image, "tag": "launcher:1", "tar": "launcher.tar", "packages": []},
        "step_execution_images": {step: IMAGES.get(step, "py") for step in STEPS},
        "execution_images": {
            "py": {**image, "tag": "py:1", "tar": "py.tar"},
            "tools": {**tools, "tag": "tools:1", "tar": "tools.tar"},
            "broken": {**again, "tag": "broken:1", "tar": "broken.tar"},
        },
        "rehearsal": {
            "time_limit_s": 60,
            "steps": {
                "slow/hang": {"time_limit_s": LIMIT_S},
                "slow/sleep": {"time_limit_s": 120},
                "declared/silent": {"allow": ["*.example.org:4317"]},
            },
        },
    }
    return side


def stages(*steps: str) -> dict[str, object]:
    """Return the part of a plan that names its targets."""
    return {"workflow": {"name": "tests", "stages": [f"{step}:tiny" for step in steps]}}
