"""What a step puts on Python's path: by its config, by its code, and where only running it would tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.config import load_config
from airferry.plan.models import JobPath
from airferry.plan.planner import make_plan
from catalogues import airgap, write_airgap, write_step

STEP = "src/nemotron/steps/a"


def job_path(
    root: Path, source: str, *, config: str = "a: 1\n", files: dict[str, str] | None = None, name: str = "a"
) -> JobPath:
    write_step(root, name, source=source, configs={"tiny": config}, files=files)
    made = make_plan(load_config(write_airgap(root, airgap({"i": "base:1"}, {name: "i"}))))
    return made.steps[0].job_path


@pytest.mark.parametrize(
    ("code", "folders"),
    [
        ("sys.path.insert(0, '/opt/Curator')", ["/opt/Curator"]),
        ("sys.path.append('/opt/a')", ["/opt/a"]),
        ("sys.path.extend(['/opt/a', '/opt/b'])", ["/opt/a", "/opt/b"]),
        ("sys.path += ['/opt/a']", ["/opt/a"]),
        ("sys.path[:0] = ['/opt/a']", ["/opt/a"]),
        ("sys.path = ['/opt/a', *sys.path]", ["/opt/a"]),
        ("sys.path = ['/opt/a'] + sys.path", ["/opt/a"]),
        ("sys.path = [x for x in sys.path if x]", []),
        ("import site\nsite.addsitedir('/opt/a')", ["/opt/a"]),
        ("ROOT = Path('/opt/a')\ndef f():\n    sys.path.insert(0, str(ROOT / 'src'))", ["/opt/a/src"]),
        ("sys.path.insert(0, os.path.join('/opt', 'a', 'src'))", ["/opt/a/src"]),
        ("SCRIPT = '/opt/a/b/c.py'\nsys.path.insert(0, str(Path(SCRIPT).parents[1]))", ["/opt/a"]),
        ("sys.path.insert(0, os.path.dirname('/opt/a/x.py'))", ["/opt/a"]),
        ("sys.path.insert(0, os.environ.get('CURATOR', '/opt/Curator'))", ["/opt/Curator"]),
        ("sys.path.insert(0, f'/opt/{\"a\"}')", ["/opt/a"]),
        ("os.environ['PYTHONPATH'] = '/opt/a:' + os.environ.get('PYTHONPATH', '')", ["/opt/a"]),
        ("os.environ['PYTHONPATH'] = f\"/opt/a:{os.environ['PYTHONPATH']}\"", ["/opt/a"]),
        (
            "R = '/opt/a'\nenv['PYTHONPATH'] = f\"{R}/src:{R}:{os.environ.get('PYTHONPATH', '')}\"",
            ["/opt/a", "/opt/a/src"],
        ),
        ("env['PYTHONPATH'] = os.pathsep.join(['/opt/a', '/opt/b'])", ["/opt/a", "/opt/b"]),
        ("env = dict(os.environ, PYTHONPATH='/opt/a')", ["/opt/a"]),
        ("env = {**os.environ, 'PYTHONPATH': '/opt/a'}", ["/opt/a"]),
        ("os.environ.setdefault('PYTHONPATH', '/opt/a')", ["/opt/a"]),
        ("sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'lib'))", []),
        ("sys.path.insert(0, os.getcwd())", []),
        ("print(sys.path)", []),
    ],
)
def test_what_code_adds(tmp_path: Path, code: str, folders: list[str]) -> None:
    found = job_path(tmp_path, f"import os\nimport sys\nfrom pathlib import Path\n{code}\n")
    assert sorted(found.folders) == folders
    assert (found.variable, found.unknown) == (None, ())


@pytest.mark.parametrize(
    "code",
    [
        "sys.path.insert(0, find())",
        "def f(where):\n    sys.path.insert(0, where)",
        "for place in places():\n    sys.path.append(place)",
        "R = '/opt/a'\nR = other()\nsys.path.append(R)",
        "sys.path.insert(0, os.environ['CURATOR'])",
        "sys.path.extend(places())",
        "os.environ['PYTHONPATH'] = compute()",
        "sys.path.append(config['absent'])",
    ],
)
def test_what_only_running_it_tells_is_unknown_with_its_place(tmp_path: Path, code: str) -> None:
    found = job_path(tmp_path, f"import os\nimport sys\n{code}\n")
    assert found.folders == ()
    (place,) = found.unknown
    assert place == f"{STEP}/step.py:{2 + len(code.splitlines())}"


def test_code_takes_values_of_its_config(tmp_path: Path) -> None:
    source = "import sys\nsys.path.insert(0, config['tokenizer'])\nsys.path.append(cfg.get('more', '/opt/default'))\n"
    found = job_path(tmp_path, source, config="model: {tokenizer: /opt/tok}\n")
    assert found == JobPath(folders=("/opt/tok", "/opt/default"))


def test_files_that_the_step_loads_count_and_others_do_not(tmp_path: Path) -> None:
    added = "import sys\nsys.path.insert(0, '/opt/{}')\n"
    files = {"helper.py": added.format("helper"), "unused.py": added.format("unused")}
    assert job_path(tmp_path, "import helper\n", files=files) == JobPath(folders=("/opt/helper",))


def test_the_config_sets_the_variable_in_place_of_the_images(tmp_path: Path) -> None:
    config = "run:\n  env:\n    env_vars:\n      PYTHONPATH: /opt/a/src:/opt/b:${oc.env:PYTHONPATH,}\n"
    found = job_path(tmp_path, "", config=config)
    assert found == JobPath("/opt/a/src:/opt/b:", f"{STEP}/config/tiny.yaml:4")


def test_a_variable_that_cannot_be_resolved_here_is_none(tmp_path: Path) -> None:
    config = "run:\n  env:\n    env_vars:\n      PYTHONPATH: ${oc.env:NOT_SET_ANYWHERE}\n"
    assert job_path(tmp_path, "", config=config) == JobPath()
