"""Random conversations made of awkward pieces: every trained run follows exactly a prompt and ends with a stop."""

import random

import numpy as np
import pytest
from small_tokenizer import tokenizer_for
from test_thinking import DEEPSEEK, NEMOTRON, QWEN

from posttrain.core.errors import RowError
from posttrain.core.sequence import REASONS, Row
from posttrain.data.render import Renderer
from posttrain.data.tokenizer import make_spec

PIECES = ["\n", "\n\n", " ", "  ", "\t", "\r\n", "a", "The", "Paris", "hello", "1", "2", ".", " .", "'", '"', "\\", "{",
          "}", "{{", "%}", "<", ">", "|", "<think>", "<tool_call>", "<|im_end|>", "<|im_start|>", "<|end|>",
          "<|u|>", "</s>", "<eos>", "User:", "Assistant:", "assistant", "user", "[INST]",
          "你", "é", "e\u0301", "🎉", "👩‍👧", "\u200b",
          "\ufeff", "\x00", "\ue0f3", "\ufdd0", "\U000f0000"]


def talk(rng):
    def text():
        return "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 8)))

    messages = [{"role": "system", "content": text()}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        answer = {"role": "assistant", "content": text()}
        if rng.random() < 0.2:
            answer["reasoning_content"] = text() + "x"
        if rng.random() < 0.1:
            answer["weight"] = 0
        messages += [{"role": "user", "content": text()}, answer]
    return messages


@pytest.mark.parametrize("template", ["plain", "chatml", "alpaca", "llama2", QWEN, NEMOTRON, DEEPSEEK],
                         ids=["plain", "chatml", "alpaca", "llama2", "as Qwen3", "as Nemotron", "as DeepSeek-R1"])
def test_random_conversations_are_proved(template):
    own = template if "{" in template else None
    spec = make_spec(tokenizer_for(own, bos_token="<bos>"), chat_template="auto" if own else template)
    r, rng = Renderer(spec, max_length=100_000), random.Random(20)
    talks = [talk(rng) for _ in range(60)]
    made = r.render([Row("conversation", f"a:{n + 1}", 0, t) for n, t in enumerate(talks)])
    assert not any(isinstance(m, RowError) for m in made)
    for messages, rendered in zip(talks, made, strict=True):
        prompts = {tuple(r.prompt(messages[:i], thinking=value)) for i, m in enumerate(messages)
                   if m["role"] == "assistant" for value in (None, True, False)}
        runs = 0
        for sequence in rendered.sequences:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], (sequence.weights > 0).astype(int), [0]])))
            for start, end in zip(edges[::2], edges[1::2], strict=True):
                assert tuple(sequence.ids[:start].tolist()) in prompts
                assert sequence.ids[end - 1] == r.stop_ids[0] and REASONS[sequence.reasons[end - 1]] == "stop"
                runs += 1
        answered = [m for m in messages if m["role"] == "assistant" and m.get("weight") != 0
                    and (m["content"].strip() or m.get("reasoning_content"))]
        assert runs == len(answered)
