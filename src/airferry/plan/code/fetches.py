"""What a step's code clones, installs or downloads when it starts, read from its source without running it.

One analysis for both sides: `plan` warns of it while it is cheap to change, `check` says it of what was carried. It
names a place only where the code itself calls something that fetches; what a config's values decide is not certain.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from airferry.plan.catalogue import Catalogue, StepFiles
from airferry.plan.code.fetch_commands import PROGRAMS, CommandFetch, FetchKind, commands_of, fetches_of, is_outside
from airferry.plan.code.sources import (
    CodeFile,
    Definition,
    Scope,
    StepCode,
    Unit,
    children_of,
    parts_of,
    scope_of,
    walk,
)
from airferry.plan.code.values import UNKNOWN, Values, Words

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_HTTP = ("requests", "httpx", "aiohttp")
_READS = frozenset({"get", "head", "stream", "urlopen", "download", "request", "options"})
_WRITES = frozenset({"post", "put", "patch", "delete"})
_CLIENTS = frozenset(
    {
        "requests.Session",
        "requests.session",
        "httpx.Client",
        "httpx.AsyncClient",
        "aiohttp.ClientSession",
        "urllib3.PoolManager",
    }
)
# what a call runs: the position and the keyword of the command, and whether a text of it goes to a shell
_RUNS: Mapping[str, tuple[int, str]] = {
    **{f"subprocess.{name}": (0, "args") for name in ("run", "Popen", "call", "check_call", "check_output")},
    **{f"subprocess.{name}": (0, "cmd") for name in ("getoutput", "getstatusoutput")},
    **{f"os.{name}": (0, "command") for name in ("system", "popen")},
    **{f"os.{name}": (1, "args") for name in ("execv", "execve", "execvp", "execvpe", "posix_spawn", "posix_spawnp")},
    **{f"os.{name}": (2, "args") for name in ("spawnv", "spawnve", "spawnvp", "spawnvpe")},
    "asyncio.create_subprocess_shell": (0, "cmd"),
    "pty.spawn": (0, "argv"),
}
_RUNS_ARGUMENTS: Mapping[str, int] = {
    **{f"os.{name}": 1 for name in ("execl", "execle", "execlp", "execlpe")},
    **{f"os.{name}": 2 for name in ("spawnl", "spawnle", "spawnlp", "spawnlpe")},
    "asyncio.create_subprocess_exec": 0,
}
# downloads by an address: the position and the keyword of it
_ADDRESSED: Mapping[str, tuple[int, str]] = {
    "urllib.request.urlopen": (0, "url"),
    "urllib.request.urlretrieve": (0, "url"),
    "wget.download": (0, "url"),
    "gdown.download": (0, "url"),
    "gdown.download_folder": (0, "url"),
    "gdown.cached_download": (0, "url"),
    "pooch.retrieve": (0, "url"),
    "torch.hub.load_state_dict_from_url": (0, "url"),
    "torch.hub.download_url_to_file": (0, "url"),
    "torch.utils.model_zoo.load_url": (0, "url"),
    "torchvision.datasets.utils.download_url": (0, "url"),
    "requests.request": (1, "url"),
    "httpx.request": (1, "url"),
    "httpx.stream": (1, "url"),
    "aiohttp.request": (1, "url"),
}
# downloads by a name: of what
_NAMED: Mapping[str, str] = {
    "torch.hub.load": "torch.hub's",
    "nltk.download": "NLTK's data",
    "spacy.cli.download": "spaCy's model",
    "tiktoken.get_encoding": "tiktoken's encoding",
    "tiktoken.encoding_for_model": "tiktoken's encoding",
    "fasttext.util.download_model": "fastText's model",
    "tensorflow_datasets.load": "TensorFlow Datasets'",
    "kagglehub.dataset_download": "Kaggle's",
    "kagglehub.model_download": "Kaggle's",
    "gensim.downloader.load": "gensim's",
}
# of the Hub, whatever object they are called on: these do nothing else than download
_HUB_METHODS = frozenset({"snapshot_download", "hf_hub_download", "cached_download"})
_HUB_NAMED = frozenset(
    {
        "datasets.load_dataset",
        "datasets.load_dataset_builder",
        "datasets.get_dataset_config_names",
        "datasets.get_dataset_split_names",
        "evaluate.load",
        "sentence_transformers.SentenceTransformer",
        "transformers.pipeline",
        "huggingface_hub.list_repo_files",
        "huggingface_hub.list_repo_tree",
        "huggingface_hub.model_info",
        "huggingface_hub.dataset_info",
    }
)
_HUB_KEYWORDS = ("repo_id", "path", "pretrained_model_name_or_path", "model", "model_name_or_path", "model_name")
_PACKAGED_LOADERS = frozenset(
    {
        "json",
        "parquet",
        "csv",
        "text",
        "arrow",
        "pandas",
        "xml",
        "imagefolder",
        "audiofolder",
        "webdataset",
        "generator",
    }
)
_READERS = re.compile(r"(pandas|polars)\.(read|scan)_\w+|fsspec\.open|smart_open\.open|datasets\.Dataset\.from_\w+")
_CLONES = frozenset({"git.Repo.clone_from", "git.repo.Repo.clone_from", "dulwich.porcelain.clone"})
# what a fetch without a network raises
_FAILURES = frozenset(
    {"BaseException", "Exception", "OSError", "IOError", "ConnectionError", "URLError", "HTTPError", "HTTPStatusError"}
    | {"RequestException", "RequestError", "TimeoutError", "CalledProcessError", "SubprocessError", "HfHubHTTPError"}
)
MAX_WRAPPERS = 3
Wrappers = dict[tuple[Path, str], tuple[int, str] | None]
_MODULES = {name.partition(".")[0] for name in (*_ADDRESSED, *_NAMED, *_HUB_NAMED, *_CLIENTS, *_CLONES, *_HTTP)}
_WORDS = re.compile(
    r"\b(" + "|".join(sorted({*PROGRAMS, *_MODULES})) + r"|pip[0-9.]+|\w*_download|from_pretrained|pandas|polars"
    r"|fsspec|smart_open)\b"
)


@dataclass(frozen=True, slots=True)
class StartFetch:
    """Something that is fetched when a step starts. `what` is an address, a name, or nothing where it does not show.

    `certain` is False where the config's values, or what is already there, decide whether it is fetched.
    """

    kind: FetchKind
    file: Path
    line: int
    how: str
    what: str
    certain: bool

    @property
    def text(self) -> str:
        """What the step's code does, in words."""
        if self.kind == "git" and self.how != "git clone":
            return f"may update a checkout when the step starts (`{self.how}`)"
        if self.kind == "git":
            return f"{self._verb('clone')} {self._named('a repository')} when the step starts, unless it already exists"
        if self.kind == "install":
            return f"{self._verb('install')} {self._named('packages')} when the step starts (`{self.how}`)"
        if self.kind == "hub":
            what = self._named("what its config names")
            return f"{self._verb('download')} {what} from the Hugging Face Hub (`{self.how}`)"
        if self.how in _NAMED.values():
            return f"{self._verb('download')} {self.how} {self._named('files')}"
        what = self._named("from an address that is not in the code")
        return f"{self._verb('download')} {what} (`{self.how}`)"

    def _verb(self, verb: str) -> str:
        return f"{verb}s" if self.certain else f"may {verb}"

    def _named(self, otherwise: str) -> str:
        return f"`{self.what}`" if self.what else otherwise


class StartFetches:
    """Finds what the steps of a catalogue fetch. What is shared by steps is looked at once."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._code = StepCode(catalogue)
        self._found: dict[Unit, tuple[StartFetch, ...]] = {}
        self._words: dict[Path, re.Pattern[str]] = {}
        self._wrappers: Wrappers = {}

    def of(self, step: StepFiles) -> tuple[StartFetch, ...]:
        """Return what a step fetches, in the order of the code that it reaches, its own first; each place once."""
        found: dict[tuple[object, ...], StartFetch] = {}
        for unit in self._code.reached(step):
            if unit not in self._found:
                self._found[unit] = tuple(self._look(unit, step))
            for item in self._found[unit]:
                found.setdefault((item.file, item.line, item.kind, item.what), item)
        return tuple(found.values())

    def _mentions(self, code: CodeFile, unit: Unit) -> bool:
        """Tell whether a unit has a word that what fetches has, or a name that its file gives to such a word.

        Few have, and looking closer takes most of the time.
        """
        words = self._words.get(code.path)
        if words is None:
            found = {name for name, bound in code.imports.items() if _WORDS.search(bound.dotted)}
            for name, assigned in code.top.names.items():
                spans = (code.lines[item.value.lineno - 1 : item.value.end_lineno] for item in assigned)
                if any(_WORDS.search("\n".join(span)) for span in spans):
                    found.add(name)
            pattern = "|".join(map(re.escape, sorted(found)))
            words = re.compile(rf"{_WORDS.pattern}|\b({pattern})\b") if found else _WORDS
            self._words[code.path] = words
        return words.search(_text_of(code, unit)) is not None

    def _look(self, unit: Unit, step: StepFiles) -> Iterator[StartFetch]:
        code = self._code.file(unit.path, step)
        if code is None or not self._mentions(code, unit):
            return
        own = unit.path.is_relative_to(step.folder)
        look = _Look(self._code, code, step, own=own, wrappers=self._wrappers)
        yield from look.through(self._code.nodes(unit, step), code.top)


def _text_of(code: CodeFile, unit: Unit) -> str:
    """Return the source of a unit; that of the whole file for what is at its top."""
    if unit.name is None:
        return "\n".join(code.lines)
    node = code.definitions[unit.name]
    return "\n".join(code.lines[node.lineno - 1 : node.end_lineno])


class _Look:
    """One look through the statements of a file."""

    def __init__(self, code: StepCode, file: CodeFile, step: StepFiles, *, own: bool, wrappers: Wrappers) -> None:
        self._code = code
        self._file = file
        self._step = step
        self._own = own
        self._wrappers = wrappers
        self._values = Values(code, file, step)
        self._judged: set[int] = set()
        self._goes_on = False

    def through(self, nodes: list[ast.stmt], scope: Scope) -> Iterator[StartFetch]:
        """Return the fetches below statements; definitions among them have their own scopes."""
        waiting: list[tuple[ast.AST, Scope, bool]] = [(node, scope, False) for node in reversed(nodes)]
        while waiting:
            node, place, self._goes_on = waiting.pop()
            inside = place
            if isinstance(node, Definition | ast.Lambda):
                inside = scope_of(node, place)
            elif isinstance(node, ast.Call):
                yield from self._called(node, place)
            elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.List | ast.Tuple):
                yield from self._assigned(node, place)
            elif isinstance(node, ast.BinOp) and id(node) not in self._judged and (parts := _lists_in(node)):
                self._judged |= parts
                yield from self._commands(self._values.words(node, place, line=node.lineno), node)
            elif isinstance(node, ast.List | ast.Tuple) and id(node) not in self._judged:
                yield from self._commands(self._values.words(node, place, line=node.lineno), node)
            children = reversed(children_of(node))
            if isinstance(node, ast.Try) and _goes_on(node):
                tried = {id(item) for item in node.body}
                waiting.extend((child, inside, self._goes_on or id(child) in tried) for child in children)
            else:
                waiting.extend((child, inside, self._goes_on) for child in children)

    def _assigned(self, node: ast.Assign | ast.AnnAssign, scope: Scope) -> Iterator[StartFetch]:
        """Judge a list that a name gets together with what is added to it later."""
        assert node.value is not None
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        later = scope.names.get(".".join(parts_of(target)), [])
        following = next((item.line for item in later if not item.adds and item.line > node.lineno), None)
        line = (following or 1 << 30) - 1
        words = self._values.words(target, scope, line=line) if parts_of(target) else None
        self._judged.add(id(node.value))
        yield from self._commands(words or self._values.words(node.value, scope, line=node.lineno), node.value)

    def _called(self, node: ast.Call, scope: Scope) -> Iterator[StartFetch]:
        name = self._code.dotted(self._file, node.func)
        yield from self._runs(node, name, scope)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        last = method or name.rpartition(".")[2]
        if name in _ADDRESSED or self._is_http(node, name, scope):
            yield from self._addressed(node, name, last, scope)
        elif name in _CLONES:
            address = self._argument(node, 0, "url", scope)
            if not address or is_outside(address):
                yield self._found("git", node, "git clone", address or "", certain=bool(address))
        elif name in _NAMED:
            what = self._argument(node, 0, "name", scope) or ""
            yield self._found("download", node, _NAMED[name], what, certain=self._own or bool(what))
        elif name.startswith("pip.") and last == "main":
            yield from self._commands(["pip", *(self._words(node, 0, "args", scope) or [])], node)
        elif last in _HUB_METHODS and self._is_foreign(node):
            what = self._hub_name(node, scope)
            yield self._found("hub", node, last, what, certain=self._own or bool(HUB_ID.fullmatch(what)))
        elif name in _HUB_NAMED:
            yield from self._hub_named(node, last, scope)
        elif method == "from_pretrained" and HUB_ID.fullmatch(self._hub_name(node, scope)):
            yield self._found("hub", node, last, self._hub_name(node, scope), certain=True)
        elif _READERS.fullmatch(name):
            address = self._argument(node, 0, "path", scope) or ""
            if is_outside(address):
                yield self._found(
                    "hub" if address.startswith("hf://") else "download", node, last, address, certain=True
                )

    # --- commands ----------------------------------------------------------------------------------------------------

    def _runs(self, node: ast.Call, name: str, scope: Scope) -> Iterator[StartFetch]:
        if name in _RUNS_ARGUMENTS:
            first = _RUNS_ARGUMENTS[name]
            arguments = ast.copy_location(ast.List(elts=node.args[first:], ctx=ast.Load()), node)
            words = self._values.words(arguments, scope, line=node.lineno)
            yield from self._commands(words, node)
            return
        position = _RUNS.get(name) or self._wrapped(node)
        if position is None:
            return
        given = _given(node, *position)
        if given is None or _lists_in(given):
            return  # judged where it is written
        if isinstance(given, ast.Name | ast.Attribute) and self._is_literal_list(given, scope):
            return  # the same
        words = self._values.words(given, scope, line=node.lineno)
        if words is not None:
            yield from self._commands(words, node)
        elif text := self._values.text(given, scope, line=node.lineno):
            for command in commands_of(text):
                yield from self._commands(command, node)

    def _is_literal_list(self, node: ast.expr, scope: Scope) -> bool:
        name = ".".join(parts_of(node))
        return any(_lists_in(item.value) and not item.adds for item in scope.names.get(name, ()))

    def _wrapped(self, node: ast.Call) -> tuple[int, str] | None:
        """Return which argument a function of the catalogue runs as a command, by position and name."""
        parts = parts_of(node.func)
        found = self._code.find(self._file, parts, self._step) if parts else None
        return None if found is None else self._run_by(*found, depth=0)

    def _run_by(self, code: CodeFile, name: str, *, depth: int) -> tuple[int, str] | None:
        key = (code.path, name)
        if key not in self._wrappers:
            self._wrappers[key] = None  # for a function that calls itself
            self._wrappers[key] = self._look_inside(code, name, depth=depth)
        return self._wrappers[key]

    def _look_inside(self, code: CodeFile, name: str, *, depth: int) -> tuple[int, str] | None:
        function = code.definitions[name]
        if depth >= MAX_WRAPPERS or isinstance(function, ast.ClassDef):
            return None
        names = [argument.arg for argument in [*function.args.posonlyargs, *function.args.args]]
        for node in walk(function.body):
            if not isinstance(node, ast.Call):
                continue
            position = _RUNS.get(self._code.dotted(code, node.func))
            if position is None and isinstance(node.func, ast.Name) and node.func.id in code.definitions:
                position = self._run_by(code, node.func.id, depth=depth + 1)
            given = _given(node, *position) if position else None
            if isinstance(given, ast.Name) and given.id in names:
                return names.index(given.id), given.id
        return None

    def _commands(self, words: Words | None, node: ast.expr) -> Iterator[StartFetch]:
        for item in fetches_of(words) if words else ():
            yield self._of_command(item, node)

    def _of_command(self, item: CommandFetch, node: ast.expr) -> StartFetch:
        return self._found(item.kind, node, item.program, item.what, certain=item.certain)

    # --- addresses and names -----------------------------------------------------------------------------------------

    def _is_http(self, node: ast.Call, name: str, scope: Scope) -> bool:
        first, _, last = name.rpartition(".")
        if first in _HTTP:
            return last in _READS | _WRITES
        if not isinstance(node.func, ast.Attribute) or node.func.attr not in _READS | _WRITES:
            return False
        made = node.func.value
        if not isinstance(made, ast.Call):
            client = ".".join(parts_of(made))
            made = self._client(client, scope) if client else made
        return isinstance(made, ast.Call) and self._code.dotted(self._file, made.func) in _CLIENTS

    def _client(self, name: str, scope: Scope) -> ast.expr:
        """Return what made the object that a name holds, or the name itself."""
        place: Scope | None = scope
        while place is not None:
            for item in place.names.get(name, ()):
                if isinstance(item.value, ast.Call):
                    return item.value
            place = place.parent
        if name.startswith("self."):
            for node in ast.walk(self._file.tree):
                if isinstance(node, ast.Assign) and any(".".join(parts_of(target)) == name for target in node.targets):
                    return node.value
        return ast.Name(id=name, ctx=ast.Load())

    def _addressed(self, node: ast.Call, name: str, last: str, scope: Scope) -> Iterator[StartFetch]:
        position = _ADDRESSED.get(name) or ((1, "url") if last in ("request", "stream") else (0, "url"))
        address = self._argument(node, *position, scope) or ""
        if "://" in address and not address.startswith(UNKNOWN):
            if is_outside(address):
                yield self._found("download", node, name or last, address, certain=True)
        elif last not in _WRITES:
            yield self._found("download", node, name or last, "", certain=False)

    def _hub_named(self, node: ast.Call, last: str, scope: Scope) -> Iterator[StartFetch]:
        what = self._hub_name(node, scope)
        if what in _PACKAGED_LOADERS or what.startswith((".", "/")):
            return
        certain = bool(HUB_ID.fullmatch(what)) or (bool(what) and UNKNOWN not in what and "/" not in what)
        if certain or last not in ("pipeline", "SentenceTransformer"):
            yield self._found("hub", node, last, what, certain=certain)

    def _hub_name(self, node: ast.Call, scope: Scope) -> str:
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        value = next((given[name] for name in _HUB_KEYWORDS if name in given), node.args[0] if node.args else None)
        return self._values.text(value, scope, line=node.lineno) or ""

    def _is_foreign(self, node: ast.Call) -> bool:
        """Tell whether a call points outside the catalogue, whose own definitions are read where they are."""
        parts = parts_of(node.func)
        return not parts or self._code.find(self._file, parts, self._step) is None

    def _argument(self, node: ast.Call, position: int, name: str, scope: Scope) -> str | None:
        return self._values.text(_given(node, position, name), scope, line=node.lineno)

    def _words(self, node: ast.Call, position: int, name: str, scope: Scope) -> Words | None:
        return self._values.words(_given(node, position, name), scope, line=node.lineno)

    def _found(self, kind: FetchKind, node: ast.expr, how: str, what: str, *, certain: bool) -> StartFetch:
        return StartFetch(
            kind, self._file.path, node.lineno, how, " ".join(what.split())[:300], certain and not self._goes_on
        )


def _lists_in(node: ast.expr) -> set[int]:
    """Return the ids of the lists that an expression is, or is added up of, and of the sums themselves."""
    found: set[int] = set()
    lists = False
    waiting: list[ast.expr] = [node]
    while waiting:
        item = waiting.pop()
        if isinstance(item, ast.BinOp) and isinstance(item.op, ast.Add):
            waiting += [item.left, item.right]
        elif isinstance(item, ast.List | ast.Tuple):
            lists = True
        else:
            continue
        found.add(id(item))
    return found if lists else set()


def _goes_on(node: ast.Try) -> bool:
    """Tell whether code goes on where what it tries fails for want of a network."""
    for handler in node.handlers:
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type] if handler.type else []
        if (not kinds or any(parts_of(kind)[-1:] and parts_of(kind)[-1] in _FAILURES for kind in kinds)) and not any(
            isinstance(item, ast.Raise) or (isinstance(item, ast.Call) and parts_of(item.func)[-1:] == ["exit"])
            for statement in handler.body
            for item in ast.walk(statement)
        ):
            return True
    return False


def _given(node: ast.Call, position: int, name: str) -> ast.expr | None:
    """Return the argument of a call by position or keyword."""
    if position < len(node.args):
        given = node.args[position]
        return None if isinstance(given, ast.Starred) else given
    return next((keyword.value for keyword in node.keywords if keyword.arg == name), None)
