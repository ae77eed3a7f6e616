"""From what the user names as data to rows by index, each with its origin (file:line). No torch here."""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from .. import builtin
from ..core.errors import RowError, UserError
from ..core.objectives import SAMPLED
from ..core.sequence import Row
from .files import Blob, Part, is_data_file, sniff
from .formats import Format, known_columns
from .json_index import index_array, index_json, index_lines
from .order import check_shares
from .preferences import detect_for
from .prompts import detect_prompts
from .tables import CsvRows, ParquetRows, TextRows

_KIND = {"array": index_array, "json": index_json, "jsonl": index_lines, "csv": CsvRows, "parquet": ParquetRows,
         "text": TextRows}
_SHARE, _FIRST = re.compile(r"(.*)@([^@/\[\]]*)", re.S), re.compile(r"(.*)\[#([^\]]*)\]", re.S)
SAMPLE, TRIED = 64, 4000  # readable rows from which a format is detected, and how many are tried for them


@dataclass(slots=True)
class RawRow:
    """A record as it stands in its file, and PATH:N with N the 1-based line (Parquet, hub: row) where it begins."""

    values: dict[str, Any]
    origin: str


@dataclass(frozen=True)
class Spec:
    """One `--data` value taken apart: `PATH`, `@0.2` (share of the rows of every update), `[#500]` (first rows)."""

    path: str
    share: float | None = None
    first: int | None = None


def parse_spec(text: str) -> Spec:
    """`PATH[#500]@0.2` -> Spec; a path that exists as it stands is taken literally."""
    path, share, first = text, None, None
    while not os.path.exists(path):
        if share is None and (m := _SHARE.fullmatch(path)) and not is_data_file(m[2]):
            path, share = m[1], _number(text, m[2], float, "a share", "a number above 0 and below 1, as in PATH@0.2")
        elif first is None and (m := _FIRST.fullmatch(path)):
            path, first = m[1], _number(text, m[2], int, "a number of rows", "1 or more, as in PATH[#500]")
        else:
            break
    return Spec(path, share, first)


def _number(text: str, value: str, kind: type, what: str, expected: str) -> Any:
    try:
        number = kind(value)
    except ValueError:
        number = -1
    if number > 0 and (kind is int or number < 1):
        return number
    raise UserError(f"the data names {what} that has no meaning", where=text, found=repr(value), expected=expected)


def check_specs(data: Many[str], eval_data: Many[str] = ()) -> None:
    """UserError where the shares of `data` make no sense, or `eval_data` asks for one; nothing is opened for it."""
    check_shares([parse_spec(text).share for text in data], data)
    for text in eval_data:
        if (share := parse_spec(text).share) is not None:
            raise UserError("eval_data takes no share", where=text, found=f"@{share:g}",
                            fix="drop it; PATH[#500] takes the first 500 rows")


class Source:
    """Rows of one `--data` value by index, in the order of its files.

    `len(source)` rows; `source[i]` -> RawRow or RowError; `source.row(i)` -> Row through the detected format. Opening
    indexes JSONL without parsing it; memory is 16 bytes a row (test_read.py::test_a_long_file_opens_fast_and_flat).
    """

    def __init__(self, spec: str, index: int, parts: Many[Part], *, name: str, share: float | None,
                 first: int | None = None, columns: dict[str, str] | None = None, objective: str = "sft",
                 ranked_pairs: str = "all"):
        self.spec, self.index, self.name, self.path, self.share = spec, index, name, name, share
        self.parts, self.overrides = list(parts), dict(columns or {})
        self.objective, self.ranked_pairs = objective, ranked_pairs
        self._ends = list(accumulate(len(p) for p in self.parts))
        self.length = min(self._ends[-1], first) if first else self._ends[-1]

    def __len__(self) -> int:
        return self.length

    def _find(self, i: int) -> tuple[Part, int]:
        if not 0 <= i < self.length:
            raise IndexError(i)
        p = bisect_right(self._ends, i)
        return self.parts[p], i - (self._ends[p - 1] if p else 0)

    def __getitem__(self, i: int) -> RawRow:
        part, k = self._find(i)
        return RawRow(part.read(k), f"{part.path}:{part.line(k)}")

    def origin(self, i: int) -> str:
        """PATH:N of row i, without reading it."""
        part, k = self._find(i)
        return f"{part.path}:{part.line(k)}"

    def row(self, i: int) -> Row:
        """Row i as the run sees it; RowError if it is malformed or does not fit the format."""
        raw = self[i]
        return self.format.to_row(raw.values, raw.origin, self.index)

    def row_or_error(self, i: int, bad_rows: str) -> Row | RowError:
        """Row i; one that is malformed is raised under `bad_rows: error`, and else given as why it is none."""
        try:
            return self.row(i)
        except RowError as e:
            e.where = e.where or self.origin(i)
            if bad_rows == "error":
                raise
            return e

    def find(self, origin: str) -> int | None:
        """Index of the row at PATH:N, or at line N where `origin` is only a number; None if no row begins there."""
        path, _, line = origin.rpartition(":")
        if not line.isdigit():
            return None
        for p, part in enumerate(self.parts):
            if path and path != part.path:
                continue
            at = bisect_right(range(len(part)), int(line), key=part.line) - 1
            if at >= 0 and part.line(at) == int(line):
                found = at + (self._ends[p - 1] if p else 0)
                return found if found < self.length else None
        return None

    @cached_property
    def sample(self) -> list[dict[str, Any]]:
        """The first readable rows; the first RowError if none of them is readable."""
        rows, error = [], None
        for i in range(min(TRIED, len(self))):
            try:
                rows.append(self[i].values)
            except RowError as e:
                error = error or e
            if len(rows) == SAMPLE:
                break
        if not rows and error:
            raise error
        return rows

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns in the order in which the sample shows them."""
        return list(dict.fromkeys(name for row in self.sample for name in row))

    @cached_property
    def format(self) -> Format:
        """How columns become messages, detected from names and sample; UserError if no format fits."""
        try:
            if self.objective in SAMPLED:
                return detect_prompts(self.columns, self.sample, self.overrides)
            return detect_for(self.objective, self.columns, self.sample, self.overrides, self.ranked_pairs)
        except RowError:
            raise
        except UserError as e:
            e.where = e.where or self.name
            raise

    def describe(self) -> dict[str, Any]:
        """spec, rows and share, the format's name and the columns that it does not read; of one with no readable row
        in the sample `unknown`, each row then being a fault of its own."""
        try:
            form, unread = self.format.name, list(self.format.unused)
        except RowError:
            form, unread = "unknown", []
        return {"spec": self.spec, "rows": len(self), "share": self.share, "format": form, "not_read": unread}

    @cached_property
    def _sha256(self) -> list[str]:
        return [part.sha256() for part in self.parts]

    def fingerprint(self) -> str:
        """SHA-256 of the file's bytes; of several files, of their sums in order."""
        sums = self._sha256
        return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()

    def files(self) -> list[dict[str, Any]]:
        """Path, rows and SHA-256 of every file, for the run's records."""
        return [{"path": p.path, "rows": len(p), "sha256": s} for p, s in zip(self.parts, self._sha256, strict=True)]


def open_part(path: str, real: str | None = None) -> Part:
    """Index one file; `path` is what origins show, `real` where it lies."""
    blob = Blob(path, real or path)
    return _KIND[sniff(blob)](blob)


def open_source(spec: str, index: int = 0, *, columns: dict[str, str] | None = None, hub_ok: bool = True,
                **reading: str) -> Source:
    """Open one `--data` value: file, folder, glob, `builtin[:part]` or hub id, with `@share` and `[#rows]`."""
    given = parse_spec(spec)
    real = builtin.builtin_spec(given.path)
    if real != given.path:
        parts: list[Part] = [open_part(given.path, real)]
    elif given.path.startswith("builtin:"):
        raise UserError("there is no embedded data of this name", where=given.path,
                        expected=", ".join(f"builtin:{name}" for name in builtin.PARTS))
    elif (files := _files(given.path)) is not None:
        parts = [open_part(path, os.path.expanduser(path)) for path in files]
    elif hub_ok and _may_be_hub(given.path):
        from .hub import HubRows

        near = _nearest(given.path)
        parts = [HubRows(given.path, near if near.startswith("did you") else "")]
    else:
        raise _missing(given.path)
    return Source(spec, index, parts, name=given.path, share=given.share, first=given.first, columns=columns, **reading)


def open_sources(specs: Many[str], *, columns: dict[str, str] | None = None, hub_ok: bool = True,
                 **reading: str) -> list[Source]:
    """Open every `--data` value; each takes the column names that it has, and a name that none has is an error.

    `reading` holds the settings `objective` and `ranked_pairs`.
    """
    columns = columns or {}
    sources = [open_source(spec, i, hub_ok=hub_ok, **reading) for i, spec in enumerate(specs)]
    if columns:
        have = [set(s.columns) for s in sources]
        for part, column in columns.items():
            if not any(column in names for names in have):
                found = list(dict.fromkeys(name for s in sources for name in s.columns))
                near = difflib.get_close_matches(column, found, n=1, cutoff=0.5)
                raise UserError(f"no data has a column `{column}`", where=f"columns: {part}={column}",
                                found=", ".join(found), fix=f"did you mean `{near[0]}`?" if near else known_columns())
        for source, names in zip(sources, have, strict=True):
            source.overrides = {part: column for part, column in columns.items() if column in names}
    return sources


def each_row(sources: Many[Source], bad_rows: str) -> Iterator[Row | RowError]:
    """The rows of all sources in order; of a malformed one, as `bad_rows` says, why it is none."""
    return (source.row_or_error(i, bad_rows) for source in sources for i in range(len(source)))


def _files(path: str) -> list[str] | None:
    """Files of an existing path or a glob, sorted; None if there is nothing there."""
    real = os.path.expanduser(path)
    if os.path.isdir(real):
        return _in_folder(path, real)
    if os.path.exists(real):
        if not os.path.isfile(real):
            raise UserError("the data is no regular file", where=path, expected="a file, a folder or a glob")
        return [path]
    if glob.has_magic(real):
        # what the glob names is what the user wants, whatever its suffix
        found = sorted(x for x in glob.glob(path if real == path else real, recursive=True) if os.path.isfile(x))
        if not found:
            raise UserError("no file matches", where=path, fix=_nearest(path))
        return found
    return None


def _in_folder(path: str, real: str) -> list[str]:
    names = sorted(n for n in os.listdir(real) if not n.startswith(".") and os.path.isfile(os.path.join(real, n)))
    data = [n for n in names if is_data_file(n)]
    # a README.txt beside the rows is no row; a folder of nothing but texts is meant as text
    rows = [n for n in data if not n.lower().removesuffix(".gz").endswith(".txt")] or data
    if not rows:
        folders = sorted(n for n in os.listdir(real) if os.path.isdir(os.path.join(real, n)))
        raise UserError("the folder holds no data files", where=path,
                        found=", ".join((names + [f"{n}/" for n in folders])[:8]) or "nothing",
                        expected="JSON, JSONL, CSV, TSV, Parquet or text files, plain or .gz",
                        fix=f"name {os.path.join(path, folders[0])}, or a glob such as "
                            f"{os.path.join(path, '**/*.jsonl')}" if folders else "")
    return [os.path.join(path, n) for n in rows]


def _may_be_hub(path: str) -> bool:
    """Whether a name that does not exist here may be sent to the hub: not if it looks like a path."""
    from .hub import looks_like_hub_id

    first = path.split("/")[0]
    return looks_like_hub_id(path) and not is_data_file(path) and not ("/" in path and os.path.exists(first))


def _missing(path: str) -> UserError:
    return UserError("the data file does not exist", where=path, fix=_nearest(path))


def _nearest(path: str) -> str:
    """The existing name closest to a path that does not exist."""
    folder, name = os.path.split(os.path.expanduser(path))
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    names = [n for n in os.listdir(folder or ".") if not n.startswith(".")]
    if near := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return f"did you mean {os.path.join(folder, near[0])}?"
    shown = sorted(n for n in names if is_data_file(n))[:6]
    return f"{folder or 'this folder'} holds " + (", ".join(shown) if shown else "no data files")
