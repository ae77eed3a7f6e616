"""Reward models as folders: ours written so that transformers and PEFT load them, and anybody's read."""

from __future__ import annotations

import json
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from ..core.errors import UserError
from ..core.sequence import Sequence
from .device import choose_device, choose_dtype
from .load import check_weights, quiet_transformers
from .resolve import ModelRef, gives_scores

BATCH_TOKENS = 8192
TABLES = ("position_embeddings", "wpe", "embed_positions", "positions_embed")  # as transformers calls them


def check_classifier(config) -> None:
    """UserError unless transformers has a sequence-classification class of this architecture to save a score with."""
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise UserError("transformers has no reward model of this architecture", where="model",
                        found=config.model_type, expected="one with a ForSequenceClassification class, such as qwen3, "
                        "llama, mistral, gemma3_text or gpt2", fix="take a base of another architecture")


def save_classifier(folder: Path, model, weights: dict[str, torch.Tensor], score: torch.Tensor,
                    pad: int | None) -> None:
    """A whole reward model: the decoder's `weights` without the word head, and `score` [1, D] in float32."""
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.num_labels, config.pad_token_id = 1, pad
    with torch.device("meta"):
        shell = AutoModelForSequenceClassification.from_config(config, dtype=config.dtype)
    wanted = set(shell.state_dict())
    kept = {name: tensor for name, tensor in weights.items() if name in wanted} | {"score.weight": score}
    if lacking := sorted(wanted - set(kept)):
        raise UserError("the reward model of this architecture is built otherwise than its language model",
                        where=config.model_type, found=f"no weight for {lacking[0]}",
                        fix="train an adapter: method: lora")
    shell.save_pretrained(folder, state_dict=kept)


def add_score(folder: Path, score: torch.Tensor) -> None:
    """Make a saved adapter one for sequence classification: its score head beside it, as PEFT names it."""
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.score.weight": score.contiguous()}, path,
              metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    config |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")


def pad_beside_stops(spec: Any) -> int | None:
    """An id to pad with that ends no turn, or None: transformers scores at the last token that is not padding, so a
    stop token that were padding too would be passed over (test_reward.py::test_padding_never_hides_the_stop_token)."""
    ids = [spec.id("pad"), spec.id("unk"), spec.id("bos"), *sorted(spec.control.values())]
    return next((i for i in ids if i is not None and i not in spec.stop_ids), None)


def pad_apart(folder: Path, spec: Any) -> None:
    """Let the saved tokenizer pad with the same token that its model takes for padding."""
    pad, path = pad_beside_stops(spec), folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["pad_token"] = next((token for token, i in spec.control.items() if i == pad), None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


@dataclass(slots=True)
class Scorer:
    """A loaded reward model: token ids in, one number out. `room` is how many it takes at most, None: any number."""

    model: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    name: str
    room: int | None

    @torch.no_grad()
    def __call__(self, sequences: Many[Sequence]) -> list[float]:
        """The score of each sequence at its last token, whatever else is scored beside it: S sequences -> S numbers.

        A sequence longer than `room` is a UserError.
        """
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        if order and self.room is not None and len(longest := sequences[order[0]]) > self.room:
            raise UserError("a text is longer than the reward model's positions", where=f"reward model: {self.name}",
                            found=f"{len(longest)} tokens ({longest.origin})", expected=f"at most {self.room}",
                            fix="set max_length and max_new_tokens so that prompt and answer fit, or take a reward "
                                "model that reads longer texts")
        scores = [0.0] * len(sequences)
        while order:
            longest = len(sequences[order[0]])
            batch, order = order[:max(1, BATCH_TOKENS // longest)], order[max(1, BATCH_TOKENS // longest):]
            for i, score in zip(batch, self._batch([sequences[i] for i in batch]), strict=True):
                scores[i] = score
        return scores

    def _batch(self, sequences: Many[Sequence]) -> list[float]:
        lengths = [len(s) for s in sequences]
        ids, mask = (torch.zeros(len(lengths), lengths[0], dtype=torch.long, device=self.device) for _ in range(2))
        for i, s in enumerate(sequences):
            ids[i, :len(s)], mask[i, :len(s)] = torch.from_numpy(s.ids).long(), 1
        classifier = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if not hasattr(classifier, "score"):  # an encoder: it reads the whole text, and pools as it likes
            return classifier(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        hidden = classifier.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        ends = torch.tensor(lengths, device=self.device) - 1
        last = hidden[torch.arange(len(lengths), device=self.device), ends]
        head = classifier.score
        return head(last.to(next(head.parameters()).dtype))[:, 0].float().tolist()


def table_room(model: torch.nn.Module) -> int | None:
    """How many tokens fit a model's table of positions; None where it has none (rotary or relative positions).

    Where a row of the table is padding's (RoBERTa), positions begin after it.
    """
    rows = [m.num_embeddings - (0 if m.padding_idx is None else m.padding_idx + 1) for name, m in model.named_modules()
            if isinstance(m, torch.nn.Embedding) and name.rpartition(".")[2] in TABLES]
    return min(rows + [model.config.max_position_embeddings]) if rows else None


def open_scorer(ref: ModelRef, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False) -> Scorer:
    """A reward model of ours or anybody's: a sequence-classification folder with one label, or an adapter with a score.

    A model that gives words, or several labels, is a UserError.
    """
    if not gives_scores(ref) and not ref.is_hub:
        raise UserError("this model gives words, not scores", where=ref.name,
                        expected="a reward model: a ForSequenceClassification folder, or an adapter of that kind",
                        fix="train one with `posttrain reward`, or name another")
    where, _ = choose_device(device)
    kind, _ = choose_dtype(dtype, where)
    check_weights(ref.base)
    quiet_transformers()
    labels = {"num_labels": 1} if ref.adapter else {}
    model, found = AutoModelForSequenceClassification.from_pretrained(
        ref.base, dtype=kind, trust_remote_code=trust_remote_code, use_safetensors=True, output_loading_info=True,
        **labels)
    if model.config.num_labels != 1:
        raise UserError("the model has several labels, so it is no reward model", where=ref.name,
                        found=f"{model.config.num_labels} labels", expected="one", fix="name a reward model")
    if ref.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(ref.adapter))
    elif missing := sorted(found["missing_keys"]):
        raise UserError("the reward model's files lack weights", where=ref.base, found=f"no {missing[0]}",
                        fix="fetch all of its files again")
    return Scorer(model.to(where).eval(), where, kind, ref.name, table_room(model))
