"""The error that people are meant to read."""

LONGEST = 2000
"""letters that a message has"""


class UsageError(ValueError):
    """Something asked for cannot be done; the message is one line and says what to do instead."""

    def __init__(self, message: str):
        # it may quote what somebody else's file says
        shown = "".join(letter if letter.isprintable() else "?" for letter in message[:LONGEST])
        super().__init__(shown)


def one_line(error: Exception) -> str:
    """The kind of an error from elsewhere and the first line of what it says."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
