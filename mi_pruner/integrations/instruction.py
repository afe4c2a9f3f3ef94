"""Which tokens of a prompt are the instruction, the text that the visual tokens are scored against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_WORDS = "⟦the user's words⟧"  # what no template holds itself


def instruction_mask(
    input_ids: Tensor,
    attended: Tensor,
    visual: Tensor,
    ignored: set[int],
    ending: list[int],
    marked: Tensor | None = None,
) -> Tensor:
    """The marked tokens, without visual and special ones and without the prompt's fixed ending.

    Args:
        input_ids: (B, L) int64; attended, visual: (B, L) bool, True where a token is attended, is visual.
        ignored: ids of special tokens.
        ending: ids that close every prompt; as many of the last of them as a row ends in are left out.
        marked: (B, L) bool. None: the tokens after the last visual one.

    Returns:
        (B, L) bool.
    """
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    if marked is None:
        marked = place > torch.where(visual, place, -1).amax(1, keepdim=True)
    special = torch.isin(input_ids, torch.tensor(sorted(ignored), dtype=input_ids.dtype, device=input_ids.device))
    mask = marked & attended & ~visual & ~special
    for row, (ids, valid) in enumerate(zip(input_ids.tolist(), attended.tolist(), strict=True)):
        columns = [column for column, is_valid in enumerate(valid) if is_valid]
        for column, expected in zip(reversed(columns), reversed(ending), strict=False):
            if ids[column] != expected:
                break
            mask[row, column] = False
    return mask


def special_ids(model: Any, processor: Any | None) -> set[int]:
    """Ids that carry no meaning: those of the model's configuration and, with a processor, all of its tokenizer's."""
    ids: set[int] = set()
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        for name, value in config.to_dict().items():
            if name.endswith(("token_id", "token_index")) and value is not None:
                ids.update(value if isinstance(value, list) else [value])
    if processor is not None:
        tokenizer = _tokenizer(processor)
        ids.update(tokenizer.all_special_ids)
        ids.update(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return ids


def ending_ids(processor: Any | None) -> list[int]:
    """Ids of what the chat template puts after the user's words: closing marks, and what opens the answer
    ("ASSISTANT:"); none without processor or template."""
    if processor is None or not getattr(processor, "chat_template", None):
        return []
    tokenizer = _tokenizer(processor)
    content: Any = _WORDS if tokenizer is processor else [{"type": "text", "text": _WORDS}]
    conversation = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    _, found, ending = prompt.rpartition(_WORDS)
    return tokenizer(ending, add_special_tokens=False)["input_ids"] if found else []


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)
