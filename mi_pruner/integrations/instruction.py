"""Which tokens of a prompt are the instruction, the text that the visual tokens are scored against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .chat_template import one_turn
from .prompt_columns import NO_LABEL

_WORDS = "⟦the user's words⟧"  # what no template holds itself


def instruction_mask(
    input_ids: Tensor,
    attended: Tensor,
    visual: Tensor,
    ignored: set[int],
    ending: list[int],
    answers: Tensor,
    marked: Tensor | None = None,
) -> Tensor:
    """The marked tokens, without visual and special ones, without answers and without what opens them.

    Args:
        input_ids: (B, L) int64; attended, visual: (B, L) bool, True where a token is attended, is visual.
        ignored: ids of special tokens.
        ending: ids that close every prompt; as many of the last of them as stand before an answer, or at the end of a
            row, are left out.
        answers: (B, L) bool, of `answer_mask`.
        marked: (B, L) bool. None: the tokens after the last visual one.

    Returns:
        (B, L) bool.
    """
    if marked is None:
        marked = _after_images(visual)
    special = torch.isin(input_ids, torch.tensor(sorted(ignored), dtype=input_ids.dtype, device=input_ids.device))
    mask = marked & attended & ~visual & ~special & ~answers
    rows = zip(input_ids.tolist(), attended.tolist(), answers.tolist(), strict=True)
    for row, (ids, valid, answered) in enumerate(rows):
        columns = [column for column, is_valid in enumerate(valid) if is_valid]
        begins = [n for n in range(1, len(columns)) if answered[columns[n]] and not answered[columns[n - 1]]]
        for stop in (*begins, len(columns)):
            for column, expected in zip(reversed(columns[:stop]), reversed(ending), strict=False):
                if ids[column] != expected:
                    break
                mask[row, column] = False
    return mask


def answer_mask(
    input_ids: Tensor, attended: Tensor, visual: Tensor, labels: Tensor | None, ending: list[int]
) -> Tensor:
    """Which tokens of a prompt are an answer that is there already, or follow the last one, and so are no question.

    Args:
        labels: (B, L) int64, −100 where there is no answer. None: what follows the whole `ending` is an answer, such as
            one of several whose likelihoods are compared.
        input_ids, attended, visual, ending: as in `instruction_mask`.

    Returns:
        (B, L) bool.
    """
    if labels is not None:
        labelled = (labels.to(input_ids.device) != NO_LABEL) & attended
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = torch.where(labelled, place, -1).amax(1, keepdim=True)
        return labelled | (labelled.any(1, keepdim=True) & (place > last))
    answers = torch.zeros_like(attended)
    if len(ending) < 2:  # a single token, such as a line's end, may stand in a question as well
        return answers
    for row, (ids, is_text) in enumerate(
        zip(input_ids.tolist(), (_after_images(visual) & attended).tolist(), strict=True)
    ):
        columns = [column for column, valid in enumerate(is_text) if valid]
        text = [ids[column] for column in columns]
        ends = [n + len(ending) for n in range(len(text)) if text[n : n + len(ending)] == ending]
        if ends:
            answers[row, columns[ends[-1] :]] = True
    return answers


def _after_images(visual: Tensor) -> Tensor:
    """(B, L) bool, the tokens after the last visual one, of visual (B, L) bool."""
    place = torch.arange(visual.shape[1], device=visual.device)
    return place > torch.where(visual, place, -1).amax(1, keepdim=True)


def special_ids(model: Any, processor: Any | None) -> set[int]:
    """Ids that carry no meaning: those of the model's configuration and, with a processor, all of its tokenizer's."""
    ids: set[int] = set()
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        for name, value in config.to_dict().items():
            if name.endswith(("token_id", "token_index")) and value is not None:
                ids.update(value if isinstance(value, list) else [value])
    if processor is not None:
        tokenizer = tokenizer_of(processor)
        ids.update(tokenizer.all_special_ids)
        ids.update(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return ids


def ending_ids(processor: Any | None, video: bool = False) -> list[int]:
    """Ids of what the chat template puts after the user's words: closing marks, and what opens the answer
    ("ASSISTANT:"); none without processor or template.

    video: there is one in the conversation; SmolVLM's processor has another template for these.

    Raises:
        ValueError: if the template takes no form of a turn.
    """
    if processor is None or not getattr(processor, "chat_template", None):
        return []
    parts = [{"type": "video"}] * video + [{"type": "text", "text": _WORDS}]
    prompt = one_turn(processor, parts, _WORDS, _WORDS)
    if prompt is None:
        return []
    return list(tokenizer_of(processor)(prompt.rpartition(_WORDS)[2], add_special_tokens=False)["input_ids"])


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor, or the tokenizer that it is.

    Raises:
        TypeError: for what has none.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "all_special_ids"):
        what = f"{processor!r}" if isinstance(processor, str) else type(processor).__name__
        raise TypeError(
            f"processor: expected the model's processor or its tokenizer, got {what}, which has no tokenizer: "
            "AutoProcessor.from_pretrained(...) makes one"
        )
    return tokenizer
