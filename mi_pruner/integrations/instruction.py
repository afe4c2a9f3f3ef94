"""Which tokens of a prompt are the instruction, the text that the visual tokens are scored against."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import chat_template
from .prompt_columns import NO_LABEL

_LEAST = 4  # characters of what opens an answer: "A:" may stand in a question as well


@dataclass(frozen=True)
class Reader:
    """What is known of the words of a prompt.

    Attributes:
        ignored: ids of special tokens.
        endings: what the chat template puts between the user's words and an answer, as text.
        ending_ids: the same as ids.
        tokenizer: None: there are no endings.
    """

    ignored: set[int]
    endings: list[str] = field(default_factory=list)
    ending_ids: list[list[int]] = field(default_factory=list)
    tokenizer: Any | None = None

    @classmethod
    def of(cls, model: Any, processor: Any | None, video: bool) -> Reader:
        """Of a model and its processor; video: there is one in the prompts (`chat_template.endings`).

        Raises:
            ValueError: if the chat template takes no form of a turn. TypeError: if the processor has no tokenizer.
        """
        ignored = special_ids(model, processor)
        if processor is None or not getattr(processor, "chat_template", None):
            return cls(ignored)
        tokenizer = tokenizer_of(processor)
        endings = chat_template.endings(processor, video)
        ids = [list(tokenizer(ending, add_special_tokens=False)["input_ids"]) for ending in endings]
        return cls(ignored, endings, ids, tokenizer)

    def instruction(
        self,
        input_ids: Tensor,
        attended: Tensor,
        visual: Tensor,
        labels: Tensor | None = None,
        marked: Tensor | None = None,
    ) -> Tensor:
        """The marked tokens, without visual and special ones, without answers and what opens and closes them.

        Args:
            input_ids: (B, L) int64; attended, visual: (B, L) bool, True where a token is attended, is visual.
            labels: (B, L) int64, other than −100 on answers. In a row without any, what follows a whole ending is an
                answer, such as one of several whose likelihoods are compared.
            marked: (B, L) bool, the words that are read; `labels` are not looked at then. None: the tokens after the
                last visual one, without answers.

        Returns:
            (B, L) bool.
        """
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        after = place > torch.where(visual, place, -1).amax(1, keepdim=True)
        special = torch.isin(
            input_ids, torch.tensor(sorted(self.ignored), dtype=input_ids.dtype, device=input_ids.device)
        )
        mask = (after if marked is None else marked) & attended & ~visual & ~special
        labelled = (
            torch.zeros_like(mask) if labels is None or marked is not None else labels.to(mask.device) != NO_LABEL
        )
        unread = torch.zeros(mask.shape, dtype=torch.bool)
        rows = zip(*(each.tolist() for each in (input_ids, attended, after, labelled)), strict=True)
        for row, (ids, valid, is_after, is_label) in enumerate(rows):
            columns = [column for column, is_valid in enumerate(valid) if is_valid]
            text = [ids[column] for column in columns]
            answers = [n for n, column in enumerate(columns) if is_label[column]]
            if marked is None and not answers:
                first = next((n for n, column in enumerate(columns) if is_after[column]), len(columns))
                begin = self._answer_after_ending(text[first:])
                answers = [] if begin is None else list(range(first + begin, len(text)))
            begins = [n for before, n in zip([-2, *answers], answers, strict=False) if n != before + 1]
            for stop in (*begins, len(text)):
                unread[row, [columns[n] for n in range(stop - self._opening(text[:stop]), stop)]] = True
            closing = range(answers[-1] + 1, len(text)) if answers else ()
            unread[row, [columns[n] for n in (*answers, *closing)]] = True
        return mask & ~unread.to(mask.device)

    def _opening(self, text: list[int]) -> int:
        """How many of the last ids are a whole ending, or else the end of one."""
        whole = max((self._whole_at_the_end(text, ending) for ending in self.endings), default=0)
        return whole or max((_same_at_the_end(text, ids) for ids in self.ending_ids), default=0)

    # Endings are compared as text without white space: alone they are tokenised in one way, behind a question maybe in
    # another.

    def _whole_at_the_end(self, text: list[int], ending: str) -> int:
        """How many of the last ids are all of an ending and nothing else; 0 if it is not there."""
        wanted, shown, count = _squeezed(ending), "", 0
        pieces = (self._piece(index) for index in reversed(text))
        for piece in pieces:
            if len(shown) + len(piece) > len(wanted):
                break
            shown = piece + shown
            count += 1
            if len(shown) == len(wanted):
                break
        if not wanted or shown != wanted:
            return 0
        white = 0
        if ending[0].isspace():
            white = next((n for n, piece in enumerate(pieces) if piece), 0)
        return count + white

    def _answer_after_ending(self, text: list[int]) -> int | None:
        """Where an answer begins: after the last whole ending; None if there is none, or nothing after it."""
        wanted = [squeezed for squeezed in map(_squeezed, self.endings) if len(squeezed) >= _LEAST]
        if self.tokenizer is None or not wanted:
            return None
        whole = _squeezed(self.tokenizer.decode(text))
        if whole.endswith(tuple(wanted)) or not any(ending in whole for ending in wanted):
            return None
        pieces = [self._piece(index) for index in text]
        joined = "".join(pieces)
        end = max((joined.rfind(ending) + len(ending) for ending in wanted if ending in joined), default=len(joined))
        read = itertools.accumulate(map(len, pieces))
        begin = next(number for number, length in enumerate(read, start=1) if length >= end)
        return begin if begin < len(text) else None

    def _piece(self, index: int) -> str:
        return _squeezed(self.tokenizer.decode([index])) if self.tokenizer is not None else ""


def _same_at_the_end(text: list[int], ending: list[int]) -> int:
    """How many of the last ids are those of the ending."""
    pairs = zip(reversed(text), reversed(ending), strict=False)
    return next((n for n, (mine, expected) in enumerate(pairs) if mine != expected), min(len(text), len(ending)))


def _squeezed(text: str) -> str:
    return "".join(text.split())


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
