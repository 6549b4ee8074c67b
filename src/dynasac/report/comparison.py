"""The sections of a comparison: who was better, by how much, and how sure that is."""

import os
from pathlib import Path
from urllib.parse import quote

from . import figures
from .directories import ComparisonData, Json, listing, mapping, number, numbers, text
from .figures import Table
from .page import Beside, Block, Folded, Link, Listing, Section, Text, flat
from .words import clean, count, duration, isolated, plain, told

FEW_SEEDS = 10
"""with fewer than these, intervals of 95% hold the truth in about 90 of 100 cases"""


def headline(comparison: ComparisonData) -> str:
    """Who ended highest, and whether the others are told apart from it."""
    found = []
    for name, agent in comparison.agents.items():
        iqm = mapping(agent.get("iqm"))
        value = number(iqm.get("value"))
        if value is not None:
            found.append((value, number(iqm.get("low")), number(iqm.get("high")), name))
    if not found:
        return "No agent has a result."
    found.sort(key=lambda item: -item[0])
    value, low, high, best = found[0]
    said = f"{isolated(best)} ends highest, with an interquartile mean of {told(value)}"
    if low is None or high is None:
        said += "; too few seeds to say how sure that is"
    else:
        said += f" (95% interval {told(low)} to {told(high)})"
        close = [n for _, _, top, n in found[1:] if top is None or top >= low]
        if close:
            others = ", ".join(isolated(name) for name in close)
            said += f"; not clearly above {others}"
        elif len(found) > 1:
            said += "; no other interval reaches it"
            fewest = min(_finished(comparison.agents[name]) for *_, name in found)
            if fewest < FEW_SEEDS:
                said += ", which is no proof with so few seeds"
    made = {name: _steps(comparison, name) for *_, name in found}
    if len(set(made.values())) > 1:
        each = ", ".join(f"{isolated(name)} {told(steps)}" for name, steps in made.items())
        said += f". The real steps are not equal: {each}"
    return said + "."


def _finished(agent: Json) -> int:
    return sum(number(run.get("final")) is not None for run in listing(agent.get("runs")))


def about(comparison: ComparisonData) -> str:
    content = comparison.content
    seeds = len(numbers(content.get("seeds")))
    episodes = number(mapping(content.get("evaluation")).get("episodes"))
    parts = [
        count(len(comparison.agents), "agent"),
        count(seeds, "seed") if seeds else "",
        f"{count(episodes, 'evaluation episode')} each" if episodes else "",
        isolated(text(content.get("machine"))) if text(content.get("machine")) else "",
        isolated(text(content.get("date"))) if text(content.get("date")) else "",
    ]
    return " · ".join(part for part in parts if part)


def failures(comparison: ComparisonData) -> list[tuple[str, str]]:
    """Runs that failed, and what they said."""
    return [
        (f"{isolated(name)}, seed {plain(run.get('seed'))}", isolated(text(run.get("error"))))
        for name, agent in comparison.agents.items()
        for run in listing(agent.get("runs"))
        if text(run.get("error"))
    ]


def results(comparison: ComparisonData) -> Table:
    """One row for each agent."""
    threshold = number(comparison.content.get("threshold"))
    columns = (
        "agent",
        "final return, IQM",
        "95% interval",
        "mean",
        "real steps",
        "steps to threshold" if threshold is None else f"steps to {told(threshold)}",
        "seeds that reached it",
        "failed",
        "time of a run",
    )
    rows = []
    for name, agent in comparison.agents.items():
        iqm, mean = mapping(agent.get("iqm")), mapping(agent.get("mean"))
        low, high = number(iqm.get("low")), number(iqm.get("high"))
        reached = mapping(agent.get("steps_to_threshold"))
        found = listing(agent.get("runs"))
        failed = sum(1 for run in found if text(run.get("error")))
        rows.append(
            (
                isolated(name),
                told(number(iqm.get("value"))),
                "–" if low is None or high is None else f"{told(low)} to {told(high)}",
                told(number(mean.get("value"))),
                told(_steps(comparison, name)),
                told(number(reached.get("median"))),
                f"{told(number(reached.get('reached')))} of {told(number(reached.get('runs')))}"
                if reached
                else "–",
                f"{failed} of {len(found)}",
                duration(number(mapping(agent.get("seconds")).get("median"))),
            )
        )
    note = "IQM: mean of the middle half of the seeds. Steps and time are medians."
    matched = mapping(comparison.agents.get("sac-matched"))
    share = number(mapping(matched.get("updates_to_dynasac")).get("median"))
    if share is not None:
        note += f" sac-matched made {share:.2f} times as many updates as dynasac."
    return Table("Final policies", columns, tuple(rows), note)


def _steps(comparison: ComparisonData, name: str) -> float | None:
    """Real steps that an agent made, or else was to make."""
    made = number(mapping(comparison.agents[name].get("steps")).get("median"))
    budget = number(mapping(comparison.content.get("real_steps")).get(name))
    return budget if made is None else made


def sections(prefix: str, comparison: ComparisonData, beside: Path) -> tuple[Section, ...]:
    """All sections of a comparison.

    Arguments:
        prefix: of the names of sections and figures.
        beside: the folder that the page is written into, which links start from.
    """
    failed = failures(comparison)
    blocks: list[Block] = [results(comparison)]
    if failed:
        named = ", ".join(label for label, _ in failed)
        blocks.append(Text(f"{count(len(failed), 'run')} failed: {named}.", "notice"))
        blocks.append(Listing(tuple(failed)))
    made = [
        Section(f"{prefix}results", "Results", tuple(blocks)),
        Section(
            f"{prefix}curves",
            "On the way",
            flat(figures.comparison_curves(f"{prefix}curve", comparison)),
        ),
        Section(
            f"{prefix}certainty",
            "Seed by seed",
            flat(_pair(prefix, comparison)),
        ),
        Section(
            f"{prefix}agents",
            "The agents",
            (),
            tuple(
                Section(f"{prefix}agent-{k}", isolated(name), _agent(comparison, agent, beside))
                for k, (name, agent) in enumerate(comparison.agents.items())
            ),
        ),
    ]
    versions = mapping(comparison.content.get("versions"))
    if versions:
        rows = tuple((clean(key), plain(value)) for key, value in versions.items())
        table = Table("Versions", ("package", "version"), rows)
        made.append(Section(f"{prefix}versions", "Made with", (table,)))
    return tuple(section for section in made if section.blocks or section.parts)


def _pair(prefix: str, comparison: ComparisonData) -> Block | None:
    found = flat(
        figures.final_returns(f"{prefix}finals", comparison),
        figures.improvement(f"{prefix}improvement", comparison),
    )
    return Beside(found) if found else None


def _agent(comparison: ComparisonData, agent: Json, beside: Path) -> tuple[Block, ...]:
    blocks: list[Block] = []
    if text(agent.get("about")):
        blocks.append(Text(isolated(text(agent.get("about")))))
    rows = []
    for run in listing(agent.get("runs")):
        rows.append(
            (
                plain(run.get("seed")),
                told(number(run.get("final"))),
                told(number(run.get("steps_to_threshold"))),
                told(number(run.get("gradient_updates"))),
                duration(number(run.get("seconds"))),
                "failed" if text(run.get("error")) else "",
            )
        )
    if rows:
        columns = (
            "seed", "final return", "steps to threshold", "gradient updates", "time", ""
        )  # fmt: skip
        blocks.append(Folded("Runs", (Table("Runs", columns, tuple(rows)),)))
    settings = mapping(agent.get("settings"))
    if settings:
        table = Table(
            "Settings", ("setting", "value"), tuple((clean(k), v) for k, v in _flat(settings))
        )
        blocks.append(Folded("Settings", (table,)))
    links = [
        Link(href, f"Report of seed {plain(run.get('seed'))}")
        for run in listing(agent.get("runs"))
        if (href := _link(comparison, run, beside))
    ]
    return (*blocks, *links)


def _flat(content: Json, prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in content.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", plain(value)))
    return found


def _link(comparison: ComparisonData, run: Json, beside: Path) -> str | None:
    """To the report of a run, if there is one inside the comparison's directory."""
    named = text(run.get("directory"))
    if not named or "\0" in named:
        return None
    root = comparison.directory.resolve()
    try:
        report = (root / named / "report.html").resolve()
        if not report.is_relative_to(root) or not report.is_file():
            return None
    except (OSError, ValueError):
        return None
    return "./" + quote(os.path.relpath(report, beside.resolve()))
