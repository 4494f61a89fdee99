"""The variables that an image's `env:` may set, and those that it must not.

Knows names and values only; `build` puts them into an image's config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from airferry.oci.documents import DEFAULT_PATH

MAX_VARIABLES = 128
MAX_VALUE = 8192

OFFLINE_NAMES = frozenset(
    {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "WANDB_MODE", "UV_OFFLINE", "UV_PYTHON_DOWNLOADS"}
)
"""What airferry sets so that a job looks for nothing outside."""

PROXY_NAMES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY"})

# each runs code, or changes what an interpreter or shell loads, before the step's first line
HOOK_NAMES = frozenset(
    {
        "BASH_ENV",
        "ENV",
        "GCONV_PATH",
        "IFS",
        "LD_AUDIT",
        "LD_PRELOAD",
        "NODE_OPTIONS",
        "PERL5OPT",
        "PROMPT_COMMAND",
        "PYTHONBREAKPOINT",
        "PYTHONEXECUTABLE",
        "PYTHONHOME",
        "PYTHONINSPECT",
        "PYTHONPLATLIBDIR",
        "PYTHONSTARTUP",
        "RUBYOPT",
        "SHELLOPTS",
    }
)

SECRET_TEXT = re.compile(
    r"hf_[A-Za-z0-9]{20,}|nvapi-[\w-]{20,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|glpat-[\w-]{16,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
"""What looks like a secret whatever its name: tokens of well-known services, logins in URLs."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SECRET_WORD = re.compile(
    r"(?:^|_)(?:TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|PWD|CREDENTIALS?|AUTH|API_?KEY|KEY|NETRC)(?:_|$)"
)
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\$")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"`{value}` is not the name of an environment variable")
    upper = value.upper()
    if upper in OFFLINE_NAMES:
        raise ValueError(
            f"`{value}` is set by airferry, so that jobs stay offline; remove it here, and let a job that needs "
            "another value set it in its config, `run.env.env_vars`"
        )
    if upper in PROXY_NAMES or upper == "NO_PROXY":
        raise ValueError(
            f"`{value}` names a proxy of this network, which jobs inside cannot reach; set it in the site's profile, "
            "`site.profiles.NAME.env`"
        )
    if upper in HOOK_NAMES:
        raise ValueError(
            f"`{value}` changes what starts before a step; if a step really needs it, set "
            "it in a `containerfile:` of the image"
        )
    if upper.startswith("AIRFERRY_"):
        raise ValueError(f"`{value}`: names that begin with `AIRFERRY_` are reserved")
    if _SECRET_WORD.search(upper):
        raise ValueError(
            f"`{value}` is named like a secret, and anyone with the image can read its variables; let the scheduler "
            "inject it, and name it under `site.profiles.NAME.provides`"
        )
    return value


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _value(value: str) -> str:
    if len(value) > MAX_VALUE:
        raise ValueError(f"a value has {MAX_VALUE} characters at most, this one has {len(value)}")
    if not value.isprintable():
        raise ValueError("expected one line of printable text")
    if SECRET_TEXT.search(value):
        raise ValueError(
            "the value looks like a secret, and anyone with the image can read its variables; let the scheduler "
            "inject it, and name it under `site.profiles.NAME.provides`"
        )
    if "$" in _REFERENCE.sub("", value):
        raise ValueError("a `$` begins `${NAME}`, a variable of the base; write `$$` for the character itself")
    return value


def _mapping(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_VARIABLES:
        raise ValueError(f"an image takes at most {MAX_VARIABLES} variables, found {len(value)}")
    if "PATH" in value and "${PATH}" not in value["PATH"]:
        raise ValueError("`PATH` without `${PATH}` drops the base's programs; write for example `/opt/bin:${PATH}`")
    for folder in _REFERENCE.sub("", value.get("PYTHONPATH", "")).split(":"):
        if folder and not folder.startswith("/"):
            raise ValueError(f"`PYTHONPATH`: `{folder}` is not an absolute path")
    return value


ImageVariableName = Annotated[str, AfterValidator(_name)]
ImageVariableValue = Annotated[
    str,
    BeforeValidator(_number_as_text),
    AfterValidator(_value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
]
ImageEnv = Annotated[dict[ImageVariableName, ImageVariableValue], AfterValidator(_mapping)]


def expanded(chosen: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an `env:` with each `${NAME}` replaced by what `known`, those of the base, holds.

    One that the base lacks goes together with a colon next to it, so that `/opt/x:${PYTHONPATH}` never ends in an empty
    entry, which Python and shells take for the current folder. `$$` is a dollar sign.
    """
    return {name: _expand(text, known) for name, text in chosen.items()}


def _expand(text: str, known: Mapping[str, str]) -> str:
    parts: list[str] = []
    rest = 0
    for match in _REFERENCE.finditer(text):
        parts.append(text[rest : match.start()])
        rest = match.end()
        if match[1] is None:
            parts.append("$")
            continue
        value = known.get(match[1]) or (DEFAULT_PATH if match[1] == "PATH" else "")
        if value:
            parts.append(value)
        elif parts[-1].endswith(":"):
            parts[-1] = parts[-1][:-1]
        elif text.startswith(":", rest):
            rest += 1
    return "".join([*parts, text[rest:]])
