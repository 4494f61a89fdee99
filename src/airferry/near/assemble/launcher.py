"""What the launcher's image adds, without running anything: the catalogue's repository and a virtual environment.

The environment is what `python -m venv --without-pip` would leave (PEP 405), but for the scripts that activate it in
shells other than POSIX's. Packages of the distribution are never installed here.
"""

from __future__ import annotations

import hashlib
import posixpath
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from airferry.near.assemble.checkouts import file_content
from airferry.near.assemble.direct import OFFLINE_ENVIRONMENT, Known
from airferry.near.assemble.tree import Content, LayerTree
from airferry.near.assemble.wheels import InstallScheme
from airferry.near.probe.answers import PythonFacts
from airferry.oci.documents import DEFAULT_PATH
from airferry.wording import on_one_line

CATALOGUE = "the catalogue"
ENVIRONMENT = "the launcher's environment"

_ACTIVATE = """\
# Source this in a POSIX shell; `deactivate` undoes it.
deactivate () {{
    if [ -n "${{_OLD_VIRTUAL_PATH:-}}" ]; then
        PATH="$_OLD_VIRTUAL_PATH"
        export PATH
        unset _OLD_VIRTUAL_PATH
    fi
    if [ -n "${{_OLD_VIRTUAL_PYTHONHOME:-}}" ]; then
        PYTHONHOME="$_OLD_VIRTUAL_PYTHONHOME"
        export PYTHONHOME
        unset _OLD_VIRTUAL_PYTHONHOME
    fi
    unset VIRTUAL_ENV
    hash -r 2>/dev/null
    if [ "${{1:-}}" != "nondestructive" ]; then
        unset -f deactivate
    fi
}}
deactivate nondestructive
VIRTUAL_ENV={folder}
export VIRTUAL_ENV
_OLD_VIRTUAL_PATH="$PATH"
PATH="$VIRTUAL_ENV/bin:$PATH"
export PATH
if [ -n "${{PYTHONHOME:-}}" ]; then
    _OLD_VIRTUAL_PYTHONHOME="$PYTHONHOME"
    unset PYTHONHOME
fi
hash -r 2>/dev/null
"""


def launcher_environment(workspace: str, base: Iterable[str], *, code_folder: str) -> dict[str, str]:
    """Return the variables of the launcher's image, as Containerfile.launcher sets them over a base's."""
    path = next((line.partition("=")[2] for line in base if line.startswith("PATH=")), "") or DEFAULT_PATH
    return {
        **OFFLINE_ENVIRONMENT,
        "UV_OFFLINE": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "PYTHONPATH": code_folder,
        "PATH": f"{workspace}/.venv/bin:{path}",
    }


def launcher_obstacle(known: Known, packages: Sequence[str]) -> str | None:
    """Return why a base cannot take the launcher directly, or None: packages to install, no Python to build on."""
    listed = set(known.tree.listdir("/var/lib/dpkg/info"))
    for package in packages:
        if not any(
            f"{name}.list" in listed and f"{name}.md5sums" in listed
            for name in {package, *(name.removesuffix(".list") for name in listed if name.startswith(f"{package}:"))}
        ):
            return f"the package `{package}` must be installed"
    if known.python is None:
        return "its interpreter is not known"
    base = known.python.base_executable
    if known.tree.lookup(known.tree.resolve(base)) is None:
        return f"the interpreter `{base}`, from which its virtual environment was made, is missing"
    return None


def add_repository(tree: LayerTree, carried: Iterable[tuple[PurePosixPath, Path]], folder: str) -> None:
    """Put files of a working tree below a folder of the image, over what is there, as modes 755 and 644 say."""
    tree.add_folder(folder)
    for name, source in carried:
        path = f"{folder}/{name}"
        if source.is_symlink():
            tree.add_link(path, str(source.readlink()), owner=CATALOGUE)
        else:
            executable = bool(source.stat().st_mode & 0o100)
            tree.add_file(path, file_content(source), executable=executable, owner=CATALOGUE)


def add_environment(tree: LayerTree, python: PythonFacts, folder: str) -> InstallScheme:
    """Make a virtual environment in a folder of the image on an interpreter of the base; return where wheels go.

    Where that is one of a virtual environment, the new one is made from the same interpreter as that, as `venv` does.
    """
    short = ".".join(python.version.split(".")[:2])
    base = python.base_executable
    home, name = posixpath.split(base)
    settings = {
        "home": home,
        "include-system-site-packages": "false",
        "version": python.version,
        "executable": "/" + tree.resolve(base),
        "command": f"{python.executable} -m venv --without-pip {folder}",
    }
    _add_text(
        tree, f"{folder}/pyvenv.cfg", "".join(f"{key} = {on_one_line(value)}\n" for key, value in settings.items())
    )
    library = f"{folder}/lib/python{short}/site-packages"
    for made in (f"{folder}/include/python{short}", library):
        tree.add_folder(made)
    if python.pointer_bits == 64:
        tree.add_link(f"{folder}/lib64", "lib", owner=ENVIRONMENT)
    tree.add_link(f"{folder}/bin/{name}", base, owner=ENVIRONMENT)
    for other in ("python", "python3", f"python{short}"):
        if other != name:
            tree.add_link(f"{folder}/bin/{other}", name, owner=ENVIRONMENT)
    _add_text(tree, f"{folder}/bin/activate", _ACTIVATE.format(folder=quoted_folder(folder)))
    return InstallScheme(
        purelib=library,
        platlib=library,
        scripts=f"{folder}/bin",
        data=folder,
        include=f"{folder}/include/site/python{short}",
        interpreter=f"{folder}/bin/python",
    )


def quoted_folder(folder: str) -> str:
    """Return a folder as a word of a POSIX shell: in double quotes, as `venv` has it, unless they would not do."""
    quoted = shlex.quote(folder)
    return f'"{folder}"' if quoted == folder else quoted


def _add_text(tree: LayerTree, path: str, text: str) -> None:
    data = text.encode()
    tree.add_file(path, Content.of(data, digest=hashlib.sha256(data).hexdigest()), owner=ENVIRONMENT)
