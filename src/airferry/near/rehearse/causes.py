"""What stopped a step, judged by evidence: paths, error numbers, frames and what was started, not by a type alone.

A step that lacks data, weights or a GPU passes a rehearsal, as only the far side has them. So these three are said only
where the evidence points to them; all else is a finding, which costs a look, where a false pass costs a failed job.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Stop = Literal[
    "finished",
    "time limit",
    "gpu",
    "data",
    "weights",
    "network",
    "module",
    "program",
    "variable",
    "config",
    "usage",
    "error",
]
ENOUGH: tuple[Stop, ...] = ("finished", "time limit", "gpu", "data", "weights")
RECENT_LINES = 8

_MODULE = re.compile(
    r"No module named|cannot import name|ModuleNotFoundError|cannot open shared object file|undefined symbol"
)
_NO_MODULE = re.compile(r"No module named|ModuleNotFoundError")
# libraries that come with the driver, from the host; all other libraries of CUDA belong to the image
_DRIVER_LIBRARY = re.compile(r"\b(libcuda|libnvidia-[\w-]+|libnvcuvid|libnvoptix)\.so")
_GPU = re.compile(
    r"no nvidia driver|nvidia driver on your system|no cuda gpus|no cuda-capable|cuda driver|cuda error|cuda initiali"
    r"|cuda (is|was) ?(not|n't) (available|found|detected)|cuda (is )?unavailable|no cuda (device|runtime|gpu)"
    r"|cudaGetDeviceCount|cuInit|cuda device|invalid device ordinal|\bnvml\b|0 active drivers|triton.*\bdrivers?\b"
    r"|no (supported |available |visible )?(gpus?|accelerators?|devices?)\b"
    r"|(gpus?|accelerators?)( devices?)? (is|are|was|were)? ?(not|n't) (available|found|detected|visible)"
    r"|(requires?|needs?|expects?|expected|at least|enough) (a |an |one |\d+ )?(\w+ )?gpus?\b"
    r"|nvidia-smi",
    re.I,
)
# the image's fault, though it speaks of GPUs
_NOT_COMPILED = re.compile(r"not compiled with|without (cuda|gpu) support|CUDA_HOME|nvcc", re.I)
_NETWORK = re.compile(
    r"gaierror|ConnectionError|ConnectionRefused|ConnectTimeout|MaxRetryError|NewConnectionError|URLError|ConnectError"
    r"|Connection refused|Name or service not known|Temporary failure in name resolution|Could not resolve host"
    r"|unable to access 'http|Failed to connect to",
)
_LOCAL = re.compile(r"\b(localhost|127\.\d+\.\d+\.\d+|0\.0\.0\.0)\b|\[?::1\]?")
_CONFIG = re.compile(
    r"omegaconf\.|hydra\.errors|yaml\.(scanner|parser|constructor|composer|reader)|pydantic\S*ValidationError|jsonargparse"
)
_HUB_ERRORS = frozenset(
    {
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
        "RepositoryNotFoundError",
        "EntryNotFoundError",
        "GatedRepoError",
        "HFValidationError",
        "DatasetNotFoundError",
    }
)
_WEIGHTS = re.compile(
    r"huggingface|hugging face|hf_hub|from_pretrained|snapshot_download|tokenizer|checkpoint|ckpt|pretrained|weights"
    r"|\bmodels?\b|\.safetensors|\.nemo\b|\.pt\b|\.distcp\b",
    re.I,
)
_DATA = re.compile(
    r"\b(files?|folders?|director(y|ies)|paths?|datasets?|data|shards?|jsonl|parquet|corpus|blends?|inputs?|samples?)\b"
    r"|(^|[\s'\"`(=:])/[\w.-]+(/|\b)|\.(jsonl?|parquet|arrow|bin|idx|npy|csv|txt)\b",
    re.I,
)
_ABSENT = re.compile(
    r"no such file|not found|(do|does)(n't| not) exist|not exist|(can ?not|can't|could ?n[o']t|unable to|failed to) "
    r"(be )?(find|found|locate|load|open|read|connect)|not a (local folder|valid model identifier|directory)|offline"
    r"|(is|are) (empty|missing)|empty (dataset|folder|directory)"
    r"|\bno (\w+ ){0,2}(checkpoints?|weights|models?|tokenizers?|data\w*|files?|samples?) (\w+ )?"
    r"(found|in|at|under|available|exists?|match\w*)\b",
    re.I,
)
_LOADERS = frozenset({"from_pretrained", "cached_file", "snapshot_download", "hf_hub_download", "load_checkpoint"})
_MISTAKES = ("AttributeError", "IndexError", "KeyError", "NameError", "SyntaxError", "TypeError", "UnboundLocalError")
_IMPORTS = ("ModuleNotFoundError", "ImportError")
_OF_CHILDREN = ("CalledProcessError", "ChildFailedError", "ProcessRaisedException", "ProcessExitedException")
_ABSENT_NUMBERS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM)
_EXEC_NUMBERS = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC)
_NETWORK_NUMBERS = (
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ETIMEDOUT,
    errno.ENETDOWN,
)
# the types of Python with a separate number, for hooks and exceptions that give none
_NUMBERS = {
    "FileNotFoundError": errno.ENOENT,
    "NotADirectoryError": errno.ENOTDIR,
    "IsADirectoryError": errno.EISDIR,
    "PermissionError": errno.EACCES,
    "ConnectionRefusedError": errno.ECONNREFUSED,
}
_OS_FILE = re.compile(r"<frozen os>|(^|/)os\.py")
_SUBPROCESS_FILE = re.compile(r"(^|/)subprocess\.py")
_SYSTEM_WORDS = re.compile(r"\[Errno \d+\] [^:]*")
_PATH = re.compile(r"['\"`]?(?<![\w:/.])(/[\w.@+=-]+(?:/[\w.@+=-]+)*)")
_GPU_PATHS = ("/dev/nvidia", "/proc/driver/nvidia")
_IMAGE_FOLDERS = ("/usr/", "/lib", "/etc/", "/bin/", "/sbin/", "/proc/", "/sys/", "/dev/", "/tmp/", "/var/", "/run/")
_CODE = re.compile(r"\.(py|pyi|sh|so(\.\d+)*|cu|cuh|cpp|cc|h|hpp|toml|ipynb|j2|jinja)$|/(site|dist)-packages(/|$)")
_GPU_PROGRAMS = ("nvidia-smi", "nvidia-debugdump", "nvidia-persistenced")
# a shell, or a program that starts others, says that one is not there
_SHELL_MISSING = re.compile(
    r"^\S+: (?:(?:line )?\d+: )?(?P<shell>[\w./+-]+): (?:command )?not found$"
    r"|^(?:\S*/)?(?:env|timeout|nice|nohup|xargs|srun|stdbuf): .*?[‘'\"](?P<other>[\w./+-]+)[’'\"]: "
    r"No such file or directory$",
    re.M,
)


@dataclass(frozen=True, slots=True)
class _Frame:
    """A line of a traceback."""

    file: str
    line: Any
    function: str


@dataclass(frozen=True, slots=True)
class _Cause:
    """An exception of a chain. `near` is the nearest folder of its path that is there, `link` how it hangs on the
    one before it, `code` the exit code of a child."""

    kind: str
    text: str
    path: str
    number: int
    near: str
    link: str
    code: int

    @property
    def name(self) -> str:
        return self.kind.rpartition(".")[2]

    @property
    def is_os_error(self) -> bool:
        return self.name in _NUMBERS or (self.name in ("OSError", "IOError", "BlockingIOError") and bool(self.number))


def is_of_child(failure: Mapping[str, Any]) -> bool:
    """Tell whether an exception only says that a child failed, and not why."""
    causes = _causes(failure)
    return bool(causes) and causes[0].name in _OF_CHILDREN


def classify(
    failure: Mapping[str, Any], starts: Sequence[Mapping[str, Any]], *, root: str, output: str = ""
) -> tuple[Stop, str]:
    """Say what kind of trouble an exception is, with the words for it.

    `starts` are the programs that its process started, in their order; `root` is the catalogue's folder. What a child
    said last, in `output`, counts where an exception only says that a child failed.
    """
    causes = _causes(failure)
    if not causes:
        return "error", "an exception without a type"
    first, frames = causes[0], _frames(failure)
    text = f"{first.name}: {first.text}"
    if first.name in _OF_CHILDREN:
        stop, said = classify_output(output, first.code or None, None)
        return stop, said if stop != "error" else text
    for cause in causes:
        if program := _program_of(cause, starts, frames if cause is first else ()):
            if program.rpartition("/")[2] in _GPU_PROGRAMS:
                return "gpu", text
            why = "is not in the image" if cause.number in (0, errno.ENOENT) else "cannot be run"
            return "program", f"the program `{program}` {why}: {text}"
    if first.name == "KeyError" and frames and _is_environment(frames[-1]):
        return "variable", f"the environment variable {first.text} is not set"
    return _kind(causes, frames, root), text


def _kind(causes: Sequence[_Cause], frames: Sequence[_Frame], root: str) -> Stop:
    first = causes[0]
    if first.name in _IMPORTS:
        return "gpu" if _is_driver(first.text) else "module"
    if any(_CONFIG.match(cause.kind) for cause in causes):
        return "config"
    if first.name in _MISTAKES:
        return "error"
    if _NO_MODULE.search(first.text) or any(item.name in _IMPORTS for item in _named_causes(causes)):
        return "module"
    if "cannot open shared object" in first.text:
        return "gpu" if _is_driver(first.text) else "module"
    if first.is_os_error:
        return _of_os_error(first, root)
    stop = _of_words([first, *_named_causes(causes)], frames, root)
    # what only came before counts where the exception speaks of it
    telling = [*_named_causes(causes), *(item for item in causes[1:] if item.path and item.path in first.text)]
    behind = next((cause for cause in telling if cause.is_os_error), None)
    return _of_os_error(behind, root) if stop == "error" and behind is not None else stop


def _of_os_error(cause: _Cause, root: str) -> Stop:
    """Judge an error of the operating system by its number and path."""
    number = cause.number or _NUMBERS.get(cause.name, 0)
    if number in _NETWORK_NUMBERS:
        return "error" if _LOCAL.search(cause.text) else "network"
    if number not in _ABSENT_NUMBERS:
        return "error"  # no room, too many files, a read-only file system: of the host or the image
    words = _SYSTEM_WORDS.sub("", cause.text)
    path = cause.path or _path_in(words)
    if number in (errno.EACCES, errno.EPERM) and (not path or cause.near == path):
        return "error"  # it is there: a file of the image
    if not path and not (_DATA.search(words) or _WEIGHTS.search(words)):
        return "error"
    return _of_path(path, cause.near, f"{path} {words}", root)


def _of_path(path: str, near: str, words: str, root: str) -> Stop:
    """Say what a path that is not there stands for, by where it is."""
    if path.startswith(_GPU_PATHS):
        return "gpu"
    catalogue = root.rstrip("/") + "/"
    in_image = path.startswith(_IMAGE_FOLDERS) or near.startswith("/opt/") or bool(_CODE.search(path))
    if in_image or path.startswith(catalogue) or near.startswith(catalogue):
        return "error"
    return "weights" if _WEIGHTS.search(words) else "data"


def _of_words(causes: Sequence[_Cause], frames: Sequence[_Frame], root: str) -> Stop:
    """Judge exceptions of libraries, which say in words what they lack."""
    first, whole = causes[0].text, "\n".join(f"{cause.kind}: {cause.text}" for cause in causes)
    if _NOT_COMPILED.search(first):
        return "error"
    if any(cause.name in _HUB_ERRORS for cause in causes):
        return "weights"
    absent = _ABSENT.search(first)
    if absent and not _GPU.search(first):
        path = _path_in(first)
        if _WEIGHTS.search(first) or any(frame.function in _LOADERS for frame in frames):
            return _of_path(path, "", f"weights {first}", root) if path else "weights"
        if _NETWORK.search(whole):
            return "network"
        if _DATA.search(first):
            return _of_path(path, "", first, root) if path else "data"
        return "error"
    if _NETWORK.search(whole):
        return "error" if _LOCAL.search(whole) else "network"
    return "gpu" if _GPU.search(whole) else "error"


def classify_output(output: str, code: Any, signal: Any) -> tuple[Stop, str]:
    """Say what kind of trouble it was where there is only what the step said last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else "it printed nothing"
    ended = f"killed by signal {signal}" if signal else f"exited with code {code}"
    recent = "\n".join(lines[-RECENT_LINES:])
    missing = _SHELL_MISSING.search(recent)
    stop: Stop = "error"
    if code == 2 and re.search(r"^usage:|error: ", recent, re.M):
        stop = "usage"
    elif missing and (missing["shell"] or missing["other"]).rpartition("/")[2] in _GPU_PROGRAMS:
        stop = "gpu"
    elif code in (126, 127) or missing:
        stop = "program"
    elif _MODULE.search(recent):
        stop = "gpu" if _is_driver(recent) else "module"
    elif _NOT_COMPILED.search(recent):
        stop = "error"
    elif _GPU.search(recent):
        stop = "gpu"
    elif _NETWORK.search(recent):
        stop = "network"
    elif _ABSENT.search(last) and (_WEIGHTS.search(last) or _DATA.search(last)):
        stop = _of_path(_path_in(last), "", last, "/nowhere")
    if missing and stop == "program":
        last = missing[0]
    return stop, f"{ended}: {last}"


def _program_of(cause: _Cause, starts: Sequence[Mapping[str, Any]], frames: Sequence[_Frame]) -> str:
    """Return the program that an exception is about, if it is about one that was to be started."""
    number = cause.number or _NUMBERS.get(cause.name, 0)
    if number not in _EXEC_NUMBERS or not starts:
        return ""
    if cause.path:
        known = next((item for item in reversed(starts) if cause.path in (_name_of(item), item.get("program"))), None)
        name = _name_of(known) if known is not None else ""
        return name if cause.path.endswith(f"/{name}") or known is None else cause.path
    last = starts[-1]
    name = _name_of(last)
    return name if frames and _starts_programs(frames[-1], last.get("place")) else ""


def _starts_programs(frame: _Frame, place: Any) -> bool:
    """Tell whether the innermost frame is one that starts programs: of the library, or the line seen to start one."""
    if _OS_FILE.search(frame.file):
        return frame.function.lstrip("_").startswith(("exec", "spawn", "popen"))
    if _SUBPROCESS_FILE.search(frame.file):
        return frame.function == "_execute_child"
    spots = [place.get("step"), place.get("library")] if isinstance(place, dict) else []
    return any(isinstance(spot, (list, tuple)) and list(spot[:2]) == [frame.file, frame.line] for spot in spots)


def _is_environment(frame: _Frame) -> bool:
    return bool(_OS_FILE.search(frame.file)) and frame.function == "__getitem__"


def _name_of(start: Mapping[str, Any]) -> str:
    """Return what a program was called by."""
    argv = start.get("argv")
    return str(argv[0]) if isinstance(argv, (list, tuple)) and argv else str(start.get("program", ""))


def _is_driver(text: str) -> bool:
    """Tell whether what cannot be loaded is the driver's, which comes from the host, and not the image's."""
    if _NO_MODULE.search(text) or "cannot import name" in text:
        return False
    return bool(_DRIVER_LIBRARY.search(text)) or ("shared object" not in text and bool(_GPU.search(text)))


def _named_causes(causes: Sequence[_Cause]) -> list[_Cause]:
    """Return the causes that code named itself by `raise … from`, as far as the chain of them goes."""
    found = []
    for cause in causes[1:]:
        if cause.link != "cause":
            break
        found.append(cause)
    return found


def _path_in(text: str) -> str:
    found = _PATH.search(text)
    return found[1] if found else ""


def _causes(failure: Mapping[str, Any]) -> list[_Cause]:
    written = failure.get("causes")
    found = []
    for item in written if isinstance(written, (list, tuple)) else ():
        if isinstance(item, (list, tuple)) and len(item) >= 2:
            padded = [*item, *["", "", "", 0, "", "", 0][len(item) :]]
            numbers = [value if isinstance(value, int) else 0 for value in (padded[3], padded[6])]
            words = [str(value) for value in (padded[0], padded[1], padded[2] or "", padded[4] or "", padded[5] or "")]
            found.append(_Cause(words[0], words[1], words[2], numbers[0], words[3], words[4], numbers[1]))
    return found


def _frames(failure: Mapping[str, Any]) -> list[_Frame]:
    """Return the frames of a traceback, the innermost last."""
    written = failure.get("frames")
    return [
        _Frame(str(item[0]), item[1], str(item[2]) if len(item) > 2 else "")
        for item in (written if isinstance(written, (list, tuple)) else ())
        if isinstance(item, (list, tuple)) and len(item) >= 2
    ]
