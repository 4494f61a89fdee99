"""What expressions of a step's code say, as far as it shows without running them: texts, and lists of words.

A part that does not show is `…` in a text and None in a list. Bounded in depth and length.
"""

from __future__ import annotations

import ast
import re
import shlex

from airferry.plan.catalogue import StepFiles
from airferry.plan.code.sources import Assignment, CodeFile, Scope, StepCode, parts_of

UNKNOWN = "…"
MAX_EVALUATION_DEPTH = 12
MAX_EVALUATIONS = 2000
MAX_WORDS = 200
MAX_TEXT_CHARACTERS = 4000
Words = list[str | None]
_SAME = frozenset({"str", "Path", "PurePath", "PurePosixPath", "fspath", "quote", "Request", "URL"})
_LISTS = frozenset({"list", "tuple", "sorted"})
_TEXT_METHODS = frozenset(
    {"strip", "rstrip", "lstrip", "lower", "removesuffix", "removeprefix", "expanduser", "resolve"}
)
_FIELD = re.compile(r"\{[^{}]*\}")
_PERCENT = re.compile(r"%[-#0-9.]*(?:\(\w+\))?[sdrifx]")


class Values:
    """Evaluates expressions of one file."""

    def __init__(self, code: StepCode, file: CodeFile, step: StepFiles, *, budget: list[int] | None = None) -> None:
        self._code = code
        self._file = file
        self._step = step
        self._budget = budget if budget is not None else [MAX_EVALUATIONS]

    def _spent(self, depth: int) -> bool:
        """Tell whether an expression has been looked at long enough: names may lead to each other in circles."""
        self._budget[0] = self._budget[0] - 1 if depth else MAX_EVALUATIONS
        return depth > MAX_EVALUATION_DEPTH or self._budget[0] < 0

    def text(self, node: ast.expr | None, scope: Scope, *, line: int, depth: int = 0) -> str | None:
        """Return the text that an expression is at a line, or None where nothing of it shows."""
        if node is None or self._spent(depth):
            return None

        def inner(part: ast.expr | None) -> str | None:
            return self.text(part, scope, line=line, depth=depth + 1)

        found: str | None = None
        match node:
            case ast.Constant(value=value):
                found = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
            case ast.JoinedStr(values=values):
                found = "".join(inner(item) or UNKNOWN for item in values)
            case ast.FormattedValue(value=value):
                found = inner(value)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                found = _joined(inner(left), inner(right), "")
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                found = _joined(inner(left), inner(right), "/")
            case ast.BinOp(left=left, op=ast.Mod()):
                whole = inner(left)
                found = _PERCENT.sub(UNKNOWN, whole) if whole else None
            case ast.BoolOp(values=values):
                found = next((text for item in values if (text := inner(item))), None)
            case ast.IfExp(body=body, orelse=orelse):
                found = inner(body) or inner(orelse)
            case ast.NamedExpr(value=value) | ast.Await(value=value):
                found = inner(value)
            case ast.Call():
                found = self._called(node, scope, line=line, depth=depth)
            case ast.Name() | ast.Attribute():
                found = self._named(node, scope, line=line, depth=depth)
        return found[:MAX_TEXT_CHARACTERS] if found else found

    def _called(self, node: ast.Call, scope: Scope, *, line: int, depth: int) -> str | None:
        def inner(part: ast.expr) -> str | None:
            return self.text(part, scope, line=line, depth=depth + 1)

        parts = parts_of(node.func)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else parts[-1] if parts else ""
        if name in _SAME and node.args:
            return inner(node.args[0])
        if parts[-2:] in (["environ", "get"], ["os", "getenv"]) or name == "getenv":
            return inner(node.args[1]) if len(node.args) > 1 else None
        if parts[-2:] == ["path", "join"]:
            return "/".join(inner(item) or UNKNOWN for item in node.args)
        if isinstance(node.func, ast.Attribute):
            whole = inner(node.func.value)
            if whole and name == "format":
                return _FIELD.sub(UNKNOWN, whole)
            if name in _TEXT_METHODS:
                return whole
        return None

    def _named(self, node: ast.expr, scope: Scope, *, line: int, depth: int) -> str | None:
        found = self._assigned(node, scope, line=line)
        if found is None:
            return None
        values, where, assignments = found
        plain = [item for item in assignments if not item.adds]
        if not plain:
            return None
        last = plain[-1]
        return values.text(last.value, where, line=last.line - 1, depth=depth + 1)

    def _assigned(self, node: ast.expr, scope: Scope, *, line: int) -> tuple[Values, Scope, list[Assignment]] | None:
        """Return the assignments that a name has at a line, and the file and scope that they are in."""
        parts = parts_of(node)
        if not parts:
            return None
        name: str = ".".join(parts)
        place: Scope | None = scope
        while place is not None:
            if name in place.names:
                known = place.names[name]
                earlier = [item for item in known if item.line <= line]
                return self, place, earlier if place is scope else known
            if parts[0] == "self" and len(parts) == 2 and parts[1] in place.names and place.parent is not None:
                return self, place, place.names[parts[1]]
            place = place.parent
        found = self._code.constant(self._file, parts, self._step)
        if found is None:
            return None
        file, assignments = found
        return Values(self._code, file, self._step, budget=self._budget), file.top, assignments

    def words(self, node: ast.expr | None, scope: Scope, *, line: int, depth: int = 0) -> Words | None:
        """Return the words of an expression that is a list of them at a line, or None where it is something else."""
        if node is None or self._spent(depth):
            return None

        def inner(part: ast.expr) -> Words | None:
            return self.words(part, scope, line=line, depth=depth + 1)

        found: Words | None = None
        match node:
            case ast.List(elts=items) | ast.Tuple(elts=items):
                found = []
                for item in items[:MAX_WORDS]:
                    if isinstance(item, ast.Starred):
                        found += inner(item.value) or [None]
                    else:
                        found.append(self.text(item, scope, line=line, depth=depth + 1))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                first, second = inner(left), inner(right)
                found = None if first is None and second is None else [*(first or [None]), *(second or [None])]
            case ast.ListComp(generators=[ast.comprehension(iter=iterated)]):
                found = inner(iterated)
            case ast.GeneratorExp(generators=[ast.comprehension(iter=iterated)]):
                found = inner(iterated)
            case ast.Call(func=function, args=[first_argument, *_]) if parts_of(function)[-1:] == ["split"]:
                found = split_words(self.text(first_argument, scope, line=line, depth=depth + 1))
            case ast.Call(func=ast.Attribute(value=value, attr="split")):
                found = split_words(self.text(value, scope, line=line, depth=depth + 1))
            case ast.Call(func=ast.Name(id=name), args=[argument]) if name in _LISTS:
                found = inner(argument)
            case ast.IfExp(body=body, orelse=orelse):
                found = inner(body) or inner(orelse)
            case ast.Name() | ast.Attribute():
                found = self._named_words(node, scope, line=line, depth=depth)
        return found[:MAX_WORDS] if found else found

    def _named_words(self, node: ast.expr, scope: Scope, *, line: int, depth: int) -> Words | None:
        found = self._assigned(node, scope, line=line)
        if found is None:
            return None
        values, where, assignments = found
        result: Words | None = None
        for item in assignments[-MAX_WORDS:]:
            words = values.words(item.value, where, line=item.line - 1, depth=depth + 1)
            if not item.adds:
                result = words
            elif result is not None:
                result = [*result, *(words or [None])][:MAX_WORDS]
        return result


def split_words(text: str | None) -> Words | None:
    """Return the words of a command line, or None where it is none."""
    if not text:
        return None
    try:
        words: Words = [*shlex.split(text, comments=True)]
    except ValueError:
        words = [*text.split()]
    return words[:MAX_WORDS]


def _joined(left: str | None, right: str | None, between: str) -> str | None:
    if left is None and right is None:
        return None
    return f"{left or UNKNOWN}{between}{right or UNKNOWN}"
