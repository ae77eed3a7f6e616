"""The bytes of one data file, plain or gzipped, and what their kind is. Nothing here keeps a file open."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

from ..core.errors import RowError, UserError

# Suffix -> kind, after `.gz` is taken off.
KINDS = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv",
         ".parquet": "parquet", ".txt": "text"}
CHUNK = 8 << 20
LEAVE = ("put the file back as it was, and go on with resume from the last checkpoint; or start again. Leave the data "
         "alone during a run")
_BOM = b"\xef\xbb\xbf"


class Part(Protocol):
    """One file (or hub split) as rows: random access by index, and the line or row number at which each begins."""

    path: str

    def __len__(self) -> int: ...
    def read(self, i: int) -> dict[str, Any]: ...
    def line(self, i: int) -> int: ...
    def sha256(self) -> str: ...


def suffix_of(path: str) -> tuple[str, bool]:
    """`rows.JSONL.gz` -> (".jsonl", True)."""
    name = os.path.basename(path).lower()
    packed = name.endswith(".gz")
    return os.path.splitext(name.removesuffix(".gz"))[1], packed


def is_data_file(path: str) -> bool:
    return suffix_of(path)[0] in KINDS


class Blob:
    """Bytes of a data file by position; gzip is unpacked into memory, anything else stays on disk.

    The file is opened for every read, so a Blob can be pickled and thousands of files need no descriptors; its size and
    time stamp are compared each time, because offsets into a changed file would read garbage
    (test_read.py::test_a_file_that_changes_is_an_error).
    """

    def __init__(self, path: str, real: str):
        self.path, self.real = path, real
        self.data: bytes | None = None
        try:
            with open(real, "rb") as f:
                self.stamp = self._stamp(f.fileno())
                head = f.read(4)
                if head[:2] == b"\x1f\x8b":
                    f.seek(0)
                    self.data = gzip.decompress(f.read())
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            raise UserError("the gzip file is damaged or cut short", where=path, found=str(e),
                            fix="fetch or compress it again") from None
        except OSError as e:
            raise UserError("the file cannot be read", where=path, found=e.strerror or str(e)) from None
        self.size = self.stamp[0] if self.data is None else len(self.data)
        head = self.read(0, min(4, self.size))
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError("the file is UTF-16, not UTF-8", where=path, found=f"it begins with {head[:2].hex(' ')}",
                            expected="UTF-8", fix=f"iconv -f UTF-16 -t UTF-8 {path} > new file")
        self.begin = 3 if head.startswith(_BOM) else 0
        if self._blank():
            raise UserError("the file is empty", where=path, found=f"{self.size} bytes, none of them a row",
                            expected="at least one row")

    @staticmethod
    def _stamp(fd: int) -> tuple[int, int]:
        status = os.fstat(fd)
        return status.st_size, status.st_mtime_ns

    def _blank(self) -> bool:
        return not any(chunk.strip() for _, chunk in self.chunks())

    def read(self, start: int, end: int) -> bytes:
        """Bytes start … end-1."""
        with self.unchanged() as file:
            return os.pread(file.fileno(), end - start, start) if self.data is None else self.data[start:end]

    @contextmanager
    def unchanged(self) -> Iterator[BinaryIO]:
        """The open file; UserError if it is gone, or not as it was when this Blob was made, before or after the use."""
        try:
            with open(self.real, "rb", buffering=0) as file:
                self._compare(file)
                yield file
                self._compare(file)
        except OSError as e:
            raise UserError("the file cannot be read any more", where=self.path, found=e.strerror or str(e),
                            fix=LEAVE) from None

    def _compare(self, file: BinaryIO) -> None:
        if self._stamp(file.fileno()) != self.stamp:
            raise UserError("the file changed while it was being read", where=self.path, fix=LEAVE)

    def chunks(self, size: int = CHUNK) -> Iterator[tuple[int, bytes]]:
        """(position, bytes) from the first byte after the byte-order mark to the end."""
        for at in range(self.begin, self.size, size):
            yield at, self.read(at, min(at + size, self.size))

    def sha256(self) -> str:
        """SHA-256 of the file as it lies on disk, as `sha256sum` prints it."""
        with self.unchanged() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def decode(raw: bytes, path: str, line: int) -> str:
    """Bytes of a row as text; a byte that is no UTF-8 is a RowError with its line and its place in that line."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        before = raw[:e.start]
        at, on = e.start - before.rfind(b"\n"), line + before.count(b"\n")
        raise RowError("the text is not UTF-8", where=f"{path}:{line}",
                       found=f"byte 0x{raw[e.start]:02x}, byte {at} of line {on}", expected="UTF-8 text",
                       fix="convert the file (for example iconv -f GB18030 -t UTF-8), or set bad_rows=skip") from None


def excerpt(text: str, at: int, width: int = 30) -> str:
    """The text around position `at`, on one line."""
    a, b = at - width if at > width + 5 else 0, at + width
    return ("…" if a else "") + text[a:b].replace("\n", "\\n").replace("\r", "\\r") + ("…" if b < len(text) else "")


def sniff(blob: Blob) -> str:
    """Kind of a file: by its suffix, else by its first bytes; UserError naming what can be read."""
    head = blob.read(blob.begin, blob.begin + 4096).lstrip()
    kind = KINDS.get(suffix_of(blob.path)[0])
    if head.startswith(b"PAR1"):
        return "parquet"
    if kind in ("json", "jsonl") or (kind is None and head[:1] in (b"{", b"[")):
        return "array" if head[:1] == b"[" else kind or "json"
    if kind is None or kind == "parquet":
        raise UserError("the kind of the file is not known" if kind is None else "the file is not Parquet",
                        where=blob.path, found=f"it begins with {head[:8]!r}",
                        expected="JSON, JSONL, CSV, TSV, Parquet or text, plain or .gz")
    return kind
