"""Which words are said together with an image: of its turn alone, whatever the template writes around them."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from mi_pruner.integrations import chat_template
from mi_pruner.integrations.turns import Turns

from . import tiny_checkpoints

PLAIN = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
WITH_SYSTEM = (  # a default system message, as Qwen's template has it
    "{% if messages[0]['role'] != 'system' %}<turn>system\nYou help.<end>\n{% endif %}" + tiny_checkpoints.TEMPLATE
)
LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}<s>[INST] <<SYS>>\n{{ message['content'] }}\n"
    "<</SYS>>\n\n{% elif message['role'] == 'user' %}{% if loop.index0 == 0 or messages[loop.index0 - 1]['role'] != "
    "'system' %}<s>[INST] {% endif %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %} [/INST]{% else %} {{ message['content'] if message['content'] is string else "
    "message['content'][0]['text'] }} </s>{% endif %}{% endfor %}"
)
TEMPLATES = {"turns": tiny_checkpoints.TEMPLATE, "names": PLAIN, "system": WITH_SYSTEM, "llama-2": LLAMA_2}


def user(*parts: str) -> dict:
    content = [{"type": "image"} if part == "image" else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def read(template: str, conversation: list[dict]) -> list[str]:
    """The words that are found for each image of a conversation."""
    tokenizer = tiny_checkpoints.tokenizer()
    tokenizer.chat_template = template
    special = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    prompt = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    places = [place for place, index in enumerate(ids) if index == tokenizer.convert_tokens_to_ids("<image>")]
    turns = Turns.of(tokenizer, tokenizer, special)
    return [tokenizer.decode(words).strip() for words in turns.words(ids, places)]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
class TestWords:
    def test_of_one_turn(self, template):
        assert read(template, [user("image", "what is the cup?")]) == ["what is the cup?"]
        assert read(template, [user("what is the cup?", "image")]) == ["what is the cup?"]
        assert read(template, [user("image", "image", "where?")]) == ["where?"] * 2

    def test_a_later_turn_changes_nothing(self, template):
        first = [user("image", "what is the cup?")]
        later = [*first, assistant("a cup of coffee"), user("image", "where is it?"), assistant("the rocket")]
        assert read(template, [*later, user("is it?")]) == ["what is the cup?", "where is it?"]

    def test_nothing_is_said(self, template):
        assert read(template, [user("image")]) == [""]
        assert read(template, [user("image"), assistant("coffee"), user("where is it?")]) == [""]

    def test_system_message(self, template):
        system = {
            "role": "system",
            "content": "describe the picture" if template is LLAMA_2 else [{"text": "describe"}],
        }
        assert read(template, [system, user("image", "where is it?")]) == ["where is it?"]


def test_openings():
    tokenizer = tiny_checkpoints.tokenizer()
    tokenizer.chat_template = WITH_SYSTEM
    openings, after_system = chat_template.openings(tokenizer)
    assert openings == ["<turn>system\nYou help.<end>\n<turn>user\n", "<end>\n<turn>user\n"]
    assert after_system == ["<end>\n<turn>user\n"]


def test_without_a_template_all_is_read():
    tokenizer = tiny_checkpoints.tokenizer()
    special = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    ids = tokenizer("<s>what is <image> the cup?")["input_ids"]
    for template in (None, "{{ raise_exception('no') }}"):
        tokenizer.chat_template = template
        turns = Turns.of(tokenizer, tokenizer, special)
        with pytest.warns(UserWarning, match="mi_pruner: expected the marks of the checkpoint's chat template in a pr"):
            (words,) = turns.words(ids, [ids.index(tokenizer.convert_tokens_to_ids("<image>"))])
        assert tokenizer.decode(words) == "what is  the cup?"
