"""CSV, Parquet and plain text as rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..core.errors import RowError, UserError
from .files import Blob, decode, suffix_of
from .json_index import index_lines

TEXT_ROW = 4096  # bytes up to which paragraphs of a .txt are gathered into one row
SHORT_LINE = 100  # mean bytes below which lines are taken for parts of a longer text


class CsvRows:
    """Records of a CSV file by byte position; a quoted field may hold line ends. Every value is text."""

    def __init__(self, blob: Blob):
        self.blob, self.path = blob, blob.path
        csv.field_size_limit(2**31 - 1)  # the default refuses a field of 131,072 characters
        first = blob.read(blob.begin, min(blob.size, blob.begin + (1 << 16))).decode("latin-1").split("\n", 1)[0]
        self.delimiter = "\t" if suffix_of(blob.path)[0] == ".tsv" else max(",;\t", key=first.count)
        self.starts, self.ends, self.lines = self._index()
        self.header = self._header()
        if not len(self):
            raise UserError("the file holds no rows", where=self.path, found="a header and nothing below it",
                            expected="at least one row")

    def __len__(self) -> int:
        return len(self.starts) - 1

    def line(self, i: int) -> int:
        return int(self.lines[i + 1])

    def sha256(self) -> str:
        return self.blob.sha256()

    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions and lines of every record, the header first; a record the csv module refuses is kept as a row."""
        begins = [self.blob.begin]

        def lines() -> Iterator[str]:
            rest = b""
            for _, chunk in self.blob.chunks():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    begins.append(begins[-1] + len(line) + 1)
                    yield line.decode("latin-1") + "\n"
            if rest:
                begins.append(begins[-1] + len(rest))
                yield rest.decode("latin-1")

        reader, found, at = csv.reader(lines(), delimiter=self.delimiter, strict=True), [], 0
        while True:
            try:
                record = next(reader, None)
                if record is None:
                    break
            except csv.Error:
                record = ["?"]
            if record:
                found.append((begins[at], begins[reader.line_num], at + 1))
            at = reader.line_num
        starts, ends, numbers = (np.array(x, np.int64) for x in zip(*found, strict=True))
        return starts, ends, numbers

    def _record(self, i: int) -> list[str]:
        line = int(self.lines[i])
        text = decode(self.blob.read(int(self.starts[i]), int(self.ends[i])), self.path, line)
        lines = [x + "\n" for x in text.removesuffix("\n").split("\n")]
        try:
            return next(csv.reader(lines, delimiter=self.delimiter, strict=True))
        except csv.Error as e:
            found = "a quoted field is never closed" if "unexpected end" in str(e) else str(e)
            raise RowError("the CSV row is malformed", where=f"{self.path}:{line}", found=found,
                           expected='fields with line ends, commas or quotes inside "…", a quote doubled',
                           fix="mend the row, or set bad_rows=skip") from None

    def _header(self) -> list[str]:
        header = [name.strip() for name in self._record(0)]
        if twice := sorted({n for n in header if header.count(n) > 1}):
            raise UserError("a column name stands twice in the header", where=f"{self.path}:{self.lines[0]}",
                            found=", ".join(header), fix=f"rename one `{twice[0]}`")
        return header

    def read(self, i: int) -> dict[str, Any]:
        """Row i as a dict of text; RowError when it has more or fewer fields than the header."""
        record = self._record(i + 1)
        if len(record) != len(self.header):
            raise RowError("the CSV row does not fit the header", where=f"{self.path}:{self.line(i)}",
                           found=f"{len(record)} fields", expected=f"{len(self.header)}: {', '.join(self.header)}",
                           fix="quote fields that hold a comma, or set bad_rows=skip")
        return dict(zip(self.header, record, strict=True))


class ParquetRows:
    """Rows of a Parquet file, decoded to Arrow's columns in memory; `line` is the 1-based row."""

    def __init__(self, blob: Blob):
        pa, pq = _pyarrow(blob.path)
        self.blob, self.path = blob, blob.path
        try:
            self.table = pq.read_table(io.BytesIO(blob.data) if blob.data is not None else blob.real)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as e:
            raise UserError("the Parquet file cannot be read", where=blob.path, found=str(e)) from None
        if not len(self):
            raise UserError("the file holds no rows", where=blob.path, expected="at least one row")

    def __len__(self) -> int:
        return self.table.num_rows

    def line(self, i: int) -> int:
        return i + 1

    def sha256(self) -> str:
        return self.blob.sha256()

    def read(self, i: int) -> dict[str, Any]:
        """Row i as a dict, without the nulls that Arrow puts where a key is missing."""
        with self.blob.unchanged():
            return without_nulls(self.table.slice(i, 1).to_pylist()[0])


def without_nulls(value: Any) -> Any:
    """Drop keys whose value is None, at every depth: Arrow gives all rows all keys, and templates would print them."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def _pyarrow(path: str):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet files need the extra packages `pyarrow` and `datasets`", where=path,
                        fix="pip install 'posttrain[data]'") from None
    return pyarrow, pyarrow.parquet


class TextRows:
    """Plain text as rows {"text": …}: whole paragraphs gathered up to 4,096 bytes.

    Without a blank line, each line is a text of its own, unless the lines are short (hard-wrapped prose, word lists):
    then they are gathered like paragraphs.
    """

    def __init__(self, blob: Blob):
        self.blob, self.path = blob, blob.path
        lines = index_lines(blob)
        number = np.arange(1, len(lines) + 1) if lines.lines is None else lines.lines
        if int(number[-1] - number[0]) >= len(lines):
            begins = np.flatnonzero(np.diff(number, prepend=-1) > 1)  # first line of each paragraph
        else:
            begins = np.arange(len(lines))
            if (lines.ends - lines.starts).mean() >= SHORT_LINE:
                self.starts, self.ends, self.lines = lines.starts, lines.ends, number
                return
        stops = np.append(begins[1:], len(lines)) - 1
        starts, ends = lines.starts[begins].tolist(), lines.ends[stops].tolist()
        rows: list[list[int]] = []
        for start, end, line in zip(starts, ends, number[begins].tolist(), strict=True):
            if rows and end - rows[-1][0] <= TEXT_ROW:
                rows[-1][1] = end
            else:
                rows.append([start, end, line])
        self.starts, self.ends, self.lines = np.array(rows, np.int64).T

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, i: int) -> int:
        return int(self.lines[i])

    def sha256(self) -> str:
        return self.blob.sha256()

    def read(self, i: int) -> dict[str, Any]:
        raw = self.blob.read(int(self.starts[i]), int(self.ends[i]))
        return {"text": decode(raw, self.path, self.line(i)).replace("\r\n", "\n").strip("\n")}
