"""What runs when a base's Python starts: hooks that are understood, and that others leave open what they may bring."""

from __future__ import annotations

import json

import pytest

from airferry.near.probe.answers import ProbeResult
from layer_tars import Item, link
from static_bases import SITE, probe, python_of, site, statuses

UNKNOWN_HOOK = [
    Item("hook.pth", value="import strange\n"),
    Item("strange.py", value="import sys\nsys.meta_path.append(Finder())\n"),
]


def doubts(result: ProbeResult) -> dict[str, str]:
    return {name: found.doubt for name, found in result.modules.items() if found.doubt}


def test_a_hook_that_is_not_understood_leaves_open_only_what_is_found_nowhere() -> None:
    layer = site(
        *UNKNOWN_HOOK,
        Item("here/__init__.py"),
        Item("whole.py", value="import here\n"),
        Item("part.py", value="import gone\n"),
        Item("one-1.0.dist-info/METADATA", value="Name: one\nVersion: 1.0\n"),
    )
    result = probe(layer, modules=["here", "whole", "part", "json", "gone", "here.gone"])
    assert statuses(result) == {
        "here": "present",
        "whole": "present",
        "part": "incomplete gone",
        "json": "incomplete _json",
        "gone": "unknown gone",
        "here.gone": "unknown here.gone",
    }
    why = f"`/{SITE}/hook.pth` runs `/{SITE}/strange.py` when Python starts, which may change what can be imported"
    assert doubts(result) == dict.fromkeys(["part", "json", "gone", "here.gone"], why)
    assert [item.name for item in result.distributions] == ["one"]
    assert result.python.version == "3.12.4"


NOT_UNDERSTOOD = {
    "code that runs text": site(Item("a.pth", value="import sys; exec(open('/x').read())\n")),
    "code that is none": site(Item("a.pth", value="import sys; (\n")),
    "a hook in a package": site(Item("a.pth", value="import pkg.hook\n"), Item("pkg/__init__.py"), Item("pkg/hook.py")),
    "a condition on more than variables": site(
        Item("a.pth", value="import sys; exec('if f():\\n sys.path[:0] = x')\n")
    ),
    "a module that gets at the path": site(
        Item("a.pth", value="import b\n"), Item("b.py", value="from sys import path as p\np.append(x())\n")
    ),
    "a module whose own import does": site(
        Item("a.pth", value="import b\n"),
        Item("b.py", value="def f():\n    from c import g\n"),
        Item("c.py", value="import importlib\nimportlib.import_module('x')\n"),
    ),
    "a finder of another kind": site(
        Item("__editable__.x.pth", value="import __editable___x_finder; __editable___x_finder.install()"),
        Item("__editable___x_finder.py", value="import sys\nMAPPING = build_it()\nsys.meta_path.append(F)\n"),
    ),
    "a build folder that is gone": site(
        Item("x.pth", value="import _x_editable_loader"),
        Item("_x_editable_loader.py", value="class MesonpyMetaFinder: pass\ninstall('x', {'x'}, '/gone', [], False)\n"),
    ),
    "a customisation": site(Item("sitecustomize.py", value="import sys\nsys.path = [*sys.path, where()]\n")),
    "a customisation that is a package": site(Item("sitecustomize/__init__.py", value="x = 1\n")),
    "the user's customisation": site(Item("usercustomize.py", value="import sys\nsys.meta_path.insert(0, x)\n")),
    "a zipped egg": site(Item("easy-install.pth", value="./x.egg\n"), Item("x.egg", value="PK")),
    "a file that is too large": site(Item("large.pth", value="/nowhere\n" * 120_000)),
}


@pytest.mark.parametrize("name", NOT_UNDERSTOOD)
def test_nothing_is_guessed_of_what_is_not_understood(name: str) -> None:
    result = probe(NOT_UNDERSTOOD[name], modules=["os", "nowhere"])
    assert statuses(result) == {"os": "present", "nowhere": "unknown nowhere"}
    (doubt,) = set(doubts(result).values())
    assert doubt.startswith(f"`/{SITE}/")


def test_a_large_pth_file_is_named_with_the_limit() -> None:
    result = probe(NOT_UNDERSTOOD["a file that is too large"], modules=["nowhere"])
    assert result.modules["nowhere"].doubt == f"`/{SITE}/large.pth` is larger than 1 MiB and is not read"


COVERAGE = (
    'import sys; exec(\'import os\\n\\nif os.getenv("COVERAGE_PROCESS_START") or os.getenv("COVERAGE_PROCESS_CONFIG"):'
    '\\n try:\\n  import coverage\\n except:\\n  pass\\n else:\\n  coverage.process_startup(slug="pth")\')\n'
)
UNDERSTOOD = {
    "coverage": site(Item("a1_coverage.pth", value=COVERAGE)),
    "pytest-cov": site(
        Item("p.pth", value="import os, sys;exec('if \"COV_CORE_SOURCE\" in os.environ:\\n strange(sys.path)')\n")
    ),
    "a guard that is off": site(Item("p.pth", value="import os; os.getenv('X_HOOK') and __import__('x').go()\n")),
    "virtualenv": site(
        Item("_virtualenv.pth", value="import _virtualenv"),
        Item(
            "_virtualenv.py", value="import sys\n_DISTUTILS_PATCH = 1\nclass _Finder: pass\nsys.meta_path[:0] = [x]\n"
        ),
    ),
    "a module that only sets variables": site(
        Item("env.pth", value="import set_env\n"),
        Item("set_env.py", value="import os\nimport other\n\nos.environ.setdefault('A', other.B)\n"),
        Item("other.py", value="B = '1'\n"),
    ),
    "a module that is not there": site(
        Item("x.pth", value="import __editable___x_finder; __editable___x_finder.install()")
    ),
    "Ubuntu's customisation": [
        *site(Item("apport_python_hook.py", value="import sys\nsys.excepthook = sys.modules\n")),
        Item(
            "etc/python3.12/sitecustomize.py",
            value="try:\n    import apport_python_hook\nexcept ImportError:\n    pass\nelse:\n"
            "    apport_python_hook.install()\n",
        ),
        link("usr/local/lib/python3.12/sitecustomize.py", "/etc/python3.12/sitecustomize.py"),
    ],
    "an empty customisation": site(Item("sitecustomize.py")),
    "a hidden file": [
        *site(Item(".hidden.pth", value="import strange\n"), *UNKNOWN_HOOK[1:]),
        Item("usr/local/lib/python3.12/site.py", value="if name.startswith('.')  # hidden\n"),
    ],
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_hooks_that_change_no_imports(name: str) -> None:
    assert statuses(probe(UNDERSTOOD[name], modules=["nowhere"])) == {"nowhere": "missing nowhere"}


@pytest.mark.parametrize(
    ("site_py", "status"), [("f.read()\n", "missing marked"), ('content.decode("utf-8-sig")\n', "present")]
)
def test_a_byte_order_mark_is_skipped_only_where_the_base_does(site_py: str, status: str) -> None:
    layer = [
        *site(Item("a.pth", value="\ufeff/srv/marked\n")),
        Item("srv/marked/marked.py"),
        Item("usr/local/lib/python3.12/site.py", value=site_py),
    ]
    assert statuses(probe(layer, modules=["marked"])) == {"marked": status}


def test_a_guard_that_is_on_is_followed() -> None:
    layer = UNDERSTOOD["pytest-cov"]
    assert statuses(probe(layer, modules=["nowhere"], env={"COV_CORE_SOURCE": "x"})) == {"nowhere": "unknown nowhere"}


def test_folders_that_hooks_put_on_the_path() -> None:
    layer = [
        *site(
            Item("a.pth", value="import sys; sys.path.insert(0, '/srv/first'); sys.path.append('/srv/last')\n"),
            Item("sitecustomize.py", value="import site\nsite.addsitedir('/srv/site')\n"),
            Item("twice.py", value="import gone\n"),
        ),
        Item("srv/first/twice.py"),
        Item("srv/last/late.py"),
        Item("srv/site/more.pth", value="../more\n"),
        Item("srv/more/even_more.py"),
    ]
    modules = ["twice", "late", "even_more", "nowhere"]
    assert statuses(probe(layer, modules=modules)) == {
        "twice": "present",
        "late": "present",
        "even_more": "present",
        "nowhere": "missing nowhere",
    }


def test_what_easy_install_moved_to_the_front() -> None:
    begin, end = "import sys; sys.__plen = len(sys.path)", "import sys; new=sys.path[sys.__plen:]"
    text = f"{begin}\n./new.egg\n{end}; del sys.path[sys.__plen:]; p=getattr(sys,'__egginsert',0)\n"
    layer = site(Item("easy-install.pth", value=text), Item("new.egg/x.py"), Item("x.py", value="import gone\n"))
    assert statuses(probe(layer, modules=["x"])) == {"x": "present"}


REDIRECTOR = (
    'class NumbaCudaFinder:\n    def find_spec(self, name, path, target=None):\n        if "numba.cuda" in name:\n'
    "            return None\nsys.meta_path.insert(0, NumbaCudaFinder())\n"
)


def test_numba_cuda_takes_the_place_of_numbas_own() -> None:
    hook = [
        Item("_numba_cuda_redirector.pth", value="# SPDX\n\nimport _numba_cuda_redirector\n"),
        Item("_numba_cuda_redirector.py", value=REDIRECTOR),
        Item("numba/__init__.py"),
        Item("numba/cuda/__init__.py"),
        Item("numba/cuda/old.py"),
    ]
    newer = [
        Item("numba_cuda/__init__.py"),
        Item("numba_cuda/numba/cuda/__init__.py"),
        Item("numba_cuda/numba/cuda/new.py"),
    ]
    modules = ["numba.cuda", "numba.cuda.old", "numba.cuda.new", "nowhere"]
    assert statuses(probe(site(*hook, *newer), modules=modules)) == {
        "numba.cuda": "present",
        "numba.cuda.old": "missing numba.cuda.old",
        "numba.cuda.new": "present",
        "nowhere": "missing nowhere",
    }
    assert statuses(probe(site(*hook), modules=modules))["numba.cuda.old"] == "present"


# --- editable installs ---

SETUPTOOLS = "MAPPING: dict[str, str] = {'made': '/src/made', 'lost': '/gone/lost'}\nNAMESPACES = {'ns': ['/src/ns']}\n"


def test_an_editable_install_of_setuptools_and_one_that_leads_nowhere() -> None:
    layer = [
        *site(
            Item("x.pth", value="import __editable___x_1_0_finder; __editable___x_1_0_finder.install()"),
            Item("__editable___x_1_0_finder.py", value=SETUPTOOLS),
            Item("__editable__.dead_end-1.0.pth", value="/gone/src\n"),
        ),
        Item("src/made/__init__.py"),
        Item("src/ns/part.py"),
    ]
    result = probe(layer, modules=["made", "lost", "ns.part", "dead_end", "nowhere"])
    assert statuses(result) == {
        "made": "present",
        "lost": "missing lost",
        "ns.part": "present",
        "dead_end": "missing dead_end",
        "nowhere": "missing nowhere",
    }
    assert {name: found.note for name, found in result.modules.items() if found.note} == {
        "lost": "an editable install points to `/gone/lost`, which the base does not have",
        "dead_end": f"`/{SITE}/__editable__.dead_end-1.0.pth` points to `/gone/src`, which the base does not have",
    }


@pytest.mark.parametrize(
    "call",
    [
        "install({'sk': '/src/sk/__init__.py', 'sk.a': '/src/sk/a.py'}, {'sk._core': 'sk/_core.abi3.so'}, "
        "{'sk': ['/src/sk', 'sk']}, ['sk'], None, False, True, [], [], '')",
        # before 1.0
        "install({'sk': '/src/sk/__init__.py', 'sk.a': '/src/sk/a.py'}, {'sk._core': 'sk/_core.abi3.so'}, None, "
        "False, True, [], [])",
    ],
)
def test_scikit_build_core(call: str) -> None:
    layer = [
        *site(
            Item("_sk_editable.pth", value="import _sk_editable\n/src\n"),
            Item(
                "_sk_editable.py", value=f"class ScikitBuildRedirectingFinder: pass\ndef install(): pass\n\n\n{call}\n"
            ),
            Item("sk/_core.abi3.so", value=b"x"),
            Item("sk/data.txt"),
        ),
        Item("src/sk/__init__.py", value="from . import a\n"),
        Item("src/sk/a.py"),
    ]
    result = probe(layer, modules=["sk", "sk.a", "sk._core", "sk.gone", "nowhere"])
    assert statuses(result) == {
        "sk": "present",
        "sk.a": "present",
        "sk._core": "present",
        "sk.gone": "missing sk.gone",
        "nowhere": "missing nowhere",
    }


def test_scikit_build_core_in_place_changes_no_imports() -> None:
    text = "class ScikitBuildRedirectingFinder: pass\n\n\ninstall_inplace(['sk'], ['/src'], None, False, True, [])\n"
    layer = [
        *site(Item("s.pth", value="import _s_editable\n/src\n"), Item("_s_editable.py", value=text)),
        Item("src/sk.py"),
    ]
    assert statuses(probe(layer, modules=["sk", "nowhere"])) == {"sk": "present", "nowhere": "missing nowhere"}


def test_a_file_that_scikit_build_core_maps_and_that_is_gone() -> None:
    text = "class ScikitBuildRedirectingFinder: pass\ninstall({'sk': '/gone/sk.py'}, {}, {}, [], None)\n"
    result = probe(
        site(Item("s.pth", value="import _s_editable\n"), Item("_s_editable.py", value=text)), modules=["sk"]
    )
    assert result.modules["sk"].note == "an editable install points to `/gone/sk.py`, which the base does not have"


@pytest.mark.parametrize(
    "call",
    [
        "def init():\n    f = MesonpyMetaFinder('x', {'me'}, '/src/me/build', ['ninja'], False)\n",
        "def install(*args):\n    sys.meta_path.insert(0, MesonpyMetaFinder(*args))\n"
        "install('x', {'me'}, '/src/me/build', ['ninja'], False)\n",
    ],
)
def test_meson_python(call: str) -> None:
    plan = {
        "python": {
            "/src/me/me/__init__.py": {"destination": "{py_purelib}/me/__init__.py"},
            "/src/me/me/a.py": {"destination": "{py_purelib}/me/a.py"},
            "/src/me/me/gone.py": {"destination": "{py_purelib}/me/gone.py"},
        },
        "targets": {"/src/me/build/fast.so": {"destination": "{py_platlib}/me/space/fast.abi3.so"}},
        "install_subdirs": {"/src/me/tree": {"destination": "{py_purelib}/me/tree"}},
        "headers": {"/src/me/x.h": {"destination": "{includedir}/x.h"}},
    }
    layer = [
        *site(
            Item("x-editable.pth", value="import _x_editable_loader; _x_editable_loader.init()"),
            Item("_x_editable_loader.py", value=f"class MesonpyMetaFinder: pass\n{call}"),
        ),
        Item("src/me/build/meson-info/intro-install_plan.json", value=json.dumps(plan)),
        Item("src/me/build/fast.so", value=b"x"),
        Item("src/me/me/__init__.py"),
        Item("src/me/me/a.py"),
        Item("src/me/tree/inner/b.py"),
    ]
    modules = ["me", "me.a", "me.gone", "me.space.fast", "me.tree.inner.b", "me.tree.c"]
    assert statuses(probe(layer, modules=modules)) == {
        "me": "present",
        "me.a": "present",
        "me.gone": "missing me.gone",
        "me.space.fast": "present",
        "me.tree.inner.b": "present",
        "me.tree.c": "missing me.tree.c",
    }


def test_the_redirector_of_editables() -> None:
    text = (
        "from editables.redirector import RedirectingFinder as F\nF.install()\n"
        "F.map_module('ed', '/src/ed/__init__.py')\nF.map_module('single', '/src/single.py')\n"
    )
    layer = [
        *site(Item("e.pth", value="import _editable_impl_ed\n"), Item("_editable_impl_ed.py", value=text)),
        Item("src/ed/__init__.py"),
        Item("src/ed/a.py"),
        Item("src/single.py"),
    ]
    modules = ["ed", "ed.a", "ed.b", "single", "nowhere"]
    assert statuses(probe(layer, modules=modules)) == {
        "ed": "present",
        "ed.a": "present",
        "ed.b": "missing ed.b",
        "single": "present",
        "nowhere": "missing nowhere",
    }


# --- layouts ---


def test_an_interpreter_that_uv_manages_with_packages_linked_into_its_cache() -> None:
    python = "root/.local/share/uv/python/cpython-3.12.4-linux-x86_64-gnu"
    cache, packages = "/root/.cache/uv/archive-v0", "opt/nemo_rl_venv/lib/python3.12/site-packages"
    layer = [
        *python_of(python),
        Item("opt/nemo_rl_venv/pyvenv.cfg", value=f"home = /{python}/bin\nuv = 0.8\nversion_info = 3.12.4\n"),
        link("opt/nemo_rl_venv/bin/python", f"/{python}/bin/python3.12"),
        Item(f"{cache}/abc/linked/__init__.py".lstrip("/"), value="import inner_need\n"),
        Item(f"{cache}/abc/linked-2.0.dist-info/METADATA".lstrip("/"), value="Name: linked\nVersion: 2.0\n"),
        Item(f"{cache}/def/_numba_cuda_redirector.pth".lstrip("/"), value="import _numba_cuda_redirector\n"),
        Item(f"{cache}/def/_numba_cuda_redirector.py".lstrip("/"), value=REDIRECTOR),
        link(f"{packages}/linked/__init__.py", f"{cache}/abc/linked/__init__.py"),
        link(f"{packages}/linked-2.0.dist-info/METADATA", f"{cache}/abc/linked-2.0.dist-info/METADATA"),
        link(f"{packages}/_numba_cuda_redirector.pth", f"{cache}/def/_numba_cuda_redirector.pth"),
        link(f"{packages}/_numba_cuda_redirector.py", f"{cache}/def/_numba_cuda_redirector.py"),
        Item(f"{packages}/__editable__.nemo_rl-0.pth", value="/opt/nemo-rl\n"),
        Item("opt/nemo-rl/nemo_rl/__init__.py"),
        Item("opt/ray_venvs/worker/pyvenv.cfg", value=f"home = /{python}/bin\n"),
        link("opt/ray_venvs/worker/bin/python", f"/{python}/bin/python3.12"),
    ]
    result = probe(layer, env={"PATH": "/opt/nemo_rl_venv/bin:/usr/bin"}, modules=["linked", "nemo_rl", "nowhere"])
    assert statuses(result) == {
        "linked": "incomplete inner_need",
        "nemo_rl": "present",
        "nowhere": "missing nowhere",
    }
    assert [(item.name, item.version) for item in result.distributions] == [("linked", "2.0")]
    assert result.python.base_executable == f"/{python}/bin/python3.12"
    worker = probe(layer, python="/opt/ray_venvs/worker/bin/python", modules=["linked"])
    assert statuses(worker) == {"linked": "missing linked"}
    assert worker.python.prefix == "/opt/ray_venvs/worker"


def test_metadata_that_is_too_large_is_known_by_its_folder() -> None:
    text = "Name: huge\nVersion: 1\n" + "x" * (9 << 20)
    result = probe(site(Item("huge_one-1.5.dist-info/METADATA", value=text)))
    assert [(item.name, item.version) for item in result.distributions] == [("huge_one", "1.5")]


def test_a_python_without_hooks_has_no_doubts() -> None:
    assert doubts(probe(python_of(), modules=["os", "json", "nowhere"])) == {}
