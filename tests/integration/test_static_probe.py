"""The static probe gives the answer that real imports in a container give, on bases that differ in their Pythons."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from airferry.engine.driver import Engine, base_tag, open_engine
from airferry.host import process
from airferry.host.canonical import canonical_json
from airferry.near.probe.answers import ProbeResult, parse_probe, probe_argv, probe_input
from airferry.oci.documents import IMAGE_CONFIG, IMAGE_MANIFEST, Manifest, parse_manifest
from airferry.oci.layers import Compression, compress_layer
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform
from debian_bases import AMD64, ARM64, DebianBase
from layer_tars import Item, folder, link, tar_of
from oci_images import base_image, knowledge_of

STDLIB = [
    "json", "json.decoder", "json.nope", "os.path", "asyncio", "ssl", "sqlite3", "tkinter", "turtle", "distutils",
    "_struct", "itertools", "zipimport", "sys", "ctypes", "xml.etree.ElementTree", "nowhere", "nowhere.at.all", "pip",
    "concurrent.futures.thread", "lib2to3", "_queue", "importlib.metadata", "builtins.x", "encodings.utf_8",
]  # fmt: skip
FINDER = """
from __future__ import annotations
import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
MAPPING: dict[str, str] = {'edited': '/src/edited_code', 'single': '/src/single', 'shared.edited': '/src/shared_part'}
NAMESPACES: dict[str, list[str]] = {}
class Finder:
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        for package, place in reversed(list(MAPPING.items())):
            if fullname == package or fullname.startswith(package + '.'):
                rest = fullname.replace(package, '', 1).strip('.').split('.')
                place = Path(place, *rest)
                for candidate in (place / '__init__.py', place.with_suffix('.py')):
                    if candidate.exists():
                        return spec_from_file_location(fullname, candidate)
        return None
def install():
    sys.meta_path.append(Finder)
"""
NSPKG = (
    "import sys, types, os;has_mfs = sys.version_info > (3, 5);"
    "p = os.path.join(sys._getframe(1).f_locals['sitedir'], *('google',));"
    "importlib = has_mfs and __import__('importlib.util');has_mfs and __import__('importlib.machinery');"
    "m = has_mfs and sys.modules.setdefault('google', importlib.util.module_from_spec(importlib.machinery.PathFinder"
    ".find_spec('google', [os.path.dirname(p)])));"
    "m = m or sys.modules.setdefault('google', types.ModuleType('google'));"
    "mp = (m or []) and m.__dict__.setdefault('__path__',[]);(p not in mp) and mp.append(p)\n"
)


# what numba-cuda does: `numba.cuda` is taken from a folder of another package
NUMBA_CUDA = """
import sys
from importlib.util import find_spec
class NumbaCudaFinder:
    def find_spec(self, name, path, target=None):
        if "numba.cuda" in name:
            numba, other = (find_spec(item).submodule_search_locations[0] for item in ("numba", "numba_cuda"))
            if any(other in item for item in path):
                return None
            for finder in sys.meta_path:
                spec = finder.find_spec(name, [item.replace(numba, other + "/numba") for item in path], target)
                if spec is not None:
                    return spec
sys.meta_path.insert(0, NumbaCudaFinder())
"""
SCIKIT_BUILD = """
import sys
from importlib.util import spec_from_file_location
class ScikitBuildRedirectingFinder:
    def __init__(self, files, folders):
        self.files, self.folders = files, folders
    def find_spec(self, name, path=None, target=None):
        if name in self.files:
            folders = self.folders.get(name) if self.files[name].endswith("__init__.py") else None
            return spec_from_file_location(name, self.files[name], submodule_search_locations=folders)
def install(sources, built, folders, *rest):
    sys.meta_path.insert(0, ScikitBuildRedirectingFinder(sources, folders))


install({'skb': '/src/skb/__init__.py', 'skb.inner': '/src/skb/inner.py'}, {}, {'skb': ['/src/skb']}, ['skb'], None)
"""


OLD_STYLE = "__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n"
SIX = (
    "import sys, types\nfor name in ('moves', 'moves.urllib', 'moves.urllib.parse'):\n"
    "    made = types.ModuleType(name)\n    made.__path__ = []\n    sys.modules[__name__ + '.' + name] = made\n"
)
EASY_INSTALL = (
    "import sys; sys.__plen = len(sys.path)\n./easy.egg\nimport sys; new=sys.path[sys.__plen:]; "
    "del sys.path[sys.__plen:]; p=getattr(sys,'__egginsert',0); sys.path[p:p]=new; sys.__egginsert = p+len(new)\n"
)
NEEDY = "try:\n    import speedups\nexcept ImportError:\n    b = 1\nimport absent_lib.x\n"
GUARDED = "try:\n    import absent_lib\nexcept ImportError:\n    absent_lib = None\n"
BRACE = "from json import (  # a comment, with a comma\n    loads,\n    dumps as d,\n)\n"
DYNAMIC = "import sys, types\nsys.modules['dynamic.made'] = types.ModuleType('m')\n"


def distribution(site: str, name: str, version: str, *requires: str) -> list[Item]:
    """Return the metadata of an installed distribution."""
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    text = "\n".join([*lines, *(f"Requires-Dist: {item}" for item in requires), "", "Name: body"])
    return [Item(f"{site}/{name.replace('-', '_')}-{version}.dist-info/METADATA", value=text)]


def packages(site: str) -> list[Item]:
    """Return what a site folder of some age holds."""
    return [
        folder(site),
        *distribution(site, "Full-Thing", "1.2", "six>=1", 'tomli; python_version < "3.11"'),
        Item(f"{site}/full/__init__.py", value="import json\nfrom . import part\nfrom .deep import inner\n"),
        Item(f"{site}/full/part.py", value="from full.deep.inner import VALUE\n"),
        Item(f"{site}/full/deep/__init__.py"),
        Item(f"{site}/full/deep/inner.py", value="VALUE = 1\n"),
        Item(f"{site}/needy/__init__.py", value='"""Say\n\nimport prose\n"""\nfrom .a import b\n'),
        Item(f"{site}/needy/a.py", value=NEEDY),
        Item(f"{site}/guarded.py", value=GUARDED),
        Item(f"{site}/brace.py", value=BRACE),
        Item(f"{site}/circle_a.py", value="import circle_b\nimport gone_lib\n"),
        Item(f"{site}/circle_b.py", value="import circle_a\n"),
        Item(f"{site}/dynamic/__init__.py", value=DYNAMIC),
        Item(f"{site}/dynamic/real.py"),
        Item(f"{site}/space/one.py"),
        Item(f"{site}/old_style/__init__.py", value=OLD_STYLE),
        Item(f"{site}/old_style/first.py"),
        Item(f"{site}/google/cloud/thing.py"),
        Item(f"{site}/google_thing-1.0-py3.11-nspkg.pth", value=NSPKG),
        Item(f"{site}/bytecode.txt"),
        Item(f"{site}/paths.pth", value="# a comment\n\n/src/by_path\n../../../../src/nowhere\n"),
        Item("src/by_path/by_path_module.py"),
        Item("src/by_path/space/two.py"),
        Item("src/by_path/old_style/__init__.py", value=OLD_STYLE),
        Item("src/by_path/old_style/second.py"),
        Item("src/by_path/By_Path.egg-info/PKG-INFO", value="Name: By-Path\nVersion: 3\n"),
        Item(f"{site}/__editable___edited_1_0_finder.py", value=FINDER),
        Item(
            f"{site}/__editable__.edited-1.0.pth",
            value="import __editable___edited_1_0_finder; __editable___edited_1_0_finder.install()",
        ),
        *distribution(site, "edited", "1.0"),
        Item("src/edited_code/__init__.py"),
        Item("src/edited_code/below.py"),
        Item("src/single.py"),
        Item("src/shared_part/__init__.py"),
        Item(f"{site}/shared/other.py"),
        Item(f"{site}/Legacy-0.1.egg-info", value="Name: Legacy\nVersion: 0.1\n"),
        Item(f"{site}/file_and_folder/x.py"),
        Item(f"{site}/file_and_folder.py"),
        Item("src/workdir/in_workdir.py"),
        Item("root/.local/lib/python3.11/site-packages/of_the_user.py"),
    ]  # fmt: skip


RICH = [
    "full", "full.part", "full.deep.inner", "full.absent", "full.part.absent", "needy", "needy.a", "needy.b", "guarded",
    "brace", "circle_a", "circle_b", "dynamic", "dynamic.real", "space", "space.one", "space.two", "space.three",
    "old_style.first", "old_style.second", "old_style.third", "google", "google.cloud.thing", "google.other",
    "by_path_module", "edited", "edited.below", "edited.absent", "single", "shared.edited", "shared.other",
    "file_and_folder", "file_and_folder.x", "in_workdir", "of_the_user", "native", "native._queue", "native._absent",
    "debian_only", "local_only", "sitecustomize", "numba.cuda", "numba.cuda.old", "numba.cuda.new", "numba.core", "skb",
    "skb.inner", "skb.gone", "six.moves", "six.moves.urllib.parse", "cached", "cached.below", "by_easy",
]  # fmt: skip


@dataclass
class Base:
    """A base to be: layers over the Debian one, and its config."""

    layers: list[list[Item]]
    env: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None
    workdir: str = "/"


def virtual_environment(prefix: str, *, system_site: bool) -> list[Item]:
    """Return what `python -m venv` leaves."""
    text = f"home = /usr/bin\ninclude-system-site-packages = {'true' if system_site else 'false'}\nversion = 3.11.2\n"
    return [
        Item(f"{prefix}/pyvenv.cfg", value=text),
        link(f"{prefix}/bin/python", "/usr/bin/python3"),
        link(f"{prefix}/bin/python3", "python"),
        folder(f"{prefix}/lib"),
        link(f"{prefix}/lib64", "lib"),
    ]


def members(tar: Path, prefix: str) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield entries of a userland below a path, with their content."""
    with tarfile.open(tar) as stream:
        for member in stream:
            name = member.name.removeprefix("./")
            if name.startswith(prefix):
                content = stream.extractfile(member) if member.isreg() else None
                member.name = name
                yield member, content.read() if content is not None else b""


def compiled(tar: Path, site: str) -> list[Item]:
    """Return a package with a compiled module, which is one of the standard library's."""
    member, content = next(members(tar, "usr/lib/python3.11/lib-dynload/_queue."))
    suffix = Path(member.name).name.removeprefix("_queue")
    return [Item(f"{site}/native/__init__.py"), Item(f"{site}/native/_queue{suffix}", value=content)]


def conda(tar: Path, prefix: str) -> list[Item]:
    """Return a prefix with an interpreter and a standard library of its own."""
    binary = next(content for member, content in members(tar, "usr/bin/python3.11"))
    items = [
        Item(f"{prefix}/bin/python3.11", value=binary, mode=0o755),
        link(f"{prefix}/bin/python3", "python3.11"),
        link(f"{prefix}/bin/python", "python3.11"),
    ]
    for member, content in members(tar, "usr/lib/python3.11/"):
        place = f"{prefix}/lib/{member.name.removeprefix('usr/lib/')}"
        if member.isreg():
            items.append(Item(place, value=content))
        elif member.isdir():
            items.append(folder(place))
    return items


def bases(tar: Path) -> dict[str, Base]:
    """Return every base by its name."""
    venv_site = "opt/venv/lib/python3.11/site-packages"
    dist, local = "usr/lib/python3/dist-packages", "usr/local/lib/python3.11/dist-packages"
    system = [
        *distribution(dist, "debian-only", "5", "full-thing"),
        Item(f"{dist}/debian_only.py", value="import full\n"),
        Item(f"{local}/local_only.py"),
    ]
    path = {"PATH": "/opt/venv/bin:/usr/bin:/bin"}
    conda_site = "opt/conda/lib/python3.11/dist-packages"
    return {
        "plain": Base([]),
        "debian": Base([[*system, *packages(local), *compiled(tar, local)]], python="/usr/bin/python3.11"),
        "venv": Base(
            [
                [*system, *virtual_environment("opt/venv", system_site=False)],
                [*packages(venv_site), *compiled(tar, venv_site)],
            ],
            env={**path, "PYTHONPATH": ":/src/by_path"},
            workdir="/src/workdir",
        ),
        "venv with the system's packages": Base(
            [
                [*virtual_environment("opt/venv", system_site=True), *system, *packages(dist)],
                [Item(f"{venv_site}/space/three.py")],
            ],
            env=path,
        ),
        "hooks": Base([[*hooks(local)]], python="/usr/bin/python3"),
        "uv": Base([managed_by_uv(tar)], env={"PATH": "/opt/nemo_rl_venv/bin:/usr/bin:/bin"}),
        "named venv": Base([[*virtual_environment("srv/env", system_site=False)]], python="/srv/env/bin/python"),
        "conda": Base(
            [
                [*conda(tar, "opt/conda"), *packages(conda_site)],
                [Item(f"{conda_site}/space/.wh.one.py"), Item(f"{conda_site}/.wh.needy")],
            ],
            env={"PATH": "/opt/conda/bin:/usr/bin:/bin", "PYTHONNOUSERSITE": "1"},
        ),
    }  # fmt: skip


def hooks(site: str) -> list[Item]:
    """Return hooks as common tools write them, and what they lead to."""
    guard = "import sys; exec(\"import os\\nif os.getenv('COV_X'):\\n import absent_lib\")\n"
    return [
        folder(site),
        Item(f"{site}/_numba_cuda_redirector.pth", value="# SPDX\n\nimport _numba_cuda_redirector\n"),
        Item(f"{site}/_numba_cuda_redirector.py", value=NUMBA_CUDA),
        *(
            Item(f"{site}/{name}.py")
            for name in ("numba/__init__", "numba/core", "numba/cuda/__init__", "numba/cuda/old")
        ),
        *(Item(f"{site}/numba_cuda/{name}.py") for name in ("__init__", "numba/cuda/__init__", "numba/cuda/new")),
        Item(f"{site}/_skb_editable.pth", value="import _skb_editable\n"),
        Item(f"{site}/_skb_editable.py", value=SCIKIT_BUILD),
        Item("src/skb/__init__.py"),
        Item("src/skb/inner.py"),
        Item(f"{site}/a1_coverage.pth", value=guard),
        Item(f"{site}/zz_lost.pth", value="import absent_lib_hook\n"),
        Item(f"{site}/six.py", value=SIX),
        Item(f"{site}/easy-install.pth", value=EASY_INSTALL),
        Item(f"{site}/easy.egg/by_easy.py"),
        Item(f"{site}/by_easy.py", value="import absent_lib\n"),
    ]


def managed_by_uv(tar: Path) -> list[Item]:
    """Return an interpreter where uv puts one, and an environment with packages linked into uv's cache."""
    python = "root/.local/share/uv/python/cpython-3.11.2-linux-x86_64-gnu"
    site, cache = "opt/nemo_rl_venv/lib/python3.11/site-packages", "root/.cache/uv/archive-v0/abc"
    text = f"home = /{python}/bin\nimplementation = CPython\nuv = 0.8.0\nversion_info = 3.11.2\n"
    linked = [
        *distribution(cache, "cached", "2.0"),
        Item(f"{cache}/cached/__init__.py", value="from . import below\n"),
        Item(f"{cache}/cached/below.py"),
        *(item for item in hooks(cache) if item.path.startswith(f"{cache}/")),
    ]
    return [
        *conda(tar, python),
        Item("opt/nemo_rl_venv/pyvenv.cfg", value=f"{text}include-system-site-packages = false\n"),
        link("opt/nemo_rl_venv/bin/python", f"/{python}/bin/python3.11"),
        link("opt/nemo_rl_venv/bin/python3", "python"),
        *(item for item in hooks(site) if not item.path.startswith(f"{site}/")),
        *linked,
        *(link(item.path.replace(cache, site), f"/{item.path}") for item in linked),
    ]


def put(store: LayoutStore, below: DebianBase, platform: Platform, base: Base) -> Any:
    """Store a base over the Debian one and return its manifest's descriptor."""
    source = LayoutStore.open(below.layout, read_only=True)
    manifest = parse_manifest(source.read_bytes(below.manifests[platform]))
    config = json.loads(source.read_bytes(manifest.config))
    layers = list(manifest.layers)
    for layer in layers:
        store.link_blob(source.blob_path(layer.digest), layer)
    for items in base.layers:
        made = compress_layer(io.BytesIO(tar_of(items)), compression=Compression("zstd", 1, 1), into=store)
        layers.append(made.descriptor)
        config["rootfs"]["diff_ids"].append(made.diff_id)
        config.setdefault("history", []).append({"created_by": "test"})
    config["config"] = {**(config.get("config") or {}), "Env": [f"{key}={value}" for key, value in base.env.items()]}
    config["config"]["WorkingDir"] = base.workdir
    document = Manifest(
        schema_version=2,
        media_type=IMAGE_MANIFEST,
        config=store.put_bytes(canonical_json(config), IMAGE_CONFIG),
        layers=layers,
    )
    return store.put_bytes(canonical_json(document), IMAGE_MANIFEST)


def look(
    store: LayoutStore, descriptor: Any, platform: Platform, base: Base, modules: Iterable[str], cache: Path
) -> ProbeResult:
    """Return the static answer."""
    image = base_image(store, descriptor, platform)
    return knowledge_of(store, cache).probe(image, platform, python=base.python, modules=modules)


def run(
    engine: Engine, store: LayoutStore, descriptor: Any, platform: Platform, base: Base, modules: Iterable[str]
) -> ProbeResult:
    """Return the answer of real imports."""
    engine.import_base(store.path, descriptor.digest, platform=platform)
    argv = probe_argv(base.python or "python")
    if base.python is None:
        find = 'for p in python python3; do command -v "$p" >/dev/null 2>&1 && exec "$p" "$@"; done'
        argv = ["sh", "-c", find, "sh", *argv[1:]]
    done = engine.run(
        base_tag(descriptor.digest), argv, platform=platform, streams=process.Streams(stdin=probe_input(modules))
    )
    return parse_probe(done.stdout)


@pytest.fixture(scope="module")
def engine(engine_state: Path) -> Iterator[Engine]:
    with open_engine(engine_state) as opened:
        yield opened


@pytest.mark.parametrize(
    ("name", "platform"),
    [
        ("plain", AMD64),
        ("plain", ARM64),
        ("debian", AMD64),
        ("debian", ARM64),
        ("venv", AMD64),
        ("venv with the system's packages", AMD64),
        ("hooks", AMD64),
        ("uv", AMD64),
        ("named venv", AMD64),
        ("conda", AMD64),
    ],
    ids=str,
)
def test_it_answers_as_real_imports_do(
    debian_base: DebianBase,
    engine: Engine,
    tmp_path: Path,
    require_tool: Callable[[str], Path],
    name: str,
    platform: Platform,
) -> None:
    base = bases(debian_base.layout.parent / f"{platform.slug}.tar")[name]
    store = LayoutStore.create(tmp_path / "layout")
    descriptor = put(store, debian_base, platform, base)
    modules = [*STDLIB, *RICH]
    expected = run(engine, store, descriptor, platform, base, modules)
    answer = look(store, descriptor, platform, base, modules, tmp_path / "facts")
    assert answer.python == expected.python
    assert answer.distributions == expected.distributions
    # a note says why an import failed for another reason than a missing module: only running tells
    without_notes = {module: found.model_copy(update={"note": ""}) for module, found in expected.modules.items()}
    assert {key: value for key, value in answer.modules.items() if value != without_notes[key]} == {
        key: without_notes[key] for key, value in answer.modules.items() if value != without_notes[key]
    }
    assert len({found.status for found in answer.modules.values()}) >= 2
