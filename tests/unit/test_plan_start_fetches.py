"""What a step's code fetches when it starts, and what only looks as if it did."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path
from typing import Any

import pytest

from airferry.config import load_config
from airferry.plan.catalogue import Target, catalogue_at, find_step
from airferry.plan.code.fetches import StartFetch, StartFetches
from airferry.plan.models import PlanWarning
from airferry.plan.planner import make_plan
from catalogues import STEPS, airgap, mounting, write_airgap, write_step

URL = "https://git.example.org/tool.git"


def fetches(root: Path, source: str, *, files: dict[str, str] | None = None, below: str = "") -> tuple[StartFetch, ...]:
    """Return what a step with this source fetches; `files` lie in `src`, `below` is further code of the step."""
    write_step(root, "s", source=textwrap.dedent(source), files={"more.py": textwrap.dedent(below)} if below else None)
    for name, text in (files or {}).items():
        path = root / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    catalogue = catalogue_at(root, steps=STEPS)
    return StartFetches(catalogue).of(find_step(catalogue, Target("s")))


def said(found: tuple[StartFetch, ...]) -> list[tuple[str, str, str, bool]]:
    return [(item.kind, item.how, item.what, item.certain) for item in found]


@pytest.mark.parametrize(
    "source",
    [
        f'subprocess.run(["git", "clone", "--depth", "1", "{URL}", "/opt/t"])',
        f'subprocess.check_call(("git", "-C", "/opt", "clone", "-b", "main", "{URL}"))',
        f'subprocess.Popen(args=["git", "clone", "{URL}"])',
        f'subprocess.run("git clone {URL} /opt/t", shell=True)',
        f'subprocess.run(f"cd /opt && git clone {URL} {{target}}", shell=True, check=True)',
        f'subprocess.check_output(["bash", "-lc", "set -e; git clone {URL}"])',
        f'subprocess.run(shlex.split("git clone {URL}"))',
        f'subprocess.run("git clone {URL}".split())',
        f'url = "{URL}"\ncmd = ["git", "clone"]\ncmd += ["--depth", "1"]\ncmd.append(url)\nsubprocess.call(cmd)',
        f'cmd = ["git", "clone"] + ["{URL}"]\nsubprocess.run(cmd)',
        'BASE = "https://git.example.org"\nsubprocess.run(["git", "clone", BASE + "/tool.git"])',
        'host = "git.example.org"\nsubprocess.run(["git", "clone", f"https://{host}/tool.git"])',
        'url = "https://%s/tool.git" % "git.example.org"\nos.system("git clone https://git.example.org/tool.git")',
        f'os.system("GIT_LFS_SKIP_SMUDGE=1 git clone {URL}")',
        f'os.execvp("git", ["git", "clone", "{URL}"])',
        f'os.execlp("git", "git", "clone", "{URL}")',
        f'os.environ.get("X")\nurl = os.environ.get("TOOL_URL", "{URL}")\nsubprocess.run(["git", "clone", url])',
        f'def run(command):\n    subprocess.run(command, shell=True)\nrun("git clone {URL}")',
        f'def main(url="{URL}"):\n    subprocess.run(["timeout", "60", "git", "clone", url])',
        f'asyncio.create_subprocess_exec("git", "clone", "{URL}")',
        f'asyncio.create_subprocess_shell("git clone {URL}")',
        f'class A:\n    URL = "{URL}"\n    def go(self):\n        subprocess.run(["git", "clone", self.URL])',
        f'git.Repo.clone_from("{URL}", "/opt/t")',
        f'places = []\nplaces.append("/opt/a")\nsys.path.append("/opt/b")\nsubprocess.run(["git", "clone", "{URL}"])',
    ],
)
def test_a_clone_is_seen_in_whatever_form(tmp_path: Path, source: str) -> None:
    head = "import asyncio, os, shlex, subprocess\nimport git\ntarget = make()\n"
    (found,) = fetches(tmp_path, head + source)
    if "%s" not in source:
        assert found.what == URL
    assert (found.kind, found.how, found.certain) == ("git", "git clone", True)
    assert found.file.name == "step.py" and found.line > 3


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('[sys.executable, "-m", "pip", "install", "--quiet", "uv"]', ("install", "pip", "uv", True)),
        ('["pip3", "install", "-r", "requirements.txt"]', ("install", "pip", "", True)),
        ('["uv", "pip", "install", "--python", python, "a==1", "b"]', ("install", "uv pip", "a==1 b", True)),
        ('[str(uv), "pip", "install", "--requirements", path]', ("install", "uv pip", "", True)),
        ('["uv", "sync"]', ("install", "uv sync", "", True)),
        ('["uv", "run", "x.py"]', ("install", "uv run", "", False)),
        ('[sys.executable, "-m", "pip", "install", "-e", str(root)]', ("install", "pip", "", False)),
        ('["sudo", "apt-get", "install", "-y", "ffmpeg"]', ("install", "apt-get", "ffmpeg", True)),
        ('["conda", "install", "-y", "numba"]', ("install", "conda", "numba", True)),
        ('["wget", "-q", "https://a.example/x.bin"]', ("download", "wget", "https://a.example/x.bin", True)),
        ('["curl", "-fsSLo", "x", address]', ("download", "curl", "", False)),
        ('["huggingface-cli", "download", "org/model"]', ("hub", "huggingface-cli", "org/model", True)),
        ('["hf", "download", "org/model", "--local-dir", "/m"]', ("hub", "hf", "org/model", True)),
        ('["gsutil", "cp", "gs://bucket/x", "."]', ("download", "gsutil", "gs://bucket/x", True)),
        ('["git", "-C", str(root), "fetch", "origin"]', ("git", "git fetch", "", False)),
        ('["git", "submodule", "update", "--init"]', ("git", "git submodule update", "", False)),
        ('["git", "clone", address]', ("git", "git clone", "", False)),
    ],
)
def test_a_list_that_is_such_a_command_counts_whatever_runs_it(
    tmp_path: Path, source: str, expected: tuple[str, str, str, bool]
) -> None:
    assert said(fetches(tmp_path, f"import sys\nfrom ray import run\nrun_it({source})\n")) == [expected]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            'urllib.request.urlopen("https://a.io/x")',
            ("download", "urllib.request.urlopen", "https://a.io/x", True),
        ),
        (
            'r = urllib.request.Request("https://a.io/x")\nurllib.request.urlopen(r)',
            ("download", "urllib.request.urlopen", "https://a.io/x", True),
        ),
        ("urllib.request.urlretrieve(address, path)", ("download", "urllib.request.urlretrieve", "", False)),
        ('requests.get(f"https://a.io/{name}")', ("download", "requests.get", "https://a.io/…", True)),
        (
            'requests.request("GET", "https://a.io/x")',
            ("download", "requests.request", "https://a.io/x", True),
        ),
        ('s = requests.Session()\ns.get("https://a.io/x")', ("download", "get", "https://a.io/x", True)),
        (
            'with httpx.Client() as client:\n    client.stream("GET", "https://a.io/x")',
            ("download", "stream", "https://a.io/x", True),
        ),
        (
            'requests.post("https://a.io/log", json={})',
            ("download", "requests.post", "https://a.io/log", True),
        ),
        ("huggingface_hub.snapshot_download(**config)", ("hub", "snapshot_download", "", True)),
        ('huggingface_hub.HfApi().hf_hub_download("o/m", "f")', ("hub", "hf_hub_download", "o/m", True)),
        ('datasets.load_dataset("squad", split="train")', ("hub", "load_dataset", "squad", True)),
        ('NAME = "org/data"\ndatasets.load_dataset(path=NAME)', ("hub", "load_dataset", "org/data", True)),
        ("datasets.load_dataset(name)", ("hub", "load_dataset", "", False)),
        ('transformers.AutoModel.from_pretrained("org/model")', ("hub", "from_pretrained", "org/model", True)),
        ('transformers.pipeline("ner", model="org/model")', ("hub", "pipeline", "org/model", True)),
        ('gdown.download("https://a.io/x")', ("download", "gdown.download", "https://a.io/x", True)),
        ('nltk.download("punkt")', ("download", "NLTK's data", "punkt", True)),
        ('tiktoken.get_encoding("cl100k_base")', ("download", "tiktoken's encoding", "cl100k_base", True)),
        ('torch.hub.load("org/repo", "model")', ("download", "torch.hub's", "org/repo", True)),
        ('pandas.read_csv("https://a.example/x.csv")', ("download", "read_csv", "https://a.example/x.csv", True)),
        ('pandas.read_json("hf://datasets/o/d/x.json")', ("hub", "read_json", "hf://datasets/o/d/x.json", True)),
    ],
)
def test_a_call_that_downloads_is_seen(tmp_path: Path, source: str, expected: tuple[str, str, str, bool]) -> None:
    names = "datasets, gdown, httpx, huggingface_hub, nltk, pandas, requests, tiktoken, torch, transformers"
    assert said(fetches(tmp_path, f"import urllib.request\nimport {names}\n{source}\n")) == [expected]


@pytest.mark.parametrize(
    "source",
    [
        'raise ImportError("pip install thing")',
        'print("git clone https://a.example/x")',
        '"""git clone https://a.example/x"""',
        'subprocess.run(["git", "rev-parse", "HEAD"])',
        'subprocess.run(["git", "clone", "/mnt/tool"])',
        'subprocess.run(["pip", "install", "--no-index", "--find-links", "/wheels", "x"])',
        'subprocess.run(["pip", "install", "--no-deps", "--no-build-isolation", "-e", "/opt/x"])',
        'subprocess.run(["pip", "list"])',
        'subprocess.run(["uv", "run", "--no-sync", "x.py"])',
        'subprocess.run(["torchrun", "train.py"])',
        'subprocess.run(["curl", "-s", "http://localhost:8000/health"])',
        'requests.get("http://127.0.0.1:8000/v1/models")',
        'requests.post(f"{base}/v1/chat/completions", json={})',
        "requests.get",
        'settings.get("https://a.example")',
        "job.load_dataset()",
        'datasets.load_dataset("json", data_files=path)',
        'datasets.load_dataset("/data/set")',
        "transformers.AutoModel.from_pretrained(path)",
        'transformers.AutoModel.from_pretrained("/models/x")',
        'transformers.AutoModel.from_pretrained("org/model", *rest) if TYPE_CHECKING else None\n'.replace("org/", "/"),
        'pandas.read_csv("/data/x.csv")',
        "words = ['git', 'pip', 'uv']",
        'if TYPE_CHECKING:\n    requests.get("https://a.example/x")',
        "from .helpers import snapshot_download\nsnapshot_download(1)",
    ],
)
def test_what_only_looks_like_it_is_none(tmp_path: Path, source: str) -> None:
    head = "import datasets, requests, subprocess, transformers, pandas\nfrom typing import TYPE_CHECKING\n"
    helper = {"nemotron/steps/s/helpers.py": "def snapshot_download(x):\n    return x\n"}
    assert fetches(tmp_path, head + source, files=helper) == ()


def test_a_failure_that_the_code_goes_on_after_is_not_certain(tmp_path: Path) -> None:
    source = """
        import requests
        try:
            requests.get("https://a.example/1")
        except Exception:
            pass
        try:
            requests.get("https://a.example/2")
        except requests.RequestException as error:
            raise SystemExit(1) from error
        try:
            requests.get("https://a.example/3")
        except KeyError:
            pass
    """
    assert [item.certain for item in fetches(tmp_path, source)] == [False, True, True]


LIBRARY = """
    import subprocess
    from huggingface_hub import hf_hub_download

    def used(name):
        return hf_hub_download(name, "f")

    def unused():
        subprocess.run(["git", "clone", "https://git.example.org/unused.git"])

    class Tool:
        def go(self):
            subprocess.run(["git", "clone", "https://git.example.org/tool.git"])

    if __name__ == "__main__":
        subprocess.run(["pip", "install", "x"])
"""


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from nemotron.library import used\nused(1)", [("hub", "hf_hub_download", "", False)]),
        ("from nemotron import library\nlibrary.used(1)", [("hub", "hf_hub_download", "", False)]),
        ("import nemotron.library as lib\nlib.used(1)", [("hub", "hf_hub_download", "", False)]),
        ("import nemotron.library\nnemotron.library.Tool().go()", [("git", "git clone", URL, True)]),
        ("def main():\n    from nemotron.library import Tool\n    Tool().go()", [("git", "git clone", URL, True)]),
        ("from nemotron.facade import Tool\nTool()", [("git", "git clone", URL, True)]),
        ("from nemotron.starred import Tool\nTool()", [("git", "git clone", URL, True)]),
        ("import nemotron.library", []),
    ],
)
def test_of_the_catalogues_modules_what_the_step_reaches_counts(
    tmp_path: Path, source: str, expected: list[tuple[str, str, str, bool]]
) -> None:
    modules = {
        "nemotron/library.py": LIBRARY,
        "nemotron/facade.py": "from nemotron.library import Tool\n",
        "nemotron/starred.py": "from nemotron.library import *\n",
    }
    assert said(fetches(tmp_path, source, files=modules)) == expected


def test_a_command_given_to_a_function_of_another_module_is_seen(tmp_path: Path) -> None:
    modules = {
        "nemotron/shell.py": "import os\nURL = 'https://git.example.org/tool.git'\ndef sh(text):\n    os.system(text)\n"
    }
    source = "from nemotron.shell import URL, sh\nsh(f'git clone {URL}')\n"
    assert said(fetches(tmp_path, source, files=modules)) == [("git", "git clone", URL, True)]


def test_all_files_of_the_step_count_but_tests_and_other_steps(tmp_path: Path) -> None:
    clone = f"import os\nos.system('git clone {URL}')\n"
    write_step(tmp_path, "s/inner", source=clone)
    files = {f"nemotron/steps/s/{name}.py": clone for name in ("script", "tests/test_it", "test_more")}
    assert [item.file.name for item in fetches(tmp_path, "", files=files)] == ["script.py"]


@pytest.mark.parametrize(
    "source",
    [
        "def broken(:\n",
        "x = " + "(" * 500 + ")" * 500,
        "a = b + b\nb = a + a\nimport os\nos.system(a)\n",
        "import os\ncmd = cmd + cmd + cmd\nos.system(f'{cmd}{cmd}{cmd}')\n",
        "import os\nx = ['git', *x, *x, *x]\nos.execvp(x[0], x)\n",
        "from nemotron.steps.s.more import loop\nloop()\n",
        "import os\nos.system(" + "+".join(["'a'"] * 3000) + ")\n",
    ],
)
def test_code_that_nobody_can_read_is_passed_over_in_no_time(tmp_path: Path, source: str) -> None:
    assert fetches(tmp_path, source, below="from nemotron.steps.s.step import loop\n") == ()


def warnings(root: Path, **images: object) -> tuple[PlanWarning, ...]:
    document = airgap({"img": {"base_image": "base:1", **images}}, {"a": "img", "b": "img"})
    return make_plan(load_config(write_airgap(root, document))).warnings


def test_a_plan_warns_once_for_all_places_and_targets_with_a_way_out(tmp_path: Path) -> None:
    shared = f"import os\n\ndef get():\n    os.system('git clone {URL}')\n    os.system('git clone {URL}')\n"
    source = "from nemotron.shared import get\nget()\n"
    write_step(tmp_path, "a", source=source)
    write_step(tmp_path, "b", source=f"{source}import os\nos.system('git clone {URL}')\n")
    (tmp_path / "src/nemotron/shared.py").write_text(shared)
    (found,) = warnings(tmp_path)
    assert (found.kind, found.certain, found.targets) == ("fetch", True, ("a:tiny", "b:tiny"))
    assert found.place == "src/nemotron/shared.py:4"
    assert found.also == ("src/nemotron/shared.py:5", "src/nemotron/steps/b/step.py:4")
    assert found.message == f"clones `{URL}` when the step starts, unless it already exists"
    assert f"`overlays: [git+{URL}@REF,/FOLDER]` of `img`" in found.hint
    baked = f"git+{URL.removesuffix('.git')}@main,/opt/tool"
    assert warnings(tmp_path, overlays=[baked]) == ()


def test_a_checkout_that_a_config_mounts_is_not_warned_of(tmp_path: Path) -> None:
    source = f"import os\nos.system('git clone {URL}')\n"
    write_step(tmp_path, "a", source=source, configs={"tiny": mounting(f"{URL}@main,/opt/tool")})
    write_step(tmp_path, "b", source=source)
    assert [item.targets for item in warnings(tmp_path)] == [("b:tiny",)]


def test_a_plan_parses_each_source_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    parse = ast.parse

    def counting(source: str | bytes, *arguments: Any, **options: Any) -> Any:
        parsed.append(source if isinstance(source, str) else source.decode())
        return parse(source, *arguments, **options)

    call = f'subprocess.run(["git", "clone", "{URL}"])'
    source = f'import subprocess, sys\nimport more\nsys.path.append("/opt/x")\n{call}\n'
    for name in ("a", "b"):
        write_step(tmp_path, name, source=f"NAME = {name!r}\n{source}", files={"more.py": "import numpy\n"})
    document = airgap({"img": {"base_image": "base:1"}}, {"a": "img", "b": "img"})
    config = load_config(write_airgap(tmp_path, document))
    with monkeypatch.context() as patched:
        patched.setattr(ast, "parse", counting)
        plan = make_plan(config)
    assert [warning.kind for warning in plan.warnings] == ["fetch"], "what the code fetches was looked for as well"
    assert [step.target.step_id for step in plan.steps if "/opt/x" in step.job_path.folders] == ["a", "b"]
    ours = sorted(text for text in parsed if "import" in text)
    assert len(ours) == 3 and len(set(ours)) == 3, ours
