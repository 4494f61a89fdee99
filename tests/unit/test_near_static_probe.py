"""What a base's files tell of its Python, what they do not tell, and that nothing is guessed then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.errors import BuildError
from airferry.rootfs.files import import_statements, imported_names, reader_for
from airferry.rootfs.python import StaticallyUnknown
from layer_tars import Item, link
from static_bases import SITE, elf, probe, python_of, site, statuses

# --- the interpreter ---


def test_a_python_built_from_source() -> None:
    python = probe(python_of()).python
    assert (python.executable, python.version, python.abi) == ("/usr/local/bin/python", "3.12.4", "cp312")
    assert (python.prefix, python.base_prefix, python.in_venv) == ("/usr/local", "/usr/local", False)
    assert python.paths == {
        "purelib": "/usr/local/lib/python3.12/site-packages",
        "platlib": "/usr/local/lib/python3.12/site-packages",
        "scripts": "/usr/local/bin",
        "stdlib": "/usr/local/lib/python3.12",
    }
    assert (python.libc, python.libc_version, python.machine) == ("glibc", "2.39", "x86_64")
    assert python.extension_suffix == ".cpython-312-x86_64-linux-gnu.so"
    assert python.markers["python_full_version"] == "3.12.4"
    assert python.markers["platform_machine"] == "x86_64"


def test_a_foreign_platform_and_musl() -> None:
    items = python_of(platform="linux/arm64", libc=("lib/ld-musl-aarch64.so.1", "1.2.5"))
    python = probe(items, platform="linux/arm64").python
    assert (python.libc, python.libc_version, python.machine) == ("musl", "1.2.5", "aarch64")
    assert python.extension_suffix == ".cpython-312-aarch64-linux-musl.so"


def test_a_shared_library_says_what_the_interpreter_does_not() -> None:
    items = [item for item in python_of() if item.path != "usr/local/bin/python3.12"]
    items += [
        Item("usr/local/bin/python3.12", value=elf(), mode=0o755),
        Item("usr/local/lib/libpython3.12.so.1.0", value=elf("3.12.7+", "PyInit_posix")),
    ]
    assert probe(items).python.version == "3.12.7"


@pytest.mark.parametrize(
    ("marks", "header", "noted"),
    [
        (["/root/.pyenv/versions/3.12.7"], "", ""),
        (["/x/3.12.7", "/y/3.12.2"], '#define PY_VERSION      "3.12.7+"\n', ""),
        (["/x/3.12.7", "/y/3.12.2"], "", "version_info = 3.12.7\n"),
        ([], "", "version = 3.12.7\n"),
        (["3.12.7 | packaged by conda-forge | (main)"], "", "version = 3.12.2\n"),
    ],
)
def test_a_version_that_the_linker_hides(marks: list[str], header: str, noted: str) -> None:
    text = f"home = /usr/local/bin\n{noted}"
    layer = [
        *python_of(marks=marks),
        Item("usr/local/include/python3.12/patchlevel.h", value=header),
        Item("opt/venv/pyvenv.cfg", value=text),
        link("opt/venv/bin/python", "/usr/local/bin/python3"),
    ]
    assert probe(layer, python="/opt/venv/bin/python").python.version == "3.12.7"


def test_a_note_of_the_virtual_environment_that_the_binary_does_not_bear_out_does_not_count() -> None:
    layer = [
        *python_of(marks=["/x/3.12.7", "/y/3.12.2"]),
        Item("opt/venv/pyvenv.cfg", value="home = /usr/local/bin\nversion = 3.12.4\n"),
        link("opt/venv/bin/python", "/usr/local/bin/python3"),
    ]
    with pytest.raises(StaticallyUnknown, match=r"does not show its Python 3\.12 release"):
        probe(layer, python="/opt/venv/bin/python")


def test_a_virtual_environment_whose_home_is_gone() -> None:
    layer = [
        *python_of(),
        Item("opt/venv/pyvenv.cfg", value="home = /root/.local/share/uv/python/cpython-3.12.4/bin\n"),
        Item("opt/venv/bin/python", value=elf("3.12.4"), mode=0o755),
        Item("opt/linked/pyvenv.cfg", value="home = /root/.local/share/uv/python/cpython-3.12.4/bin\n"),
        link("opt/linked/bin/python", "/root/.local/share/uv/python/cpython-3.12.4/bin/python3.12"),
    ]
    with pytest.raises(StaticallyUnknown) as caught:
        probe(layer, python="/opt/venv/bin/python")
    assert caught.value.message.startswith(
        "`/opt/venv/pyvenv.cfg` has `home = /root/.local/share/uv/python/cpython-3.12.4/bin`, which the base does "
    )
    assert "`python:`" in (caught.value.hint or "")
    with pytest.raises(BuildError) as broken:
        probe(layer, python="/opt/linked/bin/python")
    assert broken.value.message == (
        "`/opt/linked/bin/python` of the base links to "
        "`/root/.local/share/uv/python/cpython-3.12.4/bin/python3.12`, which the base does not have"
    )
    assert "`python:`" in (broken.value.hint or "")
    # a shell passes over it, too
    assert probe(layer, env={"PATH": "/opt/linked/bin:/usr/local/bin"}).python.executable == "/usr/local/bin/python"


def test_a_virtual_environment_names_the_interpreter_that_it_was_made_from() -> None:
    plain = python_of()
    versioned = [item for item in plain if item.path not in ("usr/local/bin/python3", "usr/local/bin/python")]
    settings = Item("opt/venv/pyvenv.cfg", value="home = /usr/local/bin\n")
    linked = [settings, link("opt/venv/bin/python", "/usr/local/bin/python3")]
    copied = [settings, Item("opt/venv/bin/python", value=elf("3.12.4", "PyInit_posix"), mode=0o755)]
    for layer, venv, expected in (
        (plain, linked, "/usr/local/bin/python3.12"),
        (plain, copied, "/usr/local/bin/python"),
        (versioned, copied, "/usr/local/bin/python3.12"),
    ):
        assert probe([*layer, *venv], python="/opt/venv/bin/python").python.base_executable == expected
    assert probe(plain).python.base_executable == "/usr/local/bin/python"


def test_free_threaded_and_release_candidates() -> None:
    python = probe(python_of(version="3.14.0rc2", folder_name="python3.14t"), modules=["os"]).python
    assert (python.version, python.abi) == ("3.14.0rc2", "cp314t")
    assert python.paths["purelib"] == "/usr/local/lib/python3.14t/site-packages"


def test_the_path_of_the_image_decides_and_a_named_interpreter_beats_it() -> None:
    items = [*python_of(), *python_of("opt/conda", version="3.11.9", folder_name="python3.11")]
    assert probe(items).python.prefix == "/usr/local"
    assert probe(items, env={"PATH": "/opt/conda/bin:/usr/local/bin"}).python.prefix == "/opt/conda"
    assert probe(items, python="/opt/conda/bin/python3").python.version == "3.11.9"
    assert probe(items, python="python3.11", env={"PATH": "/nowhere:/opt/conda/bin"}).python.abi == "cp311"


@pytest.mark.parametrize("folder", ["opt/a\nhome = b", "opt/a\x1b[2J", "opt/a\u202eb"])
def test_an_interpreter_whose_path_is_several_lines_is_refused(folder: str) -> None:
    """It goes into `pyvenv.cfg`, scripts and the manifest."""
    with pytest.raises(BuildError, match="control character") as caught:
        probe(python_of(folder), env={"PATH": f"/{folder}/bin"})
    assert not isinstance(caught.value, StaticallyUnknown)


def test_no_python_is_an_answer_of_its_own() -> None:
    for layers, python in (([], None), (python_of(), "/opt/python"), ([Item("usr/bin/python3", mode=0o644)], None)):
        with pytest.raises(BuildError) as caught:
            probe(layers, python=python)
        assert not isinstance(caught.value, StaticallyUnknown)
        assert "`python:`" in (caught.value.hint or "")


def test_a_virtual_environment_sees_the_system_only_if_it_says_so() -> None:
    for says, status in (("true", "present"), ("false", "missing system_one")):
        text = f"home = /usr/local/bin\ninclude-system-site-packages = {says}\n"
        layer = [
            *site(Item("system_one.py")),
            Item("opt/venv/pyvenv.cfg", value=text),
            link("opt/venv/bin/python", "/usr/local/bin/python3"),
            Item("opt/venv/lib/python3.12/site-packages/own_one.py"),
        ]
        result = probe(layer, python="/opt/venv/bin/python", modules=["own_one", "system_one", "json"])
        assert statuses(result)["own_one"] == "present"
        assert statuses(result)["system_one"] == status
        assert (result.python.prefix, result.python.base_prefix, result.python.in_venv) == (
            "/opt/venv",
            "/usr/local",
            True,
        )
        assert result.python.paths["purelib"] == "/opt/venv/lib/python3.12/site-packages"


# --- what files do not tell ---

UNKNOWN = {
    "a script": [*python_of(), Item("usr/local/bin/python", value="#!/bin/sh\nexec other\n", mode=0o755)],
    "no version": python_of(version="none"),
    "two versions": [*python_of(), Item("usr/local/lib/libpython3.12.so.1.0", value=elf("3.12.1", "3.12.2"))],
    "another machine": python_of(platform="linux/arm64"),
    "no library": [item for item in python_of() if not item.path.endswith("os.py")],
    "an old one": python_of(version="3.6.9", folder_name="python3.6"),
    "no C library": [item for item in python_of() if "libc" not in item.path],
    "a path file": [*python_of(), Item("usr/local/bin/python3._pth")],
    "a broken home": [*python_of(), Item("usr/local/pyvenv.cfg", value="version = 3\n")],
    "versions that do not agree": python_of(marks=["/opt/python/3.12.1", "/opt/python/3.12.2"]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_files_do_not_tell_nothing_is_guessed(name: str) -> None:
    with pytest.raises(BuildError) as caught:
        probe([], UNKNOWN[name])
    assert isinstance(caught.value, StaticallyUnknown)
    assert caught.value.hint == "probe with `--probe run`"


def test_a_link_that_leads_nowhere_is_no_interpreter() -> None:
    layer = [*python_of(), link("usr/local/bin/python", "loop/x"), link("usr/local/bin/loop", "loop")]
    assert probe(layer).python.executable == "/usr/local/bin/python3"


def test_pythonhome_is_not_understood() -> None:
    with pytest.raises(StaticallyUnknown, match="PYTHONHOME"):
        probe(python_of(), env={"PYTHONHOME": "/opt"})


def test_a_module_that_a_package_may_make_is_unknown_only_if_it_is_asked_for() -> None:
    layer = site(
        Item("maker.py", value="import sys\nsys.modules[__name__ + '.made'] = None\n"),
        Item("user.py", value="import maker.made\n"),
    )
    assert statuses(probe(layer, modules=["maker", "user"])) == {"maker": "present", "user": "present"}
    answer = probe(layer, modules=["maker.made"]).modules["maker.made"]
    assert (answer.status, answer.doubt) == ("unknown", "`maker` may make it when it runs")


@pytest.mark.parametrize(
    ("source", "is_dynamic"),
    [
        ("sys.modules[__name__] = Lazy(__name__)\n", False),
        ("if 'x' in sys.modules:\n    pass\n", False),
        ("old = sys.modules[name]\nif sys.modules[name] == old:\n    pass\n", False),
        ("for folder in __path__:\n    pass\n", False),
        ("sys.modules['a.b'] = c\n", True),
        ("sys.modules[__name__ + '.b'] = c\n", True),
        ("sys.modules.setdefault('a.b', c)\n", True),
        ("known = sys.modules\n", True),
        ("register(sys.modules)\n", True),
        ("__path__ = [x]\n", True),
        ("__path__.append(x)\n", True),
        ("sys.meta_path.append(x)\n", True),
    ],
)
def test_what_may_make_modules(source: str, is_dynamic: bool) -> None:
    read = reader_for("opt/x", "a.py", len(source))
    assert read is not None
    facts = read(iter([source.encode()]))
    assert (facts is not None and facts.is_dynamic) == is_dynamic


def test_six_always_makes_its_moves() -> None:
    layer = site(Item("six.py", value="sys.modules[__name__ + '.moves'] = None\n"))
    assert statuses(probe(layer, modules=["six.moves", "six.moves.urllib"])) == dict.fromkeys(
        ["six.moves", "six.moves.urllib"], "present"
    )
    assert statuses(probe(python_of(), modules=["six.moves"])) == {"six.moves": "missing six"}


# --- modules ---


def test_modules_of_every_kind() -> None:
    layer = site(
        Item("pkg/__init__.py"),
        Item("pkg/sub.py"),
        Item("fast.cpython-312-x86_64-linux-gnu.so", value=b"x"),
        Item("stable.abi3.so", value=b"x"),
        Item("other.cpython-311-x86_64-linux-gnu.so", value=b"x"),
        Item("compiled_only.pyc", value=b"x"),
        Item("space/inner/deep.py"),
        Item("not_a_module.txt"),
    )
    names = ["pkg", "pkg.sub", "pkg.none", "pkg.sub.none", "fast", "stable", "other", "compiled_only", "not_a_module"]
    result = probe(layer, modules=[*names, "space.inner.deep", "space.none", "posix", "sys", "_struct.x", "os.path"])
    assert statuses(result) == {
        "pkg": "present",
        "pkg.sub": "present",
        "pkg.none": "missing pkg.none",
        "pkg.sub.none": "missing pkg.sub.none",
        "fast": "present",
        "stable": "present",
        "other": "missing other",
        "compiled_only": "present",
        "not_a_module": "missing not_a_module",
        "space.inner.deep": "present",
        "space.none": "missing space.none",
        "posix": "present",
        "sys": "present",
        "_struct.x": "missing _struct.x",
        "os.path": "present",
    }


def test_what_is_imported_on_the_way_must_be_there() -> None:
    assert statuses(probe(python_of(), modules=["json", "os"])) == {"json": "incomplete _json", "os": "present"}


def test_circles_of_imports() -> None:
    layer = site(
        Item("a.py", value="import b\nimport gone\n"),
        Item("b.py", value="import a\n"),
        Item("c.py", value="import d\n"),
        Item("d.py", value="import c\n"),
    )
    expected = {"a": "incomplete gone", "b": "incomplete gone", "c": "present", "d": "present"}
    assert statuses(probe(layer, modules=list("abcd"))) == expected


def test_a_chain_of_imports_that_is_deeper_than_any_stack() -> None:
    layer = site(*(Item(f"m{number}.py", value=f"import m{number + 1}\n") for number in range(3000)))
    assert statuses(probe(layer, modules=["m0"])) == {"m0": "incomplete m3000"}


def test_folders_of_python_path_come_first_and_variables_of_a_job_beat_those_of_the_image() -> None:
    layer = [
        *site(Item("pkg/__init__.py", value="import gone\n")),
        Item("srv/code/pkg/__init__.py"),
        Item("srv/code/more.py"),
    ]
    assert statuses(probe(layer, modules=["pkg", "more"]))["pkg"] == "incomplete gone"
    found = {"pkg": "present", "more": "present"}
    assert statuses(probe(layer, modules=list(found), env={"PYTHONPATH": "/srv/code"})) == found
    job = {"PYTHONPATH": "/srv/code"}
    assert statuses(probe(layer, modules=list(found), env={"PYTHONPATH": "/elsewhere"}, variables=job)) == found
    away = probe(layer, modules=list(found), env=job, variables={"PYTHONPATH": ""})
    assert statuses(away) == {"pkg": "incomplete gone", "more": "missing more"}


def test_distributions_and_the_first_on_the_path_wins() -> None:
    metadata = "Name: {}\nVersion: {}\nRequires-Dist: six\n\nName: body\n"
    layer = site(
        Item("One_Thing-1.dist-info/METADATA", value=metadata.format("One.Thing", "1")),
        Item("nameless-1.dist-info/METADATA", value="Version: 1\n"),
        Item("two.egg-info/PKG-INFO", value=metadata.format("two", "2")),
        Item("old.egg/EGG-INFO/PKG-INFO", value=metadata.format("old", "3")),
        Item("x/extra/one_thing-9.dist-info/METADATA", value=metadata.format("one-thing", "9")),
    )
    found = probe(layer, env={"PYTHONPATH": f"/{SITE}/x/extra"}).distributions
    assert [(item.name, item.version, item.requires) for item in found] == [
        ("old", "3", ("six",)),
        ("one-thing", "9", ("six",)),
        ("two", "2", ("six",)),
    ]


def test_the_mark_of_the_distributor() -> None:
    layer = [*site(Item("pip/__init__.py")), Item("usr/local/lib/python3.12/EXTERNALLY-MANAGED", value="[x]")]
    python = probe(layer).python
    assert python.externally_managed
    assert not probe(python_of()).python.externally_managed


# --- sources ---


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b, c as d\n", ("a.b", "c")),
        ("from a import b as c, d\n", ("a", "a:b", "a:d")),
        ("from . import b\nfrom ..c import *\n", (".", ".:b", "..c")),
        ("from a import (\n    b,  # why, oh\n    c,\n)\n", ("a", "a:b", "a:c")),
        ("from a import b, \\\n    c\n", ("a", "a:b")),
        ("try:\n    import a\nexcept ImportError:\n    pass\n", ()),
        ("if x:\n    import a\n", ()),
        ('"""\nimport a\n"""\nimport b\n', ("b",)),
        ("'''\nfrom a import b\n'''\n", ()),
        ("important = 1\nimport_x = 2\n", ()),
        ("x = 'import a'\n", ()),
        ("import a; import b\n", ("a",)),
    ],
)
def test_unconditional_imports(source: str, expected: tuple[str, ...]) -> None:
    assert imported_names(import_statements(source.encode())) == expected


@given(st.binary(max_size=300), st.sampled_from(["a.py", "x.pth", "python3.12", "libc.so.6", "METADATA", "site.py"]))
def test_no_content_makes_a_reader_fail(content: bytes, name: str) -> None:
    read = reader_for("x.dist-info", name, len(content))
    assert read is not None
    read(iter([content[:100], content[100:]]))
    facts = read(iter([b"import a, b\nfrom " + content + b" import " + content]))
    imported_names(facts.imports if facts is not None else content)
    read(iter([elf() + content]))


def test_a_mark_that_is_cut_by_a_block_is_found() -> None:
    data = elf("3.12.4", "PyInit__struct", "stable release version 2.39")
    read = reader_for("usr/bin", "python3.12", len(data))
    assert read is not None
    for cut in range(3000, len(data), 7):
        facts = read(iter([data[:cut], data[cut:]]))
        assert facts is not None
        assert facts.binary is not None
        assert (facts.binary.python, facts.binary.builtins, facts.binary.glibc) == (("3.12.4",), ("_struct",), "2.39")
