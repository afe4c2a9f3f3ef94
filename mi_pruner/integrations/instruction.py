"""Which tokens of a prompt are the instruction, the text that the visual tokens are scored against."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import chat_template
from .prompt_columns import NO_LABEL

_LEAST = 4  # bytes of what opens an answer: "A:" may stand in a question as well
_PART = "\ufffd"  # how tokenizers write a part of a character


@dataclass(frozen=True)
class Reader:
    """What is known of the words of a prompt.

    Attributes:
        ignored: ids of special tokens.
        tokenizer: None: the prompt can't be read as text.
        endings: what the chat template puts between the user's words and an answer, as the tokenizer writes it, without
            white space: the same text is tokenised in one way alone, and maybe in another behind a question.
    """

    ignored: set[int]
    tokenizer: Any | None = None
    endings: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Any, processor: Any | None, video: bool) -> Reader:
        """Of a model and its processor; video: there is one in the prompts (`chat_template.endings`).

        Raises:
            ValueError: if the chat template takes no form of a turn. TypeError: if the processor has no tokenizer.
        """
        ignored = special_ids(model, processor)
        if processor is None:
            return cls(ignored)
        tokenizer = tokenizer_of(processor)
        if not getattr(processor, "chat_template", None):
            return cls(ignored, tokenizer)
        ids = (tokenizer(e, add_special_tokens=False)["input_ids"] for e in chat_template.endings(processor, video))
        endings = dict.fromkeys(squeezed(tokenizer.decode(ending)) for ending in ids)
        return cls(ignored, tokenizer, tuple(ending for ending in endings if ending))

    def instruction(
        self,
        input_ids: Tensor,
        attended: Tensor,
        visual: Tensor,
        labels: Tensor | None = None,
        marked: Tensor | None = None,
    ) -> Tensor:
        """The marked tokens, without visual and special ones, and without the template's endings.

        Args:
            input_ids: (B, L) int64; attended, visual: (B, L) bool, True where a token is attended, is visual.
            labels: (B, L) int64, other than −100 on answers. What follows a whole ending without a label, and what
                follows the last label, belongs to an answer, too.
            marked: (B, L) bool, the words that are read; `labels` are not looked at then. None: the tokens after the
                last visual one, without answers, and without white space around them.

        Returns:
            (B, L) bool.
        """
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        after = place > torch.where(visual, place, -1).amax(1, keepdim=True)
        special = torch.isin(input_ids, torch.tensor(sorted(self.ignored), dtype=torch.int64, device=input_ids.device))
        mask = (after if marked is None else marked) & attended & ~visual & ~special
        labelled = torch.zeros_like(mask) if labels is None else labels.to(mask.device) != NO_LABEL
        unread = torch.zeros(mask.shape, dtype=torch.bool)
        rows = zip(*(each.tolist() for each in (input_ids, attended, after, labelled)), strict=True)
        for row, (ids, valid, is_after, is_label) in enumerate(rows):
            columns = [column for column, is_valid in enumerate(valid) if is_valid]
            text = [ids[column] for column in columns]
            if marked is None:
                first = next((n for n, column in enumerate(columns) if is_after[column]), len(columns))
                answers = self._answers(text, first, [n for n, column in enumerate(columns) if is_label[column]])
                left_out = self._beside_words(text, first, answers)
            else:
                left_out = list(range(len(text) - self._ending(text), len(text)))
            unread[row, [columns[n] for n in left_out]] = True
        return mask & ~unread.to(mask.device)

    def _answers(self, text: list[int], first: int, labelled: list[int]) -> list[int]:
        """The numbers of the ids that belong to answers, and of all after the last; first: after the last image."""
        stop = labelled[0] if labelled else len(text)
        begin = self._after_ending(text[first:stop])
        unlabelled = [] if begin is None else list(range(first + begin, stop))
        return unlabelled + labelled + (list(range(labelled[-1] + 1, len(text))) if labelled else [])

    def _beside_words(self, text: list[int], first: int, answers: list[int]) -> list[int]:
        """The numbers of the ids in answers, in what opens them, and in white space around the words."""
        left_out = list(answers)
        begins = [n for before, n in zip([-2, *answers], answers, strict=False) if n != before + 1]
        for stop in (*begins, len(text)):
            start = stop - self._ending(text[:stop])
            while start > first and self._is_white(text[start - 1]):
                start -= 1
            left_out += range(start, stop)
        while first < len(text) and (text[first] in self.ignored or self._is_white(text[first])):
            left_out.append(first)
            first += 1
        return left_out

    def _ending(self, text: list[int]) -> int:
        """How many of the last ids are a whole ending, and hold nothing else."""
        return max((self._at_the_end(text, ending) for ending in self.endings), default=0)

    def _at_the_end(self, text: list[int], ending: str) -> int:
        shown = ""
        count = 0
        while count < len(text) and (len(shown) < len(ending) or shown.startswith(_PART)):
            count += 1
            shown = self._text(text[-count:])
        return 0 if not shown.endswith(ending) else count if shown == ending else count - 1

    def _after_ending(self, text: list[int]) -> int | None:
        """Where an answer begins, after the last whole ending; None if there is none, or nothing after it."""
        endings = [ending for ending in self.endings if len(ending.encode()) >= _LEAST]
        whole = self._text(text) if endings else ""
        if whole.endswith(tuple(endings)) or not any(ending in whole for ending in endings):
            return None
        begin = max(self._up_to_last(text, whole, ending) for ending in endings if ending in whole)
        return begin if begin < len(text) else None

    def _up_to_last(self, text: list[int], whole: str, ending: str) -> int:
        """How many of the first ids show an ending as often as all do, whose text is `whole`."""
        # All that hold it are as long or longer, also where they end in a part of a character, which may then spoil
        # others before it.
        least = bisect_left(
            range(len(text)), whole.rfind(ending) + len(ending), key=lambda n: len(self._text(text[:n]))
        )
        count = whole.count(ending)
        return next(n for n in range(least, len(text) + 1) if self._text(text[:n]).count(ending) == count)

    def _is_white(self, index: int) -> bool:
        return self.tokenizer is not None and not self._text([index])

    def _text(self, ids: list[int]) -> str:
        return "" if self.tokenizer is None else squeezed(self.tokenizer.decode(ids))


def squeezed(text: str) -> str:
    """Without white space."""
    return "".join(text.split())


def special_ids(model: Any, processor: Any | None) -> set[int]:
    """Ids that carry no meaning: those of the model's configuration and, with a processor, all of its tokenizer's."""
    ids = ids_in(model.config, model.config.get_text_config(), model.generation_config)
    return ids if processor is None else ids | special_ids_of(tokenizer_of(processor))


def ids_in(*configs: Any) -> set[int]:
    """Ids of tokens that configurations name: placeholders, beginning, end, padding."""
    ids: set[int] = set()
    for config in configs:
        for name, value in config.to_dict().items():
            if name.endswith(("token_id", "token_index")) and value is not None:
                ids.update(value if isinstance(value, list) else [value])
    return ids


def special_ids_of(tokenizer: Any) -> set[int]:
    """Ids of a tokenizer's special tokens."""
    added = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return {*tokenizer.all_special_ids, *added}


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
