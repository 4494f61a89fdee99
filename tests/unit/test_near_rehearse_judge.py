"""What a rehearsal's logs mean, and that nothing in them can upset who reads them."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.config.rehearsal import is_allowed
from airferry.near.rehearse import judge
from airferry.near.rehearse.judge import (
    REHEARSAL_LEVELS,
    Attempt,
    find_attempts,
    judge_ending,
    read_hook_log,
    read_sink_log,
)
from airferry.wording import obeyed
from examples import examples

ROOT = "/workspace/Nemotron"
STEP = f"{ROOT}/src/steps/a/step.py"


def hook_log(*records: dict[str, Any]) -> list[dict[str, Any]]:
    return read_hook_log("".join(ascii(record) + "\n" for record in records).encode())


def sink_log(*records: dict[str, Any]) -> list[dict[str, Any]]:
    return read_sink_log("".join(json.dumps(record) + "\n" for record in records).encode())


def attempt(how: str, host: str, port: int | None, *, line: int = 7, pid: int = 5, library: str = "") -> dict[str, Any]:
    place = {"step": [STEP, line, "__main__"], "library": [library, 3, "x"] if library else None}
    return {"event": "attempt", "how": how, "host": host, "port": port, "place": place, "pid": pid}


def start(how: str, *argv: str, line: int, pid: int = 5) -> dict[str, Any]:
    place = {"step": [STEP, line, "__main__"], "library": None}
    return {"event": "start", "how": how, "argv": list(argv), "place": place, "pid": pid}


def seen(host: str, port: int | None, *, protocol: str = "tcp", pid: int | None = 9, **more: Any) -> dict[str, Any]:
    return {"protocol": protocol, "host": host, "port": port, "pid": pid, "command": "prog x", "ancestors": [], **more}


def found(hook: list[dict[str, Any]], sink: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    attempts = find_attempts(hook, sink, root=ROOT, own="container")
    return [(item.host, item.port, item.protocol, item.process, item.place, item.seen) for item in attempts]


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_a_look_up_and_the_connection_after_it_are_one_attempt_by_name() -> None:
    hook = hook_log(
        {"event": "python", "command": "python step.py", "pid": 5},
        attempt("socket.getaddrinfo", "hub.example.org", 443, library="/lib/socket.py"),
        attempt("socket.connect", "198.18.0.1", 443, library="/site/http.py"),
    )
    sink = sink_log(
        seen("hub.example.org", None, protocol="dns", pid=5, answered="198.18.0.1"), seen("hub.example.org", 443, pid=5)
    )
    assert found(hook, sink) == [
        ("hub.example.org", 443, "tcp", "python step.py", "src/steps/a/step.py:7", "python"),
    ]
    (only,) = find_attempts(hook, sink, root=ROOT, own="container")
    assert only.library == "/site/http.py:3", "of the connection"


def test_a_look_up_alone_is_an_attempt() -> None:
    hook = hook_log(attempt("socket.gethostbyname", "hub.example.org", None))
    assert found(hook, []) == [("hub.example.org", None, "dns", "python", "src/steps/a/step.py:7", "python")]


def test_a_datagram_whose_sender_is_gone_is_no_second_attempt_but_an_unknown_one_is() -> None:
    hook = hook_log(attempt("socket.sendto", "203.0.113.9", 8125))
    sink = sink_log(
        seen("203.0.113.9", 8125, protocol="udp", pid=None, command=""),
        seen("203.0.113.10", 8125, protocol="udp", pid=None, command=""),
    )
    assert [item[:3] for item in found(hook, sink)] == [("203.0.113.10", 8125, "udp"), ("203.0.113.9", 8125, "udp")]


def test_a_query_whose_sender_was_ended_is_no_second_attempt() -> None:
    hook = hook_log(attempt("socket.connect", "198.18.0.1", 29500))
    lost = {"protocol": "dns", "pid": None, "command": ""}
    sink = sink_log(
        seen("hub.example.org", None, protocol="dns", pid=5, answered="198.18.0.1"),
        seen("hub.example.org", None, answered="198.18.0.1", **lost),
        seen("git.example.org", 443, pid=9),
        seen("git.example.org", None, **lost),
        seen("other.example.org", None, **lost),
    )
    assert [item[:3] for item in found(hook, sink)] == [
        ("git.example.org", 443, "tcp"),
        ("hub.example.org", 29500, "tcp"),
        ("other.example.org", None, "dns"),
    ]


def test_a_child_is_traced_to_the_most_alike_start_of_its_nearest_ancestor() -> None:
    hook = hook_log(
        start("subprocess.Popen", "git", "clone", "https://git.example.org/a", line=10),
        start("os.system", "sh", "-c", "curl --silent https://files.example.org/x || true", line=11),
        start("subprocess.Popen", "curl", "--silent", "https://files.example.org/y", line=12),
    )
    chain = {"ancestors": [8, 5, 1]}
    sink = sink_log(
        seen("git.example.org", 443, pid=20, command="git-remote-https origin https://git.example.org/a", **chain),
        seen("files.example.org", 443, pid=21, command="curl --silent https://files.example.org/x", **chain),
        seen("files.example.org", 443, pid=22, command="curl --silent https://files.example.org/y", **chain),
    )
    assert [(item[3][-1], item[4]) for item in found(hook, sink)] == [
        ("x", "src/steps/a/step.py:11"),
        ("y", "src/steps/a/step.py:12"),
        ("a", "src/steps/a/step.py:10"),
    ]


def test_native_code_of_a_process_is_not_laid_at_what_it_started_but_at_what_it_became() -> None:
    native = sink_log(seen("203.0.113.5", 6379, pid=5, command="python step.py"))
    assert found(hook_log(start("subprocess.Popen", "python", "x.py", line=3)), native)[0][4] == ""
    assert found(hook_log(start("os.exec", "prog", "x", line=4)), native)[0][4] == "src/steps/a/step.py:4"


def test_the_containers_own_name_is_no_attempt() -> None:
    hook, sink = hook_log(attempt("socket.connect", "Container", 29500)), sink_log(seen("container", None))
    assert found(hook, sink) == []


def test_what_differs_from_run_to_run_and_secrets_are_left_out() -> None:
    command = "fetch https://me:token@hub.example.org/x --to /tmp/tmp8ab_c1 --pid 4711 at 2026-11-25 10:11:12,123"
    assert found([], sink_log(seen("hub.example.org", 443, command=command)))[0][3] == (
        "fetch https://***@hub.example.org/x --to /tmp/… --pid … at …"
    )
    end = {"event": "end", "code": 7, "output": "curl: (7) Failed to connect after 132 ms at 0x7f12ab34cd", "pid": 1}
    ending = judge_ending(hook_log({"event": "config", "pid": 1}, end), root=ROOT, has_config=True)
    assert ending.text == "exited with code 7: curl: (7) Failed to connect after … ms at 0x…"


def test_an_attempt_says_where_by_whom_and_from_which_line() -> None:
    text = str(Attempt("2001:db8::7", 443, "tcp", "prog", "step.py:1", "/lib/x.py:2", "python"))
    assert text == "[2001:db8::7]:443 (tcp) by `prog` from step.py:1 (through /lib/x.py:2)"
    assert str(Attempt("hub.example.org", None, "dns", "", "", "", "network")) == "hub.example.org (dns)"


@pytest.mark.parametrize(
    ("host", "port", "pattern", "allowed"),
    [
        ("api.wandb.ai", 443, "*.wandb.ai:443", True),
        ("api.wandb.ai", 80, "*.wandb.ai:443", False),
        ("api.wandb.ai", None, "*.wandb.ai:443", True),
        ("wandb.ai", 443, "*.wandb.ai", False),
        ("evilwandb.ai", 443, "*.wandb.ai", False),
        ("API.wandb.ai.", 443, "api.wandb.ai", True),
        ("api.wandb.ai.example.org", 443, "*.wandb.ai", False),
        ("2001:db8::7", 443, "[2001:db8::7]:443", True),
        ("2001:db8::7", 80, "[2001:db8::7]:443", False),
        ("2001:db8::7", 80, "[2001:db8::7]", True),
    ],
)
def test_what_a_plan_declares(host: str, port: int | None, pattern: str, allowed: bool) -> None:
    assert is_allowed(host, port, ["other.example.org", pattern]) is allowed


# --- endings ----------------------------------------------------------------------------------------------------------


def ending(*records: dict[str, Any], config: bool = True, **end: Any) -> tuple[str, str]:
    """Return how far a step came and what stopped it."""
    read = [{"event": "config", "pid": 5}] if config else []
    last = {"event": "end", "code": 1, "signal": None, "limited": False, "output": "", "step_pid": 5, **end}
    judged = judge_ending(hook_log(*read, *records, last), root=ROOT, has_config=True)
    return judged.reached, judged.stopped_by


def error(kind: str, message: str, *more: tuple[str, str], pid: int = 5, link: str = "cause") -> dict[str, Any]:
    causes = [[kind, message, "", 0, "", "", 0], *[[*item, "", 0, "", link, 0] for item in more]]
    return {"event": "exception", "causes": causes, "frames": [[STEP, 9, "main"], ["/lib/x.py", 2, "f"]], "pid": pid}


def os_error(kind: str, number: int, path: str, *, near: str = "/", message: str = "it failed") -> dict[str, Any]:
    text = f"[Errno {number}] {message}: '{path}'"
    causes = [[f"builtins.{kind}", text, path, number, near, "", 0]]
    return {"event": "exception", "causes": causes, "frames": [[STEP, 9, "main"]], "pid": 5}


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        ("builtins.RuntimeError", "No CUDA GPUs are available", ("started", "gpu")),
        ("builtins.RuntimeError", "Found no NVIDIA driver on your system", ("started", "gpu")),
        ("builtins.ImportError", "libcuda.so.1: cannot open shared object file", ("started", "gpu")),
        ("builtins.FileNotFoundError", "[Errno 2] No such file or directory: '/data/train.bin'", ("started", "data")),
        ("builtins.FileNotFoundError", "no checkpoint in /ckpt", ("started", "weights")),
        ("builtins.OSError", "Can't load tokenizer for 'nvidia/nemotron'", ("started", "weights")),
        ("huggingface_hub.errors.LocalEntryNotFoundError", "cannot find it in the cache", ("started", "weights")),
        ("builtins.ValueError", "the train folder is empty", ("started", "data")),
        ("builtins.ModuleNotFoundError", "No module named 'apex'", ("config", "module")),
        ("urllib.error.URLError", "<urlopen error [Errno 111] Connection refused>", ("config", "network")),
        ("omegaconf.errors.InterpolationKeyError", "Interpolation key 'a' not found", ("imported", "config")),
        ("builtins.KeyError", "'iterations'", ("config", "error")),
        ("builtins.AttributeError", "module 'x' has no attribute 'AutoTokenizer'", ("config", "error")),
        ("builtins.TypeError", "from_pretrained() got an unexpected keyword argument", ("config", "error")),
    ],
)
def test_what_stopped_a_step_that_read_its_config(kind: str, message: str, expected: tuple[str, str]) -> None:
    assert ending(error(kind, message)) == expected


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        (
            "builtins.ImportError",
            "libcudart.so.12: cannot open shared object file: No such file or directory",
            "module",
        ),
        ("builtins.OSError", "libcudnn.so.9: cannot open shared object file: No such file or directory", "module"),
        ("builtins.OSError", "libcuda.so.1: cannot open shared object file: No such file or directory", "gpu"),
        ("builtins.ImportError", "cannot import name 'driver' from 'cuda'", "module"),
        ("builtins.AssertionError", "Torch not compiled with CUDA enabled", "error"),
        ("builtins.OSError", "CUDA_HOME environment variable is not set", "error"),
        ("builtins.RuntimeError", "world size must be divisible by the number of GPUs", "error"),
        ("builtins.RuntimeError", "nccl backend needs at least 2 GPUs", "gpu"),
        ("builtins.ValueError", "tokenizer_type must be one of a, b", "error"),
        ("builtins.ValueError", "unknown checkpoint format: zarr", "error"),
        ("builtins.ValueError", "no tokenizer type given", "error"),
        ("builtins.ValueError", "`adamw` not found in the registry of optimizers", "error"),
        ("builtins.ValueError", "/opt/tool/examples/run.py was not found: mount a checkout", "error"),
        ("builtins.RuntimeError", "no training files in /lustre/corpus", "data"),
        ("builtins.RuntimeError", "Failed to import transformers.models.auto: No module named 'apex'", "module"),
        ("builtins.RuntimeError", "rendezvous with 127.0.0.1:29500: Connection refused", "error"),
        ("datasets.exceptions.DatasetNotFoundError", "Dataset 'a/b' is not there", "weights"),
        ("torch.distributed.elastic.ChildFailedError", "convert_checkpoint.py FAILED", "error"),
        ("subprocess.CalledProcessError", "Command '['python', 'load_checkpoint.py', 'not found']' failed", "error"),
    ],
)
def test_words_alone_let_no_step_pass(kind: str, message: str, expected: str) -> None:
    assert ending(error(kind, message))[1] == expected


@pytest.mark.parametrize(
    ("kind", "number", "path", "near", "expected"),
    [
        ("FileNotFoundError", errno.ENOENT, "/lustre/train.bin", "/", "data"),
        ("FileNotFoundError", errno.ENOENT, "data/train.jsonl", "/airferry/job", "data"),
        ("FileNotFoundError", errno.ENOENT, "/lustre/ckpt/latest", "/", "weights"),
        ("FileNotFoundError", errno.ENOENT, "/opt/checkpoints/x", "/opt", "weights"),
        ("FileNotFoundError", errno.ENOENT, "/opt/Tool/examples/data", "/opt/Tool", "error"),
        ("FileNotFoundError", errno.ENOENT, "/somewhere/train.py", "/", "error"),
        ("FileNotFoundError", errno.ENOENT, "/usr/share/model.bin", "/usr/share", "error"),
        ("FileNotFoundError", errno.ENOENT, f"{ROOT}/src/data/blend.json", f"{ROOT}/src", "error"),
        ("FileNotFoundError", errno.ENOENT, "/dev/nvidia0", "/dev", "gpu"),
        ("PermissionError", errno.EACCES, "/lustre", "/", "data"),
        ("PermissionError", errno.EACCES, "/home/user/cache", "/home/user/cache", "error"),
        ("PermissionError", errno.EACCES, "/etc/model", "/etc", "error"),
        ("OSError", errno.ENOSPC, "/airferry/job/checkpoint", "/airferry/job", "error"),
        ("OSError", errno.EROFS, "/data/checkpoint", "/", "error"),
        ("OSError", errno.EMFILE, "/data/train.bin", "/data", "error"),
        ("NotADirectoryError", errno.ENOTDIR, "/data/set", "/", "data"),
        ("ConnectionRefusedError", errno.ECONNREFUSED, "", "", "network"),
    ],
)
def test_errors_of_the_system_are_judged_by_number_and_path(
    kind: str, number: int, path: str, near: str, expected: str
) -> None:
    assert ending(os_error(kind, number, path, near=near))[1] == expected


def test_what_only_came_before_an_exception_counts_where_it_speaks_of_it() -> None:
    missing = os_error("FileNotFoundError", errno.ENOENT, "/lustre/set.jsonl")["causes"][0]
    for link, message, expected in (
        ("cause", "cannot go on", "data"),
        ("context", "cannot go on", "error"),
        ("context", "nothing at /lustre/set.jsonl", "data"),
    ):
        record = error("builtins.RuntimeError", message)
        record["causes"].append([*missing[:5], link, 0])
        assert ending(record)[1] == expected, (link, message)
    gpu = ("builtins.RuntimeError", "No CUDA GPUs are available")
    assert ending(error("builtins.ValueError", "the batch size is odd", gpu, link="context"))[1] == "error"
    module = ("builtins.ModuleNotFoundError", "No module named 'apex'")
    assert ending(error("builtins.RuntimeError", "no pretrained model found", module))[1] == "module"


def test_a_program_that_is_not_there_is_known_by_what_was_started() -> None:
    launch = {**start("os.exec", "torchrun", "x.py", line=9), "program": "/usr/bin/torchrun"}
    nameless = ["builtins.FileNotFoundError", "[Errno 2] No such file or directory", "", 2, "", "", 0]
    failed = {"event": "exception", "causes": [nameless], "frames": [[STEP, 9, "main"], ["<frozen os>", 5, "_execvpe"]]}
    judged = judge_ending(
        hook_log(
            {"event": "config", "pid": 5}, launch, {**failed, "pid": 5}, {"event": "end", "step_pid": 5, "code": 1}
        ),
        root=ROOT,
        has_config=True,
    )
    assert (judged.reached, judged.stopped_by, judged.place) == ("config", "program", "src/steps/a/step.py:9")
    assert judged.text.startswith("the program `torchrun` is not in the image: FileNotFoundError")
    makedirs = {**failed, "frames": [[STEP, 9, "main"], ["<frozen os>", 5, "makedirs"]], "pid": 5}
    assert ending(launch, makedirs)[1] == "error", "another function of the same module"
    assert ending({**failed, "pid": 5})[1] == "error", "nothing was started"
    smi = {**start("subprocess.Popen", "nvidia-smi", line=9), "program": "nvidia-smi"}
    assert ending(smi, os_error("FileNotFoundError", 2, "nvidia-smi"))[1] == "gpu"
    folder = os_error("FileNotFoundError", 2, "/lustre/work")
    assert ending(smi, folder)[1] == "data", "the folder that a program was to start in"


def test_a_child_that_failed_says_why_itself() -> None:
    failed = error("subprocess.CalledProcessError", "Command ['torchrun', 'checkpoint'] returned 1")
    child = error("builtins.ModuleNotFoundError", "No module named 'apex'", pid=6)
    assert ending(child, failed)[1] == "module"
    assert ending(failed, output="sh: 1: torchrun: not found")[1] == "program"
    assert ending(failed)[1] == "error"


def test_causes_tell_weights_and_networks_behind_other_errors() -> None:
    network = ("requests.exceptions.ConnectionError", "Max retries exceeded")
    assert ending(error("builtins.RuntimeError", "cannot fetch", network)) == ("config", "network")
    weights = ("huggingface_hub.errors.OfflineModeIsEnabled", "offline")
    assert ending(error("builtins.OSError", "we could not connect", weights)) == ("started", "weights")


@pytest.mark.parametrize(
    ("end", "config", "expected"),
    [
        ({"code": 0}, True, ("started", "finished")),
        ({"code": 0}, False, ("imported", "finished")),
        ({"limited": True, "code": None}, True, ("started", "time limit")),
        ({"limited": True, "code": None}, False, ("imported", "time limit")),
        ({"code": 2, "output": "usage: step.py\nstep.py: error: unrecognized"}, False, ("image", "usage")),
        ({"code": 127, "output": "torchrun: not found"}, False, ("image", "program")),
        ({"code": 126, "output": "sh: /opt/run: Permission denied"}, True, ("config", "program")),
        ({"code": 1, "output": "sh: 1: torchrun: not found\ngiving up"}, True, ("config", "program")),
        ({"code": 1, "output": "run.sh: line 3: torchrun: command not found"}, True, ("config", "program")),
        ({"code": 1, "output": "env: 'torchrun': No such file or directory"}, True, ("config", "program")),
        ({"code": 1, "output": "sh: 1: nvidia-smi: not found"}, True, ("started", "gpu")),
        ({"code": 1, "output": "using the gpu config\nit failed"}, True, ("config", "error")),
        ({"code": 1, "output": "RuntimeError: no CUDA GPUs are available"}, True, ("started", "gpu")),
        ({"code": 1, "output": "checkpoint interval: expected a number"}, True, ("config", "error")),
        ({"code": 1, "output": "cannot find the checkpoint /ckpt/7"}, True, ("started", "weights")),
        ({"code": 1, "output": "cannot open /opt/tool/run.py: not found"}, True, ("config", "error")),
        ({"code": None, "signal": 11, "output": "Fatal"}, True, ("config", "error")),
        ({"code": 1, "output": "bash: fatal: unable to access 'https://x/'"}, True, ("config", "network")),
        ({"code": 3, "output": "done nothing"}, False, ("imported", "error")),
    ],
)
def test_endings_without_an_exception(end: dict[str, Any], config: bool, expected: tuple[str, str]) -> None:
    assert ending(config=config, **end) == expected


def test_without_an_end_the_image_did_not_start_and_a_step_without_config_needs_none() -> None:
    assert judge_ending([], root=ROOT, has_config=True).reached == "nothing"
    end = hook_log({"event": "end", "code": 0, "output": "", "pid": 1})
    assert judge_ending(end, root=ROOT, has_config=False).reached == "started"


def test_the_exception_of_the_step_itself_counts_before_those_of_its_children() -> None:
    own, other = error("builtins.RuntimeError", "No CUDA GPUs"), error("builtins.KeyError", "'x'", pid=6)
    assert ending(own, other) == ("started", "gpu")
    assert ending(other) == ("config", "error")
    end = {"event": "end", "code": 1, "output": "", "step_pid": 5, "pid": 1}
    judged = judge_ending(hook_log(own, end), root=ROOT, has_config=False)
    assert judged.place == "src/steps/a/step.py:9", "the step's own line, not the library's"


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_lines_that_are_no_records_are_left_out() -> None:
    lines = [
        b"{'event': 'config', 'pid': 1}",
        b"not a record",
        b"[1, 2]",
        b"{'event': 5}",
        b"\xff\xfe",
        b"(" * 5000,
        b"{'event': 'end', 'code': 0x" + b"f" * 5000 + b"}",
        b"{'event': 'end', 'causes': [[[[[[1]]]]]]}",
        b"{'event': 'end', 'pid': __import__('os')}",
        b"{'event': 'start', 'pid': [1]}",
    ]
    assert read_hook_log(b"\n".join(lines)) == [{"event": "config", "pid": 1}, {"event": "start", "pid": None}]
    assert read_sink_log(b'{"host": 1}\n{"host": "a", "pid": 2}\n[') == [{"host": "a", "pid": 2}]


def test_of_too_many_lines_the_last_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "MAX_LOG_LINES", 3)
    lines = b"".join(b"{'event': 'start', 'pid': %d}\n" % number for number in range(10))
    assert [item["pid"] for item in read_hook_log(lines)] == [7, 8, 9]


def test_text_of_others_is_one_bounded_printable_line() -> None:
    nasty = "\x1b[31mred\n\x00" + "x" * 50_000
    sink = sink_log(seen(nasty, 443, command=nasty))
    (only,) = find_attempts([], sink, root=ROOT, own="container")
    for text in (only.host, only.process):
        assert len(text) <= 300 and text.isprintable()


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
nested = st.lists(scalars, max_size=4) | st.dictionaries(st.text(max_size=5), scalars, max_size=4)
values = scalars | st.lists(nested, max_size=4) | st.dictionaries(st.text(max_size=5), nested, max_size=4)
names = ("pid", "host", "port", "how", "place", "argv", "causes", "frames", "code", "output", "signal", "step_pid")
events = st.sampled_from(["attempt", "start", "python", "exception", "config", "end", "other"])
records = st.builds(
    lambda event, rest: {**rest, "event": event},
    events,
    st.dictionaries(st.sampled_from([*names, "command", "ancestors", "answered", "protocol", "limited"]), values),
)


@given(st.lists(records, max_size=6), st.lists(records, max_size=6))
@examples(60)
def test_no_record_of_whatever_shape_raises(hook: list[dict[str, Any]], sink: list[dict[str, Any]]) -> None:
    read = hook_log(*hook), sink_log(*({"host": "h", **item} for item in sink))
    for item in find_attempts(*read, root=ROOT, own="container"):
        str(item)
    judged = judge_ending(read[0], root=ROOT, has_config=True)
    assert judged.reached in REHEARSAL_LEVELS and obeyed(judged.text) is None


@given(st.binary(max_size=300))
def test_no_bytes_raise(data: bytes) -> None:
    read_hook_log(data)
    read_sink_log(data)
