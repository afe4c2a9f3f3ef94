"""Questions about a scene, with the answer and the digit that the question names."""

from dataclasses import dataclass
from typing import Literal, get_args

from .scenes import Digit, Scene
from .vocabulary import DIGITS

Kind = Literal["digit", "colour", "where", "left", "count"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Question:
    """A question, its one-word answer, and the index in the scene of the digit it names (None: it names no digit)."""

    kind: Kind
    text: str
    answer: str
    asked: int | None


def questions_about(scene: Scene) -> list[Question]:
    """Everything that can be asked about a scene, in a fixed order."""
    found = [Question("count", "how many digits are there", DIGITS[len(scene.digits)], None)]
    for index, digit in enumerate(scene.digits):
        colour, name = digit.colour, digit.name
        found += [
            Question("digit", f"what digit is {colour}", name, index),
            Question("digit", f"what is the {colour} digit", name, index),
            Question("colour", f"what colour is the {name}", colour, index),
            Question("where", f"where is the {name}", digit.place, index),
            Question("where", f"where is the {colour} digit", digit.place, index),
        ]
        neighbour = _left_of(digit, scene)
        if neighbour is not None:
            found += [
                Question("left", f"what digit is left of the {colour} digit", neighbour.name, index),
                Question("left", f"what digit is left of the {name}", neighbour.name, index),
            ]
    return found


def _left_of(digit: Digit, scene: Scene) -> Digit | None:
    """The nearest digit to the left in the same row of cells."""
    row = [other for other in scene.digits if other.cell // 3 == digit.cell // 3 and other.cell < digit.cell]
    return max(row, key=lambda other: other.cell, default=None)
