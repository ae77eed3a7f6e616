"""The page of a run and of an evaluation: complete, escaped, and nothing on it asks the network for anything."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

import posttrain
from posttrain.eval.curves import POINTS, curve, scale, thinned
from posttrain.eval.figures import NAMES, number
from posttrain.eval.page import embedded, noted, rows_table
from posttrain.eval.report import run_page, write_report
from posttrain.eval.report_eval import sections, write_evaluation

pytestmark = pytest.mark.usefixtures("in_process_module")
EVIL = "</script><script>alert('x')</script><img src=//evil.example/x onerror=alert(1)>"


class Page(HTMLParser):
    """Elements with their attributes, the text outside scripts and styles, and whether all of them are closed."""

    VOID = {"meta", "link", "input", "br"}

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.words, self.open = [], "", []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words += data


def check_stands_by_itself(page: str) -> Page:
    found = Page(page)
    assert not found.open
    for tag, attrs in found.elements:
        assert tag not in ("img", "iframe", "object", "video", "audio"), tag
        assert not any(name.startswith("on") for name in attrs), attrs
        assert all(v.startswith(("#", "data:")) for n, v in attrs.items() if n in ("href", "src")), attrs
    assert "default-src 'none'" in page and "@import" not in page and "url(" not in page
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.S)
    assert all("alert" not in s or "\\u003c" in s for s in scripts)
    return found


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """Rows that are malicious markup, trained for a few updates."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "evil.jsonl").write_text("".join(json.dumps({"prompt": f"{EVIL} {i}", "completion": EVIL}) + "\n"
                                               for i in range(24)))
    return posttrain.sft(model=tiny_model, data=str(folder / "evil.jsonl"), method="full", batch_size=4, max_steps=6,
                         eval_split=0.2, eval_steps=3, output_dir=folder / EVIL.replace("/", "")[:40]).path


def test_a_run_leaves_its_report(run):
    page = (run / "report.html").read_text("utf-8")
    found = check_stands_by_itself(page)
    for part in ("Findings", "too few updates", "Before and after", "Curves", "Answers during training", "Ledger",
                 "Data", "Which tokens are trained", "Memory", "at most in the run", "Settings", "learning_rate",
                 "the default of full fine-tuning", "Environment", "torch", "keys at their defaults", "SHA-256"):
        assert part in found.words, part
    assert EVIL in found.words and "alert('x')" not in page.replace("alert(&#x27;x&#x27;)", "").split("<script>")[0]
    assert page.count("<svg") == 4 and page == run_page(run)


def test_an_interrupted_or_old_run_has_a_page_too(run, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run / "config.yaml", bare)
    assert "not begun" in check_stands_by_itself(write_report(bare).read_text("utf-8")).words


def figure(value, gap=None):
    made = {"value": value, "low": value, "high": value}
    return made | ({"difference": {"value": gap, "low": gap, "high": gap, "p": 0.001}} if gap is not None else {})


def test_an_evaluation_page(tmp_path):
    models = [{"model": "a", **{n: figure(1.0) for n in NAMES}},
              {"model": EVIL, **{n: figure(2.0, 1.0) for n in NAMES}}]
    models[1]["bleu"] = {"value": None, "low": None, "high": None, "reason": "because <b>"}
    result = {"models": models, "rows": {"read": 3, "used": 2, "with_answers": 2, "dropped": {"too <long>": 1}},
              "interval": {"how": "h", "resamples": 9}, "difference": {"to": "a", "test": "t"},
              "gate": {"passes": False, "checks": [{
                  "model": EVIL, "data": "g", "figure": "perplexity", "before": 1.0, "after": 2.0, "drop": 1.0,
                  "max_forgetting": 0.1, "passes": False}]}, "general": []}
    talk = {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": EVIL}], "reference": "r"}
    same = [{"model": "a", "answer": "s", "stopped": True, "exact": False}] * 2
    other = [same[0], {"model": EVIL, "answer": EVIL, "stopped": False, "exact": True}]
    answers = [{"data": "d", "row": f"x:{n}", "models": m, **talk} for n, m in enumerate((same, other))]
    found = check_stands_by_itself(write_evaluation(tmp_path, result, answers).read_text("utf-8"))
    for part in ("1 of 2 rows", "never stopped", "The gate is closed", "because <b>", "too <long>", EVIL):
        assert part in found.words, part
    kept = [name for name, body in sections(result, answers) if body]
    assert kept == ["Figures", "Forgetting gate", "Changed answers"]
    colours = [attrs.get("class") for tag, attrs in found.elements if tag == "span"]
    assert colours.count("bad") >= 4  # loss, perplexity, bits per byte, repeats went up


def test_axes_and_thinning():
    assert scale(0.0, 1.0) == (0.0, 1.0, 0.5) and scale(0.2, 3.9) == (0.0, 4.0, 1.0)
    low, high, step = scale(5.0, 5.0)
    assert low < 5.0 < high and step > 0
    many = thinned({i: float(i) for i in range(1, 5001)})
    assert len(many) == POINTS and max(many) == 5000 and many[10] == 5.5
    assert thinned({1: 2.0}) == {1: 2.0}


def test_a_curve_holds_its_values():
    training = {1: 3.0, 2: 2.0, 3: float("nan")}
    made = curve("Loss", {"training": training, "validation": {2: 2.5}}, frozenset({"validation"}))
    data = json.loads(re.search(r'application/json">(.*?)</script>', made)[1])
    assert data["names"] == ["training", "validation"] and data["rows"] == [[1, 3.0, None], [2, 2.0, 2.5]]
    assert made.count("<polyline") == 1 and made.count("<circle") == 1 and curve("x", {"a": {}}) == ""


def test_nothing_ends_a_script_and_numbers_are_read_easily():
    assert "<" not in embedded({"a": "</script>"}) and json.loads(embedded(["<"])) == ["<"]
    narrow = rows_table(["a", "empty", "c"], [["x" * 25, "", 0], ["y", None, 1]])
    assert "empty" not in narrow and narrow.count("<td") == 4 and narrow.count('class="long"') == 1
    assert noted("<v>", "why") == "<span>&lt;v&gt;</span><small>why</small>"
    assert rows_table(["a"], []) == "" and "&lt;b&gt;" in rows_table(["a"], [["<b>"]])
    assert number("exact_match", 0.5) == "50.0%" and number("bleu", -1, True) == "-1.000"
    assert number("perplexity", 1234.5) == "1,234" and number("bleu", None) == "?"
