"""What was selected of the images that a model has seen, for when it has to encode one again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor

_ROWS = 1 << 22  # remembered in all, 32 MB: 29,000 images of 144 tokens
_LEAST = 64  # rows that an image counts for: memory is given out in pieces of 512 bytes


class Orders:
    """Key of an image, as the caller makes it -> rows that stay. The longest unused go first.

    An encoder in another batch may give other features, in bfloat16 most of all. With another selection blocks of keys
    and values that are cached would not fit those that come new.
    """

    def __init__(self, rows: int = _ROWS) -> None:
        self._limit, self._held = rows, 0
        self._orders: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        """(K,) int64 ascending; None: not remembered."""
        if key in self._orders:
            self._orders.move_to_end(key)
        return self._orders.get(key)

    def put(self, key: Hashable, rows: Tensor) -> None:
        """rows: (K,) int64 ascending."""
        if key in self._orders:
            self._held -= _size(self._orders.pop(key))
        self._orders[key] = rows
        self._held += _size(rows)
        while self._held > self._limit and len(self._orders) > 1:
            _, oldest = self._orders.popitem(last=False)
            self._held -= _size(oldest)


def _size(rows: Tensor) -> int:
    return max(len(rows), _LEAST)
