"""Debian userlands for real: from the host's package mirror, started on both platforms."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from airferry.engine.driver import base_tag, open_engine
from airferry.engine.preflight import checks
from airferry.errors import BuildError
from airferry.near.bases.debian import bootstrap, store_userland
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform
from debian_bases import AMD64, ARM64, DEBIAN, EPOCH_S, DebianBase


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@pytest.mark.parametrize("platform", [AMD64, ARM64], ids=str)
def test_the_same_versions_from_the_cache_give_the_same_bytes(
    debian_base: DebianBase, tmp_path: Path, platform: Platform
) -> None:
    first = debian_base.results[platform]
    pinned = bootstrap(
        DEBIAN,
        platform=platform,
        into=tmp_path / "2.tar",
        cache=debian_base.cache,
        epoch_s=EPOCH_S,
        pins=first.packages,
    )
    assert pinned.reused
    assert pinned.packages == first.packages
    assert sha256(pinned.tar) == sha256(first.tar)


def test_the_same_versions_fetched_again_give_the_same_image(debian_base: DebianBase, tmp_path: Path) -> None:
    first = debian_base.results[ARM64]
    fresh = bootstrap(
        DEBIAN,
        platform=ARM64,
        into=tmp_path / "fresh.tar",
        cache=tmp_path / "cold",
        epoch_s=EPOCH_S,
        pins=first.packages,
    )
    assert not fresh.reused
    assert fresh.packages == first.packages
    assert sha256(fresh.tar) == sha256(first.tar)
    store = LayoutStore.create(tmp_path / "layout")
    again = store_userland(fresh, base=DEBIAN, platform=ARM64, epoch_s=EPOCH_S, store=store)
    assert again.digest == debian_base.manifests[ARM64].digest


@pytest.mark.parametrize("platform", [AMD64, ARM64], ids=str)
def test_the_userland_is_a_usable_base(debian_base: DebianBase, engine_state: Path, platform: Platform) -> None:
    with open_engine(engine_state) as engine:
        engine.import_base(debian_base.layout, debian_base.manifests[platform].digest, platform=platform)
        image = base_tag(debian_base.manifests[platform].digest)
        code = (
            "import os, pwd; print(os.uname().machine, pwd.getpwuid(0).pw_dir, oct(os.stat('/tmp').st_mode & 0o7777))"
        )
        script = (
            f'python -c "{code}"; ls /etc/ssl/certs/ca-certificates.crt; sed -n s/^ID=//p /etc/os-release; '
            "grep -c ^Package: /var/lib/dpkg/status"
        )
        first, *listed = engine.run(image, ["sh", "-c", script], platform=platform).text.splitlines()
        assert first == f"{platform.machine} /root 0o1777"
        count = len(debian_base.results[platform].packages)
        assert listed == ["/etc/ssl/certs/ca-certificates.crt", "debian", str(count)]


def test_versions_that_are_gone_are_named_with_a_remedy(debian_base: DebianBase, tmp_path: Path) -> None:
    pins = {**debian_base.results[AMD64].packages, "sed": "4.0-1"}
    with pytest.raises(BuildError, match=r"`sed` locked 4\.0-1, found 4\.") as caught:
        bootstrap(DEBIAN, platform=AMD64, into=tmp_path / "x", cache=debian_base.cache, epoch_s=EPOCH_S, pins=pins)
    assert caught.value.hint and "airferry lock --update" in caught.value.hint
    assert not (tmp_path / "x").exists()


def test_a_package_that_does_not_exist_is_named(debian_base: DebianBase, tmp_path: Path) -> None:
    base = DEBIAN.model_copy(update={"packages": ("no-such-package-at-all",)})
    with pytest.raises(BuildError, match="no package `no-such-package-at-all`"):
        bootstrap(base, platform=AMD64, into=tmp_path / "x", cache=debian_base.cache, epoch_s=EPOCH_S)
    assert list((debian_base.cache / "bootstrap").iterdir()) == []


@pytest.mark.parametrize("kind", ["buildah", "podman"])
@pytest.mark.usefixtures("ordinary_user")
def test_this_host_passes_its_own_preflight(kind: str, tmp_path: Path, require_tool: Callable[[str], Path]) -> None:
    require_tool(kind)
    found = checks(state=tmp_path / "state", engine=kind, platforms=[AMD64, ARM64], bootstrap=True)  # type: ignore[arg-type]
    assert [check for check in found if check.status == "fail"] == []
    assert {"isolation", "storage", "user namespaces", "emulator linux/arm64"} <= {check.name for check in found}
    assert list((tmp_path / "state").iterdir()) == []
