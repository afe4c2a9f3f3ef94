"""What the command line tells a person in one line."""


class InputError(ValueError):
    """An input that a command cannot use. The message, one line, says what to do instead."""
