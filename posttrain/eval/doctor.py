"""Which classic trouble a run has: each rule reads the run's folder, shows its evidence and says what to change."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ..core.config import make_settings, read_config
from ..core.errors import RowError, UserError

FEW_UPDATES = 30
SHARE_TRAINED = 0.02  # of the tokens; below it nearly everything is masked
FALL = 0.03  # least relative fall of the loss over a run
TURN = 0.05  # relative rise of the validation loss above its minimum
STOPS = 0.5  # least share of sampled answers that end by themselves
RIVALS, COPIES = 0.02, 0.2  # largest share of rows that contradict others, that repeat others
MOST_ROWS = 100_000  # of each source, among which contradictions are looked for
RISE = 1.5  # of the loss at the end above its least mean over a tenth of the run
JUMP = 50.0  # a gradient's norm against the median one
CHAT = re.compile(r"### ?(Response|Instruction)|<\|im_start\|>|<\|start_header_id\|>|\[/INST\]"
                  r"|(^|\n)(User|Human|Assistant|用户|助手) ?[:：]")


@dataclass(frozen=True, slots=True)
class Trouble:
    """One trouble: its name, what in the run shows it, and what to change."""

    name: str
    evidence: list[str]
    change: str


@dataclass
class Facts:
    """A run folder, read once; what is absent is empty."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.folder / "config.yaml").is_file():
            raise UserError("this folder is no run", where=str(self.folder), expected="a folder with config.yaml",
                            fix="name the output_dir of a run")
        self.config = read_config(self.folder / "config.yaml")

    def read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(x) for x in path.read_text("utf-8").splitlines()] if path.is_file() else []

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return self.lines("metrics.jsonl")

    @cached_property
    def losses(self) -> list[float]:
        return [m["loss"] for m in self.metrics if m.get("loss") is not None]

    @cached_property
    def norms(self) -> list[tuple[int, float]]:
        return [(m["step"], m["grad_norm"]) for m in self.metrics if m.get("grad_norm") is not None]

    @cached_property
    def validations(self) -> list[tuple[int, float]]:
        """Validation loss by update, that before the first one included."""
        before = self.read("run.json").get("eval_loss_before")
        found = [(m["step"], m["eval_loss"]) for m in self.metrics if m.get("eval_loss") is not None]
        return ([(0, before)] if before is not None else []) + found

    @cached_property
    def masks(self) -> list[dict[str, Any]]:
        """Some rows of the run, token by token."""
        return self.lines("masks.jsonl")

    @cached_property
    def last_samples(self) -> list[dict[str, Any]]:
        """The answers sampled last that were read from held-out rows."""
        samples = [s for s in self.lines("samples.jsonl") if "reference" in s]
        last = max((s["step"] for s in samples), default=0)
        return [s for s in samples if s["step"] == last]

    @cached_property
    def evaluations(self) -> list[tuple[Path, dict[str, Any]]]:
        """Every eval.json in the run's folder or beside it that measured this run."""
        places = [self.folder / "eval.json", *sorted(self.folder.resolve().parent.glob("*/eval.json"))]
        found = {}
        for path in places:
            if path.is_file():
                result = json.loads(path.read_text("utf-8"))
                if any(self.is_me(m["model"]) for m in result.get("models", [])):
                    found[path.resolve()] = result
        return list(found.items())

    def is_me(self, name: str) -> bool:
        return Path(name).exists() and Path(name).resolve() == self.folder.resolve()


def ends(values: list[float]) -> tuple[float, float]:
    """Means of the first and the last tenth, of at least three values each."""
    means = tenths(values)
    return means[0], means[-1]


def tenths(values: list[float]) -> list[float]:
    """The mean of every stretch of a tenth of the values, of at least three."""
    size = min(len(values), max(3, len(values) // 10))
    return [fmean(values[i:i + size]) for i in range(len(values) - size + 1)]


def noise(values: list[float]) -> float:
    """The standard error of the difference between the first and the last tenth, from how much neighbours differ."""
    size = max(3, len(values) // 10)
    return math.sqrt(fmean([(b - a) ** 2 for a, b in zip(values, values[1:], strict=False)]) / size)


def loss_does_not_fall(run: Facts) -> Trouble | None:
    if len(run.losses) < 10 or run.config.get("objective", "sft") not in ("sft", "reward"):
        return None
    first, last = ends(run.losses)
    rate, usual = run.config["learning_rate"], 2e-5 if run.config["method"] == "full" else 2e-4
    slow = rate < usual / 5  # then what looks like a fall may be one batch against another
    if first - last > max(first * FALL, 2 * noise(run.losses) if slow else 0.0) or exploding(run):
        return None  # a rising loss is another trouble
    evidence = [f"loss {first:.4f} at the start, {last:.4f} at the end of {len(run.losses)} updates"]
    if slow:
        evidence.append(f"learning_rate {rate:g}; {usual:g} is usual for method: {run.config['method']}")
        return Trouble("the loss does not fall", evidence, f"set learning_rate: {usual:g}")
    if first < 0.2:
        return None  # it had nothing left to learn
    return Trouble("the loss does not fall", evidence, "look at the masks with `posttrain data show`; then raise "
                   f"learning_rate (now {rate:g}) threefold")


def nearly_all_masked(run: Facts) -> Trouble | None:
    tokens = run.read("ledger.json").get("tokens") or {}
    seen = tokens.get("trained", 0) + tokens.get("masked", 0)
    if not seen or tokens["trained"] / seen >= SHARE_TRAINED:
        return None
    return Trouble("nearly everything is masked", [f"{tokens['trained']:,} of {seen:,} tokens were trained "
                                                   f"({tokens['trained'] / seen:.2%})"],
                   "the answers are tiny beside their prompts: check `columns`, or set train_on: all where only the "
                   "last turn counts now")


def wrong_format(run: Facts) -> Trouble | None:
    for mask in run.masks:
        if any(t["reason"] == "text" for t in mask["tokens"]) and (
                found := CHAT.search("".join(t["text"] for t in mask["tokens"]))):
            return Trouble("conversations are read as plain text", [
                f"{mask['origin']} holds {found.group().strip()!r}; every token of it was trained, the user's too"],
                "keep the rows as prompt and answer (instruction/output, messages, …): the template writes the rest")
    return None


def overfitting(run: Facts) -> Trouble | None:
    found = [(step, loss) for step, loss in run.validations if step]
    if len(found) < 3:
        return None
    step, best = min(found, key=lambda v: v[1])
    last = found[-1]
    if last[1] <= best * (1 + TURN) or last[0] == step:
        return None
    first, end = ends(run.losses)
    return Trouble("overfitting", [f"validation loss {best:.4f} at update {step}, {last[1]:.4f} at update {last[0]} "
                                   f"({last[1] / best - 1:+.1%})", f"training loss {first:.4f} → {end:.4f} meanwhile"],
                   f"stop near update {step} (max_steps: {step}), lower learning_rate, or bring more rows")


def forgetting(run: Facts) -> Trouble | None:
    for path, result in run.evaluations:
        closed = [c for c in (result.get("gate") or {}).get("checks", []) if not c["passes"] and run.is_me(c["model"])]
        if closed:
            return Trouble("forgetting", [
                f"{c['figure']} on {c['data']}: {c['before']:.4g} → {c['after']:.4g}, a drop of {c['drop']:.1%} "
                f"(max_forgetting {c['max_forgetting']:.1%}; {path})" for c in closed],
                "mix general text into every update (data: PATH@0.2), lower learning_rate, train fewer epochs, or use "
                "method: lora")
    return None


def never_stops(run: Facts) -> Trouble | None:
    evidence = []
    trained = {t["id"] for mask in run.masks for t in mask["tokens"] if t["reason"] == "stop" and t["weight"]}
    answers = any(t["reason"] == "content" and t["weight"] for mask in run.masks for t in mask["tokens"])
    served = run.read("model/generation_config.json").get("eos_token_id")
    served = set(served if isinstance(served, list) else [] if served is None else [served])
    if answers and not trained:
        evidence.append("no stop token of the shown rows is trained")
    elif trained and (run.folder / "model").is_dir() and not trained <= served:
        evidence.append(f"trained stop tokens {sorted(trained)}, but generation_config.json ends at {sorted(served)}")
    template, saved = (run.folder / place / "chat_template.jinja" for place in ("tokenizer", "model"))
    if template.is_file() and saved.is_file() and template.read_text("utf-8") != saved.read_text("utf-8"):
        evidence.append(f"{saved} is not the template of the training ({template})")
    stopped = [s["stopped"] for s in run.last_samples]
    if stopped and fmean(stopped) < STOPS:
        evidence.append(f"{sum(stopped)} of {len(stopped)} answers sampled at update {run.last_samples[0]['step']} end "
                        "by themselves")
    for path, result in run.evaluations:
        share = next(m["stops"]["value"] for m in result["models"] if run.is_me(m["model"]))
        if share is not None and share < STOPS:
            evidence.append(f"{share:.1%} of the answers in {path} end by themselves")
    if not evidence:
        return None
    return Trouble("wrong style, or never stops", evidence, "serve the folder as it was written (its template and "
                   "generation_config.json); where it was never changed, train longer, or see whether the rows' "
                   "answers end with their stop token (`posttrain data show`)")


def nonsense(run: Facts) -> Trouble | None:
    """Rows that contradict or repeat each other, by digests of what is asked and of the whole row."""
    from ..data.read import open_sources

    settings = make_settings({**run.config, "resume": False})
    asked: dict[int, set[int]] = {}
    rivals: dict[int, str] = {}
    count = copies = 0
    try:
        sources = open_sources(settings.data, columns=settings.columns, hub_ok=False, objective=settings.objective,
                               ranked_pairs=settings.ranked_pairs)
    except UserError:
        return None  # the data has moved: nothing can be said
    for source in sources:
        for i in range(min(len(source), MOST_ROWS)):
            try:
                row = source.row(i)
            except RowError:
                continue
            if row.kind != "conversation":
                continue
            count += 1
            last = max((n for n, m in enumerate(row.messages) if m["role"] == "assistant"), default=len(row.messages))
            question, answer = _digest(row.tools, row.messages[:last]), _digest(row.messages[last:])
            known = asked.setdefault(question, set())
            copies += answer in known
            known.add(answer)
            if len(known) > 1:
                rivals.setdefault(question, row.origin)
    contradicting = sum(len(asked[q]) for q in rivals)
    evidence = []
    if contradicting > RIVALS * count:
        evidence.append(f"{contradicting:,} of {count:,} rows give different answers to the same prompt, such as "
                        f"{next(iter(rivals.values()))}")
    if copies > COPIES * count:
        evidence.append(f"{copies:,} of {count:,} rows are exact copies of others")
    return Trouble("contradicting or duplicated rows", evidence, "`posttrain data check` lists them: keep one answer "
                   "per prompt") if evidence else None


def _digest(*parts: Any) -> int:
    return int.from_bytes(blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def too_few_updates(run: Facts) -> Trouble | None:
    status = run.read("run.json")
    if status.get("status") not in ("finished", "exporting") or not 0 < len(run.metrics) < FEW_UPDATES:
        return None
    rows = (run.read("ledger.json").get("rows") or {}).get("read", 0)
    return Trouble("too few updates", [f"{len(run.metrics)} updates in all ({rows:,} rows read, batch_size "
                                       f"{run.config['batch_size']})"],
                   f"raise num_train_epochs or lower batch_size, so that there are at least {FEW_UPDATES}")


def exploding(run: Facts) -> Trouble | None:
    if len(run.norms) < 10 or len(run.losses) < 10:
        return None
    usual = median(n for _, n in run.norms)
    step, worst = max(run.norms, key=lambda v: v[1] if math.isfinite(v[1]) else math.inf)
    least, last = min(tenths(run.losses)), ends(run.losses)[1]
    first = run.losses[0]  # before any step
    evidence = []
    if worst > JUMP * usual:
        evidence.append(f"gradient norm {worst:.3g} at update {step}, {usual:.3g} at the median update")
    rises = last > 2 * first or last > max(RISE * least, first / 2)
    if rises and run.config.get("objective", "sft") in ("sft", "reward"):
        evidence.append(f"the loss rises: {first:.4f} at first, {least:.4f} at its least, {last:.4f} at the end")
    if not evidence:
        return None
    rate = run.config["learning_rate"]
    return Trouble("exploding gradients", evidence, f"lower learning_rate (now {rate:g}) to a tenth, "
                   + ("set max_grad_norm: 1.0, " if not run.config["max_grad_norm"] else "")
                   + "warm up longer (warmup_ratio), and look at the rows of that update")


RULES: dict[str, Callable[[Facts], Trouble | None]] = {
    "loss": loss_does_not_fall, "masked": nearly_all_masked, "format": wrong_format, "overfitting": overfitting,
    "forgetting": forgetting, "stops": never_stops, "rows": nonsense, "updates": too_few_updates,
    "gradients": exploding}


def examine(folder: Path) -> list[Trouble]:
    """Every trouble of a run; an empty list is a clean bill (test_doctor.py plants each, and a healthy run)."""
    run = Facts(folder)
    return [found for rule in RULES.values() if (found := rule(run)) is not None]


def as_json(troubles: list[Trouble]) -> list[dict[str, Any]]:
    return [asdict(t) for t in troubles]
