"""Rules about a step's own code: checkouts that it makes when it starts and nobody baked. Parses, never runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from airferry.errors import HostError
from airferry.host import files
from airferry.site.findings import Finding
from airferry.site.step_context import StepContext

MAX_SOURCE_BYTES = 4 * 1024 * 1024


def code_findings(context: StepContext) -> Iterator[Finding]:
    """Yield each repository that a file of the step clones by itself and that its image does not hold."""
    baked = {_plain(overlay.url) for overlay in context.image.overlays} if context.image is not None else set()
    for path in sorted(context.files.folder.rglob("*.py")):
        tree = _parsed(path)
        if tree is None:
            continue
        named = _constants(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.List | ast.Tuple) and _is_clone(node):
                for url in _urls_of(node, named):
                    if _plain(url) not in baked:
                        yield _finding(context, path, line=node.lineno, url=url)


def _finding(context: StepContext, path: Path, *, line: int, url: str) -> Finding:
    return Finding(
        step=context.name,
        kind="git",
        level="warn",
        file=context.shown_path(path.resolve()),
        line=line,
        key=path.name,
        value=url,
        text="the step's own code clones it when the job starts, unless it is there already",
        fix=f"bake it: `overlays:` of the step's image in airgap.yaml, {url}@REF in the folder that it reads",
    )


def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(files.read_bounded(path, limit_bytes=MAX_SOURCE_BYTES))
    except (HostError, SyntaxError, ValueError):
        return None


def _constants(tree: ast.Module) -> dict[str, str]:
    """Return the names that the module gives to texts at its top."""
    return {
        target.id: item.value.value
        for item in tree.body
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)
        for target in item.targets
        if isinstance(target, ast.Name)
    }


def _is_clone(node: ast.List | ast.Tuple) -> bool:
    words = [item.value if isinstance(item, ast.Constant) else None for item in node.elts]
    return words[:1] == ["git"] and "clone" in words


def _urls_of(node: ast.List | ast.Tuple, named: dict[str, str]) -> Iterator[str]:
    for item in node.elts:
        named_text = named.get(item.id) if isinstance(item, ast.Name) else None
        text = item.value if isinstance(item, ast.Constant) else named_text
        if isinstance(text, str) and text.startswith(("https://", "http://", "ssh://", "git@")):
            yield text


def _plain(url: str) -> str:
    return url.removesuffix("/").removesuffix(".git")
