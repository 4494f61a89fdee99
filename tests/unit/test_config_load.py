"""What `airgap.yaml` may say, and what is said of one that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airferry.config import ArchiveBase, BootstrapBase, LayoutBase, RegistryBase, load_config
from airferry.config.fields import parse_overlay
from airferry.errors import ConfigurationError
from catalogues import write_airgap

SHIPPED = Path(__file__).parents[2] / "airgap.yaml"


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_config(write_airgap(tmp_path, text))
    assert caught.value.exit_code == 3
    return [line.removeprefix(f"{tmp_path}/") for line in caught.value.message.splitlines()]


@pytest.mark.parametrize(
    "address",
    [
        "https://h/thing.whl",
        "git+https://h/t@main",
        f"git+https://h/t@{'A' * 40}",
        "git+https://h/t",
        f"git+-x@{'1' * 40}",
    ],
)
@pytest.mark.parametrize(("image", "line"), [("launcher_image", 5), ("execution_images:\n  a", 6)])
def test_requirements_take_git_addresses_with_a_full_commit_id_only(
    tmp_path: Path, address: str, image: str, line: int
) -> None:
    text = f"{image}:\n    base_image: b\n    requirements:\n      other: other==1\n      thing: thing @ {address}\n"
    (told,) = problems(tmp_path, text)
    key = image.replace(":\n  ", ".")
    assert told.startswith(f"airgap.yaml:{line}: `{key}.requirements.thing`: `thing @ …` has an address")
    assert "`thing==VERSION`, or `thing @ git+URL@COMMIT` with a full commit id" in told
    pinned = f"git+https://h/t@{'1' * 40}#subdirectory=x"
    assert load_config(write_airgap(tmp_path, text.replace(address, pinned)))


def test_a_file_of_nemotrons_own_runner_is_accepted(tmp_path: Path) -> None:
    config = load_config(
        write_airgap(
            tmp_path,
            """
workflow: {name: sft, stages: ["sft/megatron_bridge:tiny"]}
build_stages: [validate, discover-execution-deps, build-launcher-image, build-execution-images, save-images]
paths: {output_dir: deploy/out}
launcher_image: {base_image: "python:3.12-slim", tag: "launcher:latest", tar: launcher.tar, platform: linux/amd64}
dependencies: {sft/megatron_bridge: ["data_prep/sft_packing:tiny"]}
step_execution_images: {sft/megatron_bridge: nemo, data_prep/sft_packing: {execution_image: nemo}}
execution_images:
  nemo: {base_image: "nvcr.io/nvidia/nemo:25.11", tag: "a:latest", tar: a.tar, required_imports: [], pip_no_deps: true}
""",
        )
    )
    assert config.step_execution_images["data_prep/sft_packing"].execution_image == "nemo"
    assert config.execution_images["nemo"].base_image == RegistryBase(reference="nvcr.io/nvidia/nemo:25.11")
    assert config.launcher_image is not None
    assert [str(platform) for platform in config.launcher_image.platform_choice] == ["linux/amd64"]


def test_the_shipped_plan_has_every_family_and_the_checkout_that_two_steps_would_clone() -> None:
    config = load_config(SHIPPED)
    families = {step.partition("/")[0] for step in config.step_execution_images}
    known = "byob convert curate data_prep env eval optimize peft pretrain rl sdg sft translate"
    assert " ".join(sorted(families)) == known
    (overlay,) = config.execution_images["nemo-modelopt"].overlays
    assert overlay.target == "/opt/Model-Optimizer"
    assert {entry.execution_image for entry in config.step_execution_images.values()} == set(config.execution_images)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text) == ["airgap.yaml:1: the file is empty"]


def test_a_list_at_the_top_is_refused(tmp_path: Path) -> None:
    assert "expected a mapping" in problems(tmp_path, "- a\n")[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("workflow:\n  name: [a\n", 3),
        ("a: 1\n\tb: 2\n", 2),
        ("workflow: &a\n  name: *b\n", 2),
        ("a: !!python/object:os.system x\n", 1),
        ("workflow: {}\n---\nworkflow: {}\n", 2),
    ],
)
def test_yaml_that_cannot_be_read_is_refused_at_its_line(tmp_path: Path, text: str, line: int) -> None:
    assert problems(tmp_path, text)[0].startswith(f"airgap.yaml:{line}: not valid YAML")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "airgap.yaml"
    path.write_bytes(b"workflow:\n  name: \xff\n")
    with pytest.raises(ConfigurationError, match=r"airgap\.yaml:2: not UTF-8"):
        load_config(path)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, "workflow: {}\npaths: {}\nworkflow: {}\n")
    assert found == ["airgap.yaml:3: `workflow`: duplicate key, first on line 1"]


def test_aliases_cannot_grow_without_bound(tmp_path: Path) -> None:
    lines = ["x-0: &a0 [a, a, a, a, a, a, a, a, a, a]"]
    lines += [f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "aliases expanded" in problems(tmp_path, "\n".join(lines))[0]


def test_an_alias_of_itself_is_refused(tmp_path: Path) -> None:
    assert "levels" in problems(tmp_path, "x-a: &a [*a]\n")[0]


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    config = load_config(
        write_airgap(
            tmp_path,
            "x-common: &common {base_image: 'python:3.12', pip_no_deps: false}\n"
            "execution_images:\n  a: *common\n  b: {<<: *common, pip_no_deps: true}\n",
        )
    )
    assert [image.pip_no_deps for image in config.execution_images.values()] == [False, True]


def test_all_problems_are_told_at_once_each_at_its_line(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """workflows: {name: a}
launcher_image:
  tag: "A B"
  platforms: [linux/z80]
execution_images:
  a: {pip_no_deps: "yes", base_image: {bootstrap: {suit: bookworm, packages: [1]}}}
  b: {tag: "x"}
  c:
    base_image: 25
    overlays: ["git+https://a/b"]
    requirements: {a.b: "=="}
compression: {kind: gzip, level: 12}
""",
    )
    assert [line.split(": ")[0] for line in found] == [
        f"airgap.yaml:{line}" for line in (1, 3, 4, 6, 6, 6, 6, 7, 9, 10, 11, 12)
    ]
    text = "\n".join(found)
    for part in (
        "`workflows`: unknown key, did you mean `workflow`?",
        "`launcher_image.platforms[0]`: unsupported platform `linux/z80`",
        "`execution_images.a.pip_no_deps`: expected `true` or `false`",
        "`execution_images.a.base_image.bootstrap.suit`: unknown key, did you mean `suite`?",
        "`execution_images.a.base_image.bootstrap.packages[0]`: expected text",
        "`execution_images.b.base_image`: is missing",
        "`execution_images.c.overlays[0]`: `git+https://a/b` has no `@REF`",
        "`compression`: level 12 is out of range",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("workflow: [a]", "expected a mapping"),
        ("workflow: {stages: a}", "expected a list, found `'a'`"),
        ("workflow: {stages: [1]}", "expected text"),
        ("archives: 1", "expected `true` or `false`"),
        ("compression: {level: '3'}", "expected a whole number"),
        ("compression: {kind: preserve, level: 3}", "takes no level"),
        ("compression: {kind: gzip, long: true}", "`gzip` has no `long`, only zstd has"),
        ("compression: {kind: zstd, long: 1}", "long"),
        ("builder: bob", "'auto', 'buildah' or 'direct'"),
        ("stages: [sav-images]", "`sav-images` is not a stage"),
        ("platforms: [amd64]", "is not a platform"),
        ("launcher_image: {platform: linux/amd64, platforms: [linux/amd64]}", "exclude each other"),
        ("launcher_image: {tar: ../a.tar}", "inside the output folder"),
        ("execution_images: {a/b: {base_image: c}}", "is not an image name"),
        ("execution_images: {a: {base_image: 'A:B:C'}}", "is no"),
        ("execution_images: {a: {base_image: {bootstrap: {suite: b}, other: 1}}}", "exclude each other"),
        ("execution_images: {a: {base_image: 'oci:'}}", "has no path"),
        ("execution_images: {a: {base_image: b, required_imports: [a-b]}}", "is not a Python module name"),
        ("execution_images: {a: {base_image: b, overlays: [{url: u, ref: r, target: opt}]}}", "not an absolute path"),
        ("execution_images: {a: {base_image: b, overlays: [{url: u, ref: r, target: /}]}}", "not an absolute path"),
        ("source: {steps: ../steps}", "inside the catalogue's root"),
        ("site: [a]", "expected a mapping"),
        ("assets: a", "expected a mapping"),
        ("registry: {plain_http: 1}", "expected `true` or `false`"),
    ],
)
def test_wrong_values_are_told(tmp_path: Path, text: str, reason: str) -> None:
    (found,) = problems(tmp_path, text)
    assert reason in found
    assert found.startswith("airgap.yaml:1: `")


def test_free_keys_are_ignored_and_keys_without_value_are_not_there(tmp_path: Path) -> None:
    config = load_config(
        write_airgap(
            tmp_path,
            "x-mine: [1]\ndependencies:\nexecution_images:\n  a: {base_image: b, x-owner: me, required_imports: }\n",
        )
    )
    assert config.dependencies == {}
    assert config.execution_images["a"].required_imports == ()


def test_bases_of_every_kind(tmp_path: Path) -> None:
    images = {
        "a": "'docker.io/library/python:3.12'",
        "b": "'oci:bases/python:3.12'",
        "c": "'oci-archive:/srv/base.tar'",
        "d": "{bootstrap: {suite: bookworm, packages: [python3-minimal]}}",
    }
    text = "execution_images:\n" + "".join(f"  {name}: {{base_image: {base}}}\n" for name, base in images.items())
    bases = [image.base_image for image in load_config(write_airgap(tmp_path, text)).execution_images.values()]
    assert bases[1] == LayoutBase(path=tmp_path / "bases/python", reference="3.12", written="oci:bases/python:3.12")
    assert bases[2] == ArchiveBase(path=Path("/srv/base.tar"), written="oci-archive:/srv/base.tar")
    assert isinstance(bases[3], BootstrapBase)
    assert bases[3].variant == "extract"
    assert [base.key for base in bases] == [
        "docker.io/library/python:3.12",
        "oci:bases/python:3.12",
        "oci-archive:/srv/base.tar",
        json.dumps(
            {"bootstrap": {"suite": "bookworm", "packages": ["python3-minimal"]}}, sort_keys=True, separators=(",", ":")
        ),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("git+https://h/a/b.git@main,/opt/b", ("https://h/a/b.git", "main", "/opt/b")),
        ("git+https://h/b@feature/x , /opt/b", ("https://h/b", "feature/x", "/opt/b")),
        ("git+ssh://git@h:22/b.git@v1,/opt/b", ("ssh://git@h:22/b.git", "v1", "/opt/b")),
        ("git+git@h:a/b.git@v1,/opt/b", ("git@h:a/b.git", "v1", "/opt/b")),
        ("git+/srv/b@v1,/opt/b", ("/srv/b", "v1", "/opt/b")),
        ("git+file:///srv/b@v1,/opt/b", ("file:///srv/b", "v1", "/opt/b")),
    ],
)
def test_overlays_are_taken_apart(text: str, expected: tuple[str, str, str]) -> None:
    assert parse_overlay(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "https://h/b@main,/opt/b",
        "git+https://h/b,/opt/b",
        "git+ssh://git@h/b,/opt/b",
        "git+git@h:a/b,/opt/b",
        "git+https://h/b@,/opt/b",
        "git+https://h/b@main",
        "git+https://h/b@main,",
        "git+https://h/b@main,opt",
        "git+https://h/b@main,/opt/../etc",
    ],
)
def test_overlays_without_ref_or_target_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="`"):
        parse_overlay(text)


OVERLAY_PARTS = ["https://h/b.git", "ssh://git@h/b", "git@h:b", "@", "v1", ",", "/opt", "/..", "/", "'", " ", "é", "\n"]


@given(st.text(max_size=60) | st.lists(st.sampled_from(OVERLAY_PARTS), max_size=8).map("".join))
@example("https://h/b.git@v1,/opt")
def test_overlays_never_fail_in_another_way(text: str) -> None:
    try:
        url, ref, target = parse_overlay("git+" + text)
    except ValueError:
        return
    assert url and ref and target.startswith("/") and ".." not in target.split("/")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    try:
        load_config(path)
    except ConfigurationError as error:
        assert str(path) in error.message
