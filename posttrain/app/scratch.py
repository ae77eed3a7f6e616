"""A tokenizer for a model from scratch, trained on the run's own data by `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from posttrain.core.config import Settings
from posttrain.core.errors import UserError
from posttrain.core.sequence import Row

END = "<|endoftext|>"
DIGITS_AND_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                    r"|\s*[\r\n]+|\s+")


def train_tokenizer(settings: Settings, folder: Path, note: Callable[[str], None]) -> None:
    """Train a byte-level BPE of the architecture's `vocab_size` on every text of `data` and save it in `folder`.

    Every string round-trips; digits stand alone; one special token, `<|endoftext|>`, ends documents and turns.
    """
    size = _vocab_size(settings.architecture)
    make_tokenizer(_texts(settings), size, folder)
    found = len(json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"])
    note(f"tokenizer: trained on the data, {found:,} entries")


def make_tokenizer(texts: Iterator[str], vocab_size: int, folder: Path) -> None:
    """Byte-level BPE over `texts`, saved as a Hugging Face tokenizer folder; the same texts give the same bytes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(DIGITS_AND_WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), "utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END,
              "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")


def _vocab_size(architecture: str) -> int:
    try:
        size = (yaml.safe_load(Path(architecture).read_text("utf-8")) or {}).get("vocab_size")
    except OSError as e:
        raise UserError("the architecture file cannot be read", where=architecture, found=e.strerror or "",
                        fix="name a YAML file of config keys") from None
    except (yaml.YAMLError, AttributeError):
        raise UserError("the architecture file holds no keys", where=architecture,
                        expected="for example `model_type: qwen3` and `vocab_size: 4096`") from None
    if not isinstance(size, int) or size < 300:
        raise UserError("the architecture does not say how large a tokenizer to train", where=architecture,
                        found=f"vocab_size: {size}", expected="vocab_size of at least 300",
                        fix="set vocab_size there, or name a tokenizer")
    return size


def _texts(settings: Settings) -> Iterator[str]:
    from posttrain.data.read import each_row, open_sources

    sources = open_sources(settings.data, columns=settings.columns, objective=settings.objective)
    for row in each_row(sources, settings.bad_rows):
        if not isinstance(row, Row):
            continue
        if row.text is not None:
            yield row.text
        for message in [*row.messages, *(m for answer in row.answers for m in answer)]:
            if isinstance(message.get("content"), str):
                yield message["content"]
