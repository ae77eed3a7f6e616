"""Seconds per save, from `--resume` to the first update, and to seek to an update of a million rows."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .measure import alone, machine, median, table
from .shapes import BUILD, SHAPES, SHARED, model_folder
from .start import million_rows

SEEKS, LIMIT = (10, 10_000, 60_000), 1.0


def child(folder: Path, model: str, method: str, resume: bool) -> None:
    """A run that notes when it saved and for how long in FOLDER.saves, and when each update ended in FOLDER.updates."""
    import posttrain
    from posttrain.train import loop
    from posttrain.train.record import Record

    def noting(function, name):
        def noted(*given, **more):
            began = time.time()
            made = function(*given, **more)
            with folder.with_suffix(name).open("a") as file:
                file.write(json.dumps([began, time.time()]) + "\n")
            return made
        return noted

    loop.Loop.checkpoint = noting(loop.Loop.checkpoint, ".saves")
    Record.metrics = noting(Record.metrics, ".updates")
    if resume:
        posttrain.sft(output_dir=folder, resume=True)
    else:
        posttrain.sft(model=model, data=f"{SHARED / 'stanford_alpaca' / 'alpaca_data.json.gz'}[#200]", method=method,
                      batch_size=2, pack_tokens=1024, max_steps=50, save_steps=1, save_total_limit=1, dtype="bfloat16",
                      output_dir=folder)


def lines(path: Path) -> list[list[float]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def until(folder: Path, model: str, method: str, resume: bool, name: str, count: int) -> float:
    """Start the child and kill it as soon as it has noted `count` times -> when it was started."""
    command = [sys.executable, "-m", "bench.resume", "--child", str(folder), model, method, str(int(resume))]
    began = time.time()
    with subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}) as running:
        while len(lines(folder.with_suffix(name))) < count and running.poll() is None:
            time.sleep(0.02)
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
        elif running.returncode:
            raise SystemExit("the run failed")
    return began


def saving(shape: str, method: str, count: int) -> list[str]:
    """One line of the table: a save, its size, and the way from the command to the next update."""
    model = str(model_folder(SHAPES[shape]))
    with tempfile.TemporaryDirectory(dir=BUILD) as where:
        folder = Path(where) / "run"
        began = until(folder, model, method, False, ".saves", count)
        saves = [b - a for a, b in lines(folder.with_suffix(".saves"))]
        first = lines(folder.with_suffix(".updates"))[0][1] - began
        size = sum(p.stat().st_size for p in max((folder / "checkpoints").iterdir()).iterdir())
        done = len(lines(folder.with_suffix(".updates")))
        again = until(folder, model, method, True, ".updates", done + 1)
        resumed = lines(folder.with_suffix(".updates"))[done][1] - again
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
    return [f"{shape}, {method}", f"{size / 1e9:.2f}", f"{median(saves):.1f}", f"{first:.1f}", f"{resumed:.1f}"]


def clock() -> tuple[float, float]:
    """Now by the wall, and the processor's seconds that this process has used."""
    return time.perf_counter(), time.process_time()


def disk(shape: str) -> list[list[str]]:
    """A checkpoint of full fine-tuning without a model: made-up tensors of the shape are saved, verified, read back."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from posttrain.model.checkpoint import load_checkpoint, save_checkpoint, verify

    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPES[shape].config, tie_word_embeddings=True))
    sizes = {name: p.shape for name, p in model.named_parameters()}

    def made(dtype):
        return {name: torch.randint(0, 99, tuple(size), dtype=dtype) for name, size in sizes.items()}

    files = {"weights": made(torch.bfloat16), "halves": made(torch.int16),
             "optimizer": {f"{kind}.{n}": t for kind in ("exp_avg", "exp_avg_sq")
                           for n, t in made(torch.float32).items()}}
    rows, marks = [], [clock()]
    with tempfile.TemporaryDirectory(dir=BUILD) as where:
        path = save_checkpoint(Path(where), 1, files, {"step": 1}, keep=1)
        marks.append(clock())
        assert not verify(path)
        marks.append(clock())
        for name, tensors in load_checkpoint(path)[0].items():
            for key in tensors:
                files[name][key].copy_(tensors[key])
        marks.append(clock())
        size = sum(p.stat().st_size for p in path.iterdir()) / 1e9
    for what, a, b in zip(("save", "verify", "read back"), marks, marks[1:], strict=False):
        rows.append([f"{what} {size:.2f} GB", f"{b[0] - a[0]:.1f}", f"{b[1] - a[1]:.1f}"])
    return rows


def seeking(update: int, data: Path) -> float:
    """Seconds from opening the data to the rows of one update, in a worker of its own."""
    from posttrain.core.config import make_settings
    from posttrain.data.loader import Loader
    from posttrain.data.tokenizer import load_tokenizer
    from posttrain.model.resolve import resolve_model

    began = time.perf_counter()
    with Loader(make_settings({"data": str(data), "num_train_epochs": 3})) as loader:
        loader.tokenizer(load_tokenizer(resolve_model("builtin").tokenizer))
        loader.judge()
        batch = next(loader.batches(start=update))
        assert batch.step == update + 1
        return time.perf_counter() - began


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.resume", description=__doc__)
    p.add_argument("--child", nargs=4, metavar="ARGUMENT")
    p.add_argument("--part", choices=["seek", "save", "disk"], nargs="*", default=["seek", "save"])
    p.add_argument("--shape", choices=list(SHAPES), default="0.6b")
    p.add_argument("--saves", type=int, default=2)
    p.add_argument("--repeats", type=int, default=3)
    a = p.parse_args(argv)
    if a.child:
        folder, model, method, resume = a.child
        child(Path(folder), model, method, resume == "1")
        return 0
    texts, late = [], False
    with alone():
        where = machine()
        if "seek" in a.part:
            data = million_rows()
            found = {n: median([seeking(n, data) for _ in range(a.repeats)]) for n in SEEKS}
            late = found[10_000] - found[10] > LIMIT
            texts.append(table(["update of a million rows", "seconds from opening the file to its rows"],
                               [[f"{n:,}", f"{seconds:.2f}"] for n, seconds in found.items()]))
        if "save" in a.part:
            rows = [saving(a.shape, method, a.saves) for method in ("lora", "full")]
            texts.append(table(["", "GB", "seconds per save", "start to first update", "resume to first update"], rows))
        if "disk" in a.part:
            texts.append(table(["a checkpoint's tensors alone", "seconds", "of the processor"], disk(a.shape)))
    text = f"{where['cores']} cores of {where['cpu']}, {where['date']}.\n\n" + "\n".join(texts)
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / f"resume-{'-'.join(a.part)}.md").write_text(text + "\n")
    print(text)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
