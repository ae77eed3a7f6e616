"""The model card: what was trained on what, how, and what became of every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.core.config import Settings, dump_config

NAMES = {"full": "Fine-tuned from", "lora": "LoRA adapter on", "qlora": "LoRA adapter, trained on 4-bit weights of"}
UNITS = {"sft": "nats per trained token", "kto": "per answer"}
NF4 = 'nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)'


def model_card(settings: Settings, session: Any) -> str:
    """README.md of the model folder: base, data, settings, ledger, how to load it."""
    loop, spec = session.loop, session.spec
    ledger = loop.state.ledger.to_json()
    base = session.policy.ref.base if session.policy.ref else None
    lora = settings.adapts
    named = base if base and not Path(base).exists() else None
    head = ["---", "library_name: " + ("peft" if lora else "transformers"), f"tags: [posttrain, {settings.objective}]"]
    head += [f"base_model: {named}"] if named else []
    rows = "\n".join(f"| {s['spec']} | {s['rows']:,} | {s['format']} | "
                     f"{'' if s['share'] is None else format(s['share'], '.0%')} |" for s in loop.loader.opened.sources)
    scores = "score" in session.policy.heads
    load = ("AutoPeft" if lora else "Auto") + "ModelFor" + ("SequenceClassification" if scores else "CausalLM")
    extra = ", num_labels=1" * scores + ", quantization_config=nf4" * (settings.method == "qlora")
    lines = [*head, "---", "", f"# {loop.record.folder.name}", "",
             f"{NAMES[settings.method]} `{named or settings.model}`"
             if base else "Trained from scratch", f"with posttrain {__version__}.", "",
             "## Data", "", "| source | rows | format | share of an update |", "| --- | --- | --- | --- |", rows, "",
             "## What became of it", "",
             f"rows: {ledger['rows']}", "", f"tokens: {ledger['tokens']}", ""]
    if loop.state.eval_loss is not None:
        lines += [f"Held-out loss: {loop.state.eval_loss_before:.4f} before, {loop.state.eval_loss:.4f} after "
                  f"({UNITS.get(settings.objective, 'nats per pair')}).", ""]
    four_bit = settings.method == "qlora"
    lines += ["## Use", "", "```python",
              f"from transformers import {'AutoTokenizer, BitsAndBytesConfig' if four_bit else 'AutoTokenizer'}",
              f"from {'peft' if lora else 'transformers'} import {load}", "", *([NF4] if four_bit else []),
              f'model = {load}.from_pretrained("THIS_FOLDER"{extra})',
              'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")', "```", "",
              f"Chat template: {spec.template_name}. Turns end with "
              + ", ".join(f"`{spec.decode([i])}`" for i in spec.stop_ids)
              + (", at which an answer is scored: leave away what the template writes after it." if scores else
                 ", which generation_config.json names as the end."), ""]
    if spec.new_tokens and lora:
        lines += ["The vocabulary grew: load it through AutoPeftModelForCausalLM, which resizes the base's embeddings.",
                  ""]
    shown = dump_config(settings.model_copy(update={"resume": False})).rstrip()
    return "\n".join([*lines, "## Settings", "", "```yaml", shown, "```", ""])
