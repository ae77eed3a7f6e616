"""Every setting: the YAML key = the --flag = the field = the key in the log. No torch here."""

from __future__ import annotations

import datetime
import difflib
import os
import re
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from .errors import SettingsError, UserError
from .key import key
from .objectives import FACTS
from .peer_keys import PEER_KEYS
from .reinforce_keys import SHOWN, ReinforceKeys, idle_beside_sampling

BUILTIN = "builtin"
PACK_TOKENS = 4096
PAIRS = ("reward", "dpo", "orpo")  # the objectives that read rows which compare answers
DPO = ("dpo", "online_dpo")


class Settings(ReinforceKeys):
    """All keys of a run. `None` means: chosen by the program and printed with its reason (see `choices`)."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=(), populate_by_name=True,
                              allow_inf_nan=False)

    # of a run the verb itself says it
    objective: Literal["sft", "reward", "dpo", "orpo", "kto", "ppo", "grpo", "online_dpo"] = key(
        "data", "sft", "which verb the rows are for")

    # -- model
    model: str = key("model", BUILTIN, "base model: folder, hub id, run, checkpoint or adapter; `builtin` is embedded")
    architecture: str | None = Field(
        None, alias="model_config", description="YAML of a Hugging Face config: train this shape from scratch",
        json_schema_extra={"group": "model"})
    tokenizer: str | None = key("model", None, "tokenizer folder; default: the model's, or trained on the data")
    chat_template: str = key("model", "auto", "auto (the tokenizer's own, else plain), chatml, llama2, alpaca, plain, "
                                              "or a .jinja file")
    trust_remote_code: bool = key("model", False, "let a model folder run Python code of its own")
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = key("model", "auto", "compute type; trained weights "
                                                                  "keep float32 masters")
    device: str = key("model", "auto", "auto, cpu, cuda, cuda:1, …")
    deterministic: bool = key("model", False, "bit-equal repeats on CUDA too, at some speed")
    threads: int | None = key("model", None, "CPU threads of the computation", ge=1)

    # -- data
    data: list[str] = key("data", [BUILTIN], "file, folder, glob or hub id[:split]; repeatable; PATH@0.2 is that share "
                                             "of every update, PATH[#500] the first 500 rows")
    eval_data: list[str] = key("data", [], "held-out rows, in the same forms")
    eval_split: float = key("data", 0.0, "share of the data rows held out when no eval_data is given", ge=0, lt=1)
    columns: dict[str, str] = key("data", {}, "which column plays which part: prompt=question,response=answer")
    max_length: int = key("data", 1024, "longest sequence, in tokens", ge=2)
    overlong: Literal["cut", "drop", "error"] = key("data", "cut", "longer conversations: keep whole leading turns, "
                                                                   "drop the row, or stop", SHOWN)
    bad_rows: Literal["error", "skip"] = key("data", "error", "malformed rows: stop, or drop them and count")
    max_lost: float = key("data", 0.05, "largest share of rows that may be dropped", ge=0, le=1)
    train_on: Literal["all", "last", "all_tokens"] = key("data", "all", "every assistant turn, the last one, or "
                                                                        "every token", only=("sft",))
    enable_thinking: Literal["auto", "true", "false"] = key("data", "auto", "the template's thinking switch; auto "
                                                                            "follows the data")
    template_date: str | None = key("data", None, "date (YYYY-MM-DD) for templates that print today's")
    shuffle: bool = key("data", True, "a new order each epoch, from the seed")

    # -- training
    method: Literal["full", "lora", "qlora"] = key("training", "lora", "train all weights, low-rank adapters, or "
                                                                       "adapters on a base of 4 bits a weight")
    learning_rate: float | None = key("training", None, "peak rate; default 2e-4 for lora and qlora, 2e-5 for full",
                                      gt=0)
    num_train_epochs: float = key("training", 3.0, "passes over the data; default 1 for preferences", gt=0)
    max_steps: int | None = key("training", None, "stop after this many updates instead", ge=1)
    batch_size: int = key("training", 16, "rows per update, over everything: mathematics", ge=1)
    pack_tokens: int | Literal["auto"] = key("training", PACK_TOKENS, "tokens per forward: memory, never the result")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = key("training", "cosine", "shape of the rate after "
                                                                                          "warmup")
    warmup_ratio: float = key("training", 0.03, "share of the updates in which the rate rises", ge=0, le=1)
    warmup_steps: int | None = key("training", None, "the same as a number of updates", ge=0)
    weight_decay: float = key("training", 0.0, "decoupled decay of weight matrices", ge=0)
    adam_beta1: float = key("training", 0.9, "AdamW", ge=0, lt=1)
    adam_beta2: float = key("training", 0.999, "AdamW", ge=0, lt=1)
    adam_epsilon: float = key("training", 1e-8, "AdamW", gt=0)
    max_grad_norm: float = key("training", 1.0, "clip the gradient's norm to this; 0 never clips", ge=0)
    neftune_noise_alpha: float | None = key("training", None, "NEFTune: scale of the noise on the embeddings; 5 to 15",
                                            SHOWN, gt=0)
    label_smoothing_factor: float = key("training", 0.0, "share of each target spread over the vocabulary", ("sft",),
                                        ge=0, lt=1)
    gradient_checkpointing: bool = key("training", False, "recompute activations: less memory for a second forward")
    lora_r: int = key("training", 16, "rank of the adapters", ge=1)
    lora_alpha: float = key("training", 32, "the update is scaled by alpha / r", gt=0)
    lora_dropout: float = key("training", 0.0, "dropout before the adapters", ge=0, lt=1)
    lora_target_modules: list[str] = key("training", ["all-linear"], "layers that get an adapter, by name")
    use_rslora: bool = key("training", False, "scale the adapters by alpha / sqrt(r), so that a high rank learns as "
                                              "fast as a low one")
    use_dora: bool = key("training", False, "train each row's length apart from its direction: better at low rank, "
                                            "slower")
    seed: int = key("training", 42, "of everything random", ge=0)

    # -- preferences
    ranked_pairs: Literal["all", "best_worst"] = key("preference", "all", "ranked answers: compare every two, or the "
                                                     "best with the worst", only=PAIRS)
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust", "simpo"] = key("preference", "sigmoid", "which loss of the "
                                                                           "margin", only=DPO)
    beta: float | None = key("preference", None, "how hard a change of the policy counts; default 0.1, simpo 2",
                             only=(*DPO, "orpo", "kto"), gt=0)
    label_smoothing: float = key("preference", 0.0, "share of preferences taken to be wrong", only=DPO, ge=0,
                                 lt=0.5)
    simpo_gamma: float = key("preference", 1.0, "margin that simpo asks for", only=DPO, ge=0)
    rpo_alpha: float = key("preference", 0.0, "weight of the better answer's own loss, per token, beside the margin's",
                           only=DPO, ge=0)
    center_rewards_coefficient: float = key("preference", 0.0, "pulls the scores of a pair towards a sum of 0",
                                            only=("reward",), ge=0)

    desirable_weight: float = key("preference", 1.0, "weight of good answers", only=("kto",), ge=0)
    undesirable_weight: float = key("preference", 1.0, "weight of bad answers", only=("kto",), ge=0)

    # -- run
    output_dir: str | None = key("run", None, "run folder; default: a fresh runs/NAME")
    processes: int = key("run", 1, "processes of this machine that compute the run, one per GPU: calls torchrun", ge=1)
    max_restarts: int = key("run", 0, "how often a lost process may restart all of them from the last checkpoint", ge=0)
    resume: bool = key("run", False, "go on from the last checkpoint of output_dir")
    allow_changes: bool = key("run", False, "under resume: go on although something changed that breaks exactness")
    save_steps: int | None = key("run", None, "updates between checkpoints; default: only on Ctrl-C", ge=1)
    save_total_limit: int = key("run", 2, "checkpoints kept", ge=1)
    eval_steps: int | None = key("run", None, "updates between validations; default: every epoch", ge=1)
    early_stopping_patience: int | None = key("run", None, "validations without a better loss before training ends; "
                                                           "the best model is exported", ge=1)
    logging_steps: int = key("run", 1, "updates per line of metrics in report_to and on a plain terminal", ge=1)
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = key("run", [], "also log to these libraries")

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise ValueError("a number; true and false (in YAML also yes, no, on, off) are none")
        return value

    @field_validator("data", "eval_data", "report_to", "lora_target_modules", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if isinstance(value, str | os.PathLike):
            return [os.fspath(value)]
        return [os.fspath(v) if isinstance(v, os.PathLike) else v for v in value] if isinstance(
            value, list | tuple) else value

    @field_validator("template_date", mode="before")
    @classmethod
    def _date(cls, value: Any) -> Any:
        text = value.isoformat() if isinstance(value, datetime.date) else value  # unquoted in YAML it is one
        try:
            return text if text is None else datetime.date.fromisoformat(text).isoformat()
        except (ValueError, TypeError):
            raise ValueError("a date such as 2025-01-31") from None

    @field_validator("columns", mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        if isinstance(value, str):
            pairs = [p.partition("=") for p in value.split(",") if p.strip()]
            if not all(eq and k.strip() and v.strip() for k, eq, v in pairs):
                raise ValueError("expected part=column pairs, such as prompt=question,response=answer")
            return {k.strip(): v.strip() for k, _, v in pairs}
        return value

    @field_validator("enable_thinking", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return str(value).lower() if isinstance(value, bool) else value

    @field_validator("model", "architecture", "output_dir", "tokenizer", "chat_template", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value  # a Run is one too

    @model_validator(mode="after")
    def _together(self) -> Settings:
        facts = FACTS[self.objective]
        least = facts.atom * self.longest
        if "num_train_epochs" not in self.model_fields_set:
            self.__dict__["num_train_epochs"] = facts.epochs
        if "pack_tokens" not in self.model_fields_set:  # one key is enough for longer rows
            self.__dict__["pack_tokens"] = max(self.pack_tokens, least)
        if self.is_sampled and self.pack_tokens != "auto" and self.pack_tokens < least:
            twice = "twice " if facts.atom == 2 else ""
            raise ValueError(f"pack_tokens ({self.pack_tokens}) must be at least {twice}max_length + max_new_tokens "
                             f"({least}): " + ("two answers to a prompt share a pack" if twice else
                                               "a prompt and its answer are never split over packs"))
        if self.pack_tokens != "auto" and self.pack_tokens < least:
            raise ValueError(f"pack_tokens ({self.pack_tokens}) must be at least " + (
                f"max_length ({self.max_length}): a sequence is never split over packs" if least == self.max_length else
                f"twice max_length ({self.max_length}): two sequences of a row share a pack"))
        if self.eval_data and self.eval_split:
            raise ValueError("eval_data and eval_split exclude each other: drop one")
        if not self.data:
            raise ValueError("data is empty: name at least one file")
        if self.method == "qlora" and self.dtype == "float64":
            raise ValueError("method: qlora computes in bfloat16 or float32, not float64: drop dtype")
        self._no_idle_key()
        return self

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained on a frozen base."""
        return self.method != "full"

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that may be trained on; `max_length` bounds a prompt that will be answered."""
        return self.max_length + (self.max_new_tokens if self.is_sampled else 0)

    def _no_idle_key(self) -> None:
        """Nothing that a user set is ignored: a key that would change nothing beside another is an error."""
        for name in type(self).model_fields:
            if self._is_set(name) and self.objective not in (verbs := users_of(name)):
                raise ValueError(f"{name} changes nothing in `posttrain {self.objective}`: drop it (it belongs to "
                                 f"{', '.join(verbs)})")
        if self.is_sampled and (wrong := idle_beside_sampling(self, self._is_set)):
            raise ValueError(wrong)
        if not self.adapts and (idle := [k for k in type(self).model_fields if k.startswith(("lora_", "use_")) and
                                         self._is_set(k)]):
            raise ValueError(f"{', '.join(idle)}: nothing to adapt under method: full; drop, or set method: lora")
        if self.objective == "kto" and self.batch_size == 1:
            raise ValueError("kto holds each prompt against another row's answer: set batch_size to 2 or more")
        if self.objective == "kto" and not self.desirable_weight and not self.undesirable_weight:
            raise ValueError("desirable_weight and undesirable_weight are both 0, so nothing is learnt: raise one")
        if self._is_set("simpo_gamma") and self.loss_type != "simpo":
            raise ValueError(f"simpo_gamma changes nothing under loss_type: {self.loss_type}; drop it")
        if self.label_smoothing and self.loss_type not in ("sigmoid", "robust"):
            raise ValueError(f"label_smoothing changes nothing under loss_type: {self.loss_type}; drop it")
        if self.loss_type == "robust" and not self.label_smoothing:
            raise ValueError("loss_type: robust is sigmoid where no preference is wrong: set label_smoothing")
        if self.architecture and self._is_set("model"):
            raise ValueError("model and model_config exclude each other: drop one")
        if self.warmup_steps is not None and self._is_set("warmup_ratio"):
            raise ValueError("warmup_ratio and warmup_steps exclude each other: drop one")
        if self.max_restarts and self.processes == 1:
            raise ValueError("max_restarts restarts the processes of a run: set processes, or give it to torchrun")
        if self.allow_changes and not self.resume:
            raise ValueError("allow_changes changes nothing without resume: drop it, or set resume")
        if not self.eval_data and not self.eval_split:
            for name in ("eval_steps", "early_stopping_patience"):
                if self._is_set(name):
                    raise ValueError(f"{name} has no rows to validate on: set eval_data or eval_split")

    def _is_set(self, name: str) -> bool:
        """Whether a key has another value than its default; a run's config.yaml names every key."""
        return getattr(self, name) != type(self).model_fields[name].default


def key_names(objective: str | None = None) -> list[str]:
    """Names as the user writes them (`model_config`, not the field's own `architecture`); of an objective its own."""
    return [f.alias or name for name, f in Settings.model_fields.items()
            if objective not in FACTS or objective in users_of(name)]


def users_of(name: str) -> tuple[str, ...]:
    """The objectives that a field of Settings is for."""
    every = get_args(Settings.model_fields["objective"].annotation)
    return tuple((Settings.model_fields[name].json_schema_extra or {}).get("only") or every)


def unknown_key(name: str, where: str, names: list[str], verb: str = "VERB") -> UserError:
    """The error for a key that does not exist: what a peer's key becomes, or the nearest name, among those it may be
    (test_arguments.py::test_a_verb_never_suggests_what_it_does_not_take)."""
    if hint := PEER_KEYS.get(name):
        meant = re.search(r"\buse (\w+)", hint)
        fix = hint if meant is None or meant[1] in names else f"nothing in `posttrain {verb}` plays its part; drop it"
    else:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or [k for k in names if k.startswith(name)][:1]
        fix = f"did you mean `{near[0]}`?" if near else f"see `posttrain {verb} --help` for every key"
    return UserError(f"unknown key `{name}`", where=where, fix=fix)


def read_config(path: str | Path) -> dict[str, Any]:
    """A YAML file of settings as a dict; a file that cannot be read or is no mapping is a UserError."""
    try:
        loaded = yaml.load(Path(path).read_text("utf-8"), Loader=_Loader) or {}
    except OSError as e:
        raise UserError("the settings file cannot be read", where=str(path), found=e.strerror or str(e),
                        fix="name an existing YAML file") from None
    except (yaml.YAMLError, ValueError) as e:  # ValueError: bytes that are no UTF-8, a date that is none
        raise UserError("the settings file is not valid YAML", where=str(path), found=str(e),
                        expected="UTF-8 text, lines of `key: value`") from None
    if not isinstance(loaded, dict):
        raise UserError("the settings file holds no keys", where=str(path), found=type(loaded).__name__,
                        expected="lines of `key: value`")
    return loaded


def make_settings(values: dict[str, Any], where: dict[str, str] | None = None) -> Settings:
    """Settings from plain values; every problem is collected into one SettingsError. `where` says where each stood."""
    where = where or {}
    names = set(key_names())
    own = key_names(values.get("objective"))
    errors = [unknown_key(k, where.get(k, "settings"), own, values.get("objective") or "VERB")
              for k in values if k not in names]
    known = {k: v for k, v in values.items() if k in names}
    wrong: set[str] = set()
    while True:
        try:
            settings = Settings.model_validate({k: v for k, v in known.items() if k not in wrong})
        except ValidationError as e:
            found = _problems(e, where, wrong)
        else:
            break
        errors += [error for _, error in found]
        more = {name for name, _ in found} - wrong - {""}
        if not more:  # only keys that do not go together are left
            break
        wrong |= more  # once more without them: keys that do not go together are judged only when each is valid
    if errors:
        raise SettingsError(errors)
    return settings


def _problems(e: ValidationError, where: dict[str, str], wrong: set[str]) -> list[tuple[str, UserError]]:
    """(key, error) of each wrong value; the key is '' where valid keys do not go together."""
    found: dict[str, UserError] = {}
    for problem in e.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        if name and name not in found:  # a union reports once per member
            found[name] = UserError(f"`{name}` has no valid value", where=where.get(name, "settings"),
                                    found=repr(problem.get("input")), expected=message)
        elif not name and not any(key in message for key in wrong):
            found[""] = UserError(message, where="settings")
    return list(found.items())


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: 2e-5 is a number, as everybody who writes a learning rate expects."""


_Loader.yaml_implicit_resolvers = {k: [r for r in v if r[0] != "tag:yaml.org,2002:float"]
                                   for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(
    r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(?:inf|nan))$"),
    list("-+0123456789."))


def dump_config(settings: Settings) -> str:
    """The settings as a YAML file that is itself a valid input; keys that its objective does not use are left out."""
    idle = {name for name in Settings.model_fields if settings.objective not in users_of(name)}
    return yaml.safe_dump(settings.model_dump(by_alias=True, exclude=idle), sort_keys=False, allow_unicode=True)
