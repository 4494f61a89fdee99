"""What a new layer holds: where entries land, what the tar says of them, and what is refused."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.errors import BuildError
from airferry.near.assemble.tree import OPAQUE, Content, LayerTree, Node
from airferry.oci.tar import DIRECTORY, REGULAR, TarReader
from base_trees import EPOCH_S, Base, Entry, link


def content(text: str = "x") -> Content:
    return Content.of(text.encode(), digest=hashlib.sha256(text.encode()).hexdigest())


def tree(entries: dict[str, Entry] | None = None) -> LayerTree:
    return LayerTree(Base(entries), epoch_s=EPOCH_S)


def members(made: LayerTree) -> dict[str, tarfile.TarInfo]:
    data = b"".join(made.blocks())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = tar.getmembers()
    assert [entry.path for entry in TarReader(io.BytesIO(data), what="it")] == [member.name for member in found]
    return {member.name: member for member in found}


def test_a_linked_folder_is_gone_through_and_never_replaced() -> None:
    made = tree({"lib": link("usr/lib"), "usr/lib": Entry(), "lib64": link("/lib")})
    assert made.add_file("/lib64/x/y.py", content()) == "usr/lib/x/y.py"
    assert list(members(made)) == ["usr", "usr/lib", "usr/lib/x", "usr/lib/x/y.py"]


def test_relative_links_and_dots_resolve_within_the_root() -> None:
    made = tree({"a/b": link("../../../../c"), "c": Entry()})
    assert made.resolve("/a/./b/../d") == "d"
    assert made.resolve("/a/b/d") == "c/d"


def test_links_in_circles_are_refused() -> None:
    with pytest.raises(BuildError, match="loop"):
        tree({"a": link("b"), "b": link("a")}).resolve("/a/x")


def test_a_file_on_the_way_is_refused() -> None:
    with pytest.raises(BuildError, match="`/usr/bin/x` is not a folder"):
        tree({"usr/bin/x": Entry(REGULAR, 0o755)}).add_file("/usr/bin/x/y", content())


def test_a_path_that_is_too_long_is_refused() -> None:
    with pytest.raises(BuildError, match="longer than 4096 bytes"):
        tree().add_file("/" + "d/" * 10_000 + "x", content())


def test_folders_of_the_base_keep_mode_and_owner_and_only_the_touched_one_gets_the_new_time() -> None:
    made = tree({"srv": Entry(mode=0o700, uid=7, gid=8, mtime_s=5), "srv/data": Entry(mode=0o1777, mtime_s=6)})
    made.add_file("/srv/data/x", content(), executable=True)
    found = members(made)
    assert (found["srv"].mode, found["srv"].uid, found["srv"].gid, found["srv"].mtime) == (0o700, 7, 8, 5)
    assert (found["srv/data"].mode, found["srv/data"].mtime) == (0o1777, EPOCH_S)
    assert (found["srv/data/x"].mode, found["srv/data/x"].mtime) == (0o755, EPOCH_S)


def test_a_setgid_folder_hands_down_its_group_as_a_file_system_would() -> None:
    made = tree({"opt": Entry(mode=0o2775, gid=50)})
    made.add_file("/opt/pkg/x.py", content())
    found = members(made)
    assert (found["opt/pkg"].mode, found["opt/pkg"].gid) == (0o2755, 50)
    assert (found["opt/pkg/x.py"].mode, found["opt/pkg/x.py"].gid) == (0o644, 50)


def test_a_file_takes_the_place_of_a_link_not_of_what_it_leads_to() -> None:
    made = tree({"usr/bin/tool": link("/opt/tool"), "opt/tool": Entry(REGULAR)})
    assert made.add_file("/usr/bin/tool", content()) == "usr/bin/tool"


def test_a_file_in_place_of_a_folder_is_refused() -> None:
    with pytest.raises(BuildError, match="but the base has a folder there"):
        tree({"usr/bin/tool": Entry()}).add_file("/usr/bin/tool", content(), owner="w")
    with pytest.raises(BuildError, match="but the base has a folder there"):
        tree({"usr/bin/tool": link("../lib"), "usr/lib": Entry()}).add_file("/usr/bin/tool", content(), owner="w")
    with pytest.raises(BuildError, match="but the base has a folder there"):
        tree({"usr/bin/tool": Entry()}).add_link("/usr/bin/tool", "x", owner="w")


def test_two_owners_may_bring_the_same_file_but_not_different_ones() -> None:
    made = tree()
    made.add_file("/x", content("same"), owner="one")
    made.add_file("/x", content("same"), owner="two")
    with pytest.raises(BuildError, match="`three` and `two` both contain `/x`"):
        made.add_file("/x", content("other"), owner="three")


@pytest.mark.parametrize("there", [Entry(), Entry(REGULAR), link("/elsewhere")])
def test_a_folder_that_replaces_something_hides_it_and_what_was_below_it(there: Entry) -> None:
    made = tree({"opt/tool": there, **({"opt/tool/old": Entry(REGULAR)} if there.type == DIRECTORY else {})})
    place = made.replace_with_folder("/opt/tool")
    made.put_in(place, "!new", Node(REGULAR, 0o644, content=content()))
    assert made.lookup("opt/tool/old") is None
    assert list(members(made)) == ["opt", "opt/tool", f"opt/tool/{OPAQUE}", "opt/tool/!new"]


def test_a_folder_where_nothing_was_hides_nothing() -> None:
    made = tree()
    made.replace_with_folder("/opt/tool")
    assert list(members(made)) == ["opt", "opt/tool"]


def test_a_later_folder_takes_the_place_of_what_the_layer_has_there() -> None:
    made = tree({"opt/pkg": Entry()})
    made.add_file("/opt/pkg/mine", content())
    made.replace_with_folder("/opt/pkg")
    made.replace_with_folder("/opt/pkg")
    assert list(members(made)) == ["opt", "opt/pkg", f"opt/pkg/{OPAQUE}"]


def test_a_folder_with_extended_attributes_is_not_entered_anew_without_them() -> None:
    with pytest.raises(BuildError, match="`/srv` has extended attributes"):
        tree({"srv": Entry(has_xattrs=True)}).add_file("/srv/x", content())


def test_the_root_cannot_be_replaced() -> None:
    with pytest.raises(BuildError, match="root of the image"):
        tree().replace_with_folder("/")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "", "a//b", "/x"])
def test_names_that_lead_out_of_a_replaced_folder_are_refused(name: str) -> None:
    made = tree()
    place = made.replace_with_folder("/opt")
    with pytest.raises(BuildError, match="is not a name inside"):
        made.put_in(place, name, Node(REGULAR, 0o644, content=content()))


def test_names_that_would_be_whiteouts_are_refused() -> None:
    with pytest.raises(BuildError, match="names that begin"):
        tree().add_file("/opt/.wh.x", content())


def test_a_content_that_is_not_of_the_size_that_was_said_ends_the_layer() -> None:
    made = tree()
    made.add_file("/x", Content(5, "d", lambda: (b"1234",)))
    with pytest.raises(BuildError, match="`/x` changed while it was read: 4 bytes, 5 were expected"):
        list(made.blocks())


names = st.text(alphabet="ab!.é ", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@given(st.lists(paths, unique=True, max_size=12), st.randoms())
def test_the_order_of_adding_does_not_show_and_parents_come_first(places: list[str], random: object) -> None:
    def make(order: list[str]) -> bytes:
        made = tree({"a": link("b"), "b": Entry()})
        for path in order:
            try:
                made.add_file("/" + path, content(path.replace("a/", "b/", 1)))
            except BuildError:
                return b""
        return b"".join(made.blocks())

    shuffled = list(places)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = make(places), make(shuffled)
    if one and other:
        assert one == other
        seen = {""}
        for entry in TarReader(io.BytesIO(one), what="it"):
            assert entry.path.rpartition("/")[0] in seen
            seen.add(entry.path)
