"""Where each row of a JSON file begins and ends, found once; a row is parsed when somebody asks for it.

Positions are bytes. The scanners read the file as Latin-1, where a byte is a character, because no byte of a UTF-8
character looks like JSON structure; so positions and lines are exact and bad UTF-8 is blamed on its own row.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from ..core.errors import RowError, UserError
from .files import CHUNK, Blob, decode, excerpt

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"[-+.0-9eE]*")
_DECODER = json.JSONDecoder()
# {"data": [...]}: keys under which a file may wrap its list of rows.
WRAPPERS = ("data", "rows", "train", "examples")


class JsonRows:
    """Rows of a JSON or JSONL file as (start, end) byte positions and 1-based lines, [N] int64 each."""

    def __init__(self, blob: Blob, starts: np.ndarray, ends: np.ndarray, lines: np.ndarray | None, by_line: bool):
        self.blob, self.path = blob, blob.path
        self.starts, self.ends, self.lines, self.by_line = starts, ends, lines, by_line

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, i: int) -> int:
        return i + 1 if self.lines is None else int(self.lines[i])

    def sha256(self) -> str:
        return self.blob.sha256()

    def read(self, i: int) -> dict[str, Any]:
        """Row i as a dict; RowError at its line when it is no JSON object."""
        raw = self.blob.read(int(self.starts[i]), int(self.ends[i]))
        line = self.line(i)
        where, text = f"{self.path}:{line}", decode(raw, self.path, line).rstrip("\r\n")
        try:
            values = json.loads(text)
        except json.JSONDecodeError as e:
            raise _malformed(e, text, where) from None
        except (ValueError, RecursionError) as e:  # a number of thousands of digits; thousands of brackets
            raise RowError("the row cannot be read as JSON", where=where, found=str(e),
                           fix="mend the row, or set bad_rows=skip") from None
        if not isinstance(values, dict):
            raise RowError("a row is not a JSON object", where=where, found=excerpt(text, 0),
                           expected='an object such as {"instruction": …, "output": …}')
        if b"\\ud" in raw or b"\\uD" in raw:
            _refuse_lone_surrogates(values, where)
        return values


def _malformed(e: json.JSONDecodeError, text: str, where: str) -> RowError:
    return RowError("the line is not valid JSON", where=where,
                    found=f"{e.msg.removesuffix(' at')} at column {e.pos + 1}: {excerpt(text, e.pos)}",
                    expected="one whole JSON object per line",
                    fix="mend the line, or set bad_rows=skip to drop it and count it")


def _refuse_lone_surrogates(values: dict[str, Any], where: str) -> None:
    try:
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as e:
        raise RowError("the text holds half a character", where=where,
                       found=f"\\u{ord(e.object[e.start]):04x} without its other half", expected="whole characters",
                       fix="mend the row, or set bad_rows=skip") from None


def index_lines(blob: Blob) -> JsonRows:
    """One row per line: 450 MB in under a second, 16 bytes of memory a row (bench: reading)."""
    starts, firsts, pending = [], [], np.array([blob.begin], np.int64)
    for at, chunk in blob.chunks():
        bytes_ = np.frombuffer(chunk, np.uint8)
        begins = np.concatenate([pending, np.flatnonzero(bytes_ == 10) + (at + 1)])
        inside = begins < at + len(chunk)
        starts.append(begins[inside])
        firsts.append(bytes_[starts[-1] - at])
        pending = begins[~inside]
    start, first = np.concatenate(starts), np.concatenate(firsts)
    end = np.append(start[1:], blob.size)
    blank = first == 10
    for i in np.flatnonzero(np.isin(first, np.frombuffer(b" \t\r\v\f", np.uint8))):
        blank[i] = not blob.read(int(start[i]), int(end[i])).strip()
    if not blank.any():
        return JsonRows(blob, start, end, None, True)
    keep = ~blank
    return JsonRows(blob, start[keep], end[keep], np.flatnonzero(keep) + 1, True)


def index_json(blob: Blob) -> JsonRows:
    """A `.json` that begins with `{`: one object per line, objects over several lines, or {"data": [rows]}."""
    head = blob.read(blob.begin, blob.begin + CHUNK).decode("latin-1").split("\n")
    first = [_object(line) for line in [x for x in head if x.strip()][:2]]
    if any(first) and not (len(first) == 1 and first[0].keys() & set(WRAPPERS)):
        return index_lines(blob)
    return _Scanner(blob).wrapped() or _Scanner(blob).objects()


def index_array(blob: Blob) -> JsonRows:
    """A JSON array of rows, pretty-printed or on one line."""
    return _Scanner(blob).array()


def _object(line: str) -> dict[str, Any]:
    """The object that makes up a line; an empty one where the line is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


class _Scanner:
    """Walks a JSON text value by value through a window of the file, counting lines.

    A fault in the structure is a UserError, whatever `bad_rows` says: after it nobody knows where the next row begins.
    """

    def __init__(self, blob: Blob):
        self.blob, self.text, self.pos, self.counted = blob, "", 0, 0
        self.line, self.next = 1, blob.begin
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.lines: list[int] = []

    @property
    def offset(self) -> int:
        """Byte position of the window's first character."""
        return self.next - len(self.text)

    def _more(self) -> bool:
        """Drop what is done from the window, and read on; False at the end of the file."""
        if self.next >= self.blob.size:
            return False
        self._here()
        # the window doubles while one row does not fit, so that a huge row is not parsed a thousand times
        size = max(CHUNK, len(self.text) - self.pos)
        chunk = self.blob.read(self.next, min(self.next + size, self.blob.size))
        self.text = self.text[self.pos:] + chunk.decode("latin-1")
        self.pos = self.counted = 0
        self.next += len(chunk)
        return True

    def _here(self) -> int:
        """1-based line of the current position."""
        self.line += self.text.count("\n", self.counted, self.pos)
        self.counted = self.pos
        return self.line

    def _peek(self) -> str:
        """The next character that is no space, or "" at the end."""
        while True:
            self.pos = _SPACE.match(self.text, self.pos).end()
            if self.pos < len(self.text):
                return self.text[self.pos]
            if not self._more():
                return ""

    def _fault(self, message: str, at: int | None = None, expected: str = "") -> UserError:
        at = self.pos if at is None else at
        line = self._here() + self.text.count("\n", self.pos, at)
        near = self.text[max(0, at - 40):at + 40].encode("latin-1").decode("utf-8", "ignore")
        return UserError("the JSON file is malformed", where=f"{self.blob.path}:{line}",
                         found=f"{message}, near: {' '.join(near.split())}", expected=expected,
                         fix="mend the file at this line; only files of one row per line can skip bad rows")

    def value(self) -> tuple[int, int, Any]:
        """Parse the value at the current position -> (start byte, end byte, value)."""
        while True:
            try:
                value, end = _DECODER.scan_once(self.text, self.pos)
            except (StopIteration, ValueError, RecursionError) as e:
                if self._more():
                    continue
                raise self._explain(e) from None
            # a number may go on beyond the window: 0. is read as 0
            if _NUMBER.match(self.text, self.pos).end() == len(self.text) and self._more():
                continue
            start = self.offset + self.pos
            self._here()
            stop = self.offset + end
            self.pos = end
            return start, stop, value

    def _explain(self, e: Exception) -> UserError:
        if isinstance(e, StopIteration):
            return self._fault("no JSON value", e.value)
        if isinstance(e, json.JSONDecodeError):
            return self._fault(e.msg.removesuffix(" at"), e.pos)
        return self._fault(str(e))

    def _row(self) -> Any:
        line = self._here()
        start, end, value = self.value()
        self.starts.append(start)
        self.ends.append(end)
        self.lines.append(line)
        return value

    def rows(self) -> JsonRows:
        if not self.starts:
            raise UserError("the file holds no rows", where=self.blob.path, found="an empty list",
                            expected="at least one row")
        as_array = [np.array(x, np.int64) for x in (self.starts, self.ends, self.lines)]
        return JsonRows(self.blob, *as_array, by_line=False)

    def array(self) -> JsonRows:
        """A whole file that is one list."""
        self._list()
        if self._peek():
            raise self._fault("more text after the closing ]", expected="nothing more")
        return self.rows()

    def _list(self) -> None:
        """Rows from `[` to the `]` that closes it."""
        self._peek()
        self.pos += 1
        while (c := self._peek()) != "]":
            if not c:
                raise self._fault("the list is never closed", expected="a ] at the end")
            self._row()
            c = self._peek()
            if c == ",":
                line = self._here()
                self.pos += 1
                if self._peek() == "]":
                    raise UserError("the JSON file is malformed", where=f"{self.blob.path}:{line}",
                                    found="a comma after the last row", expected="no comma before the closing ]",
                                    fix="delete the comma at this line")
            elif c != "]":
                raise self._fault("no comma between two rows" if c else "the list is never closed",
                                  expected=", or ]" if c else "a ] at the end")
        self.pos += 1

    def objects(self) -> JsonRows:
        """Objects one after another, each over as many lines as it likes."""
        while self._peek():
            self._row()
        return self.rows()

    def wrapped(self) -> JsonRows | None:
        """The rows of {"data": [ … ]}; None if the file is not of that shape."""
        self._peek()
        self.pos += 1
        taken: list[str] = []
        while self._peek() == '"':
            key = self.value()[2]
            if self._peek() != ":":
                return None
            self.pos += 1
            if self._peek() == "[" and key in WRAPPERS:
                taken.append(key)
                self._list()
            else:
                self.value()
            if self._peek() != ",":
                break
            self.pos += 1
        if len(taken) > 1:
            raise UserError("the file holds several lists of rows", where=self.blob.path, found=", ".join(taken),
                            expected="one", fix="write each list to a file of its own")
        return self.rows() if taken else None
