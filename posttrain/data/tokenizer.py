"""A tokenizer without torch: its backend as JSON, its special tokens, its template and why that one."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ..core.errors import UserError
from .encoder import Encoder
from .shapes import Shape, probe
from .spans import Ending
from .stops import explain, find_endings
from .templates import BUILTINS, Template, choose_template

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model",
         "sentencepiece.bpe.model", "tekken.json", "tiktoken.model")
GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")
THINKING_KEY = "enable_thinking"  # in tokenizer_config.json: the switch that training used
_LOOKS_CONTROL = re.compile(r"<[|｜][^\s<>|｜]{1,40}[|｜]>|<(?:start|end)_of_\w{1,20}>")


@dataclass
class TokenizerSpec:
    """Everything rendering and encoding need, picklable: the worker process builds itself from this.

    `backend` is a tokenizers JSON (post-processor included); `control` maps the special tokens to ids; `names` are the
    ones a template may write (`bos_token`, …); `text_prefix` is what the tokenizer itself puts before a text;
    `new_tokens` were missing from the vocabulary and are in `backend` now (the model's embeddings must cover them).
    """

    source: str
    backend: str
    control: dict[str, int]
    names: dict[str, str]
    text_prefix: list[int]
    text_suffix: list[int]
    template: str
    template_name: str
    template_reason: str
    date: str
    new_tokens: list[str] = field(default_factory=list)
    enable_thinking: bool | None = None
    trust_remote_code: bool = False
    shape: Shape = field(default_factory=Shape)
    plain_ending: Ending | None = None
    tool_ending: Ending | None = None
    stops: list[tuple[str, str]] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("encoder", "chat")}

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.backend, self.control)

    @cached_property
    def chat(self) -> Template:
        return Template(self.template, self.names, self.date)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the embedding needs at least this many rows."""
        return self.encoder.top_id + 1

    def id(self, name: str) -> int | None:
        """Id of a named special token (`bos`, `eos`, `pad`, `unk`), None where there is none."""
        token = self.names.get(f"{name}_token")
        return None if token is None else self.control[token]

    @property
    def stop_ids(self) -> list[int]:
        """Tokens at which generation stops; the first ends a plain answer."""
        return [self.control[token] for token, _ in self.stops]

    def hf(self) -> Any:
        """The transformers tokenizer with the chosen template and new tokens (imports what the tokenizer needs)."""
        if Path(self.source).is_dir() or not _is_local(self.source):
            tokenizer = _load_hf(self.source, self.trust_remote_code)
            if self.new_tokens:
                tokenizer.add_tokens([_control(t) for t in self.new_tokens], special_tokens=True)
        else:
            from transformers.tokenization_utils_tokenizers import TokenizersBackend

            tokenizer = TokenizersBackend(tokenizer_object=Tokenizer.from_str(self.backend), **self.names)
        tokenizer.chat_template = self.template
        return tokenizer

    def save(self, folder: str | Path) -> None:
        """Write a plain Hugging Face tokenizer folder with the template inside."""
        self.hf().save_pretrained(str(folder))
        path = Path(folder) / "tokenizer_config.json"
        config = json.loads(path.read_text("utf-8"))
        config.pop(THINKING_KEY, None)
        if self.enable_thinking is not None:
            config[THINKING_KEY] = self.enable_thinking
        path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", "utf-8")

    def decode(self, ids: list[int]) -> str:
        """Token ids -> text, control tokens spelled out."""
        return self.encoder.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def load_tokenizer(path_or_id: str | Path, *, chat_template: str = "auto", trust_remote_code: bool = False,
                   template_date: str | None = None) -> TokenizerSpec:
    """A tokenizer folder or hub id as a TokenizerSpec; no torch where the folder's tokenizer is a generic one."""
    tokenizer = _load_hf(str(path_or_id), trust_remote_code)
    return make_spec(tokenizer, source=str(path_or_id), chat_template=chat_template, template_date=template_date,
                     trust_remote_code=trust_remote_code, own=True)


def make_spec(tokenizer: Any, *, source: str = ":memory:", chat_template: str = "auto", own: bool = False,
              template_date: str | None = None, trust_remote_code: bool = False) -> TokenizerSpec:
    """A TokenizerSpec from a transformers tokenizer in memory; `own`: it may be changed, nobody else uses it."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError("this tokenizer is written in Python only, so positions in the text are unknown", where=source,
                        found=type(tokenizer).__name__, fix="convert it to a tokenizer.json first")
    backend = tokenizer.backend_tokenizer if own else Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    names = dict(tokenizer.special_tokens_map)
    bare, whole = backend.encode("a", add_special_tokens=False).ids, backend.encode("a").ids
    at = next((i for i in range(len(whole)) if whole[i:i + len(bare)] == bare), 0)
    prefix, suffix = whole[:at], whole[at + len(bare):]
    bos = backend.token_to_id(names["bos_token"]) if "bos_token" in names else None
    adds_bos = bos is not None and bos in prefix
    name, text, reason = choose_template(chat_template, tokenizer.chat_template, adds_bos=adds_bos)
    if name in BUILTINS and "eos_token" in text and "eos_token" not in names:
        raise UserError(f"the template {name} ends turns with eos, and the tokenizer has none", where=source,
                        fix="give the tokenizer an eos_token, or choose chat_template=chatml")
    new = _missing_tokens(name, text, names, backend, template_date) if chat_template != "auto" else []
    backend.add_special_tokens([_control(t) for t in new])
    control = {t.content: i for i, t in backend.get_added_tokens_decoder().items() if t.special}
    control |= {t: backend.token_to_id(t) for t in names.values() if backend.token_to_id(t) is not None}
    spec = TokenizerSpec(source, backend.to_str(), control, names, prefix, suffix, text, name, reason,
                         template_date or datetime.date.today().isoformat(), new, trust_remote_code=trust_remote_code)
    thinking = tokenizer.init_kwargs.get(THINKING_KEY)
    spec.enable_thinking = thinking if isinstance(thinking, bool) else None
    spec.__dict__["encoder"] = Encoder(backend, control, source=spec.backend)
    spec.shape = probe(spec.chat)
    spec.plain_ending, spec.tool_ending = find_endings(spec.chat, spec.shape, spec.encoder, names.get("eos_token"))
    spec.stops = explain(spec.encoder, spec.plain_ending, spec.tool_ending, names.get("eos_token"))
    return spec


def _control(token: str) -> AddedToken:
    return AddedToken(token, normalized=False, special=True)


def _missing_tokens(name: str, text: str, names: dict, backend: Tokenizer, date: str | None) -> list[str]:
    """Control tokens that a template chosen by the user writes into a plain conversation and the vocabulary lacks."""
    rendered = Template(text, names, date or "2000-01-01").render(
        [{"role": "user", "content": "zq"}, {"role": "assistant", "content": "zq"}])
    found = list(dict.fromkeys(_LOOKS_CONTROL.findall(rendered)))
    return [t for t in found if backend.token_to_id(t) is None]


def _load_hf(source: str, trust_remote_code: bool) -> Any:
    folder = Path(source)
    if folder.is_dir():
        if not any((folder / f).is_file() for f in FILES):
            raise UserError("the folder holds no tokenizer", where=source,
                            found=", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "an empty folder",
                            expected="tokenizer.json, tokenizer.model or vocabulary files",
                            fix="name a folder that has one with tokenizer")
    elif _is_local(source):
        raise UserError("there is no such tokenizer folder", where=source,
                        fix="name an existing folder, or a hub id such as Qwen/Qwen3-0.6B-Base")
    try:
        if _is_generic(folder):
            from transformers.tokenization_utils_tokenizers import TokenizersBackend

            return TokenizersBackend.from_pretrained(source)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except ImportError as e:
        raise UserError("the tokenizer needs a package that is not installed", where=source,
                        found=str(e).strip().splitlines()[0], fix="pip install 'posttrain[sentencepiece]'") from None
    except (OSError, ValueError, KeyError) as e:
        fix = "a file of it is damaged: copy or fetch the folder again" if folder.is_dir() else (
            "no folder has this name; if it is a hub id, check its spelling and the network")
        if "trust_remote_code" in str(e):
            fix = "if you trust its code, set trust_remote_code=true"
        raise UserError("the tokenizer cannot be loaded", where=source, found=str(e).strip().splitlines()[0][:200],
                        fix=fix) from None


def _is_local(source: str) -> bool:
    """Can this name no hub id, only a path (or a tokenizer in memory)?"""
    return Path(source).exists() or source.startswith((".", "/", "~", ":")) or source.count("/") > 1


def _is_generic(folder: Path) -> bool:
    """A folder whose tokenizer.json is the whole tokenizer: AutoTokenizer (and torch) would add nothing
    (test_tokenizer.py::test_generic_folders_load_the_same_without_torch)."""
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return False
    try:
        read = json.loads(config.read_text("utf-8"))
    except ValueError as e:
        raise UserError("tokenizer_config.json is not valid JSON", where=str(config), found=str(e)) from None
    if not isinstance(read, dict):
        raise UserError("tokenizer_config.json holds no settings", where=str(config), found=f"a {type(read).__name__}",
                        expected="a JSON object", fix="bring the file back from where the tokenizer came from")
    return (folder / "tokenizer.json").is_file() and read.get("tokenizer_class") in GENERIC and "auto_map" not in read
