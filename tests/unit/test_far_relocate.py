"""Where images go: the rule, its exceptions, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.errors import UsageError
from airferry.far.relocate import parse_destination, relocate
from airferry.oci.reference import parse_reference

TO = parse_destination("reg.corp:5000/mirror/x")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("docker.io/library/python:3.12", "reg.corp:5000/mirror/x/python:3.12"),
        ("docker.io/team/app:1", "reg.corp:5000/mirror/x/team/app:1"),
        ("nvcr.io/nvidia/nemo:25.09", "reg.corp:5000/mirror/x/nvidia/nemo:25.09"),
        ("localhost:5000/library/a:1", "reg.corp:5000/mirror/x/library/a:1"),
    ],
)
def test_the_host_is_dropped_and_the_path_is_kept(name: str, expected: str) -> None:
    assert str(relocate([name], TO)[name]) == expected


def test_flatten_keeps_the_last_part() -> None:
    found = relocate(["nvcr.io/nvidia/nemo:25.09"], replace(TO, flatten=True))
    assert [str(place) for place in found.values()] == ["reg.corp:5000/mirror/x/nemo:25.09"]


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ({"nvcr.io/nvidia/nemo:25.09": "nemo:prod"}, "nemo:prod"),
        ({"nvcr.io/nvidia/nemo": "other"}, "other:25.09"),
        ({"nvcr.io/nvidia/": "vendor/"}, "vendor/nemo:25.09"),
        ({"nvcr.io/nvidia": "vendor"}, "vendor/nemo:25.09"),
        ({"nvcr.io": "all"}, "all/nvidia/nemo:25.09"),
        ({"nvcr.io/nvidia/nemo:25.09": "nemo"}, "nemo:25.09"),
    ],
)
def test_a_map_takes_the_place_of_what_it_fits(maps: dict[str, str], expected: str) -> None:
    name = "nvcr.io/nvidia/nemo:25.09"
    assert str(relocate([name], replace(TO, maps=maps))[name]) == f"reg.corp:5000/mirror/x/{expected}"


def test_the_longest_map_wins_and_one_that_fits_nothing_is_refused() -> None:
    names = ["a.io/x/one:1", "a.io/x/two:1"]
    found = relocate(names, replace(TO, maps={"a.io/x": "general", "a.io/x/two": "special"}))
    assert [place.repository for place in found.values()] == ["mirror/x/general/one", "mirror/x/special"]
    with pytest.raises(UsageError, match=r"`--map a\.io/xx=…` matches no image"):
        relocate(names, replace(TO, maps={"a.io/xx": "y"}))


def test_images_that_would_collide_are_refused() -> None:
    with pytest.raises(UsageError, match="would both become") as caught:
        relocate(["a.io/x:1", "b.io/x:1"], TO)
    assert "--map" in (caught.value.hint or "")
    relocate(["a.io/x:1", "b.io/x:2"], TO)


def test_a_map_to_what_is_no_name_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot go to"):
        relocate(["a.io/x:1"], replace(TO, maps={"a.io/x:1": "Not A Name"}))


@pytest.mark.parametrize("text", ["", "registry/prefix", "reg.corp/UPPER", "/x", "reg.corp:5000/a//b"])
def test_no_destination(text: str) -> None:
    with pytest.raises(UsageError):
        parse_destination(text)


@pytest.mark.parametrize(
    "text", ["reg.corp", "docker://reg.corp:5000/", "localhost/x", "127.0.0.1:5000/a/b", "[::1]:5000"]
)
def test_destinations(text: str) -> None:
    assert text.removeprefix("docker://").rstrip("/") == str(parse_destination(text))


PART = st.from_regex(r"[a-z0-9]{1,5}", fullmatch=True)


@given(st.lists(st.tuples(PART, PART, PART), unique=True, max_size=8), st.booleans())
def test_no_two_images_ever_share_a_place(parts: list[tuple[str, str, str]], flatten: bool) -> None:
    names = [f"{host}.io/{path}/image:{tag}" for host, path, tag in parts]
    try:
        places = relocate(names, replace(TO, flatten=flatten))
    except UsageError:
        assert len({(path if not flatten else "", tag) for _host, path, tag in parts}) < len(names)
        return
    assert len({str(place) for place in places.values()}) == len(names)
    assert all(parse_reference(str(place)) == place for place in places.values())
