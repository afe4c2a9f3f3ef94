"""The prompt of one user's turn, from whatever form of conversation a chat template takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_SYSTEM = "You are a helpful assistant."  # for templates that insist on a system message


def one_turn(processor: Any, parts: list[dict[str, str]], string: str, *words: str) -> str | None:
    """The prompt of a turn that ends where the answer begins; None if no form of it shows the words.

    Args:
        processor: with a chat template, or a tokenizer with one.
        parts, string: the turn's content in the two forms that templates take.
        words: what is in the prompt if the template understood the form.

    Raises:
        ValueError: if the template fails on all forms.
    """
    from jinja2 import TemplateError

    failed: Exception | None = None
    rendered = False
    for conversation in _conversations(processor, parts, string):
        try:
            prompt = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        # What a template raises for a form that it does not take is up to it: whatever an expression in it does.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            failed = failed or error
            continue
        rendered = True
        as_printed = str(parts) in prompt  # a list that was printed as such was not understood
        if not as_printed and all(word in prompt for word in words):
            return str(prompt)
    if failed is not None and not rendered:
        raise ValueError(
            f"processor: expected a chat template that takes a user's turn, got one that fails ({failed}): mark the "
            "question with text_mask (B, L) bool, and leave out the processor"
        ) from failed
    return None


def _conversations(processor: Any, parts: list[dict[str, str]], string: str) -> Iterator[list[dict[str, Any]]]:
    """Content as a processor takes it first, or as a tokenizer does; without a system message first."""
    forms: tuple[Any, ...] = (parts, string) if hasattr(processor, "tokenizer") else (string, parts)
    systems = (_SYSTEM, [{"type": "text", "text": _SYSTEM}])
    for content in forms:
        yield [{"role": "user", "content": content}]
    for content in forms:
        for system in systems:
            yield [{"role": "system", "content": system}, {"role": "user", "content": content}]
