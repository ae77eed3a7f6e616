"""New tokens/s of the sampler beside transformers' generate, one prompt at a time and padded in one batch."""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.model.sample import generate

from .measure import alone, machine, median, table
from .shapes import BUILD, SHAPES, alpaca, model_folder


def prompts_of(tokenizer, count: int) -> list[list[int]]:
    chats = [[{"role": "user", "content": f"{r['instruction']}\n{r['input']}".strip()}] for r in alpaca(count)]
    return [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=True)["input_ids"] for c in chats]


def one_by_one(model, prompts, new, stops):
    """transformers.generate, greedy, a prompt at a time: what most scripts do."""
    out = []
    for p in prompts:
        ids = torch.tensor([p], device=model.device)
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
                              eos_token_id=stops, pad_token_id=0)
        out.append(made[0, len(p):].tolist())
    return out


def padded_batch(model, prompts, new, stops):
    """transformers.generate on all prompts at once, left padded; finished rows stay until the last one ends."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    made = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=stops,
                          pad_token_id=0)[:, width:].tolist()
    return [next((row[:n + 1] for n, t in enumerate(row) if t in stops), row) for row in made]


def ours(model, prompts, new, stops):
    return [r.ids for r in generate(model, prompts, max_new_tokens=new, stop_ids=stops)]


def model_of(a):
    """The chosen shape, its random weights scaled up so that greedy text varies, or any folder."""
    folder = a.model or model_folder(SHAPES[a.shape])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=a.dtype).to(a.device).eval()
    if not a.model:
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(3.0 if p.dim() > 1 else 1.0)
    return model, AutoTokenizer.from_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.sampler", description=__doc__)
    p.add_argument("--shape", choices=list(SHAPES), default="7m")
    p.add_argument("--model", help="a model folder instead of a random shape")
    p.add_argument("--prompts", type=int, default=64)
    p.add_argument("--new", type=int, default=64, help="most new tokens per prompt")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--dtype", default="float32")
    p.add_argument("--device", default="cpu")
    p.add_argument("--stops", type=int, default=50, help="random models: every n-th id stops, so that lengths differ")
    a = p.parse_args(argv)
    with alone():
        model, tokenizer = model_of(a)
        prompts = prompts_of(tokenizer, a.prompts)
        # A random model draws every id alike: about one row in `stops` ends at each step.
        stops = [tokenizer.eos_token_id] if a.model else list(range(3, model.config.vocab_size, a.stops))
        ways = {"posttrain": ours, "generate, one by one": one_by_one, "generate, one padded batch": padded_batch}
        texts, speeds = {}, {n: [] for n in ways}
        for way in ways.values():
            way(model, prompts[:4], 4, stops)
        where = machine()
        for _ in range(a.repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                texts[name] = way(model, prompts, a.new, stops)
                speeds[name].append(sum(map(len, texts[name])) / (time.perf_counter() - start))
    same = sum(x == y for x, y in zip(texts["posttrain"], texts["generate, one by one"], strict=True))
    middle = {n: median(v) for n, v in speeds.items()}
    rows = [[n, f"{v:,.0f}", f"{v / middle['generate, one by one']:.1f}×"] for n, v in middle.items()]
    lengths, sizes = sorted(map(len, texts["posttrain"])), sorted(map(len, prompts))
    text = (f"{a.model or a.shape}, {len(prompts)} prompts of {sizes[0]}–{sizes[-1]} tokens, "
            f"answers of {lengths[0]}–{lengths[-1]} (median {lengths[len(lengths) // 2]}), {a.dtype}, greedy; "
            f"{same} of {len(prompts)} texts equal to one by one.\n\n" + table(["", "new tokens/s", ""], rows))
    (BUILD / "sampler.json").write_text(json.dumps({"machine": where, "speeds": speeds, "equal": same}, indent=1))
    (BUILD / "sampler.md").write_text(text + "\n")
    print(text)
    return 0 if same == len(prompts) or a.dtype != "float32" else 1


if __name__ == "__main__":
    sys.exit(main())
