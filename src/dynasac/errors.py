"""The error that people are meant to read."""


class UsageError(ValueError):
    """Something asked for cannot be done; the message is one line and says what to do instead."""


def one_line(error: Exception) -> str:
    """The kind of an error from elsewhere and the first line of what it says."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
