"""Which words of a conversation were said together with an image: the user's, of the turn in which it stands."""

from __future__ import annotations

import itertools
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from . import chat_template
from .instruction import squeezed


class Turns:
    """Finds the user's words in the ids of a prompt, without what the chat template writes around them.

    A turn is all that stands between two answers. Marks of the template are looked for as text without white space, so
    that it does not matter how the tokenizer joins them to what is beside them.
    """

    def __init__(
        self,
        tokenizer: Any,
        openings: Iterable[str],
        endings: Iterable[str],
        ignored: Iterable[int],
        after_system: Iterable[str] = (),
    ) -> None:
        """
        Args:
            tokenizer: has `decode` and `encode`.
            openings, endings: what the template writes before the user's words, and between them and an answer.
            ignored: ids of special tokens; all of a prompt is read that is none of these, and no mark.
            after_system: what the template writes between a system message and the user's words, where it is none of
                the openings.
        """
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}
        self._ignored = frozenset(ignored)
        own = {self._as_written(mark) for mark in openings}
        self._openings, self._endings = _any_of(own), _any_of(map(self._as_written, endings))
        self._after_system = _any_of(set(map(self._as_written, after_system)) - own)

    @classmethod
    def of(cls, templated: Any, tokenizer: Any, ignored: Iterable[int]) -> Turns:
        """By the chat template of a processor or tokenizer. Without one, or with one that shows no words as they are, a
        prompt is one turn of words alone.
        """
        openings: list[str] = []
        after_system: list[str] = []
        endings: list[str] = []
        if getattr(templated, "chat_template", None):
            try:
                endings = chat_template.endings(templated, video=False)
                openings, after_system = chat_template.openings(templated)
            except ValueError:
                endings = []
        start = getattr(tokenizer, "bos_token", None) or ""
        openings += [mark.removeprefix(start) for mark in openings]
        return cls(tokenizer, openings, endings, ignored, after_system)

    def words(self, ids: Sequence[int], places: Sequence[int]) -> list[list[int]]:
        """For each place in a prompt the ids of the user's words in its turn, in order.

        Args:
            ids: of the prompt, images as their placeholders, which are among the ignored ids.
            places: numbers of ids, those of images.

        Warns:
            UserWarning: where no mark of an answer is found, so that all of a prompt is one turn.
        """
        pieces = [self._piece(index) for index in ids]
        text = "".join(pieces)
        owners = [place for place, piece in enumerate(pieces) for _ in piece]
        starts = [0, *itertools.accumulate(map(len, pieces))]  # of each id, in the text
        endings = [match.span() for match in self._endings.finditer(text)]
        if places and not endings:
            warnings.warn(
                "mi_pruner: expected the marks of the checkpoint's chat template in a prompt, found none: all of it is "
                "taken for what the user said with its images",
                stacklevel=2,
            )
        begins, stops = [0, *(end for _, end in endings)], [*(start for start, _ in endings), len(text)]
        turns = [bisect_right(begins, starts[place]) - 1 for place in places]
        said = {turn: self._said(ids, owners, text, begins[turn], stops[turn]) for turn in set(turns)}
        return [said[turn] for turn in turns]

    def _said(self, ids: Sequence[int], owners: list[int], text: str, begin: int, stop: int) -> list[int]:
        """The ids of the words in a turn: after its first opening, without further ones and white space around."""
        marks = list(self._openings.finditer(text, begin, stop))
        system = self._after_system.search(text, begin, stop)
        start = system.end() if system else marks[0].end() if marks else begin
        marked = {owners[char] for match in marks for char in range(*match.span())}
        first = owners[start] if start < stop else len(ids)
        last = owners[stop - 1] if start < stop else -1
        read = [
            index
            for place, index in enumerate(ids[first : last + 1], first)
            if place not in marked and index not in self._ignored
        ]
        while read and not self._piece(read[0]):
            read.pop(0)
        while read and not self._piece(read[-1]):
            read.pop()
        return read

    def _piece(self, index: int) -> str:
        """What an id shows, without white space."""
        if index not in self._pieces:
            self._pieces[index] = squeezed(self._tokenizer.decode([index]))
        return self._pieces[index]

    def _as_written(self, mark: str) -> str:
        return "".join(self._piece(index) for index in self._tokenizer.encode(mark, add_special_tokens=False))


def _any_of(marks: Iterable[str]) -> re.Pattern[str]:
    """Any of the marks, the longest that fits; nothing if there are none."""
    whole = sorted({mark for mark in marks if mark}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, whole)) or r"(?!)")
