"""The command that submits a step, as a template: who writes one in `source.submit` says how their users submit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from functools import partial
from typing import Annotated

from pydantic import AfterValidator, Field

from airferry.config.fields import Text
from airferry.wording import comment_line

NEMOTRON_SUBMIT = "nemotron steps run {step} -c {config} -b {profile} {overrides}"
NO_COMMAND_HINT = (
    "no command that submits is known for this catalogue: write your site's as `submit:` into the site profile, such "
    "as `submit: acme run {step} --config {config} --cluster {profile} {overrides}`, then run `airferry overlays` "
    "again; for all sites, the near side sets `source.submit`"
)
_WORDS = ("step", "config", "profile", "overrides")
_PLACE = re.compile(r"\{([^{}]*)\}")


def _check(value: str) -> str:
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ValueError(f"`{value}` cannot be split into words: {error}") from error
    unknown = [name for word in words for name in _PLACE.findall(word) if name not in _WORDS]
    if unknown:
        known = ", ".join(f"`{{{name}}}`" for name in _WORDS)
        raise ValueError(f"`{{{unknown[0]}}}` is unknown; known are {known}")
    if "{step}" not in value:
        raise ValueError("`{step}` is missing, for example `acme run {step} --config {config}`")
    return value


SubmitText = Annotated[Text, Field(max_length=1000), AfterValidator(_check)]


def submit_words(
    template: str, *, step: str, config: str | None, profile: str | None, overrides: tuple[str, ...] = ()
) -> list[str]:
    """Return the words of the command that submits a step.

    Where there is no config or no profile, its word goes, with the option before it. `{overrides}` stands for as many
    words as there are. In a word with blanks, which another shell is to split (`ssh login "acme run {step}"`), values
    are quoted for that one.
    """
    values = {"step": step, "config": config, "profile": profile, "overrides": shlex.join(overrides)}
    result: list[str] = []
    for word in shlex.split(template):
        places = _PLACE.findall(word)
        if word == "{overrides}":
            result += overrides
        elif any(values[name] is None for name in places):
            if result and word.startswith("{") and result[-1].startswith("-"):
                result.pop()
        else:
            result.append(_PLACE.sub(partial(_filled, values, nested=len(word.split()) > 1), word))
    return result


def _filled(values: Mapping[str, str | None], place: re.Match[str], *, nested: bool) -> str:
    name, value = place[1], values[place[1]] or ""
    return shlex.quote(value) if nested and name != "overrides" else value


def submit_command(
    step_id: str,
    *,
    config: str | None,
    profile: str,
    overrides: Mapping[str, str],
    template: str | None = None,
    image: str | None = None,
) -> str:
    """Return the whole command that submits a step, quoted for a shell.

    The template is the catalogue's, None for Nemotron's command. An empty one says that no command is known: then the
    facts that any command needs are listed, the `image` that the config pins among them.
    """
    settings = tuple(f"{key}={value}" for key, value in overrides.items())
    if template == "":
        known = [("image", image), ("config", config), ("profile", profile)]
        words = [step_id, *(f"{name}={value}" for name, value in known if value), *settings]
        return comment_line("no command is known for this catalogue: " + shlex.join(words))
    form = template or NEMOTRON_SUBMIT
    return shlex.join(submit_words(form, step=step_id, config=config, profile=profile, overrides=settings))


def config_words(template: str | None, *, config: str) -> list[str]:
    """Return the words of a submit command that name its config: the path alone where no command is known.

    None stands for Nemotron's command, an empty template for one that is not known.
    """
    words = shlex.split(NEMOTRON_SUBMIT if template is None else template)
    for number, word in enumerate(words):
        if "{config}" in word:
            option = words[number - 1 : number] if word.startswith("{") and number else []
            return [*(item for item in option if item.startswith("-")), word.replace("{config}", config)]
    return [config]
