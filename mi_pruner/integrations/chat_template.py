"""What a chat template writes around the words of a turn, whatever form of conversation it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_SYSTEM = "You are a helpful assistant."  # for templates that insist on a system message
_SYSTEMS: tuple[Any, ...] = (_SYSTEM, [{"type": "text", "text": _SYSTEM}])
_WORDS, _ANSWER = "7315924680", "8642097531"  # digits: no template holds these, none escapes or capitalises them

Conversation = list[dict[str, Any]]


def endings(processor: Any, video: bool) -> list[str]:
    """What stands between the user's words and an answer ("ASSISTANT:"): where one is to be generated, where it is
    there already, and where another turn follows.

    Args:
        processor: with a chat template, or a tokenizer with one.
        video: there is one in the conversation; SmolVLM's processor has another template for these.

    Raises:
        ValueError: if the template fails on all forms of a turn, or shows no words as they are.
    """
    conversation, prompt = _turn_of_words(processor, video)
    opened = [prompt.rpartition(_WORDS)[2]]
    answer = _answer(conversation)
    for goes_on in ([answer], [answer, conversation[-1], answer]):
        answered = _rendered(processor, [*conversation, *goes_on], generate=False)
        if isinstance(answered, str) and _ANSWER in answered:  # else a template of single turns
            opened.append(answered.partition(_ANSWER)[0].rpartition(_WORDS)[2])
    return list(dict.fromkeys(opened))


def openings(processor: Any) -> tuple[list[str], list[str]]:
    """What the template writes before the user's words ("USER:"): at the beginning of a prompt and after an answer; and
    after a system message.

    Args, Raises:
        As `endings`.
    """
    conversation, prompt = _turn_of_words(processor, video=False)
    turns = [turn for turn in conversation if turn["role"] != "system"]
    again = _between(processor, [*conversation, _answer(conversation), *turns], _ANSWER)
    systems = [
        mark
        for content in _SYSTEMS
        for mark in _between(processor, [{"role": "system", "content": content}, *turns], _SYSTEM)
    ]
    return list(dict.fromkeys([prompt.partition(_WORDS)[0], *again])), list(dict.fromkeys(systems))


def _between(processor: Any, conversation: Conversation, words: str) -> list[str]:
    """What stands between some words and the user's next; nothing if the template takes no such conversation."""
    rendered = _rendered(processor, conversation, generate=True)
    if not isinstance(rendered, str) or words not in rendered:
        return []
    return [rendered.partition(words)[2].partition(_WORDS)[0]]


def _turn_of_words(processor: Any, video: bool) -> tuple[Conversation, str]:
    parts = [{"type": "video"}] * video + [{"type": "text", "text": _WORDS}]
    found = one_turn(processor, parts, _WORDS, _WORDS)
    if found is None:
        raise ValueError(_no_words("shows them as they are, got one that changes or drops them"))
    return found


def _answer(conversation: Conversation) -> dict[str, Any]:
    """Of the assistant, in the form that the conversation has."""
    as_string = isinstance(conversation[-1]["content"], str)
    return {"role": "assistant", "content": _ANSWER if as_string else [{"type": "text", "text": _ANSWER}]}


def one_turn(processor: Any, parts: list[dict[str, str]], string: str, *words: str) -> tuple[Conversation, str] | None:
    """A conversation of one user's turn in a form that the template takes, and its prompt up to where the answer
    begins; None if no form of it shows the words.

    Args:
        processor: with a chat template, or a tokenizer with one.
        parts, string: the turn's content in the two forms that templates take.
        words: what is in the prompt if the template understood the form.

    Raises:
        ValueError: if the template fails on all forms.
    """
    failed: Exception | None = None
    rendered = False
    for conversation in _conversations(processor, parts, string):
        prompt = _rendered(processor, conversation, generate=True)
        if isinstance(prompt, Exception):
            failed = failed or prompt
            continue
        rendered = True
        as_printed = str(parts) in prompt  # a list that was printed as such was not understood
        if not as_printed and all(word in prompt for word in words):
            return conversation, prompt
    if failed is not None and not rendered:
        raise ValueError(_no_words(f"takes them, got one that fails ({failed})")) from failed
    return None


def _no_words(what: str) -> str:
    return (
        f"processor: expected a chat template that, given the user's words, {what}: mark the question with text_mask "
        "(B, L) bool, and leave out the processor"
    )


def _rendered(processor: Any, conversation: Conversation, generate: bool) -> str | Exception:
    """The prompt, or what the template raised for a form that it does not take."""
    from jinja2 import TemplateError

    try:
        return str(processor.apply_chat_template(conversation, add_generation_prompt=generate, tokenize=False))
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:  # what an expression may raise
        return error


def _conversations(processor: Any, parts: list[dict[str, str]], string: str) -> Iterator[Conversation]:
    """Content as a processor takes it first, or as a tokenizer does; without a system message first."""
    forms: tuple[Any, ...] = (parts, string) if hasattr(processor, "tokenizer") else (string, parts)
    for content in forms:
        yield [{"role": "user", "content": content}]
    for content in forms:
        for system in _SYSTEMS:
            yield [{"role": "system", "content": system}, {"role": "user", "content": content}]
