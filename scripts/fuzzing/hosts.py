"""Parsers of what projects, repositories and clients say, and of what earlier runs and rehearsals left on a host."""

from __future__ import annotations

import base64
import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from table import DIGEST, of_file, of_text, parser
from worker import Target

from airferry.assets.files import HashJournal
from airferry.engine.nowhere import ETH_V4, ETH_V6, TCP, UDP, RequestLog, question, wrap
from airferry.errors import AirferryError
from airferry.far.destinations import DestinationRecords
from airferry.far.serve.logins import Passwords, parse_basic
from airferry.host.records import Records
from airferry.jobs.extract import holds_catalogue
from airferry.near.git import driver as git_driver
from airferry.near.git.versions import difference, has_fixed_version, mismatch, needs_history, shortened_id
from airferry.near.rehearse.causes import classify_output
from airferry.near.rehearse.judge import judge_ending, read_hook_log
from airferry.near.wheels.project import project_wheel
from airferry.plan.locks.packages import GitSource
from airferry.registry import credentials

COMMIT = "0012446" + "a" * 33
HASH = "$2y$05$" + "a" * 53


@parser("pyproject.toml of a catalogue", share=0.7)
def project_target() -> Target:
    def read(path: Path) -> None:
        needs_history(path.parent)
        has_fixed_version(path.parent)
        project_wheel(path, source_path="src", version=None, into=path.parent)

    project = (
        b'[project]\nname = "a"\nversion = "1"\ndescription = "x y"\nrequires-python = ">=3.10"\n'
        b'dependencies = ["b>1"]\n'
        b'[project.scripts]\nc = "a:main"\n[project.entry-points."x.y"]\nd = "a:d"\n[tool.setuptools_scm]\n'
    )
    document = b'project = {name = "a", dynamic = ["version"], dependencies = ["b", "c>=1 ; os_name == \'posix\'"]}\n'
    return Target(of_file("project/pyproject.toml", read), [project, document])


@parser("versions that repositories say")
def version_target() -> Target:
    git = GitSource(url="https://h/x", commit=COMMIT)

    def parse(text: str) -> None:
        got, _, wanted = text.partition(" ")
        for one in (got, wanted):
            shortened_id(one, COMMIT)
        difference("a", wanted, got, git)
        str(mismatch(f"a=={wanted}", wanted, got, git, "https://h/x", place="", history=None))

    return Target(of_text(parse), [b"1.0+g0012446 1.0+12446", b"1.0.dev3+g0012446aaa.d20240101 1.0.dev3", b"1!2rc1 2"])


@parser("refs that repositories list")
def refs_target() -> Target:
    def parse(text: str) -> None:
        git_driver.run_git = lambda *_, **__: SimpleNamespace(text=text)  # type: ignore[assignment]
        git_driver.find_ref("https://u:p@h/x.git", "v1", timeout_s=1.0)

    seed = f"{COMMIT}\tHEAD\n{COMMIT}\trefs/heads/main\n{COMMIT}\trefs/tags/v1\n{COMMIT}\trefs/tags/v1^{{}}\n"
    return Target(of_text(parse), [seed.encode()])


@parser("htpasswd files and logins of clients")
def login_target() -> Target:
    def read(path: Path) -> None:
        data = path.read_bytes()
        for header in (data.decode("latin-1"), "Basic " + base64.b64encode(data).decode()):
            if (found := parse_basic(header)) is not None:
                passwords = Passwords({"a": HASH.encode()})
                passwords.remembers(found)
        Passwords.read(path)

    return Target(of_file("htpasswd", read), [f"# x\nuser:{HASH}\nö:{HASH}\n".encode()])


@parser("packets and queries for names in a rehearsal")
def packet_target() -> Target:
    log = RequestLog(Path("packets.log"))
    asked = struct.pack("!HHHHHH", 1, 0x100, 1, 0, 0, 0) + b"\x07example\x03org\0" + struct.pack("!HH", 1, 1)
    udp = struct.pack("!HHHH", 5000, 53, 8 + len(asked), 0) + asked
    tcp = struct.pack("!HHIIBBHHH", 5000, 443, 1, 0, 0x50, 0x02, 0, 0, 0)
    frames = []
    for version, kind, size in ((4, ETH_V4, 4), (6, ETH_V6, 16)):
        for protocol, payload in ((UDP, udp), (TCP, tcp), (1 if version == 4 else 58, b"\x08\0\0\0\0\0\0\0")):
            packet = wrap(version, b"\x01" * size, b"\x02" * size, protocol, payload)
            frames.append(bytes(12) + struct.pack("!H", kind) + packet)

    def parse(data: bytes) -> None:
        question(data)
        log.resolve(data, 5000)
        log.handle(data)

    # what its caller takes for a frame that no network stack sends
    return Target(parse, [*frames, asked], also=(struct.error, IndexError, ValueError))


@parser("what a step says at its end")
def ending_target() -> Target:
    def parse(data: bytes) -> None:
        records = read_hook_log(data)
        judge_ending(records, root="/x", has_config=True)
        with suppress(UnicodeDecodeError):
            classify_output(data.decode(), 1, None)

    def line(value: object) -> bytes:
        return repr(value).encode() + b"\n"

    causes = [["FileNotFoundError", "[Errno 2] No such file: '/x/y'", "", 2, "/x/y", "", 0], ["KeyError", "'A'", "x"]]
    failure = {"event": "exception", "pid": 1, "causes": causes, "frames": [["/x/a.py", 3, "open(y)"]]}
    start = {"event": "start", "pid": 1, "program": "nvidia-smi", "argv": ["nvidia-smi", "-L"]}
    end = {"event": "end", "step_pid": 1, "code": 1, "signal": None, "output": "error: x\nNo module named 'y'\n"}
    seeds = [line(start) + line(failure) + line(end), line({"event": "config"}) + line({**end, "code": 0})]
    return Target(parse, [*seeds, b"Traceback (most recent call last):\n  x\nOSError: libcuda.so.1: cannot open\n"])


@parser("notes of earlier runs: tags, hashes, records, a catalogue's mark")
def notes_target() -> Target:
    folder = Path.cwd() / "notes"
    destination = DestinationRecords("h/x", folder)
    place = destination._tags(DIGEST)
    place.parent.mkdir(parents=True, exist_ok=True)
    records = Records(folder / "records")
    records.remember({"a": 1}, {"b": [1]})
    kept = records.path({"a": 1})
    mark = folder / "catalogue" / ".airferry-catalogue.json"
    mark.parent.mkdir()

    def parse(data: bytes) -> None:
        for path in (place, kept, mark, mark.parent / "x"):
            path.write_bytes(data)
        destination.tags_before(DIGEST)
        records.recall({"a": 1})
        HashJournal(place)
        holds_catalogue(mark.parent, DIGEST)

    tags = json.dumps({"destination": "h/x", "root": DIGEST, "tags": {"h/x:1": DIGEST, "h/x:2": None}}).encode()
    marked = json.dumps({"digest": DIGEST, "files": {"x": "file 1"}, "steps": "s"}).encode()
    return Target(parse, [tags, marked, kept.read_bytes(), json.dumps(["a", 1, 2, 3, "0" * 64]).encode()])


@parser("answers of credential helpers", share=0.5)
def helper_target() -> Target:
    Path("auth.json").write_text('{"credHelpers": {"r.example": "x"}}')

    def parse(data: bytes) -> None:
        done = SimpleNamespace(returncode=0, stdout=data, text=data.decode("utf-8", "replace"), tail=())
        credentials.process = SimpleNamespace(run=lambda *_, **__: done, Streams=lambda **_: None)  # type: ignore
        with suppress(AirferryError):
            credentials.find_credential("r.example", "a/b")

    os.environ["REGISTRY_AUTH_FILE"] = "auth.json"
    return Target(parse, [b'{"ServerURL": "r.example", "Username": "u", "Secret": "p"}'])
