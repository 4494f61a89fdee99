"""The hook inside a step's interpreter, and the program around the step, on this host's Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from airferry.near.rehearse import hook as rehearsal_hook
from airferry.near.rehearse.judge import judge_ending, read_hook_log

OUTSIDE = "203.0.113.7"  # nothing is sent there: a datagram's `connect` sends nothing, and a number is not looked up


class Stage:
    """A folder with a hook, a log and a catalogue."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "hook.log"
        self.hook = root / "hook" / "sitecustomize.py"
        self.hook.parent.mkdir()
        shutil.copy(rehearsal_hook.__file__, self.hook)
        (root / "catalogue").mkdir()
        self.config = root / "catalogue" / "tiny.yaml"
        self.config.write_text("a: 1\n")
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{self.hook.parent}:{root / 'library'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "AIRFERRY_REHEARSAL_LOG": str(self.log),
            "AIRFERRY_REHEARSAL_CONFIG": str(self.config),
            "AIRFERRY_REHEARSAL_ROOT": f"{root / 'catalogue'}/",
        }
        self.log.touch()

    def write(self, source: str, *, name: str = "catalogue/step.py") -> Path:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        return path

    def run(self, *argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *argv],
            env={**self.environment, **environment},
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def around(self, limit_s: float, *argv: str | Path, **environment: str) -> dict[str, Any]:
        """Run the program around a step and return the end that it wrote down."""
        done = self.run("-I", "-S", self.hook, f"{limit_s:g}", *argv, **environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        (end,) = self.records("end")
        return end

    def records(self, event: str) -> list[dict[str, Any]]:
        return [item for item in read_hook_log(self.log.read_bytes()) if item["event"] == event]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_attempts_are_noted_with_step_and_library_though_errors_are_swallowed(stage: Stage) -> None:
    stage.write("import socket\n\n\ndef ping(s):\n    s.connect(('203.0.113.7', 53))\n", name="library/telemetry.py")
    step = stage.write(
        "import socket, telemetry\n"
        "try:\n"
        "    telemetry.ping(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))\n"
        "except OSError:\n"
        "    pass\n"
        f"socket.getaddrinfo('{OUTSIDE}', 'https')\n"
        f"socket.getaddrinfo('{OUTSIDE}', b'8080')\n"
    )
    assert stage.run(step).returncode == 0
    first, second, third = stage.records("attempt")
    assert (first["how"], first["host"], first["port"]) == ("socket.connect", OUTSIDE, 53)
    assert first["place"]["step"][:2] == [str(step), 3]
    assert first["place"]["library"] == [str(stage.root / "library/telemetry.py"), 5, "telemetry"]
    assert (second["host"], second["port"], second["place"]["step"][1]) == (OUTSIDE, 443, 6)
    assert third["port"] == 8080


def test_what_stays_on_this_host_is_no_attempt(stage: Stage) -> None:
    step = stage.write(
        "import os, socket\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname()).close()\n"
        "socket.getaddrinfo('localhost', 1)\n"
        "socket.getaddrinfo(None, 1)\n"
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).connect_ex('/nowhere')\n"
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).sendto(bytes(16), (0, 0))\n"
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.2', 9))\n"
    )
    done = stage.run(step)
    assert (done.returncode, done.stderr) == (0, "")
    assert stage.records("attempt") == []


def test_the_config_is_noted_once_however_it_is_named(stage: Stage) -> None:
    (stage.root / "link.yaml").symlink_to(stage.config)
    step = stage.write("import sys\nopen('catalogue/../catalogue/tiny.yaml').close()\nopen(sys.argv[1]).close()\n")
    assert stage.run(step, stage.config).returncode == 0
    assert len(stage.records("config")) == 1
    stage.log.write_text("")
    assert stage.run(stage.write("open('catalogue/step.py').close()\n")).returncode == 0
    assert stage.records("config") == []


def test_children_are_noted_with_their_command_and_line(stage: Stage) -> None:
    step = stage.write(
        "import os, subprocess\n"
        "subprocess.run(['true', 'one'])\n"
        "os.system('true two')\n"
        "os.posix_spawn('/bin/true', ['true', 'three'], {})\n"
        "os.execv('/bin/true', ['true', 'four'])\n"
    )
    assert stage.run(step).returncode == 0
    starts = {
        (item["how"], tuple(item["argv"]), item["place"]["step"][1])
        for item in stage.records("start")
        if item["place"]["step"]
    }
    assert starts >= {
        ("subprocess.Popen", ("true", "one"), 2),
        ("os.system", ("sh", "-c", "true two"), 3),
        ("os.posix_spawn", ("true", "three"), 4),
        ("os.exec", ("true", "four"), 5),
    }


def test_an_exception_is_noted_with_its_causes_and_still_shown(stage: Stage) -> None:
    step = stage.write("try:\n    open('/nowhere')\nexcept OSError as error:\n    raise KeyError('data') from error\n")
    done = stage.run(step)
    assert done.returncode == 1 and "KeyError: 'data'" in done.stderr
    (noted,) = stage.records("exception")
    assert [cause[0] for cause in noted["causes"]] == ["builtins.KeyError", "builtins.FileNotFoundError"]
    assert noted["causes"][1][2:] == ["/nowhere", 2, "/", "cause", 0]
    assert noted["frames"][-1][:2] == [str(step), 4]


@pytest.mark.parametrize(
    ("source", "stopped_by", "text"),
    [
        ("os.execvp('ferryrun', ['ferryrun', 'x.py'])", "program", "the program `ferryrun` is not in the image"),
        ("os.execv('/opt/ferryrun', ['ferryrun'])", "program", "the program `ferryrun` is not in the image"),
        ("os.execvpe('ferryrun', ['ferryrun'], {})", "program", "the program `ferryrun` is not in the image"),
        ("os.posix_spawn('/opt/ferryrun', ['ferryrun'], {})", "program", "the program `ferryrun` is not in the image"),
        ("subprocess.run(['ferryrun', 'x.py'], check=True)", "program", "`ferryrun` is not in the image"),
        ("subprocess.run([config], check=True)", "program", "cannot be run: PermissionError"),
        ("subprocess.run('ferryrun --x', shell=True, check=True)", "program", "ferryrun: not found"),
        ("subprocess.run(['true'], cwd='/lustre/work')", "data", "/lustre/work"),
        ("subprocess.run([sys.executable, '-c', 'import ferry_of_nobody'], check=True)", "module", "ferry_of_nobody"),
        ("sys.exit(os.system('ferryrun') >> 8)", "program", "exited with code 127"),
        ("os.environ['FERRY_RANK']", "variable", "the environment variable 'FERRY_RANK' is not set"),
        ("{}['FERRY_RANK']", "error", "KeyError"),
        ("open('/lustre/train.jsonl')", "data", "/lustre/train.jsonl"),
        ("open('/lustre/model/weights.bin')", "weights", "weights.bin"),
        ("open('/usr/share/nowhere/model.bin')", "error", "model.bin"),
        ("import ferry_of_nobody", "module", "No module named"),
    ],
)
def test_what_stopped_a_step_is_judged_by_what_python_really_raises(
    stage: Stage, source: str, stopped_by: str, text: str
) -> None:
    step = stage.write(f"import os, subprocess, sys\nconfig = sys.argv[1]\nopen(config).close()\n{source}\n")
    stage.around(30, sys.executable, step, stage.config)
    hook = read_hook_log(stage.log.read_bytes())
    judged = judge_ending(hook, root=str(stage.root / "catalogue"), has_config=True)
    assert (judged.stopped_by, text in judged.text) == (stopped_by, True), judged
    assert judged.reached == ("started" if stopped_by in ("data", "weights") else "config")


def test_records_of_one_interpreter_are_bounded(stage: Stage) -> None:
    stage.write(
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for number in range(5000):\n"
        "    s.connect(('203.0.113.7', 1 + number))\n"
    )
    assert stage.run("catalogue/step.py").returncode == 0
    assert len(read_hook_log(stage.log.read_bytes())) == rehearsal_hook.MAX_RECORDS


def test_the_images_own_start_up_code_runs_and_sees_nothing_of_the_hook(stage: Stage) -> None:
    stage.write("import sys\nsys.from_image = __file__\n", name="library/sitecustomize.py")
    step = stage.write(
        "import sys, os\n"
        "import sitecustomize\n"
        "print(sys.from_image == sitecustomize.__file__, any('hook' in entry for entry in sys.path))\n"
        "print([name for name in os.environ if name.lower().endswith('_proxy')])\n"
    )
    assert stage.run(step, https_proxy="http://proxy.example.org").stdout.split("\n")[:2] == ["True False", "[]"]


def test_without_a_log_nothing_is_hooked(stage: Stage) -> None:
    step = stage.write("import socket\nprint(len(socket.getaddrinfo('203.0.113.7', 1)) > 0)\n")
    assert stage.run(step, AIRFERRY_REHEARSAL_LOG="").stdout == "True\n"
    assert stage.log.read_text() == ""


def test_a_log_that_cannot_be_written_is_none_of_the_steps_business(stage: Stage) -> None:
    step = stage.write("import socket\nsocket.getaddrinfo('203.0.113.7', 1)\nprint('done')\n")
    done = stage.run(step, AIRFERRY_REHEARSAL_LOG=str(stage.root / "absent" / "log"))
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


# --- the program around the step --------------------------------------------------------------------------------------


def test_an_end_says_code_signal_and_the_last_words(stage: Stage) -> None:
    end = stage.around(30, sys.executable, "-c", "import sys; print('a', flush=True); sys.exit('no data')")
    assert (end["code"], end["signal"], end["limited"], end["output"]) == (1, None, False, "a\nno data\n")
    stage.log.write_text("")
    end = stage.around(30, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert (end["code"], end["signal"]) == (None, 9)
    stage.log.write_text("")
    end = stage.around(30, sys.executable, "-c", "print('x' * 200_000); print('last')")
    assert end["output"].endswith("x\nlast\n") and len(end["output"]) == rehearsal_hook.TAIL_BYTES


def test_a_program_that_is_not_there_ends_as_in_a_shell(stage: Stage) -> None:
    end = stage.around(30, "no-such-program")
    assert end["code"] == 127 and end["output"] == "no-such-program: No such file or directory\n"


def test_a_step_whose_time_is_up_is_ended_though_it_ignores_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stage.hook.read_text()
    stage.hook.write_text(source.replace("TERMINATE_GRACE_S = 5.0", "TERMINATE_GRACE_S = 0.3"))
    assert stage.hook.read_text() != source
    step = stage.write("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(55)\n")
    started = time.monotonic()
    end = stage.around(0.7, sys.executable, step)
    assert (end["limited"], end["signal"]) == (True, 9)
    assert time.monotonic() - started < 30


def test_what_a_step_leaves_behind_does_not_keep_it(stage: Stage) -> None:
    code = "import os, time\nif os.fork() == 0:\n    time.sleep(56)\n"
    end = stage.around(30, sys.executable, "-c", code)
    assert (end["code"], end["limited"]) == (0, False) and end["elapsed_s"] < 20
