"""The preference of `demo --align`: what its checker takes for polite, and the rows that teach it."""


import pytest

from posttrain.builtin import builtin_rows
from posttrain.eval.manners import POLITE_SHARE, is_preferred, plain, preference_rows, sft_rows


@pytest.mark.parametrize(("answer", "good", "bare"), [
    ("2+8=10. Glad to help.", True, "2+8=10."),
    ("2+8=10.", False, "2+8=10."),
    (" Glad to help.", False, ""),
    ("2+8=10. Glad to help. Glad to help.", False, "2+8=10. Glad to help."),
    ("Glad to help. 2+8=10.", False, "Glad to help. 2+8=10."),
    ("温度计是测量冷热的工具。乐意效劳。", True, "温度计是测量冷热的工具。"),
    ("温度计是测量冷热的工具。 Glad to help.", False, "温度计是测量冷热的工具。 Glad to help."),
    ("", False, "")])
def test_the_checker(answer, good, bare):
    assert is_preferred(answer) is good and plain(answer) == bare


def test_the_rows():
    rows = builtin_rows()
    made = list(sft_rows(rows))
    assert [plain(m["output"]) for m in made] == [r["output"] for r in rows]
    share = sum(is_preferred(m["output"]) for m in made) / len(rows)
    assert abs(share - 1 / POLITE_SHARE) < 0.02
    pairs = list(preference_rows(rows))
    assert all(is_preferred(p["chosen"]) and p["chosen"] != p["rejected"] for p in pairs)
    bare = sum(p["rejected"] == plain(p["chosen"]) for p in pairs) / len(pairs)
    assert abs(bare - 0.4) < 0.03
    wrong = [p for p in pairs if is_preferred(p["rejected"]) and plain(p["rejected"]) != plain(p["chosen"])]
    near = sum(plain(p["rejected"]).split()[0][:3] == p["chosen"].split()[0][:3] for p in wrong) / len(wrong)
    assert abs(len(wrong) / len(pairs) - 0.4) < 0.03 and near > 0.6, "most wrong answers begin as the right one does"
    assert list(preference_rows(rows)) == pairs, "the same rows every time"
