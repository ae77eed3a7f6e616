"""The conversations that every chat template is tried on."""

TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "its name"},
                                                    "days": {"type": "integer", "description": "how many"}},
                   "required": ["city"]}}}]


def u(content):
    return {"role": "user", "content": content}


def a(content, **more):
    return {"role": "assistant", "content": content, **more}


def s(content):
    return {"role": "system", "content": content}


def call(content="", **arguments):
    return a(content, tool_calls=[{"id": "call12345", "type": "function", "function": {
        "name": "get_weather", "arguments": arguments}}])


def result(content):
    return {"role": "tool", "name": "get_weather", "tool_call_id": "call12345", "content": content}


CONVERSATIONS = {
    "plain": [u("What is the capital of France?"), a("The capital of France is Paris.")],
    "system": [s("You are a terse geographer."), u("Capital of Japan?"), a("Tokyo.")],
    "multi-turn": [u("Hi"), a("Hello! How can I help?"), u("2+2?"), a("4"), u("And 3+3?"), a("6, of course.")],
    "system and multi-turn": [s("Be kind."), u("Hi"), a("Hello!"), u("Bye"), a("Goodbye, and take care!")],
    "same text": [u("Hello"), a("Hello"), u("Hello"), a("Hello")],
    "spaces": [u("  indent this \n"), a("\n\n  def f():\n      return 1  \n\n"), u(" again "), a(" yes \n")],
    "inner newlines": [u("a\n\nb"), a("one\n\n\ntwo\n"), u("c"), a("three")],
    "Chinese": [s("你是一个有用的助手。"), u("法国的首都是哪里？"), a("法国的首都是巴黎。")],
    "emoji": [u("Family? 👨‍👩‍👧‍👦"), a("👨‍👩‍👧‍👦 is a family 🇫🇷🥖 — é vs é"), u("👍🏽"), a("🎉")],
    "empty system": [s(""), u("Who are you?"), a("A model.")],
    "spelled control tokens": [
        u("What does <|im_end|> do? And </s>, <eos>, <|eot_id|>, <end_of_turn>?"),
        a("<|im_end|> ends a turn; <|eot_id|>, </s>, <｜end▁of▁sentence｜>, <turn|> and <end_of_turn> too.")],
    "role words": [u("Write a dialogue."), a("User: hi\nAssistant: hello\n### Response:\n[INST] x [/INST]"), u("ok"),
                   a("<think> is a word here")],
    "code": [u("```python\nprint('x')\n```"), a("```python\nif a < b and b > c:\n\tprint(\"{{ x }} {% y %}\")\n```")],
    "thinking": [u("Is 91 prime?"), a("No, 91 = 7 × 13.", reasoning_content="91 / 7 = 13.\n\nSo it is not prime.")],
    "thinking, multi-turn": [u("Is 91 prime?"), a("No.", reasoning_content="7 × 13."), u("And 97?"),
                             a("Yes.", reasoning_content="No divisor up to 9.")],
    "thinking, one of two": [u("Hi"), a("Hello."), u("And 97?"), a("Yes.", reasoning_content="No divisor up to 9.")],
    "thinking inside content": [u("Is 91 prime?"), a("<think>\n7 × 13.\n</think>\n\nNo.")],
    "tools": [u("Weather in Paris?"), call(city="Paris", days=3), result('{"sky": "clear"}'),
              a("Clear skies in Paris.")],
    "tools, system, two rounds": [
        s("Use tools."), u("Weather in Paris?"), call(city="Paris"), result("clear"), a("Clear."),
        u("And Rome?"), call(city="Rome", days=1), result("rain"), a("Rain in Rome.")],
    "tool call last": [u("Weather in 巴黎?"), call(city="巴黎", days=2)],
    "tools given, none called": [u("Hi"), a("Hello!")],
}
WITH_TOOLS = ("tools", "tools, system, two rounds", "tool call last", "tools given, none called")
