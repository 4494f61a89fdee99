"""Answers of the registry: errors of the distribution-spec, conditions and ranges of RFC 9110. Reads no files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

VERSION_HEADER = {"Docker-Distribution-Api-Version": "registry/2.0"}
READ_METHODS = ("GET", "HEAD")
# Python refuses to convert thousands of digits; no file is as long as 18 of them say
MOST_DIGITS = 18

_ENTITY_TAG = re.compile(r'(W/)?("[!#-~\x80-\xff]*")')
_RANGE = re.compile(r"([0-9]*)-([0-9]*)")


def json_answer(value: Mapping[str, Any], headers: Mapping[str, str] | None = None, *, status: int = 200) -> Response:
    """Answer a JSON document."""
    return Response(
        json.dumps(value),
        status_code=status,
        headers={**(headers or {}), **VERSION_HEADER},
        media_type="application/json",
    )


def error_answer(status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None) -> Response:
    """Answer an error in the form of the distribution-spec, *Error Codes*."""
    return json_answer({"errors": [{"code": code, "message": message}]}, headers, status=status)


class ReadOnly:
    """Answers every method that does not read with 405, whatever path it names: nothing can be pushed here."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through that reads."""
        if scope["method"] in READ_METHODS:
            await self._app(scope, receive, send)
            return
        message = "this registry is read-only: it serves a bundle; push to another registry with `airferry load`"
        response = error_answer(405, "UNSUPPORTED", message, headers={"Allow": ", ".join(READ_METHODS)})
        await response(scope, receive, send)


def content_headers(digest: str) -> dict[str, str]:
    """Return the headers of an answer that is content under a digest, which is its entity tag as well."""
    return {"Docker-Content-Digest": digest, "ETag": f'"{digest}"', **VERSION_HEADER}


def answer_condition(headers: Headers, digest: str) -> Response | None:
    """Return the answer if a request's condition rules the content out, RFC 9110, 13.2.2; None if it is to be sent."""
    tag = f'"{digest}"'
    if (wanted := _listed(headers, "if-match")) is not None:
        strong = [value for weak, value in _ENTITY_TAG.findall(wanted) if not weak]
        if wanted != "*" and tag not in strong:
            return error_answer(412, "PRECONDITION_FAILED", "`If-Match` names other content", headers={"ETag": tag})
    if (held := _listed(headers, "if-none-match")) is not None:
        known = [value for _weak, value in _ENTITY_TAG.findall(held)]
        if held == "*" or tag in known:
            return Response(status_code=304, headers=content_headers(digest))
    return None


def selected_range(method: str, headers: Headers, digest: str, size: int) -> range | None:
    """Return which bytes of content a request asks for, RFC 9110, 14: None for all of it, an empty range for none.

    A header that is not valid, that asks for another unit or for several parts, or that comes with another method than
    GET or with an `If-Range` of other content, is ignored, as the RFC says or allows.
    """
    lines = headers.getlist("range")
    if method != "GET" or len(lines) != 1 or size == 0:
        return None
    if (condition := headers.get("if-range")) is not None and condition.strip() != f'"{digest}"':
        return None
    unit, equals, wanted = lines[0].partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    specifications = [part.strip(" \t") for part in wanted.split(",") if part.strip(" \t")]
    parts = [_part(specification, size) for specification in specifications]
    if not parts or None in parts:
        return None
    satisfiable = [part for part in parts if part]
    if len(satisfiable) > 1:
        return None
    return satisfiable[0] if satisfiable else range(0)


def range_not_satisfiable(size: int) -> Response:
    """Answer a range of which the content has no byte."""
    return error_answer(
        416, "RANGE_INVALID", f"the blob has {size} bytes", headers={"Content-Range": f"bytes */{size}"}
    )


def _part(specification: str, size: int) -> range | None:
    """Return the bytes that one specification selects, none if it is not satisfiable, None if it is not valid."""
    found = _RANGE.fullmatch(specification)
    if found is None or specification == "-":
        return None
    first, last = (_number(digits) for digits in found.groups())
    if first is None:
        return range(max(0, size - (last or 0)), size)
    if last is None:
        return range(min(first, size), size)
    if last < first:
        return None
    return range(min(first, size), min(last + 1, size))


def _number(digits: str) -> int | None:
    if not digits:
        return None
    return int(digits) if len(digits.lstrip("0")) <= MOST_DIGITS else 10**MOST_DIGITS


def _listed(headers: Headers, name: str) -> str | None:
    lines = headers.getlist(name)
    return ",".join(lines).strip() if lines else None
