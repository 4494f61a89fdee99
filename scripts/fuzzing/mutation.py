"""Mutations of valid documents, and documents that Hypothesis makes up. Knows nothing of airferry."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

MAX_CASE_BYTES = 256 * 1024
# what parsers stumble over: numbers without end, depth, text that is none, what terminals, shells and paths obey
NASTY: tuple[bytes, ...] = (
    *(
        b"",
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xae",
        b"\\ud800",
        b"\\u0000",
        b"\x1b[2J",
        b"\r\n",
    ),
    *(
        b"-1",
        b"0",
        b"1e999",
        b"-0",
        b"NaN",
        b".inf",
        b"0x_",
        b"1:1:1:1",
        b"18446744073709551616",
        b"9" * 400,
        b"1" * 5000,
    ),
    *(
        b"null",
        b"true",
        b"~",
        b"[]",
        b"{}",
        b'""',
        b"'",
        b'"',
        b"`",
        b"${x}",
        b"$(x)",
        b"%s",
        b"%00",
        b"*x",
        b"&x",
        b"<<: ",
    ),
    *(b"[" * 2000, b"{" * 300, b"(" * 200, b"- " * 500, b'{"a":' * 300, b"a." * 500, b"../" * 100, b"/", b"//", b"."),
    *(b"..", b"../x", b"/etc/passwd", b"C:\\x", b"http://[::1", b"http://h:99999/", b"file:///x", b"git+", b"sha256:"),
    *(
        b"sha256:" + b"0" * 64,
        b"sha512:" + b"0" * 128,
        "ſ².é\u202e\u200b".encode(),
        b"x" * 300,
        b"a" * 70_000,
        b"\n" * 3000,
    ),
    *(
        b"!!python/object:os.system",
        b"!!binary x",
        b"? ",
        b"---",
        b"...",
        b"%TAG ! x",
        b"#",
        b";",
        b"==",
        b"~=1.0",
        b" or (",
    ),
)
_CLASSES = (b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_", b"0123456789", b" \t\r\n")


class Mutator:
    """Changes documents at random; the same seed makes the same changes."""

    def __init__(self, seeds: Sequence[bytes], *, source: random.Random, prefix: int = 0) -> None:
        """Take what begins as the corpus. The first `prefix` bytes of a case say what the document behind them is."""
        self.corpus = list(seeds)
        self._random = source
        self._prefix = prefix
        self._first = len(seeds)
        self._kinds: tuple[Callable[[bytearray], bytearray], ...] = (
            self._flip,
            self._set,
            self._delete,
            self._repeat,
            self._insert,
            self._replace_word,
            self._replace_word,
            self._swap_words,
            self._splice,
            self._cut,
        )

    def next(self) -> bytes:
        """Return a changed document."""
        chance = self._random
        # what began counts as much as all that was found on the way
        fresh = len(self.corpus) > self._first and chance.random() < 0.5
        case = self.corpus[chance.randrange(self._first, len(self.corpus)) if fresh else chance.randrange(self._first)]
        head, data = bytearray(case[: self._prefix]), case[self._prefix :]
        if head and chance.random() < 1 / 16:
            head[self._place(head)] = chance.randrange(256)
        if data[:1] in (b"{", b"[") and chance.random() < 0.5:
            changed = self._structure(data)
            if changed is not None:
                return (bytes(head) + changed)[:MAX_CASE_BYTES]
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
            changed = chance.choice(self._kinds)(changed)
        return bytes((head + changed)[:MAX_CASE_BYTES])

    def keep(self, data: bytes) -> None:
        """Add a document that reached code which nothing reached before."""
        if len(data) <= 16 * 1024 and len(self.corpus) < self._first + 500:
            self.corpus.append(data)

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _other(self) -> bytearray:
        return bytearray(self._random.choice(self.corpus)[self._prefix :])

    def _place(self, data: bytearray) -> int:
        return self._random.randrange(len(data)) if data else 0

    def _piece(self, data: bytearray) -> tuple[int, int]:
        begin = self._place(data)
        return begin, min(len(data), begin + int(self._random.expovariate(1 / 8)) + 1)

    def _flip(self, data: bytearray) -> bytearray:
        if data:
            data[self._place(data)] ^= 1 << self._random.randrange(8)
        return data

    def _set(self, data: bytearray) -> bytearray:
        if data:
            data[self._place(data)] = self._random.randrange(256)
        return data

    def _delete(self, data: bytearray) -> bytearray:
        begin, end = self._piece(data)
        del data[begin:end]
        return data

    def _repeat(self, data: bytearray) -> bytearray:
        begin, end = self._piece(data)
        times = self._random.choice((1, 1, 2, 30, 300))
        data[begin:begin] = bytes(data[begin:end]) * times
        return data

    def _insert(self, data: bytearray) -> bytearray:
        at = self._place(data)
        data[at:at] = self._random.choice(NASTY)
        return data

    def _cut(self, data: bytearray) -> bytearray:
        return data[: self._place(data)]

    def _splice(self, data: bytearray) -> bytearray:
        other = self._other()
        begin, end = self._place(other), self._place(other)
        at = self._place(data)
        data[at:at] = other[min(begin, end) : max(begin, end)][:4096]
        return data

    # -- words ---------------------------------------------------------------------------------------------------------

    def _word(self, data: bytearray) -> tuple[int, int]:
        """Return where a word, a number, a blank or a mark lies."""
        at = self._place(data)
        kind = next((kind for kind in _CLASSES if data[at : at + 1] and data[at] in kind), b"")
        begin, end = at, min(len(data), at + 1)
        while kind and begin > 0 and data[begin - 1] in kind and at - begin < 200:
            begin -= 1
        while kind and end < len(data) and data[end] in kind and end - at < 200:
            end += 1
        return begin, end

    def _replace_word(self, data: bytearray) -> bytearray:
        begin, end = self._word(data)
        if self._random.random() < 0.5:
            data[begin:end] = self._random.choice(NASTY)
        else:
            other = self._other()
            first, last = self._word(other)
            data[begin:end] = other[first:last]
        return data

    def _swap_words(self, data: bytearray) -> bytearray:
        (first, end), (second, last) = sorted((self._word(data), self._word(data)))
        if end <= second:
            data[first:last] = data[second:last] + data[end:second] + data[first:end]
        return data

    # -- JSON ----------------------------------------------------------------------------------------------------------

    def _structure(self, data: bytes) -> bytes | None:
        """Change one value, key or pair of a JSON document; None where it is none."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return None
        places: list[tuple[Any, Any]] = []
        stack = [document]
        while stack:
            value = stack.pop()
            items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            for key, item in items:
                places.append((value, key))
                stack.append(item)
        if not places:
            return None
        chance = self._random
        for _ in range(chance.choice((1, 1, 2))):
            holder, key = chance.choice(places)
            other_holder, other_key = chance.choice(places)
            try:
                self._change(holder, key, other_holder[other_key])
            except (KeyError, IndexError):
                continue
        return json.dumps(document, separators=(",", ":"), ensure_ascii=chance.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )

    def _change(self, holder: Any, key: Any, other: Any) -> None:
        chance, kind = self._random, self._random.randrange(7)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = json.loads(json.dumps(other))
        elif kind == 2:
            holder[key] = chance.choice(
                (None, True, -1, 2**63, 1.5, "", [], {}, "x" * 300, "\0", "\ud800", "\u202e", 1e300)
            )
        elif kind == 3 and isinstance(holder, dict):
            holder[str(key).upper() if chance.random() < 0.5 else f"{key}x"] = holder[key]
        elif kind == 4:
            deep: Any = holder[key]
            for _ in range(chance.choice((1, 3, 60))):
                deep = [deep] if chance.random() < 0.5 else {"a": deep}
            holder[key] = deep
        elif kind == 5 and isinstance(holder, list):
            holder[key:key] = [holder[key]] * chance.choice((1, 2, 100))
        elif isinstance(holder[key], str):
            text = holder[key]
            at = chance.randrange(len(text) + 1)
            holder[key] = text[:at] + chance.choice(NASTY).decode("latin-1")[:500] + text[at + chance.randrange(3) :]
        else:
            holder[key] = str(holder[key])


def generated(
    seeds: Sequence[bytes], count: int, *, number: int, take: Callable[[bytes], None], prefix: int = 0
) -> None:
    """Give `count` documents of the seeds' kind, made up by Hypothesis, to `take`; each behind the prefix of a seed."""
    if count < 1:
        return

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(sorted({data[:prefix] for data in seeds})), _strategy([data[prefix:] for data in seeds]))
    def each(head: bytes, data: bytes) -> None:
        take((head + data)[:MAX_CASE_BYTES])

    each()


def _strategy(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    keys: set[str] = set()
    texts: set[str] = set()
    for data in seeds:
        try:
            _words_of(json.loads(data), keys, texts)
        except (ValueError, RecursionError):
            continue
    if keys:
        plain = (
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(sorted(texts) or [""])
        )
        names = st.sampled_from(sorted(keys)) | st.text(max_size=5)
        values = st.recursive(
            plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6)
        )
        return values.map(lambda value: json.dumps(value).encode())
    try:
        letters = sorted({letter for data in seeds for letter in data.decode()})
    except UnicodeDecodeError:
        return st.binary(max_size=2048)
    words = sorted({word for data in seeds for word in data.decode().split()})[:300]
    text = st.text(st.sampled_from(letters) | st.characters(), max_size=80) if letters else st.text()
    blank = st.sampled_from([" ", "\n", "", "\t", "=", ": ", "\n  "])
    piece = st.tuples(st.sampled_from(words) | text, blank).map("".join) if words else text
    return st.lists(piece, max_size=20).map(lambda pieces: "".join(pieces).encode("utf-8", "surrogatepass"))


def _words_of(value: Any, keys: set[str], texts: set[str]) -> None:
    if isinstance(value, dict):
        keys.update(value)
        for item in value.values():
            _words_of(item, keys, texts)
    elif isinstance(value, list):
        for item in value:
            _words_of(item, keys, texts)
    elif isinstance(value, str):
        texts.add(value)
