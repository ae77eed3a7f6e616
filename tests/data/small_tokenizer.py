"""A byte-level tokenizer trained on the spot, with the control tokens that a chat template writes."""

import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.tokenization_utils_tokenizers import TokenizersBackend

CONTROL = re.compile(r'<[|｜][^<>|｜\s]+[|｜]>|<\|[a-z_"]+>|<[a-z_"]+\|>|<\|"\|>|<(?:start|end)_of_\w+>'
                     r'|\[gMASK\]|<sop>|</?s>')
WORDS = ("The capital of France is Paris. Hello! How can I help? What is the weather in Rome, and the sky? assistant "
         "user system functions to=self thought model # Tools get_weather city days "
         "你好 世界 法国的首都是巴黎。\n\n\t ") * 3
# As Qwen splits: line ends stay together, so "\n" and "\n\n" are different tokens and seams are real.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
TEXT_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # added, but no control tokens: as in Qwen3


def backend() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([WORDS], trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet,
                                                               show_progress=False))
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in TEXT_TOKENS])
    tokenizer.add_special_tokens([AddedToken("<eos>", normalized=False, special=True)])
    return tokenizer


_TRAINED = None


def tokenizer_for(template: str | None = None, **names: str) -> TokenizersBackend:
    """The tokenizer with a template and the control tokens found in its text; BOS where the template writes one."""
    global _TRAINED
    _TRAINED = _TRAINED or backend().to_str()
    names = {"eos_token": "<eos>", **names}
    if template and "bos_token" in template:
        names.setdefault("bos_token", "<bos>")
    made = TokenizersBackend(tokenizer_object=Tokenizer.from_str(_TRAINED), **names)
    control = dict.fromkeys(CONTROL.findall(template or ""))
    made.add_tokens([AddedToken(t, normalized=False, special=True) for t in control], special_tokens=True)
    made.chat_template = template
    return made
