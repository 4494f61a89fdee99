"""What is added to a base: named, closed, and never at the cost of what the base holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from airferry.errors import BuildError, IntegrityError
from airferry.events import Notice
from airferry.near.lock.additions import (
    Additions,
    deciding_modules,
    modules_to_probe,
    resolve_additions,
    resolve_environment,
)
from airferry.near.lock.closure import WheelSupply
from airferry.near.lock.resolve import told
from airferry.near.probe.answers import ProbeResult
from airferry.near.wheels.store import WheelStore
from airferry.oci.platform import parse_platform
from airferry.plan.locks.catalogue import CatalogueLock, read_catalogue_lock
from airferry.plan.models import Candidate, Origin
from airferry.rootfs.modules import ModuleAnswer
from folder_pip import FolderPip
from wheel_factory import make_group, make_probe, make_wheel, sha256

AMD64 = parse_platform("linux/amd64")
MISSING = ModuleAnswer(status="missing", missing="x")
PRESENT = ModuleAnswer(status="present")


class Case:
    """A package index, a lock and a base."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index = root / "index"
        self.index.mkdir()
        self.calls: list[object] = []
        pip = FolderPip(emit=self.calls.append, folder=self.index)
        self.store = WheelStore(root / "cache", pip)
        self.lock: CatalogueLock | None = None

    def wheel(self, name: str, version: str, *requires: str, extras: Sequence[str] = ()) -> Path:
        return make_wheel(self.index, name, version, requires=requires, extras=extras)

    def locked(self, text: str) -> None:
        path = self.root / "requirements.txt"
        path.write_text(text)
        self.lock = read_catalogue_lock(path)

    def locked_by_uv(self, manifest: str, *wheels: Path) -> None:
        """Write a `uv.lock` of a project that needs all these wheels."""
        entries, needs = "", ""
        for wheel in wheels:
            name, version = wheel.name.split("-")[:2]
            needs += f'{{ name = "{name}" }},'
            entries += f'[[package]]\nname = "{name}"\nversion = "{version}"\nsource = {{ registry = "r" }}\n'
            entries += f'wheels = [{{ url = "https://h/{wheel.name}", hash = "sha256:{sha256(wheel)}" }}]\n'
        project = f'[[package]]\nname = "p"\nversion = "1"\nsource = {{ editable = "." }}\ndependencies = [{needs}]\n'
        path = self.root / "uv.lock"
        path.write_text(f"version = 1\n[manifest]\n{manifest}\n{project}{entries}")
        self.lock = read_catalogue_lock(path)

    def resolve(
        self,
        modules: Mapping[str, ModuleAnswer],
        *,
        origin: Origin = "step",
        installed: dict[str, str] | None = None,
        requires: dict[str, tuple[str, ...]] | None = None,
        named: dict[str, str] | None = None,
        pip_no_deps: bool = True,
        version: str = "3.11.2",
        extra_answers: Mapping[str, ModuleAnswer] | None = None,
        reported: Mapping[str, ModuleAnswer] | None = None,
    ) -> Additions:
        answers = {**modules, **(extra_answers or {}), **(reported or {})}
        probe: ProbeResult = make_probe(installed=installed, requires=requires, modules=answers, version=version)
        candidates = [
            Candidate(name, origin, "steps/a/step.py", number) for number, name in enumerate(modules, start=7)
        ]
        candidates += [Candidate(name, "reported", "src/lib.py", 3) for name in reported or ()]
        return resolve_additions(
            make_group(candidates, named=named or {}, pip_no_deps=pip_no_deps),
            probe=probe,
            base="registry.example/base:1",
            platform=AMD64,
            supply=WheelSupply(self.lock, self.store),
        )


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def listed(additions: Additions) -> list[str]:
    return [f"{item.wheel.name}=={item.wheel.version}" for item in additions.additions]


def test_nothing_missing_asks_nobody(case: Case) -> None:
    result = case.resolve({"yaml": PRESENT, "torch": ModuleAnswer(status="present", note="OSError: libcuda.so.1")})
    assert result.additions == ()
    assert result.missing == ()
    assert result.notes == ("`torch` is installed, but importing it failed in the build: OSError: libcuda.so.1",)
    assert case.calls == []


def test_the_closure_follows_what_additions_require(case: Case) -> None:
    case.wheel("tabulate", "0.9", "wide>=1; python_version >= '3.8'", "old; python_version < '3'", "opt; extra == 'o'")
    case.wheel("wide", "1.5", "held>=2", "deep[more]")
    case.wheel("deep", "3.0", "morehelp; extra == 'more'", "lesshelp; extra == 'less'", extras=("more", "less"))
    case.wheel("morehelp", "1.0", "tabulate", "deep[less]")
    case.wheel("lesshelp", "1.0")
    result = case.resolve({"tabulate": MISSING}, installed={"Held": "2.1"})
    assert listed(result) == ["deep==3.0", "lesshelp==1.0", "morehelp==1.0", "tabulate==0.9", "wide==1.5"]
    assert {item.wheel.name: item.modules for item in result.additions}["tabulate"] == ("tabulate",)
    assert {item.wheel.name: item.modules for item in result.additions}["wide"] == ()
    assert result.notes == ()
    assert result.missing == ("tabulate",)


def test_versions_come_from_the_catalogues_lock(case: Case) -> None:
    path = case.wheel("tabulate", "0.8", "wide")
    case.wheel("tabulate", "0.9")
    wide = case.wheel("wide", "1.0")
    case.wheel("wide", "2.0")
    case.locked(f"tabulate==0.8 --hash=sha256:{sha256(path)}\nwide==1.0 --hash=sha256:{sha256(wide)}\n")
    assert listed(case.resolve({"tabulate": MISSING})) == ["tabulate==0.8", "wide==1.0"]


def test_a_lock_with_another_hash_stops_everything(case: Case) -> None:
    case.wheel("tabulate", "0.8")
    case.locked(f"tabulate==0.8 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(IntegrityError):
        case.resolve({"tabulate": MISSING})


def test_the_images_own_requirement_beats_the_lock(case: Case) -> None:
    path = case.wheel("tabulate", "0.8")
    case.wheel("tabulate", "0.9")
    case.locked(f"tabulate==0.8 --hash=sha256:{sha256(path)}\n")
    result = case.resolve({"tabulate": MISSING}, named={"tabulate": "tabulate>=0.9"})
    assert listed(result) == ["tabulate==0.9"]
    assert any("0.8 of the catalogue's lock" in note for note in result.notes)


def test_overrides_of_the_lock_take_the_place_of_what_distributions_ask_for(case: Case) -> None:
    tabulate = case.wheel("tabulate", "1.0", "hub>=1.0.1; python_version >= '3.8'", "other>=2; extra == 'more'")
    hub = case.wheel("hub", "0.36.2")
    case.wheel("hub", "1.33.0")
    case.locked_by_uv('overrides = [{ name = "hub", specifier = ">=0.34,<1.0" }]', tabulate, hub)
    result = case.resolve({"tabulate": MISSING})
    assert listed(result) == ["hub==0.36.2", "tabulate==1.0"]
    assert result.notes == (), "the lock was not left"


def test_an_override_for_another_platform_takes_the_requirement_away(case: Case) -> None:
    tabulate = case.wheel("tabulate", "1.0", "never", "dropped")
    rules = """overrides = [{ name = "never", marker = "sys_platform == 'win32'" }]\nexcludes = ["dropped"]"""
    case.locked_by_uv(rules, tabulate)
    assert listed(case.resolve({"tabulate": MISSING})) == ["tabulate==1.0"]


def test_constraints_and_metadata_of_the_lock_count(case: Case) -> None:
    tabulate = case.wheel("tabulate", "1.0", "nowhere-to-be-found")
    for version in ("1.0", "2.0"):
        case.wheel("shared", version)
    case.locked_by_uv(
        'constraints = [{ name = "shared", specifier = "<2" }]\n[[manifest.dependency-metadata]]\nname = "tabulate"\n'
        'version = "1.0"\nrequires-dist = [{ name = "shared" }]',
        tabulate,
    )
    result = case.resolve({"tabulate": MISSING})
    assert listed(result) == ["shared==1.0", "tabulate==1.0"]
    assert result.notes == (
        "`shared` is not in the catalogue's lock: 1.0 was chosen, the newest compatible version, for `tabulate` 1.0",
    )


def test_leaving_the_lock_is_never_silent(case: Case) -> None:
    tabulate = case.wheel("tabulate", "1.0", "shared>=2")
    shared = case.wheel("shared", "1.0")
    case.wheel("shared", "2.0")
    case.wheel("named", "3.0")
    case.locked_by_uv("", tabulate, shared)
    result = case.resolve({"tabulate": MISSING, "named": MISSING}, named={"named": "named==3.0"})
    assert listed(result) == ["named==3.0", "shared==2.0", "tabulate==1.0"]
    assert result.notes == (
        "`named` is not in the catalogue's lock: 3.0 was chosen, as `requirements:` says, for `named` "
        "(steps/a/step.py:8)",
        "`shared` 1.0 of the catalogue's lock is not `>=2`, which `tabulate` 1.0 requires; 2.0 was chosen",
    )


def test_the_launcher_takes_requirements_in_place_of_the_locks(case: Case) -> None:
    one, two = case.wheel("one", "1.0"), case.wheel("two", "1.0", "one")
    case.wheel("one", "2.0", "extra-part", "numpy")
    numpy = case.wheel("numpy", "1.0")
    case.wheel("extra-part", "1.0")
    case.locked_by_uv("", one, two, numpy)
    found = resolve_environment(
        probe=make_probe(), supply=WheelSupply(case.lock, case.store), requirements={"one": "one>=2"}
    )
    assert listed(found) == ["extra-part==1.0", "numpy==1.0", "one==2.0", "two==1.0"]
    assert len(found.notes) == 2 and all("catalogue's lock" in note for note in found.notes)
    alone = resolve_environment(
        probe=make_probe(), supply=WheelSupply(None, case.store), requirements={"two": "two==1.0"}
    )
    assert listed(alone) == ["extra-part==1.0", "numpy==1.0", "one==2.0", "two==1.0"]


def test_files_at_paths_of_the_lock_are_taken(case: Case) -> None:
    wheel = make_wheel(case.root / "elsewhere", "frompath", "1.0")
    (case.root / "uv.lock").write_text(
        'version = 1\n[[package]]\nname = "p"\nversion = "1"\nsource = { virtual = "." }\n'
        'dependencies = [{ name = "frompath" }]\n'
        '[[package]]\nname = "frompath"\nversion = "1.0"\nsource = { path = "elsewhere/' + wheel.name + '" }\n'
        f'wheels = [{{ filename = "{wheel.name}", hash = "sha256:{sha256(wheel)}" }}]\n'
    )
    lock = read_catalogue_lock(case.root / "uv.lock")
    found = resolve_environment(probe=make_probe(), supply=WheelSupply(lock, case.store))
    assert [item.address for item in found.locked()] == [f"elsewhere/{wheel.name}"]
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(IntegrityError):
        resolve_environment(
            probe=make_probe(), supply=WheelSupply(lock, WheelStore(case.root / "other", case.store.pip))
        )


def test_wishes_that_narrow_each_other_are_resolved_again(case: Case) -> None:
    case.wheel("tabulate", "1.0", "shared", "wide")
    case.wheel("wide", "1.0", "shared<2")
    case.wheel("shared", "1.9")
    case.wheel("shared", "2.0", "never")
    result = case.resolve({"tabulate": MISSING}, installed={"never": "1"})
    assert listed(result) == ["shared==1.9", "tabulate==1.0", "wide==1.0"]


def test_wishes_that_exclude_each_other_name_who_asks(case: Case) -> None:
    case.wheel("tabulate", "1.0", "shared>=2", "wide")
    case.wheel("wide", "1.0", "shared<2")
    case.wheel("shared", "1.9")
    case.wheel("shared", "2.0")
    with pytest.raises(BuildError, match=r"required by `tabulate` 1\.0, `wide` 1\.0"):
        case.resolve({"tabulate": MISSING})


def test_what_the_base_holds_stays_with_pip_no_deps(case: Case) -> None:
    case.wheel("tabulate", "1.0", "held>=2")
    result = case.resolve({"tabulate": MISSING}, installed={"held": "1.0"})
    assert listed(result) == ["tabulate==1.0"]
    assert result.notes == ("`tabulate` 1.0 requires `held>=2`; the base has `held` 1.0, which is kept",)


def test_without_pip_no_deps_it_is_replaced_and_said_so(case: Case) -> None:
    case.wheel("tabulate", "1.0", "held>=2", "numpy>=2")
    case.wheel("held", "2.0")
    result = case.resolve(
        {"tabulate": MISSING},
        installed={"held": "1.0", "numpy": "1.26", "user": "5"},
        requires={"user": ("held<2",)},
        pip_no_deps=False,
    )
    assert listed(result) == ["held==2.0", "tabulate==1.0"]
    assert result.notes == (
        "`held` 1.0 of the base is replaced by 2.0, for `tabulate` 1.0",
        "`tabulate` 1.0 requires `numpy>=2`; the base has `numpy` 1.26, which is kept",
        "`user` of the base requires `held<2`, but gets 2.0",
    )


def test_an_extra_of_what_the_base_holds_is_closed_too(case: Case) -> None:
    case.wheel("tabulate", "1.0", "held[speed]")
    case.wheel("fast", "1.0")
    result = case.resolve(
        {"tabulate": MISSING}, installed={"held": "1.0"}, requires={"held": ("fast; extra == 'speed'", "gone")}
    )
    assert listed(result) == ["fast==1.0", "tabulate==1.0"]


@pytest.mark.parametrize("origin", ["step", "required"])
def test_a_core_module_that_is_missing_means_the_wrong_base(case: Case, origin: Origin) -> None:
    with pytest.raises(
        BuildError, match=r"`registry\.example/base:1` for `linux/amd64` lacks .*steps/a/step\.py:7: `megatron\.core`"
    ) as e:
        case.resolve({"megatron.core": MISSING}, origin=origin)
    assert "base_image" in (e.value.hint or "")


def test_a_core_module_that_only_the_catalogue_imports_is_noted(case: Case) -> None:
    result = case.resolve({"torch": MISSING}, origin="catalogue")
    assert (result.missing_core, result.additions) == (("torch",), ())
    assert "never installed" in result.notes[0]


def test_a_core_distribution_is_never_installed(case: Case) -> None:
    case.wheel("tabulate", "1.0", "torch>=2")
    case.wheel("torch", "2.0")
    with pytest.raises(BuildError, match=r"`tabulate` 1\.0 requires `torch`"):
        case.resolve({"tabulate": MISSING})
    with pytest.raises(BuildError, match="lacks core packages that only a base can provide"):
        case.resolve({"mytorch": MISSING}, named={"mytorch": "torch==2.0"})
    result = case.resolve({"tabulate": MISSING}, extra_answers={"torch": PRESENT})
    assert listed(result) == ["tabulate==1.0"]
    assert "without its metadata" in result.notes[0]


def test_a_module_that_nothing_names_is_never_guessed(case: Case) -> None:
    case.wheel("wholly-unknown", "1.0")
    with pytest.raises(BuildError, match=r"steps/a/step\.py:7: `wholly_unknown`") as caught:
        case.resolve({"wholly_unknown": MISSING})
    assert '`requirements: {wholly_unknown: "distribution==version"}`' in (caught.value.hint or "")
    assert case.calls == []
    named = case.resolve({"wholly_unknown": MISSING}, named={"wholly_unknown": "wholly-unknown==1.0"})
    assert listed(named) == ["wholly-unknown==1.0"]


def test_conditional_imports_are_reported_only(case: Case) -> None:
    result = case.resolve({"tabulate": MISSING}, origin="reported")
    assert (result.additions, result.missing) == ((), ())
    assert result.notes == ()
    assert result.conditional[0].startswith("steps/a/step.py:7: `tabulate` is imported conditionally")


def test_of_conditional_imports_what_is_added_anyway_is_not_reported(case: Case) -> None:
    case.wheel("tabulate", "1.0", "orjson")
    case.wheel("orjson", "1.0")
    optional = dict.fromkeys(("tabulate.version", "orjson", "zstandard"), MISSING)
    result = case.resolve({"tabulate": MISSING}, reported={**optional, "yaml": PRESENT})
    assert listed(result) == ["orjson==1.0", "tabulate==1.0"]
    assert [line.split("`")[1] for line in result.conditional] == ["zstandard"]


def test_what_a_module_of_the_base_lacks_is_added_where_it_is_named(case: Case) -> None:
    case.wheel("tabulate", "1.0")
    needs = ModuleAnswer(status="incomplete", missing="tabulate")
    strange = ModuleAnswer(status="incomplete", missing="nobody_knows")
    held = ModuleAnswer(status="incomplete", missing="yaml.gone")
    answers = {"a": needs, "a.b": needs, "b": strange, "c": held}
    result = case.resolve(answers, installed={"PyYAML": "6"})
    assert listed(result) == ["tabulate==1.0"]
    sentence = "`{}` is installed, but imports `tabulate`, which is missing; `tabulate` is added for it"
    assert result.completed == {"tabulate": (sentence.format("a.b"), sentence.format("a"))}
    noted, *more = [event for event in told("one on linux/amd64", result) if isinstance(event, Notice)]
    text = "one on linux/amd64: `tabulate` is added: the base lacks it, and 2 modules of the base cannot be imported"
    text += " without it"
    assert (noted.text, more) == (text, [])
    assert noted.details == result.completed["tabulate"]
    assert [note.split(";")[1].split(":")[0].strip() for note in result.notes] == [
        "left as is",
        "left as is",
    ]


def test_a_base_that_has_the_version_without_the_module(case: Case) -> None:
    case.wheel("protobuf", "4.0")
    with pytest.raises(BuildError, match=r"has `protobuf` 4\.0, but lacks `google\.protobuf`"):
        case.resolve({"google.protobuf": MISSING}, installed={"protobuf": "4.0"})
    result = case.resolve({"google.protobuf": MISSING}, installed={"protobuf": "3.0"})
    assert result.notes == ("`protobuf` 3.0 of the base is replaced by 4.0, for `google.protobuf` (steps/a/step.py:7)",)


def test_an_addition_that_cannot_be_found_says_who_asked(case: Case) -> None:
    case.wheel("tabulate", "1.0", "absent>=3")
    with pytest.raises(BuildError, match=r"`absent>=3` was not found .* \(required by `tabulate` 1\.0\)"):
        case.resolve({"tabulate": MISSING})


def test_a_requirement_that_does_not_apply_is_noted(case: Case) -> None:
    result = case.resolve({"tomli": MISSING}, named={"tomli": "tomli; python_version < '3.11'"})
    assert result.additions == ()
    assert "does not apply" in result.notes[0]


@pytest.mark.parametrize("named", ["thing @ https://example.org/thing.whl", "thing @ git+https://example.org/t@main"])
def test_an_address_that_is_not_pinned_is_refused(case: Case, named: str) -> None:
    with pytest.raises(BuildError, match="an address that cannot be carried"):
        case.resolve({"thing": MISSING}, named={"thing": named})


def test_what_the_probe_was_not_asked_for_is_an_error(case: Case) -> None:
    with pytest.raises(BuildError, match="did not check `zzz`"):
        resolve_additions(
            make_group([Candidate("zzz", "step", "s.py", 1)], named={}, pip_no_deps=True),
            probe=make_probe(),
            base="b",
            platform=AMD64,
            supply=WheelSupply(None, case.store),
        )
    assert {"zzz", "torch"} <= set(modules_to_probe([Candidate("zzz", "step", "s.py", 1)]))


def test_the_launcher_gets_the_whole_lock_for_its_python(case: Case) -> None:
    one, two = case.wheel("one", "1.0"), case.wheel("two", "2.0")
    case.locked(
        f"one==1.0 --hash=sha256:{sha256(one)}\n"
        f"two==2.0 ; python_version >= '3.9' --hash=sha256:{sha256(two)}\n"
        "three==3.0 ; sys_platform == 'win32'\n"
    )
    assert case.lock is not None
    probe = make_probe(installed={"one": "1.0"})
    found = resolve_environment(probe=probe, supply=WheelSupply(case.lock, case.store))
    assert listed(found) == ["one==1.0", "two==2.0"]
    assert [(item.name, item.version, item.sha256) for item in found.locked()] == [
        ("one", "1.0", sha256(one)),
        ("two", "2.0", sha256(two)),
    ]
    assert len(case.calls) == 1
    assert "no lock file" in resolve_environment(probe=probe, supply=WheelSupply(None, case.store)).notes[0]


def test_core_modules_and_modules_without_a_name_are_told_together_before_any_wheel_is_fetched(case: Case) -> None:
    with pytest.raises(BuildError) as caught:
        case.resolve({"torch": MISSING, "numpy": MISSING, "nobody_knows": MISSING, "yaml": MISSING})
    core, unnamed = (line for line in caught.value.message.splitlines() if "hint:" not in line)
    assert "core packages that only a base can provide: steps/a/step.py:8: `numpy`; steps/a/step.py:7: `torch`" in core
    assert "of unknown distributions: steps/a/step.py:9: `nobody_knows`" in unnamed
    assert case.calls == []


# --- what files leave open ---

OPEN = ModuleAnswer(status="unknown", missing="maybe", doubt="`/site/hook.pth` runs code")


def test_a_module_that_files_leave_open_is_reported_with_the_way_out(case: Case) -> None:
    with pytest.raises(BuildError) as caught:
        case.resolve({"fine": PRESENT, "maybe": OPEN, "other": OPEN})
    assert caught.value.message == (
        "the files of the base `registry.example/base:1` for `linux/amd64` do not show whether it has "
        "steps/a/step.py:8: `maybe`, steps/a/step.py:9: `other` (`/site/hook.pth` runs code)"
    )
    assert "Buildah or Podman" in (caught.value.hint or "")
    assert '`requirements: {maybe: "distribution==version"}`' in (caught.value.hint or "")


def test_following_the_hint_adds_what_the_image_names(case: Case) -> None:
    case.wheel("maybe-dist", "1.0")
    found = case.resolve({"maybe": OPEN, "maybe.inner": OPEN}, named={"maybe": "maybe-dist==1.0"})
    assert listed(found) == ["maybe-dist==1.0"]


def test_a_conditional_import_that_files_leave_open_is_a_note(case: Case) -> None:
    (note,) = case.resolve({"maybe": OPEN}, origin="reported").conditional
    assert "cannot tell whether the base has it: `/site/hook.pth` runs code" in note


def test_what_a_module_imports_and_may_be_there_is_not_added(case: Case) -> None:
    case.locked("maybe==1.0\n")
    part = ModuleAnswer(status="incomplete", missing="maybe", doubt="`/site/hook.pth` runs code")
    found = case.resolve({"part": part})
    assert listed(found) == []
    assert "imports `maybe`, which may be missing (`/site/hook.pth` runs code)" in found.notes[0]


def test_an_editable_install_that_leads_nowhere_is_said(case: Case) -> None:
    case.wheel("gone", "1.0")
    answer = ModuleAnswer(status="missing", missing="gone", note="an editable install points to `/opt/gone`")
    found = case.resolve({"gone": answer}, named={"gone": "gone"})
    assert listed(found) == ["gone==1.0"]
    assert "`gone` is missing: an editable install points to `/opt/gone`" in found.notes


def test_modules_that_decide(case: Case) -> None:
    candidates = [Candidate(name, "step", "s.py", 1) for name in ("a", "b.c")]
    candidates.append(Candidate("d", "reported", "s.py", 2))
    group = make_group(candidates, named={"b": "b-dist"}, pip_no_deps=True)
    assert deciding_modules(group) == ["a"]


def test_all_that_has_neither_a_wheel_nor_a_compiler_is_told_at_once_with_who_asks(case: Case) -> None:
    for name in ("native_one", "native_two"):
        make_wheel(case.index, name, "1.0", tag="cp311-cp311-manylinux_2_17_aarch64")
    case.wheel("asks", "1.0", "native_two")
    case.wheel("fine", "1.0")
    named = {name: name for name in ("native_one", "asks", "fine")} | {"native_three": "native_three==9.9"}
    make_wheel(case.index, "native_three", "9.9", tag="cp311-cp311-manylinux_2_17_s390x")
    with pytest.raises(BuildError) as caught:
        case.resolve(dict.fromkeys(named, MISSING), named=named)
    lines = [line for line in caught.value.message.splitlines() if "hint:" not in line]
    assert [line.partition("`")[2].partition("`")[0] for line in lines] == ["native-one", "native-three==9.9"]
    assert "it has wheels for `manylinux_2_17_aarch64` (required by `native_one` (steps/a/step.py:7))" in lines[0]
    with pytest.raises(BuildError, match=r"`native-two` has no wheel .* \(required by `asks` 1\.0\)"):
        case.resolve({"asks": MISSING}, named=named)
