"""Numbers and strangers' strings as people read them."""

import html
import unicodedata
from collections.abc import Iterable
from typing import Any

NAME_LENGTH = 20
"""of a name in a chart; tables have the whole of it"""
JOINERS = "\u200c\u200d"
"""zero-width, without which some scripts and pictographs fall apart"""


def clean(string: str) -> str:
    """The string without what could disturb the text around it.

    Control characters, half surrogates and marks that turn the direction of writing become "�".
    """
    return "".join(
        "�" if unicodedata.category(c) in ("Cc", "Cs", "Cf") and c not in JOINERS else c
        for c in string.replace("\n", " ").replace("\t", " ")
    )


def isolated(string: str) -> str:
    """A stranger's string, to stand in a sentence whatever direction it is written in."""
    return f"\u2068{clean(string)}\u2069"


def in_chart(string: str) -> str:
    """A stranger's string for Plotly, which reads a kind of HTML; shortened."""
    kept = clean(string)
    if len(kept) > NAME_LENGTH:
        kept = kept[: NAME_LENGTH - 1] + "…"
    return f"\u2068{html.escape(kept, quote=False)}\u2069"


def labels(names: Iterable[str]) -> dict[str, str]:
    """A label in a chart for each name; those that look the same once shortened are numbered."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        label = short = in_chart(name)
        number = 2
        while label in found.values():
            label, number = f"{short} ({number})", number + 1
        found[name] = label
    return found


def told(value: float | int | None, digits: int | None = None) -> str:
    """A number with a real minus sign, about four significant digits, or so many decimals."""
    if value is None:
        return "–"
    if digits is None:
        size = abs(value)
        if size and (size < 1e-3 or size >= 1e9):
            return f"{value:.3g}".replace("-", "−")
        if size < 100:
            return f"{value:.4g}".replace("-", "−")
        digits = 0 if value == int(value) or size >= 1000 else 1
    said = f"{value:,.{digits}f}"
    if float(said.replace(",", "")) == 0:
        said = said.lstrip("-")
    return said.replace("-", "−")


def count(value: float | int | None, noun: str) -> str:
    """ "1 episode", "3 episodes"."""
    return f"{told(value)} {noun}{'' if value == 1 else 's'}"


def duration(seconds: float | int | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def plain(value: Any) -> str:
    """A setting as it is written."""
    if isinstance(value, list | tuple):
        return " ".join(plain(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else clean(str(value))
