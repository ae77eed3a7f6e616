"""What `--reward` may name, and what is said of what it may not."""

import pytest

from posttrain.app.rewards import reward_function
from posttrain.core.errors import UserError

ROWS = [{"answer": "It is 1,200."}, {"answer": "so 3+4=7 #### 7"}]


def error_of(spec) -> str:
    with pytest.raises(UserError) as e:
        reward_function(spec)
    return str(e.value)


def test_exact():
    assert reward_function("exact")(["", ""], [" It is 1,200. ", "7"], ROWS) == [1.0, 0.0]


def test_gsm8k():
    gsm8k = reward_function("gsm8k")
    assert gsm8k(["", ""], ["I count 1200", "3+4 is 7.0 apples"], ROWS) == [1.0, 1.0]
    assert gsm8k(["", ""], ["first 1200, then 5", "none"], ROWS) == [0.0, 0.0]
    with pytest.raises(UserError, match="a row's answer holds no number to compare with"):
        gsm8k([""], ["5"], [{"answer": "five"}])
    with pytest.raises(UserError) as e:
        gsm8k([""], ["5"], [{"question": "?"}])
    assert "a row has no answer to compare with\n  where:    reward\n  found:    question" in str(e.value)


def test_regex_and_length():
    assert reward_function(r"regex:\d+$")(["", ""], ["in 1999", "1999 it was"], [{}, {}]) == [1.0, 0.0]
    assert reward_function("length:4")(["", "", "", ""], ["abcd", "ab", "", "abcdefghi"], [{}] * 4) == [1, 0.5, 0, 0]
    assert "the reward's pattern is no regular expression" in error_of("regex:(")
    assert "the reward's pattern is empty" in error_of("regex:")
    assert "the reward does not say which length" in error_of("length:short")


def test_a_function_in_a_file(tmp_path):
    (tmp_path / "beside.py").write_text("BONUS = 2.0\n")
    file = tmp_path / "fn.py"
    file.write_text("from beside import BONUS\n\n\ndef score(prompts, answers, rows):\n"
                    "    return [BONUS * len(a) for a in answers]\n\n\ndef other(prompts, answers, rows):\n"
                    "    return [0.0 for _ in answers]\n")
    assert reward_function(f"{file}:score")([""], ["abc"], [{}]) == [6.0]
    assert reward_function(str(file))([""], ["abc"], [{}]) == [6.0]
    assert reward_function(f"{file}:other")([""], ["abc"], [{}]) == [0.0]
    assert error_of(f"{file}:missing") == (
        f"error: the file has no such reward function\n  where:    {file}\n  found:    score, other\n"
        f"  expected: a function missing(prompts, answers, rows)\n  fix:      --reward {file}:score")
    assert "the file of the reward function does not exist" in error_of(f"{tmp_path / 'no.py'}:score")
    file.write_text("import nothing_of_this_name\n")
    assert ("the file of the reward function cannot be imported" in (said := error_of(f"{file}:score"))
            and "ModuleNotFoundError: No module named 'nothing_of_this_name'" in said)


def test_a_model_is_left_to_the_models(tiny_model, tmp_path):
    assert reward_function("some-lab/reward-model") is None
    assert "there is no such model folder" in error_of("runs/of/nothing")
    assert "the reward gives words, not scores" in (said := error_of(str(tiny_model)))
    assert "fix:      train one with `posttrain reward`" in said


def test_what_asks_something_outside(monkeypatch):
    from posttrain.app.rewards import reward_of
    from posttrain.eval import sandbox
    from posttrain.eval.endpoint import Endpoint

    asked = []
    monkeypatch.setattr(sandbox, "check", lambda: asked.append(1))
    assert "the endpoint gave no answer" in error_of("judge:http://127.0.0.1:9/v1#m"), "nobody there is told at once"
    monkeypatch.setattr(Endpoint, "check", lambda self: None)
    assert reward_function("tests").patience is None and asked == [1], "a machine without the locks is told at once"
    judge = reward_function("judge:http://127.0.0.1:9/v1#m")
    assert judge.abstains and judge.endpoint.model == "m"
    for spec in ("judge", "judge:", "judge:runs/reward-1"):
        assert error_of(spec) == (
            f"error: the reward does not say where its judge is\n  where:    reward\n  found:    {spec}\n"
            "  expected: an OpenAI-compatible endpoint, as judge:http://localhost:8000/v1#qwen3\n"
            "  fix:      a reward model is named without judge:")
    assert "the endpoint gave no answer" in error_of("judge:http://127.0.0.1:9/v1"), "no model named: it is asked"
    with pytest.raises(UserError, match="unit tests are no figure of --reward") as e:
        reward_of("tests", None)
    assert e.value.fix == "posttrain eval MODEL --code FILE --allow_code_execution"


def test_a_rating_that_is_none_is_told_in_an_evaluation(monkeypatch):
    from posttrain.app import rewards
    from posttrain.core.sequence import Row

    def score(prompts, answers, rows):
        return [None if "x" in a else 5.0 for a in answers]
    score.abstains = True
    monkeypatch.setattr(rewards, "reward_function", lambda spec: score)
    row = Row("conversation", "f:1", messages=[{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}])
    assert rewards.reward_of("judge:http://x", None)([(row, "a"), (row, "x")]) == [
        5.0, "the judge's reply holds no clear rating"]


def test_nothing_and_almost():
    assert "nothing says what a good answer is\n  where:    reward\n  expected: fn.py:score, exact" in error_of(None)
    assert "there is no such reward" in (said := error_of("exacts")) and "did you mean exact?" in said
