"""From sections to one HTML file that needs nothing else."""

import base64
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any, ClassVar

from ..errors import UsageError
from .figures import TEMPLATE, Figure, Table

HEAVIEST = 6_000_000
"""bytes of a page; maps and videos that would make it heavier stay outside"""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = ""
    """"notice" for what is missing or went wrong, "quiet" for asides"""


@dataclass(frozen=True)
class Listing:
    """Sentences, each with what it belongs to."""

    kind: ClassVar[str] = "listing"
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """What can be typed into a terminal."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Link:
    kind: ClassVar[str] = "link"
    href: str
    """relative; never taken from a file as it is"""
    text: str


@dataclass(frozen=True)
class Facts:
    """A few numbers, large."""

    kind: ClassVar[str] = "facts"
    facts: tuple[tuple[str, str, str], ...]
    """(name, number, remark)"""


@dataclass(frozen=True)
class Video:
    kind: ClassVar[str] = "video"
    content: bytes
    says: str

    @property
    def source(self) -> str:
        return "data:video/mp4;base64," + base64.b64encode(self.content).decode()


@dataclass(frozen=True)
class Folded:
    """What few will look for."""

    kind: ClassVar[str] = "folded"
    summary: str
    blocks: "tuple[Block, ...]"


@dataclass(frozen=True)
class Beside:
    """Two or three blocks next to each other where there is room."""

    kind: ClassVar[str] = "beside"
    blocks: "tuple[Block, ...]"


Block = Text | Listing | Code | Link | Facts | Video | Folded | Beside | Figure | Table


@dataclass(frozen=True)
class Section:
    name: str
    """that no other section of the page has"""
    title: str
    blocks: tuple[Block, ...]
    parts: "tuple[Section, ...]" = ()


@dataclass(frozen=True)
class Page:
    title: str
    about: str
    """a line below the title"""
    lead: tuple[Block, ...]
    sections: tuple[Section, ...]


def render(page: Page, version: str) -> bytes:
    """The page as a file: scripts and style inside, and nothing loaded from anywhere.

    The browser is told to run only the scripts with the hashes given, whatever else is in the page.

    Raises:
        UsageError: Jinja2 or Plotly is missing.
    """
    try:
        import jinja2
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise UsageError(
            f"reports need the package {error.name}: pip install 'dynasac[report]'"
        ) from None
    files = resources.files("dynasac.report")
    figures = list(_figures(page.lead)) + [
        figure
        for section in page.sections
        for part in (section, *section.parts)
        for figure in _figures(part.blocks)
    ]
    scripts = [(files / "charts.js").read_text(encoding="utf-8")]
    if figures:
        scripts.insert(0, get_plotlyjs())
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    template = environment.from_string(
        (files / "page.html.jinja").read_text(encoding="utf-8"),
    )
    content = template.render(
        page=page,
        style=Markup((files / "style.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        hashes=[_hash(script) for script in scripts],
        charts={f.name: {"data": f.data, "layout": f.layout} for f in figures},
        common=TEMPLATE,
        version=version,
    )
    return content.encode()


def _figures(blocks: tuple[Block, ...]):
    for block in blocks:
        if isinstance(block, Figure):
            yield block
        elif isinstance(block, Folded | Beside):
            yield from _figures(block.blocks)


def _hash(script: str) -> str:
    """As Content-Security-Policy writes it."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def flat(*blocks: Any) -> tuple[Block, ...]:
    """Those that there are."""
    return tuple(block for block in blocks if block is not None)
