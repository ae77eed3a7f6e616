"""The verbs: what each takes and where its code lies. A table; it imports neither torch nor the code it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.core.config import Settings, users_of


@dataclass(frozen=True, slots=True)
class Option:
    """A flag of one verb that is no settings key. `kind`: str, int, float, bool or list (repeatable)."""

    name: str
    kind: str
    default: Any
    doc: str
    least: float | None = None
    most: float | None = None
    group: str = "options"


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb. `words` are its positional arguments (one that ends in … may be repeated); `keys` the settings
    keys it takes as flags (a CONFIG.yaml may hold any key); `code` is module:function, called with the
    parsed command and returning the exit code."""

    name: str
    summary: str
    code: str
    words: tuple[str, ...] = ()
    takes_config: bool = False
    takes_data_words: bool = False
    keys: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    examples: tuple[str, ...] = ()
    about: str = ""

    @property
    def trains(self) -> bool:
        """Whether it makes a run; its name then is the run's objective."""
        return "resume" in self.keys


def keys_of(objective: str) -> tuple[str, ...]:
    """The keys that a run of this objective takes."""
    return tuple(f.alias or name for name, f in Settings.model_fields.items()
                 if name != "objective" and objective in users_of(name))


def groups() -> dict[str, list[str]]:
    """Settings keys by their group, in the order of the class."""
    found: dict[str, list[str]] = {}
    for name, field in Settings.model_fields.items():
        found.setdefault(field.json_schema_extra["group"], []).append(field.alias or name)
    return found


JSON = Option("json", "bool", False, "print only JSON on standard output; everything else goes to standard error")
DEBUG = Option("debug", "bool", False, "show the traceback of an error (or set POSTTRAIN_DEBUG=1)")
HELP = Option("help", "bool", False, "show this text")
EVERYWHERE = (DEBUG, HELP)

RENDER_KEYS = ("objective", "model", "tokenizer", "chat_template", "trust_remote_code", "data", "columns",
               "max_length", "overlong", "bad_rows", "max_lost", "train_on", "enable_thinking", "template_date")
SPEAK_KEYS = ("chat_template", "trust_remote_code", "dtype", "device", "threads", "enable_thinking", "template_date",
              "seed")
SPEAK = (
    Option("system", "str", None, "system prompt"),
    Option("max_new_tokens", "int", 256, "longest answer, in tokens", least=1),
    Option("temperature", "float", 0.0, "0 always takes the likeliest token; above 0 samples", least=0),
    Option("top_p", "float", 1.0, "sample from the likeliest tokens that hold this much probability", least=0, most=1),
)

VERBS = {verb.name: verb for verb in (
    Verb("demo", "from a base model to an assistant in about a minute, nothing to download", "posttrain.app.demo:main",
         keys=("output_dir", "seed", "threads", "device", "dtype"), options=(
             JSON, Option("align", "bool", False, "on to preferences: SFT, a reward model, PPO, and DPO beside it")),
         examples=("posttrain demo", "posttrain demo --align")),
    Verb("sft", "supervised fine-tuning: rows in, an assistant out", "posttrain.app.train:main", takes_config=True,
         keys=keys_of("sft"), options=(JSON,),
         examples=("posttrain sft --model Qwen/Qwen3-0.6B-Base --data my_rows.json",
                   "posttrain sft recipe.yaml --learning_rate 1e-4 --data a.jsonl --data b.jsonl@0.2",
                   "posttrain sft --output_dir runs/sft-1 --resume")),
    Verb("reward", "a reward model from preferences: which answer is better, as a score",
         "posttrain.app.train:main", takes_config=True, keys=keys_of("reward"), options=(JSON,),
         examples=("posttrain reward --model runs/sft-1 --data preferences.jsonl --eval_split 0.05",
                   "posttrain reward --output_dir runs/reward-1 --resume")),
    Verb("dpo", "direct preference optimization: learn from preferences without a reward model",
         "posttrain.app.train:main", takes_config=True, keys=keys_of("dpo"), options=(JSON,),
         examples=("posttrain dpo --model runs/sft-1 --data preferences.jsonl",
                   "posttrain dpo --model runs/sft-1 --data preferences.jsonl --loss_type ipo --beta 0.1",
                   "posttrain dpo --output_dir runs/dpo-1 --resume")),
    Verb("orpo", "supervised fine-tuning and preferences at once, without a reference",
         "posttrain.app.train:main", takes_config=True, keys=keys_of("orpo"), options=(JSON,),
         examples=("posttrain orpo --model Qwen/Qwen3-0.6B-Base --data preferences.jsonl",)),
    Verb("kto", "learn from answers that are called good or bad, each for itself", "posttrain.app.train:main",
         takes_config=True, keys=keys_of("kto"), options=(JSON,),
         examples=("posttrain kto --model runs/sft-1 --data labelled.jsonl",)),
    Verb("ppo", "reinforcement learning with four models on one base: sampled answers, a reward, a critic",
         "posttrain.app.train:main", takes_config=True, keys=keys_of("ppo"), options=(JSON,),
         examples=("posttrain ppo --model runs/sft-1 --data prompts.jsonl --reward runs/reward-1",
                   "posttrain ppo --model runs/sft-1 --data my_rows.json --reward my_reward.py:score")),
    Verb("grpo", "reinforcement learning from checkable rewards: several answers to each prompt, no critic",
         "posttrain.app.train:main", takes_config=True, keys=keys_of("grpo"), options=(JSON,),
         examples=("posttrain grpo --model runs/sft-1 --data sums.jsonl --reward gsm8k",)),
    Verb("online_dpo", "two sampled answers to each prompt, the better one by a reward, and DPO's loss on the two",
         "posttrain.app.train:main", takes_config=True, keys=keys_of("online_dpo"), options=(JSON,),
         examples=("posttrain online_dpo --model runs/sft-1 --data prompts.jsonl --reward runs/reward-1",
                   "posttrain online_dpo --model runs/sft-1 --data prompts.jsonl --reward judge:http://localhost:8000/v1")),
    Verb("score", "what a reward model makes of rows, or of an answer", "posttrain.app.score:main", words=("MODEL",),
         takes_data_words=True, keys=("data", "columns", "bad_rows", "max_length", *SPEAK_KEYS[:-1]),
         options=(Option("prompt", "str", None, "a question whose answer is scored"),
                  Option("answer", "str", None, "the answer to it"),
                  Option("limit", "int", None, "only the first rows", least=1), JSON),
         examples=("posttrain score runs/reward-1 preferences.jsonl",
                   "posttrain score runs/reward-1 --prompt 'Say hello.' --answer 'Hello!'")),
    Verb("data show", "the rows as the trainer sees them: token by token, trained or not, and why",
         "posttrain.app.data:show", takes_config=True, takes_data_words=True, keys=RENDER_KEYS,
         options=(JSON, Option("row", "int", None, "only the row that begins at this line (Parquet and hubs: row)",
                               least=1),
                  Option("limit", "int", None, "rows shown; default 3 in a terminal, 50 in HTML, all in JSON", least=0),
                  Option("worst", "int", None, "worst rows shown of each kind (longest, least trained, most cut); "
                                               "default 1 in a terminal, 5 in HTML, 0 in JSON", least=0),
                  Option("html", "str", None, "write a page that stands by itself instead")),
         examples=("posttrain data show my_rows.json --model Qwen/Qwen3-0.6B-Base",
                   "posttrain data show my_rows.json --row 1412", "posttrain data show my_rows.json --html mask.html")),
    Verb("data check", "the very checks of a run over every row, without the run", "posttrain.app.data:check",
         takes_config=True, takes_data_words=True, keys=RENDER_KEYS, options=(JSON,),
         examples=("posttrain data check my_rows.json",),
         about="Exits 0 with nothing found, 1 with findings, 2 when the input or the settings cannot be read."),
    Verb("data table", "the first rows as a prompt/response table", "posttrain.app.data:table",
         takes_config=True, takes_data_words=True, keys=("objective", "data", "columns", "bad_rows"),
         options=(JSON, Option("limit", "int", 5, "rows shown", least=1)),
         examples=("posttrain data table my_rows.json",)),
    Verb("chat", "talk to a model: a run, a checkpoint, an adapter, a Hugging Face folder or hub id",
         "posttrain.app.chat:main", words=("MODEL",), keys=SPEAK_KEYS,
         options=(Option("prompt", "str", None, "answer this once and leave"), *SPEAK, JSON),
         examples=("posttrain chat runs/sft-1", "posttrain chat builtin --prompt 'The capital of France is'")),
    Verb("compare", "the answers of two models to the same questions, side by side", "posttrain.app.compare:main",
         words=("BASE", "TUNED"), keys=SPEAK_KEYS,
         options=(Option("questions", "str", None, "a file of questions: .txt (one per line), or rows in any format "
                                                   "that data takes, such as those of the run"),
                  Option("limit", "int", None, "only the first questions", least=1), *SPEAK, JSON),
         examples=("posttrain compare builtin runs/sft-1 --questions questions.txt",)),
    Verb("vote", "a blind vote between two models, side by side on a page of this machine", "posttrain.app.vote:main",
         words=("A", "B"), keys=SPEAK_KEYS,
         options=(Option("questions", "str", None, "a file of questions, as for compare"),
                  Option("output", "str", "votes.jsonl", "the file of votes: read to go on, and preference rows later"),
                  Option("limit", "int", None, "only the first questions", least=1),
                  Option("port", "int", 8765, "port on 127.0.0.1; 0 takes any that is free", least=0, most=65535),
                  *SPEAK, JSON),
         examples=("posttrain vote builtin runs/sft-1 --questions questions.txt",),
         about="Sides are random and names hidden until the end. Ctrl-C pauses; the same command goes on."),
    Verb("eval", "how good models are on rows, each figure with its 95 % interval, the first model as baseline",
         "posttrain.app.eval:main", words=("MODEL…",),
         keys=("data", "columns", "bad_rows", "max_length", "output_dir", *SPEAK_KEYS),
         options=(Option("limit", "int", None, "only the first rows", least=1), *SPEAK,
                  Option("gate", "bool", False, "also measure general sets, and exit 1 where one got worse"),
                  Option("general", "list", [], "rows of the gate, in the forms of data; default: embedded general "
                                                "text, and the rows of the baseline where it is a run"),
                  Option("max_forgetting", "float", 0.1, "relative drop of a general figure that the gate lets pass",
                         least=0),
                  Option("reward", "list", [], "also the mean score of the answers by fn.py:score, exact, gsm8k, "
                                               "regex:PATTERN, length:N, judge:URL#MODEL, or a reward model; "
                                               "repeatable"),
                  Option("code", "str", None, "instead of rows: code problems in the form of HumanEval (prompt, test, "
                                              "entry_point) or MBPP (text, test_list)"),
                  Option("allow_code_execution", "bool", False, "run what the model writes, in a sandbox that the "
                                                                "kernel enforces"),
                  Option("samples", "int", 1, "programs asked for each code problem", least=1),
                  Option("k", "str", "1", "which pass@k are told, such as 1,10"),
                  Option("benchmarks", "list", [], "instead of rows: tasks of lm-evaluation-harness by name, or the "
                                                   "YAML file of one; a,b or repeated"),
                  Option("num_fewshot", "int", None, "examples before each question of a benchmark; default: the "
                                                     "task's own", least=0), JSON),
         examples=("posttrain eval builtin runs/sft-1 --data builtin:held_out",
                   "posttrain eval runs/sft-1 runs/grpo-1 --data test.jsonl --reward gsm8k",
                   "posttrain eval runs/sft-1 --benchmarks gsm8k,mmlu --limit 100",
                   "posttrain eval runs/sft-1 --code HumanEval.jsonl.gz --allow_code_execution",
                   "posttrain eval Qwen/Qwen3-0.6B runs/sft-1 http://localhost:8000/v1#other --data test.jsonl --gate"),
         about="MODEL is a run, a checkpoint, an adapter, a Hugging Face folder, a hub id, or the URL of an "
               "OpenAI-compatible endpoint. Writes eval.json, answers.jsonl and report.html into output_dir "
               "(default: a fresh runs/eval-N). Exits 0; with --gate 1 where a general figure drops more "
               "than max_forgetting."),
    Verb("judge", "MT-Bench, or any talks of its form: models rated, and two compared, by another model",
         "posttrain.app.judge:main", words=("MODEL…",), keys=("output_dir", *SPEAK_KEYS),
         options=(Option("questions", "str", None, "one JSON object per line: question_id, category, turns"),
                  Option("judge", "str", None, "OpenAI-compatible endpoint, URL#MODEL (its key is OPENAI_API_KEY), "
                                              "or a reward model"),
                  Option("reference", "str", None, "good answers for the judge, in MT-Bench's form"),
                  Option("limit", "int", None, "only the first questions", least=1), *SPEAK, JSON),
         examples=("posttrain judge runs/sft-1 --questions question.jsonl --judge http://localhost:8000/v1#qwen3",
                   "posttrain judge builtin runs/sft-1 --questions question.jsonl --judge https://api.example/v1#m",
                   "posttrain judge runs/sft-1 runs/ppo-1 --questions question.jsonl --judge runs/reward-1"),
         about="MODEL is anything that chat takes, or an endpoint. An endpoint is asked about pairs in both orders; a "
               "reply without a clear verdict is counted, never guessed. A reward model gives raw scores, and of a "
               "pair the higher one wins. Writes judge.json, talks.jsonl and judgements.jsonl."),
    Verb("merge", "an adapter into its base: one plain Hugging Face folder, checked in a fresh process",
         "posttrain.app.merge:main", words=("RUN",), keys=("trust_remote_code", "device", "threads"),
         options=(Option("output", "str", None, "the folder to be made; default: RUN/merged"), JSON),
         examples=("posttrain merge runs/sft-1", "posttrain merge runs/sft-1/checkpoints/200 --output merged-200"),
         about="RUN is a run, a checkpoint or an adapter. The folder takes its name once a fresh process has found in "
               "it the greedy text and logits of base and adapter, in float32 on both sides."),
    Verb("doctor", "which classic trouble a run has: the evidence, and what to change", "posttrain.app.doctor:main",
         words=("RUN",), options=(JSON,), examples=("posttrain doctor runs/sft-1",),
         about="Exits 0 with nothing found, 1 with findings."),
    Verb("plan", "what a run will hold and cost, before it starts: memory by part, disk, time, and what would fit",
         "posttrain.app.plan:main", words=("MODEL",), keys=tuple(k for k in keys_of("sft") if k not in (
             "model", "model_config", "output_dir", "resume", "allow_changes", "report_to", "logging_steps")),
         options=(Option("memory", "float", None, "plan for a GPU of so many GiB instead of this machine", least=0),
                  JSON),
         examples=("posttrain plan Qwen/Qwen3-0.6B --data my_rows.json --method full",
                   "posttrain plan folder/config.json --method qlora --memory 24"),
         about="MODEL is any folder or file with a config.json (no weights, no tokenizer needed), a run, or a hub id. "
               "Exits 0 whether it fits or not."),
    Verb("env", "versions, processor, memory, GPU, disk: what a bug report needs, and no secrets",
         "posttrain.app.env:main", options=(JSON,), examples=("posttrain env",)),
)}
