"""The documents say what the program does: commands, options, keys, codes, formats, links and packages are compared."""

from __future__ import annotations

import inspect
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pydantic
import pytest

import cli_reference
from airferry import errors
from airferry.bundle.manifest import BundleManifest, ImageEntry, LayerEntry, PlatformEntry
from airferry.bundle.receipt import Receipt, ReceiptImage
from airferry.cli.app import INTERRUPTED
from airferry.cli.pipes import CLOSED_PIPE
from airferry.config import BootstrapBase, Config
from airferry.config.fields import StrictModel
from airferry.plan.lockfile import LockedAddition, LockedPlatform, Lockfile

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "cli.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
PACKAGE = ROOT / "src" / "airferry"


def model_sections() -> dict[str, type[StrictModel]]:
    """Return every model of airgap.yaml under the heading that its section has: the path of keys that leads to it."""
    found: dict[str, type[StrictModel]] = {"Top level": Config, "`base_image: {bootstrap: …}`": BootstrapBase}
    waiting: list[tuple[str, type[StrictModel]]] = [("", Config)]
    while waiting:
        path, model = waiting.pop(0)
        for name, field in model.model_fields.items():
            for below, kind in nested(field.annotation):
                if kind not in found.values():
                    title = f"{path}.{name}{below}".removeprefix(".")
                    found[f"`{title}`"] = kind
                    waiting.append((title, kind))
    return found


def nested(annotation: Any) -> Iterator[tuple[str, type[StrictModel]]]:
    """Yield the models in a type, each with what its path gets: `.<name>` in a mapping, `[]` in a list."""
    if inspect.isclass(annotation) and issubclass(annotation, StrictModel):
        yield "", annotation
    mark = {dict: ".<name>", tuple: "[]", list: "[]"}.get(get_origin(annotation), "")
    for part in get_args(annotation):
        for below, kind in nested(part):
            yield mark + below, kind


SECTIONS = model_sections()

identify = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


# --- reading Markdown ------------------------------------------------------------------------------------------------


def fenced(text: str) -> list[tuple[str, str]]:
    """Return language and content of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def inline(text: str) -> list[str]:
    """Return every piece of inline code outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def tables(text: str) -> Iterator[list[list[str]]]:
    """Yield every table as rows of cells, the head first."""
    for block in re.findall(r"(?:^\|.*\|\n)+", prose(text) + "\n", re.MULTILINE):
        rows = [
            [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.splitlines()
        ]
        yield [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]


def section(text: str, title: str) -> str:
    """Return what stands below a heading, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading {title!r}"
    return found[1]


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.add(slug)
    return found


# --- commands --------------------------------------------------------------------------------------------------------


def command_lines(text: str) -> Iterator[str]:
    """Yield every call of airferry in fenced blocks, without prompt, comment and redirection."""
    for _language, content in fenced(text):
        for line in content.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:\$ )?(?:\S*/)?airferry\s+(?=\S)(.*)", line.strip())
            if found:
                yield re.split(r"\s[|<>&;#]|\s#", found[1])[0].strip()


def resolve(words: list[str]) -> tuple[Any, list[str], list[str]]:
    """Return the command that words name, the global options before its name, and what comes after it."""
    group = cli_reference.program()
    before: list[str] = []
    while words and words[0].startswith("-"):
        before.append(words.pop(0))
    command = group
    while words and cli_reference.is_group(command):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    return command, before, words


def check_options(words: list[str], known: set[str]) -> None:
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in known, f"there is no option {word}"


@identify
def test_every_call_in_a_block_is_one_that_the_program_takes(document: Path) -> None:
    for line in command_lines(document.read_text()) if document != REFERENCE else ():
        command, before, rest = resolve(shlex.split(line))
        check_options(before, cli_reference.options(cli_reference.program()))
        check_options(rest, cli_reference.options(command))
        if "--help" not in rest and "--version" not in before:
            command.make_context("airferry", rest)


@identify
def test_every_command_and_option_named_in_a_sentence_exists(document: Path) -> None:
    every = [command for _path, command in cli_reference.commands(cli_reference.program())]
    known = cli_reference.options(cli_reference.program()).union(*map(cli_reference.options, every))
    for code in inline(document.read_text()):
        if code.startswith("airferry ") and not code.startswith("airferry COMMAND"):
            command, before, rest = resolve(code.removeprefix("airferry ").split())
            check_options(before, cli_reference.options(cli_reference.program()))
            check_options(rest, cli_reference.options(command))
        elif code.startswith("--"):
            check_options([word for word in re.split(r"[ /]", code) if word.startswith("--")], known)


def test_every_command_that_a_message_names_exists() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for line in re.findall(r"`airferry ([a-z][^`{]*)", path.read_text()):
            try:
                command, _before, rest = resolve(line.split())
                check_options(rest, cli_reference.options(command))
            except AssertionError as error:
                wrong.append(f"{path.relative_to(ROOT)}: `airferry {line.strip()}`: {str(error).splitlines()[0]}")
    assert wrong == []


def test_the_command_line_reference_is_the_generated_one() -> None:
    """Set AIRFERRY_REGENERATE=1 to write it again."""
    if os.environ.get("AIRFERRY_REGENERATE"):
        REFERENCE.write_text(cli_reference.render())
    assert REFERENCE.read_text() == cli_reference.render()


# --- links -----------------------------------------------------------------------------------------------------------


@identify
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (document.parent / path).resolve() if path else document
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other.read_text()), target


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page.suffix == ".md" and page not in reached:
            reached.add(page)
            found = re.findall(r"\]\(([^):#\s]+)", prose(page.read_text()))
            waiting += [(page.parent / target).resolve() for target in found]
    assert set(DOCUMENTS) <= reached


# --- what the code says ----------------------------------------------------------------------------------------------


def exit_codes() -> dict[str, str]:
    """Return every documented code with the class of its family, where it has one."""
    families = {
        str(kind.exit_code): f"`{name}`"
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.AirferryError) and kind is not errors.AirferryError
    }
    return {"0": "", "1": "", **families, str(INTERRUPTED): "", str(CLOSED_PIPE): ""}


def test_every_table_of_exit_codes_is_the_catalogue_of_errors() -> None:
    found = 0
    for document in DOCUMENTS:
        for head, *rows in tables(document.read_text()):
            if head[0] == "Code":
                found += 1
                assert {row[0]: row[1] for row in rows} == exit_codes(), document.name
    assert found


@pytest.mark.parametrize("title", SECTIONS)
def test_the_configuration_page_has_every_key_and_its_default(title: str) -> None:
    (table,) = tables(section((DOCS / "configuration.md").read_text(), title))
    head, *rows = table
    assert head[:3] == ["Key", "Takes", "Default"]
    fields = SECTIONS[title].model_fields
    assert {row[0].strip("`") for row in rows} == set(fields)
    for name, _takes, default, *_ in rows:
        expected = default_text(fields[name.strip("`")])
        assert expected is None or default == expected, name


def default_text(field: pydantic.fields.FieldInfo) -> str | None:
    """Return how a default stands in a table, or None where only words can say it."""
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, tuple) and value:
        return f"`[{', '.join(value)}]`"
    return None


def test_every_environment_variable_is_documented_and_real() -> None:
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").rglob("*"), *(ROOT / "tests").rglob("*.py")]
    real = {
        name
        for path in sources
        if path.is_file()
        for name in re.findall(r"AIRFERRY_[A-Z]+(?:_[A-Z]+)*", path.read_text(errors="replace"))
    }
    for document in DOCUMENTS:
        named = set(re.findall(r"AIRFERRY_[A-Z]+(?:_[A-Z]+)*", document.read_text()))
        assert named <= real, document.name
    page = section((DOCS / "configuration.md").read_text(), "Environment variables")
    assert cli_reference.environment_names() | {"AIRFERRY_CACHE"} <= set(inline(page))


def test_every_artifact_type_is_documented_and_real() -> None:
    code = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    defined = dict(re.findall(r'(\w+_ARTIFACT) = "(application/[\w./+-]+)"', "".join(code.values())))
    near_side = "".join(text for path, text in code.items() if "build" in path.relative_to(PACKAGE).parts)
    written = {kind for name, kind in defined.items() if re.search(rf"\b{name}\b(?! =)", near_side)}
    page = (DOCS / "formats.md").read_text()
    (named,) = ({row[0].strip("`") for row in rows} for head, *rows in tables(page) if head[0] == "Artifact type")
    assert written <= named <= set(defined.values())


@pytest.mark.parametrize(
    "model",
    [
        BundleManifest,
        ImageEntry,
        PlatformEntry,
        LayerEntry,
        Receipt,
        ReceiptImage,
        Lockfile,
        LockedPlatform,
        LockedAddition,
    ],
)
def test_every_key_of_a_format_is_on_its_page(model: type[pydantic.BaseModel]) -> None:
    named = set(inline((DOCS / "formats.md").read_text()))
    assert set(model.model_fields) <= named


def test_the_architecture_names_every_package() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    head, *rows = next(table for table in tables(text) if table[0][0] == "Package")
    assert head
    # What a package that went away left (byte code) is none.
    real = {
        path.name + ("/" if path.is_dir() else "")
        for path in PACKAGE.iterdir()
        if path.name not in ("__init__.py", "py.typed") and (path.is_file() or any(path.rglob("*.py")))
    }
    assert {row[0].strip("`") for row in rows} == real


@identify
def test_documents_have_one_title_and_no_trailing_spaces(document: Path) -> None:
    text = document.read_text()
    assert len(re.findall(r"^# ", prose(text), re.MULTILINE)) == 1
    assert not re.search(r"[ \t]+$", text, re.MULTILINE)


@pytest.mark.parametrize("page", ["cli.md", "man", "airgap.schema.json"])
def test_generated_pages_speak_plainly(page: str) -> None:
    pages = sorted((DOCS / page).iterdir()) if (DOCS / page).is_dir() else [DOCS / page]
    said = " ".join(" ".join(path.read_text() for path in pages).split()).lower()
    phrases = ("no such word", "before it hurts", "anew", "afresh", "whoever", "what is known of", "another way")
    assert [phrase for phrase in phrases if phrase in said] == []
