"""What start commands install, read from their text; what is not understood is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.plan.code.commands import MAX_COMMAND_CHARACTERS, installs_of


def short(command: str) -> list[str]:
    """Return each install as `manager: names | folders | others ? unknown`, empty parts left out."""
    lines = []
    for item in installs_of(command):
        parts = [f"{item.manager}:", *item.names]
        parts += [f"folder {name}" for name in item.folders] + [f"other {name}" for name in item.others]
        lines.append(" ".join([*parts, *([f"? {item.unknown}"] if item.unknown else [])]))
    return lines


@pytest.mark.parametrize(
    ("command", "found"),
    [
        # as Nemotron's own profiles write them
        ("uv pip install --python /opt/venv/bin/python --quiet cosmos-xenna protobuf", ["pip: cosmos-xenna protobuf"]),
        ("python -m pip install --quiet --break-system-packages data-designer==0.5.5", ["pip: data-designer==0.5.5"]),
        (
            "python -m nemotron.steps._bootstrap.curator_runtime --profile byob -- python -m nemotron.step --c {c}",
            ["pip: ? `nemotron.steps._bootstrap.curator_runtime` makes an environment by pip"],
        ),
        ("source /opt/env.sh", ["unknown: ? it runs the file `/opt/env.sh`"]),
        # as others do
        ("pip install a 'b>=1,<2' \"c[x]==3\"", ["pip: a b<2,>=1 c[x]==3"]),
        ("pip3.12 install -U a", ["pip: a"]),
        ("/opt/venv/bin/pip install a", ["pip: a"]),
        ("pip --no-cache-dir --proxy http://p install a", ["pip: a"]),
        ("pip install -e /opt/Curator --no-deps", ["pip: folder /opt/Curator"]),
        ("pip install --editable=/opt/Curator[dev]", ["pip: folder /opt/Curator"]),
        ("pip install . ./b /opt/c", ["pip: folder . folder ./b folder /opt/c"]),
        ("pip install git+https://host/a@v1#egg=a", ["pip: other git+https://host/a@v1#egg=a"]),
        ("pip install --index-url https://i/simple a", ["pip: a"]),
        ("pip install -r requirements.txt", ["pip: ? its packages are in the file `requirements.txt`"]),
        ("pip install a -r", ["pip: a ? `-r` names no file"]),
        ("pip install --requirement=", ["pip: ? `--requirement` names no file"]),
        ("pip install $PKGS a", ["pip: a ? `$PKGS` is known only at run time"]),
        ("pip install a>=1", ["pip: a"]),
        ("pip install a 2>&1 | tee log", ["pip: a"]),
        ("pip install a > /dev/null 2>/dev/null", ["pip: a"]),
        ("pip install a # and b", ["pip: a"]),
        ("pip list; pip config set x y; pip uninstall -y a", []),
        ("cd /x && pip install a || pip install b; uv pip install c & wait", ["pip: a", "pip: b", "pip: c"]),
        ("pip install a\npip install b", ["pip: a", "pip: b"]),
        ("pip install a \\\n  b", ["pip: a b"]),
        ("(pip install a)", ["pip: a"]),
        ("if ! command -v uv; then pip install uv; fi", ["pip: uv"]),
        ("for p in a b; do pip install $p; done", ["pip: ? `$p` is known only at run time"]),
        ("PIP_INDEX_URL=x sudo -E -u root nice -n 5 pip install a", ["pip: a"]),
        ("timeout 60 env A=b pip install a", ["pip: a"]),
        ("bash -lc 'apt-get update && apt-get install -y git curl'", ["apt: git curl"]),
        ("bash -c \"sh -c 'pip install a'\"", ["pip: a"]),
        ("bash setup.sh", ["unknown: ? it runs the file `setup.sh`"]),
        ("./setup.sh --all", ["unknown: ? it runs `./setup.sh`"]),
        ("curl -L https://host/i.sh | sh", ["download: curl", "unknown: ? it runs the output of another command"]),
        ("$INSTALL a", ["unknown: ? it runs `$INSTALL`"]),
        ("eval pip install a", ["pip: a"]),
        ("apt-get -o Dpkg::Use-Pty=0 install --yes --no-install-recommends libsndfile1", ["apt: libsndfile1"]),
        ("apt update; apt-get clean", []),
        ("apt install $X", ["apt: ? `$X` is known only at run time"]),
        ("apk add git", ["apt: git"]),
        ("conda install -y -c conda-forge ffmpeg", ["conda: ffmpeg"]),
        ("npm ci", ["npm: ? its packages are in a file"]),
        ("uv sync --frozen", ["pip: ? its packages are those of a project"]),
        ("uv run --with a python x.py", ["pip: a ? its packages are those of a project"]),
        ("uv add a", ["pip: a"]),
        ("uvx ruff check", ["pip: ruff"]),
        ("pipx install a", ["pip: a"]),
        ("git clone https://host/a", ["download: git"]),
        ("git status", []),
        ("source /opt/venv/bin/activate && export A=b && ulimit -n 65535 && mkdir -p /x && nvidia-smi", []),
        ("python train.py --install pip", []),
        ("echo 'pip install a'", []),
        ("pip install 'a", ["unknown: ? its quotes are unbalanced"]),
        ("", []),
    ],
)
def test_commands(command: str, found: list[str]) -> None:
    assert short(command) == found


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ('su -c "pip install a"', ["unknown: ? `su` starts another command"]),
        ("/usr/bin/flock /tmp/lock pip3 install a", ["unknown: ? `flock` starts another command"]),
        ("srun -n 1 apt-get -y install a", ["unknown: ? `srun` starts another command"]),
        ("trap 'uv pip install a' EXIT", ["unknown: ? `trap` starts another command"]),
        (
            "python3 -c \"import os; os.system('pip install a')\"",
            ["unknown: ? its Python code starts another command"],
        ),
        ('env -S "pip install a"', ["pip: a"]),
        ("xargs pip install < list", ["pip: ? `xargs` extends its arguments at run time"]),
        ("cargo install a", ["unknown: ? `cargo` installs"]),
        ("poetry install", ["unknown: ? `poetry` installs"]),
        ("echo pip install a", []),
        ("command -v pip", []),
        ("python -c 'import pip'", []),
        ("ls /opt/pip install.log", []),
        ("cargo build", []),
    ],
)
def test_installers_within_other_commands_are_not_passed_over(command: str, found: list[str]) -> None:
    assert short(command) == found


def test_what_is_too_long_or_too_deep_is_unknown() -> None:
    assert short("pip install " + "a " * MAX_COMMAND_CHARACTERS)[0].startswith("unknown: ? it has more than")
    nested = "pip install a"
    for _ in range(10):
        nested = f"eval {nested}"
    assert short(nested) == ["unknown: ? it nests shells"]


@given(st.text(max_size=200))
def test_no_text_breaks_it(text: str) -> None:
    installs_of(text)


@given(st.lists(st.sampled_from(["pip", "install", "-e", "uv", "$x", "&&", "(", "'", "-r", "a", "\n", ">", "#", "|"])))
def test_no_mixture_of_words_breaks_it(words: list[str]) -> None:
    installs_of(" ".join(words))
