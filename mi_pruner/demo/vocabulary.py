"""The words of the demo's model, and the way from a question to token ids."""

from .._errors import InputError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {  # name -> RGB, far enough apart to be told apart at 54 x 54 pixels
    "red": (230, 40, 45),
    "orange": (255, 145, 20),
    "yellow": (255, 235, 60),
    "green": (50, 205, 70),
    "cyan": (60, 220, 235),
    "blue": (65, 95, 255),
    "pink": (255, 115, 200),
    "white": (250, 250, 250),
}
# Nine cells of the picture, row by row: the answers to "where is ...".
PLACES = ("top-left", "top", "top-right", "left", "centre", "right", "bottom-left", "bottom", "bottom-right")

PAD, ASK = "<pad>", "?"
_FUNCTION_WORDS = ("what", "where", "how", "many", "is", "are", "the", "of", "there", "digit", "digits", "colour")
_ASKABLE = (*_FUNCTION_WORDS, "left", *COLOURS, *DIGITS)  # `left` is a place too: one word, one token
WORDS = (PAD, ASK, *dict.fromkeys((*_ASKABLE, *PLACES)))
WORD_ID = {word: index for index, word in enumerate(WORDS)}
PAD_ID = WORD_ID[PAD]
MAX_QUESTION = 10  # tokens, the question mark included: "what digit is left of the red digit ?" is 9

_ALIASES = {"color": "colour", "which": "what", **{str(value): word for value, word in enumerate(DIGITS)}}


def encode_question(question: str) -> list[int]:
    """Token ids of a question in English, 2 to MAX_QUESTION of them, the last one always the question mark."""
    words = [_ALIASES.get(word, word) for word in question.lower().replace("?", " ").split()]
    if not words:
        raise InputError('the question is empty: ask for example "what digit is red"')
    unknown = [word for word in words if word not in _ASKABLE]
    if unknown:
        raise InputError(f"unknown word {unknown[0]!r} in {question!r}: the model knows {', '.join(_ASKABLE)}")
    if len(words) >= MAX_QUESTION:
        raise InputError(f"the question has {len(words)} words: expected at most {MAX_QUESTION - 1}")
    return [WORD_ID[word] for word in (*words, ASK)]
