"""A reward model on talks as text: rendered by its own template, scored at the stop token, or said why not."""

from __future__ import annotations

from typing import Any

from ..core.errors import RowError
from ..core.sequence import Row
from ..data.gather import up_to_the_stop
from ..data.render import Renderer
from ..data.tokenizer import load_tokenizer
from ..model.resolve import resolve_model
from ..model.reward import open_scorer

CHUNK = 256  # talks rendered and scored at once


class RewardModel:
    """What `posttrain reward` made, or any sequence-classification model of one label, with its renderer.

    Of `settings` it reads dtype, device, chat_template, template_date, enable_thinking, trust_remote_code.
    """

    def __init__(self, name: str, settings: Any):
        ref = resolve_model(name)
        self.name = name
        self.scorer = open_scorer(ref, dtype=settings.dtype, device=settings.device,
                                  trust_remote_code=settings.trust_remote_code)
        spec = load_tokenizer(ref.tokenizer, chat_template=settings.chat_template,
                              template_date=settings.template_date, trust_remote_code=settings.trust_remote_code)
        thinking = None if settings.enable_thinking == "auto" else settings.enable_thinking == "true"
        room = self.scorer.room or getattr(self.scorer.model.config, "max_position_embeddings", None) or 1 << 20
        self.renderer = Renderer(spec, train_on="last", enable_thinking=thinking, max_length=room, overlong="drop")

    def talks(self, talks: list[list[dict[str, Any]]]) -> list[float | str]:
        """The score of each talk's last answer after what precedes it, or why it has none: an answer is never cut,
        and an empty one is none (test_reward_judge.py::test_a_talk_has_the_score_that_the_verb_gives)."""
        found: list[float | str] = []
        for start in range(0, len(talks), CHUNK):
            rows = [Row("conversation", f"talk {i}", messages=talk)
                    for i, talk in enumerate(talks[start:start + CHUNK], start + 1)]
            made = self.renderer.render(rows)
            whole = [up_to_the_stop(m.sequences[-1]) for m in made if not isinstance(m, RowError) and m.sequences]
            scores = iter(self.scorer(whole))
            found += [m.message if isinstance(m, RowError) else next(scores) if m.sequences else m.dropped
                      for m in made]
        return found
