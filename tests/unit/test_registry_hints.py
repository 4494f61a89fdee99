"""What an error of a registry advises: "rerun" only where that can help, else what to change."""

from __future__ import annotations

import json

import pytest

from airferry.errors import RegistryError
from airferry.registry.failures import rerun_helps, status_error
from airferry.registry.retry import TRANSIENT_STATUSES

DIGEST = "sha256:" + "0" * 64


TAG = ("PUT", "manifests/1.0")


MANIFEST = ("PUT", f"manifests/{DIGEST}")


UPLOAD = ("POST", "blobs/uploads/")


CHUNK = ("PATCH", "blobs/uploads/1234")


READ = ("GET", f"manifests/{DIGEST}")


ECR = "The image tag already exists in the repository and cannot be overwritten because it is immutable"


ADVICE = [
    (MANIFEST, 400, "MANIFEST_INVALID", "unknown media type", "`--artifacts skip`"),
    (MANIFEST, 422, "UNSUPPORTED", "", "`--artifacts skip`"),
    (UPLOAD, 400, "", "", "its log says why"),
    (UPLOAD, 400, "NAME_INVALID", "too deep", "`--flatten`"),
    (UPLOAD, 401, "UNAUTHORIZED", "project not found", "project `library`"),
    (UPLOAD, 403, "DENIED", "", "create it, or choose another prefix with `--to`"),
    (MANIFEST, 403, "DENIED", "", "may not push to `library/app`"),
    (UPLOAD, 404, "NAME_UNKNOWN", "", "`library/app` does not exist there"),
    (UPLOAD, 404, "", "", "lets only known clients through; `library/app` does not exist there"),
    (UPLOAD, 405, "", "", "read-only"),
    (TAG, 409, "", "", "must not move"),
    (TAG, 412, "PRECONDITION", "configured as immutable", "must not move"),
    (TAG, 400, "TAG_INVALID", ECR, "`--map FROM=TO`"),
    (TAG, 403, "DENIED", "tag is immutable", "must not move"),
    (TAG, 400, "UNKNOWN", "Repository does not allow updating assets: docker", "must not move"),
    (CHUNK, 413, "", "", "client_max_body_size"),
    (MANIFEST, 413, "", "", "client_max_body_size"),
    (MANIFEST, 415, "MANIFEST_INVALID", "", "docker2s2"),
    (READ, 401, "UNAUTHORIZED", "", "`airferry login registry.example`"),
    (READ, 403, "DENIED", "", "no permission"),
    (READ, 404, "MANIFEST_UNKNOWN", "", "check the name"),
    (READ, 412, "", "", "a policy of the registry"),
]


PASSING = [
    (MANIFEST, 400, "MANIFEST_BLOB_UNKNOWN", "blob unknown", "garbage collection"),
    (MANIFEST, 400, "DIGEST_INVALID", "", "damaged on their way"),
    (CHUNK, 404, "BLOB_UPLOAD_UNKNOWN", "", "lost the upload"),
    (MANIFEST, 409, "", "", "at odds with another change"),
    (CHUNK, 429, "TOOMANYREQUESTS", "", "`-j 1`"),
    (CHUNK, 500, "", "", "check its log"),
    (CHUNK, 507, "", "", "disk is full"),
    (CHUNK, 403, "DENIED", "Quota has been exceeded on namespace", "no room left"),
    (MANIFEST, 403, "DENIED", "adding 1.2 GiB will exceed the configured upper limit of 10.0 GiB.", "no room left"),
    (MANIFEST, 412, "PRECONDITION", "will exceed the configured upper limit of 10 GiB", "no room left"),
    (MANIFEST, 500, "UNKNOWN", "map[DriverName:filesystem Enclosed:map[Err:28 Op:write]]", "no room left"),
    (CHUNK, 500, "UNKNOWN", "filesystem: write /var: no space left on device", "no room left"),
]


def advice(request: tuple[str, str], status: int, code: str, text: str) -> RegistryError:
    method, path = request
    url = f"https://registry.example/v2/library/app/{path}?_state=secret"
    data = json.dumps({"errors": [{"code": code, "message": text}]}).encode() if code or text else b"<html>"
    transient = status in TRANSIENT_STATUSES
    return status_error(method, url, status=status, data=data, what="do it", transient=transient)


@pytest.mark.parametrize(("request_", "status", "code", "text", "expected"), ADVICE)
def test_a_refusal_that_stays_says_what_to_change(
    request_: tuple[str, str], status: int, code: str, text: str, expected: str
) -> None:
    error = advice(request_, status, code, text)
    hint = error.hint or ""
    assert expected in hint and "secret" not in hint
    assert not rerun_helps(error) and "rerun" not in hint.replace("a rerun would be refused too", "")


@pytest.mark.parametrize(("request_", "status", "code", "text", "expected"), PASSING)
def test_what_can_pass_is_worth_a_rerun(
    request_: tuple[str, str], status: int, code: str, text: str, expected: str
) -> None:
    hint = advice(request_, status, code, text).hint or ""
    assert expected in hint and "rerun" in hint
