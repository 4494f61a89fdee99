"""The optional parts of an installation: what only a near side needs, and what only `serve` needs.

A far side takes in as little as it can; `pyproject.toml` names the distributions, this module what is imported of them.
"""

from __future__ import annotations

from importlib.util import find_spec

from airferry.errors import HostError

EXTRAS: dict[str, tuple[str, ...]] = {
    "near": ("installer", "isal", "pip"),
    "serve": ("anyio", "bcrypt", "h11", "starlette", "uvicorn"),
}


def require_extra(extra: str, *, what: str) -> None:
    """Check that an extra is installed, without loading it, so that nothing stops half-way for want of it.

    Raises:
        HostError: a part of it is missing.
    """
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise HostError(
            f"{what} needs {', '.join(f'`{name}`' for name in missing)}, which this installation lacks",
            hint=f"`pip install 'airferry[{extra}]'`",
            extra=extra,
        )
