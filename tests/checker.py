"""The type checker of the tests: beartype, which need not make the same check again and again."""

from collections.abc import Callable
from typing import Any

from beartype import beartype

_made: dict[Any, Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `beartype` makes of a function of jaxtyping's, which has a signature and does nothing.

    jaxtyping makes one whenever a function is defined, and those within others are defined at
    every call. What beartype then generates, for over a millisecond, depends on the signature.
    """
    key = (
        function.__module__,
        function.__qualname__,
        function.__code__.co_varnames,
        tuple(function.__annotations__.items()),
    )
    try:
        if key not in _made:
            _made[key] = beartype(function)
    except TypeError:  # an annotation that cannot be hashed
        return beartype(function)
    return _made[key]
