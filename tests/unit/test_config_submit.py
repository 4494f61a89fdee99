"""The command that submits a step, made of a catalogue's template."""

from __future__ import annotations

import pytest

from airferry.config.submit import NEMOTRON_SUBMIT, submit_command, submit_words


@pytest.mark.parametrize(
    ("template", "config", "overrides", "expected"),
    [
        (NEMOTRON_SUBMIT, "my config.yaml", (), "nemotron steps run sft/a -c 'my config.yaml' -b site"),
        (NEMOTRON_SUBMIT, None, ("a=1", "b=x y"), "nemotron steps run sft/a -b site a=1 'b=x y'"),
        ("acme run --step={step} --config={config}", None, (), "acme run --step=sft/a"),
        ("acme run --step={step} --config={config}", "c.yaml", (), "acme run --step=sft/a --config=c.yaml"),
        ("acme '{step} now' {config} {profile}", None, (), "acme 'sft/a now' site"),
        ("acme {step} --set={overrides}", None, ("a=1",), "acme sft/a --set=a=1"),
    ],
)
def test_a_template_becomes_a_command(
    template: str, config: str | None, overrides: tuple[str, ...], expected: str
) -> None:
    pairs = dict(item.split("=", 1) for item in overrides)
    found = submit_command("sft/a", config=config, profile="site", overrides=pairs, template=template)
    assert found == expected


def test_where_no_profile_is_known_its_option_goes() -> None:
    assert submit_words(NEMOTRON_SUBMIT, step="a", config="c", profile=None) == [
        "nemotron",
        "steps",
        "run",
        "a",
        "-c",
        "c",
    ]


def test_without_a_command_what_it_needs_is_listed() -> None:
    found = submit_command("sft/a", config="c.yaml", profile="site", overrides={}, template="")
    assert found.startswith("# no command is known") and found.endswith("sft/a config=c.yaml profile=site")
    with_image = submit_command("a", config="c.yaml", profile="site", overrides={}, template="", image="hub/a@b")
    assert with_image.endswith("a image=hub/a@b config=c.yaml profile=site")
