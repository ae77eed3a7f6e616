"""Whole PPO and GRPO runs from Python: what they leave, that they resume exactly, and what stops them."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

import posttrain
from posttrain.core.errors import UserError

pytestmark = pytest.mark.usefixtures("in_process")
CLOCK = ("seconds", "tokens_per_second", "rollout_seconds", "reward_seconds", "collection_seconds")
KEYS = {"reward", "reward_std", "kl", "k1", "k3", "kl_coef", "entropy", "answer_tokens", "stop_rate", "ratio",
        "approx_kl", "clip_fraction", "sampler_gap", "grad_norm", "learning_rate", "loss", "rollout_seconds"}


@pytest.fixture
def train(sampled_run):
    return sampled_run


def timeless(run):
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in run.metrics]


@pytest.mark.parametrize("verb", ["ppo", "grpo"])
def test_the_folder_of_a_run(train, verb):
    run = train(verb, **({"eval_split": 0.2} if verb == "ppo" else {}))
    assert run.status["status"] == "finished" and len(run.metrics) == (12 if verb == "ppo" else 6)
    first = run.metrics[0]
    assert first.keys() >= KEYS | ({"explained_variance", "value_loss", "policy_loss"} if verb == "ppo" else
                                   {"idle_groups"})
    assert first["ratio"] == 1.0 and first["kl"] == 0.0 and run.metrics[-1]["kl"] > 0
    assert first["sampler_gap"] < 1e-4
    sampled = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert sampled[0].keys() == {"step", "prompt", "answer", "score", "stopped", "origin"}
    assert {s["step"] for s in sampled} == ({1, 5, 9} if verb == "ppo" else {1, 3, 5})
    assert sampled[0]["score"] == sampled[0]["answer"].count("e") - 0.1 * len(sampled[0]["answer"])
    adapter = load_file(run.model_path / "adapter_model.safetensors")
    assert not [n for n in adapter if "critic" in n], "only the actor is exported"
    assert {p.name for p in run.model_path.iterdir()} == {
        "README.md", "base.json", "adapter_config.json", "adapter_model.safetensors", "generation_config.json",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert run.ledger["rows"]["read"] == run.ledger["rows"]["trained"] == (19 if verb == "ppo" else 24)
    if verb == "ppo":
        assert run.metrics[-1]["eval_reward"] == -run.metrics[-1]["eval_loss"] == -run.status["eval_loss"]
    assert isinstance(run.chat("say red then cat", max_new_tokens=4), str)


def test_the_folder_of_an_online_dpo_run(train, fn):
    """DPO's metrics beside those of a collection; a collection without a pair makes no update and says so."""
    run = train("online_dpo", eval_split=0.2)
    first, last = run.metrics[0], run.metrics[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["kl"] == 0 and last["kl"] != 0
    assert first.keys() >= {"accuracy", "margin", "reward_chosen", "reward_rejected", "idle_groups", "reward",
                            "entropy", "answer_tokens", "stop_rate", "sampler_gap"}
    assert not first.keys() & {"ratio", "clip_fraction", "kl_coef", "value"} and first["sampler_gap"] < 1e-4
    assert last["eval_reward"] == -last["eval_loss"] and len(run.metrics) == 6
    sampled = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert [s["origin"] for s in sampled[:2]] == [sampled[0]["origin"]] * 2, "both answers to a prompt"
    idle = train("online_dpo", name="idle", reward=f"{fn}:same", max_steps=2)
    assert [(m["loss"], m["idle_groups"]) for m in idle.metrics] == [(None, 1.0)]
    assert idle.status["status"] == "finished"


@pytest.mark.parametrize("verb", ["ppo", "grpo", "online_dpo"])
def test_a_resumed_run_is_the_run(train, verb, tmp_path):
    extra = {"kl_target": 0.5} if verb == "ppo" else {}
    whole = train(verb, **extra)
    cut, at = tmp_path / "cut", 4
    shutil.copytree(whole.path, cut)
    shutil.rmtree(cut / "model")
    for checkpoint in (cut / "checkpoints").iterdir():
        if int(checkpoint.name) > at:
            shutil.rmtree(checkpoint)
    (cut / "run.json").write_text('{"status": "running", "step": 5}')
    again = getattr(posttrain, verb)(resume=True, output_dir=cut)
    assert timeless(again) == timeless(whole)
    one, two = (load_file(r.model_path / "adapter_model.safetensors") for r in (again, whole))
    assert all(torch.equal(one[n], two[n]) for n in two)
    assert (cut / "samples.jsonl").read_text() == (whole.path / "samples.jsonl").read_text()
    if verb == "ppo":
        assert len({line["kl_coef"] for line in whole.metrics}) > 1, "the coefficient moves, and is resumed"


def test_the_checkpoint_holds_both_and_answers(train):
    run = train()
    one, two = (load_file(c / "weights.safetensors") for c in run.checkpoints[:2])
    for part in (".default.", ".critic.", "heads.value"):
        names = [n for n in one if part in n]
        assert names and any(not torch.equal(one[n], two[n]) for n in names), part
    assert isinstance(posttrain.load(run.checkpoints[0]).chat("say red", max_new_tokens=4), str)


def test_an_sft_adapter_is_its_own_reference(train, tiny_model, rows, tmp_path):
    """Where SFT is an adapter it is continued, and held to a frozen copy of itself, not to the bare base."""
    sft = posttrain.sft(model=tiny_model, data=str(rows), max_steps=3, batch_size=8, dtype="float32", max_length=64,
                        learning_rate=3e-3, output_dir=tmp_path / "sft")
    run = train(model=sft.model_path, max_steps=8, name="on_adapter")
    assert run.metrics[0]["kl"] == 0.0 and run.metrics[-1]["kl"] > 0
    before, after = (load_file(r.model_path / "adapter_model.safetensors") for r in (sft, run))
    assert before.keys() == after.keys() and any(not torch.equal(before[n], after[n]) for n in before)
    config = json.loads((run.model_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model)


@pytest.mark.parametrize("verb", ["ppo", "grpo"])
def test_an_answer_without_a_verdict_is_counted(train, fn, verb):
    run = train(verb, reward=f"{fn}:unsure", max_steps=4)
    told = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert 0 < run.metrics[0]["unjudged"] < 1 and run.metrics[0]["reward"] > 0
    assert all((line["score"] is None) == ("e" in line["answer"]) for line in told)
    with pytest.raises(UserError) as e:
        train(verb, reward=f"{fn}:mute", name="mute", eval_split=0.2)
    assert str(e.value).startswith(
        f"error: the reward has no verdict on any answer of a collection\n  where:    reward\n  found:    {fn}:mute: ")


@pytest.mark.parametrize(("name", "said"), [
    ("nan", "the reward function returned something that is no finite number"),
    ("raises", "the reward function failed")])
def test_a_bad_reward_stops_the_run(train, fn, name, said):
    with pytest.raises(UserError, match=said):
        train(reward=f"{fn}:{name}")


def test_a_guard_writes_its_diagnosis(train, tmp_path, monkeypatch):
    from posttrain.train import guards

    tripped = guards.Guard("it blew up", "kl {kl:.3f}", "less", "lower learning_rate",
                           lambda now, first: now["kl"] > 0.05)
    monkeypatch.setattr(guards, "GUARDS", (tripped,))
    with pytest.raises(UserError, match="it blew up"):
        train()
    run = posttrain.app.run.Run(tmp_path / "run")
    told = json.loads((run.path / "diagnosis.json").read_text())
    assert run.status["status"] == "failed" and told["message"] == "it blew up"
    assert told["checkpoint"] == str(run.checkpoints[-1]) and told["last_updates"][-1] == run.metrics[-1]
    assert told["fix"].startswith("lower learning_rate")


@pytest.mark.parametrize(("values", "said"), [
    ({"reward": None}, "nothing says what a good answer is"),
    ({"method": "full"}, "method: full would need a model of its own for each role"),
    ({"lora_dropout": 0.1}, "lora_dropout changes nothing: dropout is off where a policy is compared with itself"),
    ({"kl_coef": 0.0, "kl_target": 1.0}, "kl_target scales kl_coef, and 0 stays 0"),
    ({"train_on": "last"}, "train_on changes nothing in `posttrain ppo`"),
    ({"pack_tokens": 70}, r"pack_tokens \(70\) must be at least max_length \+ max_new_tokens \(72\)"),
    ({"gae_lambda": 0.5, "verb": "grpo"}, "gae_lambda changes nothing in `posttrain grpo`"),
    ({"kl_coef": 0.5, "verb": "online_dpo"}, "kl_coef changes nothing in `posttrain online_dpo`"),
    ({"pack_tokens": 100, "verb": "online_dpo"}, r"pack_tokens \(100\) must be at least twice max_length \+ "
     r"max_new_tokens \(144\): two answers to a prompt share a pack")])
def test_what_does_not_go_together(train, values, said):
    with pytest.raises(UserError, match=said):
        train(**values)


@pytest.fixture
def preferences(tmp_path):
    path = tmp_path / "preferences.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {a}", "chosen": f"{a}.", "rejected": f"no {a}"}) + "\n"
                            for a in ("red", "green", "blue", "one", "two", "three", "cat", "dog")))
    return path


@pytest.fixture(scope="module")
def tuned(tiny_model, rows, tmp_path_factory):
    """A whole model whose answers end."""
    return posttrain.sft(model=tiny_model, data=str(rows), method="full", max_steps=40, batch_size=16, dtype="float32",
                         learning_rate=1e-2, max_length=64, output_dir=tmp_path_factory.mktemp("tuned") / "run")


def rescored(run, reward, first=1):
    """(scores in samples.jsonl, those that the reward model gives the same answers on its own)."""
    from posttrain.core.sequence import Row
    from posttrain.data.gather import up_to_the_stop
    from posttrain.data.render import Renderer
    from posttrain.data.tokenizer import load_tokenizer
    from posttrain.model.resolve import resolve_model
    from posttrain.model.reward import open_scorer

    ref = resolve_model(reward.path)
    scorer, renderer = open_scorer(ref, dtype="float32"), Renderer(load_tokenizer(ref.tokenizer))
    told = [s for s in map(json.loads, (run.path / "samples.jsonl").read_text().splitlines()) if s["stopped"]]
    rows = [Row("conversation", "x:1", messages=[{"role": "user", "content": s["prompt"]},
                                                 {"role": "assistant", "content": s["answer"]}]) for s in told]
    made = [up_to_the_stop(m.sequences[0]) for m in renderer.render(rows)]
    return [s["score"] for s in told], scorer(made)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_scores_the_answers(train, preferences, tuned, tmp_path, method):
    """As an adapter on the policy's base, or as a model of its own: the scores are those of the model by itself."""
    reward = posttrain.reward(model=tuned.model_path, data=str(preferences), method=method, max_steps=3, batch_size=4,
                              dtype="float32", learning_rate=1e-2, max_length=64, output_dir=tmp_path / "reward")
    run = train(model=tuned.model_path, reward=str(reward.path), max_steps=4, max_new_tokens=30)
    told, own = rescored(run, reward)
    assert len(told) and told == pytest.approx(own, abs=1e-4) and len(set(told)) > 1


def test_a_reward_model_with_another_tokenizer(train, preferences, make_model, tuned, tmp_path):
    """Answers reach it as text, in its own tokens."""
    other = make_model("other", vocab_size=700)
    reward = posttrain.reward(model=other, data=str(preferences), max_steps=3, batch_size=4, dtype="float32",
                              chat_template="chatml", learning_rate=1e-2, max_length=64, output_dir=tmp_path / "reward")
    run = train(model=tuned.model_path, reward=str(reward.path), max_steps=4, max_new_tokens=30)
    told, own = rescored(run, reward)
    assert len(told) and told == pytest.approx(own, abs=1e-4)


def test_a_reward_head_of_another_shape(train, preferences, tiny_model, tmp_path):
    from safetensors.torch import save_file

    reward = posttrain.reward(model=tiny_model, data=str(preferences), max_steps=1, batch_size=4, dtype="float32",
                              max_length=64, output_dir=tmp_path / "reward")
    file = reward.model_path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(k for k in tensors if k.endswith("score.weight"))
    save_file(tensors | {key: torch.zeros(1, 9)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError) as e:
        train(reward=str(reward.path))
    assert "the reward model's head does not fit its base" in str(e.value) and "expected: [1, 64]" in str(e.value)


def test_a_critic_of_another_shape(train, tmp_path):
    """A checkpoint whose critic is smaller would be spread over the model's: it is refused, and so is its adapter."""
    from safetensors.torch import save_file

    from posttrain.model.checkpoint import sha256

    run, cut = train(max_steps=8), tmp_path / "cut"
    for name, found in (("heads.value.weight", [1, 1]), ("critic", [4, 64])):
        shutil.rmtree(cut, ignore_errors=True)
        shutil.copytree(run.path, cut)
        (cut / "run.json").write_text('{"status": "running", "step": 8}')
        file, manifest = cut / "checkpoints" / "4" / "weights.safetensors", cut / "checkpoints" / "4" / "manifest.json"
        tensors = load_file(file)
        key = next(n for n in tensors if name in n and tensors[n].shape[-1] == 64)
        save_file(tensors | {key: torch.zeros(found)}, file)
        facts = json.loads(manifest.read_text())
        facts["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        manifest.write_text(json.dumps(facts))
        with pytest.raises(UserError) as e:
            posttrain.ppo(resume=True, output_dir=cut)
        assert str(e.value) == (
            f"error: a weight of the checkpoint has another shape than the model's\n  where:    {key}\n"
            f"  found:    {found}\n  expected: {list(tensors[key].shape)}\n"
            "  fix:      use it with the model and the settings (lora_r, …) that its run began with")


def test_answers_that_never_end(train):
    """They cost what missing_eos_penalty says and are told; no token of theirs is a stop."""
    run = train(max_new_tokens=2, max_steps=4, missing_eos_penalty=3.0)
    told = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert run.metrics[0]["stop_rate"] == 0 and run.metrics[0]["answer_tokens"] == 2
    assert not any(line["stopped"] for line in told)


@pytest.mark.parametrize("verb", ["ppo", "grpo"])
def test_rows_without_a_prompt(train, verb, tmp_path):
    for name, row, said in (("text", {"text": "prose"}, "error: the rows have no prompt to answer\n"),
                            ("odd", {"a": 1, "b": 2}, "error: no known format has these columns\n"),
                            ("silent", {"messages": [{"role": "assistant", "content": "so."}]}, "error: ")):
        (path := tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 4)
        with pytest.raises(UserError) as e:
            train(verb, name=name, data=str(path))
        assert said in str(e.value) and str(path) in str(e.value), str(e.value)
