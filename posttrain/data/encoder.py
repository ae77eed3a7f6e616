"""Text and control tokens told apart before tokenizing, then one call for the whole string.

A *coded* string is a rendered conversation in which each control token that the template wrote is one private-use
character, its mirror, and everything a row wrote is plain text, even where it spells a control token.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from ..core.errors import RowError

PLANES = (0xF0000, 0x100000)  # the two supplementary private-use planes: mirrors live in the first, or the second
MARKS = "\ufdd0\ufdd1\ufdd2\ufdd3"  # noncharacters: no text has a use for them


class Encoder:
    """The tokenizer without its special tokens' spellings: coded strings -> ids with character offsets.

    Where no row spells a control token the ids equal `tokenizer(text, add_special_tokens=False)`
    (test_tokenizer.py::test_ids_equal_transformers).
    """

    def __init__(self, backend: Tokenizer | str, control: dict[str, int], plane: int = 0, source: str | None = None):
        self._source = backend if isinstance(backend, str) else source or backend.to_str()
        self.backend = Tokenizer.from_str(backend) if isinstance(backend, str) else backend
        self.backend.no_truncation()
        self.backend.no_padding()
        self._drop_post_processor()
        self.control, self.plane = dict(control), plane
        vocabulary = self.backend.get_vocab_size(with_added_tokens=True)
        added = self.backend.get_added_tokens_decoder()
        names = sorted(control, key=len, reverse=True)
        first = PLANES[plane]
        self.mirrors = {name: chr(first + i) for i, name in enumerate(names)}
        self.names = {mirror: name for name, mirror in self.mirrors.items()}
        self.backend.add_tokens([_mirror(self.mirrors[n], added.get(control[n])) for n in names])
        self.backend.encode_special_tokens = True
        self.top_id = max([vocabulary - 1, *added])
        self._real = np.arange(self.top_id + len(names) + 1, dtype=np.int32)
        for name in names:
            self._real[self.backend.token_to_id(self.mirrors[name])] = control[name]
        self.spelled = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self.any_mirror = re.compile(f"[{chr(first)}-{chr(first + max(len(names), 1) - 1)}]")
        self.last_mirror = re.compile(f".*{self.any_mirror.pattern}", re.DOTALL)
        self._other: Encoder | None = None
        self._dummy: bool | None = None

    def _drop_post_processor(self) -> None:
        """A ByteLevel post-processor trims offsets, and a template one adds tokens: neither belongs here."""
        from tokenizers.processors import Sequence

        self.backend.post_processor = Sequence([])

    # -- coded strings
    def code(self, rendered: str, mark: str | None = None) -> str:
        """Rendered text -> coded string; `mark` is the character that breaks the spellings inside the row's text."""
        coded = self.spelled.sub(lambda m: self.mirrors[m.group()], rendered)
        if mark is not None:
            coded = coded.replace(mark, "").replace(f"\\u{ord(mark):04x}", "")
        return coded

    def plain(self, coded: str) -> str:
        """Coded string -> the text a person reads, control tokens spelled out."""
        return self.any_mirror.sub(lambda m: self.names[m.group()], coded)

    def shield(self, value: Any, mark: str) -> Any:
        """A copy of messages or tools in which every spelling of a control token is broken by `mark`."""
        if isinstance(value, str):
            return self.spelled.sub(lambda m: m.group()[0] + mark + m.group()[1:], value)
        if isinstance(value, dict):
            return {self.shield(k, mark): self.shield(v, mark) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.shield(v, mark) for v in value]
        return value

    def scan(self, value: Any) -> tuple[bool, bool]:
        """Does a row's text (spell a control token, hold a mirror)?"""
        if isinstance(value, str):
            return self.spelled.search(value) is not None, self.any_mirror.search(value) is not None
        parts = value.items() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        spells = mirrors = False
        for part in parts:
            found = self.scan(part)
            spells, mirrors = spells or found[0], mirrors or found[1]
        return spells, mirrors

    def for_row(self, value: Any) -> tuple[Encoder, str | None]:
        """The encoder whose mirrors a row does not use, and the mark its control spellings need (None: none)."""
        spells, mirrors = self.scan(value)
        if mirrors:
            if self.plane:
                raise RowError("the row uses private-use characters of both planes",
                               fix="remove the characters U+F0000… and U+100000…, which have no meaning in text")
            self._other = self._other or Encoder(self._source, self.control, plane=1)
            return self._other.for_row(value)
        if not spells:
            return self, None
        text = str(value)
        for mark in MARKS:
            if mark not in text and f"\\u{ord(mark):04x}" not in text:
                return self, mark
        raise RowError("the row uses every noncharacter from U+FDD0 to U+FDD3", fix="remove them: they are no text")

    # -- ids
    def encode(self, coded: list[str]) -> list[Encoded]:
        """Coded strings -> ids and offsets, in parallel."""
        return [Encoded(e.ids, [o[0] for o in e.offsets]) for e in
                self.backend.encode_batch(coded, add_special_tokens=False)]

    def ids(self, raw: list[int] | np.ndarray) -> np.ndarray:
        """Ids of this encoder -> ids of the tokenizer, int32."""
        return self._real[np.asarray(raw, np.int64)]

    def encode_after(self, rest: str) -> Encoded:
        """Ids of text that follows other text: no space is put before it, whatever the tokenizer does at a start."""
        if self._dummy is None:
            self._dummy = self._cut("\n", "x") != self.encode(["x"])[0].ids
        if not self._dummy:
            return self.encode([rest])[0]
        for anchor in ("\n", "\t", ".", "a"):
            if (ids := self._cut(anchor, rest)) is not None:
                whole = self.encode([anchor + rest])[0]
                drop = len(whole.ids) - len(ids)
                return Encoded(ids, [max(0, s - len(anchor)) for s in whole.starts[drop:]])
        return self.encode([rest])[0]

    def _cut(self, anchor: str, rest: str) -> list[int] | None:
        head, whole = self.encode([anchor, anchor + rest])
        return whole.ids[len(head.ids):] if whole.ids[:len(head.ids)] == head.ids else None

    @cached_property
    def keeps_space(self) -> bool:
        """Does decoding give back the white space of a text? (Word-level tokenizers lose it.)"""
        text = "a b\n\nc  d"
        return self.decode([self.encode([text])[0].ids])[0].strip() == text

    def decode(self, raw: list[list[int]]) -> list[str]:
        """Ids of this encoder, from the middle of a text -> coded strings.

        Decoders may strip the space that begins a text, so a control token goes before and is taken off again.
        """
        first = [self.backend.token_to_id(next(iter(self.names)))] if self.names else []
        texts = self.backend.decode_batch([first + ids for ids in raw], skip_special_tokens=False)
        return [t[len(first):] for t in texts]


class Encoded:
    """ids [L] in the encoder's own numbering (mirrors not yet mapped), starts [L]: first character of each token."""

    __slots__ = ("ids", "starts")

    def __init__(self, ids: list[int], starts: list[int]):
        self.ids, self.starts = ids, starts


def _mirror(char: str, token: AddedToken | None) -> AddedToken:
    if token is None:
        return AddedToken(char, normalized=False, special=False)
    return AddedToken(char, single_word=False, lstrip=token.lstrip, rstrip=token.rstrip,
                      normalized=token.normalized, special=False)
