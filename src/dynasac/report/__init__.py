"""One HTML page about runs and comparisons, which needs nothing but a browser.

`directories` reads them, `phase` asks a policy about the whole plane, `figures` makes charts with
their words and tables, `run` and `comparison` put sections together, `page` makes the file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .. import checkpoint, runs
from ..errors import UsageError
from . import comparison as compared
from . import run as trained
from .directories import ComparisonData, RunData, expanded, gather, text
from .page import HEAVIEST, Page, Section, Text, render
from .words import isolated

__all__ = ["Written", "write_report"]

LIGHTEST = 4_900_000
"""bytes of a page with a chart or two: Plotly has most of them"""


class Written(NamedTuple):
    """What `write_report` made."""

    path: Path
    bytes: int
    missing: tuple[str, ...]
    """sentences: what is not in the page, and how to get it"""


def write_report(
    directories: Sequence[Path | str],
    output: Path | str | None = None,
    env_id: str | None = None,
    model: str | None = None,
) -> Written:
    """Write one page about run directories and those of comparisons and sweeps.

    Works while a training still runs. Whatever cannot be had is said in the page, as are maps and
    videos that would make it heavier than `HEAVIEST`: the first directories have theirs.

    Arguments:
        output: the file; report.html in the directory if there is one, here if there are several.
        env_id, model: as for `recording.load_run`: for maps of the policy of runs whose
            environment or model is one's own. Of several runs only those are meant that are of
            this environment, or had such a model.

    Raises:
        UsageError: a directory is neither a run nor a comparison, a package is missing, or the file
            cannot be written.
    """
    paths = list({Path(each).resolve(): Path(each) for each in directories}.values())
    if not paths:
        raise UsageError("name at least one directory of a run or a comparison")
    found = [gather(each, name) for path in paths for each, name in expanded(path)]
    default = paths[0] / "report.html" if len(paths) == 1 else Path("report.html")
    file = Path(default if output is None else output)
    if file.is_dir():
        raise UsageError(f"--output {file} is a directory: name a file in it")
    version = runs.versions().get("dynasac", "")
    light = render(_page(found, file.parent, env_id, model, 0), version)
    page = _page(found, file.parent, env_id, model, HEAVIEST - max(LIGHTEST, len(light)))
    content = render(page, version)
    try:
        checkpoint.write_bytes(file, content)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from None
    return Written(file, len(content), tuple(_notices(page)))


def _page(
    found: list[RunData | ComparisonData],
    beside: Path,
    env_id: str | None,
    model: str | None,
    room: int,
) -> Page:
    """The page, with maps and videos that take `room` bytes at most."""
    if len(found) == 1:
        one = found[0]
        if isinstance(one, ComparisonData):
            return Page(
                f"Comparison on {isolated(one.env_id)}",
                compared.about(one),
                (Text(compared.headline(one), "lead"),),
                compared.sections("", one, beside),
            )
        made, _ = trained.sections("", one, env_id, model, room)
        notices = tuple(Text(sentence, "notice") for sentence in one.missing)
        lead = (Text(trained.headline(one), "lead"), *notices, trained.facts(one))
        return Page(isolated(one.name), f"A run on {isolated(one.env_id)}", lead, made)

    own = [one for one in found if isinstance(one, RunData)]
    sections = [trained.overview("overview", own)] if own else []
    for k, one in enumerate(found, start=1):
        if isinstance(one, ComparisonData):
            title = f"Comparison on {isolated(one.env_id)}"
            lead = (Text(compared.headline(one), "lead"), Text(compared.about(one), "quiet"))
            parts = _flattened(compared.sections(f"d{k}-", one, beside))
        else:
            title = isolated(one.name)
            notices = tuple(Text(sentence, "notice") for sentence in one.missing)
            lead = (Text(trained.headline(one), "lead"), *notices, trained.facts(one))
            named = _named(one, env_id, model)
            parts, weight = trained.sections(f"d{k}-", one, *named, room)
            room -= weight
        sections.append(Section(f"d{k}", title, lead, parts))
    names = ", ".join(isolated(one.name) for one in found)
    return Page(f"{len(found)} runs and comparisons", names, (), tuple(sections))


def _named(run: RunData, env_id: str | None, model: str | None) -> tuple[str | None, str | None]:
    """The environment and model that were named, as far as they are this run's."""
    if env_id is not None and env_id.rpartition(":")[2] != run.env_id.rpartition(":")[2]:
        return None, None
    return env_id, model if ":" in text(run.asked.get("model")) else None


def _flattened(sections: tuple[Section, ...]) -> tuple[Section, ...]:
    """Parts as sections, since headings go no deeper."""
    flat = []
    for section in sections:
        if section.blocks:
            flat.append(Section(section.name, section.title, section.blocks))
        flat += section.parts
    return tuple(flat)


def _notices(page: Page):
    """What the page says is missing."""
    for blocks in (
        page.lead,
        *(part.blocks for section in page.sections for part in (section, *section.parts)),
    ):
        for block in blocks:
            if isinstance(block, Text) and block.tone == "notice":
                yield block.text.translate({0x2068: None, 0x2069: None})
