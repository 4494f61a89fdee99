"""Parsers of packages, repositories of Git, bases, and of what runs in containers."""

from __future__ import annotations

import functools
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path
from types import SimpleNamespace

from table import (
    MARKERS,
    TREE,
    checksummed,
    of_file,
    of_text,
    parser,
)
from worker import Target

from airferry.assets.unpack import TreeUnpacker
from airferry.host import files
from airferry.near.bases.debian import _read_status
from airferry.near.bases.userland import compose
from airferry.near.git import driver as git_driver
from airferry.near.git.addresses import redact, remote_address, submodule_address
from airferry.near.probe.answers import parse_probe
from airferry.near.probe.static import static_probe
from airferry.near.rehearse.judge import find_attempts, read_hook_log, read_sink_log
from airferry.near.wheels.compile import build_requirements
from airferry.near.wheels.pack import normalise_wheel, read_wheel
from airferry.oci.documents import ImageConfig
from airferry.oci.platform import parse_platform
from airferry.oci.tar import TarReader
from airferry.rootfs.files import imported_names, reader_for
from airferry.rootfs.layers import LayerFacts, collect_facts
from airferry.rootfs.view import RootView
from layer_tars import Item, folder, link, tar_of
from oci_images import layer_tar
from static_bases import SITE, elf, python_of
from wheel_factory import make_wheel, source_distribution

# --- packages, Git, containers ----------------------------------------------------------------------------------------


def rezipped(data: bytes) -> bytes:
    """Return a zip whose members were changed, so that changes get past compression and checksums."""
    made = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
            for item in old.infolist():
                start = item.header_offset + 30 + len(item.orig_filename.encode())
                new.writestr(item.filename, data[start : start + item.compress_size])
    except Exception:
        return data
    return made.getvalue()


@parser("wheels: METADATA, RECORD and the archive")
def wheel_target() -> Target:
    wheel = make_wheel(
        Path.cwd() / "made", "pkg", "1.0", requires=["other>1 ; extra == 'x'"], requires_python=">=3.8", extras=["x"]
    )

    def read(path: Path) -> None:
        read_wheel(path, sha256="0" * 64)
        normalise_wheel(path, path.with_name("again.whl"))

    return Target(of_file(wheel.name, read), [wheel.read_bytes()], repair=rezipped)


def regzipped(data: bytes) -> bytes:
    """Return changed bytes of a tar as a gzip, with checksums corrected; those of a gzip as they are."""
    return data if data[:2] == b"\x1f\x8b" else gzip.compress(checksummed(data), 1)


@parser("source distributions and pyproject.toml", share=0.5)
def sdist_target() -> Target:
    packed = source_distribution(Path.cwd() / "made", name="pkg", tag="py3-none-any").read_bytes()
    project = b'[build-system]\nrequires = ["setuptools>=61 ; python_version < \'4\'", "b"]\nbuild-backend = "x"\n'
    other = gzip.compress(layer_tar({"pkg-1.0/pyproject.toml": project, "pkg-1.0/setup.py": b""}))
    parse = of_file("pkg-1.0.tar.gz", lambda path: build_requirements(path, MARKERS))
    return Target(parse, [packed, other, regzipped(gzip.decompress(packed)), regzipped(gzip.decompress(other))])


@parser("pyproject.toml in a source distribution", share=0.5)
def pyproject_target() -> Target:
    def parse(data: bytes) -> None:
        Path("pkg-1.0.tar").write_bytes(layer_tar({"pkg-1.0/pyproject.toml": data}))
        build_requirements(Path("pkg-1.0.tar"), MARKERS)

    return Target(
        parse, [b'[build-system]\nrequires = ["setuptools>=61 ; python_version < \'4\'", "b"]\nbuild-backend = "x"\n']
    )


def deb_of(control: bytes, data: bytes) -> bytes:
    """Return a Debian package of two tars."""
    made = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.gz", control), ("data.tar.xz", data)):
        made += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    return made


CONTROL = b"Package: base-files\nVersion: 1.0-1\nArchitecture: amd64\nDescription: x\n more\n"


@parser("Debian packages", share=0.4)
def deb_target() -> Target:
    files_of_it = layer_tar({"./usr/share/x": b"x" * 100, "./etc/y": b"y"})
    whole = deb_of(
        gzip.compress(layer_tar({"./control": CONTROL, "./md5sums": b"0  usr/share/x\n"})), lzma.compress(files_of_it)
    )

    def read(path: Path) -> None:
        for _block in compose([path], epoch_s=0):
            pass

    return Target(of_file("base-files_1.0-1_amd64.deb", read), [whole])


@parser("tars in Debian packages, and dpkg's status", share=0.4)
def deb_tar_target() -> Target:
    control = gzip.compress(layer_tar({"./control": CONTROL}), 1)

    def parse(data: bytes) -> None:
        Path("x.deb").write_bytes(deb_of(control, lzma.compress(checksummed(data), preset=0)))
        for _block in compose([Path("x.deb")], epoch_s=0):
            pass
        status = b"Package: a\nStatus: install ok installed\nVersion: 1\n\n" + data
        _read_status(TarReader(io.BytesIO(layer_tar({"var/lib/dpkg/status": status})), what="x"))

    return Target(
        parse, [layer_tar({"./usr/share/x": b"x" * 100, "./etc/y": b"y"}), tar_of(TREE)[:-4096] + bytes(1024)]
    )


@parser("Git: trees, .gitmodules and refs")
def git_target() -> Target:
    def parse(data: bytes) -> None:
        # what Git itself writes is well formed; the paths and the settings are those of the repository
        path, _, settings = data.decode("utf-8", "replace").partition("\x1e")
        path = path.partition("\0")[0]
        tree = f"100644 blob {'b' * 40}\ta\x00160000 commit {'c' * 40}\t{path}\0"
        answers = iter([SimpleNamespace(text=tree), SimpleNamespace(text=settings)])
        git_driver.run_git = git_driver.try_git = lambda *_, **__: next(answers)  # type: ignore[assignment]
        found = git_driver._submodules(Path(), "https://h/x.git", "a" * 40)
        git_driver.check_submodules("https://h/x.git", found)

    return Target(parse, [b"sub/x\x1esubmodule.sub/x.path\nsub/x\x00submodule.sub/x.url\n../y.git\x00"])


@parser("Git: addresses", share=2)
def address_target() -> Target:
    def parse(text: str) -> None:
        redact(text)
        remote_address(text)
        submodule_address("https://h/a/b.git", text)

    return Target(
        of_text(parse), [b"https://u:p@h/x.git", b"git@h:x/y.git", b"../y.git", b"ssh://h:22/x", b"file:///x", b"a/b"]
    )


SITES = [
    folder("usr/lib/python3.12"),
    Item("etc/os-release", value="ID=debian\n"),
    Item(
        f"{SITE}/a.pth",
        value="import os; os.getenv('X') and __import__('y')\n../b\n/opt/c\nimport a_finder; a_finder.install()\n",
    ),
    Item(f"{SITE}/pkg/__init__.py", value="from .x import y\nimport json\n"),
    Item(
        f"{SITE}/pkg-1.0.dist-info/METADATA",
        value="Metadata-Version: 2.1\nName: pkg\nVersion: 1.0\nRequires-Dist: b>1\n\n",
    ),
    Item(f"{SITE}/pkg-1.0.dist-info/RECORD", value="pkg/__init__.py,sha256=x,1\n"),
    Item(
        f"{SITE}/__editable___z_finder.py",
        value="import sys\nMAPPING: dict[str, str] = {'z': '/opt/z'}\nNAMESPACES: dict[str, list[str]] = {}\n",
    ),
    Item("etc/passwd", value="root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:\n"),
    Item("usr/include/python3.12/patchlevel.h", value='#define PY_VERSION "3.12.4"\n'),
    Item(f"{SITE}/pkg-1.0.dist-info/direct_url.json", value='{"url": "file:///opt/q", "dir_info": {"editable": true}}'),
    Item(f"{SITE}/pkg-1.0.dist-info/entry_points.txt", value="[console_scripts]\nx = pkg:main\n"),
    Item(f"{SITE}/pkg-1.0.dist-info/top_level.txt", value="pkg\n"),
    Item(f"{SITE}/_m_editable_loader.py", value="install('m', {'m'}, '/opt/m/build', ['ninja'], False)\n"),
    Item(f"{SITE}/m-editable.pth", value="import _m_editable_loader\n"),
    Item(
        "opt/m/build/meson-info/intro-install_plan.json",
        value='{"python": {"/opt/m/a.py": {"destination": "{py_purelib}/m/a.py"}}}',
    ),
    Item(f"{SITE}/sitecustomize.py", value="import sys\nsys.path.append('/opt/q')\n"),
]


MODULES = ("pkg", "pkg.x", "z", "json", "nowhere")
CONFIG = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}


def probed(*layers: bytes) -> object:
    """Read a base from its layers as the probe that runs nothing does."""
    view = RootView([collect_facts([layer], what="x") for layer in layers])
    return static_probe(
        view, ImageConfig.model_validate(CONFIG), modules=MODULES, python=None, platform=parse_platform("linux/amd64")
    )


@parser("a base's files: .pth, hooks, METADATA, RECORD", share=0.2)
def base_files_target() -> Target:
    python = tar_of(python_of())
    names = [item.path for item in SITES if item.kind == "file"]

    def parse(data: bytes) -> None:
        number, content = data[:1] or b"0", data[1:]
        probed(python, tar_of([*SITES, Item(names[number[0] % len(names)], value=content)]))

    texts = [item.value for item in SITES if item.kind == "file"]
    seeds = [bytes([number]) + (text.encode() if isinstance(text, str) else text) for number, text in enumerate(texts)]
    return Target(parse, seeds, prefix=1)


@parser("a base's layers, as the probe reads them", share=0.2)
def base_target() -> Target:
    python = tar_of(python_of())
    return Target(lambda data: probed(python, data), [tar_of(SITES)], repair=checksummed)


@parser("ELF files, sources, pyvenv.cfg", share=1.5)
def facts_target() -> Target:
    places = [("usr/bin", "python3.12"), ("lib", "libc.so.6"), ("x", "a.py"), (SITE, "a.pth"), ("v", "pyvenv.cfg")]

    def parse(data: bytes) -> None:
        for place, name in places:
            reader = reader_for(place, name, len(data))
            if reader is not None:
                facts = reader(iter([data[:4000], data[4000:]]) if len(data) > 4000 else iter([data]))
                if facts is not None:
                    imported_names(facts.imports)
                    facts.from_row(json.loads(json.dumps(facts.to_row())))

    source = b"import a.b as c, d\nfrom .x import (y,\n  z)\n'''\nimport q\n'''\n"
    return Target(parse, [elf("3.12.4", "PyInit_posix"), source, b"home = /usr/bin\nversion = 3.12.1\n"])


@parser("remembered facts of a layer", share=0.7)
def remembered_target() -> Target:
    import zstandard

    facts = collect_facts([tar_of(python_of())], what="x").to_bytes()
    plain = zstandard.decompress(facts, max_output_size=1 << 20)
    compress = functools.partial(zstandard.compress, level=1)

    def parse(data: bytes) -> None:
        LayerFacts.from_bytes(data)
        LayerFacts.from_bytes(compress(data))

    return Target(parse, [facts, plain])


@parser("what a probe in a container answers")
def probe_target() -> Target:
    from airferry.near.probe.answers import MARK

    answer = probed(tar_of(python_of()), tar_of(SITES)).model_dump_json()  # type: ignore[attr-defined]
    seeds = [f"noise\n{MARK}{answer}\n".encode()]
    return Target(parse_probe, seeds)


@parser("logs of a rehearsal's hook and sink")
def log_target() -> Target:
    hook = repr({"event": "python", "pid": 1, "command": "x"}) + "\n"
    hook += (
        repr({"event": "attempt", "pid": 1, "host": "h", "port": 443, "how": "connect", "stack": [["a.py", 3]]}) + "\n"
    )
    sink = '{"host": "h", "port": 80, "pid": 1, "answered": "10.0.0.1"}\n'

    def parse(data: bytes) -> None:
        find_attempts(read_hook_log(data), read_sink_log(data), root="/x", own="y")

    return Target(parse, [hook.encode(), sink.encode(), (hook + sink).encode()])


@parser("packed assets, unpacked", share=0.2)
def packed_target() -> Target:
    count = iter(range(1 << 30))
    around = set(Path("..").iterdir())

    def parse(data: bytes) -> None:
        place = files.ensure_directory(Path.cwd() / "unpacked" / f"{next(count)}")
        try:
            tree = TreeUnpacker(
                place, what="x", whole="the asset", limit_bytes=1 << 20, limit_files=1000, durable=False
            )
            tree.add_tar(TarReader(io.BytesIO(data), what="x"), "x")
            tree.make_links()
        finally:
            files.remove_tree(place)
            # nothing came to lie next to it
            assert not list(Path("unpacked").iterdir()) and set(Path("..").iterdir()) == around

    return Target(parse, [tar_of([Item("a", value="x"), Item("b/c", value="y"), link("l", "b/c")])], repair=checksummed)
