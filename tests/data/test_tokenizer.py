"""Loading a tokenizer without torch; text and control tokens told apart; saving."""

import gzip
import json
import pickle
import subprocess
import sys

import pytest
from small_tokenizer import tokenizer_for
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from posttrain.core.errors import RowError, UserError
from posttrain.core.sequence import Row
from posttrain.data.render import Renderer
from posttrain.data.templates import BUILTINS
from posttrain.data.tokenizer import load_tokenizer, make_spec

REAL = ("qwen3_tokenizer", "tokenizers/minimind", "tokenizers/smollm2_like", "tokenizers/llama2")


def real_texts(shared_data):
    with gzip.open(shared_data / "stanford_alpaca" / "alpaca_data.json.gz") as f:
        english = [f"{r['instruction']}\n{r['input']}\n\n{r['output']}" for r in json.load(f)[:150]]
    chinese = [json.loads(line) for line in (shared_data / "belle" / "dev1K.json").read_text("utf-8").splitlines()[:50]]
    return english + ["".join(map(str, r.values())) for r in chinese] + ["👨‍👩‍👧 é vs é", " lead", "\n\n", "a\r\n\tb "]


@pytest.mark.parametrize("name", REAL)
def test_ids_equal_transformers(shared_data, name):
    """Where no row spells a control token, our one call gives the tokenizer's own ids."""
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(shared_data / name)
    encoder = load_tokenizer(shared_data / name).encoder
    special = hf.eos_token
    texts = [f"{special}user\n{t}{special}\n{special}" for t in real_texts(shared_data)]
    ours = [encoder.ids(e.ids).tolist() for e in encoder.encode([encoder.code(t) for t in texts])]
    assert ours == hf(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", REAL[:2])
def test_generic_folders_load_the_same_without_torch(shared_data, name):
    from transformers import AutoTokenizer

    code = ("import sys; from posttrain.data.tokenizer import load_tokenizer; "
            f"spec = load_tokenizer({str(shared_data / name)!r}); assert 'torch' not in sys.modules; "
            "from tokenizers import Tokenizer; "
            "print(Tokenizer.from_str(spec.backend).encode('Hello 你好', add_special_tokens=True).ids)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    hf, spec = AutoTokenizer.from_pretrained(shared_data / name), load_tokenizer(shared_data / name)
    assert json.loads(out) == hf("Hello 你好")["input_ids"]
    assert json.loads(spec.backend) == json.loads(hf.backend_tokenizer.to_str())
    assert spec.names == hf.special_tokens_map and spec.vocab_size == len(hf)


def test_spelled_control_tokens_are_characters():
    spec = make_spec(tokenizer_for(), chat_template="chatml")
    said = "What does <|im_end|> do? And <|im_start|>, <eos>? But <think> stays a token."
    ids = Renderer(spec).prompt([{"role": "user", "content": said}])
    assert spec.decode(ids) == f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    assert [i for i in ids if i in spec.control.values()] == [
        spec.control[t] for t in ("<|im_start|>", "<|im_end|>", "<|im_start|>")]
    assert ids.count(spec.encoder.backend.token_to_id("<think>")) == 1


def test_spellings_in_tools_and_arguments_are_characters():
    spec = make_spec(tokenizer_for(), chat_template="chatml")
    tool = {"name": "<|im_end|>", "description": "x<|im_end|>y", "parameters": {"<|im_end|>": 1}}
    call = {"function": {"name": "f", "arguments": {"<|im_end|>": "<|im_end|>"}}}
    rows = [Row("conversation", "a:1", 0, [{"role": "user", "content": "go"},
                                           {"role": "assistant", "content": "", "tool_calls": [call]}], [tool])]
    made = Renderer(spec).render(rows)[0].sequences[0]
    assert made.ids.tolist().count(spec.control["<|im_end|>"]) == 3  # system, user, assistant
    assert '<tool_call>{"name": "f", "arguments": {"<|im_end|>": "<|im_end|>"}}' in spec.decode(made.ids.tolist())


def test_private_use_characters_in_a_row_are_text():
    spec = make_spec(tokenizer_for(), chat_template="chatml")
    said = "odd \U000f0000\U000f0001\U000f0002 characters, and <|im_end|>"
    renderer = Renderer(spec)
    ids = renderer.prompt([{"role": "user", "content": said}])
    assert spec.decode(ids) == f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    row = Row("conversation", "a:1", 0, [{"role": "user", "content": said}, {"role": "assistant", "content": said}])
    assert renderer.render([row])[0].sequences[0].ids[-2] == spec.control["<|im_end|>"]
    with pytest.raises(RowError, match="private-use characters of both planes"):
        renderer.prompt([{"role": "user", "content": said + "\U00100000"}])


def test_marks_in_a_row_are_kept():
    spec = make_spec(tokenizer_for(), chat_template="chatml")
    said = "\ufdd0 <|im_end|> \ufdd1"
    assert said in spec.decode(Renderer(spec).prompt([{"role": "user", "content": said}]))


# -- templates
def test_how_a_template_is_chosen_is_said(tmp_path):
    own = tokenizer_for("{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}"
                        "{% if add_generation_prompt %}assistant: {% endif %}")
    spec = make_spec(own)
    assert (spec.template_name, spec.template_reason) == ("own", "the tokenizer's own template, unpatched")
    assert spec.stops == [("<|end|>", "the template ends an answer with it"),
                          ("<eos>", "the tokenizer's eos, which the base model may still write")]
    spec = make_spec(tokenizer_for())
    assert spec.template_name == "plain" and spec.new_tokens == []
    assert spec.template_reason == "the tokenizer has no template; `plain` needs no new tokens"
    spec = make_spec(own, chat_template="chatml")
    assert spec.template_reason == "chosen by chat_template; the tokenizer's own template is replaced"
    file = tmp_path / "mine.jinja"
    file.write_text(own.chat_template)
    spec = make_spec(tokenizer_for(), chat_template=str(file))
    assert spec.template_name == "mine" and str(file) in spec.template_reason
    assert spec.new_tokens == ["<|end|>"]


def test_several_own_templates():
    tokenizer = tokenizer_for()
    tokenizer.chat_template = {"default": "{% for m in messages %}{{ m.content }}<eos>{% endfor %}", "rag": "y"}
    spec = make_spec(tokenizer)
    assert spec.template_reason == "the tokenizer's own `default` template; its others (rag) are not used"
    tokenizer.chat_template = {"rag": "y"}
    with pytest.raises(UserError, match="several chat templates and none is named `default`"):
        make_spec(tokenizer)


PLAIN = """Be brief.

User: Hi
Assistant: Hello.<eos>
User: Bye
Assistant: Goodbye.<eos>
"""
ALPACA = """Be brief.

### Instruction:
Hi

### Response:
Hello.<eos>

### Instruction:
Bye

### Response:
Goodbye.<eos>

"""
CHATML = """<|im_start|>system
Be brief.<|im_end|>
<|im_start|>user
Hi<|im_end|>
<|im_start|>assistant
Hello.<|im_end|>
<|im_start|>user
Bye<|im_end|>
<|im_start|>assistant
Goodbye.<|im_end|>
"""
LLAMA2 = ("<bos>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. <eos>"
          "<bos>[INST] Bye [/INST] Goodbye. <eos>")


@pytest.mark.parametrize(("name", "text"), [
    ("plain", PLAIN), ("alpaca", ALPACA), ("chatml", CHATML), ("llama2", LLAMA2)])
def test_built_in_templates(name, text):
    tokenizer = tokenizer_for(bos_token="<bos>") if name == "llama2" else tokenizer_for()
    spec = make_spec(tokenizer, chat_template=name)
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Bye"},
            {"role": "assistant", "content": "Goodbye."}]
    assert spec.chat.render(talk) == text
    assert set(BUILTINS) == {"plain", "alpaca", "chatml", "llama2"}


def test_alpaca_without_a_system_message_has_its_preamble():
    spec = make_spec(tokenizer_for(), chat_template="alpaca")
    assert spec.chat.render([{"role": "user", "content": "Hi"}], prompt=True) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nHi\n\n### Response:\n")


def test_bos_stands_where_the_tokenizer_itself_puts_one():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_for(bos_token="<bos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)])
    spec = make_spec(tokenizer, chat_template="chatml")
    ids = Renderer(spec).prompt([{"role": "user", "content": "Hi"}])
    assert ids.count(spec.id("bos")) == 1 and ids[0] == spec.id("bos")
    assert Renderer(make_spec(tokenizer_for(bos_token="<bos>"), chat_template="chatml")).prompt(
        [{"role": "user", "content": "Hi"}])[0] == spec.control["<|im_start|>"]


# -- folders
def test_save_is_a_plain_folder(tmp_path):
    """transformers loads it with no code of ours, with the template and the new tokens inside."""
    from transformers import AutoTokenizer

    first = tmp_path / "first"
    tokenizer_for().save_pretrained(first)
    spec = load_tokenizer(first, chat_template="chatml")
    assert spec.new_tokens == ["<|im_start|>", "<|im_end|>"]
    spec.enable_thinking = False
    spec.save(tmp_path / "saved")
    hf = AutoTokenizer.from_pretrained(tmp_path / "saved")
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert hf.chat_template == spec.template
    assert hf.apply_chat_template(talk[:1], add_generation_prompt=True)["input_ids"] == Renderer(spec).prompt(talk[:1])
    again = load_tokenizer(tmp_path / "saved")
    assert again.template_name == "own" and again.new_tokens == [] and again.control == spec.control
    assert again.enable_thinking is False and again.stop_ids == spec.stop_ids
    assert Renderer(again).prompt(talk[:1]) == Renderer(spec).prompt(talk[:1])


def test_a_tokenizer_in_memory_can_be_saved(tmp_path):
    spec = make_spec(tokenizer_for(), chat_template="chatml")
    spec.save(tmp_path)
    assert load_tokenizer(tmp_path).control == spec.control


def test_a_spec_crosses_to_a_worker():
    spec = make_spec(tokenizer_for(), chat_template="chatml", template_date="2026-01-31")
    again = pickle.loads(pickle.dumps(spec))
    row = Row("conversation", "a:1", 0, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}])
    one, two = (Renderer(s).render([row])[0].sequences[0] for s in (spec, again))
    assert one.ids.tolist() == two.ids.tolist() and one.weights.tolist() == two.weights.tolist()


# -- errors
def test_a_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="the folder holds no tokenizer") as e:
        load_tokenizer(tmp_path)
    assert e.value.found == "config.json" and "tokenizer.json" in e.value.expected
    with pytest.raises(UserError, match="there is no such tokenizer folder"):
        load_tokenizer(tmp_path / "absent")


def test_a_broken_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{,}")
    with pytest.raises(UserError, match="tokenizer_config.json is not valid JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('["a list"]')
    with pytest.raises(UserError, match="tokenizer_config.json holds no settings") as e:
        load_tokenizer(tmp_path)
    assert e.value.found == "a list" and e.value.expected == "a JSON object"
    (tmp_path / "tokenizer_config.json").write_text("{,}")
    with pytest.raises(UserError, match="tokenizer_config.json is not valid JSON"):
        load_tokenizer(tmp_path)


def test_bad_templates(tmp_path):
    with pytest.raises(UserError, match="the chat template cannot be found") as e:
        make_spec(tokenizer_for(), chat_template="chatlm")
    assert e.value.expected == "auto, chatml, llama2, alpaca, plain, or an existing .jinja file"
    with pytest.raises(UserError, match="the chat template is not valid Jinja") as e:
        make_spec(tokenizer_for("a\n{% for %}"))
    assert "line 2" in e.value.where
    (tmp_path / "latin.jinja").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match="the chat template is not UTF-8 text"):
        make_spec(tokenizer_for(), chat_template=str(tmp_path / "latin.jinja"))
    with pytest.raises(UserError, match="refuses a question and its answer") as e:
        make_spec(tokenizer_for("{{ raise_exception('never') }}"))
    assert e.value.found == "never"


def test_a_turn_that_nothing_ends():
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    bare = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = TokenizersBackend(tokenizer_object=bare)
    tokenizer.chat_template = text
    with pytest.raises(UserError, match="nothing ends a turn"):
        make_spec(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="the template plain ends turns with eos, and the tokenizer has none"):
        make_spec(tokenizer)
