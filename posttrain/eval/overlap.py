"""BLEU and ROUGE by their own libraries, kept as sums over rows so that a bootstrap can resample them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from ..core.errors import UserError
from .figures import ROUGES
from .intervals import Tally, ratio
from .words import HAN, HANGUL, KANA, script_of

# sacrebleu's own tokenizers for Japanese and Korean need dictionaries; characters need nothing
BLEU_TOKENIZERS = {"latin": "13a", "zh": "zh", "ja": "char", "ko": "char"}


def need(name: str) -> Any:
    """A library of the extra `eval`, or the command that installs it."""
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"{name.partition('.')[0].replace('_', '-')} is not installed", where="posttrain eval",
                        fix='pip install "posttrain[eval]"') from None


class Characters:
    """ROUGE's tokens where words have no spaces: each such character, and rouge-score's words for the rest."""

    _TOKEN = re.compile(f"[{HAN}{KANA}{HANGUL}]|[a-z0-9]+")

    def tokenize(self, text: str) -> list[str]:
        return self._TOKEN.findall(text.lower())


@dataclass(frozen=True, slots=True)
class Overlap:
    """Scorers for one language, chosen once from the references of all rows."""

    script: str

    @classmethod
    def of(cls, references: list[str]) -> Overlap:
        return cls(script_of(references))

    def facts(self) -> dict[str, Any]:
        """What the figures were made with."""
        return {"bleu": {"tokenizer": BLEU_TOKENIZERS[self.script], "signature": str(self._bleu().get_signature())},
                "rouge": {"tokenizer": "rouge-score's words" if self.script == "latin" else
                          "rouge-score's words and single characters"}}

    def _bleu(self):
        made = need("sacrebleu.metrics").BLEU(tokenize=BLEU_TOKENIZERS[self.script])
        made.corpus_score(["a"], [["a"]])  # the signature wants to have seen a reference
        return made

    def bleu(self, answers: list[str], references: list[str]) -> Tally:
        """Corpus BLEU, 0 … 100: stats [N, 10] of lengths, matched and possible n-grams (Papineni et al. 2002)."""
        metric = self._bleu()
        stats = np.empty((len(answers), 10))
        for i, (answer, reference) in enumerate(zip(answers, references, strict=True)):
            found = metric.corpus_score([answer], [[reference]])
            stats[i] = [found.sys_len, found.ref_len, *found.counts, *found.totals]
        return Tally(stats, lambda sums: np.array([_bleu_of(metric, row) for row in sums]))

    def rouge(self, answers: list[str], references: list[str]) -> dict[str, Tally]:
        """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L over rows, 0 … 1 (Lin 2004)."""
        tokenizer = None if self.script == "latin" else Characters()
        scorer = need("rouge_score.rouge_scorer").RougeScorer(list(ROUGES), tokenizer=tokenizer)
        found = [scorer.score(r, a) for a, r in zip(answers, references, strict=True)]
        return {name: ratio(np.array([f[name].fmeasure for f in found])) for name in ROUGES}


def _bleu_of(metric, sums: np.ndarray) -> float:
    counts = np.rint(sums).astype(int).tolist()
    return metric.compute_bleu(counts[2:6], counts[6:], counts[0], counts[1], smooth_method="exp").score
