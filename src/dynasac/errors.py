"""The error that people are meant to read."""


class UsageError(ValueError):
    """Something asked for cannot be done; the message is one line and says what to do instead."""
